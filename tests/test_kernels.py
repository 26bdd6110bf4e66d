"""The kernels without a GPU: `kernels_*.py` run them in Triton's interpreter against the plain bodies.

And on a GPU, where there is one: the two functions there against themselves on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lossproof.impl.aggregate import aggregate
from lossproof.impl.loss import Arrivals
from lossproof.impl.retain import retain
from lossproof.theory.laws import Bernoulli

TESTS = Path(__file__).parent
BENCHMARK = TESTS.parent / "benchmarks" / "kernels.py"
ALONE = """
import runpy, sys
for name in ("numpy", "scipy", "sympy", "hypothesis", "rich", "typer"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str, **environment: str) -> str:
    """What a Python process of its own prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    done = subprocess.run(
        [sys.executable, *arguments], env=inherited | environment, cwd=TESTS.parent, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("file", ["kernels_stage1.py", "kernels_stage2.py", "kernels_masks.py", "kernels_functions.py"])
def test_in_the_interpreter(file: str) -> None:
    pytest.importorskip("triton", reason="not run: Triton is not installed")
    options = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")
    run(*options, str(TESTS / file), TRITON_INTERPRET="1")


def test_the_benchmark_runs() -> None:
    """All of it but the times, on the bodies in the interpreter; and its imports, with torch and Triton alone."""
    pytest.importorskip("triton", reason="not run: Triton is not installed")
    lines = run(str(BENCHMARK), "--dry-run").splitlines()
    assert "every kernel agrees with the CPU: (17, 2, 7)" in lines
    assert sum(line.endswith("bytes, ran") for line in lines) == 11
    assert run("-W", "ignore", "-c", ALONE, str(BENCHMARK), CUDA_VISIBLE_DEVICES="") == "not run: no device\n"


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


@pytest.mark.device
@pytest.mark.parametrize(("own_link", "receiver"), [("reliable", None), ("lossy", 2), ("lossy", range(1, 5, 2))])
def test_masks_on_the_device(own_link: Any, receiver: Any) -> None:
    pytest.importorskip("triton", reason="not run: Triton is not installed")
    arguments = (Bernoulli(0.3), [3, 0, 2, 2, 1, 4, 0], 5, 2**64 - 1, own_link, receiver)
    here, there = Arrivals(*arguments), Arrivals(*arguments).to("cuda")
    for step in (0, 1, 2**32 - 1):
        assert torch.equal(there.gradients(step).cpu(), here.gradients(step))
        assert torch.equal(there.parameters(step).cpu(), here.parameters(step))
