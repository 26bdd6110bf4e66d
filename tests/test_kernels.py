"""The kernels without a GPU: `kernels_interpreted.py` runs them in Triton's interpreter against the plain bodies.

And on a GPU, where there is one: the two functions there against themselves on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lossproof.impl.aggregate import aggregate
from lossproof.impl.retain import retain

FILE = Path(__file__).with_name("kernels_interpreted.py")


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="not run: Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(FILE)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, env=environment | {"TRITON_INTERPRET": "1"}, cwd=FILE.parents[1], capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "P", "E"), [(3, 5, 7), (16, 33, 256), (40, 9, 1030)])
def test_on_the_device(N: int, P: int, E: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="not run: Triton is not installed")
    random = torch.Generator().manual_seed(N)
    payload = torch.randn(N, P, E, generator=random, dtype=dtype)
    arrived = torch.rand(N, P, generator=random) < 0.6
    for rule in ("survivor_mean", "zero_fill"):
        found = aggregate(payload.cuda(), arrived.cuda(), rule)  # type: ignore[arg-type]
        expected = aggregate(payload, arrived, rule)  # type: ignore[arg-type]
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
    kept = retain(payload.cuda(), payload[0].cuda(), arrived.cuda())
    assert torch.equal(kept.cpu(), retain(payload, payload[0], arrived))
