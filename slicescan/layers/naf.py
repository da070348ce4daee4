"""The block of NAFNet: convolutions, gates and channel attention, without activation functions."""

import torch
from torch import Tensor, nn

from slicescan.layers.depthwise import DepthwiseConv2d
from slicescan.layers.local_mean import LocalMean2d
from slicescan.layers.norm import LayerNorm2d
from slicescan.layers.simple_gate import SimpleGate


class SimpleChannelAttention(nn.Sequential):
    """Scale every channel by a linear function of the means of all channels: ``y = x * conv1x1(mean(x))``.

    Args:
        dim: Channels.
        window: Side of the window of the means; None for the whole map, see
            :class:`~slicescan.layers.local_mean.LocalMean2d`.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Chen et al. 2022 (NAFNet), Eq. 6.

    Example:
        >>> SimpleChannelAttention(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, window: int | None = None):
        super().__init__(LocalMean2d(window), nn.Conv2d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(b, dim, h, w)``."""
        return x * super().forward(x)


class NAFBlock(nn.Module):
    """Look at the neighbourhood and at the means of all channels, then mix channels; gates instead of activations.

    ::

        y = x + beta  * conv3(sca(gate(conv2(conv1(norm1(x))))))     conv2: 3x3, a channel by itself; the others: 1x1
        z = y + gamma * conv5(gate(conv4(norm2(y))))

    ``beta`` and ``gamma``, one number for each channel, start at zero: a fresh block returns its input.

    Args:
        dim: Channels.
        expand: Width before the first gate relative to ``dim``.
        ffn_expand: Width before the second gate relative to ``dim``.
        window: Side of the window of the means; None for the whole map.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Raises:
        ValueError: A gated width is odd.

    Source:
        Chen et al. 2022 (NAFNet), Figure 3c.

    Example:
        >>> x = torch.rand(1, 8, 3, 5)
        >>> torch.equal(NAFBlock(8)(x), x)
        True
    """

    def __init__(self, dim: int, *, expand: float = 2.0, ffn_expand: float = 2.0, window: int | None = None):
        super().__init__()
        wide, ffn_wide = int(dim * expand), int(dim * ffn_expand)
        for name, width in (("expand", wide), ("ffn_expand", ffn_wide)):
            if width < 2 or width % 2:
                raise ValueError(f"dim * {name} must be even, for a gate of two halves, got {width}")
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.conv1 = nn.Conv2d(dim, wide, 1)
        self.conv2 = DepthwiseConv2d(wide, gate="linear")
        self.conv3 = nn.Conv2d(wide // 2, dim, 1)
        self.sca = SimpleChannelAttention(wide // 2, window=window)
        self.sg = SimpleGate()
        self.conv4 = nn.Conv2d(dim, ffn_wide, 1)
        self.conv5 = nn.Conv2d(ffn_wide // 2, dim, 1)
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.norm2 = LayerNorm2d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(b, dim, h, w)``."""
        y = x + self.beta * self.conv3(self.sca(self.conv2(self.conv1(self.norm1(x)))))
        return y + self.gamma * self.conv5(self.sg(self.conv4(self.norm2(y))))
