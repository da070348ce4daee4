"""1x1 convolutions of an image, alone and with what restoration networks put before or between them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.depthwise_conv import depthwise_conv
from slicescan.ops.library import autocast_dtype, is_final, looked_at, side_by_side, watched
from slicescan.ops.silu_gate import silu_gate

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias of a convolution."""


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the channels of every pixel of ``(b, c, h, w)`` by a matrix, ``(o, c, 1, 1)``, and add ``(o,)``.

    On a CPU, float32 images with the channels of a pixel side by side take a kernel where nothing records gradients;
    their pixels may lie apart, as in some channels of a wider image. In half precision on a GPU such images are one
    matrix product; in float32 it stays the convolution, whose arithmetic users choose separately.

    Example:
        >>> pointwise_conv(torch.ones(1, 3, 1, 2), torch.ones(2, 3, 1, 1), torch.tensor([0.0, 1.0]))[0, :, 0]
        tensor([[3., 3.],
                [4., 4.]])
    """
    if _has_kernels([x], [(weight, bias)]) and _fits(x.shape[1], weight):
        return dispatch.load("cpu.pointwise").product(x, (weight, bias))
    return torch_pointwise_conv(x, weight, bias)


def torch_pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`pointwise_conv` by PyTorch's own kernels.

    Example:
        >>> torch_pointwise_conv(torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1)).item()
        3.0
    """
    if is_product(x, weight):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def is_product(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is run as a matrix product: a 1x1 one, in half precision on a GPU."""
    return x.ndim == 4 and side_by_side(x) and _halves_precision(x) and not watched() and _fits(x.shape[1], weight)


def adds_product(total: Tensor) -> bool:
    """Whether :func:`add_pointwise_conv` may add to a map, in half precision on a GPU that records no gradients."""
    if torch.is_grad_enabled() or looked_at() or not _halves_precision(total):
        return False
    return total.dtype.itemsize == 2 and total.is_contiguous(memory_format=torch.channels_last)


def add_pointwise_conv(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add a 1x1 convolution of ``x`` to a map in its place, which saves the passes of a sum.

    Args:
        total: ``(b, o, h, w)``, with the channels of a pixel side by side.
        x: ``(b, c, h, w)`` in the dtype of ``total``.
        weight: ``(o, c, 1, 1)``.

    Example:
        >>> total = torch.ones(1, 2, 1, 2)
        >>> add_pointwise_conv(total, torch.ones(1, 3, 1, 2), torch.ones(2, 3, 1, 1))
        >>> total.flatten()
        tensor([4., 4., 4., 4.])
    """
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
    total.permute(0, 2, 3, 1).view(-1, total.shape[1]).addmm_(pixels, weight.to(x.dtype).flatten(1).t())


def _halves_precision(x: Tensor) -> bool:
    """Whether products with ``x`` are in half precision, on a GPU."""
    return x.is_cuda and (autocast_dtype(x) or x.dtype).itemsize == 2


def pointwise_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What :func:`torch.nn.functional.linear` makes of a map ``(b, h, w, c)``; on a CPU by the kernel above.

    Example:
        >>> pointwise_linear(torch.ones(1, 1, 1, 3), torch.ones(2, 3))
        tensor([[[[3., 3.]]]])
    """
    if x.is_cpu and x.ndim == 4:
        image, conv = x.permute(0, 3, 1, 2), (weight[:, :, None, None], bias)
        if _has_kernels([image], [conv]) and _fits(x.shape[3], conv[0]):
            return dispatch.load("cpu.pointwise").product(image, conv).permute(0, 2, 3, 1)
    return F.linear(x, weight, bias)


def gated_pointwise_conv(gate: Tensor, x: Tensor, conv: Affine) -> Tensor:
    """A 1x1 convolution of ``silu(gate) * x``, for two images of one shape; on a CPU in one pass, as above.

    Example:
        >>> gate, x = torch.full((1, 1, 1, 1), 50.0), torch.full((1, 1, 1, 1), 3.0)
        >>> gated_pointwise_conv(gate, x, (torch.ones(1, 1, 1, 1), None)).item()
        150.0
    """
    if gate.shape == x.shape and _has_kernels([gate, x], [conv]) and _fits(x.shape[1], conv[0]):
        return dispatch.load("cpu.pointwise").gated_product(gate, x, conv)
    return pointwise_conv(silu_gate(gate, x), *conv)


def widened_conv(x: Tensor, first: Affine, around: Affine, last: Affine | None = None) -> Tensor:
    """``dwconv(conv(x))`` of a 1x1 and a depth-wise 3x3 convolution; with ``last``, gated by SiLU and convolved again.

    ``a, b = halves(dwconv(conv(x)))``, ``y = last(silu(a) * b)``. On a CPU, in float32 and where nothing records
    gradients, dense images with the channels of a pixel side by side take one pass, and the wide maps never exist.

    Args:
        x: ``(b, c, h, w)``.
        first: Weight ``(o, c, 1, 1)`` and bias ``(o,)``.
        around: Weight ``(o, 1, 3, 3)`` and bias.
        last: Weight ``(p, o / 2, 1, 1)`` and bias.

    Returns:
        ``(b, o, h, w)``, or ``(b, p, h, w)``.

    Example:
        >>> one = torch.ones(2, 1, 1, 1), None
        >>> widened_conv(torch.ones(1, 1, 3, 3), one, (torch.ones(2, 1, 3, 3), None))[0, 0]
        tensor([[4., 6., 4.],
                [6., 9., 6.],
                [4., 6., 4.]])
    """
    convs = [first, around] if last is None else [first, around, last]
    if x.is_contiguous(memory_format=torch.channels_last) and _has_kernels([x], convs):
        wide = first[0].shape[0]
        taps, ends = around[0].shape == (wide, 1, 3, 3), last is None or (wide % 2 == 0 and _fits(wide // 2, last[0]))
        if _fits(x.shape[1], first[0]) and taps and ends:
            return dispatch.load("cpu.pointwise").around(x, first, around, last)
    y = pointwise_conv(x, *first)
    if last is None:
        return depthwise_conv(y, *around)
    return pointwise_conv(depthwise_conv(y, *around, gate="silu"), *last)


def _has_kernels(images: list[Tensor], convs: list[Affine]) -> bool:
    first, weights = images[0], [t for conv in convs for t in conv if t is not None]
    if not first.is_cpu or not is_final(*images, *weights) or any([t.dtype != first.dtype for t in weights]):
        return False
    return dispatch.has_cpu_products(*images)


def _fits(channels: int, weight: Tensor) -> bool:
    return weight.shape[1:] == (channels, 1, 1) and weight.shape[0] > 0
