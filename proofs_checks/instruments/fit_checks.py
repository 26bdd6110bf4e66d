"""`theory.fit` from its documentation: what its tests are given, what its p-values say, which law it names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from html import escape
from itertools import product
from math import comb
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import plain_log
from lossproof.proofs_checks.instruments.mask_checks import require_refused
from lossproof.theory import fit, goodness, laws, likelihood, recorded

LINKS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))


def small_log() -> tuple[list[list[int]], list[list[int]]]:
    """The rows of a log of six links, and one chain for each link."""
    rows = list(plain_log.some_rows(LINKS, 6, 2))
    return rows, [chain for _, chain in plain_log.chains_of(rows, "packet")]


def require_assembled(seed: int) -> None:
    """Every part of a fit against the function it comes from, called on plain counts with the same random numbers."""
    rows, chains = small_log()
    columns = [list(column) for column in zip(*rows, strict=True)]
    for clock in ("packet", "step"):
        log = recorded.Recorded.from_columns(*columns, clock=clock)
        with mock.patch.object(fit, "maximise", wraps=likelihood.maximise) as asked:
            found = fit.fit(log, level=0.5, confidence=0.8, seed=seed, simulations=5)
        rng = np.random.default_rng(seed)
        tests = goodness.independence(log, rng, 5), goodness.one_step_of_memory(log, rng, 5)
        require(found.tests == tests, f"tests {found.tests}, not {tests}")
        by_link = {link: np.zeros(6, dtype=np.int64) for link in LINKS}
        parts = plain_log.chains_of(rows, clock)
        for link, chain in parts:
            by_link[link] += plain_log.counts(chain)
        require(found.chains == len(parts), f"{clock} clock: {found.chains} chains")
        equal = _equality(by_link, rng, 5)
        require(vars(found.equality) == equal, f"equal links: {found.equality}, not {equal}")
        table = [list(map(int, n)) for n in by_link.values()]
        total = [sum(column) for column in zip(*table, strict=True)]
        ((links, counts, confidence), _), *rest = asked.call_args_list
        right = (list(links[:6]), counts.tolist(), confidence, rest) == (list(LINKS), [*table, total], 0.8, [])
        require(right, f"{clock} clock: estimates of {links}, {counts.tolist()} at {confidence}")
        require((found.pooled.src, found.pooled.dst) == (-1, -1) == links[6], f"all links are called {links[6]}")
        named = [(one.src, one.dst, one.packets) for one in found.links], found.pooled.packets
        wanted = [(*link, sum(n)) for link, n in zip(LINKS, table, strict=True)], sum(total)
        require(named == wanted, f"{clock} clock: estimates are said to be of {named}")
        said = found.source, found.clock, found.level, found.confidence, found.seed, found.ranks
        require(said == ("the log", clock, 0.5, 0.8, seed, 3), f"a fit says of itself: {said}")
        n, k = sum(total), total[1] + total[3] + total[5]
        tail = sum(comb(n, j) * found.at_most**j * (1 - found.at_most) ** (n - j) for j in range(k + 1))
        require(abs(tail - 0.2) < 1e-9, f"{k} of {n} lost, at most {found.at_most}: leaves {tail}, not 0.2")
    with mock.patch.object(fit, "maximise", _not_needed):
        one = _fitted(plain_log.log_of(chains[:1]))
    require(vars(one.equality) == dict.fromkeys(vars(one.equality), 1.0), "a single link differs from itself")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        lines = [f"{s},{d},{x},{t},{('gradients', 'parameters')[h]},{k}" for s, d, x, t, h, k in rows]
        path.write_text("\n".join(("src,dst,lost,step,phase,packet", *lines)), encoding="utf-8")
        read = fit.fit(path, "step", level=0.5, confidence=0.8, seed=seed, simulations=5)
    require(read == replace(found, source=str(path)), "a fit of a file is not one of its log")


def _equality(by_link: dict[tuple[int, int], Any], rng: np.random.Generator, times: int) -> dict[str, float]:
    losses = {link: (int(n.sum()), int(n[1] + n[3] + n[5])) for link, n in by_link.items()}
    senders = sorted({src for src, _ in by_link})
    groups: dict[str, list[list[tuple[int, int]]]] = {
        "bernoulli": [list(losses.values())],
        "of_a_sender": [[pair for (src, _), pair in losses.items() if src == sender] for sender in senders],
        "gilbert_elliott": [
            [(int(n[0] + n[1]), int(n[1])) for n in by_link.values()],
            [(int(n[2] + n[3]), int(n[2])) for n in by_link.values()],
        ],
    }
    return {
        name: goodness.homogeneity(
            [(np.array([n for n, _ in some]), np.array([k for _, k in some])) for some in parts], rng, times
        )
        for name, parts in groups.items()
    }


def require_simulations() -> None:
    """Given, or 999, or for more than 50 000 packets 199, but never fewer than 2/level; equal for all tests."""
    for size, level, given, wanted in (
        (50_000, 0.01, None, 999),
        (50_001, 0.01, None, 200),
        (50_001, 0.5, None, 199),
        (100, 0.001, None, 2000),
        (100, 0.3, 7, 7),
    ):
        log = recorded.Recorded(
            np.arange(size) % 3 == 0, np.arange(size) * 2 // size, np.array([0, 1]), ((0, 1), (1, 0))
        )
        asked: list[int] = []

        def told(_: Any, rng: Any, times: int) -> goodness.Outcome:
            asked.append(times)
            return goodness.Outcome("", 1.0, times)

        def alike(groups: Any, rng: Any, times: int) -> float:
            asked.append(times)
            return 1.0

        with mock.patch.multiple(
            fit, independence=told, one_step_of_memory=told, homogeneity=alike, maximise=_not_needed
        ):
            defaults = (
                fit.fit(log, simulations=given) if level == 0.01 else fit.fit(log, level=level, simulations=given)
            )
        said = defaults.level, defaults.confidence, defaults.seed
        require(said == (level, 0.95, 0), f"level, confidence and seed are {said}")
        require(asked == [wanted] * 5, f"{size} packets, level {level}: {asked} random logs, not {wanted}")


def require_refusals() -> None:
    for kind in (fit.Fit, fit.Equality, goodness.Outcome, likelihood.Estimate, likelihood.LinkFit, recorded.Recorded):
        require(kind.__dataclass_params__.frozen, f"{kind.__name__} can be changed")  # type: ignore[union-attr]
    log = plain_log.log_of([[0, 1]])
    for wrong in (
        {"level": 0}, {"level": 1}, {"confidence": 0}, {"confidence": 1}, {"simulations": 199}, {"simulations": True},
        {"seed": -1}, {"seed": 0.5}, {"seed": True}, {"level": 0.9, "simulations": True},
    ):  # fmt: skip
        require_refused(lambda: fit.fit(log, **wrong), str(wrong))
    with mock.patch.object(fit, "maximise", _not_needed):
        require(fit.fit(log, level=0.5, simulations=4).tests[0].simulations == 4, "2/level do not suffice")


def require_verdicts() -> None:
    """All p-values around the level, with and without changes in the log: p-values, verdict, law, what is shown."""
    level, some = 0.01, (0.004, 0.005, 0.006, 0.01, 0.02, 1.0)
    logs = {
        "bursts": [[0, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
        "no change": [[0, 0, 0], [1, 1]],
        "nothing but losses": [[1, 1], [1]],
        "no losses": [[0, 0], [0, 0, 0]],
    }
    bases = {what: _fitted(_two_way(chains)) for what, chains in logs.items()}
    for what, chains in logs.items():
        base = bases[what]
        for independent, memory, alike in product(some, some, (0.01, 0.011)):
            tests = replace(base.tests[0], p_value=independent), replace(base.tests[1], p_value=memory)
            equality = replace(base.equality, bernoulli=alike, of_a_sender=0.02 - alike, gilbert_elliott=0.021 - alike)
            found = replace(base, tests=tests, equality=equality)
            p_values = min(1.0, 2 * independent, 2 * memory), min(1.0, 2 * memory)
            require(found.p_values == p_values, f"p-values {independent}, {memory} give {found.p_values}")
            changes = what == "bursts"
            verdict = "neither"
            if p_values[1] > level and changes:
                verdict = "gilbert-elliott"
            if p_values[0] > level:
                verdict = "bernoulli"
            require(found.verdict == verdict, f"{what}, p-values {p_values}: {found.verdict}")
            equal = alike > level if verdict == "bernoulli" else 0.021 - alike > level
            require(found.equal_links == equal, f"{what}, {verdict}: equal links {found.equal_links}")
            _require_law(found, chains, verdict, equal, 0.02 - alike > level)
    _require_shown(base := bases["bursts"])
    gilbert = replace(base, tests=(replace(base.tests[0], p_value=0.0), base.tests[1]))
    _require_shown(replace(gilbert, equality=fit.Equality(0.0, 0.0, 0.0)))
    _require_shown(bases["no losses"])


def _not_needed(links: Any, counts: Any, confidence: float) -> list[likelihood.LinkFit]:
    """Of the estimates only what is counted."""
    none = likelihood.Estimate(0.0, 0.0, 1.0)
    return [
        likelihood.LinkFit(link[0], link[1], int(n.sum()), int(n[[1, 3, 5]].sum()), none, None, None)
        for link, n in zip(links, counts, strict=True)
    ]


def _fitted(log: recorded.Recorded) -> fit.Fit:
    return replace(fit.fit(log, level=0.5, simulations=4), level=0.01)


def _two_way(chains: Sequence[Sequence[int]]) -> recorded.Recorded:
    """Chains of link 0 to 1 and of link 1 to 0."""
    log = plain_log.log_of(chains)
    return replace(log, links=((0, 1), (1, 0)))


def _require_law(found: fit.Fit, chains: Any, verdict: str, equal: bool, sender_alike: bool) -> None:
    lost, sent = sum(map(sum, chains)), sum(map(len, chains))
    wanted: Any = None
    if verdict == "bernoulli" and not equal and sender_alike and all(sum(c) < len(c) for c in chains):
        wanted = laws.PerSender(tuple(_six_digits(sum(c) / len(c), ROUND_FLOOR) for c in chains))
    elif verdict != "neither" and equal and lost < sent:
        if verdict == "bernoulli":
            wanted = laws.Bernoulli(_six_digits(lost / sent, ROUND_FLOOR))
        else:
            assert found.pooled.loss
            assert found.pooled.burst
            loss = _six_digits(found.pooled.loss.value, ROUND_FLOOR)
            wanted = laws.GilbertElliott(loss, _six_digits(found.pooled.burst.value, ROUND_CEILING), found.clock)
    require(found.law() == wanted, f"{verdict}, links equal: {equal}: {found.law()}, not {wanted}")
    require(found.sender_losses() == getattr(wanted, "losses", None), f"losses by sender {found.sender_losses()}")


def _six_digits(value: float, rounding: str) -> float:
    """Six significant digits of what is a float's rounding error away at most."""
    near = Context(prec=12).create_decimal(Decimal(value))
    return float(Context(prec=6, rounding=rounding).create_decimal(near))


def require_digits() -> None:
    for value in (0.0, 1 / 3, 2 / 3, 0.1, 1.0, 1e-7 / 3, 123.4567, 12345678.0, 0.1234565, 99999.95):
        for towards, rounding in ((np.floor, ROUND_FLOOR), (np.ceil, ROUND_CEILING)):
            got = fit._digits(value, lambda x: int(towards(x)))
            require(got == (_six_digits(value, rounding) if value else 0), f"{value} is written {got}")


def require_senders() -> None:
    """Losses by sender where a sender has several links, and None where a rank never sends or only loses."""
    for chains, links, wanted in (
        ([[0, 1], [0, 0], [1, 0, 0], [1, 1, 0]], ((0, 1), (0, 2), (1, 0), (2, 0)), (0.25, 0.333333, 0.666666)),
        ([[0, 1], [0, 0], [1, 0]], ((0, 1), (0, 2), (1, 0)), None),
        ([[0, 1], [1], [1, 0]], ((0, 1), (1, 0), (2, 0)), None),
    ):
        with mock.patch.object(fit, "maximise", _not_needed):
            base = _fitted(replace(plain_log.log_of(chains), links=links))
        certain = tuple(replace(test, p_value=1.0) for test in base.tests)
        found = replace(base, tests=certain, equality=fit.Equality(0.0, 1.0, 0.0))  # type: ignore[arg-type]
        require(found.sender_losses() == wanted, f"{chains}: losses by sender {found.sender_losses()}, not {wanted}")


def _require_shown(found: fit.Fit) -> None:
    """JSON, table and page hold what the fit holds."""

    def plain(one: likelihood.Estimate | None) -> Any:
        if one is None:
            return None
        return {name: None if abs(value) == float("inf") else value for name, value in vars(one).items()}

    pooled, law, (first, second) = found.pooled, found.law(), found.p_values
    memory = {"loss": plain(pooled.loss), "burst": plain(pooled.burst), "p_value": second}
    wanted = {
        "schema": 1, "log": "the log", "clock": "packet", "verdict": found.verdict, "law": repr(law) if law else None,
        "packets": pooled.packets, "lost": pooled.lost, "chains": found.chains, "ranks": found.ranks,
        "bernoulli": {"loss": plain(pooled.bernoulli), "at_most": found.at_most, "p_value": first},
        "gilbert_elliott": memory if pooled.loss else None, "tests": [vars(test) for test in found.tests],
        "equal_links": vars(found.equality), "level": 0.01, "confidence": 0.95, "seed": 0,
        "links": [
            vars(one) | {"bernoulli": plain(one.bernoulli), "loss": plain(one.loss), "burst": plain(one.burst)}
            for one in found.links
        ],
    }  # fmt: skip
    require(found.to_json() == wanted, f"JSON: {found.to_json()}")

    def text(one: likelihood.Estimate | None) -> str:
        return "" if one is None else f"{one.value:.4g} [{one.low:.4g}, {one.high:.4g}]"

    rows = [
        ("bernoulli", text(pooled.bernoulli), "", f"{first:.3g}"),
        ("gilbert-elliott", text(pooled.loss), text(pooled.burst) or "no change in the log", f"{second:.3g}"),
    ]
    require(found.rows() == rows, f"the table is {found.rows()}")
    page = found._repr_html_()
    for part in (*rows[0], *rows[1], found.verdict, repr(law) if law else "no single law", f"{pooled.lost} of"):
        require(escape(part) in page, f"{part} is not on the page")
