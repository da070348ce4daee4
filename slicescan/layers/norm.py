"""Normalisation over the channels of each pixel."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from slicescan.layers.hooks import is_plain
from slicescan.layers.memory_order import ordered_like
from slicescan.ops import add_layer_norm, layer_norm


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
        return ordered_like(layer_norm(x, self.weight, self.bias, eps=self.eps), x)

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


def add_and_norm(x: Tensor, branch: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``s = x + branch`` and ``norm(s)``, in one kernel where the device has it.

    A norm whose call does more than its ``forward``, for a hook looks at it, is called.

    Args:
        x: ``(b, c, h, w)``.
        branch: Like ``x``.
        norm: What :func:`with_body` made of a norm; only :class:`LayerNorm2d` becomes one with the sum.

    Example:
        >>> x = torch.rand(1, 4, 2, 3)
        >>> s, y = add_and_norm(x, x, norm := with_body(LayerNorm2d(4)))
        >>> torch.equal(s, 2 * x), torch.equal(y, norm(s))
        (True, True)
    """
    body = getattr(norm, "body", None)
    if is_plain(body, LayerNorm2d) and is_plain(norm, nn.Sequential):
        s, y = add_layer_norm(x, branch, body.weight, body.bias, eps=body.eps)
        return s, ordered_like(y, s)
    s = x + branch
    return s, norm(s)
