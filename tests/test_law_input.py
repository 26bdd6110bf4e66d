"""What laws refuse, by argument and value, and the files that `Trace` reads by link or by step, or refuses by line."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lossproof.impl.loss import Arrivals
from lossproof.theory.laws import (
    Bernoulli,
    CommonOutage,
    GilbertElliott,
    HeavyTailed,
    Law,
    PerSender,
    Renewal,
    Trace,
)

NAN, INF = float("nan"), float("inf")
TIMED = "src,dst,lost,step,phase,packet\n"
JOB = Trace((((0, 1, "gradients"), ("01100",)), ((1, 0, "parameters"), ("10010",))), "step")


# -- what is refused


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1.0, 1, -0.1, 1.5, Decimal("NaN"), Decimal("sNaN"), Decimal("inf")])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("loss", Bernoulli),
        ("loss", lambda value: GilbertElliott(value, burst=4)),
        ("loss_good", lambda value: GilbertElliott(0.5, burst=4, loss_good=value)),
        (r"losses\[1\]", lambda value: PerSender((0.1, value))),
    ],
)
def test_a_probability_that_is_none_is_refused(name: str, make: Callable[[Any], Law], value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        make(value)


@pytest.mark.parametrize("value", [True, "0.1", None, 1j, [0.1]])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("loss", Bernoulli),
        ("loss", lambda value: GilbertElliott(value, burst=4)),
        ("burst", lambda value: GilbertElliott(0.1, burst=value)),
        ("loss_bad", lambda value: GilbertElliott(0.1, burst=4, loss_bad=value)),
        ("good_to_bad", lambda value: GilbertElliott.from_transitions(value, 0.5)),
        (r"losses\[0\]", lambda value: PerSender((value,))),
    ],
)
def test_a_number_that_is_none_is_refused(name: str, make: Callable[[Any], Law], value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number"):
        make(value)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("burst", lambda: GilbertElliott(0.1, burst=0.9)),
        ("burst", lambda: GilbertElliott(0.1, burst=NAN)),
        ("burst", lambda: GilbertElliott(0.1, burst=INF)),
        ("burst", lambda: GilbertElliott(0.1, burst=-2)),
        ("burst", lambda: GilbertElliott(0.8, burst=3.99)),
        ("loss", lambda: GilbertElliott(0.1, burst=4, loss_good=0.2)),
        ("loss", lambda: GilbertElliott(0.5, burst=4, loss_bad=0.4)),
        ("loss", lambda: GilbertElliott(0.5, burst=4, loss_bad=0.5)),
        ("loss", lambda: GilbertElliott(0.5, burst=4, loss_good=0.5, loss_bad=0.5)),
        ("clock", lambda: GilbertElliott(0.1, burst=4, clock="tensor")),
        ("clock", lambda: Trace("01", clock="tensor")),
        ("good_to_bad", lambda: GilbertElliott.from_transitions(0, 0.5)),
        ("bad_to_good", lambda: GilbertElliott.from_transitions(0.5, 0)),
        ("bad_to_good", lambda: GilbertElliott.from_transitions(0.5, 1.1)),
        ("losses", lambda: PerSender(())),
        ("src", lambda: PerSender((0.1, 0.2)).marginal(src=2)),
        ("recorded", lambda: Trace("")),
        ("recorded", lambda: Trace("012")),
        ("recorded", lambda: Trace("111")),
        ("recorded", lambda: Trace(())),
        ("recorded", lambda: Trace((((0, 1), "01"), ((0, 1), "00")))),
        ("recorded", lambda: Trace((((0, -1), "01"),))),
        ("recorded", lambda: Trace((((0, 1), "01"), ((1, 0, "gradients"), ("01",))), "step")),
        ("recorded", lambda: Trace((((0, 1, "warmup"), ("01",)),), "step")),
        ("recorded", lambda: Trace((((0, 1, "gradients"), ("01", "0")),), "step")),
        ("recorded", lambda: Trace((((0, 1, "gradients"), ()),), "step")),
        ("recorded", lambda: Trace((((0, 1, "gradients"), ("11",)), ((0, 1, "parameters"), ("11",))), "step")),
        ("clock", lambda: Trace((((0, 1, "gradients"), ("01",)),))),
        ("recorded", lambda: Arrivals(JOB, [0], 4).gradients(0)),
        ("recorded", lambda: JOB.marginal(0, 3)),
        ("recorded", lambda: Trace((((0, 1), "01"),)).marginal(1, 0)),
        ("recorded", lambda: Arrivals(Trace((((0, 1), "01"),)), [0], 2).gradients(0)),
        ("losses", lambda: Arrivals(PerSender((0.1,)), [0], 2).gradients(0)),
        ("loss", lambda: HeavyTailed(0.67)),
        ("loss", lambda: Renewal(0.51, (1,))),
        ("lengths", lambda: Renewal(0.1, (0.5, 0.4))),
        ("lengths", lambda: Renewal(0.1, ())),
        (r"lengths\[0\]", lambda: Renewal(0.1, (-1, 2))),
        ("outage", lambda: CommonOutage(0.1, outage=0.2)),
        ("outage", lambda: CommonOutage(0.1, outage=NAN)),
        ("k", lambda: Bernoulli(0.1).age_tail(-1)),
        ("ticks", lambda: GilbertElliott(0.1, burst=4, clock="packet").age_tail(2, ticks=0)),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name} (must|has)"):
        make()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("losses", lambda: PerSender(0.1)),  # type: ignore[arg-type]
        ("lengths", lambda: Renewal(0.1, 0.5)),  # type: ignore[arg-type]
        ("recorded", lambda: Trace(5)),  # type: ignore[arg-type]
        ("recorded", lambda: Trace((((0, 1, "gradients"), "01"),), "step")),  # type: ignore[arg-type]
        ("recorded", lambda: Trace((((0.5, 1), "01"),))),  # type: ignore[arg-type]
        ("k", lambda: Bernoulli(0.1).age_tail(1.0)),  # type: ignore[arg-type]
        ("k", lambda: Trace("01").age_tail(True)),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=f"^{name} must"):
        make()


def test_the_shortest_bursts_are_allowed() -> None:
    assert GilbertElliott(0.8, burst=4).transitions == (1, Fraction(1, 4))
    assert GilbertElliott(0.5, burst=1).transitions == (1, 1)
    assert GilbertElliott(0, burst=1).age_tail(1) == 0


# -- the log's file


def test_csv_is_read_by_link_and_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("time,src,dst,lost\n0,1,0,1\n1,0,1,0\n2,1,0,0\n3,0,1,0\n4,0,1, 1 \n")
    trace = Trace.from_csv(str(log), clock="step")
    assert trace == Trace((((0, 1), "001"), ((1, 0), "10")), clock="step")
    assert trace.marginal(0, 1) == Fraction(1, 3)
    assert trace.marginal(1, 1) == 0


def test_csv_that_says_when_is_read_step_by_step(tmp_path: Path) -> None:
    """Rows in any order; a phase that step 4 lacks lost nothing there; step 6 is not whole."""
    log = tmp_path / "log.csv"
    rows = ["0,1,1,3,gradients,9", "0,1,0,3,gradients,2", "0,1,0,4,gradients,2", "0,1,1,4,gradients,9",
            "0,1,1,5,gradients,2", "0,1,0,5,gradients,9", "1,0,0,5,parameters,0", "1,0,1,3,parameters,0",
            "0,1,1,6,gradients,2"]  # fmt: skip
    log.write_text(TIMED + "\n".join(rows[::-1]) + "\n")
    trace = Trace.from_csv(log)
    assert trace == Trace((((0, 1, "gradients"), ("001", "110")), ((1, 0, "parameters"), ("100",))), "step")
    assert Trace.from_csv(log, "step") == trace
    assert Trace.from_csv(log, "packet") == Trace((((0, 1), "1011001"), ((1, 0), "10")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing dst, lost, src"),
        ("src,dst\n0,1\n", "missing lost"),
        ("src,dst,lost\n", "log.csv: no packets after the header"),
        ("src,dst,lost\n0,1,0\n0,1,2\n", r"log.csv, line 3: lost must be 0 \(arrived\) or 1 \(lost\), got '2'"),
        ("src,dst,lost\n0,one,0\n", "log.csv, line 2: dst must be a rank from 0 to 65535, got 'one'"),
        ("src,dst,lost\n-1,0,0\n", "log.csv, line 2: src must be a rank from 0 to 65535, got '-1'"),
        ("src,dst,lost\n0,1\n", "log.csv, line 2: lost must be .* but the row ends after 2"),
        ("src,dst,lost\n1,0,0\n0,1,1\n0,1,1\n", "log.csv: .* arrived on each link, but 2 of 2 from 0 to 1 were lost"),
        (TIMED + "0,1,0,3,gradients,x\n", "line 2: packet must be a packet number from 0, got 'x'"),
        (TIMED + "0,1,0,3,gradients,0\n0,1,0,5,gradients,0\n", "log.csv: .* every step, but there is no row of step 4"),
        (TIMED + "0,1,0,3,gradients,0\n\n0,1,1,3,gradients,0\n", "log.csv, lines 2 and 4: step 3 is recorded twice"),
        (
            TIMED + "0,1,0,3,gradients,0\n0,1,0,3,gradients,1\n0,1,0,4,gradients,1\n"
            "0,1,0,5,gradients,0\n0,1,0,5,gradients,1\n",
            "log.csv: .* but step 4 has no row for packet 0 of the gradients from 0 to 1; --clock packet",
        ),
        (
            TIMED + "".join(f"0,1,0,{i},gradients,{i}\n" for i in range(2000)),
            "log.csv: .* 2000 packets of all links have 2000 rows in 2000 steps; --clock packet",
        ),
    ],
)
def test_csv_that_cannot_be_used_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(ValueError, match=message):
        Trace.from_csv(str(log))
