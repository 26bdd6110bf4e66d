"""`theory.recorded`, `theory.goodness` and `theory.likelihood` against `plain_log`, and their draws against all draws.

Legend: L rows of counts.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import ceil, comb, prod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import norm

from lossproof.proofs_checks.claim import require
from lossproof.proofs_checks.instruments import plain_log
from lossproof.proofs_checks.instruments.chance import distribution
from lossproof.proofs_checks.instruments.mask_checks import require_refused
from lossproof.proofs_checks.instruments.plain_log import log_of
from lossproof.theory import goodness, likelihood, logfile, recorded, runs
from lossproof.theory.laws import Clock

Chains = Sequence[Sequence[int]]
CLOCKS: tuple[Clock, ...] = ("packet", "step")
LINKS = ((0, 1), (2, 0), (0, 2), (1, 0))


def chains(*texts: str) -> list[list[int]]:
    return [[int(c) for c in text] for text in texts]


# -- reading


def require_read(steps: int) -> None:
    """Columns and files, for both clocks, against a plain reader; rows in and out of order, all that CSV allows."""
    rows = list(plain_log.some_rows(LINKS, steps, 3))
    shuffled = sorted(rows, key=lambda row: (row[3] * 7919 + row[5] * 31 + row[0]) % 101)
    for some, clock in product((rows, shuffled, rows[:1]), CLOCKS):
        _require_log(recorded.Recorded.from_columns(*zip(*some, strict=True), clock=clock), some, clock)
        if clock == "packet":
            _require_log(recorded.Recorded.from_columns(*[[row[k] for row in some] for k in range(3)]), some, clock)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        for clock, text in product(CLOCKS, _files(rows)):
            path.write_text(text, encoding="utf-8")
            _require_log(recorded.Recorded.from_csv(path), rows, "step")  # the header names step, phase and packet
            _require_log(recorded.Recorded.from_csv(path, clock), rows, clock)
            with mock.patch.object(logfile, "read_fast", return_value=None):
                _require_log(recorded.Recorded.from_csv(path, clock), rows, clock)
        path.write_text("lost,src,dst\n0,1,2\n1,1,2\n", encoding="utf-8")
        _require_log(recorded.Recorded.from_csv(path), [[1, 2, 0, 0, 0, 0], [1, 2, 1, 0, 0, 0]], "packet")
        _require_unusable(path)


def _files(rows: Sequence[Sequence[int]]) -> list[str]:
    def text(row: Sequence[int], *, quote: str = "") -> str:
        src, dst, lost, step, number, packet = row
        return f"{packet},x,{quote}{src}{quote},{dst},{step},{lost},{phases[number]}\n"

    head, phases = "packet,note,src,dst,step,lost,phase\n", ("gradients", "parameters")
    plain = head + "".join(text(row) for row in rows)
    quoted = "\ufeff" + head + "".join(text(row, quote='"') for row in rows)
    remark = plain.replace(",x,", ',"a, ""b""\nc",', 1)
    return [plain, quoted, plain.replace("\n", "\n\n"), remark, plain.replace(",x,1,", ",x,0_1,")]


def _require_unusable(path: Path) -> None:
    head = "src,dst,lost,step,phase,packet"
    good = "0,1,1,0,gradients,0"
    for clock, wrong in product(CLOCKS, ("0,-1,0,0,gradients,0", "0,1,2,0,gradients,0", "0,1", "0,1,x")):
        path.write_text("\n".join((head, good, wrong)), encoding="utf-8")
        _require_named(path, clock, ", line 3: ")
    for wrong in ("0,1,0,-1,gradients,0", "0,1,0,0,other,0", "0,1,0,0,gradients,-1", "0,1,0,0,gradients"):
        path.write_text("\n".join((head, "", wrong)), encoding="utf-8")
        _require_named(path, "step", ", line 3: ")
    path.write_text("\n".join((head, good, "", good)), encoding="utf-8")
    _require_named(path, "step", ", lines 2 and 4: step 0 is recorded twice")
    for text, words in (("src,dst\n0,1\n", "line 1: "), (head + "\n", "no packets"), ("", "line 1: ")):
        path.write_text(text, encoding="utf-8")
        _require_named(path, "packet", words)
    path.write_text("src,dst,lost\n0,1,1\n", encoding="utf-8")
    _require_named(path, "step", "line 1: ")
    require_refused(lambda: recorded.Recorded.from_csv(path, "second"), "an unknown clock")  # type: ignore[arg-type]


def _require_named(path: Path, clock: Any, words: str) -> None:
    try:
        recorded.Recorded.from_csv(path, clock)
    except ValueError as error:
        require(words in str(error), f"{path.read_text()!r} is refused by {error}")
    else:
        require(False, f"{path.read_text()!r} is not refused")


def _require_log(log: recorded.Recorded, rows: Sequence[Sequence[int]], clock: str) -> None:
    wanted = plain_log.chains_of(rows, clock)
    ends = np.cumsum([len(chain) for _, chain in wanted])
    found = [part.astype(int).tolist() for part in np.split(log.lost_n, ends[:-1])]
    require(found == [chain for _, chain in wanted], f"{clock} clock: outcomes are read as {found}")
    numbers = [k for k, (_, chain) in enumerate(wanted) for _ in chain]
    require(log.chain_n.tolist() == numbers, f"{clock} clock: the packets' chains are {log.chain_n.tolist()}")
    require([log.links[link] for link in log.link_C] == [link for link, _ in wanted], f"{clock} clock: chains' links")
    require((log.links, log.clock) == (tuple(sorted({link for link, _ in wanted})), clock), f"links {log.links}")
    require_counts(log, [chain for _, chain in wanted])


def require_counts(log: recorded.Recorded, some: Chains) -> None:
    found, wanted = log.transitions().tolist(), [list(plain_log.counts(chain)) for chain in some]
    require(found == wanted, f"transitions of {some} are {found}, not {wanted}")
    per_chain = log.chains, log.per_chain(log.lost_n).tolist()
    require(per_chain == (len(some), [sum(chain) for chain in some]), f"losses per chain are {per_chain}")


# -- random logs


def require_uniform(some: Chains) -> None:
    """Every log with the same counts is as likely as any other, over all draws (within two attempts to draw)."""
    log = log_of(some)
    found_runs = recorded.Runs(log)

    def drawn(chance: Any) -> Any:
        return tuple(np.repeat(found_runs.lost_R, found_runs.random(chance)).astype(int).tolist())

    lengths = [len(list(group)) for group in _runs_of(some)]
    require(found_runs.length_R.tolist() == lengths, f"runs of {some} are {found_runs.length_R.tolist()}")
    found, each = distribution(drawn), [plain_log.alike(chain) for chain in some]
    number = 1
    for chain in some:
        n00, n01, n10, n11, s0, s1 = plain_log.counts(chain)
        for total, parts in ((n11 + n01 + s1, n01 + s1), (n00 + n10 + s0, n10 + s0)):
            number *= runs.compositions(total, parts) if total else 1
    possible = {sum(parts, ()) for parts in product(*each)}
    require(number == len(possible), f"{len(possible)} logs have the counts of {some}, not {number}")
    require(set(found) == possible, f"like {some}: {list(set(found) ^ possible)[:2]} too many or too few")
    require(len(set(found.values())) == 1, f"like {some}: not uniform, {sorted(set(found.values()))}")


def _runs_of(some: Chains) -> list[list[int]]:
    found: list[list[int]] = []
    for chain in some:
        for k, outcome in enumerate(chain):
            if k and chain[k - 1] == outcome:
                found[-1].append(outcome)
            else:
                found.append([outcome])
    return found


def require_bursts_at_random(some: Chains) -> None:
    """The law of the distance from the mean number of bursts, and of the p-value, over all orders of each chain."""
    observed = plain_log.distance_from_mean(some)
    wanted: dict[float, Fraction] = defaultdict(Fraction)
    each = [plain_log.arrangements(chain) for chain in some]
    weight, mean = Fraction(1, prod(map(len, each))), Fraction(0)
    for chain in some:
        mean += runs.mean_bursts(sum(chain), len(chain) - sum(chain))
    for others in product(*each):
        wanted[round(float(abs(sum(map(plain_log.bursts, others)) - mean)), 9)] += weight
    log = log_of(some)
    for times in (1, 2):
        found = distribution(lambda chance: tuple(recorded.bursts_at_random(log, chance, times)[1].round(9).tolist()))
        two = {pair: prod(wanted[x] for x in pair) for pair in product(wanted, repeat=times)}
        require(found == two, f"{times} distances of logs like {some}: {found}, not {two}")
    here = recorded.bursts_at_random(log, np.random.default_rng(0), 1)[0]
    require(abs(here - observed) < 1e-9, f"{some}: the number of bursts is {here} from its mean, not {observed}")
    p_values = distribution(lambda chance: goodness.independence(log, chance, 1).p_value)
    reached = sum((w for distance, w in wanted.items() if distance >= float(observed) - 1e-9), Fraction(0))
    law = {p: w for p, w in ((1.0, reached), (0.5, 1 - reached)) if w}
    require(p_values == law, f"{some}: p-values {p_values}, not {law}")


def require_homogeneity(margins: Sequence[tuple[Sequence[int], int]]) -> None:
    """The p-value with one other table, over all others, for all tables of (trials, successes in all); the statistic is
    Pearson's."""
    trials = [n for n, _ in margins]
    possible = list(product(*([k for k in product(*(range(x + 1) for x in n)) if sum(k) == s] for n, s in margins)))
    distance = {rows: _pearson(list(zip(trials, rows, strict=True))) for rows in possible}
    weight = {
        rows: prod(
            Fraction(prod(comb(x, y) for x, y in zip(n, row, strict=True)), comb(sum(n), sum(row)))
            for n, row in zip(trials, rows, strict=True)
        )
        for rows in possible
    }
    for seen in possible:
        groups = [(np.array(n), np.array(row)) for n, row in zip(trials, seen, strict=True)]
        reached = sum((weight[rows] for rows in possible if distance[rows] >= distance[seen]), Fraction(0))
        law = {p: w for p, w in ((1.0, reached), (0.5, 1 - reached)) if w}
        found = distribution(lambda chance: goodness.homogeneity(groups, chance, 1))
        require(found == law, f"equal chances in {trials}, {seen}: p-values {found}, not {law}")
    two = distribution(lambda chance: goodness.homogeneity(groups, chance, 2))
    wanted: dict[Any, Fraction] = defaultdict(Fraction)
    for one, other in product(law.items(), repeat=2):
        wanted[(1 + sum(p == 1.0 for p, _ in (one, other))) / 3] += one[1] * other[1]
    require(two == wanted, f"equal chances in {trials}, two others: {two}, not {dict(wanted)}")


def _pearson(tables: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Fraction:
    total = Fraction(0)
    for trials, row in tables:
        share = Fraction(sum(row), max(1, sum(trials)))
        for n, k in zip(trials, row, strict=True):
            for seen, expected in ((k, n * share), (n - k, n * (1 - share))):
                total += (seen - expected) ** 2 / expected if expected else 0
    return total


# -- the test for one step of memory


def require_statistics(some: Chains, seed: int) -> None:
    """Names, values and p-value, for a log and the random ones that the test itself draws."""
    log, drawn = log_of(some), []
    found_runs, random = recorded.Runs(log), recorded.Runs.random

    def spy(self: Any, rng: Any) -> Any:
        drawn.append(random(self, rng))
        return drawn[-1]

    with mock.patch.object(recorded.Runs, "random", spy):
        outcome = goodness.one_step_of_memory(log, np.random.default_rng(seed), 5)
    measure = goodness._Statistics(log, found_runs)
    rows = []
    for lengths in (found_runs.length_R, *drawn):
        wanted = plain_log.statistics(plain_log.with_lengths(some, lengths.tolist()))
        rows.append([wanted.get(name, np.nan) for name in measure.names])
        require(list(wanted) == list(dict.fromkeys(measure.names)), f"statistics are named {measure.names}")
        found = measure(lengths)
        require(found.shape == (len(wanted),), f"{len(found)} statistics")
        for name, value, right in zip(measure.names, found, rows[-1], strict=True):
            require(abs(value - right) <= 1e-9 * (1 + abs(right)), f"{some}: {name} is {value}, not {right}")
    p_value, which = plain_log.worst_deviation(np.array(rows))
    remark = f"{measure.names[which // 2]} {('below', 'above')[which % 2]} expectation"
    got = outcome.name, outcome.p_value, outcome.simulations, outcome.remark
    require(got == ("one step of memory", p_value, 5, remark), f"{some}: {got}, not {p_value}, {remark}")


def require_blocks(sizes: Sequence[Sequence[int]], most: int) -> None:
    """How many blocks a log of such chains is cut into, at most so many in all."""
    for some in sizes:
        link_C, lost_n = np.zeros(len(some), dtype=np.int64), np.arange(sum(some)) % 2 == 1
        log = recorded.Recorded(lost_n, np.repeat(np.arange(len(some)), some), link_C, ((0, 1),))
        with mock.patch.object(goodness, "_MOST_BLOCKS", most):
            names = goodness._Statistics(log, recorded.Runs(log)).names
        found = [int(name.split()[3]) for name in names if "of each" in name]
        require(found == plain_log.block_numbers(some, most), f"{len(some)} chains of {some[0]}: blocks {found}")


# -- estimates


def require_estimates(rows: Sequence[Sequence[int]], confidence: float) -> None:
    """Each estimate is where the likelihood is largest, each interval where it has fallen by so much."""
    table = np.array(rows, dtype=np.int64)
    links = [(number, number + 1) for number in range(len(rows))]
    found = likelihood.maximise(links, table, confidence)
    require([(one.src, one.dst) for one in found] == links, "the estimates' links")
    for one, row in zip(found, rows, strict=True):
        _require_bernoulli(one, sum(row), row[1] + row[3] + row[5], (1 - confidence) / 2)
        require(((one.loss is None), (one.burst is None)) == (row[1] + row[2] == 0,) * 2, f"{row}: {one.loss}")
    kept = [k for k, row in enumerate(rows) if row[1] + row[2]]
    table, some = table[kept], [found[k] for k in kept]
    drop = norm.ppf((1 + confidence) / 2) ** 2 / 2
    loss = np.array([[one.loss.low, one.loss.value, one.loss.high] for one in some if one.loss])
    burst = np.array([[one.burst.low, one.burst.value, one.burst.high] for one in some if one.burst])
    require(bool((loss[:, 0] <= loss[:, 1]).all() and (loss[:, 1] <= loss[:, 2]).all()), "a loss outside its interval")
    require(bool((burst[:, 0] <= burst[:, 1]).all() and (burst[:, 1] <= burst[:, 2]).all()), "a burst outside")
    leave = 1 / burst[:, ::-1]
    at_loss = [plain_log.profile(loss[:, k], None, table) for k in range(3)]
    at_leave = [plain_log.profile(None, np.maximum(leave[:, k], 1e-15), table) for k in range(3)]
    best = np.maximum(at_loss[1], at_leave[1])
    for x in np.linspace(0.1, 0.9, 4):
        every = np.full(len(table), x)
        best = np.maximum(best, np.maximum(
            plain_log.profile(every, None, table), plain_log.profile(None, every, table)))  # fmt: skip
    for name, at, ends in (("loss", at_loss, loss), ("burst", at_leave, leave)):
        for k, end in ((1, "estimate"), (0, "lower end"), (2, "upper end")):
            off = at[k] - (best - (0 if k == 1 else drop))
            edge = (ends[:, k] <= 1e-15) if k == 0 else (ends[:, k] >= 1) if k == 2 else np.zeros(len(off), bool)
            bad = np.where(edge, off < -1e-6, abs(off) > 1e-6)
            which = int(bad.argmax())
            require(not bad.any(), f"{name} of {table[which].tolist()}, {end} {ends[which, k]}: {off[which]:.3g} off")


def require_no_bounds() -> None:
    """With certainty nothing is bounded."""
    (one,) = likelihood.maximise([(0, 1)], np.array([[1, 1, 1, 1, 1, 0]]), 1 - 1e-16)
    assert one.loss
    assert one.burst
    ends = one.loss.low, one.loss.high, one.burst.low, one.burst.high
    require(ends == (0, 1, 1, float("inf")), f"with certainty the bounds are {ends}")


def _require_bernoulli(one: likelihood.LinkFit, n: int, k: int, tail: float) -> None:
    require((one.packets, one.lost, one.bernoulli.value) == (n, k, k / n), f"{k} of {n} lost: {one}")
    low, high = one.bernoulli.low, one.bernoulli.high

    def below(k: int, p: float) -> float:
        return sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))

    for end, right, chance in (
        ("lower", low == 0 if k == 0 else None, 1 - below(k - 1, low)),
        ("upper", high == 1 if k == n else None, below(k, high)),
    ):
        good = abs(chance - tail) < 1e-9 if right is None else right
        require(good, f"{k} of {n} lost: the {end} bound leaves {chance:.4g}, not {tail:.4g}")


def small_counts(length: int) -> list[tuple[int, ...]]:
    """The counts of all logs of one chain of at most this length."""
    return sorted({plain_log.counts(x) for n in range(1, length + 1) for x in product((0, 1), repeat=n)})


def require_rank(limit: int) -> Fraction:
    """The level for exchangeable values, ties and all: how large a share of the places has a p-value up to x."""
    tightest = Fraction(0)
    for m in range(1, limit + 1):
        for values in product(range(m), repeat=m):
            if tuple(sorted(values)) != values:
                continue
            p_values = [recorded.rank(float(x), [float(y) for y in (*values[:k], *values[k + 1 :])])
                        for k, x in enumerate(values)]  # fmt: skip
            for value in set(p_values):
                share = Fraction(sum(p <= value for p in p_values), m)
                require(
                    share <= Fraction(value).limit_denominator(m), f"{values}: {share} have a p-value up to {value}"
                )
                tightest = max(tightest, share / Fraction(value).limit_denominator(m))
            wanted = [Fraction(ceil(sum(y >= x for y in values)), m) for x in values]
            require([Fraction(p).limit_denominator(m) for p in p_values] == wanted, f"{values}: p-values {p_values}")
    require(tightest == 1, "the level is never reached")
    return tightest
