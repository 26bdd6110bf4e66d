"""CUDA kernels: other bodies of `aggregate` and `retain`, chosen by device and held to the plain ones.

Nothing here checks its arguments: the two functions do, before they choose a body.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

_INSTALLED = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def available(device: torch.device) -> bool:
    """Whether the kernels run there."""
    return _INSTALLED and device.type == "cuda"


def serve(*tensors: torch.Tensor) -> bool:
    """Whether the kernels are the body for these tensors: on a GPU, with Triton installed, of dtypes that they know,
    and where nobody wants a derivative."""
    return all(available(tensor.device) and tensor.dtype in _DTYPES for tensor in tensors) and not (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    )
