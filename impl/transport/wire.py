"""The wire format: what a datagram holds, who may have written it, and how batches of them are read. One page about it
is in docs/wire-format.md.

A datagram is a header of 32 bytes, the payload of one packet of the protocol, and a tag of 16 bytes over all that
comes before it, under a key made for this job from the secret and the nonces of all ranks: AES-256-GMAC for payloads
where all ranks can make it (0.3 us for 1400 bytes compiled, 0.8 by the package `cryptography`), else BLAKE2b (1.9 us).

Legend: D datagrams of a batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lossproof.impl.transport import compiled

try:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:  # the extra `udp`
    AESGCM = None  # type: ignore[assignment, misc]

Algorithm = Literal["gmac", "blake2b"]
VERSION = 1
MAGIC = 0x4C50  # "LP"
DATA, END, SEEN, WORD, HEARD = 1, 2, 3, 4, 5
ALL = 0xFFFF  # the receiver of a packet of parameters
HEADER = np.dtype([
    ("magic", ">u2"), ("version", "u1"), ("kind", "u1"), ("length", ">u4"), ("job", ">u8"), ("src_turn", ">u8"),
    ("packet", ">u4"), ("dst", ">u2"), ("zero", ">u2"),
])  # fmt: skip
_KIND = 3
_NONCE_AT, _NONCE_BYTES = 16, 12  # src, turn and packet: no two payloads of a job have the same
HEADER_BYTES, TAG_BYTES = HEADER.itemsize, 16
OVERHEAD = HEADER_BYTES + TAG_BYTES
LEAST_KEY_BYTES = 16
AT_ONCE = 128  # datagrams that are sealed together
assert HEADER_BYTES == 32


def read_key(key: bytes | None = None) -> bytes:
    """The secret that all ranks share: this one, or the contents of the file LOSSPROOF_KEY_FILE, or LOSSPROOF_KEY.

    Raises ValueError for none, or one shorter than 16 bytes, which it does not repeat.
    """
    source = "key"
    if key is None and (path := os.environ.get("LOSSPROOF_KEY_FILE")):
        source = "the key in LOSSPROOF_KEY_FILE"
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            raise ValueError(
                f"LOSSPROOF_KEY_FILE must name a file that can be read, got {path!r} ({error.strerror})"
            ) from None
    elif key is None:
        source, key = "LOSSPROOF_KEY", os.environ.get("LOSSPROOF_KEY", "").encode().strip()
        if not key:
            raise ValueError(
                "the UDP transport needs a key: put one that all ranks share into LOSSPROOF_KEY, or its file's name "
                "into LOSSPROOF_KEY_FILE"
            )
    if not isinstance(key, bytes):
        raise TypeError(f"{source} must be bytes, got {type(key).__name__}")
    if len(key) < LEAST_KEY_BYTES:
        raise ValueError(f"{source} must have at least {LEAST_KEY_BYTES} bytes, got {len(key)}")
    return key


def fastest() -> Algorithm:
    """What this process can make tags with."""
    return "gmac" if AESGCM is not None or compiled.load(bytes(32)) else "blake2b"


class Seal:
    """Makes and checks the tags of one job.

    Args:
        key: the secret.
        nonces: a nonce of every rank, in rank order: no two jobs share a key, so none can be replayed in another.
        algorithm: of the tags of payloads; all others are BLAKE2b.

    Attributes:
        job: what all packets of the job carry; it tells packets of other jobs apart before anything is hashed.
        maker: of the tags of payloads: `compiled`, `cryptography` or `blake2b`.
    """

    def __init__(self, key: bytes, nonces: Sequence[bytes], algorithm: Algorithm = "blake2b") -> None:
        secret = hashlib.blake2b(key, digest_size=32, person=b"lossproof secret").digest()
        material = hashlib.blake2b(
            algorithm.encode() + b"".join(nonces), key=secret, digest_size=64, person=b"lossproof udp 1"
        ).digest()
        self.algorithm = algorithm
        self.job = int.from_bytes(_derived(material, b"lossproof job", 8), "big")
        self._keyed = hashlib.blake2b(key=_derived(material, b"lossproof tag", 64), digest_size=TAG_BYTES)
        key = _derived(material, b"lossproof gmac", 32)
        self._compiled = compiled.load(key) if algorithm == "gmac" else None
        self._encrypt = AESGCM(key).encrypt if algorithm == "gmac" and not self._compiled else None
        self.maker = algorithm if algorithm == "blake2b" else "compiled" if self._compiled else "cryptography"

    def tags(
        self, bytes_B: NDArray[np.uint8], start_D: NDArray[np.int64], stop_D: NDArray[np.int64], data: bool
    ) -> NDArray[np.uint64]:
        """The tags (D, 2), each as two words, of the bytes from each start to each stop: all data, or none."""
        if data and self._compiled:
            return self._compiled(bytes_B, start_D, stop_D)
        view, start, stop = memoryview(bytes_B), start_D.tolist(), stop_D.tolist()  # type: ignore[arg-type]
        content = (view[a:b] for a, b in zip(start, stop, strict=True))
        if data and self._encrypt:
            nonces = (view[a + _NONCE_AT : a + _NONCE_AT + _NONCE_BYTES] for a in start)
            found = b"".join(map(self._encrypt, nonces, repeat(b""), content))
        else:
            found = b"".join(map(self._hashed, content))
        return np.frombuffer(found, np.uint64).reshape(-1, 2)

    def _hashed(self, content: memoryview) -> bytes:
        tag = self._keyed.copy()
        tag.update(content)
        return tag.digest()

    def tag(self, content: bytes) -> bytes:
        """The tag of one datagram."""
        ends = np.array([0]), np.array([len(content)])
        return self.tags(np.frombuffer(content, np.uint8), *ends, content[_KIND] == DATA).tobytes()


def _derived(material: bytes, person: bytes, size: int) -> bytes:
    return hashlib.blake2b(key=material, digest_size=size, person=person).digest()


class Image:
    """The datagrams that one rank sends in one phase, all of one size, end to end: written once, sent in trains.

    Args:
        seal, src: who sends.
        dst_R, packet_R: of each row, the receiver and the packet.
        payload_bytes: of a packet.
    """

    def __init__(self, seal: Seal, src: int, dst_R: NDArray[Any], packet_R: NDArray[Any], payload_bytes: int) -> None:
        self.row_bytes = payload_bytes + OVERHEAD
        dtype = np.dtype([("header", HEADER), ("payload", f"V{payload_bytes}"), ("tag", "V16")])
        self.rows = np.zeros(len(packet_R), dtype)
        self._flat = self.rows.view(np.uint8)
        self.bytes = memoryview(self._flat)  # type: ignore[arg-type]
        self._seal, self.sealed = seal, np.zeros(len(packet_R), np.bool_)
        header = self.rows["header"]
        header["magic"], header["version"], header["kind"], self._src = MAGIC, VERSION, DATA, src
        header["job"], header["length"] = seal.job, payload_bytes
        header["dst"], header["packet"] = dst_R, packet_R

    def open(self, turn: int) -> None:
        """A new phase: nothing of the last one may go out again."""
        self.rows["header"]["src_turn"] = self._src << 48 | turn
        self.sealed[:] = False

    def seal(self, row_K: NDArray[np.int64]) -> None:
        """Tags these rows."""
        start_K = row_K * self.row_bytes
        tags = self._seal.tags(self._flat, start_K, start_K + (self.row_bytes - TAG_BYTES), True)
        self.rows["tag"][row_K] = tags.view("V16").reshape(-1)
        self.sealed[row_K] = True


def marker(seal: Seal, kind: int, src: int, dst: int, turn: int, number: int, payload: bytes = b"") -> bytes:
    """A datagram that is no data; `number` goes where data has its packet's."""
    header = np.zeros(1, HEADER)
    header[0] = (MAGIC, VERSION, kind, len(payload), seal.job, src << 48 | turn, number, dst, 0)
    content = header.tobytes() + payload
    return content + seal.tag(content)


@dataclass(frozen=True)
class Fields:
    """The headers of a batch in the machine's own integers: int64 (D,), `job` uint64; `source` is magic and version."""

    source: NDArray[np.int64]
    kind: NDArray[np.int64]
    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    job: NDArray[np.uint64]
    turn: NDArray[np.int64]
    packet: NDArray[np.int64]
    length: NDArray[np.int64]
    zero: NDArray[np.int64]

    def only(self, chosen_D: NDArray[np.bool_]) -> Fields:
        return Fields(*(getattr(self, name)[chosen_D] for name in self.__dataclass_fields__))


class Reader:
    """Reads the datagrams in a buffer, which is filled again and again: all headers of a batch at once.

    Args:
        buffer: the bytes that are received into.
    """

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        self._buffer = buffer
        self._header = self._at_any(np.dtype(f"V{HEADER_BYTES}"))
        self._tag = self._at_any(np.dtype(f"V{TAG_BYTES}"))
        self._payload: dict[int, NDArray[Any]] = {}

    def _at_any(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The buffer as items that start at every byte, each over the next ones."""
        return np.ndarray(len(self._buffer) - dtype.itemsize + 1, dtype, self._buffer, strides=(1,))

    def fields(self, start_D: NDArray[np.int64]) -> Fields:
        word_4D = self._header[start_D].view(">u8").reshape(-1, 4).T.astype(np.uint64)
        lead_D, src_turn_D, last_D = word_4D[0].view(np.int64), word_4D[2].view(np.int64), word_4D[3].view(np.int64)
        return Fields(
            (lead_D >> 40) & 0xFFFFFF, (lead_D >> 32) & 0xFF, (src_turn_D >> 48) & 0xFFFF, (last_D >> 16) & 0xFFFF,
            word_4D[1], src_turn_D & 0xFFFFFFFFFFFF, (last_D >> 32) & 0xFFFFFFFF, lead_D & 0xFFFFFFFF, last_D & 0xFFFF,
        )  # fmt: skip

    def payloads(self, start_D: NDArray[np.int64], payload_bytes: int) -> NDArray[Any]:
        if payload_bytes not in self._payload:
            self._payload[payload_bytes] = self._at_any(np.dtype(f"V{payload_bytes}"))
        found: NDArray[Any] = self._payload[payload_bytes][start_D + HEADER_BYTES]
        return found

    def payload(self, start: int, payload_bytes: int) -> bytes:
        return self._buffer[start + HEADER_BYTES :][:payload_bytes].tobytes()

    def authentic(
        self, seal: Seal, start_D: NDArray[np.int64], length_D: NDArray[np.int64], data_D: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Whether each tag is the right one; every byte of each is compared."""
        found = np.zeros(len(start_D), np.bool_)
        for data in (True, False):
            these = np.flatnonzero(data_D == data)
            start_K, stop_K = start_D[these], start_D[these] + length_D[these] - TAG_BYTES
            tags = seal.tags(self._buffer, start_K, stop_K, data)
            differs_K2 = tags ^ self._tag[stop_K].view(np.uint64).reshape(-1, 2)
            found[these] = (differs_K2[:, 0] | differs_K2[:, 1]) == 0
        return found


def of_this_job(fields: Fields, seal: Seal) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (fields.source == (MAGIC << 8 | VERSION)) & (fields.job == seal.job)
    return found


def plausible(
    fields: Fields,
    length_D: NDArray[np.int64],
    rank: int,
    owner_P: NDArray[np.int64],
    ranks: int,
    payload_bytes: Sequence[int],
    largest: int,
) -> NDArray[np.bool_]:
    """Which headers, of those of this job, can be sent to this rank by somebody who keeps to the protocol.

    Args:
        owner_P: who owns each packet. payload_bytes: of a packet, by phase. largest: of a word.
    """
    kind_D, packets = fields.kind, len(owner_P)
    is_data_D, is_parameters_D, is_word_D = kind_D == DATA, (fields.turn & 1).astype(np.bool_), kind_D == WORD
    to_all_D = is_data_D & is_parameters_D
    size_D = np.where(is_parameters_D, payload_bytes[1], payload_bytes[0]) * is_data_D
    size_D = np.where(is_word_D, np.clip(fields.length, 1, largest), size_D)
    holder_D = np.where(is_parameters_D, fields.src, rank)
    owner_D = owner_P[np.minimum(fields.packet, packets - 1)]
    found: NDArray[np.bool_] = (
        (kind_D >= DATA) & (kind_D <= HEARD) & (fields.src < ranks) & (fields.src != rank)
        & (fields.dst == np.where(to_all_D, ALL, rank))
        & ((kind_D >= WORD) | (fields.packet < packets + ~is_data_D))
        & (fields.zero == 0) & (~is_data_D | (owner_D == holder_D))
        & (fields.length == size_D) & (length_D == size_D + OVERHEAD)
    )  # fmt: skip
    return found
