"""Hypothesis strategies: they draw shapes, layouts, flags and a seed, never numbers.

- :class:`Scan` says everything about a call of ``slice_scan`` but its numbers; ``arguments(device)`` makes those.
- :func:`scans` draws one; keywords fix what a test needs: ``scans(dtype=torch.bfloat16, carry=False)``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = ("dense", "planes", "turned", "cut", "spread")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


@dataclass(frozen=True)
class Scan:
    """A call of ``slice_scan``: steps from 1e-4 to 20 and decay rates from 0.05 to 16, far from any initialisation.

    ``rank`` is that of the steps, if it is low. ``layout`` is how maps lie in memory: ``dense`` in the order of their
    axes, ``planes`` permuted from (b, d, h, w), ``turned`` from (b, w, h, d), ``cut`` out of wider tensors with ``B``
    and ``C`` side by side, ``spread`` with one row of ``delta`` and ``z`` expanded over all rows and every other
    channel of ``u``.
    """

    b: int = 2
    h: int = 3
    w: int = 5
    d: int = 6
    n: int = 4
    groups: int | None = None
    rank: int | None = None
    axis: str = "w"
    reverse: bool = False
    carry: bool = False
    delta_softplus: bool = True
    without: tuple[str, ...] = ()
    layout: str = "dense"
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    seed: int = 0

    def replace(self, **changes: Any) -> "Scan":
        return dataclasses.replace(self, **changes)

    def arguments(self, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Keyword arguments of ``slice_scan``: maps in ``dtype``, parameters and states in the compute dtype."""
        generator = torch.Generator().manual_seed(self.seed)
        wide = torch.promote_types(self.dtype, torch.float32)
        slices = self.h if self.axis == "w" else self.w
        states = (self.b, self.d, self.n) if self.carry else (self.b, slices, self.d, self.n)
        mixes = (self.n,) if self.groups is None else (self.groups, self.n)

        def uniform(*shape: int, low: float, high: float) -> Tensor:  # in the logarithm
            return (math.log(low) + torch.rand(shape, generator=generator) * math.log(high / low)).exp()

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        maps = (self.b, self.h, self.w)
        steps = uniform(*maps, self.d, low=1e-4, high=20.0)
        bias = normal(self.d)
        delta = (steps + (-torch.expm1(-steps)).log() if self.delta_softplus else steps) - (
            bias if "delta_bias" not in self.without and self.delta_softplus else 0
        )
        if self.rank is not None:
            low, weight = normal(*maps, self.rank), normal(self.d, self.rank)
            delta = 2 * low * self.rank**-0.5 if self.delta_softplus else low.abs()
            weight = weight if self.delta_softplus else weight.abs()
        tensors = {
            "u": self.scale * normal(*maps, self.d),
            "delta": delta,
            "A": -uniform(self.d, self.n, low=0.05, high=16.0),
            "B": normal(*maps, *mixes),
            "C": normal(*maps, *mixes),
            "D": normal(self.d),
            "z": normal(*maps, self.d),
            "delta_bias": bias if self.delta_softplus else 0.01 * bias.abs(),
            "initial_state": self.scale * normal(*states),
        } | ({} if self.rank is None else {"delta_weight": weight})
        kinds = dict.fromkeys(("u", "delta", "B", "C", "z"), self.dtype)
        tensors = {name: x.to(device, kinds.get(name, wide)) for name, x in tensors.items() if name not in self.without}
        flags = {name: getattr(self, name) for name in ("axis", "reverse", "carry", "delta_softplus")}
        return self._laid(tensors) | flags

    def _laid(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = [name for name in ("u", "delta", "z", "B", "C") if name in tensors]
        laid = dict(tensors)
        if self.layout == "planes":
            laid |= {name: tensors[name].movedim(-1, 1).contiguous().movedim(1, -1) for name in maps}
        elif self.layout == "turned":
            laid |= {name: tensors[name].transpose(1, 2).contiguous().transpose(1, 2) for name in maps}
        elif self.layout == "cut":
            for first, second in (("u", "delta"), ("B", "C")):
                pair = tensors[first], tensors[second]
                laid[first], laid[second] = torch.cat(pair, -1).split([x.shape[-1] for x in pair], -1)
        elif self.layout == "spread":
            laid["u"] = torch.stack([tensors["u"]] * 2, -1)[..., 0]
            laid |= {x: tensors[x][:, :1].expand_as(tensors[x]) for x in ("delta", "z") if x in tensors and self.h}
        return laid


@st.composite
def scans(
    draw: st.DrawFn,
    *,
    longest: int = 9,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    ranks: tuple[int | None, ...] = (None,),
    **fixed: Any,
) -> Scan:
    """A :class:`Scan` with any layout and flags, sizes from 0 to ``longest``; ``fixed`` are fields to keep."""
    carry = fixed.get("carry", draw(st.booleans()))
    groups, per_group = draw(st.sampled_from([(None, 1), (None, 3), (None, 8), (1, 5), (2, 1), (3, 2)]))
    sizes = st.sampled_from([0, 1, 2, 3, 5, 8, longest])
    found = Scan(
        b=draw(st.sampled_from([1, 2, 3, 0])),
        h=draw(sizes),
        w=draw(sizes),
        d=per_group * (groups or 1),
        n=draw(st.sampled_from([1, 4, 5, 16])),
        groups=groups,
        rank=draw(st.sampled_from(ranks)),
        axis=draw(st.sampled_from("hw")),
        reverse=draw(st.booleans()),
        carry=carry,
        delta_softplus=draw(st.booleans()),
        without=tuple(draw(st.sets(st.sampled_from(OPTIONAL)).map(sorted))),
        layout=draw(st.sampled_from(LAYOUTS)),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**16)),
    )
    return found.replace(**fixed)
