"""The scan on the CPU: loops that numba compiles at first use, vectorised over channels and shared out to threads."""

import importlib
import importlib.util
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slicescan.ops.backends.cpu.plan import (
    COMPUTED,
    DELTA,
    GRAD_B,
    GRAD_C,
    GRAD_DELTA,
    GRAD_U,
    GRAD_Y,
    GRAD_Z,
    B,
    C,
    Plan,
    U,
    Y,
    Z,
    plan_of,
    table,
)
from slicescan.ops.backends.cpu.threads import share
from slicescan.ops.call import Gradients, ScanCall, empty_gradients
from slicescan.ops.paths import initial_states, state_shape

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def why_not(call: ScanCall) -> str | None:
    """Say in one sentence why the kernels cannot run a call, or None if they can."""
    if call.u.device.type != "cpu":
        return f"needs tensors on the CPU, got {call.u.device.type}"
    if call.u.dtype not in _DTYPES:
        return f"takes no {str(call.u.dtype).removeprefix('torch.')}; use backend='torch'"
    return numba_missing()


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan: ``(y, last_state, saved)``, where ``saved`` holds the state before every chunk but the first."""
    plan = plan_of(call)
    shape, dtype = _saved_spec(call, plan)
    y = torch.empty_like(call.u)
    saved = call.u.new_empty(shape if save else (0,), dtype=dtype)
    if not call.u.numel():
        return y, initial_states(call), saved
    from slicescan.ops.backends.cpu.kernels import scan_forward

    last = call.A.new_empty(state_shape(call))
    maps = _maps(call) | {Y: y}
    places = table(call, plan, maps)
    first, final = _states(call, plan, call.initial_state), _states(call, plan, last)
    arguments = (plan.sizes, places, *_parameters(call, plan), first, final, _array(saved, *shape))
    pieces, updates = plan.sequences * plan.parts, call.u.numel() * plan.n
    share(scan_forward, arguments, pieces=pieces, updates=updates, alive=maps)
    return y, last, saved


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward pass saves: ``(sequence, chunk, n, d)``."""
    return _saved_spec(call, plan_of(call))


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument, summed in a fixed order."""
    plan = plan_of(call)
    grads = empty_gradients(call)
    if not call.u.numel():
        for gradient in grads:
            if gradient is not None:
                gradient.zero_()
        if grads.initial_state is not None and grad_last is not None:
            grads.initial_state.copy_(grad_last)
        return grads
    from slicescan.ops.backends.cpu.kernels import scan_backward

    direct = plan.span > 1 or plan.in_group == 1  # else several pieces of work add to one gradient of B and C
    grad_B, grad_C = (x if direct else call.A.new_empty(plan.in_group, *x.shape) for x in (grads.B, grads.C))
    maps = _maps(call) | {GRAD_Y: grad_y.to(call.u.dtype), GRAD_U: grads.u, GRAD_DELTA: grads.delta}
    maps |= {GRAD_B: grad_B, GRAD_C: grad_C} if direct else {GRAD_B: grad_B[0], GRAD_C: grad_C[0]}
    if grads.z is not None:
        maps[GRAD_Z] = grads.z
    places = table(call, plan, maps, None if direct else {GRAD_B: grad_B.stride(0), GRAD_C: grad_C.stride(0)})
    sums = call.A.new_zeros(plan.teams, plan.n + 2, plan.d, dtype=torch.float64)
    first, last, grad_first = (_states(call, plan, x) for x in (call.initial_state, grad_last, grads.initial_state))
    kept = _array(saved, *_saved_spec(call, plan)[0])
    kind = plan.kind if direct else COMPUTED
    arguments = (plan.sizes, places, *_parameters(call, plan), first, kept, last, grad_first, sums.numpy(), kind)
    pieces, updates = plan.teams * plan.parts, 3 * call.u.numel() * plan.n
    share(scan_backward, arguments, pieces=pieces, updates=updates, alive=maps)
    if not direct:
        grads.B.copy_(_total(grad_B))
        grads.C.copy_(_total(grad_C))
    totals = _total(sums)
    grads.A.copy_(totals[: plan.n].t())
    for gradient, total in ((grads.D, totals[plan.n]), (grads.delta_bias, totals[plan.n + 1])):
        if gradient is not None:
            gradient.copy_(total)
    return grads


def _saved_spec(call: ScanCall, plan: Plan) -> tuple[tuple[int, ...], torch.dtype]:
    return (plan.sequences, plan.checkpoints, plan.n, plan.d), call.A.dtype


def _maps(call: ScanCall) -> dict[int, Tensor]:
    maps = {U: call.u, DELTA: call.delta, B: call.B, C: call.C}
    return maps if call.z is None else maps | {Z: call.z}


def _parameters(call: ScanCall, plan: Plan) -> tuple[Any, Any]:
    """Decay rates, ``(block, n, channel)``, and ``D`` and ``delta_bias``, ``(2, block, channel)``, padded."""
    padded = np.zeros((plan.n + 2, plan.groups, plan.in_group * plan.width), call.A.detach().numpy().dtype)
    target = padded[..., : plan.per_group]
    target[: plan.n] = call.A.detach().numpy().T.reshape(plan.n, plan.groups, plan.per_group)
    for k, vector in enumerate((call.D, call.delta_bias)):
        if vector is not None:
            target[plan.n + k] = vector.detach().numpy().reshape(plan.groups, plan.per_group)
    blocks = padded.reshape(plan.n + 2, plan.blocks, plan.width)
    return np.ascontiguousarray(blocks[: plan.n].transpose(1, 0, 2)), blocks[plan.n :]


def _states(call: ScanCall, plan: Plan, states: Tensor | None) -> Any:
    return _array(call.A.new_empty(0) if states is None else states, plan.sequences, plan.d, plan.n)


def _array(x: Tensor, *shape: int) -> Any:
    """A tensor as a dense array of a shape, or an empty one of as many axes."""
    return x.detach().contiguous().view(shape if x.numel() else [0] * len(shape)).numpy()


def _total(x: Tensor) -> Tensor:
    """The sum over the first axis, in its order whatever the number of threads."""
    return torch.from_numpy(x.numpy().sum(0))


@cache
def numba_missing() -> str | None:
    """Say in one sentence why numba cannot be imported, or None if it can."""
    if importlib.util.find_spec("numba") is None:
        return "needs numba: pip install numba"
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"numba does not load ({error}): pip install --upgrade numba"
    return None
