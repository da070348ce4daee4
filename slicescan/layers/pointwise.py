"""The 1x1 convolution of restoration blocks."""

from torch import Tensor, nn

from slicescan.ops.pointwise_conv import pointwise_conv


class PointwiseConv2d(nn.Conv2d):
    """Multiply the channels of every pixel by a matrix.

    A ``Conv2d`` in its parameters, hooks and ``repr``; its work is :func:`slicescan.ops.pointwise_conv.pointwise_conv`.

    Args:
        dim: Channels.
        out_dim: Channels of the output.
        bias: Whether each of those has a bias.

    Shape:
        ``(b, dim, h, w)`` to ``(b, out_dim, h, w)``.

    Example:
        >>> import torch
        >>> PointwiseConv2d(8, 2)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 2, 3, 5])
    """

    def __init__(self, dim: int, out_dim: int, *, bias: bool = True):
        super().__init__(dim, out_dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(b, dim, h, w)``."""
        return pointwise_conv(x, self.weight, self.bias)
