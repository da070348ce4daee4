"""The Mamba-1 block: parameters, initialisation, forward."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.ops import causal_conv, slice_scan

PIECE = 2**22
"""Elements of an inner map that a CPU works on at once without gradients; larger pieces take memory, save no time."""


class Mamba(nn.Module):
    """Mix a sequence by a causal convolution and a selective scan, gated by a second projection of the input.

    ::

        u, z = halves(in_proj(x))
        u = silu(causal_conv(u))
        step, B, C = split(x_proj(u))
        h_t = exp(Delta_t A) h_(t-1) + Delta_t B_t u_t,  Delta = softplus(dt_proj(step)),  A = -exp(A_log)
        y = out_proj( (C_t h_t + D u_t) * silu(z_t) )

    No normalisation and no residual. Loads the state dict of ``mamba_ssm.Mamba``.

    Args:
        dim: Channels.
        state: Size of the state of each inner channel.
        conv: Taps of the causal convolution.
        expand: Inner channels relative to ``dim``.
        dt_rank: Rank of the step projection, ``ceil(dim / 16)`` by default.
        conv_bias: Whether the causal convolution has a bias.
        bias: Whether the first and last projection have a bias.

    Shape:
        ``(b, l, dim)`` to the same.

    Source:
        Gu and Dao 2023 (Mamba), Figure 3 and Algorithm 2. Differs, as their code does: the input takes an Euler step,
        ``Delta B``.

    Example:
        >>> Mamba(8)(torch.rand(1, 5, 8)).shape
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
    ):
        super().__init__()
        inner = int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.state = state
        self.in_proj = nn.Linear(dim, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, conv, padding=conv - 1, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * state, bias=False)
        self.dt_proj = step_projection(self.dt_rank, inner)
        self.A_log = nn.Parameter(log_decay(inner, state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix ``(b, l, dim)`` along ``l``."""
        return self.scan(x[:, None], axis="w")[:, 0]

    def scan(self, x: Tensor, *, axis: Literal["h", "w"], reverse: bool = False) -> Tensor:
        """Mix every row (``axis="w"``) or every column (``"h"``) of a map by itself.

        Args:
            x: ``(b, h, w, dim)``.
            axis: The axis that the sequences run along.
            reverse: Whether they run from the last position to the first, convolution and scan alike.

        Returns:
            ``(b, h, w, dim)``.
        """
        along, across = (1, 2) if axis == "h" else (2, 1)
        if reverse:  # two copies of the narrow map cost less than one of an inner one
            x = x.flip(along)
        slices = x.shape[across]
        if x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            slices = max(1, PIECE // max(1, x.shape[0] * x.shape[along] * self.D.numel()))
        pieces = [self._scan(piece, axis) for piece in x.split(slices, across)]
        y = pieces[0] if len(pieces) == 1 else torch.cat(pieces, across)
        return y.flip(along) if reverse else y

    def _scan(self, x: Tensor, axis: Literal["h", "w"]) -> Tensor:
        u, z = self.in_proj(x).chunk(2, -1)
        u = causal_conv(u, self.conv1d.weight[:, 0], self.conv1d.bias, axis=axis, silu=True)
        step, B, C = self.x_proj(u).split([self.dt_rank, self.state, self.state], -1)
        y = slice_scan(
            u,
            F.linear(step, self.dt_proj.weight),
            decay_rates(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            axis=axis,
            delta_softplus=True,
        )
        return self.out_proj(y)

    def extra_repr(self) -> str:
        """Sizes that the submodules do not show, for ``repr``."""
        return f"state={self.state}, dt_rank={self.dt_rank}"


def decay_rates(A_log: Tensor) -> Tensor:
    """``A = -exp(A_log)`` in float32 or wider, whatever dtype the module was cast to."""
    return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())


def log_decay(channels: int, state: int) -> Tensor:
    """``A_log`` at initialisation, ``(channels, state)``: ``log(1), ..., log(state)`` for every channel."""
    return torch.log(torch.arange(1, state + 1)).repeat(channels, 1)


def step_projection(rank: int, channels: int) -> nn.Linear:
    """A linear layer whose bias gives step sizes ``softplus(bias)`` from 1e-3 to 0.1, uniform in their logarithm."""
    proj = nn.Linear(rank, channels)
    low, high = math.log(0.001), math.log(0.1)
    with torch.no_grad():
        nn.init.uniform_(proj.weight, -(rank**-0.5), rank**-0.5)
        step = torch.exp(torch.rand(channels) * (high - low) + low).clamp(min=1e-4)
        proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
    return proj
