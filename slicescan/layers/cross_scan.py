"""SS2D: the four-path scan of VMamba and MambaIR, and the variants of it that VMamba offers."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.hooks import is_plain, recomputes
from slicescan.layers.mamba import PIECE, decay_rates, log_decay, step_projection, with_gap
from slicescan.layers.memory_order import as_image, as_map, channels_last, ordered_like
from slicescan.layers.norm import LayerNorm2d
from slicescan.ops import slice_scan
from slicescan.ops.library import watched
from slicescan.ops.recompute import gated_projection
from slicescan.ops.silu_gate import silu_gate

Paths = Literal["cross2d", "unidi", "bidi", "cascade2d"]
Gate = Literal["silu", "linear", "none"]
OutNorm = Literal["layer", "none", "dwconv3", "cnorm", "softmax", "sigmoid"]
Init = Literal["v0", "v1", "v2"]

ROWS, COLUMNS, ROWS_BACK, COLUMNS_BACK = ("w", False), ("h", False), ("w", True), ("h", True)
PATHS: dict[str, tuple[tuple[Any, bool], ...]] = {
    "cross2d": (ROWS, COLUMNS, ROWS_BACK, COLUMNS_BACK),
    "cascade2d": (ROWS, COLUMNS, ROWS_BACK, COLUMNS_BACK),
    "unidi": (ROWS, ROWS, ROWS, ROWS),
    "bidi": (ROWS, ROWS, ROWS_BACK, ROWS_BACK),
}
"""Axis and direction of the four paths, in the order of their parameters."""


class SS2D(nn.Module):
    """Run four scans through the whole image: row after row, column after column, and both from the end.

    The state runs on from slice to slice, so that every pixel knows all pixels before it on each path. ::

        u, z = halves(in_proj(x)),  u = silu(conv2d(u))
        y = out_proj( out_norm( sum of the four scans of u ) * silu(z) )

    Each path has its own projections, decay rates and skip. The paths are scanned one after the other on one map and
    summed in place; on a CPU without gradients, step sizes and outputs exist for a band of slices only.

    Args:
        dim: Channels.
        state: Size of the state of each inner channel.
        expand: Inner channels relative to ``dim``.
        conv: Side of the depth-wise convolution, odd.
        dt_rank: Rank of the step projections, ``ceil(dim / 16)`` by default.
        conv_bias: Whether the depth-wise convolution has a bias.
        bias: Whether the first and last projection have a bias.
        paths: ``"cross2d"``; ``"unidi"``, four times the rows; ``"bidi"``, twice the rows and twice from the end; or
            ``"cascade2d"``: each row by itself in both directions, then each column of the result, a norm without
            parameters before either.
        gate: ``"silu"``; ``"linear"``, ``z`` as it is; or ``"none"``, and ``in_proj`` makes no ``z``.
        out_norm: ``"layer"``; ``"none"``; ``"dwconv3"``, a depth-wise 3x3 convolution; ``"cnorm"``, both; ``"softmax"``
            over the pixels; or ``"sigmoid"``.
        out_act: Whether a GELU follows the norm.
        init: ``"v0"``, as Mamba; ``"v1"`` and ``"v2"`` draw decay rates and step projections otherwise.

    Attributes:
        recompute: Whether gradients of large maps on a GPU compute the gated map anew instead of keeping it. True; set
            it to False to keep it.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Raises:
        ValueError: A choice is none of those listed.

    Source:
        Liu et al. 2024 (VMamba), section 4.2 and their code; Guo et al. 2024 (MambaIR), Eq. 5-8.

    Example:
        >>> SS2D(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
        >>> SS2D(8, state=1, gate="none", conv_bias=False)(torch.rand(1, 8, 3, 5)).shape  # as in VMamba's networks
        torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        expand: float = 2.0,
        conv: int = 3,
        dt_rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
        paths: Paths = "cross2d",
        gate: Gate = "silu",
        out_norm: OutNorm = "layer",
        out_act: bool = False,
        init: Init = "v0",
    ):
        super().__init__()
        for name, value, choices in (
            ("paths", paths, Paths), ("gate", gate, Gate), ("out_norm", out_norm, OutNorm), ("init", init, Init),
        ):  # fmt: skip
            if value not in get_args(choices):
                raise ValueError(f"{name} is one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
        self.recompute = True
        self.state, self.inner = state, int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.paths, self.gate, self.out_act = paths, gate, out_act
        self._add_scan(init)
        self.in_proj = nn.Linear(dim, self.inner if gate == "none" else 2 * self.inner, bias=bias)
        self.conv2d = nn.Conv2d(self.inner, self.inner, conv, padding=conv // 2, groups=self.inner, bias=conv_bias)
        self.out_norm = _out_norm(out_norm, self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=bias)
        self.register_load_state_dict_pre_hook(_flatten_projections)

    def _add_scan(self, init: Init) -> None:
        """The parameters of the four paths, stacked."""
        inner, four = self.inner, range(4)
        x_projs = [nn.Linear(inner, self.dt_rank + 2 * self.state, bias=False) for _ in four]
        self.x_proj_weight = nn.Parameter(torch.stack([proj.weight.detach() for proj in x_projs]))
        dt_projs = [step_projection(self.dt_rank, inner) for _ in four]
        self.dt_projs_weight = nn.Parameter(torch.stack([proj.weight.detach() for proj in dt_projs]))
        self.dt_projs_bias = nn.Parameter(torch.stack([proj.bias.detach() for proj in dt_projs]))
        self.A_logs = nn.Parameter(log_decay(4 * inner, self.state))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        if init != "v0":
            draw = torch.Tensor.normal_ if init == "v1" else torch.Tensor.uniform_
            with torch.no_grad():
                self.A_logs.normal_() if init == "v1" else self.A_logs.zero_()
                for steps in (self.dt_projs_weight, self.dt_projs_bias):
                    draw(steps).mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Scan ``(b, dim, h, w)``."""
        pixels = as_map(channels_last(x))
        # Nested, so that no map outlives its use.
        y = self._scan(as_map(F.silu(self.conv2d(as_image(self._project(pixels, 0))))))
        y = as_map(self.out_norm(as_image(y)))
        y = F.gelu(y) if self.out_act else y
        if self.gate == "silu" and self._computes_again(y):
            last = self.out_proj.weight[:, :, None, None], self.out_proj.bias
            return ordered_like(gated_projection(as_image(self._project(pixels, 1)), as_image(y), last), x)
        if self.gate == "silu" and y.is_cuda:  # the gate is made only now: it need not wait for the scans
            y = as_map(silu_gate(as_image(self._project(pixels, 1)), as_image(y)))
        elif self.gate != "none":
            y = y * (F.silu(self._project(pixels, 1)) if self.gate == "silu" else self._project(pixels, 1))
        return ordered_like(as_image(self.out_proj(y)), x)

    def _computes_again(self, y: Tensor) -> bool:
        """Whether gradients compute the gated map anew, as those of :class:`IntraVSSM` do."""
        return (
            self.recompute
            and is_plain(self.out_proj, nn.Linear)
            and recomputes([as_image(y), self.out_proj.weight], [])
        )

    def _project(self, pixels: Tensor, half: int) -> Tensor:
        """One half of what ``in_proj`` makes: 0 is scanned, 1 is the gate."""
        part, bias = slice(half * self.inner, (half + 1) * self.inner), self.in_proj.bias
        return F.linear(pixels, self.in_proj.weight[part], None if bias is None else bias[part])

    def _scan(self, u: Tensor) -> Tensor:
        """The sum of all paths, ``(b, h, w, inner)``."""
        if self.paths != "cascade2d":
            return self._sum(u, (0, 2, 1, 3), carry=True)
        for there_and_back in ((0, 2), (1, 3)):
            u = self._sum(F.layer_norm(u, u.shape[-1:]), there_and_back, carry=False)
        return u

    def _sum(self, u: Tensor, chosen: Sequence[int], *, carry: bool) -> Tensor:
        total, decay = None, decay_rates(self.A_logs)
        recorded = torch.is_grad_enabled()  # then the parts of all paths are kept, and their gradients joined
        made = self._selections(u, chosen) if recorded else {}
        for k in chosen:
            axis, reverse = PATHS[self.paths][k]
            across = 1 if axis == "w" else 2
            bands = _bands(u, across)
            if len(bands) == 1:
                selection = made.pop(k) if recorded else self._selections(u, [k])[k]
                total = _added(total, self._path(u, k, decay, carry, selection)[0])
                continue
            total = torch.zeros_like(u) if total is None else total
            last = None
            for place in reversed(bands) if reverse else bands:
                band = u.narrow(across, *place)
                y, last = self._path(band, k, decay, carry, self._selections(band, [k])[k], last if carry else None)
                total.narrow(across, *place).add_(y)
        assert total is not None
        return total

    def _selections(self, u: Tensor, chosen: Sequence[int]) -> dict[int, tuple[Tensor, ...]]:
        """``step``, ``B`` and ``C`` of each of some paths, by one product."""
        order = sorted(chosen)
        weight: Tensor = self.x_proj_weight
        weight = weight if len(order) == len(weight) else torch.stack([weight[k] for k in order])
        gap = 0
        if u.is_cuda and not watched():
            weight, gap = with_gap(weight, self.dt_rank)
        parts = F.linear(u, weight.flatten(0, 1)).split([self.dt_rank, gap, self.state, self.state] * len(order), -1)
        return {
            k: (parts[at], parts[at + 2], parts[at + 3]) for k, at in zip(order, range(0, len(parts), 4), strict=True)
        }

    def _path(
        self,
        u: Tensor,
        k: int,
        decay: Tensor,
        carry: bool,
        selection: tuple[Tensor, ...],
        initial: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        axis, reverse = PATHS[self.paths][k]
        channels = slice(k * self.inner, (k + 1) * self.inner)
        step, B, C = selection
        return slice_scan(
            u, step, decay[channels], B, C, self.Ds[channels],
            None, self.dt_projs_bias[k], axis=axis, reverse=reverse, carry=carry, delta_softplus=True,
            delta_weight=self.dt_projs_weight[k], initial_state=initial, return_last_state=True,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Sizes and choices that the submodules do not show, for ``repr``."""
        return f"state={self.state}, dt_rank={self.dt_rank}, paths={self.paths!r}, gate={self.gate!r}"


def _added(total: Tensor | None, y: Tensor) -> Tensor:
    return y if total is None else total.add_(y)


def _bands(u: Tensor, across: int) -> list[tuple[int, int]]:
    """First slices and widths of the bands that a CPU scans one after the other; one band if gradients are wanted."""
    slices = u.shape[across]
    if not u.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling() or u.numel() <= PIECE:
        return [(0, slices)]
    size = max(1, PIECE * slices // u.numel())
    return [(first, min(size, slices - first)) for first in range(0, slices, size)]


class _PixelSoftmax(nn.Module):
    """Softmax over the pixels of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).softmax(-1).view_as(x)


def _out_norm(kind: OutNorm, inner: int) -> nn.Module:
    def depthwise() -> nn.Conv2d:
        return nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)

    if kind == "cnorm":
        return nn.Sequential(LayerNorm2d(inner), depthwise())
    if kind == "dwconv3":
        return depthwise()
    plain = {"none": nn.Identity, "softmax": _PixelSoftmax, "sigmoid": nn.Sigmoid}
    return plain[kind]() if kind in plain else LayerNorm2d(inner)


def _flatten_projections(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
    """Some files keep the projections as 1x1 convolutions, ``(out, in, 1, 1)``."""
    for name in ("in_proj.weight", "out_proj.weight"):
        weight = state_dict.get(prefix + name)
        if weight is not None and weight.ndim == 4:
            state_dict[prefix + name] = weight.flatten(1)
