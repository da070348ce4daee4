"""One checked call of the scan: what every backend receives."""

from dataclasses import dataclass
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


def empty_gradients(call: ScanCall) -> Gradients:
    """Room for the gradients of a call; maps keep their memory order, all others are dense."""

    def like(tensor: Tensor | None) -> Any:
        return None if tensor is None else torch.empty_like(tensor)

    def dense(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.new_empty(tensor.shape)

    return Gradients(like(call.u), like(call.delta), dense(call.A), dense(call.B), dense(call.C), dense(call.D),
                     like(call.z), dense(call.delta_bias), dense(call.initial_state),
                     dense(call.delta_weight))  # fmt: skip
