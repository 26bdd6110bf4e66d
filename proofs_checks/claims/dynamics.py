"""C1: the second moments of SGD on a quadratic, exactly.

Legend: M copies, D coordinates, P problems.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import sympy as sp

from lossproof.proofs_checks.claim import Claim, Evidence, Run, plant, require
from lossproof.proofs_checks.instruments import dynamics_checks, mistakes, quadratic_runs, second_moments
from lossproof.proofs_checks.instruments.regression_data import diabetes
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_mean
from lossproof.theory import coupled, dynamics, stability
from lossproof.theory.derive import dynamics as derive

MODELS: tuple[dynamics.Model, ...] = get_args(dynamics.Model)
_moments, _lossy, _reliable, _server, _after, _gap, _trajectory, _weights = (
    stability.second_moments, dynamics.lossy_steady, dynamics.reliable_steady, dynamics.server_steady,
    coupled.Coupled.after, dynamics.Steady.gap, dynamics.trajectory, coupled.Coupled.weights,
)  # fmt: skip

C1 = Claim(
    "C1",
    "SGD on a quadratic: four second moments close; exact transient, steady state and stability",
    derive.moments,
    assumes=(
        "SGD on one quadratic, the same on all ranks; survivor mean, no survivor no update",
        "noise of the gradients has mean 0 and a fixed variance; independent across ranks, of the past and the masks",
        "packets are lost independently, gradients with probability p_g, parameters with p < 1",
        "closed form of a full Hessian: one mask covers all coordinates; otherwise `lossproof.theory.coupled`",
        "transient: any start with these second moments; steady state: eta h below the stability limit",
    ),
    not_claimed=(
        "noise that grows with the distance to the optimum (C4)",
        "ranks with different curvatures or optima (D5)",
        "bursts, unequal links, momentum, adaptive optimizers",
        "floating point",
    ),
    witness="N = 2, own link reliable, p = 1/2 in both phases, eta h = 1, no noise: E x^2 = 1, 0, 1/16",
    advice="For eta h well below 1 what loss costs a converged run is its gradient noise, by the factor kappa N/alpha, "
    "about 1/(1-p); replicas drift apart by little more than B2 and B3 say. Near the stability limit both grow by "
    "c/(c - b s - a s^2): `lossproof.theory.dynamics` has the numbers. How tensors are cut into packets hardly matters "
    "for small steps, and smaller packets do better for large ones.",
)


def _with(form: Any, **change: Any) -> Any:
    """A steady state with coefficients changed: each by a function of the right one and of p."""

    def wrong(N: Any, p: Any, *of: Any) -> Any:
        right = form(N, p, *of)
        return right._replace(**{name: by(getattr(right, name), p) for name, by in change.items()})

    return wrong


def _fresh_replicas(N: Any, p: Any, s: Any, of: Any) -> Any:
    return _moments(N, 0 * p, s, of)


def _without_pairs(N: Any, p: Any, s: Any, of: Any) -> Any:
    return _moments(N, p, s, of._replace(pairs=0))


def _one_mask(self: coupled.Coupled, C_MDMD: Any) -> Any:
    return _after(replace(self, packet_D=[0] * len(self.packet_D)), C_MDMD)


def _pairs_as_ranks(self: coupled.Coupled) -> Any:
    single_DM, double_DDMM = _weights(self)
    M, own = double_DDMM.shape[-1], self.owner_D[0]
    pairs = np.array([[len({i, j, own}) == 3 for j in range(M)] for i in range(M)])
    return single_DM, double_DDMM * np.where(pairs, max(M - 2, 1), 1)


NOISE_OF_OWNER = plant("noise without the owner's", dynamics, "noise_share", lambda of: of.squares)
NOISE_SQUARED = plant(
    "q of noise in E y_i y_j",
    dynamics,
    "added",
    lambda p, v: dynamics.Moments(v, (1 - p) * v, (1 - p) * v, (1 - p) * v),
)
NOT_BROADCAST = plant("noise not broadcast", dynamics, "added", lambda p, v: dynamics.Moments(v, 0, 0, 0))
FRESH = plant("replicas always fresh", stability, "second_moments", _fresh_replicas)
UNCORRELATED = plant("replicas uncorrelated", stability, "second_moments", _without_pairs)
SERVER_KNOWS = plant(
    "the server's weights like the ranks'",
    dynamics,
    "server_shares",
    lambda kappa, alpha: stability.lossy_shares(2, kappa, alpha),
)
N1 = plant("lossy: N for N - 3 + p", dynamics, "lossy_steady", _with(_lossy, n1=lambda n1, p: 2 * n1))
RELIABLE_N1 = plant(
    "reliable: n1 of the other sign", dynamics, "reliable_steady", _with(_reliable, n1=lambda n1, p: -n1)
)
SERVER_B = plant("server: b of the other sign", dynamics, "server_steady", _with(_server, b=lambda b, p: -b))
SERVER_A = plant("server: a without kappa", dynamics, "server_steady", _with(_server, a=lambda a, p: 0 * a))
OPEN_LOOP = plant("drift as without curvature", dynamics.Steady, "gap", lambda self, p, s, v: p * v / (1 - p))
C1.derived(NOISE_OF_OWNER, NOISE_SQUARED, UNCORRELATED, N1, RELIABLE_N1, SERVER_B, OPEN_LOOP, SERVER_KNOWS, FRESH)


# -- certified


@C1.rung(
    "certified", N1, SERVER_B, NOISE_SQUARED, OPEN_LOOP, SERVER_KNOWS, RELIABLE_N1, SERVER_A, UNCORRELATED,
    NOISE_OF_OWNER, plant(
        "starts with noise", dynamics, "trajectory", lambda N, p_g, p, s, T: _trajectory(N, p_g, p, s, T, noise=1)),
    plant("pairs shared out as single ranks", coupled.Coupled, "weights", _pairs_as_ranks),
    plant("lossy a for the server", dynamics, "server_steady", _lossy),
    plant("the limit of equal losses", dynamics, "stable_step",
          lambda N, p_g, p, model="reliable": stability.stable_step(N, p, "reliable")),
)  # fmt: skip
def _all_parameters(run: Run) -> Evidence:
    _, p, s, N, kappa, alpha, w, w2 = sp.field("p, s, N, kappa, alpha, w, w2", sp.QQ)  # in lowest terms
    for model, closed, of, copies in (
        ("lossy", dynamics.lossy_steady(N, p, kappa, alpha), stability.lossy_shares(N, kappa, alpha), N),
        ("reliable", dynamics.reliable_steady(N, p, w, w2), stability.reliable_shares(w, w2), N),
        ("server", dynamics.server_steady(N, p, kappa, alpha), dynamics.server_shares(kappa, alpha), N + 1),
    ):
        z = closed.moments(p, s, 1)
        for name, left, right in zip(z._fields, z, dynamics.after(z, copies, p, s, of, 1), strict=True):
            require(left == right, f"{model}: {name} of the steady state is not given back")
    dynamics_checks.signs()
    half = Fraction(1, 2)
    witness = [z.xx for z in dynamics.trajectory(2, half, half, 1, 2)]
    require(witness == [1, 0, Fraction(1, 16)], f"the witness is {witness}")
    largest = run.pick(4, 8)
    for model in MODELS:
        dynamics_checks.require_symmetric(4, model)
        for ranks in range(1 if model == "server" else 2, largest + 1):
            dynamics_checks.require_limit(ranks, model)
            dynamics_checks.require_lossless(ranks, model)
    return Evidence(
        "for all N, p_g, p and eta h: the steady state is given back; positive up to the limit, a, c > 0; for N <= "
        f"{largest}: det(I - M) is c - b s - a s^2 but for factors, s* to 13 digits, equal losses are D2, no loss "
        "SGD; the same without symmetry, N = 4"
    )


# -- enumerated


@C1.rung(
    "enumerated",
    NOISE_OF_OWNER,
    mistakes.DIVIDE_BY_N,
    mistakes.ALWAYS_FRESH,
    mistakes.COUNT_PLUS_ONE,
    SERVER_KNOWS,
    mistakes.ONE_MASK_FOR_ALL,
    NOISE_SQUARED,
    mistakes.ZERO_FOR_STALE,
    mistakes.INVERTED,
    mistakes.OWN_FOR_ZERO,
    mistakes.BROADCAST_FIRST,
    mistakes.IGNORE_LOSS,
    NOT_BROADCAST,
    FRESH,
    UNCORRELATED,
    plant("one mask for all packets", coupled.Coupled, "after", _one_mask),
    plant("risk of rank 0's copies", coupled.Coupled, "risk", lambda self, C: (self.hessian * C[0, :, 0]).sum() / 2),
)  # fmt: skip
def _every_history(run: Run) -> Evidence:
    sizes = [(2, 2), (3, 1), *run.pick([], [(3, 2), (4, 1), (2, 3)])]
    for model in MODELS:
        for N, steps in sizes:
            _require_moments(quadratic_runs.Histories(N, model, steps, [[1]], [1], [2]), steps)
    for model in MODELS:
        for owners in ((0,), (0, 0), (0, 1))[: 2 if model == "server" else 3]:
            steps = 2 if len(owners) == 1 or model == "reliable" else run.pick(1, 2 - (model == "server"))
            _require_covariance(
                quadratic_runs.Histories(2, model, steps, [[2, 1], [1, 2]], [1, 3], [1, 2], owners), steps
            )
    return Evidence(
        f"noise of both signs and every pattern of losses, (N, steps) = {sizes}, polynomials in p_g and p; a 2 x 2 "
        "Hessian in one packet, along its eigenvectors, and in two, of one owner and of two, at two pairs of losses"
    )


def _require_moments(found: quadratic_runs.Histories, steps: int) -> None:
    """All copies of one coordinate: every rank's moment against the four."""
    noise = found.noise_D[0] ** 2
    for p_g, loss in found.grid:
        path = dynamics.trajectory(found.N, p_g, loss, 1, steps, found.model, 1, noise)
        for t in range(1, steps + 1):
            C_MM = found.covariance(t, p_g, loss)
            for (i, j), measured in np.ndenumerate(C_MM):
                claimed = path[t][second_moments.kind(i, j)]
                where = f"{found.model}, N = {found.N}, p_g = {p_g}, p = {loss}, step {t}, copies {i} and {j}"
                require(measured == claimed, f"{where}: {measured}, claimed {claimed}")


def _require_covariance(found: quadratic_runs.Histories, steps: int) -> None:
    for p_g, loss in ((Fraction(1, 3), Fraction(2, 7)), (Fraction(3, 5), Fraction(1, 11))):
        predicted = found.predicted(p_g, loss)
        C_MDMD = predicted.start([Fraction(x) for x in found.start_D])
        for _ in range(steps):
            C_MDMD = predicted.after(C_MDMD)
        measured = found.covariance(steps, p_g, loss)
        what = f"{found.model}, N = {found.N}, owners {found.owners_Q}, p_g = {p_g}, p = {loss}"
        require(bool((C_MDMD.reshape(measured.shape) == measured).all()), f"{what}: not the covariance of all copies")
        x = [predicted.owner_D[a] * 2 + a for a in (0, 1)]  # where the owners' copies are
        risk = sum(found.hessian[a][b] * measured[x[a], x[b]] for a in (0, 1) for b in (0, 1)) / 2
        require(predicted.risk(C_MDMD) == risk, f"{what}: risk {predicted.risk(C_MDMD)}, not {risk}")
        if len(found.owners_Q) > 1:
            continue
        for k, (h, v_D) in enumerate(((3, (1, 1)), (1, (1, -1)))):  # of [[2, 1], [1, 2]]
            start, noise = (
                sum(x * y for x, y in zip(v_D, z, strict=True)) ** 2 for z in (found.start_D, found.noise_D)
            )
            along = np.kron(np.eye(len(measured) // 2, dtype=int), v_D)
            moments = along @ measured @ along.T
            claimed = dynamics.trajectory(found.N, p_g, loss, h, steps, found.model, start, noise)[-1]
            require(
                tuple(moments[0, :2]) == claimed[:2], f"{what}: along eigenvector {k} {moments[0, 0]}, not {claimed.xx}"
            )


# -- sampled

_RANKS, _LOSS, _STEPS = 4, 0.3, 4


@C1.rung(
    "sampled",
    mistakes.DIVIDE_BY_N,
    mistakes.ALWAYS_FRESH,
    mistakes.SAME_FOR_ALL_SENDERS,
    FRESH,
    mistakes.a_fifth_more(dynamics, "noise_share"),  # a tenth of the risk: planted, and resolved, at full effort only
    NOT_BROADCAST,
    mistakes.SAME_FOR_ALL_STEPS,
    mistakes.WORDS_OF_31_BITS,
    mistakes.COUNT_PLUS_ONE,
    SERVER_KNOWS,
)
def _running(run: Run) -> Evidence:
    problems, ranks = run.pick(3_000, 60_000), 12
    found = []
    for model in MODELS:
        at, noise, loss = 0.6, 0.7, 0.6
        predicted = at / 2 * dynamics.trajectory(ranks, loss, loss, at, _STEPS, model, 1.0, noise**2)[-1].xx
        risks_P = quadratic_runs.drawn(ranks, loss, model, np.array([[at]]), [1.0], np.array([[noise]]), problems,
                                       _STEPS, run.seed, 1)  # fmt: skip
        high = at / 2 * quadratic_runs.largest(1.0, at, noise, _STEPS) ** 2
        require_mean(f"risk, {model}, N = {ranks}", risks_P, predicted, 0, high, ALPHA / 5)
        found.append(f"{model} {risks_P.mean() / predicted:.3f}")
    H = np.asarray(diabetes().hessian / diabetes().curvature / 2, dtype=np.float64)
    h_D, eigen_DD = np.linalg.eigh(H)
    D, start_D, noise_DD = len(h_D), eigen_DD.sum(1), np.asarray(0.5 * np.linalg.cholesky(H), dtype=np.float64)
    along_DD = eigen_DD.T @ noise_DD
    apart = [
        k * quadratic_runs.largest(1.0, k, abs(row).sum(), _STEPS) ** 2 / 2
        for k, row in zip(h_D, along_DD, strict=True)
    ]
    predicted = dynamics_checks.decoupled(
        h_D, eigen_DD, noise_DD @ noise_DD.T, eigen_DD.T @ start_D, _RANKS, _LOSS, "lossy", _STEPS
    )
    risks_P = quadratic_runs.drawn(_RANKS, _LOSS, "lossy", H, start_D.tolist(), noise_DD, problems, _STEPS, run.seed, D)
    require_mean("risk, diabetes, one packet", risks_P, predicted, 0, sum(apart), ALPHA / 5)
    found.append(f"diabetes in one packet {risks_P.mean() / predicted:.3f}")
    packets = coupled.Coupled(_RANKS, _LOSS, _LOSS, "lossy", H, noise_DD @ noise_DD.T, list(range(D)), [0] * D)
    exact = packets.risk(dynamics_checks.path(packets, start_D.tolist(), _STEPS))
    risks_P = quadratic_runs.drawn(_RANKS, _LOSS, "lossy", H, start_D.tolist(), noise_DD, problems, _STEPS, run.seed, 1)
    reach = float(np.linalg.norm(start_D))
    for _ in range(_STEPS):
        reach += h_D[-1] * reach + float(np.linalg.norm(noise_DD, 2)) * D**0.5
    require_mean("risk, diabetes, ten packets", risks_P, exact, 0, h_D[-1] / 2 * reach**2, ALPHA / 5)
    found.append(f"in ten {risks_P.mean() / exact:.3f}")
    return Evidence(
        f"risk after {_STEPS} steps of {problems} problems over that predicted: {', '.join(found)}; "
        + dynamics_checks.packets(_RANKS, _LOSS),
        ALPHA,
    )


C1.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
