"""Memory order: scans want the channels of a pixel side by side; callers get back the order they came with."""

import torch
from torch import Tensor

from slicescan.ops.library import side_by_side


def channels_last(x: Tensor) -> Tensor:
    """``x``, ``(b, c, h, w)``, with the channels of a pixel side by side in memory; a copy only if they were not."""
    return x if side_by_side(x) else x.contiguous(memory_format=torch.channels_last)


def as_map(x: Tensor) -> Tensor:
    """View ``(b, c, h, w)`` as ``(b, h, w, c)``."""
    return x.permute(0, 2, 3, 1)


def as_image(x: Tensor) -> Tensor:
    """View ``(b, h, w, c)`` as ``(b, c, h, w)``."""
    return x.permute(0, 3, 1, 2)


def ordered_like(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the memory order of ``x``, both ``(b, c, h, w)``; a copy only if the orders differ."""
    return channels_last(y) if x.stride(1) == 1 and not x.is_contiguous() else y.contiguous()
