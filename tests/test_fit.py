"""Fitting loss laws: random logs that are what they claim, estimates by brute force, exact levels, coverage, power."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from math import comb

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit, ndtri
from scipy.stats import binom

from lossproof.impl.loss import Arrivals
from lossproof.theory.fit import fit
from lossproof.theory.goodness import homogeneity, independence, one_step_of_memory
from lossproof.theory.laws import Bernoulli, CommonOutage, GilbertElliott, HeavyTailed, PerSender
from lossproof.theory.likelihood import maximise
from lossproof.theory.recorded import Recorded, Runs, bursts_at_random, rank

RARE = 1e-6  # chance of a false alarm of a test here, were its seed not fixed
Make = Callable[[np.random.Generator], list[np.ndarray]]


def log_of(*links) -> Recorded:
    """One link to rank 99 from each of the given sequences of losses."""
    src = np.repeat(np.arange(len(links)), [len(link) for link in links])
    return Recorded.from_columns(src, np.full(len(src), 99), np.concatenate(links))


def chain(n, loss, burst, rng) -> np.ndarray:
    """A stationary Gilbert-Elliott link, run by run."""
    leave = 1 / burst
    enter = leave * loss / (1 - loss)
    lost, runs, size = rng.random() < loss, [], 0
    while size < n:
        runs.append(np.full(rng.geometric(leave if lost else enter), lost))
        size += len(runs[-1])
        lost = not lost
    return np.concatenate(runs)[:n]


# -- random logs


@pytest.mark.parametrize(
    "links", [["0110100"], ["1111011101"], ["0001000100"], ["01101", "0011", "1"], ["1010101", "0", "000"]]
)
def test_random_logs_are_uniform_among_those_with_the_same_counts(links):
    """Every log of the same chains, first outcomes and transition counts turns up equally often, and no other."""
    log = log_of(*([c == "1" for c in link] for link in links))
    runs, rng = Runs(log), np.random.default_rng(0)

    def counts(link):
        return link[0], sorted(pairwise(link))

    alike = [
        ["".join(o) for o in product("01", repeat=len(link)) if counts("".join(o)) == counts(link)] for link in links
    ]
    possible = {"".join(parts) for parts in product(*alike)}
    times, found = 400 * len(possible), Counter()
    for _ in range(times):
        found["".join(map(str, np.repeat(runs.lost_R.astype(int), runs.random(rng))))] += 1
    assert set(found) == possible
    for seen in found.values():
        tail = min(binom.cdf(seen, times, 1 / len(possible)), binom.sf(seen - 1, times, 1 / len(possible)))
        assert 2 * tail > RARE / len(possible)


@pytest.mark.parametrize(("arrived", "lost"), [(5, 3), (2, 6), (0, 4), (7, 1)])
def test_the_number_of_bursts_without_memory(arrived, lost):
    """Against all arrangements of the losses."""
    arrangements = [o for o in product((0, 1), repeat=arrived + lost) if sum(o) == lost]
    bursts = Counter(sum(o[i] and not (i and o[i - 1]) for i in range(len(o))) for o in arrangements)
    mean = sum(b * k for b, k in bursts.items()) / len(arrangements)
    distances = Counter()
    for b, k in bursts.items():
        distances[round(abs(b - mean), 9)] += k
    log = log_of(np.arange(arrived + lost) < lost)
    observed, simulated = bursts_at_random(log, np.random.default_rng(1), 20_000)
    assert observed == pytest.approx(abs(1 - mean))
    found = Counter(np.round(simulated, 9).tolist())
    assert set(found) <= set(distances)
    for distance, k in distances.items():
        share = k / comb(arrived + lost, lost)
        tail = min(binom.cdf(found[distance], 20_000, share), binom.sf(found[distance] - 1, 20_000, share))
        assert 2 * tail > RARE


def test_the_observation_is_one_of_those_that_it_is_ranked_among():
    """With 4 simulated values the smallest p-value is 1/5, and equal values count against it."""
    assert [rank(x, [1.0, 2.0, 2.0, 3.0]) for x in (4, 3, 2, 1, 0)] == [0.2, 0.4, 0.8, 1.0, 1.0]


# -- estimates


def log_likelihood(links, loss, burst) -> float:
    """From the definition, packet by packet."""
    leave = 1 / burst
    enter = leave * loss / (1 - loss)
    if not 0 < enter <= 1:
        return -np.inf
    move = np.array([[1 - enter, enter], [leave, 1 - leave]])
    with np.errstate(divide="ignore"):
        return float(
            sum(
                np.log([1 - loss, loss][link[0]]) + sum(np.log(move[a, b]) for a, b in pairwise(link)) for link in links
            )
        )


def brute_profile(links, x, which) -> float:
    """The best log-likelihood with one of (loss, burst) held at x."""

    def height(y):
        other = expit(y[0])
        return -log_likelihood(links, x, 1 / other) if which == "loss" else -log_likelihood(links, other, x)

    starts = [minimize(height, [y], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}) for y in (-4, -1, 0)]
    return -min(found.fun for found in starts)


@pytest.mark.parametrize(
    "links",
    [
        ["0001110000001100000000001111100000000100"],
        ["1100000", "0011110000", "000000", "1"],
        ["01010010101001"],
        ["000111"],
        ["1110", "1111", "0111011"],
    ],
)
def test_estimates_and_intervals_against_brute_force(links):
    links = [[int(c) for c in link] for link in links]
    found = fit(log_of(*links), confidence=0.9).pooled
    drop = ndtri(0.95) ** 2 / 2
    best = -min(
        minimize(
            lambda y: -log_likelihood(links, expit(y[0]), 1 / expit(y[1])),
            start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000},
        ).fun
        for start in ([-2, -1], [-1, 0], [0, 2], [1, -1])
    )  # fmt: skip
    assert log_likelihood(links, found.loss.value, found.burst.value) == pytest.approx(best, abs=1e-6)
    for which, estimate in (("loss", found.loss), ("burst", found.burst)):
        assert estimate.low <= estimate.value <= estimate.high
        for end in (estimate.low, estimate.high):
            if which == "burst" and end == 1.0:
                assert brute_profile(links, 1.0, which) >= best - drop - 1e-6
            else:
                assert brute_profile(links, end, which) == pytest.approx(best - drop, abs=1e-5)


@pytest.mark.parametrize("n", [1, 5, 12])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bernoulli_interval_covers_at_least_as_often_as_stated(n, confidence):
    """Exact sums over all counts, each tail by itself."""
    intervals = []
    for k in range(n + 1):
        (link,) = maximise([(0, 1)], np.array([[n - k - (k < n), 0, 0, k - (k == n), k < n, k == n]]), confidence)
        assert (link.lost, link.packets) == (k, n)
        intervals.append(link.bernoulli)
    for p in np.linspace(0.001, 0.999, 97):
        above = sum(binom.pmf(k, n, p) for k, i in enumerate(intervals) if p > i.high)
        below = sum(binom.pmf(k, n, p) for k, i in enumerate(intervals) if p < i.low)
        assert max(above, below) <= (1 - confidence) / 2 + 1e-12
    assert (intervals[0].low, intervals[n].high) == (0, 1)


def test_without_a_loss_the_bound_is_the_rule_of_three():
    found = fit(log_of(np.zeros(1000, dtype=bool)))
    assert (found.verdict, found.law(), found.pooled.bernoulli.low) == ("bernoulli", Bernoulli(0.0), 0)
    assert found.at_most == pytest.approx(1 - 0.05 ** (1 / 1000)) == pytest.approx(0.003, rel=5e-3)
    assert found.pooled.bernoulli.high == pytest.approx(1 - 0.025 ** (1 / 1000))
    assert (found.pooled.loss, found.pooled.burst) == (None, None)


@pytest.mark.parametrize(
    ("links", "law"),
    [
        ([[0]], Bernoulli(0.0)),
        ([[1]], None),
        ([[1, 1, 1]], None),
        ([[1], [0]], Bernoulli(0.5)),
        ([[1, 1], [0, 0]], Bernoulli(0.5)),
        ([[0, 1]], Bernoulli(0.5)),
    ],
)
def test_logs_too_short_to_say_anything_reject_nothing(links, law):
    found = fit(log_of(*(np.array(link, dtype=bool) for link in links)))
    assert (found.verdict, found.law()) == ("bernoulli", law)
    assert found.to_json()["packets"] == sum(map(len, links))


# -- levels, coverage, power

TRUE_LAWS: dict[str, tuple[Make, float, float | None]] = {
    "bernoulli": (lambda rng: [rng.random(300) < 0.1], 0.1, None),
    "rare": (lambda rng: [rng.random(400) < 0.01 for _ in range(2)], 0.01, None),
    "coin": (lambda rng: [rng.random(40) < 0.5 for _ in range(6)], 0.5, None),
    "bursts": (lambda rng: [chain(1500, 0.1, 4, rng)], 0.1, 4),
    "short bursts": (lambda rng: [chain(200, 0.3, 2, rng) for _ in range(4)], 0.3, 2),
    "no bursts": (lambda rng: [chain(300, 0.4, 1.05, rng)], 0.4, 1.05),
}


@pytest.mark.parametrize("name", TRUE_LAWS)
def test_a_true_law_is_rejected_no_more_often_than_stated_and_covered_as_often(name):
    """100 logs of a known law at level 20 %, so that a wrong level shows; intervals at 90 %."""
    make, loss, burst = TRUE_LAWS[name]
    rng, logs, level = np.random.default_rng(7), 100, 0.2
    family = "bernoulli" if burst is None else "gilbert-elliott"
    rejected = covered_loss = covered_burst = differ = 0
    for seed in range(logs):
        found = fit(log_of(*make(rng)), level=level, confidence=0.9, seed=seed, simulations=39)
        rejected += found.verdict != "bernoulli" if burst is None else found.verdict == "neither"
        estimate = found.pooled.bernoulli if burst is None else found.pooled.loss
        covered_loss += estimate is not None and estimate.low <= loss <= estimate.high
        interval = found.pooled.burst
        covered_burst += burst is None or (interval is not None and interval.low <= burst <= interval.high)
        equal = found.equality.bernoulli if family == "bernoulli" else found.equality.gilbert_elliott
        differ += equal <= level
    assert binom.sf(rejected - 1, logs, level) > RARE
    assert binom.sf(differ - 1, logs, level) > RARE
    assert binom.cdf(covered_loss, logs, 0.9) > RARE
    assert binom.cdf(covered_burst, logs, 0.9) > RARE


@pytest.mark.parametrize("test", [independence, one_step_of_memory])
def test_the_tests_reach_their_level(test):
    """Of continuous statistics, a tenth of the p-values lies in each tenth: the tests are exact, not only careful."""
    rng, logs = np.random.default_rng(3), 300
    values = [test(log_of(rng.random(400) < 0.3), rng, 19).p_value for _ in range(logs)]
    for tenth in (0.1, 0.5, 0.9):
        count = sum(p <= tenth for p in values)
        slack = 0.75 if test is independence else 1  # ties of a count make it careful
        assert binom.cdf(count, logs, slack * tenth) > RARE
        assert binom.sf(count - 1, logs, tenth) > RARE


def heavy_bursts(rng):
    """Bursts with P(T >= j) = j^-1.5, gaps geometric."""
    bursts = np.minimum(2000, np.floor(rng.random(400) ** (-1 / 1.5))).astype(int)
    return np.concatenate(
        [np.r_[np.zeros(gap, bool), np.ones(b, bool)] for gap, b in zip(rng.geometric(0.05, 400), bursts, strict=True)]
    )


def three_states(rng):
    """Good, blips of one packet, outages of 20: bursts are neither short nor long."""
    runs = []
    for _ in range(250):
        runs += [np.zeros(rng.geometric(0.03), bool), np.ones(1 if rng.random() < 0.8 else rng.geometric(0.05), bool)]
    return np.concatenate(runs)


def hidden(rng):
    """Gilbert-Elliott of four parameters: 1 % lost in the good state, 50 % in the bad one."""
    return rng.random(8000) < np.where(chain(8000, 0.2, 25, rng), 0.5, 0.01)


THIRD_KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "heavy-tailed bursts": heavy_bursts,
    "three states": three_states,
    "periodic": lambda rng: np.arange(3000) % 10 == 3,
    "periodic bursts": lambda rng: (np.arange(4000) + 7) % 40 < 4,
    "periodic rate": lambda rng: rng.random(8000) < 0.1 + 0.08 * np.sin(np.arange(8000) / 40),
    "drift": lambda rng: rng.random(8000) < np.linspace(0.06, 0.14, 8000),
    "a jump": lambda rng: rng.random(6000) < np.where(np.arange(6000) < 4000, 0.08, 0.14),
    "hidden states": hidden,
    "second order": lambda rng: np.repeat(rng.random(3000) < 0.1, 2),
}


@pytest.mark.parametrize("name", THIRD_KINDS)
def test_a_log_of_a_third_kind_is_neither(name):
    """Each of ten logs, at level 1 %."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found = fit(log_of(THIRD_KINDS[name](rng)), seed=seed, simulations=200)
        assert found.verdict == "neither", (seed, found.p_values)
        assert found.law() is None


def masks(law, steps=150, seed=0, ranks=4, copies=4):
    """A log of our own masks, by the rows (src, dst, lost, step, phase, packet) of Arrivals."""
    owner = np.tile(np.arange(ranks), copies)
    arrivals, rows = Arrivals(law, owner, ranks, seed=seed), []
    for step in range(steps):
        for phase, mask in enumerate((arrivals.gradients(step), arrivals.parameters(step))):
            for packet, own in enumerate(owner):
                for other in range(ranks):
                    if other != own:
                        link = (other, own) if phase == 0 else (own, other)
                        rows.append((*link, not mask[other, packet], step, phase, packet))
    return np.array(rows).T


@pytest.mark.parametrize(
    ("law", "clock", "verdict"),
    [
        (Bernoulli(0.1), "packet", "bernoulli"),
        (Bernoulli(0.1), "step", "bernoulli"),
        (GilbertElliott(0.1, 4), "step", "gilbert-elliott"),
        (GilbertElliott(0.1, 4), "packet", "neither"),
        (GilbertElliott(0.1, 4, clock="packet"), "packet", "gilbert-elliott"),
        (GilbertElliott(0.1, 4, clock="packet"), "step", "neither"),
        (HeavyTailed(0.1), "step", "neither"),
        (CommonOutage(0.1, 0.05), "packet", "neither"),
        (PerSender((0.05, 0.1, 0.15, 0.2)), "packet", "bernoulli"),
    ],
    ids=repr,
)
def test_our_own_masks_are_recognised_by_the_right_clock(law, clock, verdict):
    found = fit(Recorded.from_columns(*masks(law), clock=clock), clock, confidence=1 - RARE, simulations=200)
    assert found.verdict == verdict
    if isinstance(law, GilbertElliott) and verdict == "gilbert-elliott":
        fitted = found.law()
        assert found.pooled.loss.low < 0.1 < found.pooled.loss.high
        assert found.pooled.burst.low < 4 < found.pooled.burst.high
        assert (fitted.clock, found.equal_links) == (clock, True)
    if isinstance(law, PerSender):
        assert isinstance(found.law(), PerSender)
        assert found.sender_losses() == pytest.approx((0.05, 0.1, 0.15, 0.2), abs=0.03)


def test_links_that_differ_by_receiver_have_no_single_law():
    rng = np.random.default_rng(0)
    src, dst = (np.repeat(ends, 2000) for ends in ([0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]))
    found = fit(Recorded.from_columns(src, dst, rng.random(12_000) < 0.1 + 0.1 * dst), simulations=200)
    assert (found.verdict, found.equal_links, found.law()) == ("bernoulli", False, None)
    bursty = fit(log_of(chain(20_000, 0.1, 3, rng), chain(20_000, 0.1, 5, rng)), simulations=200)
    assert (bursty.verdict, bursty.equal_links, bursty.law()) == ("gilbert-elliott", False, None)
    assert [round(link.burst.value) for link in bursty.links] == [3, 5]


def test_homogeneity_is_exact_on_small_tables():
    """The p-values of all tables with one margin, weighted by their probability."""
    trials = np.array([3, 4])
    weights, values = [], []
    for k in product(range(4), range(5)):
        if sum(k) == 3:
            weights.append(comb(3, k[0]) * comb(4, k[1]) / comb(7, 3))
            values.append(homogeneity([(trials, np.array(k))], np.random.default_rng(1), 999))
    for value in values:
        total = sum(w for w, v in zip(weights, values, strict=True) if v <= value + 1e-9)
        assert value == pytest.approx(total, abs=0.06)


# -- the rest of the interface


@pytest.mark.parametrize(
    ("independent", "memory", "verdict"),
    [
        (0.006, 0.006, "bernoulli"),  # each test has half of the level
        (0.004, 0.006, "gilbert-elliott"),
        (0.005, 1.0, "gilbert-elliott"),
        (1.0, 0.004, "neither"),
        (0.004, 0.004, "neither"),
    ],
)
def test_the_verdict_shares_the_level_between_both_tests(independent, memory, verdict):
    found = fit(log_of(np.array([0, 1, 1, 0])))
    first, second = found.tests
    tests = (replace(first, p_value=independent), replace(second, p_value=memory))
    assert replace(found, tests=tests).verdict == verdict


def test_equal_seeds_give_equal_results_and_the_laws_can_be_built():
    rng = np.random.default_rng(2)
    for n, loss, burst in ((50, 0.3, 1.5), (2000, 0.55, 1 / 0.818), (3000, 1 / 3, 3.0), (400, 0.9, 20.0)):
        log = log_of(chain(n, loss, max(burst, loss / (1 - loss)), rng))
        found = fit(log, simulations=200)
        assert found == fit(log, simulations=200)
        assert found.law() is None or 0 < found.law().marginal() < 1


@pytest.mark.parametrize("bursts", [(3, 1, 4, 1, 5), (2, 2, 3), (7, 1, 1), (1, 3, 3, 4)])
def test_rounding_keeps_loss_and_burst_possible(bursts):
    """Single arrivals between bursts: the mean burst is the shortest that the loss allows."""
    found = fit(log_of(np.array([int(c) for c in "0" + "0".join("1" * b for b in bursts) + "0"])))
    first, second = found.tests
    law = replace(found, tests=(replace(first, p_value=0.0), second)).law()
    assert isinstance(law, GilbertElliott)
    assert law.transitions[0] == pytest.approx(1, abs=1e-4)


def test_a_fit_shows_itself():
    found = fit(log_of(np.random.default_rng(0).random(500) < 0.2))
    assert "<table>" in found._repr_html_()
    assert "bernoulli" in found._repr_html_()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": 0}, "level must lie in"),
        ({"level": float("nan")}, "level must lie in"),
        ({"confidence": 1.0}, "confidence must lie in"),
        ({"simulations": 199}, "simulations must be at least 2/level = 200, got 199"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_unusable_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        fit(log_of(np.array([0, 1])), **options)


def test_rare_losses_and_long_bursts():
    link = np.zeros(200_000, dtype=bool)
    link[100_000] = True
    assert fit(log_of(link), simulations=200).pooled.loss.value == pytest.approx(5e-6, rel=1e-3)
    link = np.arange(200_000) % 20_000 >= 19_900
    found = fit(log_of(link[:-1000]), simulations=200).pooled
    assert abs(logit(found.loss.value)) < 10
    assert found.burst.value == pytest.approx(100, rel=0.1)
