"""A gate without an activation."""

from torch import Tensor, nn


class SimpleGate(nn.Module):
    """Multiply one half of the channels by the other.

    Shape:
        ``(b, c, h, w)`` with an even ``c`` to ``(b, c / 2, h, w)``.

    Source:
        Chen et al. 2022 (NAFNet), Eq. 4.

    Example:
        >>> import torch
        >>> SimpleGate()(torch.tensor([2.0, 5.0]).view(1, 2, 1, 1)).item()
        10.0
    """

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``(b, c, h, w)``."""
        if x.shape[1] % 2:
            raise ValueError(f"SimpleGate needs an even number of channels, got {tuple(x.shape)}")
        a, b = x.chunk(2, 1)
        return a * b

    def extra_repr(self) -> str:
        """It works at any width, for ``repr``."""
        return "half by half"
