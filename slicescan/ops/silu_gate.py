"""The gate of a gated layer: one map decides how much of another passes."""

import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import is_final, runs_kernels


def silu_gate(gate: Tensor, x: Tensor) -> Tensor:
    """``silu(gate) * x`` for two maps of one shape, ``(b, c, h, w)``; ``gate`` may be half the channels of a map.

    On a CPU, float32 maps with the channels of a pixel side by side take one pass where nothing records gradients.

    Example:
        >>> import torch
        >>> silu_gate(torch.full((1, 1, 1, 1), 50.0), torch.full((1, 1, 1, 1), 3.0)).item()
        150.0
    """
    if runs_kernels(x, gate):
        return dispatch.load("cuda.silu_gate").run(gate, x)
    if gate.ndim == x.ndim == 4 and is_final(gate, x):
        maps = [map_.permute(0, 2, 3, 1) for map_ in (gate, x)]
        if dispatch.has_cpu_gate(*maps):
            return dispatch.load("cpu.gate").silu_gate(*maps).permute(0, 3, 1, 2)
    return F.silu(gate) * x
