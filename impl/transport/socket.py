"""A UDP socket that moves trains: many datagrams of one size in one system call each way, where the kernel can.

Sending: UDP_SEGMENT cuts a train of up to 64 KB into datagrams. Receiving: UDP_GRO joins them again, recvmmsg takes
many trains, and what the kernel dropped for want of room is counted (SO_RXQ_OVFL). Without them, one datagram a call.

Legend: D datagrams of a batch; M messages of one call, each with one or several datagrams.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_UDP, _UDP_SEGMENT, _UDP_GRO, _SO_RXQ_OVFL, _SO_RCVBUFFORCE = 17, 103, 104, 40, 33
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO, _IP_MTU = 10, 2, 14
_SLOT = 1 << 16
_MESSAGES = 32
_MAX_SEGMENTS, _MAX_TRAIN = 64, 65_000
_MMSGHDR = np.dtype([
    ("name", "u8"), ("name_length", "u8"), ("iov", "u8"), ("iov_length", "u8"), ("control", "u8"),
    ("control_length", "u8"), ("flags", "u8"), ("length", "u4"), ("pad", "u4"),
])  # fmt: skip
_CMSG = np.dtype([("length", "u8"), ("level", "i4"), ("type", "i4"), ("value", "u4"), ("pad", "u4")])
_LOST = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.ECONNREFUSED, errno.ENOBUFS, errno.ENETDOWN,
         errno.EMSGSIZE)  # fmt: skip
_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))
_NO_SEGMENTS = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP)


@dataclass
class SocketCounts:
    """Since the socket was opened. `overflowed`: datagrams that the kernel dropped, for the buffer was full."""

    sent: int = 0
    received: int = 0
    unsendable: int = 0
    overflowed: int = 0


def own_address() -> str:
    """Where peers reach this process, as far as its environment says."""
    if address := os.environ.get("LOSSPROOF_ADDRESS"):
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
        return str(probe.getsockname()[0])


class TrainSocket:
    """One bound, non-blocking UDP socket for all peers.

    Args:
        address: the IPv4 address to bind to; the port is the kernel's choice.
        buffer_bytes: wanted of the receive buffer; what was granted is `room`.
        offload: use UDP_SEGMENT and UDP_GRO where the kernel has them.

    Attributes:
        buffer: what `receive` fills. segments, joins: whether offload is used, sending and receiving.
    """

    def __init__(self, address: str = "127.0.0.1", buffer_bytes: int = 64 << 20, offload: bool = True) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((address, 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        if not self._set(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes):
            self._set(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._set(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._set(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        self._set(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        self.room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        linux = sys.platform == "linux"
        self.joins = offload and linux and self._set(_UDP, _UDP_GRO, 1)
        self.segments = offload and linux
        self.counts = SocketCounts()
        self.buffer = np.zeros(_MESSAGES * _SLOT, np.uint8)
        self._recvmmsg = getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None) if linux else None
        if self._recvmmsg is not None:
            self._recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
            self._prepare()

    def _set(self, level: int, option: int, value: int) -> bool:
        try:
            self._socket.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def _prepare(self) -> None:
        self._control = np.zeros((_MESSAGES, 2), _CMSG)  # room for a train's segment size and the count of drops
        self._iov = np.zeros((_MESSAGES, 2), np.uint64)
        self._iov[:, 0] = self.buffer.ctypes.data + np.arange(_MESSAGES) * _SLOT
        self._iov[:, 1] = _SLOT
        self._header = np.zeros(_MESSAGES, _MMSGHDR)
        self._header["iov"] = self._iov.ctypes.data + np.arange(_MESSAGES) * 16
        self._header["iov_length"] = 1
        self._header["control"] = self._control.ctypes.data + np.arange(_MESSAGES) * self._control.strides[0]

    def mtu(self, peer: tuple[str, int]) -> int:
        """The largest IP packet that goes to this peer unfragmented, as far as this machine knows."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(peer)
            try:
                return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            except OSError:
                return 1500

    def train(self, row_bytes: int) -> int:
        """How many datagrams of this size make a train."""
        return max(1, min(_MAX_SEGMENTS, _MAX_TRAIN // row_bytes))

    def send(self, rows: memoryview, row_bytes: int, peer: tuple[str, int]) -> bool:
        """Sends a train to a peer; False, and nothing is sent, if there is no room just now.

        What cannot be sent for another reason is counted, and lost like anything that the network loses.
        """
        number = len(rows) // row_bytes
        try:
            if self.segments and number > 1:
                size = int(row_bytes).to_bytes(2, sys.byteorder)
                self._socket.sendmsg([rows], [(_UDP, _UDP_SEGMENT, size)], 0, peer)
            elif number == 1:
                self._socket.sendto(rows, peer)
            else:
                for k in range(number):
                    self._send_alone(rows[k * row_bytes : (k + 1) * row_bytes], peer)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_SEGMENTS and self.segments and number > 1:
                self.segments = False
                return self.send(rows, row_bytes, peer)
            if error.errno not in _LOST:
                raise
            self.counts.unsendable += number
            return True
        self.counts.sent += number
        return True

    def _send_alone(self, row: memoryview, peer: tuple[str, int]) -> None:
        try:
            self._socket.sendto(row, peer)
        except BlockingIOError:
            self.wait(0.01, writing=True)
            self._socket.sendto(row, peer)

    def wait(self, seconds: float, writing: bool = False) -> None:
        """Until something comes, or `writing`, there is room to send; or the time is over."""
        select.select([self._socket], [self._socket] if writing else [], [], max(0.0, seconds))

    def receive(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A batch: where in `buffer` each datagram starts, and its length; none if nothing is there."""
        if self._recvmmsg is None:
            return self._receive_one()
        self._header["control_length"] = self._control.strides[0]
        number = self._recvmmsg(self._socket.fileno(), self._header.ctypes.data, _MESSAGES, socket.MSG_DONTWAIT, None)
        if number < 0:
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR, errno.ECONNREFUSED):
                raise OSError(code, f"recvmmsg: {errno.errorcode.get(code, code)}")
            number = 0
        if not number:
            return _NOTHING
        messages = []
        lengths, controls = self._header["length"][:number].tolist(), self._control[:number].tolist()
        for k, (length, written) in enumerate(
            zip(lengths, self._header["control_length"][:number].tolist(), strict=True)
        ):
            size = length
            for place, (_, level, kind, value, _) in enumerate(controls[k]):
                if written < (place + 1) * _CMSG.itemsize - 4:
                    break  # the kernel wrote no more; what lies there is of an earlier call
                if (level, kind) == (_UDP, _UDP_GRO):
                    size = value
                elif (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                    self.counts.overflowed = max(self.counts.overflowed, value)
            messages.append((k * _SLOT, length, size))
        return self._split(messages)

    def _receive_one(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        try:
            length, ancillary, _, _ = self._socket.recvmsg_into([memoryview(self.buffer)], 64)  # type: ignore[arg-type]
        except (BlockingIOError, ConnectionRefusedError):
            return _NOTHING
        size = length
        for level, kind, value in ancillary:
            if (level, kind) == (_UDP, _UDP_GRO):
                size = int.from_bytes(value[:4], sys.byteorder)
            elif (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                self.counts.overflowed = int.from_bytes(value[:4], sys.byteorder)
        return self._split([(0, length, size)])

    def _split(self, messages: list[tuple[int, int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Trains (start, length, size) into datagrams: all are `size` long, but the last, which may be shorter."""
        starts: list[int] = []
        lengths: list[int] = []
        for start, length, size in messages:
            if size <= 0 or length <= size:
                starts.append(start)
                lengths.append(length)
            else:
                starts += range(start, start + length, size)
                lengths += [size] * (length // size) + ([length % size] if length % size else [])
        self.counts.received += len(starts)
        return np.array(starts), np.array(lengths)

    def close(self) -> None:
        self._socket.close()
