"""Steps of low rank: backends that do not take them get them projected to one number a channel first.

A backend takes them itself if it has a function ``fuses_steps(call, direction) -> bool`` that says so for a pass,
``"forward"`` or ``"backward"``. For all others one matrix product comes before a pass, again before the backward one
instead of a map that is kept, and two come behind it.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops.call import ANYWHERE, Gradients, Places, ScanCall


def project(call: ScanCall) -> ScanCall:
    """The same call with one step a channel, rounded as a linear layer in the dtype of the maps rounds."""
    if call.delta_weight is None:
        return call
    steps = F.linear(call.delta, call.delta_weight.to(call.delta.dtype))
    return dataclasses.replace(call, delta=steps, delta_weight=None)


def forward(backend: Any, call: ScanCall, *, save: bool, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run a call on a backend: ``(y, last_state, saved)``; ``y`` is ``out``, if that is given."""
    call = call if _fused(backend, call, "forward") else project(call)
    if out is None:
        return backend.forward(call, save=save)
    if hasattr(backend, "forward_into"):
        return backend.forward_into(call, out, save=save)
    y, last, saved = backend.forward(call, save=save)
    return out.copy_(y), last, saved


def saved_spec(backend: Any, call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward pass saves, whether it projects first or not."""
    return backend.saved_spec(project(call))


def backward(
    backend: Any,
    call: ScanCall,
    saved: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
    into: Places = ANYWHERE,
) -> Gradients:
    """Gradients of every argument of a call, those named in ``into`` in their place there."""
    if call.delta_weight is None or _fused(backend, call, "backward"):
        return _backward(backend, call, saved, grad_y, grad_last, into)
    others = {name: place for name, place in into.items() if name != "delta"}
    grads = _backward(backend, project(call), saved, grad_y, grad_last, others)
    steps = grads.delta.flatten(0, 2)  # positions d
    low = (steps @ call.delta_weight.to(steps.dtype)).view(call.delta.shape)
    weight = steps.t() @ call.delta.flatten(0, 2)
    place = into["delta"] if "delta" in into else torch.empty_like(call.delta)
    return grads._replace(delta=place.copy_(low), delta_weight=weight.to(call.delta_weight.dtype))


def _backward(
    backend: Any, call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None, into: Places
) -> Gradients:
    if not into:
        return backend.backward(call, saved, grad_y, grad_last)
    if hasattr(backend, "backward_into"):
        return backend.backward_into(call, saved, grad_y, grad_last, into)
    grads = backend.backward(call, saved, grad_y, grad_last)
    return grads._replace(**{name: place.copy_(getattr(grads, name)) for name, place in into.items()})


def _fused(backend: Any, call: ScanCall, direction: str) -> bool:
    fuses = getattr(backend, "fuses_steps", None)
    return call.delta_weight is not None and fuses is not None and fuses(call, direction)
