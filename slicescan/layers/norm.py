"""Normalisation over the channels of each pixel."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.memory_order import as_image, as_map, ordered_like


class LayerNorm2d(nn.Module):
    """Give the channels of every pixel mean 0 and variance 1, then scale and shift them.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and biased variance over the channels.

    Args:
        dim: Channels.
        eps: Added to the variance.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Ba, Kiros and Hinton 2016, Eq. 4, on the channel axis.

    Example:
        >>> y = LayerNorm2d(8)(torch.rand(1, 8, 3, 5))
        >>> y.mean(1).abs().max().item() < 1e-5
        True
    """

    def __init__(self, dim: int, *, eps: float = 1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(b, dim, h, w)``."""
        if _halved_by_autocast(x):
            with torch.autocast(x.device.type, enabled=False):
                y = self._normalised(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
        else:
            y = self._normalised(x, self.weight, self.bias)
        return ordered_like(y, x)

    def _normalised(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return as_image(F.layer_norm(as_map(x), (self.dim,), weight, bias, self.eps))

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.dim}, eps={self.eps}"


class BiasFreeNorm2d(nn.Module):
    """Divide the channels of every pixel by their standard deviation, then scale them; the mean stays in.

    ``y = x / sqrt(var + eps) * weight``, biased variance about the mean.

    Args:
        dim: Channels.
        eps: Added to the variance.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Zamir et al. 2022 (Restormer), the bias-free norm of their code.

    Example:
        >>> BiasFreeNorm2d(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, eps: float = 1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(b, dim, h, w)``."""
        wide = x if x.dtype == torch.float64 else x.float()  # squares leave the range of float16
        centred = wide - wide.mean(1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        return x * scale.to(x.dtype) * self.weight[:, None, None].to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.dim}, eps={self.eps}"


def _halved_by_autocast(x: Tensor) -> bool:
    """Whether a map came out of autocast, which would have its norm in float32: three passes over it instead of one.

    Mean and variance are float32 inside either way.
    """
    kind = x.device.type
    return not x.is_meta and torch.is_autocast_enabled(kind) and x.dtype == torch.get_autocast_dtype(kind)


def with_body(norm: nn.Module) -> nn.Sequential:
    """``norm`` under the name that published restoration networks give it: ``norm1.body.weight``.

    Shape:
        That of ``norm``, ``(b, c, h, w)`` to the same.

    Source:
        State dicts of Restormer (arXiv 2111.09881) and of the networks after it.

    Example:
        >>> list(with_body(LayerNorm2d(4)).state_dict())
        ['body.weight', 'body.bias']
    """
    return nn.Sequential(OrderedDict(body=norm))
