"""Channel attention, and the convolutional block around it that MambaIR puts beside its scans."""

from torch import Tensor, nn

from slicescan.layers.memory_order import ordered_like


class ChannelAttention(nn.Module):
    """Weigh every channel by a gate made from the means of all channels.

    ``y = x * sigmoid(expand(relu(squeeze(mean(x)))))``, the mean over the pixels.

    Args:
        dim: Channels.
        squeeze: Channels are narrowed by this factor in between, to one at least.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Zhang et al. 2018 (RCAN), Eq. 7-10.

    Example:
        >>> import torch
        >>> ChannelAttention(8, squeeze=4)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, squeeze: int = 16):
        super().__init__()
        inner = max(1, dim // squeeze)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, inner, 1), nn.ReLU(), nn.Conv2d(inner, dim, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weigh ``(b, dim, h, w)``."""
        return x * self.attention(x)


class CAB(nn.Module):
    """Convolve through a bottleneck, then weigh the channels: what gives MambaIR back the pixel's neighbourhood.

    ``y = attention(conv3x3(gelu(conv3x3(x))))``; the light form has ``dwconv(conv1x1(.))`` in place of either 3x3
    convolution, the second one dilated by 2.

    Args:
        dim: Channels.
        light: Whether to take depth-wise convolutions, through ``dim // 2`` channels instead of ``dim // 3``.
        squeeze: Of the attention, see :class:`ChannelAttention`.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Guo et al. 2024 (MambaIR), section 3.3; the light form is in their code.

    Example:
        >>> import torch
        >>> CAB(30)(torch.rand(1, 30, 3, 5)).shape
        torch.Size([1, 30, 3, 5])
    """

    def __init__(self, dim: int, *, light: bool = False, squeeze: int = 30):
        super().__init__()
        inner = max(1, dim // (2 if light else 3))
        attention = ChannelAttention(dim, squeeze=squeeze)
        if light:
            self.cab = nn.Sequential(
                nn.Conv2d(dim, inner, 1),
                nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
                nn.GELU(),
                nn.Conv2d(inner, dim, 1),
                nn.Conv2d(dim, dim, 3, padding=2, groups=dim, dilation=2),
                attention,
            )
        else:
            self.cab = nn.Sequential(
                nn.Conv2d(dim, inner, 3, padding=1), nn.GELU(), nn.Conv2d(inner, dim, 3, padding=1), attention
            )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and weigh ``(b, dim, h, w)``."""
        return ordered_like(self.cab(x), x)
