"""A network that really loses packets: namespaces of this kernel, joined by a router that drops by chance.

    node 0 -- veth --.
    node 1 -- veth --+-- router (nftables drops here, UDP and TCP alike)
    node 2 -- veth --'

Segmentation offload is off on the way out, so that the router sees, and drops, single packets of one MTU, as a network
does; the nodes join what arrives on the way in, as a network card does. Needs root, iproute2, nftables and ethtool.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import count
from types import TracebackType
from typing import Any

TOOLS = ("ip", "nft", "ethtool")
_MILLION = 1_000_000
_number = count()


def missing() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() != 0:
        return "not root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"no {', '.join(lacking)} here" if lacking else ""


def call(*command: str, given: str | None = None) -> str:
    """What a command prints. Raises RuntimeError with what it complained of."""
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Namespaces `nodes`, each with one address; as a context, whatever happens, they are removed at its end.

    Args:
        nodes: how many. mtu: of every link. join: receive offload in the nodes (GRO).
    """

    def __init__(self, nodes: int = 2, mtu: int = 1500, join: bool = True) -> None:
        prefix = f"lp{os.getpid()}x{next(_number)}"
        self.router, self.nodes = f"{prefix}r", [f"{prefix}n{k}" for k in range(nodes)]
        self.addresses = [f"10.77.{k}.2" for k in range(nodes)]
        self.mtu, self.join = mtu, join
        self._made: list[str] = []
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Network:
        try:
            for name in (self.router, *self.nodes):
                call("ip", "netns", "add", name)
                self._made.append(name)
                self._in(name, "ip", "link", "set", "lo", "up")
            self._in(self.router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            for k, node in enumerate(self.nodes):
                call("ip", "link", "add", "eth0", "mtu", str(self.mtu), "netns", node, "type", "veth",
                     "peer", "name", f"port{k}", "mtu", str(self.mtu), "netns", self.router)  # fmt: skip
                for where, device, address in ((node, "eth0", 2), (self.router, f"port{k}", 1)):
                    self._in(where, "ip", "addr", "add", f"10.77.{k}.{address}/24", "dev", device)
                    self._in(where, "ip", "link", "set", device, "up")
                    for offload in ("tx-udp-segmentation", "tso", "gso"):
                        self._in(where, "ethtool", "-K", device, offload, "off")
                self._in(node, "ethtool", "-K", "eth0", "gro", "on" if self.join else "off")
                self._in(node, "ip", "route", "add", "default", "via", f"10.77.{k}.1")
            self.lose(0)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], capture_output=True)

    def _in(self, name: str, *command: str, given: str | None = None) -> str:
        return call("ip", "netns", "exec", name, *command, given=given)

    def lose(self, loss: float, links: dict[tuple[int, int], float] | None = None) -> None:
        """From now on the router drops this share of the packets between any two nodes; `links`, by (from, to), differ.

        The counters start anew. Shares are in millionths. Raises ValueError for one that is no share.
        """
        rules = []
        for src, dst in ((a, b) for a in range(len(self.nodes)) for b in range(len(self.nodes)) if a != b):
            given = (links or {}).get((src, dst), loss)
            if not 0 <= given <= 1:
                raise ValueError(f"loss must be in [0, 1], got {given!r} from {src} to {dst}")
            share = round(_MILLION * given)
            for protocol in ("udp", "tcp"):
                match = f"ip saddr {self.addresses[src]} ip daddr {self.addresses[dst]} ip protocol {protocol}"
                rules.append(f'{match} counter comment "came {protocol} {src} {dst}"')
                if share:  # nft refuses a comparison that is always true
                    draw = f"numgen random mod {_MILLION} < {share}" if share < _MILLION else ""
                    rules.append(f'{match} {draw} counter drop comment "dropped {protocol} {src} {dst}"')
        chain = "\n    ".join(["type filter hook forward priority 0;", *rules])
        table = f"flush ruleset\ntable ip loss {{\n  chain through {{\n    {chain}\n  }}\n}}\n"
        self._in(self.router, "nft", "-f", "-", given=table)

    def counters(self, protocol: str) -> dict[tuple[int, int], tuple[int, int]]:
        """Packets that came to the router and that it dropped, by (from, to), since `lose`."""
        return self._counted(f"came {protocol}", f"dropped {protocol}", "list", "table", "ip", "loss")

    def _counted(self, first: str, second: str, *what: str) -> dict[tuple[int, int], tuple[int, int]]:
        """By link, what the rules with these comments counted."""
        found: dict[tuple[int, int], list[int]] = {}
        for entry in json.loads(self._in(self.router, "nft", "-j", *what))["nftables"]:
            name, *link = entry.get("rule", {}).get("comment", "- 0 0").rsplit(" ", 2)
            if name in (first, second):
                packets = next(e["counter"]["packets"] for e in entry["rule"]["expr"] if "counter" in e)
                found.setdefault((int(link[0]), int(link[1])), [0, 0])[name == second] = packets
        return {link: (both[0], both[1]) for link, both in found.items()}

    def count_data(self, least_bytes: int) -> None:
        """From now on the router counts the UDP datagrams of at least so many bytes, header and all; after `lose`."""
        chains = []
        for kind, hook in (("came", "prerouting"), ("passed", "postrouting")):
            rules = [
                f'ip saddr {a} ip daddr {b} udp length >= {least_bytes} counter comment "{kind} {src} {dst}"'
                for src, a in enumerate(self.addresses)
                for dst, b in enumerate(self.addresses)
                if src != dst
            ]
            chains.append("\n    ".join([f"chain {kind} {{", f"type filter hook {hook} priority 0;", *rules, "}"]))
        self._in(self.router, "nft", "-f", "-", given="table ip data {\n" + "\n".join(chains) + "\n}\n")

    def data(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Such datagrams that came to the router, and that it passed on, by (from, to), since `count_data`."""
        return self._counted("came", "passed", "list", "table", "ip", "data")

    def start(
        self, node: int, *command: str, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """A command in a node; killed at the end at the latest."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.nodes[node], *command], env=os.environ | (env or {}), **options
        )
        self._processes.append(process)
        return process

    def launch(self, *command: str, env: dict[str, str] | None = None, **options: Any) -> list[subprocess.Popen[Any]]:
        """Python with these arguments as one rank on every node, with the environment that torchrun would give it.

        LOSSPROOF_ADDRESS is the rank's own address.
        """
        common = {"MASTER_ADDR": self.addresses[0], "MASTER_PORT": "29577", "GLOO_SOCKET_IFNAME": "eth0",
                  "WORLD_SIZE": str(len(self.nodes)), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                  "TORCHELASTIC_RUN_ID": "netns", "OMP_NUM_THREADS": "1"}  # fmt: skip
        return [
            self.start(k, sys.executable, *command, **options,
                       env=common | {"RANK": str(k), "LOSSPROOF_ADDRESS": self.addresses[k]} | (env or {}))
            for k in range(len(self.nodes))
        ]  # fmt: skip

    def ranks(self, *command: str, env: dict[str, str] | None = None, limit: float = 300) -> list[str]:
        """What each rank of `launch` printed. Raises AssertionError with the output of the first one that failed."""
        running = self.launch(*command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        outputs = [process.communicate(timeout=limit)[0] for process in running]
        for k, (process, output) in enumerate(zip(running, outputs, strict=True)):
            assert process.returncode == 0, f"rank {k}: status {process.returncode}\n{output}"
        return outputs
