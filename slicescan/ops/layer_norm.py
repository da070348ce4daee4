"""Layer norm over the channels of each pixel, alone or of the sum that a residual branch makes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.ops import dispatch
from slicescan.ops.depthwise_conv import ordinary
from slicescan.ops.library import is_final, side_by_side
from slicescan.ops.shapes import Axes


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Give the channels of every pixel mean 0 and variance 1, then scale and shift them.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and biased variance over the channels, in float32 or
    wider. Images with the channels of a pixel side by side take one kernel on an NVIDIA device, and on a CPU where
    nothing records gradients.

    Args:
        x: ``(b, c, h, w)``.
        weight: ``(c,)``.
        bias: ``(c,)``.
        eps: Added to the variance.

    Returns:
        ``(b, c, h, w)`` in the dtype of ``x``, with the channels of a pixel side by side. A map in the dtype of
        autocast stays in it.

    Raises:
        ValueError: Two arguments disagree on the channels.

    Source:
        Ba, Kiros and Hinton 2016, Eq. 4, on the channel axis.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> layer_norm(x, torch.ones(2), torch.zeros(2), eps=0).flatten()
        tensor([-1.,  1.])
    """
    if _fast(x, weight, bias):
        return dispatch.fast_norm(x, None, weight, bias, eps)[1]
    axes = Axes("layer_norm")
    axes.bind("x", x, "bchw")
    _bind(axes, weight, bias)
    if _final(weight, bias, x):
        return dispatch.load("cpu.pixels").norm(x, None, weight, bias, eps)[1]
    return _composed(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Add what a residual branch made, and norm the sum: ``s = x + branch``, ``y = layer_norm(s)``.

    Where :func:`layer_norm` takes one kernel, both take one together, and one for the gradients.

    Args:
        x: ``(b, c, h, w)``.
        branch: Like ``x``.
        weight: ``(c,)``.
        bias: ``(c,)``.
        eps: Added to the variance.

    Returns:
        ``s`` and ``y``, as the two operations return them.

    Raises:
        ValueError: Two arguments disagree on an axis.

    Source:
        Ba, Kiros and Hinton 2016, Eq. 4, on the channel axis, behind the residual sum of a block that norms first.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
        >>> s, y = add_layer_norm(x, x, torch.ones(2), torch.zeros(2), eps=0)
        >>> s.flatten(), y.flatten()
        (tensor([2., 6.]), tensor([-1.,  1.]))
    """
    if _fast(x, weight, bias) and _alike(x, branch):
        return dispatch.fast_norm(x, branch, weight, bias, eps)
    axes = Axes("add_layer_norm")
    axes.bind("x", x, "bchw")
    axes.bind("branch", branch, "bchw")
    _bind(axes, weight, bias)
    if _final(weight, bias, x, branch):
        return dispatch.load("cpu.pixels").norm(x, branch, weight, bias, eps)
    s = x + branch
    return s, _composed(s, weight, bias, eps)


def _bind(axes: Axes, weight: Tensor, bias: Tensor) -> None:
    axes.bind("weight", weight, "c")
    axes.bind("bias", bias, "c")


def _final(weight: Tensor, bias: Tensor, *images: Tensor) -> bool:
    """Whether a CPU has the kernel for a call of which nobody keeps a record."""
    alike = weight.dtype == bias.dtype == images[0].dtype
    return alike and is_final(*images, weight, bias) and dispatch.has_cpu_kernels(*images)


def _fast(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the device has the kernel for a call, and nobody looks at its operations."""
    if x.ndim != 4 or weight.shape != (x.shape[1],) or bias.shape != weight.shape:
        return False
    if not dispatch.has_fast_norm(x.device, x.dtype, weight.dtype, x.shape[1]) or not ordinary(x):
        return False
    if bias.dtype != weight.dtype or weight.device != x.device or bias.device != x.device:
        return False
    if not (_plain(x) and _plain(weight) and _plain(bias) and weight.is_contiguous() and bias.is_contiguous()):
        return False
    return x.dtype == torch.float32 or _halved_by_autocast(x) or not torch.is_autocast_enabled(x.device.type)


def _plain(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) or torch.compiler.is_compiling()


def _alike(x: Tensor, branch: Tensor) -> bool:
    return (
        branch.shape == x.shape
        and branch.dtype == x.dtype
        and branch.device == x.device
        and side_by_side(branch)
        and _plain(branch)
    )


def _composed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if _halved_by_autocast(x):
        with torch.autocast(x.device.type, enabled=False):
            return _normed(x, weight.to(x.dtype), bias.to(x.dtype), eps)
    return _normed(x, weight, bias, eps)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps).permute(0, 3, 1, 2)


def _halved_by_autocast(x: Tensor) -> bool:
    """Whether a map came out of autocast, which would have its norm in float32: three passes over it instead of one.

    Mean and variance are float32 inside either way.
    """
    kind = x.device.type
    return not x.is_meta and torch.is_autocast_enabled(kind) and x.dtype == torch.get_autocast_dtype(kind)
