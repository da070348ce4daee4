"""Depth-wise causal convolution along the rows or columns of a channels-last map."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import is_final, transformed
from slicescan.ops.shapes import Axes


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: Literal["h", "w"], silu: bool = False
) -> Tensor:
    """Convolve every channel with the positions up to its own in its row or column; zeros lie before the first.

    ``y_t = bias + sum_j weight_j x_(t-k+1+j)``, ``j = 0 ... k-1``, then optionally ``silu``.

    Args:
        x: ``(b, h, w, d)``.
        weight: ``(d, k)``.
        bias: ``(d,)``.
        axis: ``"w"`` runs along each row, ``"h"`` along each column.
        silu: Apply SiLU to the result.

    Returns:
        ``(b, h, w, d)`` in the dtype of ``x``, or that of autocast.

    Raises:
        ValueError: Two arguments disagree on the channels or the device, there is no tap, or ``axis`` is neither.

    Source:
        Gu and Dao 2023 (Mamba), Figure 3, the convolution before the scan.

    Example:
        >>> causal_conv(torch.ones(1, 1, 4, 1), torch.ones(1, 3), axis="w").flatten()
        tensor([1., 2., 3., 3.])
    """
    if axis not in ("h", "w"):
        raise ValueError(f"causal_conv: axis must be 'h' or 'w', got {axis!r}")
    axes = Axes("causal_conv")
    axes.bind("x", x, "bhwd")
    axes.bind("weight", weight, "dk")
    if bias is not None:
        axes.bind("bias", bias, "d")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"causal_conv: {name} must be on {x.device} like x, got {tensor.device}")
    k = weight.shape[1]
    if k == 0:
        raise ValueError(f"causal_conv: weight must be (d, k) with k of 1 or more, got {tuple(weight.shape)}")
    if 0 in x.shape:  # nothing to convolve; gradients of zero flow into every argument
        return x * weight[:, 0] if bias is None else x * weight[:, 0] + bias
    plain = not torch.compiler.is_compiling() and transformed()
    if not plain and dispatch.has_fast_convolution(x.device, x.dtype, k):
        return dispatch.fast_convolution(x, weight, bias, axis, silu)
    if silu and x.is_cpu and is_final(*(weights := [x, weight] if bias is None else [x, weight, bias])):
        if all([t.dtype == x.dtype for t in weights]) and dispatch.has_cpu_products(x.permute(0, 3, 1, 2)):
            return dispatch.load("cpu.pointwise").causal_silu(x, weight, bias, axis)
    return _plain(x, weight, bias, axis, silu)


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, axis: Literal["h", "w"]) -> Tensor:
    """What :func:`causal_conv` with SiLU returns, in the dtype of ``x``, without checks and unrecorded."""
    if dispatch.has_fast_convolution(x.device, x.dtype, weight.shape[1]):
        return dispatch.load("cuda.conv").forward(x, weight, bias, axis, True)
    return _plain(x, *_cast(x, weight, bias), axis, True)


def conv_silu_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, axis: Literal["h", "w"], into: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``weight`` and bias of :func:`conv_silu`; that of ``x`` is written to ``into``, of any strides."""
    if dispatch.has_fast_convolution(x.device, x.dtype, weight.shape[1]):
        _, dweight, dbias = dispatch.load("cuda.conv").backward(x, weight, bias, grad_y, axis, True, into)
        return dweight, None if bias is None else dbias
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    with torch.enable_grad():
        y = _plain(leaves[0], *_cast(x, leaves[1], leaves[2] if bias is not None else None), axis, True)
    dx, dweight, *dbias = torch.autograd.grad(y, leaves, grad_y)
    into.copy_(dx)
    return dweight, dbias[0] if dbias else None


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str, silu: bool) -> Tensor:
    (d, k), image = weight.shape, x.permute(0, 3, 1, 2)  # b d h w
    if axis == "w":
        y = F.conv2d(image, weight[:, None, None, :], bias, padding=(0, k - 1), groups=d)[..., : x.shape[2]]
    else:
        y = F.conv2d(image, weight[:, None, :, None], bias, padding=(k - 1, 0), groups=d)[..., : x.shape[1], :]
    y = y.permute(0, 2, 3, 1)
    return F.silu(y) if silu else y
