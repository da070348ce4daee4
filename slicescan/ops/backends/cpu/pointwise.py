"""Convolutions on the CPU, and what lies between two of them, in one pass; no record for gradients.

Images are float32, ``(b, c, h, w)``, with the channels of a pixel side by side; pixels may lie apart where it is said.
"""

from typing import Any

import torch
from torch import Tensor

from slicescan.ops.backends.cpu import numba_missing
from slicescan.ops.backends.cpu.threads import share

PIECE = 1 << 15
"""Numbers of a piece of work, about, read and written together."""

BAND = 50
"""Columns of a piece of work that goes down an image, at most: three rows of it stay in a core's own cache."""

MACS = 8
"""Multiplications of a product that take as long as an update of a state, about."""

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias of a convolution."""


def why_not(*images: Tensor) -> str | None:
    """Say in one sentence why the kernels cannot take images of one size, or None if they can."""
    first = images[0]
    if any([x.device.type != "cpu" or x.dtype != torch.float32 for x in images]):
        return "needs float32 on the CPU"
    if any([x.shape != first.shape for x in images]) or first.ndim != 4 or not first.numel():
        return "needs images of one size, not empty"
    if not all([_is_even(x) for x in images]):
        return "needs pixels at even distances, with their channels side by side"
    return numba_missing()


def product(x: Tensor, conv: Affine) -> Tensor:
    """A 1x1 convolution of an image whose pixels may lie apart."""
    from slicescan.ops.backends.cpu.pointwise_kernels import product as kernel

    b, c, h, w = x.shape
    y = _image(x, conv[0].shape[0])
    pixels = _pixels(c + y.shape[1])
    arguments = (pixels, _line(y), _line(x), _step(x), *_affine(conv), c)
    share(kernel, arguments, pieces=-(-b * h * w // pixels), updates=y.numel() * c // MACS, alive=(y, x, conv))
    return y


def gated_product(a: Tensor, b: Tensor, conv: Affine) -> Tensor:
    """A 1x1 convolution of ``silu(a) * b`` of two images whose pixels may lie apart."""
    from slicescan.ops.backends.cpu.pointwise_kernels import gated_product as kernel

    images, c, h, w = a.shape
    y = _image(a, conv[0].shape[0])
    pixels = _pixels(2 * c + y.shape[1])
    arguments = (pixels, *(_line(x) for x in (y, a, b)), _step(a), _step(b), *_affine(conv), c)
    updates = y.numel() * c // MACS + a.numel()
    share(kernel, arguments, pieces=-(-images * h * w // pixels), updates=updates, alive=(y, a, b, conv))
    return y


def around(x: Tensor, first: Affine, depthwise: Affine, last: Affine | None) -> Tensor:
    """A 1x1 convolution and a depth-wise 3x3 one of an image; with ``last``, gated by SiLU and convolved again.

    The image is dense. What lies between the convolutions is kept for three rows of a few columns only.
    """
    from slicescan.ops.backends.cpu.pointwise_kernels import around as kernel

    b, _, h, w = x.shape
    taps, shift = depthwise
    wide = taps.shape[0]
    y = _image(x, wide if last is None else last[0].shape[0])
    bands = -(-w // BAND)
    bands = min(bands + bands % 2, w)  # an even number, for few processors have an odd number of cores
    none = x.new_empty(0)
    laid = taps.detach().view(wide, 9).t().contiguous().view(-1).numpy()
    added = x.new_zeros(wide) if shift is None else shift.detach().contiguous()
    ends = _affine(first), _affine((none, None) if last is None else last)
    arguments = (bands, h, w, _line(y), _line(x), *ends[0], laid, added.numpy(), *ends[1])
    updates = x.numel() * wide // MACS + 2 * b * h * w * wide
    share(kernel, arguments, pieces=b * bands, updates=updates, alive=(y, x, first, depthwise, last))
    return y


def causal_silu(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str) -> Tensor:
    """SiLU of a causal convolution along the rows or columns of a map ``(b, h, w, c)`` whose pixels may lie apart."""
    from slicescan.ops.backends.cpu.causal_kernel import causal_silu as kernel

    _, h, w, c = x.shape
    y = x.new_empty(x.shape)
    pixels = _pixels(2 * c)
    stride, length = (1, w) if axis == "w" else (w, h)
    taps = weight.detach().t().contiguous().view(-1)
    added = x.new_zeros(c) if bias is None else bias.detach().contiguous()
    image = x.permute(0, 3, 1, 2)
    arguments = (pixels, y.view(-1).numpy(), _line(image), _step(image), stride, length, taps.numpy(), added.numpy())
    share(kernel, arguments, pieces=-(-y.numel() // (c * pixels)), updates=y.numel(), alive=(y, x, taps, added))
    return y


def _image(like: Tensor, channels: int) -> Tensor:
    b, _, h, w = like.shape
    return like.new_empty(b, h, w, channels).permute(0, 3, 1, 2)


def _pixels(numbers: int) -> int:
    """Pixels of a piece of work, if each has so many numbers: whole panels."""
    return max(4, PIECE // numbers // 4 * 4)


def _affine(conv: Affine) -> tuple[Any, Any]:
    weight, bias = (
        x.detach().contiguous().view(-1).numpy() for x in (conv[0], conv[0][:0] if conv[1] is None else conv[1])
    )
    return weight, bias


def _is_even(x: Tensor) -> bool:
    b, c, h, _ = x.stride()
    images, channels, rows, columns = x.shape
    step = _step(x)
    if c != 1 and channels > 1 or rows > 1 and h != columns * step:
        return False
    return images == 1 or b == rows * columns * step


def _step(x: Tensor) -> int:
    """Numbers from a pixel to the next; strides of axes of one pixel say nothing."""
    b, _, h, w = x.stride()
    images, channels, rows, columns = x.shape
    return w if columns > 1 else h if rows > 1 else b if images > 1 else channels


def _line(x: Tensor) -> Any:
    """All numbers from the first to the last of an image, those between its pixels too."""
    b, c, h, w = x.shape
    return x.detach().as_strided(((b * h * w - 1) * _step(x) + c,), (1,)).numpy()
