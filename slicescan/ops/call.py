"""One checked call of the scan: what every backend receives."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScanCall:
    """Arguments of :func:`slicescan.ops.slice_scan` after checking, in one normal form.

    Shapes: ``u``, ``delta``, ``z`` ``(b, h, w, d)`` of any strides; ``A`` ``(d, n)``; ``B`` and ``C``
    ``(b, h, w, g, n)``; ``D``, ``delta_bias`` ``(d,)``; ``initial_state`` ``(b, s, d, n)`` with ``s`` slices, or 1
    with ``carry``. Parameters (``A``, ``D``, ``delta_bias``, ``initial_state``) are in the compute dtype: float64 if
    ``u`` is float64, float32 otherwise. All tensors are on one device; ``delta``, ``z``, ``B``, ``C`` have the dtype of
    ``u``.
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
