"""Derivations as objects: equations with a reason, each checked by its own exact argument, displayed as mathematics.

A step's proof is exact symbolic arithmetic that ends in a literal zero; nothing numeric, and no step is taken on trust
except those marked as a definition or an assumption, which say so where they are displayed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter, translate

p = sp.Symbol("p", positive=True)
"""Loss probability, 0 < p < 1."""
t = sp.Symbol("t", integer=True, nonnegative=True)
"""Step."""
N = sp.Symbol("N", integer=True, positive=True)
"""Ranks."""
sigma2 = sp.Symbol(r"\sigma^2", positive=True)
"""Mean squared step, E|u|^2."""

_AB = sp.Dummy("A"), sp.Dummy("B")


class _TeX(LatexPrinter):  # type: ignore[misc]
    """Names of symbols are TeX as they are; SymPy's printer cuts them at an index, E[m_i/K] into E[m_{i/K]}."""

    def _print_Symbol(self, symbol: sp.Symbol, style: str = "plain") -> str:
        return str(translate(symbol.name)) if symbol.name.isalpha() else str(symbol.name)


@dataclass(frozen=True)
class Step:
    """`left = right`, because of `reason`; `proof()` is true iff the exact argument goes through."""

    left: sp.Expr
    right: sp.Expr
    reason: str
    proof: Callable[[], bool]
    conclusion: bool = False
    assumed: bool = False

    @property
    def equation(self) -> sp.Eq:
        return sp.Eq(self.left, self.right, evaluate=False)

    def latex(self) -> str:
        return f"{_TeX().doprint(self.left)} = {_TeX().doprint(self.right)}"

    def __repr__(self) -> str:
        return f"{self.left} = {self.right}    [{self.because}]"

    @property
    def because(self) -> str:
        """The reason as it is displayed: what is not proved says so."""
        return f"assumed: {self.reason}" if self.assumed else self.reason


@dataclass(frozen=True)
class Derivation:
    """The steps from the law of the masks to the closed forms; those marked `conclusion` are the claim's statement."""

    steps: tuple[Step, ...]

    @property
    def conclusions(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.conclusion)

    def first_failure(self) -> Step | None:
        return next((step for step in self.steps if not step.proof()), None)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.steps))

    def _repr_latex_(self) -> str:
        lines = " \\\\\n".join(f"& {s.latex()} \\\\\n& \\quad\\text{{{as_text(s.because)}}}" for s in self.steps)
        return f"$$\\begin{{aligned}}\n{lines}\n\\end{{aligned}}$$"


def as_text(reason: str) -> str:
    r"""A reason for TeX's text mode: words with an index or a power become mathematics of their own.

    >>> as_text("E[A_(t-1)] and p^(t+1): 10 %")
    'E[$A_{t-1}$] and $p^{t+1}$: 10 \\%'
    """
    escaped = re.sub(r"[%&#${}]", r"\\\g<0>", reason.replace("\\", r"\backslash "))
    script = r"([_^])(?:\(([^()]*)\)|(-?[^\W_]+))"
    return re.sub(
        rf"(?:[^\W_]|[)|\]])+(?:{script}(?:[)|\]]+(?=[_^]))?)+",
        lambda word: "$" + re.sub(script, lambda found: f"{found[1]}{{{found[2] or found[3]}}}", word[0]) + "$",
        escaped,
    )


def vanishes(expression: Any) -> bool:
    """Whether an expression is identically zero: powers are split, binomials reduced, and the numerator expanded."""
    expression = sp.sympify(expression)
    if expression.has(sp.binomial, sp.factorial, sp.gamma):
        expression = sp.gammasimp(expression)
    numerator, _ = sp.fraction(sp.together(sp.expand_power_exp(sp.expand_power_base(expression))))
    return bool(sp.expand(sp.powdenest(sp.expand_power_exp(sp.expand(numerator)))) == 0)


def given(left: Any, right: Any, reason: str) -> Step:
    """A definition or an assumption: displayed as such, nothing to prove."""
    return Step(left, right, reason, lambda: True, assumed=True)


def algebra(left: Any, right: Any, reason: str, where: Mapping[Any, Any] | None = None, **marks: bool) -> Step:
    """An identity, after replacing, one after another, symbols by what they stand for or were shown to be (`where`)."""

    def proof() -> bool:
        difference = sp.sympify(left - right)
        for symbol, meaning in (where or {}).items():
            difference = difference.subs(symbol, meaning)
        return vanishes(difference)

    return Step(left, right, reason, proof, **marks)


def expectation(left: Any, outcomes: list[tuple[Any, Any]], right: Any, reason: str, **marks: bool) -> Step:
    """`left` is an expectation over the masks: (probability, value) for every outcome; they must exhaust the masks."""

    def proof() -> bool:
        total = sum(probability for probability, _ in outcomes)
        return vanishes(total - 1) and vanishes(sum(weight * value for weight, value in outcomes) - right)

    return Step(left, right, reason, proof, **marks)


def same_terms(left: sp.Sum, right: sp.Sum, shift: int, reason: str) -> Step:
    """Two sums are equal term by term: left's term at k is right's at k + shift, over the same range."""

    def proof() -> bool:
        (k, low, high), (j, right_low, right_high) = left.limits[0], right.limits[0]
        in_range = vanishes(low + shift - right_low) and vanishes(high + shift - right_high)
        return in_range and vanishes(left.function - right.function.subs(j, k + shift))

    return Step(left, right, reason, proof)


def binomial_theorem(a: Any, b: Any, n: Any, k: sp.Symbol, reason: str) -> Step:
    """The sum over k = 0..n of binomial(n, k) a^k b^(n-k) is (a + b)^n: induction on n, for symbols A and B.

    The terms of n + 1 are A times those of n, moved by one, plus B times those of n (Pascal's rule); nothing is left
    out at the ends, as the terms at k = -1 and n + 1 are 0; and n = 0 gives 1.
    """

    A, B = _AB

    def term(n: Any, k: Any) -> Any:
        return sp.binomial(n, k) * A**k * B ** (n - k)

    def whole(n: Any) -> Any:
        return (A + B) ** n

    def proof() -> bool:
        grows = vanishes(term(n + 1, k) - A * term(n, k - 1) - B * term(n, k)) and vanishes(
            whole(n + 1) - (A + B) * whole(n)
        )
        return bool(grows and term(n, -1) == term(n, n + 1) == 0 and term(0, 0) == whole(0) == 1)

    left = sp.Sum(term(n, k).subs({A: a, B: b}), (k, 0, n))
    return Step(left, whole(n).subs(A, sp.expand(a + b) - B), reason, proof)


def fixed_point(left: Any, right: Any, step: Step, before: Any, reason: str, **marks: bool) -> Step:
    """`left` = `right` is the steady state of a step: it gives itself back."""
    return Step(left, right, reason, lambda: vanishes(following(step, before)(right) - right), **marks)


def following(step: Step, before: Any, where: Mapping[Any, Any] | None = None) -> Callable[[Any], Any]:
    """The map that an earlier step has shown, from the value `before` to its right side; for `recursion`."""
    return lambda value: step.right.subs(where or {}).subs(before, value)


def recursion(
    left: Any, closed: Callable[[Any], Any], start: Any, step: Callable[[Any], Any], reason: str, **marks: bool
) -> Step:
    """`left` solves f(0) = start, f(t+1) = step(f(t)), and so is `closed(t)`: by induction on t."""

    def proof() -> bool:
        return vanishes(closed(sp.Integer(0)) - start) and vanishes(closed(t + 1) - step(closed(t)))

    return Step(left, closed(t), reason, proof, **marks)


def limit(
    of: Any, right: Any, reason: str, base: Any = p, bounded: Mapping[Any, sp.Symbol] | None = None, **marks: bool
) -> Step:
    """The limit t -> infinity, where base^t t^k -> 0: base is a positive power of a symbol within (0, 1), such as p.

    `of` is rational in base^t, t and what stays within [-1, 1], such as rho^t, which `bounded` names. Where base^t is
    0, neither numerator nor denominator may depend on t or what is bounded.
    """
    X = sp.Symbol("X")
    names = {base**t: X, **(bounded or {})}
    root, power = base.as_base_exp()

    def proof() -> bool:
        named = sp.expand_power_exp(sp.expand_power_base(sp.expand(of)))
        for named_power, symbol in names.items():
            named = named.subs(named_power, symbol)
        parts = sp.fraction(sp.cancel(sp.together(named)))
        varying = {t, *names.values()}
        left = [part.subs(X, 0) for part in parts]
        return bool(
            root.is_Symbol
            and root.is_positive
            and power.is_positive
            and all(part.is_polynomial(*varying) for part in parts)
            and not any(part.free_symbols & varying for part in left)
            and vanishes(left[0] / left[1] - right)
        )

    return Step(sp.Limit(of, t, sp.oo), right, reason, proof, **marks)
