"""Feed-forward layers that see a 3x3 neighbourhood."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.depthwise import DepthwiseConv2d
from slicescan.layers.hooks import are_weights, is_bare_product, is_plain, recomputes
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.ops.depthwise_conv import Gate
from slicescan.ops.pointwise_conv import Affine, add_pointwise_conv, adds_product, widened_conv
from slicescan.ops.recompute import gated_feed_forward

GATES: dict[Callable[[Tensor], Tensor], Gate] = {F.silu: "silu", F.gelu: "gelu"}
"""Activations that the operator has."""


class GatedDconvFFN(nn.Module):
    """Widen, look at the 3x3 neighbourhood, let one half of the channels gate the other, and narrow again.

    ``a, b = halves(dwconv(project_in(x)))``, ``y = project_out(activation(a) * b)``.

    Args:
        dim: Channels.
        expand: Width of one half relative to ``dim``, rounded down.
        bias: Whether the three convolutions have a bias.
        activation: Applied to the gating half. Restormer has GELU here.

    Attributes:
        recompute: Whether gradients of large maps on a GPU compute the inside anew instead of keeping its maps, where
            the activation is SiLU or GELU. True; set it to False to keep them.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Zamir et al. 2022 (Restormer), Eq. 2. Differs: SiLU and no widening by default, as in XYScanNet.

    Example:
        >>> import torch
        >>> GatedDconvFFN(8, expand=2.66)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    reach = 1

    def __init__(
        self, dim: int, *, expand: float = 1.0, bias: bool = False, activation: Callable[[Tensor], Tensor] = F.silu
    ):
        super().__init__()
        inner = int(dim * expand)
        self.recompute = True
        self.activation = activation
        self.project_in = PointwiseConv2d(dim, 2 * inner, bias=bias)
        self.dwconv = DepthwiseConv2d(2 * inner, bias=bias, gate=GATES.get(activation))
        self.project_out = PointwiseConv2d(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(b, dim, h, w)``."""
        if self._computes_again(x):
            return gated_feed_forward(x, *self._affine(), GATES[self.activation])
        if self._takes_one_pass(x):
            return widened_conv(x, *self._affine())
        return self.project_out(self._gated(x))

    def adds_to(self, total: Tensor) -> bool:
        """Whether a call may be :meth:`add_to`, which saves passes over the map."""
        return adds_product(total) and is_plain(self, GatedDconvFFN) and is_bare_product(self.project_out)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add to a map, in its place, what the layer makes of ``x``; nothing is recorded for gradients."""
        add_pointwise_conv(total, self._gated(x), self.project_out.weight)

    def _gated(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.project_in(x))
        if self.activation in GATES:
            return x
        a, b = x.chunk(2, 1)
        return self.activation(a) * b

    def _computes_again(self, x: Tensor) -> bool:
        known = self.recompute and self.activation in GATES
        return known and recomputes([x], [self.project_in, self.project_out], self.dwconv)

    def _affine(self) -> tuple[Affine, Affine, Affine]:
        """Weights and biases of the three convolutions."""
        first, around, last = self.project_in, self.dwconv, self.project_out
        return (first.weight, first.bias), (around.weight, around.bias), (last.weight, last.bias)

    def _takes_one_pass(self, x: Tensor) -> bool:
        plain = x.is_cpu and self.activation is F.silu
        return plain and are_weights([self.project_in, self.project_out], self.dwconv)

    def extra_repr(self) -> str:
        """What gates, for ``repr``; the sizes are those of the convolutions."""
        return f"activation={getattr(self.activation, '__name__', self.activation)}"
