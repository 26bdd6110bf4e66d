r"""Where training goes when gradients are lost in bursts and the ranks' data differ (claim D5).

Rank i has h_i (x - c_i)^2 / 2, x being the same on all ranks; the mean has its minimum at `optimum`. Links are
independent two-state chains that tick once a step: a packet is lost in the bad state, of share p and mean stay L, and
arrives in the good one (Gilbert-Elliott; own link lossy). One step keeps the share `memory` of how far
a mask is from its mean. So x depends on the last masks, which foretell the next ones, and a rule that is unbiased for
fixed gradients settles elsewhere: two ranks at `displacement` from the optimum. Inverse probability with q_i(t) =
P(arrives | the link's past) does not: what it adds to a step has mean 0 given the past.

Means of x only; noise of mean 0 changes nothing. Arguments as in `lossproof.theory.aggregation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

from lossproof.theory.aggregation import divide
from lossproof.theory.laws import GilbertElliott
from lossproof.theory.laws.law import exact

Rule = Literal["survivor_mean", "inverse_probability", "conditional"]
State = tuple[int, ...]
"""Which ranks' packets arrived."""


def memory(p: Any, L: Any) -> Any:
    """mu = 1 - 1/(L (1-p)): E[m' - q | m] = mu (m - q). 0 is independent loss.

    >>> memory(divide(1, 2), 8)
    Fraction(3, 4)
    """
    return 1 - divide(1, L * (1 - p))


def foretold(m: Any, p: Any, mu: Any) -> Any:
    """P(the next packet arrives | the last one's mask m) = q + mu (m - q)."""
    return (1 - p) * (1 - mu) + mu * m


def optimum(h: Sequence[Any], c: Sequence[Any]) -> Any:
    """The minimum of the mean of h_i (x - c_i)^2 / 2."""
    return divide(sum(a * b for a, b in zip(h, c, strict=True)), sum(h))


def pair_weights(rule: Rule, p: Any) -> tuple[Any, Any]:
    """Two ranks: the weight of each gradient if both arrive, and of one that arrives alone."""
    if rule == "survivor_mean":
        return divide(1, 2), 1
    if rule == "inverse_probability":
        return divide(1, 2 * (1 - p)), divide(1, 2 * (1 - p))
    raise ValueError(f"rule must be survivor_mean or inverse_probability, got {rule!r}")


def displacement(h: tuple[Any, Any], c: tuple[Any, Any], p: Any, mu: Any, eta: Any, weights: tuple[Any, Any]) -> Any:
    """lim E x_t - optimum for two ranks: not 0 if mu > 0, h_1 != h_2 and c_1 != c_2. `weights`: see `pair_weights`.

    With v = h_1 (c_1 - optimum), H = h_1 + h_2, q = 1 - p, weights a of both and b of one alone, it is
    -b^2 eta p mu v (h_1 - h_2) [1 - mu^2 + a eta H mu (q + mu)] over the `stiffness`.

    >>> displacement((1, 3), (1, 0), divide(1, 2), divide(3, 4), divide(1, 8), (1, 1))
    Fraction(261, 4918)
    """
    both, alone = weights
    H, v = sum(h), h[0] * (c[0] - optimum(h, c))
    pull = 1 - mu**2 + both * eta * H * mu * (1 - p + mu)
    return divide(-(alone**2) * eta * p * mu * v * (h[0] - h[1]) * pull, stiffness(h, p, mu, eta, weights))


def stiffness(h: tuple[Any, Any], p: Any, mu: Any, eta: Any, weights: tuple[Any, Any]) -> Any:
    """The denominator: a polynomial of positive terms for 0 <= mu < 1."""
    (both, alone), H, q = weights, sum(h), 1 - p
    one = H * (1 - mu) * (1 - mu**2) * (both * q + alone * p)
    two = both * alone * H**2 * mu * (1 - mu) * (q + mu) + 2 * alone**2 * h[0] * h[1] * p * mu * (1 - mu**2)
    return one + eta * two + eta**2 * both * alone**2 * h[0] * h[1] * H * mu**2 * (q + mu * (1 + p))


def small_step(h: Sequence[Any], c: Sequence[Any], p: Any, L: Any, eta: Any) -> Any:
    """The displacement under inverse probability to first order in eta, any number of ranks.

    (eta/N) p (L - 1/(1-p)) times mean(h_i g_i) / mean(h_i), g_i = h_i (optimum - c_i). L - 1/(1-p): how much longer a
    burst is than for independent losses.

    >>> small_step((1, 3), (1, 0), divide(1, 2), 8, divide(1, 8))
    Fraction(9, 128)
    """
    x = optimum(h, c)
    skew = divide(sum(a * a * (x - b) for a, b in zip(h, c, strict=True)), sum(h))
    return divide(eta * p * (L - divide(1, 1 - p)) * skew, len(h))


def price(p: Any, mu: Any) -> Any:
    """E[1/q(t)] of the conditional probabilities; 1/(1-p) for the stationary ones, which is less.

    N^-2 sum |g_i|^2 (price - 1) is the variance that a rule's weights add to a step.

    >>> price(divide(1, 10), memory(divide(1, 10), 10))
    Fraction(170, 89)
    """
    return divide(1 - p, foretold(1, p, mu)) + divide(p, foretold(0, p, mu))


# -- any number of ranks: the mean of x by state of the links, exactly


def weights(rule: Rule, before: State | None, now: State, p: Any, mu: Any) -> list[Any]:
    """What each gradient is multiplied by; `before` is None at the first step."""
    N, K = len(now), sum(now)
    if rule == "survivor_mean":
        return [divide(m, max(K, 1)) for m in now]
    if rule == "inverse_probability" or before is None:
        return [divide(m, N * (1 - p)) for m in now]
    return [divide(m, N * foretold(b, p, mu)) for m, b in zip(now, before, strict=True)]


def chance(now: State, before: State | None, p: Any, mu: Any) -> Any:
    """The probability of the next masks, given the last; `before` is None at the first step."""
    arrive = [1 - p if before is None else foretold(m, p, mu) for m in (before or now)]
    return math.prod(q if m else 1 - q for q, m in zip(arrive, now, strict=True))


def means(h: Sequence[Any], c: Sequence[Any], p: Any, mu: Any, eta: Any, rule: Rule, start: Any = 0) -> Iterator[Any]:
    """E x_1, E x_2, ... from x_0 = start; 4^N sums a step.

    >>> from itertools import islice
    >>> list(islice(means((1, 1), (1, 3), divide(1, 2), 0, divide(1, 2), "conditional"), 2))
    [Fraction(1, 1), Fraction(3, 2)]
    """
    states = list(product((0, 1), repeat=len(h)))
    mass: dict[State | None, tuple[Any, Any]] = {None: (1, start)}  # P(state), E[x; state]
    while True:
        after: dict[State | None, tuple[Any, Any]] = {}
        for now in states:
            share = total = 0
            for before, (chances, x) in mass.items():
                w = weights(rule, before, now, p, mu)
                slope = 1 - eta * sum(a * b for a, b in zip(w, h, strict=True))
                moved = slope * x + eta * chances * sum(a * b * d for a, b, d in zip(w, h, c, strict=True))
                probability = chance(now, before, p, mu)
                share, total = share + probability * chances, total + probability * moved
            after[now] = share, total
        mass = after
        yield sum(x for _, x in mass.values())


# -- for those who want the rule that is not displaced


def arrival_probability(law: GilbertElliott, arrived: Sequence[bool]) -> Any:
    """P(the link's next packet arrives | which of its packets did so far, one a tick): the q_i(t) of claim D5.

    If every packet is lost in the bad state and none in the good one, the last mask says it all; else it is the forward
    filter of a hidden Markov chain. Give it to `aggregate` as `arrival_probability_N`, rule `inverse_probability`.

    >>> law = GilbertElliott(0.1, burst=4)
    >>> [str(arrival_probability(law, seen)) for seen in ([], [True], [True, False])]
    ['9/10', '35/36', '1/4']
    """
    enter, leave = law.transitions
    loss_good, loss_bad = exact(law.loss_good), exact(law.loss_bad)
    bad = divide(enter, enter + leave)
    for m in arrived:
        in_bad = bad * (1 - loss_bad if m else loss_bad)
        in_good = (1 - bad) * (1 - loss_good if m else loss_good)
        bad = divide(in_bad * (1 - leave) + in_good * enter, in_bad + in_good)
    return 1 - bad * loss_bad - (1 - bad) * loss_good
