"""The gate of a gated shell: one map decides how much of another passes."""

import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import runs_kernels


def silu_gate(gate: Tensor, x: Tensor) -> Tensor:
    """``silu(gate) * x`` for two maps of one shape, ``(b, c, h, w)``; ``gate`` may be half the channels of a map.

    Example:
        >>> import torch
        >>> silu_gate(torch.full((1, 1, 1, 1), 50.0), torch.full((1, 1, 1, 1), 3.0)).item()
        150.0
    """
    if runs_kernels(x, gate):
        return dispatch.load("cuda.silu_gate").run(gate, x)
    return F.silu(gate) * x
