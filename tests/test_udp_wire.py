"""The wire format against a second writer made from docs/wire-format.md; forged, damaged and repeated datagrams.

Legend: three ranks, this one is 0; P = 6 packets of two float32, owners 0, 0, 1, 1, 2, 2.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossproof.impl.transport import UdpChannel, read_key, wire
from lossproof.impl.transport.inbox import Inbox, InboxCounts
from lossproof.impl.transport.peers import Deadline, Limits, Peers
from lossproof.impl.transport.words import Words

KEY, NONCES = b"a secret of sixteen bytes or more", [bytes([n]) * 16 for n in range(3)]
OWNER_P = np.array([0, 0, 1, 1, 2, 2])
PLACE_P = np.array([0, 1, -1, -1, -1, -1])
LARGEST = 100  # bytes of a word
PAYLOAD = struct.pack("=2f", 1.5, -2.25)


def documented(
    algorithm: str, *, kind: int = 1, src: int = 1, dst: int = 0, turn: int = 0, packet: int = 1,
    payload: bytes = PAYLOAD, key: bytes = KEY, nonces: list[bytes] = NONCES, version: int = 1, zero: int = 0,
    length: int | None = None,
) -> bytes:  # fmt: skip
    """A datagram, written from the page."""

    def derive(material: bytes, person: str, size: int) -> bytes:
        return hashlib.blake2b(b"", key=material, digest_size=size, person=person.encode()).digest()

    secret = hashlib.blake2b(key, digest_size=32, person=b"lossproof secret").digest()
    material = hashlib.blake2b(
        algorithm.encode() + b"".join(nonces), key=secret, digest_size=64, person=b"lossproof udp 1"
    ).digest()
    content = (
        b"LP" + bytes([version, kind]) + struct.pack(">I", len(payload) if length is None else length)
        + derive(material, "lossproof job", 8)
        + struct.pack(">H", src) + turn.to_bytes(6, "big") + struct.pack(">IHH", packet, dst, zero) + payload
    )  # fmt: skip
    if algorithm == "gmac" and kind == 1:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        cipher = Cipher(algorithms.AES(derive(material, "lossproof gmac", 32)), modes.GCM(content[16:28])).encryptor()
        cipher.authenticate_additional_data(content)
        cipher.finalize()
        return content + cipher.tag
    return content + hashlib.blake2b(content, key=derive(material, "lossproof tag", 64), digest_size=16).digest()


class Receiver:
    """Rank 0 and what it makes of datagrams."""

    def __init__(self, algorithm: str = "blake2b", turn: int = 0) -> None:
        self.seal = wire.Seal(KEY, NONCES, algorithm)  # type: ignore[arg-type]
        self.peers, self.counts = Peers(0, 3), InboxCounts()
        like = torch.zeros(0, 2)
        self.words = Words(None, self.peers)  # type: ignore[arg-type]
        self.inbox = Inbox(
            self.seal, self.peers, OWNER_P, PLACE_P, (like, like), turn, self.counts, self.words, LARGEST
        )
        self.buffer = np.zeros(1 << 20, np.uint8)
        self.reader = wire.Reader(self.buffer)

    def take(self, *datagrams: bytes) -> dict[str, int]:
        """What was counted of them; they lie at odd and even places."""
        before, at, starts = dict(vars(self.counts)), 1, []
        for datagram in datagrams:
            self.buffer[at : at + len(datagram)] = np.frombuffer(datagram, np.uint8)
            starts.append(at)
            at += len(datagram) + len(starts) % 3
        self.inbox.take(self.reader, np.array(starts), np.array([len(d) for d in datagrams]))
        return {name: n - before[name] for name, n in vars(self.counts).items() if n != before[name]}

    def state(self) -> tuple[Any, ...]:
        slots = [self.inbox.slot(turn) for turn in range(4)]
        words = repr({name: value for name, value in vars(self.words).items() if name not in ("_sender", "_peers")})
        return (
            [(s.received.tolist(), s.flat.tolist(), s.got_N.tolist(), s.ended_N.tolist()) for s in slots],
            self.peers.turn_N.tolist(), self.inbox.seen_N.tolist(), words,
        )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["blake2b", "gmac"])
def test_what_is_sent_is_what_the_page_says(algorithm: Any) -> None:
    seal = wire.Seal(KEY, NONCES, algorithm)
    image = wire.Image(seal, 2, np.array([0, 1]), np.array([1, 3]), len(PAYLOAD))
    image.open(0x123456789AB)
    image.rows["payload"] = np.frombuffer(PAYLOAD * 2, f"V{len(PAYLOAD)}")
    image.seal(np.array([0, 1]))
    rows = [bytes(image.bytes[k * image.row_bytes : (k + 1) * image.row_bytes]) for k in range(2)]
    turn = 0x123456789AB
    assert rows == [documented(algorithm, src=2, dst=d, turn=turn, packet=p) for d, p in ((0, 1), (1, 3))]
    word = wire.marker(seal, wire.END, 2, 1, 7, 4)
    assert word == documented(algorithm, kind=2, src=2, dst=1, turn=7, packet=4, payload=b"")
    word = wire.marker(seal, wire.WORD, 2, 1, 7, 9, PAYLOAD)
    assert word == documented(algorithm, kind=4, src=2, dst=1, turn=7, packet=9, payload=PAYLOAD)


def test_tags_are_the_same_compiled_or_by_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over datagrams of many lengths, at odd places; both ways must be there where all tests are meant to run."""
    compiled_one = wire.Seal(KEY, NONCES, "gmac")
    monkeypatch.setattr(wire.compiled, "load", lambda key: None)
    other = wire.Seal(KEY, NONCES, "gmac")
    if compiled_one.maker != "compiled":
        pytest.skip("no C compiler here, or no OpenSSL")
    assert other.maker == "cryptography"
    random = np.random.default_rng(3)
    bytes_B = random.integers(0, 256, 1 << 16).astype(np.uint8)
    start_D = random.integers(0, 1 << 15, 300)
    stop_D = start_D + random.integers(wire.HEADER_BYTES, 1500, 300)
    expected = other.tags(bytes_B, start_D, stop_D, True)
    assert len(np.unique(expected)) == 600
    assert np.array_equal(compiled_one.tags(bytes_B, start_D, stop_D, True), expected)
    assert np.array_equal(compiled_one.tags(bytes_B, start_D[::2], stop_D[::2], True), expected[::2])
    for way in (compiled_one, other):
        assert way.tags(bytes_B, start_D[:0], stop_D[:0], True).shape == (0, 2)
    with pytest.raises(IndexError):
        compiled_one.tags(bytes_B, start_D, start_D + (1 << 16), True)


def test_without_compiler_or_told_so_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = wire.compiled._library.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("CC", "no-such-compiler"), ("CC", "false"), ("CC", '"'), ("LOSSPROOF_COMPILE", "0")):
        with monkeypatch.context() as only:
            only.setenv(name, value)
            assert library() is None
    assert [path.name for path in tmp_path.rglob("*")] == ["lossproof"]
    if library() is None:
        pytest.skip("no C compiler here")
    (made,) = tmp_path.rglob("*.so")
    monkeypatch.setenv("PATH", "")  # what was compiled is used again
    assert library() is not None
    assert made.stat().st_mode & 0o022 == 0
    for path in (made, made.parent):  # others could have written what would run here
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        assert library() is None
        path.chmod(mode)
    assert library() is not None


@pytest.mark.parametrize("algorithm", ["blake2b", "gmac"])
def test_what_the_page_says_is_taken_and_lands_in_its_place(algorithm: str) -> None:
    receiver = Receiver(algorithm)
    found = receiver.take(
        documented(algorithm, packet=1),
        documented(algorithm, packet=0, src=2, turn=2),
        documented(algorithm, packet=4, src=2, turn=1, dst=0xFFFF),
        documented(algorithm, kind=2, src=2, packet=2, payload=b""),
        documented(algorithm, kind=4, src=2, packet=0),
    )
    assert found == {"accepted": 3, "markers": 2}
    assert receiver.words._said == ({2: PAYLOAD}, {})
    now, parameters, later = (receiver.inbox.slot(turn) for turn in range(3))
    assert now.arrived.nonzero()[0].tolist() == [1]
    assert now.received[1, 1].tolist() == [1.5, -2.25]
    assert later.arrived[2].tolist() == [True, False]
    assert parameters.arrived.tolist() == [False] * 4 + [True, False]
    assert parameters.received[4].tolist() == [1.5, -2.25]
    assert receiver.inbox.pending(0) == [1]  # rank 2 says that it has sent all
    assert receiver.peers.turn_N.tolist() == [-1, 0, 2]


@pytest.mark.parametrize("algorithm", ["blake2b", "gmac"])
def test_a_datagram_with_any_one_bit_turned_is_refused(algorithm: str) -> None:
    receiver, before = Receiver(algorithm), Receiver(algorithm).state()
    for good in (documented(algorithm), documented(algorithm, kind=2, packet=2, payload=b""),
                 documented(algorithm, kind=4, packet=0)):  # fmt: skip
        wrong = []
        for bit in range(8 * len(good)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            wrong.append(bytes(bad))
        found = receiver.take(*wrong)
        assert sum(found.get(name, 0) for name in ("foreign", "malformed", "forged")) == len(wrong)
        assert found["forged"] > 100
        assert receiver.state() == before


def mutate(good: bytes, random: np.random.Generator) -> bytes:
    """Another datagram: cut, longer, overwritten, random, or with some bits turned."""
    bad = bytearray(good)
    for _ in range(random.integers(1, 4)):
        kind = random.integers(5)
        if kind == 0:
            del bad[random.integers(len(bad) + 1) :]
        elif kind == 1:
            bad += random.bytes(random.integers(1, 80))
        elif kind == 2 and bad:
            at = random.integers(len(bad))
            bad[at : at + 4] = random.bytes(min(4, len(bad) - at))
        elif kind == 3:
            bad[32:] = random.bytes(len(bad[32:]))
        elif bad:
            for at in random.integers(0, len(bad), random.integers(1, 5)):
                bad[at] ^= 1 << random.integers(8)
    return bytes(bad)


def refuse_fuzzed(algorithm: str, batches: int, seed: int) -> int:
    """Batches of 100 mutated datagrams, none of which may change anything; how many there were."""
    random = np.random.default_rng(seed)
    receiver, before = Receiver(algorithm, turn=1), Receiver(algorithm, turn=1).state()
    good = [
        documented(algorithm, turn=turn, packet=packet, src=src, dst=dst, kind=kind, payload=payload)
        for kind, src, turn, packet, dst, payload in (
            (1, 1, 2, 0, 0, PAYLOAD), (1, 2, 2, 1, 0, PAYLOAD), (1, 1, 1, 2, 0xFFFF, PAYLOAD),
            (1, 2, 3, 5, 0xFFFF, PAYLOAD), (2, 1, 1, 2, 0, b""), (3, 2, 1, 2, 0, b""),
            (4, 1, 1, 0, 0, PAYLOAD), (5, 2, 1, 0, 0, b""),
        )
    ]  # fmt: skip
    refused = 0
    for _ in range(batches):
        bad = [mutate(good[k], random) for k in random.integers(0, len(good), 100)]
        bad = [one for one in bad if one not in good]
        found = receiver.take(*bad)
        assert not {"accepted", "markers"} & set(found)
        refused += len(bad)
    assert receiver.state() == before
    assert receiver.counts.forged > 5 * batches  # far from all stop at the cheap checks
    assert receiver.take(*good) == {"accepted": 4, "markers": 4}
    return refused


@pytest.mark.parametrize("algorithm", ["blake2b", "gmac"])
def test_of_fuzzed_datagrams_none_is_taken_and_nothing_changes(algorithm: str) -> None:
    assert refuse_fuzzed(algorithm, 100, seed=7) > 9000


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ({"nonces": NONCES[::-1]}, "foreign"),
        ({"key": b"another secret of sixteen bytes"}, "foreign"),
        ({"version": 2}, "foreign"),
        ({"dst": 1}, "malformed"),
        ({"src": 0}, "malformed"),
        ({"src": 3}, "malformed"),
        ({"packet": 2}, "malformed"),  # a gradient that is another rank's to average
        ({"packet": 6}, "malformed"),
        ({"packet": 1 << 31}, "malformed"),
        ({"turn": 1, "packet": 4, "dst": 0xFFFF}, "malformed"),  # the parameters of rank 2, from rank 1
        ({"turn": 1, "packet": 2}, "malformed"),  # parameters go to all
        ({"kind": 4, "payload": b""}, "malformed"),  # a word that says nothing
        ({"kind": 4, "payload": bytes(LARGEST + 1)}, "malformed"),
        ({"kind": 4, "dst": 0xFFFF}, "malformed"),
        ({"kind": 5}, "malformed"),  # heard, with a payload
        ({"kind": 6, "payload": b""}, "malformed"),
        ({"kind": 0}, "malformed"),
        ({"kind": 2}, "malformed"),  # an end with a payload
        ({"payload": PAYLOAD + b"1234"}, "malformed"),
        ({"payload": b""}, "malformed"),
        ({"length": 4}, "malformed"),
        ({"zero": 1}, "malformed"),
        ({"turn": 4}, "early"),
        ({"turn": (1 << 48) - 2}, "early"),
    ],
)
def test_authentic_but_impossible(given: dict[str, Any], counted: str) -> None:
    receiver, before = Receiver(), Receiver().state()
    assert receiver.take(documented("blake2b", **given)) == {counted: 1}
    assert receiver.state()[0] == before[0]


def test_what_was_of_an_older_turn_is_late_and_copies_are_duplicates() -> None:
    receiver = Receiver()
    first = documented("blake2b", turn=0)
    assert receiver.take(first, first) == {"accepted": 1, "duplicate": 1}
    assert receiver.take(first) == {"duplicate": 1}
    other = documented("blake2b", turn=0, payload=bytes(8))
    assert receiver.take(other) == {"duplicate": 1}  # the first one counts
    assert receiver.inbox.slot(0).received[1, 1].tolist() == [1.5, -2.25]
    for turn in range(1, 9):
        receiver.inbox.advance(turn)
        assert receiver.take(first) == {"late": 1}
        assert not any(receiver.inbox.slot(k).flat.any() for k in range(turn, turn + 3))
    receiver.peers.turn_N[:] = -1
    assert receiver.take(first) == {"late": 1}  # authentic, of a peer not heard before: a sign of life and no more
    assert receiver.peers.turn_N.tolist() == [-1, 0, -1]


def test_what_is_cut_or_longer_is_refused_before_its_tag_is_looked_at() -> None:
    good = documented("blake2b")
    assert Receiver().take(good[:-1], good + b"x") == {"malformed": 2}
    assert Receiver().take(good[:47], b"") == {"foreign": 2}


def test_words_of_another_turn_say_nothing_of_this_one() -> None:
    """They still are signs of life. Turn 5 has the slot of turn 1."""
    receiver = Receiver(turn=1)
    before = receiver.state()
    for kind, turn, packet in ((2, 0, 2), (3, 0, 2), (2, 5, 2), (3, 5, 3), (3, 3, 3)):
        receiver.peers.turn_N[1] = -1
        word = documented("blake2b", kind=kind, turn=turn, packet=packet, payload=b"")
        assert receiver.take(word) == {"markers": 1}
        assert receiver.peers.turn_N[1] == turn
        slots, _, seen, _ = receiver.state()
        assert (slots, seen) == (before[0], before[2])
    receiver.take(*(documented("blake2b", kind=kind, turn=1, packet=3, payload=b"") for kind in (2, 3)))
    assert receiver.inbox.slot(1).ended_N.tolist() == [False, True, False]
    assert receiver.inbox.seen_N.tolist() == [-1, 2, -1]
    receiver.inbox.advance(2)
    assert receiver.inbox.seen_N.tolist() == [-1, -1, -1]
    receiver.inbox.advance(5)
    assert receiver.state()[0] == before[0]


def test_silence_counts_from_the_last_word() -> None:
    receiver = Receiver()
    for turn in range(0, 8, 2):
        for k in range(5):
            receiver.peers.silent(1, turn + k)
        assert not receiver.peers.down_N.any()
        receiver.inbox.advance(turn)
        receiver.take(documented("blake2b", turn=turn))
    assert receiver.peers.downs == 0
    for k in range(6):
        receiver.peers.silent(1, 8 + k)
    assert receiver.peers.down_N.tolist() == [False, True, False]


def test_a_replayed_packet_is_no_sign_of_life() -> None:
    receiver = Receiver()
    old = documented("blake2b", turn=0)
    receiver.take(old)
    receiver.inbox.advance(1)
    for turn in range(6):
        receiver.peers.silent(1, turn)
    assert receiver.peers.down_N.tolist() == [False, True, False]
    receiver.take(old)
    assert receiver.peers.down_N[1]
    receiver.take(documented("blake2b", turn=2))
    assert not receiver.peers.down_N[1]
    assert (receiver.peers.downs, receiver.peers.returns) == (1, 1)


def test_the_key_comes_from_the_environment_or_a_file_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("LOSSPROOF_KEY", "LOSSPROOF_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="LOSSPROOF_KEY"):
        read_key()
    monkeypatch.setenv("LOSSPROOF_KEY", " 0123456789abcdef\n")
    assert read_key() == b"0123456789abcdef"
    (tmp_path / "key").write_bytes(b"from a file, and long enough\n")
    monkeypatch.setenv("LOSSPROOF_KEY_FILE", str(tmp_path / "key"))
    assert read_key() == b"from a file, and long enough"
    assert read_key(KEY) == KEY
    monkeypatch.setenv("LOSSPROOF_KEY_FILE", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"LOSSPROOF_KEY_FILE must name a file that can be read, got .*nothing"):
        read_key()
    with pytest.raises(ValueError) as short:
        read_key(b"too short")
    assert "too short" not in str(short.value)
    assert "secret" not in repr(UdpChannel(key=KEY))


def test_the_deadline_follows_the_slowest_phase_between_its_bounds() -> None:
    deadline = Deadline(Limits(floor=0.25, ceiling=2.0, margin=4.0))
    for _ in range(16):
        assert deadline.seconds == 2.0
        deadline.ended(0.001)
    for seconds, expected in ((0.01, 0.25), (0.125, 0.5), (0.1, 0.5), (0.2, 0.8), (3.0, 2.0)):
        deadline.ended(seconds)
        assert deadline.seconds == pytest.approx(expected)
    for _ in range(64):
        deadline.ended(0.125)
    assert deadline.seconds == 0.5  # what was slow is forgotten
    deadline.cut_off()
    assert deadline.seconds == 1.0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"silent_rounds": 0}, "silent_rounds"), ({"buffer_bytes": 10}, "buffer_bytes"), ({"pace": 0.0}, "pace"),
        ({"pace": float("inf")}, "pace"), ({"algorithm": "crc"}, "algorithm"),
        ({"patience": 0.0}, "patience"), ({"patience": "5"}, "patience"), ({"survive": "yes"}, "survive"),
        ({"limits": 3}, "limits"),
    ],
)  # fmt: skip
def test_unusable_options_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        UdpChannel(**options)
    for limits in ({"floor": 0.0}, {"floor": 3.0}, {"ceiling": float("inf")}, {"margin": 0.5}):
        with pytest.raises(ValueError, match=next(iter(limits))):
            Limits(**limits)
