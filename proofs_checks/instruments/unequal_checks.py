"""What `plan` says of unequal links (A6): its quadrature against fractions, from the law of K and through what trains.

Legend: N ranks, P packets = patterns, E elements: one for each sender.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import estimates
from lossproof.proofs_checks.instruments.patterns import all_patterns
from lossproof.theory import aggregation, survivors, unequal

PRECISION = Fraction(1, 10**12)
_exact: Any = unequal.Weights


def from_counts(losses: Sequence[Fraction]) -> None:
    """For any number of ranks: K of the others is a sum of independent masks."""
    N, some = len(losses), 1 - survivors.counts(losses)[0]
    ranks = Counter(losses)
    lossy, reliable = {}, {}
    kappa = sum(chance / k for k, chance in enumerate(survivors.counts(losses)) if k)
    for p in ranks:
        others = list(losses)
        others.remove(p)
        alone = _inverse(others, 1)
        lossy[p] = _exact((1 - p) * alone / some, kappa, kappa / some, (1 - p) * alone / some, 1 - some)
        weight = alone
        for owner, times in Counter(others).items():  # reliable; sender and owner, and k of the rest
            rest = list(others)
            rest.remove(owner)
            weight += times * (1 - p) * _inverse(rest, 2)
        reliable[p] = _exact(weight / N, alone, alone, alone, Fraction(0))
    _require(ranks, "lossy", lossy)
    _require(ranks, "reliable", reliable)


def _inverse(losses: Sequence[Fraction], more: int) -> Any:
    """E[1/(K + more)]."""
    return sum(chance / (k + more) for k, chance in enumerate(survivors.counts(losses)))


def from_patterns(losses: Sequence[Fraction]) -> None:
    """Every pattern through the code that trains, for every owner in turn; all losses different."""
    N = len(losses)
    arrived_NP, columns = all_patterns(N), estimates.basis(N)
    scale = int(columns[0, 0])
    estimate_PE = estimates.of_patterns(arrived_NP, columns)[:, :N]
    inverse_P = estimate_PE.square().sum(1)  # the sum of squared weights of K survivors is 1/K

    def means(chances: Sequence[Fraction | int]) -> tuple[list[Fraction], Fraction, Fraction]:
        law = estimates.product_law(arrived_NP, chances)
        weights = [estimates.mean(estimate_PE[:, i], law) / scale for i in range(N)]
        return weights, estimates.mean(inverse_P, law) / scale**2, law[0]

    weights, kappa, none = means(losses)
    lossy = {p: _exact(w / (1 - none), kappa, kappa / (1 - none), w / (1 - none), none)
             for p, w in zip(losses, weights, strict=True)}  # fmt: skip
    owned = [means([0 if rank == owner else p for rank, p in enumerate(losses)]) for owner in range(N)]
    reliable = {
        p: _exact(sum(w[i] for w, _, _ in owned) / N, owned[i][1], owned[i][1], owned[i][0][i], Fraction(0))
        for i, p in enumerate(losses)
    }
    _require(Counter(losses), "lossy", lossy)
    _require(Counter(losses), "reliable", reliable)


def many_alike(N: int, p: float) -> None:
    """Equal links, of any number: A1, A3 and A7."""
    some = float(survivors.some_survivor(N, p))
    w, kappa = float(aggregation.owner_weight(N, p)), survivors.kappa(N, p)
    for own_link, weights in (
        ("lossy", unequal.Weights(1 / N, kappa, kappa / some, 1 / N, 1 - some)),
        ("reliable", unequal.Weights(1 / N, w, w, w, 0.0)),
    ):
        found = unequal.sender_weights({Fraction(p): N}, own_link)[Fraction(p)]  # type: ignore[arg-type]
        for name, value in vars(weights).items():
            close = abs(getattr(found, name) - value) <= 1e-11 * value + 1e-15
            require(close, f"{N} links of loss {p}, own link {own_link}: {name} {getattr(found, name)}, not {value}")


def _require(ranks: Counter[Fraction], own_link: Any, exact: dict[Fraction, Any]) -> None:
    found = unequal.sender_weights(ranks, own_link)
    for p, right in exact.items():
        for name, value in vars(right).items():
            number = Fraction(getattr(found[p], name))
            require(
                abs(number - value) <= value * PRECISION,
                f"losses {dict(ranks)}, own link {own_link}: {name} of loss {p} is {float(number)}, not {float(value)}",
            )
