"""The residual blocks of MambaIR: a four-path scan and channel attention, and groups of such blocks."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slicescan.layers.channel_attention import CAB
from slicescan.layers.cross_scan import SS2D
from slicescan.layers.drop_path import DropPath
from slicescan.layers.norm import LayerNorm2d


class VSSBlock(nn.Module):
    """Scan the image, then convolve and weigh its channels; each residual has a weight for every channel.

    ``x = skip_scale * x + ss2d(ln_1(x))``, ``x = skip_scale2 * x + cab(ln_2(x))``.

    Args:
        dim: Channels.
        state: Size of the state of each inner channel of the scan.
        expand: Inner channels of the scan relative to ``dim``.
        light: Whether the channel attention block is the light one, see :class:`CAB`.
        drop_path: How often the scan is left out for an image while training.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Guo et al. 2024 (MambaIR), Eq. 3-4, the residual state-space block.

    Example:
        >>> VSSBlock(32, expand=1.2)(torch.rand(1, 32, 3, 5)).shape
        torch.Size([1, 32, 3, 5])
    """

    def __init__(self, dim: int, *, state: int = 16, expand: float = 2.0, light: bool = False, drop_path: float = 0.0):
        super().__init__()
        self.ln_1 = LayerNorm2d(dim)
        self.self_attention = SS2D(dim, state=state, expand=expand)
        self.drop_path = DropPath(drop_path)
        self.skip_scale = nn.Parameter(torch.ones(dim))
        self.conv_blk = CAB(dim, light=light)
        self.ln_2 = LayerNorm2d(dim)
        self.skip_scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``(b, dim, h, w)``."""
        x = _scaled_sum(x, self.skip_scale, self.drop_path(self.self_attention(self.ln_1(x))))
        return _scaled_sum(x, self.skip_scale2, self.conv_blk(self.ln_2(x)))


def _scaled_sum(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
    """``scale x + branch`` in the dtype of the maps; with that of the scale autocast would make float32 of them."""
    return torch.addcmul(branch, x, scale.to(x.dtype)[:, None, None])


class ResidualGroup(nn.Module):
    """A row of blocks and a convolution, around which the input goes by.

    ``y = x + conv(blocks(x))``.

    Args:
        dim: Channels.
        blocks: The blocks, each ``(b, dim, h, w)`` to the same.
        convs: ``"1conv"``, or ``"3conv"``: 3x3, 1x1 and 3x3 through ``dim // 4`` channels.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Guo et al. 2024 (MambaIR), Figure 2, the residual state-space group.

    Example:
        >>> ResidualGroup(8, [VSSBlock(8), VSSBlock(8)])(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, blocks: Sequence[nn.Module], *, convs: Literal["1conv", "3conv"] = "1conv"):
        super().__init__()
        if convs not in ("1conv", "3conv"):
            raise ValueError(f"convs is '1conv' or '3conv', got {convs!r}")
        self.residual_group = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))
        self.conv: nn.Module = nn.Conv2d(dim, dim, 3, padding=1)
        if convs == "3conv":
            inner = max(1, dim // 4)
            self.conv = nn.Sequential(
                nn.Conv2d(dim, inner, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(inner, inner, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(inner, dim, 3, padding=1),
            )

    def forward(self, x: Tensor, run: Callable[[Any, Tensor], Tensor] | None = None) -> Tensor:
        """Refine ``(b, dim, h, w)``; ``run(blocks, x)`` may say how the blocks are gone through."""
        blocks = self.residual_group[0]
        return x + self.conv(blocks(x) if run is None else run(blocks, x))
