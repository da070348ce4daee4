"""BidirectionalMamba: the mixer of Vision Mamba (Vim)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.mamba import Mamba, Past, decay_rates, log_decay
from slicescan.ops import causal_conv, slice_scan


class BidirectionalMamba(Mamba):
    """Two Mambas that share their first and last projection, one of them from the end of the sequence to its start.

    ::

        u, z = halves(in_proj(x))
        y = out_proj( (forward(u, z) + backward(u, z)) / 2 )

    Either direction is the convolution and the gated scan of :class:`Mamba`, with its own parameters.

    Args:
        dim: Channels.
        state: Size of the state of each inner channel.
        conv: Taps of the convolutions.
        expand: Inner channels relative to ``dim``.
        dt_rank: Rank of the step projections, ``ceil(dim / 16)`` by default.
        conv_bias: Whether the convolutions have a bias.
        bias: Whether the first and last projection have a bias.
        shared: Whether both directions share all parameters but the decay rates.
        divide: Whether the sum of the directions is halved.
        layer_scale: Where weights on the output, one a channel, start; None for no such weights.
        depth: Layers of the network; the last projection starts ``1 / sqrt(depth)`` as large.

    Shape:
        ``(b, l, dim)`` to the same.

    Source:
        Zhu et al. 2024 (Vision Mamba), Algorithm 1. Differs, as their code does: the sum is halved.

    Example:
        >>> BidirectionalMamba(8)(torch.rand(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        conv: int = 4,
        expand: float = 2,
        dt_rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
        shared: bool = False,
        divide: bool = True,
        layer_scale: float | None = None,
        depth: int = 1,
    ):
        super().__init__(dim, state=state, conv=conv, expand=expand, dt_rank=dt_rank, conv_bias=conv_bias, bias=bias)
        inner = self.D.numel()
        self.shared, self.divide = shared, divide
        self.A_b_log = nn.Parameter(log_decay(inner, state))
        if not shared:
            self.conv1d_b = nn.Conv1d(inner, inner, conv, padding=conv - 1, groups=inner, bias=conv_bias)
            self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * state, bias=False)
            self.dt_proj_b = nn.Linear(self.dt_rank, inner)
            self.D_b = nn.Parameter(torch.ones(inner))
            nn.init.zeros_(self.dt_proj_b.bias)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        with torch.no_grad():
            self.out_proj.weight.div_(depth**0.5)

    def resume(self, x: Tensor, past: Past | None, *, axis: Literal["h", "w"]) -> tuple[Tensor, Past]:
        """Not possible: the way back begins at the end."""
        raise NotImplementedError("BidirectionalMamba cannot resume a sequence: it needs the whole of it at once")

    def _mixed(self, x: Tensor, axis: Literal["h", "w"]) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        own = (self.conv1d, self.x_proj, self.dt_proj)
        other = own if self.shared else (self.conv1d_b, self.x_proj_b, self.dt_proj_b)
        y = self._one_way(u, z, *own, self.A_log, self.D, axis=axis, reverse=False)
        skip = self.D if self.shared else self.D_b
        y.add_(self._one_way(u, z, *other, self.A_b_log, skip, axis=axis, reverse=True))
        y = self.out_proj(y / 2 if self.divide else y)
        return y if self.gamma is None else y * self.gamma

    def _one_way(
        self,
        u: Tensor,
        z: Tensor,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        A_log: Tensor,
        D: Tensor,
        *,
        axis: Literal["h", "w"],
        reverse: bool,
    ) -> Tensor:
        taps = conv.weight[:, 0]
        if reverse:  # the same convolution mirrored: taps the other way round, and a result that looks ahead
            ahead = taps.shape[1] - 1
            padding = (0, 0, 0, ahead) if axis == "w" else (0, 0, 0, 0, 0, ahead)
            u = causal_conv(F.pad(u, padding), taps.flip(1), conv.bias, axis=axis, silu=True)
            u = u[:, :, ahead:] if axis == "w" else u[:, ahead:]
        else:
            u = causal_conv(u, taps, conv.bias, axis=axis, silu=True)
        step, B, C = x_proj(u).split([self.dt_rank, self.state, self.state], -1)
        return slice_scan(
            u, step, decay_rates(A_log), B, C, D, z, dt_proj.bias,
            axis=axis, reverse=reverse, delta_softplus=True, delta_weight=dt_proj.weight,
        )  # fmt: skip
