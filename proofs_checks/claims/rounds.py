"""P3: a round does what its description says, and goes on from its state as if never stopped.

Legend: N ranks, H of them hosted; P packets, Q of them owned by hosted ranks; E elements of a packet; T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch

from lossproof.impl import cluster as cluster_module
from lossproof.impl.aggregate import NonFiniteGradient
from lossproof.impl.channel import SimulatedChannel
from lossproof.impl.cluster import Cluster
from lossproof.impl.layout import Layout
from lossproof.impl.loss import Arrivals
from lossproof.impl.round import Round
from lossproof.proofs_checks.claim import Claim, Evidence, Mutant, Refuted, Run, plant, require
from lossproof.proofs_checks.instruments import mistakes, scalar_layouts
from lossproof.proofs_checks.instruments.patterns import Scripted, all_patterns
from lossproof.proofs_checks.instruments.plain_cluster import require_cluster, require_defaults
from lossproof.proofs_checks.instruments.scalar_round import ScalarRound, descend
from lossproof.proofs_checks.instruments.statistics import ALPHA, require_probability
from lossproof.theory import laws, protocol
from lossproof.theory.derive import protocol as derive

RULES = ("survivor_mean", "inverse_probability", "zero_fill")
FALLBACKS = ("zero", "hold", "own")
_step, _load, _state = Round.step, Round.load_state_dict, Round.state_dict

P3 = Claim(
    "P3",
    "A round does what its description says, and resumes",
    derive.rounds,
    assumes=("the gradients that arrive are finite", "an optimizer that changes the owners' packets in place"),
    not_claimed=(
        "floating point: whole numbers, or operations that round alike in every order",
        "real networks: channels are scripted or simulated here",
    ),
    witness="two ranks, one packet, every pattern of losses over two steps",
)
P3.derived(
    plant("stale at an arrival", protocol, "replica", lambda m, fresh, stale: (1 - m) * fresh + m * stale),
    plant("fresh and stale added", protocol, "replica", lambda m, fresh, stale: m * fresh + stale),
    plant("the gap forgets the past", protocol, "gap", lambda m, before, u: (1 - m) * u),
    plant("the gap at an arrival", protocol, "gap", lambda m, before, u: m * (before + u)),
)


class Noted(Scripted):
    """Scripted masks, and a diary of who asked for what; its state is how often."""

    def __init__(self, ranks: int, sent_TNP: torch.Tensor, broadcast_TNP: torch.Tensor) -> None:
        super().__init__(ranks, sent_TNP, broadcast_TNP)
        self.diary: list[tuple[Any, ...]] = []
        self.asked = 0

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> Any:
        self.diary.append(("gradients", step))
        self.asked += 1
        return super().gradients(step, payload_HPE)

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> Any:
        self.diary.append(("parameters", step, fresh_QE.clone()))
        return super().parameters(step, fresh_QE)

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def _payload(round_: Round, step: int, arrived_NP: torch.Tensor, own_NP: torch.Tensor) -> torch.Tensor:
    """Gradients that depend on the replica they are taken at: multiples of 12; NaN where nobody may look."""
    N, _, E = round_.replicas_HPE.shape
    at = torch.arange(N)[:, None, None] + 2 * torch.arange(E) + step
    return (12 * (at + round_.replicas_HPE)).where((arrived_NP | own_NP)[..., None], torch.nan)


def _sgd(round_: Round) -> Callable[[torch.Tensor], None]:
    def update(estimate_QE: torch.Tensor) -> None:
        round_.fresh_QE.sub_(estimate_QE)
        estimate_QE.fill_(torch.nan)  # an optimizer may use its gradients up

    return update


def _cases(run: Run) -> Iterator[tuple[int, torch.Tensor, list[int]]]:
    """(N, masks of T steps and 2 phases, owners): all histories of two ranks, drawn ones of three, each rank owning."""
    bits = all_patterns(8)
    yield 2, bits.view(2, 2, 2, -1), [p // 3 % 2 for p in range(bits.shape[1])]
    generator = torch.Generator().manual_seed(run.seed % 2**63)
    packets = run.pick(24, 600)
    for ranks in (1, 3, 4):
        yield ranks, torch.rand(3, 2, ranks, packets, generator=generator) < 0.4, [p % ranks for p in range(packets)]


def _counting_own(self: Round, payload: Any, update: Any) -> Any:
    count = _step(self, payload, update)
    self.counts.gradients_offered += int(self._own_HP.sum())
    return count


def _forgetting(name: str) -> Mutant:
    def load(self: Round, state: dict[str, Any]) -> None:
        kept = {"estimate": self._estimate_QE, "step_number": self.step_number, "counts": asdict(self.counts)}
        _load(self, {**state, name: kept[name]})

    return plant(f"a resume forgets {name}", Round, "load_state_dict", load)


def _aliased(self: Round) -> dict[str, Any]:
    return {**_state(self), "fresh": self.fresh_QE}


@P3.rung(
    "enumerated",
    mistakes.DIVIDE_BY_N,
    mistakes.NEXT_PACKETS_MASK,
    mistakes.NEXT_SENDERS_MASK,
    mistakes.NEIGHBOURS_GRADIENT,
    mistakes.ZERO_FOR_HOLD,
    mistakes.SURVIVORS_FOR_INVERSE,
    mistakes.ZERO_FOR_STALE,
    mistakes.INVERTED,
    plant("counts a rank's messages to itself", Round, "step", _counting_own),
    _forgetting("estimate"),
    _forgetting("step_number"),
    _forgetting("counts"),
    plant("the state is no copy", Round, "state_dict", _aliased),
    plant("packets of twice the size", cluster_module, "Layout", SimpleNamespace(
        build=lambda shapes, ranks, E, kind: Layout.build(shapes, ranks, 2 * E, kind))),
    plant("gradients at the owners' copy", Cluster, "replicas_HPE",
          property(lambda self: self.fresh_PE.expand_as(self.round.replicas_HPE))),
    plant("seed of the losses lost", cluster_module, "Arrivals",
          lambda law, owners, ranks, seed, own_link, hosted: Arrivals(law, owners, ranks, 0, own_link, hosted)),
)  # fmt: skip
def _against_plain_loops(run: Run) -> Evidence:
    rounds, clusters = 0, list(_clusters(run))
    require_cluster(**clusters[0])
    for (ranks, masks_TSNP, owners), rule, no_survivor in product(_cases(run), RULES, FALLBACKS):
        _require_round(ranks, masks_TSNP, owners, rule, no_survivor)
        rounds += 1
    _require_refusals()
    require_defaults()
    for options in clusters[1:]:
        require_cluster(**options)
    return Evidence(
        f"{rounds} rounds of 2 or 3 steps, all histories of two ranks; {len(clusters)} clusters of real replicas"
    )


def _require_round(ranks: int, masks_TSNP: torch.Tensor, owners: list[int], rule: Any, no_survivor: Any) -> None:
    what = f"N = {ranks}, {rule}, {no_survivor}"
    sent_TNP, broadcast_TNP = masks_TSNP.unbind(1)
    T, _, P = sent_TNP.shape
    owner_P = torch.tensor(owners)
    own_NP = torch.arange(ranks)[:, None] == owner_P
    start_PE = torch.arange(2.0 * P, dtype=torch.float64).view(P, 2)
    q_NP = 1 / (1 + torch.arange(ranks * P) % 4).double().view(ranks, P)
    options = {"rule": rule, "no_survivor": no_survivor, "arrival_probability_NQ": q_NP}

    def new() -> Round:
        return Round.in_process(start_PE, owner_P, Noted(ranks, sent_TNP, broadcast_TNP), **options)

    round_, states, payloads, after = new(), [], [], []
    scalar = ScalarRound(start_PE.tolist(), owners, ranks, rule, no_survivor, q_NP.tolist())
    for t in range(T):
        states.append(round_.state_dict())
        payloads.append(_payload(round_, t, sent_TNP[t], own_NP))
        try:
            count_P = round_.step(payloads[-1], _sgd(round_))
        except NonFiniteGradient:
            raise Refuted(f"{what}: what lies in the slot of a lost packet was read in step {t}") from None
        gradient = [[[12 * (i + 2 * e + t + value) for e, value in enumerate(packet)] for packet in replica]
                    for i, replica in enumerate(scalar.theta)]  # fmt: skip
        K = scalar.step(gradient, sent_TNP[t].tolist(), broadcast_TNP[t].tolist(), descend)
        require(count_P.tolist() == K and round_.step_number == t + 1, f"{what}: survivors or step {t}")
        latest = (round_.arrived["gradients"], round_.arrived["parameters"])
        require(all(map(torch.equal, latest, (sent_TNP[t], broadcast_TNP[t]))), f"{what}: the masks noted at step {t}")
        _require_same(what, t, round_, scalar)
        after.append((round_.fresh_QE.clone(), round_.replicas_HPE.clone(), asdict(round_.counts)))
    diary = round_.channel.diary  # type: ignore[attr-defined]
    for t, (first, second) in enumerate(zip(diary[::2], diary[1::2], strict=True)):
        in_order = first == ("gradients", t) and second[:2] == ("parameters", t)
        require(in_order and torch.equal(second[2], after[t][0]), f"{what}: phases of step {t}, or what is broadcast")
    for cut, state in enumerate(states):
        resumed = new()
        resumed.load_state_dict(state)
        require(resumed.channel.asked == cut, f"{what}: the channel's state")  # type: ignore[attr-defined]
        for t in range(cut, T):
            try:
                resumed.step(payloads[t], _sgd(resumed))
            except NonFiniteGradient:
                raise Refuted(f"{what}: resumed at step {cut}, step {t} reads lost packets") from None
            fresh_PE, replicas_NPE, counts = after[t]
            same = torch.equal(resumed.fresh_QE, fresh_PE) and torch.equal(resumed.replicas_HPE, replicas_NPE)
            require(same and asdict(resumed.counts) == counts, f"{what}: resumed at step {cut}, step {t}")
    if ranks == 3:
        _require_hosted(what, masks_TSNP, owner_P, start_PE, payloads, after, options)


def _require_same(what: str, t: int, round_: Round, scalar: ScalarRound) -> None:
    require(round_.fresh_QE.tolist() == scalar.x, f"{what}: the owners' packets after step {t}")
    require(round_.replicas_HPE.tolist() == scalar.theta, f"{what}: the replicas after step {t}")
    require(asdict(round_.counts) == scalar.counts, f"{what}: counts {round_.counts}")


def _require_hosted(
    what: str, masks_TSNP: torch.Tensor, owner_P: torch.Tensor, start_PE: torch.Tensor, payloads: Any, after: Any,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """The same rounds, each rank in a process of its own: one replica, its own packets, its own part of the counts."""
    total: dict[str, int] = {}
    ranks = masks_TSNP.shape[2]
    for rank in range(ranks):
        mine_P = owner_P == rank
        channel = Part(ranks, masks_TSNP, rank, mine_P, payloads, after)
        part = Round(
            start_PE[mine_P].clone(), owner_P[mine_P], start_PE, mine_P[None], channel,
            **{**options, "arrival_probability_NQ": options["arrival_probability_NQ"][:, mine_P]},
        )  # fmt: skip
        for t, payload_NPE in enumerate(payloads):
            part.step(payload_NPE[rank : rank + 1], _sgd(part))
            fresh_PE, replicas_NPE, _ = after[t]
            same = torch.equal(part.fresh_QE, fresh_PE[mine_P]) and torch.equal(
                part.replicas_HPE[0], replicas_NPE[rank]
            )
            require(same, f"{what}: rank {rank} by itself, step {t}")
        for name, number in asdict(part.counts).items():
            total[name] = total.get(name, 0) + number
    require(total == after[-1][2], f"{what}: the ranks' counts add up to {total}")


class Part:
    """What one rank sees of rounds that were played: the others' packets as they were."""

    def __init__(
        self, ranks: int, masks: torch.Tensor, rank: int, mine: torch.Tensor, payloads: Any, after: Any
    ) -> None:
        self.ranks, self.masks, self.rank, self.mine, self.payloads, self.after = (
            ranks,
            masks,
            rank,
            mine,
            payloads,
            after,
        )

    def gradients(self, step: int, payload_HPE: torch.Tensor) -> Any:
        return self.payloads[step][:, self.mine], self.masks[step, 0][:, self.mine]

    def parameters(self, step: int, fresh_QE: torch.Tensor) -> Any:
        return self.after[step][0], self.masks[step, 1, self.rank : self.rank + 1]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def _require_refusals() -> None:
    """What must stop a round before anything has moved: no survivor where that is an error, a gradient not finite."""
    refused: list[tuple[float, bool, dict[str, Any], type[ValueError]]] = [
        (1.0, False, {"no_survivor": "raise"}, ValueError),
        (torch.inf, True, {}, NonFiniteGradient),
        (torch.nan, True, {}, NonFiniteGradient),
    ]
    for payload, arrived, options, error in refused:
        masks = torch.full((1, 2, 1), arrived)
        round_ = Round.in_process(torch.zeros(1, 1), torch.tensor([0]), Noted(2, masks, masks), **options)
        try:
            round_.step(torch.full((2, 1, 1), payload), _sgd(round_))
        except error:
            require(round_.step_number == 0 and not round_.fresh_QE.any(), "a refused round has moved")
        else:
            require(False, f"gradients of {payload}, arrived {arrived}, {options} are not refused")


def _clusters(run: Run) -> Iterator[dict[str, Any]]:
    for number, (layout, rule) in enumerate(product(scalar_layouts.KINDS, RULES)):
        for no_survivor in (FALLBACKS[number // 3],) if run.effort == "quick" else FALLBACKS:
            yield {
                "law": (laws.Bernoulli(0.5), laws.GilbertElliott(0.5, 3, "packet"))[number % 2],
                "ranks": (3, 2, 5)[number // 3],
                "seed": run.seed ^ (number + 1) << 32,
                "own_link": ("lossy", "reliable")[number // 2 % 2],
                "layout": layout,
                "rule": rule,
                "no_survivor": no_survivor,
                "packet_bytes": (8, 16, 29)[number % 3],
                "chunk": (None, 1, 2)[number % 3],
            }


@P3.rung(
    "sampled",
    plant("counts a rank's messages to itself", Round, "step", _counting_own),
    mistakes.WORDS_OF_31_BITS,
    mistakes.own_link("reliable"),
    mistakes.a_fifth_more(protocol, "sampled_loss"),
)
def _counts(run: Run) -> Evidence:
    ranks, packets, steps, loss = 3, run.pick(4_000, 40_000), 3, 0.4
    arrivals = Arrivals(laws.Bernoulli(loss), [p % ranks for p in range(packets)], ranks, run.seed, "lossy")
    owner_P = torch.arange(packets) % ranks
    round_ = Round.in_process(torch.zeros(packets, 1), owner_P, SimulatedChannel(arrivals))
    for _ in range(steps):
        round_.step(torch.ones(ranks, packets, 1), _sgd(round_))
    got, p = round_.counts, protocol.sampled_loss(loss)
    offered = steps * packets * (ranks - 1)
    require(got.gradients_offered == got.parameters_offered == offered, f"offered: {got}, by definition {offered}")
    for what, number, trials, chance in (
        ("gradients lost", got.gradients_lost, offered, p),
        ("parameters lost", got.parameters_lost, offered, p),
        ("packets without a survivor", got.no_survivor, steps * packets, p**ranks),
    ):
        require_probability(what, number, trials, chance, ALPHA / 3)
    return Evidence(f"{steps} rounds of {packets} packets at N = {ranks}, p = {loss}, own link lossy", ALPHA)


P3.leave_out("certified", "not applicable", "equalities of programs, which hold or not: no inequality to certify")
P3.leave_out("kernel", "not applicable", "kernel proofs are kept for A1 and B2")
