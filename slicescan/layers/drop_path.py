"""DropPath: leave out a residual branch of some images while training."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """While training, set all of an image to zero with a given probability, and scale the others up to make up for it.

    Args:
        rate: Probability, from 0 to below 1.

    Shape:
        ``(b, ...)`` to the same.

    Raises:
        ValueError: The rate is no such probability.

    Source:
        Huang et al. 2016 (Stochastic depth), Eq. 2; scaled while training, not while testing.

    Example:
        >>> DropPath(0.5).eval()(torch.ones(2, 1))
        tensor([[1.],
                [1.]])
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be from 0 to below 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop some of ``(b, ...)``."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        """The rate, for ``repr``."""
        return f"{self.rate:.3g}"
