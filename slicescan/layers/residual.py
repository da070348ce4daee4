"""A map that one residual branch after another adds to."""

from collections.abc import Iterable
from typing import Protocol, Self, TypeGuard, cast

from torch import Tensor, nn

from slicescan.layers.hooks import is_plain
from slicescan.layers.norm import BiasFreeNorm2d, LayerNorm2d, add_and_norm

Branch = tuple[nn.Module, nn.Module]
"""A norm, and the layer behind it."""


class Adding(Protocol):
    """A layer whose last product can add to a map instead of making one."""

    def adds_to(self, total: Tensor) -> bool:
        """Whether a call may be :meth:`add_to`: what it saves is there, and nobody sees the difference."""

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add to ``total`` what the layer makes of ``x``; nothing is recorded for gradients."""


class Residual:
    """``x = x + layer(norm(x))`` for one branch after another, in as few passes over the map as may be.

    What a layer made waits for the next norm, which takes one pass together with the sum. Where the map is nobody
    else's, a layer that can adds to it itself.

    Args:
        x: ``(b, c, h, w)``, left as it is.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 4, 2, 3)
        >>> norm = nn.BatchNorm2d(4)
        >>> torch.equal(Residual(x).refined([(norm, nn.Tanh())]).total(), x + norm(x).tanh())
        True
    """

    def __init__(self, x: Tensor):
        self._terms, self._own = [x], False

    def refined(self, branches: Iterable[Branch]) -> Self:
        """Add branches, in order."""
        for norm, layer in branches:
            normed = self._normed(norm)
            if self._own and _adds(layer, self._terms[0]):
                layer.add_to(self._terms[0], normed)
            else:
                self._terms.append(layer(normed))
        return self

    def total(self) -> Tensor:
        """The map, which is let go."""
        terms, self._terms = self._terms, []
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def _normed(self, norm: nn.Module) -> Tensor:
        if len(self._terms) == 1:
            return norm(self._terms[0])
        branch, x = self._terms.pop(), self._terms.pop()
        x, normed = add_and_norm(x, branch, norm)
        self._terms, self._own = [x], _keeps_nothing(norm)
        return normed


def _adds(layer: nn.Module, total: Tensor) -> TypeGuard[Adding]:
    return hasattr(layer, "adds_to") and cast(Adding, layer).adds_to(total)


def _keeps_nothing(norm: nn.Module) -> bool:
    """Whether a norm of :func:`~slicescan.layers.norm.with_body` is known to leave its input to the caller."""
    body = getattr(norm, "body", None)
    return is_plain(norm, nn.Sequential) and (is_plain(body, LayerNorm2d) or is_plain(body, BiasFreeNorm2d))
