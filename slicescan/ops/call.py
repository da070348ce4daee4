"""One checked call of the scan: what every backend receives."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScanCall:
    """Arguments of :func:`slicescan.ops.slice_scan` after checking, in one normal form.

    Shapes: ``u``, ``delta``, ``z`` ``(b, h, w, d)`` of any strides; ``A`` ``(d, n)``; ``B`` and ``C``
    ``(b, h, w, g, n)``; ``D``, ``delta_bias`` ``(d,)``; ``initial_state`` ``(b, s, d, n)`` with ``s`` slices, or 1
    with ``carry``. With ``delta_weight``, ``(d, r)``, ``delta`` is ``(b, h, w, r)``, and the raw steps are
    ``delta @ delta_weight.T``; see ``slicescan.ops.low_rank`` for who meets such calls. Parameters (``A``, ``D``,
    ``delta_bias``, ``initial_state``, ``delta_weight``) are in the compute dtype: float64 if ``u`` is float64, float32
    otherwise. All tensors are on one device; ``delta``, ``z``, ``B``, ``C`` have the dtype of ``u``.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    initial_state: Tensor | None = None
    delta_weight: Tensor | None = None
    axis: Literal["h", "w"] = "w"
    reverse: bool = False
    carry: bool = False
    delta_softplus: bool = False


class Gradients(NamedTuple):
    """Gradients of one call, shaped and typed like its tensors; ``None`` where the call had ``None``."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    delta_weight: Tensor | None = None


Places = Mapping[str, Tensor]
"""Where some gradients of a call are to lie, by the names of :class:`Gradients`: of their shape, with any strides."""

ANYWHERE: Places = MappingProxyType({})


def empty_gradients(call: ScanCall, into: Places = ANYWHERE) -> Gradients:
    """Room for the gradients of a call but those that have a place; maps keep their memory order, others are dense."""

    def room(name: str) -> Any:
        tensor = getattr(call, name)
        if tensor is None or name in into:
            return into.get(name)
        return torch.empty_like(tensor) if name in _MAPS else tensor.new_empty(tensor.shape)

    return Gradients(*map(room, Gradients._fields))


_MAPS = ("u", "delta", "z")
