"""What packet loss will do to a deployment: the closed forms of the claims in one place. Imports NumPy and no more.

Steady state, per packet; the owner's own copy is always fresh. Probabilities are read exactly, a float as the decimal
that it prints as. Ages and drift are computed in fractions; sums over the ranks too where that is cheap, and otherwise
in floats, to a relative error of about 1e-16 / (1 - loss); what needs no sum has all its digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from html import escape
from typing import Any

from lossproof.theory import aggregation, burst_ages, bursts, momentum, redundancy, stability, survivors, unequal
from lossproof.theory.laws import GilbertElliott, Number, exact, probability
from lossproof.theory.laws.law import count, finite
from lossproof.theory.redundancy import Redundancy
from lossproof.theory.stability import OwnLink

SCHEMA = 1
LEAST_RANKS, MOST_RANKS = 2, 10**7
MOST_LOSSES = 10**4
LONGEST_BURST = 10**12
MOST_COPIES = 16
_EXACT_BITS = 2048
_MANY_DIGITS = Context(prec=80)
_TAIL = Fraction(1, 1000)
_DELAYS = "momentum", "gradient_delay"
DIFFERS = "differs from owner to owner: see senders"


def _means(line: str, **default: Any) -> Any:
    return field(metadata={"meaning": line}, **default)


@dataclass(frozen=True)
class Sender:
    """One rank of a deployment with unequal links: as a sender of gradients, then for the packets that it owns."""

    loss: float = _means("loss of what this rank sends, gradients and parameters")
    weight: float = _means("expected weight of its gradient given a survivor, averaged over the owners (A6)")
    bias: float = _means("weight - 1/N: bias of the survivor mean for each unit by which its gradient differs (A6)")
    kappa: float = _means("E[1/K; K >= 1]")
    variance_inflation: float = _means("N E[1/K | K >= 1]")
    p_no_survivor: float = _means("P(K = 0)")
    owner_weight: float = _means("expected weight of its own gradient given a survivor")
    age_mean: float = _means("mean age of a replica of its packets, in steps")
    age_q999: int = _means("age that 99.9 % of these replicas do not exceed")
    age_max_mean: float = _means("mean age of the oldest of N independent such replicas")
    drift_pair: float = _means("E|theta_i - theta_j|^2 of two of these replicas, in sigma^2")
    drift_owner: float = _means("E|x - theta_i|^2, in sigma^2")
    drift_pair_worst: float = _means("the same for two replicas in the worst case of |u| <= G, in G^2")


_APART = "senders", "redundancy", "reasons"
_OWNED = tuple(f.name for f in fields(Sender) if f.name not in ("loss", "weight", "bias"))


@dataclass(frozen=True)
class Plan:
    """The numbers of `lossproof plan`. None where the loss law has no exact value; `reasons` says why.

    K is how many of the N gradients reach the owner of a packet; u its step, sigma^2 = E|u|^2 for zero-mean steps.
    """

    ranks: int = _means("N, ranks, each with its own replica")
    loss: float | None = _means("packet loss, in both phases")
    burst: float | None = _means("mean length of a burst of losses, in steps; none: losses are independent")
    own_link: str = _means("whether the owner's own gradient is reliable or lost like the others")
    kappa: float | None = _means("E[1/K; K >= 1]: what is left of the gradient noise of one rank (A7)")
    variance_inflation: float | None = _means("N E[1/K | K >= 1]: gradient noise against no loss (A5)")
    p_no_survivor: float | None = _means("chance that no gradient reaches the owner (A2)")
    owner_weight: float | None = _means("expected weight of the owner's own gradient, given a survivor (A1, A3)")
    age_mean: float | None = _means("mean age of a replica, in steps (B1, B8)")
    age_q999: int | None = _means("age that 99.9 % of the replicas do not exceed (B1)")
    age_max_mean: float | None = _means("mean age of the oldest of N independent replicas; a packet has N - 1 (B7)")
    drift_pair: float | None = _means("E|theta_i - theta_j|^2 of two replicas, in sigma^2 (B2, B8)")
    drift_owner: float | None = _means("E|x - theta_i|^2, a replica against its owner, in sigma^2 (B3, B8)")
    drift_pair_worst: float | None = _means("two replicas in the worst case of steps |u| <= G, in G^2 (B5)")
    stable_step: float | None = _means(
        "SGD on a quadratic, no survivor no update: stable in mean square for eta h below this (D2)"
    )
    stable_step_lossless: float = _means("the same without loss")
    momentum: float | None = _means("momentum that loss of parameters adds to the mean of training (D1)")
    gradient_delay: float | None = _means("steps by which that delays a gradient on average (D1)")
    redundancy: Redundancy | None = _means("how to spend a budget of copies (D3)", default=None)  # noqa: RUF009
    senders: tuple[Sender, ...] | None = _means("one row for each rank where links are unequal", default=None)
    reasons: Mapping[str, str] = _means("why a number is missing", default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """The numbers by name, with a schema number; null where there is no exact value."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _APART}
        rows: dict[str, Any] = (
            {} if self.senders is None else {"senders": [dict(vars(sender)) for sender in self.senders]}
        )
        if self.redundancy is not None:
            rows["redundancy"] = self.redundancy.to_json()
        return {"schema": SCHEMA, **shared, **rows, "reasons": dict(self.reasons)}

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and one line of meaning of every number; where it is missing, the reason."""
        shown = [f for f in fields(self) if f.name not in _APART]
        rows = [
            (f.name, show(getattr(self, f.name)), self.reasons.get(f.name, f.metadata["meaning"]))
            for f in shown
            if getattr(self, f.name) is not None or f.name in self.reasons
        ]
        spent = self.redundancy.rows() if self.redundancy else []
        return rows + [(name, show(value), meaning) for name, value, meaning in spent]

    def _repr_html_(self) -> str:
        return _html_table(("", "value", "meaning"), self.rows()) + (
            "" if self.senders is None else _html_table(*sender_rows(self.senders))
        )


def plan(
    ranks: int | None = None,
    loss: Number | None = None,
    burst: Number | None = None,
    losses: Sequence[Number] | None = None,
    own_link: OwnLink = "reliable",
    budget: int | None = None,
    step: Number | None = None,
) -> Plan:
    """What to expect of N ranks that lose packets.

    Args:
        ranks: N, at least 2; may be left out where `losses` has one entry for each rank.
        loss: the probability that a packet is lost, in [0, 1), equal on all links and in both phases.
        burst: mean length of a burst in steps (Gilbert-Elliott with the step clock); None for independent losses.
        losses: instead of `loss`, one probability for each sender (`PerSender`).
        own_link: whether the owner's own gradient always arrives or is lost like the others.
        budget, step: how many copies of a gradient packet and of a parameter packet there may be together, and eta h of
            the direction whose excess risk matters; for independent losses, equal on all links.

    Raises:
        ValueError, TypeError: naming the argument, its value and what is allowed.

    >>> found = plan(16, 0.1)
    >>> round(found.drift_pair, 4), found.age_q999
    (0.202, 2)
    """
    if own_link not in ("reliable", "lossy"):
        raise ValueError(f"own_link must be 'reliable' or 'lossy', got {own_link!r}")
    if (budget is None) != (step is None):
        raise ValueError(f"budget and step go together, got budget {budget} and step {step}")
    if budget is not None and (losses is not None or burst is not None):
        raise ValueError(f"budget goes with independent losses, equal on all links, got {budget} and others")
    if losses is not None:
        return _unequal(ranks, loss, burst, tuple(losses), own_link)
    N = _ranks(ranks)
    if loss is None:
        raise ValueError("loss must be given, a probability in [0, 1), or losses, one for each rank")
    p = _loss("loss", loss)
    L = 1 / (1 - p)
    if burst is not None:
        L = exact(GilbertElliott(loss, burst).burst)
        if L > LONGEST_BURST:
            raise ValueError(f"burst must be at most {LONGEST_BURST:.0e} steps, got {burst!r}")
    independent = p == 0 or L * (1 - p) == 1
    reasons = {} if independent else {
        "stable_step": "losses come in bursts: no closed form",
        **dict.fromkeys(_DELAYS, "losses come in bursts: in closed form for N to infinity only (D1)"),
    }  # fmt: skip
    return Plan(
        ranks=N,
        loss=float(p),
        burst=None if burst is None else float(L),
        own_link=own_link,
        **_equal_weights(N, p, own_link),
        **_ages(N, p, L),
        stable_step=stability.stable_step(N, _number(N, p), own_link) if independent else None,
        stable_step_lossless=stability.LOSSLESS,
        **(_delays(N, p, own_link) if independent else dict.fromkeys(_DELAYS)),
        redundancy=None if budget is None or step is None else _spent(N, p, own_link, budget, step),
        reasons=reasons,
    )


def _unequal(ranks: int | None, loss: object, burst: object, losses: tuple[Number, ...], own_link: OwnLink) -> Plan:
    for name, value in (("loss", loss), ("burst", burst)):
        if value is not None:
            raise ValueError(f"{name} does not go with losses, which say all about the links, got {value!r}")
    if not losses:
        raise ValueError("losses must hold one probability for each rank, got none")
    N = _ranks(len(losses) if ranks is None else ranks)
    if len(losses) != N:
        raise ValueError(f"losses must hold one probability for each of {N} ranks, got {len(losses)}")
    first: dict[Number, int] = {}
    for rank, value in enumerate(losses):
        first.setdefault(value, rank)
    p_of = {value: _loss(f"losses[{rank}]", value) for value, rank in first.items()}
    different = set(p_of.values())
    if len(different) == 1:
        (p,) = different
        equal = plan(N, p, own_link=own_link)
        sender = Sender(loss=float(p), weight=1 / N, bias=0.0, **{name: getattr(equal, name) for name in _OWNED})
        return replace(equal, senders=(sender,) * N)
    if len(different) > MOST_LOSSES:
        raise ValueError(f"losses must hold at most {MOST_LOSSES} different values, got {len(different)}")
    senders_of: Counter[Fraction] = Counter()
    for value, n in Counter(losses).items():
        senders_of[p_of[value]] += n
    row = {}
    for p, w in unequal.sender_weights(senders_of, own_link).items():
        row[p] = Sender(
            loss=float(p),
            weight=w.weight,
            bias=w.weight - 1 / N,
            kappa=w.kappa,
            variance_inflation=N * w.inverse_count,
            p_no_survivor=w.no_survivor,
            owner_weight=w.owner_weight,
            **_ages(N, p, 1 / (1 - p)),
        )
    kept = {name: _common(row.values(), name) for name in _OWNED}
    reasons = {name: DIFFERS for name in ("loss", *_OWNED) if kept.get(name) is None}
    return Plan(
        ranks=N,
        loss=None,
        burst=None,
        own_link=own_link,
        **kept,
        stable_step=None,
        stable_step_lossless=stability.LOSSLESS,
        **dict.fromkeys(_DELAYS),
        senders=tuple(row[p_of[value]] for value in losses),
        reasons={**reasons, **dict.fromkeys(("stable_step", *_DELAYS), "links are unequal: no closed form")},
    )


def _common(rows: Any, name: str) -> Any:
    """The value that all rows share, or None."""
    values = {getattr(row, name) for row in rows}
    return values.pop() if len(values) == 1 else None


def _equal_weights(N: int, p: Fraction, own_link: OwnLink) -> dict[str, Any]:
    if own_link == "reliable":  # K = 1 + binomial(N-1, 1-p)
        with localcontext(_MANY_DIGITS):
            weight = aggregation.owner_weight(N, _digits(N, p))
            return {
                "kappa": float(weight),
                "variance_inflation": float(N * weight),
                "p_no_survivor": 0.0,
                "owner_weight": float(weight),
            }
    exact_p = _number(N, p)
    kappa, some = survivors.kappa(N, exact_p), survivors.some_survivor(N, exact_p)
    return {
        "kappa": float(kappa),
        "variance_inflation": float(N * kappa / some),
        "p_no_survivor": float(aggregation.no_survivor(N, exact_p)),
        "owner_weight": float(aggregation.survivor_weight(N)),
    }


def _ages(N: int, p: Fraction, L: Fraction) -> dict[str, Any]:
    """Bursts of mean length L; L = 1/(1-p) is independent loss."""
    return {
        "age_mean": float(bursts.gilbert_owner(p, L)),
        "age_q999": burst_ages.quantile(p, L, _TAIL),
        "age_max_mean": burst_ages.worst_mean(N, p, L),
        "drift_pair": float(bursts.gilbert_pair(p, L)),
        "drift_owner": float(bursts.gilbert_owner(p, L)),
        "drift_pair_worst": float(burst_ages.pair_worst(p, L)),
    }


def _delays(N: int, p: Fraction, own_link: OwnLink) -> dict[str, Any]:
    with localcontext(_MANY_DIGITS):  # near p = 1 the owner's weight is so near 1 that floats leave nothing
        value: Any = p if own_link == "lossy" else _digits(N, p)
        mean = momentum.cluster(N, _number(N, p) if own_link == "lossy" else value, value, own_link)
        return dict(zip(_DELAYS, (float(p), float(momentum.lag(mean))), strict=True))


def _spent(N: int, p: Fraction, own_link: OwnLink, budget: int, step: Number) -> Redundancy:
    if count("budget", budget, 2) > MOST_COPIES:
        raise ValueError(f"budget must be at most {MOST_COPIES} copies, got {budget}")
    eta_h = finite("step", step)
    if eta_h <= 0:
        raise ValueError(f"step must be positive, eta h of SGD, got {step!r}")
    if isinstance(_number(N, p**budget), Fraction):
        return redundancy.spend(budget, p, N, eta_h, own_link)
    return redundancy.spend(budget, float(p), N, float(eta_h), own_link)


def _number(N: int, p: Fraction) -> Fraction | float:
    """p for sums over the ranks: exact where fractions are cheap."""
    return p if N * p.denominator.bit_length() <= _EXACT_BITS else float(p)


def _digits(N: int, p: Fraction) -> Fraction | Decimal:
    """p for closed forms without a sum: exact where fractions are cheap, or with more digits than cancel."""
    exact_p = _number(N, p)
    return exact_p if isinstance(exact_p, Fraction) else Decimal(p.numerator) / Decimal(p.denominator)


def _ranks(value: int | None) -> int:
    if value is None:
        raise ValueError(f"ranks must be given, an integer in [{LEAST_RANKS}, {MOST_RANKS}]")
    if value == 1:
        raise ValueError("ranks must be at least 2, as one rank has no replica and sends nothing, got 1")
    if (N := count("ranks", value, LEAST_RANKS)) > MOST_RANKS:
        raise ValueError(f"ranks must be at most {MOST_RANKS}, got {value}")
    return N


def _loss(name: str, value: Number) -> Fraction:
    p = probability(name, value)
    if 1 - p < Fraction(1, 10**16):
        raise ValueError(f"{name} must be at most 1 - 1e-16, got {value!r}")
    return p


def show(value: Any) -> str:
    """A number as the tables print it."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sender_rows(senders: Sequence[Sender], limit: int = 32) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, ranks of the same loss in one row, by loss; `limit` rows from each end."""
    ranks: dict[int, list[int]] = {}
    for rank, sender in enumerate(senders):
        ranks.setdefault(id(sender), []).append(rank)
    groups = sorted(ranks.values(), key=lambda group: senders[group[0]].loss)
    rows = [[_listed(group), *(show(value) for value in vars(senders[group[0]]).values())] for group in groups]
    if len(rows) > 2 * limit:
        rows = [*rows[:limit], ["..."] * len(rows[0]), *rows[-limit:]]
    return ["ranks", *(f.name for f in fields(Sender))], rows


def _listed(ranks: list[int]) -> str:
    """Ranks in ascending order, neighbours as ranges, at most three of them."""
    ranges: list[list[int]] = []
    for rank in ranks:
        if ranges and rank == ranges[-1][-1] + 1:
            ranges[-1][1:] = [rank]
        else:
            ranges.append([rank])
    text = ", ".join("-".join(map(str, ends)) for ends in ranges[:3])
    return text if len(ranges) <= 3 else f"{text}, ... ({len(ranks)} ranks)"


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
