"""SS2D: the four-path scan of VMamba and MambaIR."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers.mamba import decay_rates, log_decay, step_projection
from slicescan.layers.memory_order import as_image, as_map, channels_last, ordered_like
from slicescan.ops import slice_scan

Path = tuple[Literal["h", "w"], bool]
PATHS: tuple[Path, ...] = (("w", False), ("h", False), ("w", True), ("h", True))


class SS2D(nn.Module):
    """Run four scans through the whole image: row after row, column after column, and both from the end.

    The state runs on from slice to slice, so that every pixel knows all pixels before it on each path. ::

        u, z = halves(in_proj(x)),  u = silu(conv2d(u))
        y = out_proj( out_norm( sum of the four scans of u ) * silu(z) )

    Each path has its own projections, decay rates and skip.

    Args:
        dim: Channels.
        state: Size of the state of each inner channel.
        expand: Inner channels relative to ``dim``.
        conv: Side of the depth-wise convolution, odd.
        dt_rank: Rank of the step projections, ``ceil(dim / 16)`` by default.

    Shape:
        ``(b, dim, h, w)`` to the same.

    Source:
        Liu et al. 2024 (VMamba), section 4.2; Guo et al. 2024 (MambaIR), Eq. 5-8.

    Example:
        >>> SS2D(8)(torch.rand(1, 8, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(self, dim: int, *, state: int = 16, expand: float = 2.0, conv: int = 3, dt_rank: int | None = None):
        super().__init__()
        inner = int(expand * dim)
        self.state = state
        self.dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, conv, padding=conv // 2, groups=inner)
        x_projs = [nn.Linear(inner, self.dt_rank + 2 * state, bias=False) for _ in PATHS]
        dt_projs = [step_projection(self.dt_rank, inner) for _ in PATHS]
        self.x_proj_weight = nn.Parameter(torch.stack([proj.weight.detach() for proj in x_projs]))
        self.dt_projs_weight = nn.Parameter(torch.stack([proj.weight.detach() for proj in dt_projs]))
        self.dt_projs_bias = nn.Parameter(torch.stack([proj.bias.detach() for proj in dt_projs]))
        self.A_logs = nn.Parameter(log_decay(len(PATHS) * inner, state))
        self.Ds = nn.Parameter(torch.ones(len(PATHS) * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scan ``(b, dim, h, w)``."""
        u, z = self.in_proj(as_map(channels_last(x))).chunk(2, -1)  # b h w d
        u = as_map(F.silu(self.conv2d(as_image(u))))
        y = self.out_norm(self._scan(u)) * F.silu(z)
        return ordered_like(as_image(self.out_proj(y)), x)

    def _scan(self, u: Tensor) -> Tensor:
        decay, skip = decay_rates(self.A_logs).chunk(len(PATHS)), self.Ds.chunk(len(PATHS))

        def path(k: int) -> Tensor:
            axis, reverse = PATHS[k]
            step, B, C = F.linear(u, self.x_proj_weight[k]).split([self.dt_rank, self.state, self.state], -1)
            delta, bias = F.linear(step, self.dt_projs_weight[k]), self.dt_projs_bias[k]
            return slice_scan(
                u, delta, decay[k], B, C, skip[k], None, bias,
                axis=axis, reverse=reverse, carry=True, delta_softplus=True,
            )  # fmt: skip

        return path(0) + path(2) + path(1) + path(3)

    def extra_repr(self) -> str:
        """Sizes that the submodules do not show, for ``repr``."""
        return f"state={self.state}, dt_rank={self.dt_rank}"
