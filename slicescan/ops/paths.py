"""Image to sequences and back: the order in which a scan meets the positions of a map."""

import torch
from torch import Tensor

from slicescan.ops.call import ScanCall


def unroll(x: Tensor, call: ScanCall) -> Tensor:
    """Positions of a map in the order of the scan: ``(b, h, w, ...)`` to ``(l, s, ...)``, time first.

    ``s`` counts the slices of all images, or the images alone with ``carry``. A view where that is possible.
    """
    if call.axis == "h":
        x = x.transpose(1, 2)
    b, slices, length = x.shape[:3]
    if call.carry:
        x = x.reshape(b, 1, slices * length, *x.shape[3:])
    x = x.movedim(2, 0).flatten(1, 2)
    return x.flip(0) if call.reverse else x


def roll(x: Tensor, call: ScanCall) -> Tensor:
    """The inverse of :func:`unroll`: ``(l, s, ...)`` to ``(b, h, w, ...)``."""
    b, h, w = call.u.shape[:3]
    slices, length = (h, w) if call.axis == "w" else (w, h)
    if call.reverse:
        x = x.flip(0)
    if call.carry:
        x = x.movedim(0, 1).reshape(b, slices, length, *x.shape[2:])
    else:
        x = x.unflatten(1, (b, slices)).movedim(0, 2)
    return x.transpose(1, 2) if call.axis == "h" else x


def state_shape(call: ScanCall) -> tuple[int, int, int, int]:
    """Shape of the states of all sequences: ``(b, slices, d, n)``, with one slice for ``carry``."""
    b, h, w, d = call.u.shape
    return (b, 1 if call.carry else (h if call.axis == "w" else w), d, call.A.shape[1])


def initial_states(call: ScanCall) -> Tensor:
    """States before the first step, ``(b, slices, d, n)``, zero where the call has none; never shared with the call."""
    if call.initial_state is None:
        return call.A.new_zeros(state_shape(call))
    return call.initial_state.clone(memory_format=torch.contiguous_format)
