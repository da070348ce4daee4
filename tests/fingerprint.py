"""Weights and inputs that anyone can rebuild from a formula: what published fingerprints are computed with."""

import math
import zlib

import torch
from torch import Tensor, nn

LOG_DECAY = {"A_log", "A_b_log", "A_logs"}
STEP_BIAS = ("dt_projs_bias", "dt_proj.bias", "dt_proj_b.bias")
SKIP = {"D", "Ds", "D_b", "skip_scale", "skip_scale2"}


def fill(target: nn.Module | dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Overwrite every floating tensor, in place, by a function of its key, shape and nothing else.

    Values are computed in float64, rounded to float32 and stored in the tensor's own dtype.

    Args:
        target: A module, or a state dict.
        prefix: Put before each key, for a module that stands for part of a network.

    Returns:
        The state dict that was filled.
    """
    state = target.state_dict() if isinstance(target, nn.Module) else target
    with torch.no_grad():
        for key, tensor in state.items():
            if tensor.is_floating_point():
                tensor.copy_(_values(prefix + key, tensor.shape).float())
    return state


def picture(c: int, h: int, w: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(1, c, h, w)`` in [0, 1]: ``0.5 + 0.5 sin(0.1 y (c + 1) + 0.07 x + c)``."""
    channel = torch.arange(c, dtype=torch.float64)[:, None, None]
    y = torch.arange(h, dtype=torch.float64)[:, None]
    x = torch.arange(w, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.1 * y * (channel + 1) + 0.07 * x + channel)).to(dtype)[None]


def summary(y: Tensor) -> list[float]:
    """Mean, population standard deviation, first, middle and last element of ``y`` in row-major order."""
    flat = y.detach().double().reshape(-1)
    return [flat.mean().item(), flat.std(correction=0).item(), *flat[[0, flat.numel() // 2, -1]].tolist()]


def _values(key: str, shape: torch.Size) -> Tensor:
    n = math.prod(shape)
    i = torch.arange(n, dtype=torch.float64)
    phase = (zlib.crc32(key.encode()) % 1000) / 1000
    s = torch.sin(12.9898 * (i % 997) + 78.233 * phase + 0.001 * i)
    last = key.rpartition(".")[2]
    if last in LOG_DECAY:
        values = torch.log(1 + i % shape[-1]) + 0.1 * s
    elif key.endswith(STEP_BIAS):
        values = -3 + 0.5 * s
    elif last in SKIP or (last == "weight" and len(shape) == 1):
        values = 1 + 0.25 * s
    elif len(shape) <= 1:
        values = 0.1 * s
    else:
        values = s * math.sqrt(3 * shape[0] / n)
    return values.reshape(shape)
