"""D3: the expansion and the best split by other means; what `plan` prints of them, and of the momentum of D1."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lossproof.commands.plan import advice
from lossproof.commands.plan import plan as command
from lossproof.theory import dynamics, redundancy, stability
from lossproof.theory.plan import plan

F = Fraction
MODELS = "reliable", "lossy", "server"
APP = typer.Typer()
APP.command()(command)


def settled(N: int, p_g: float, p: float, s: float, model: Any) -> float:
    """The excess risk as the steady state of a linear map, by a solver; infinite if the map is not stable."""
    of, copies = dynamics.shares(N, p_g, model), dynamics.copies(N, model)
    M = np.array(stability.second_moments(copies, p, s, of), dtype=float)
    if np.abs(np.linalg.eigvals(M[: min(copies + 1, 4), : min(copies + 1, 4)])).max() >= 1:
        return math.inf
    q, v = 1 - p, float(of.owner_square + of.squares)
    n = min(copies + 1, 4)
    return float(s / 2 * np.linalg.solve(np.eye(n) - M[:n, :n], np.array([v, q * v, q * v, q * q * v])[:n])[0])


@settings(max_examples=40)
@given(st.integers(2, 30), st.floats(0.01, 0.6), st.floats(0.001, 2.2), st.integers(2, 9), st.sampled_from(MODELS))
def test_the_split_is_the_best_of_all(N: int, loss: float, s: float, copies: int, model: Any) -> None:
    risks = {r: settled(N, loss**r, loss ** (copies - r), s, model) for r in range(1, copies)}
    if min(risks.values()) == math.inf:
        with pytest.raises(ValueError, match="eta_h must be below"):
            redundancy.split(copies, loss, N, s, model)
        return
    best = redundancy.split(copies, loss, N, s, model)
    assert best.gradients + best.parameters == copies
    assert best.risk == pytest.approx(min(risks.values()), rel=1e-6)
    assert risks[best.gradients] == pytest.approx(min(risks.values()), rel=1e-6)
    even = redundancy.even(copies, loss, N, s, model)
    assert {even.gradients, even.parameters} == {copies // 2, copies - copies // 2}
    if even.risk != math.inf:
        assert even.risk == pytest.approx(min(risks[copies // 2], risks[copies - copies // 2]), rel=1e-6)


@settings(max_examples=40)
@given(st.integers(2, 12), st.fractions(0, F(9, 10), max_denominator=30), st.fractions(0, F(9, 10), max_denominator=30),
       st.sampled_from(MODELS))  # fmt: skip
def test_the_expansion_is_the_tangent(N: int, p_g: F, p: F, model: Any) -> None:
    s = F(1, 10**7)
    exact, first = (form(N, p_g, p, s, model) for form in (dynamics.excess_risk, redundancy.expansion))
    assert abs(exact / first - 1) < s**2 * 10**4
    assert exact == pytest.approx(settled(N, float(p_g), float(p), float(s), model), rel=1e-3)


def test_more_copies_never_hurt_where_steps_are_small() -> None:
    risks = [redundancy.split(R, F(1, 10), 8, F(1, 100)).risk for R in range(2, 9)]
    assert risks == sorted(risks, reverse=True)
    assert redundancy.split(6, F(1, 10), 16, F(1, 100))[:2] == (4, 2)
    assert redundancy.split(5, 0.0, 4, 0.1).risk == pytest.approx(1 / (8 * 1.9))


def test_floats_without_a_difference_fall_back_on_the_advantage() -> None:
    best = redundancy.split(16, 0.01, 1000, 0.1)
    assert abs(best.gradients - best.parameters - redundancy.advantage(1000, 0.01, 0.1)) <= 1


# -- plan


def call(*arguments: object) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


def test_plan_prints_the_split_and_the_risks() -> None:
    done = call("--ranks", 16, "--loss", 0.1, "--budget", 6, "--step", 0.01, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)["redundancy"]
    assert (found["gradients"], found["parameters"], found["copies"], found["eta_h"]) == (4, 2, 6, 0.01)
    for name, r in (("risk", (4, 2)), ("risk_even", (3, 3))):
        assert found[name] == pytest.approx(settled(16, 0.1 ** r[0], 0.1 ** r[1], 0.01, "reliable"), rel=1e-9)
    assert found["risk_lossless"] == pytest.approx(0.01 / (2 * 16 * 0.01 * 1.99))
    shown = call("--ranks", 16, "--loss", 0.1, "--budget", 6, "--step", 0.01).output
    assert all(name in shown for name in ("copies_gradients", "copies_parameters", "risk_even", "(D3)"))
    assert "redundancy" not in json.loads(call("--ranks", 16, "--loss", 0.1, "--json").stdout)


def test_what_is_unstable_has_no_risk() -> None:
    found = plan(4, 0.2, budget=4, step=2.1).redundancy
    assert found is not None
    assert (found.risk_even, found.risk_lossless) == (None, None)
    assert not math.isinf(found.risk)
    assert "more" not in " ".join(line for line in advice(plan(4, 0.2, budget=4, step=2.1)) if "(D3)" in line)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"budget": 4}, "budget and step go together"),
        ({"step": 0.1}, "budget and step go together"),
        ({"budget": 1, "step": 0.1}, "budget must be at least 2"),
        ({"budget": 17, "step": 0.1}, "budget must be at most 16"),
        ({"budget": 4, "step": 0.0}, "step must be positive"),
        ({"budget": 4, "step": math.nan}, "step must be finite"),
        ({"budget": 4, "step": 3.0}, "eta_h must be below"),
        ({"budget": 4, "step": 0.1, "burst": 3.0}, "budget goes with independent losses"),
    ],
)
def test_unusable_budgets_are_named(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan(4, 0.1, **arguments)


def test_unusable_input_exits_with_two() -> None:
    done = call("--ranks", 4, "--loss", 0.1, "--budget", 4)
    assert done.exit_code == 2


@pytest.mark.parametrize("own_link", ["reliable", "lossy"])
def test_plan_says_the_momentum_that_loss_adds(own_link: Any) -> None:
    """Coefficient p; its delay is the mean age of what an average gradient was taken at."""
    N, p = 5, 0.3
    found = plan(N, p, own_link=own_link)
    fresh = found.owner_weight if own_link == "reliable" else 1 / N
    assert found.momentum == p
    assert found.gradient_delay == pytest.approx((1 - fresh) * p / (1 - p))
    bursts = plan(N, p, 4.0)
    assert bursts.momentum is bursts.gradient_delay is None
    assert "infinity" in bursts.reasons["momentum"]
    assert plan(losses=(0.1, 0.2)).momentum is None


@pytest.mark.parametrize("N", [2, 100, 3000])
def test_the_delay_near_total_loss_keeps_its_digits(N: int) -> None:
    """The sum of all ages that the owner's weight leaves out: (1/N) sum over j < N of p + ... + p^j."""
    q = F(1, 10**12)
    terms = (math.comb(j, k) * (-q) ** (k - 1) for j in range(N) for k in range(1, min(j, 3) + 1))  # (1 - p^j)/q
    assert plan(N, 1 - 1e-12).gradient_delay == pytest.approx(float((1 - q) * sum(terms) / N), rel=1e-14)


def test_a_million_ranks_and_no_heavy_import() -> None:
    script = (
        "import sys; from lossproof.theory.plan import plan;"
        "found = plan(10**6, 0.1, own_link='lossy', budget=16, step=0.01);"
        "assert found.redundancy.gradients == 9; print({'torch', 'sympy', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
