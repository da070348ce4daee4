"""The Mamba-1 block: parameters, initialisation, forward."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.hooks import apply_linear, is_plain
from slicescan.ops import causal_conv, dispatch, slice_scan
from slicescan.ops.library import autocast_dtype, looked_at, watched
from slicescan.ops.mamba import Weights, can_mix_by_hand, decay_rates, mixed_by_hand, scan_to

PIECE, PIECE_CUDA = 2**22, 2**26
"""Elements of an inner map that a device works on at once without gradients; more take memory and save no time."""

NARROW, HALVED = 32, 2**24
"""Inner channels, and elements of an inner map above which a GPU works on two halves at least.

Steps and mixes of such a map are wider than the map itself.
"""

KEPT, KEPT_WIDE = 10_000, 100_000
"""Pixels of a batch below which gradients keep the maps inside, in half precision and in float32.

Full float32 is slow to compute anew.
"""


class Past(NamedTuple):
    """What the sequences of a part of a map leave to the part behind it.

    Attributes:
        inputs: Last inputs of the causal convolution, ``(b, taps - 1, w, d)`` or ``(b, h, taps - 1, d)``.
        state: Last state of the scan, ``(b, slices, d, n)``.
    """

    inputs: Tensor
    state: Tensor

    def split(self, slices: int, across: int) -> list["Past"]:
        """The pasts of some slices at a time."""
        inputs, states = self.inputs.split(slices, across), self.state.split(slices, 1)
        return [Past(*parts) for parts in zip(inputs, states, strict=True)]

    @staticmethod
    def cat(pasts: "Sequence[Past]", across: int) -> "Past":
        """The inverse of :meth:`split`."""
        inputs, states = zip(*pasts, strict=True)
        return Past(torch.cat(inputs, across), torch.cat(states, 1))


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

    Attributes:
        recompute: Whether gradients of large maps on a GPU keep nothing but the input and compute the maps inside anew,
            which takes less memory in training and more arithmetic. True; set it to False to keep the maps.

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
        self.recompute = True
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
        if torch.compiler.is_compiling():  # no split: the number of pieces would fix the size of the map
            y = self._mixed(x, axis)
        else:
            pieces = [self._mixed(piece, axis) for piece in x.split(self._slices_at_once(x, along, across), across)]
            y = _joined(pieces, across)
        return y.flip(along) if reverse else y

    def projects_apart(self, x: Tensor) -> bool:
        """Whether others may project what the scan of a map makes: the last projection is but its weight.

        They call :meth:`add_scan` where gradients are recorded, :meth:`scan_to` where not.
        """
        if looked_at() or not is_plain(self, Mamba) or dispatch.requested(None) == "reference":
            return False
        if self.out_proj.bias is not None or not self._projects_plainly():
            return False
        return not torch.is_grad_enabled() or self._differentiates(x)

    def add_scan(self, x: Tensor, weight: Tensor, total: Tensor | None, *, axis: Literal["h", "w"]) -> Tensor:
        """Add to a map what :meth:`scan` makes with another last projection, recorded for gradients.

        Args:
            x: ``(b, h, w, dim)``.
            weight: ``(channels, inner)``, in place of that of ``out_proj``.
            total: Contiguous ``(b, h, w, channels)``, changed in place; None for a new map.
            axis: The axis that the sequences run along.

        Returns:
            ``(b, h, w, channels)``.
        """
        weights = self._weights()._replace(out_proj=weight)
        return mixed_by_hand(x, weights, axis, aligned=self._aligns(x), onto=total, keep=self._keeps(x))

    def scan_to(self, x: Tensor, out: Tensor, *, axis: Literal["h", "w"], project: bool = False) -> None:
        """Write what :meth:`scan` makes to a map, such as some channels of a wider one; nothing is recorded.

        Args:
            x: ``(b, h, w, dim)``.
            out: ``(b, h, w, inner)``, or ``(b, h, w, dim)`` with the last projection, in the dtype of the maps.
            axis: The axis that the sequences run along.
            project: Whether the last projection is applied.
        """
        slices = self._slices_at_once(x, *((1, 2) if axis == "h" else (2, 1)))
        scan_to(x, self._weights(), axis, out, aligned=self._aligns(x), slices=slices, project=project)

    def resume(self, x: Tensor, past: Past | None, *, axis: Literal["h", "w"]) -> tuple[Tensor, Past]:
        """Mix as :meth:`scan` does a part of a map whose sequences began in the parts before it.

        Args:
            x: ``(b, h, w, dim)``.
            past: What this method returned for the part before; None for the first.
            axis: The axis that the sequences run along, and that the map was cut across.

        Returns:
            ``(b, h, w, dim)``, and the past of the part behind.
        """
        along, across = (1, 2) if axis == "h" else (2, 1)
        slices = self._slices_at_once(x, along, across)
        parts = x.split(slices, across)
        pasts = past.split(slices, across) if past else [None] * len(parts)
        pieces, left = [], []
        for part, before in zip(parts, pasts, strict=True):
            y, inputs, state = self._scan(part, axis, before)
            kept = min(self.conv1d.kernel_size[0] - 1, inputs.shape[along])
            pieces.append(y)
            left.append(Past(inputs.narrow(along, inputs.shape[along] - kept, kept).clone(), state))
        return _joined(pieces, across), Past.cat(left, across)

    def _slices_at_once(self, x: Tensor, along: int, across: int) -> int:
        inner = x.shape[0] * x.shape[along] * x.shape[across] * self.D.numel()  # elements
        pieces = _pieces(x.device.type, inner, self.D.numel())
        if pieces == 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return max(1, x.shape[across])
        return -(-x.shape[across] // pieces)

    def _mixed(self, x: Tensor, axis: Literal["h", "w"]) -> Tensor:
        if self._differentiates(x):
            return mixed_by_hand(x, self._weights(), axis, aligned=self._aligns(x), keep=self._keeps(x))
        return self._scan(x, axis)[0]

    def _differentiates(self, x: Tensor) -> bool:
        """Whether gradients are those written by hand: a GPU records them, and projections are but their weights."""
        if not x.is_cuda or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return self._projects_plainly() and can_mix_by_hand(x, self._weights())

    def _keeps(self, x: Tensor) -> bool:
        """Whether gradients keep the maps inside instead of computing them anew."""
        kept = KEPT if (autocast_dtype(x) or x.dtype).itemsize == 2 else KEPT_WIDE
        return not self.recompute or x.numel() < kept * x.shape[-1]

    def _projects_plainly(self) -> bool:
        """Whether the projections are but their weights, as blocks of this kind have them."""
        plain = all([is_plain(p, nn.Linear) for p in (self.in_proj, self.x_proj, self.out_proj)])
        return plain and self.x_proj.bias is None

    def _weights(self) -> Weights:
        return Weights(
            self.in_proj.weight, self.in_proj.bias, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight,
            self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D, self.out_proj.weight, self.out_proj.bias,
        )  # fmt: skip

    def _scan(self, x: Tensor, axis: Literal["h", "w"], past: Past | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The output, the inputs of the convolution, and the last state."""
        y, inputs, last = self._inner(x, axis, past)
        return apply_linear(self.out_proj, y), inputs, last

    def _inner(self, x: Tensor, axis: Literal["h", "w"], past: Past | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the last projection is given, the inputs of the convolution, and the last state."""
        u, z = apply_linear(self.in_proj, x).chunk(2, -1)
        inputs = torch.cat([past.inputs, u], 1 if axis == "h" else 2) if past else u
        u = causal_conv(inputs, self.conv1d.weight[:, 0], self.conv1d.bias, axis=axis, silu=True)
        if past:
            along = 1 if axis == "h" else 2
            u = u.narrow(along, past.inputs.shape[along], z.shape[along])
        step, B, C = self._selection(u)
        y, last = slice_scan(
            u,
            step,
            decay_rates(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            axis=axis,
            initial_state=past.state if past else None,
            return_last_state=True,
            delta_softplus=True,
            delta_weight=self.dt_proj.weight,
        )
        return y, inputs, last

    def _selection(self, u: Tensor) -> tuple[Tensor, ...]:
        """``step``, ``B`` and ``C`` of every position."""
        if not self._aligns(u):
            return apply_linear(self.x_proj, u).split([self.dt_rank, self.state, self.state], -1)
        weight, gap = with_gap(self.x_proj.weight, self.dt_rank)
        step, _, B, C = F.linear(u, weight).split([self.dt_rank, gap, self.state, self.state], -1)
        return step, B, C

    def _aligns(self, u: Tensor) -> bool:
        """Whether each of the three begins at a multiple of 8 numbers, which a GPU reads and writes faster."""
        return u.is_cuda and not watched() and is_plain(self.x_proj, nn.Linear) and self.x_proj.bias is None

    def extra_repr(self) -> str:
        """Sizes that the submodules do not show, for ``repr``."""
        return f"state={self.state}, dt_rank={self.dt_rank}"


def _pieces(kind: str, elements: int, channels: int) -> int:
    """In how many pieces a kind of device works on an inner map."""
    if kind == "cpu":
        return -(-elements // PIECE) or 1
    if kind != "cuda":
        return 1
    return max(-(-elements // PIECE_CUDA), 2 if channels <= NARROW and elements > HALVED else 1)


def _joined(pieces: list[Tensor], across: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, across)


def with_gap(weight: Tensor, rank: int) -> tuple[Tensor, int]:
    """Matrices whose first ``rank`` rows make the steps, with rows of zeros behind those, and how many.

    What the rows behind make then begins at a multiple of 8 numbers, which a GPU reads and writes faster.
    """
    step, mixes = weight.split([rank, weight.shape[-2] - rank], -2)
    gap = -rank % 8
    return torch.cat([step, step.new_zeros(*step.shape[:-2], gap, step.shape[-1]), mixes], -2), gap


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
