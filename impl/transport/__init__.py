"""A transport over UDP for links that really lose packets: `attach(..., channel=UdpChannel(...))`."""

from __future__ import annotations

from lossproof.impl.transport.channel import UdpChannel
from lossproof.impl.transport.wire import read_key

__all__ = ["UdpChannel", "read_key"]
