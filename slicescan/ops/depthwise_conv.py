"""Depth-wise convolution of an image, and the gate that restoration networks put behind it."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import is_final, looked_at, side_by_side, watched
from slicescan.ops.shapes import Axes
from slicescan.ops.silu_gate import silu_gate

Gate = Literal["silu", "gelu", "linear"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "linear": lambda a: a}


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gate: Gate | None = None) -> Tensor:
    """Convolve every channel with its square neighbourhood; then one half of the channels may gate the other.

    ``a, b = halves(conv(x))``, ``y = activation(a) * b``. Zeros lie around the image. On an NVIDIA device, images with
    the channels of a pixel side by side and weights of 3x3 take one kernel, gate included, which keeps no map for the
    gradients but ``x``. On a CPU they do, in float32 and gated by SiLU, where nothing records gradients.

    Args:
        x: ``(b, c, h, w)``.
        weight: ``(c, 1, k, k)``, ``k`` odd.
        bias: ``(c,)``.
        gate: The activation of the first half, ``"linear"`` for none; None for a convolution without a gate.

    Returns:
        ``(b, c, h, w)``, gated ``(b, c / 2, h, w)``, in the dtype of ``x``, or that of autocast.

    Raises:
        ValueError: Two arguments disagree on the channels, ``k`` is even, ``gate`` is unknown, or ``c`` has no halves.

    Source:
        Zamir et al. 2022 (Restormer), Eq. 2, and Chen et al. 2022 (NAFNet), Eq. 4, from the convolution to the gate.

    Example:
        >>> depthwise_conv(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 3, 3), gate="linear")[0, 0]
        tensor([[16., 36., 16.],
                [36., 81., 36.],
                [16., 36., 16.]])
    """
    axes = Axes("depthwise_conv")
    axes.bind("x", x, "bchw")
    if weight.ndim != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
        raise ValueError(f"depthwise_conv: weight must be (c, 1, k, k) with an odd k, got {tuple(weight.shape)}")
    axes.bind("weight", weight.flatten(1), "ck")
    if bias is not None:
        axes.bind("bias", bias, "c")
    if gate is not None and gate not in ACTIVATIONS:
        raise ValueError(f"depthwise_conv: gate must be one of {', '.join(ACTIVATIONS)} or None, got {gate!r}")
    if gate is not None and x.shape[1] % 2:
        raise ValueError(f"depthwise_conv: a gate needs an even number of channels, got {tuple(x.shape)}")
    if weight.shape[2] == 3 and dispatch.has_fast_gate(x.device, x.dtype) and ordinary(x):
        return dispatch.fast_gate(x, weight, bias, gate)
    weights = (weight,) if bias is None else (weight, bias)
    if gate == "silu" and weight.shape[2] == 3 and is_final(x, *weights):
        if all([w.dtype == x.dtype for w in weights]) and dispatch.has_cpu_kernels(x):
            return dispatch.load("cpu.pixels").gated_conv(x, weight, bias)
    y = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=x.shape[1])
    if gate is None:
        return y
    a, b = y.chunk(2, 1)
    return silu_gate(a, b) if gate == "silu" else ACTIVATIONS[gate](a) * b


def conv_halves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """The two halves of the channels that :func:`depthwise_conv` makes without a gate.

    On a GPU that records no gradients each is a map of its own, so that either may be freed before the other.
    """
    apart = not torch.is_grad_enabled() and not looked_at() and weight.shape[2] == 3 and ordinary(x)
    if not apart or not dispatch.has_fast_gate(x.device, x.dtype):
        return list(depthwise_conv(x, weight, bias).chunk(2, 1))
    kernels, shifts = dispatch.load("cuda.gate"), (None, None) if bias is None else bias.chunk(2)
    parts = zip(x.chunk(2, 1), weight.chunk(2), shifts, strict=True)
    return [kernels.forward(half, taps, shift, "") for half, taps, shift in parts]


def ordinary(x: Tensor) -> bool:
    """Whether a call may become one operator: not for files, counters and transforms, which know PyTorch's only."""
    return side_by_side(x) and not watched()
