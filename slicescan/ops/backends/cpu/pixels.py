"""What lies between the scans of a network, on the CPU: each in one pass over memory, and no record for gradients.

Images are float32, ``(b, c, h, w)``, dense, with the channels of a pixel side by side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slicescan.ops.backends.cpu import numba_missing
from slicescan.ops.backends.cpu.threads import share

PIECE = 1 << 15
"""Numbers of a piece of work, about."""


def why_not(*images: Tensor) -> str | None:
    """Say in one sentence why the kernels cannot take images of one size, or None if they can."""
    first = images[0]
    if any([x.device.type != "cpu" or x.dtype != torch.float32 for x in images]):
        return "needs float32 on the CPU"
    if any([x.shape != first.shape for x in images]) or first.ndim != 4 or not first.numel():
        return "needs images of one size, not empty"
    if not all([x.is_contiguous(memory_format=torch.channels_last) for x in images]):
        return "needs dense images with the channels of a pixel side by side"
    return numba_missing()


def gated_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``silu(a) * b`` for the halves of what a depth-wise 3x3 convolution, ``(c, 1, 3, 3)``, makes of ``x``."""
    from slicescan.ops.backends.cpu.pixel_kernels import gated_conv as kernel

    b, c, h, w = x.shape
    y = x.new_empty(b, h, w, c // 2).permute(0, 3, 1, 2)
    taps = weight.detach().view(c, 9).t().contiguous().view(-1).numpy()
    shift = x.new_zeros(c) if bias is None else bias.detach().contiguous()
    share(kernel, (h, w, _line(y), _line(x), taps, shift.numpy()), pieces=b * h, updates=x.numel(), alive=(y, x))
    return y


def norm(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``s = x + branch``, or ``x``, and its layer norm over the channels, with weights ``(c,)``."""
    from slicescan.ops.backends.cpu.pixel_kernels import norm as kernel

    none = x.new_empty(0)
    s, y = x if branch is None else torch.empty_like(x), torch.empty_like(x)
    maps = none if branch is None else s, y, x, none if branch is None else branch
    weights = [vector.detach().contiguous().numpy() for vector in (weight, bias)]
    pixels = max(1, PIECE // x.shape[1])
    arguments = (pixels, *(_line(x) for x in maps), *weights, eps)
    share(kernel, arguments, pieces=-(-x.numel() // (pixels * x.shape[1])), updates=x.numel(), alive=maps)
    return s, y


def divergences(x: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Sums over each image of how much two ``maps`` diverge from ``x``, ``(b, 2)``."""
    from slicescan.ops.backends.cpu.pixel_kernels import divergences as kernel

    images = x.shape[0]
    pieces = -(-x[0].numel() // PIECE)
    sums = x.new_empty(images, pieces, 2, dtype=torch.float64)
    lines = [_line(map_).reshape(images, -1) for map_ in (x, *maps)]
    share(kernel, (sums.numpy(), *lines), pieces=images * pieces, updates=4 * x.numel(), alive=(sums, x, maps))
    return sums.sum(1).to(x.dtype)


def _line(x: Tensor) -> Any:
    """All numbers of an image as they lie in memory."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1).numpy() if x.ndim == 4 else x.numpy()
