"""The 3x3 depth-wise convolution of restoration blocks, with the gate behind it."""

from torch import Tensor, nn

from slicescan.ops import depthwise_conv
from slicescan.ops.depthwise_conv import Gate


class DepthwiseConv2d(nn.Conv2d):
    """Convolve every channel with its 3x3 neighbourhood; then one half of the channels may gate the other.

    A ``Conv2d`` in its parameters, hooks and ``repr``; its work is :func:`slicescan.ops.depthwise_conv`, which is one
    kernel where the device has it.

    Args:
        dim: Channels.
        bias: Whether each channel has a bias.
        gate: The activation of the first half, ``"linear"`` for none; None for a convolution without a gate.

    Shape:
        ``(b, dim, h, w)`` to the same, gated to ``(b, dim / 2, h, w)``.

    Example:
        >>> import torch
        >>> DepthwiseConv2d(8, gate="silu")(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 4, 3, 5])
    """

    def __init__(self, dim: int, *, bias: bool = True, gate: Gate | None = None):
        super().__init__(dim, dim, 3, padding=1, groups=dim, bias=bias)
        self.gate: Gate | None = gate

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(b, dim, h, w)``, and gate."""
        return depthwise_conv(x, self.weight, self.bias, gate=self.gate)
