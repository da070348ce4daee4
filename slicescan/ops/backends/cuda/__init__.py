"""The scan in CUDA C++, compiled at first use: one lane a channel, sums over channels by the tensor cores, no atomics.

Long sequences that are too few to fill the device are cut into chunks: a first kernel finds what every chunk does to a
state, a second chains the chunks, and then all of them run side by side as sequences do.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from slicescan.ops.backends.cuda import conv, driver
from slicescan.ops.backends.cuda.plan import (
    KINDS,
    TILE_STEPS,
    Part,
    Placed,
    Plan,
    fuses_steps,
    keeps_y,
    plan_of,
    sequence_shape,
    states_per_lane,
)
from slicescan.ops.call import ANYWHERE, Gradients, Places, ScanCall, empty_gradients
from slicescan.ops.paths import initial_states, state_shape

__all__ = ["backward", "backward_into", "conv", "forward", "forward_into", "fuses_steps", "saved_spec", "why_not"]
MAX_STATES = 64
_SLAB_ROWS = 512  # rows of the parameter sums that a block adds up
_NOTHING = [0] * 5


def why_not(call: ScanCall) -> str | None:
    """Say in one sentence why the kernels cannot run a call, or None if they can."""
    device = call.u.device
    if device.type != "cuda":
        return f"needs CUDA tensors, got {device.type}"
    if call.u.dtype not in KINDS:
        return f"computes in float32, so it takes no {str(call.u.dtype).removeprefix('torch.')}; use backend='torch'"
    if call.A.shape[1] > MAX_STATES:
        return f"holds at most {MAX_STATES} states a channel, got {call.A.shape[1]}; use backend='triton'"
    return driver.lacking(device)


def saved_spec(call: ScanCall) -> tuple[tuple[int], torch.dtype]:
    """Shape and dtype of what the forward pass saves: the states before every tile of steps, then y before its gate."""
    sequences, length = sequence_shape(call)
    nl, ns = states_per_lane(call.A.shape[1])
    dtype = torch.bfloat16 if call.u.dtype == torch.bfloat16 else torch.float32
    states = sequences * -(-length // TILE_STEPS[call.u.dtype]) * call.u.shape[3] * nl * ns
    return (states + (call.u.numel() if keeps_y(call) else 0),), dtype


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan: ``(y, last_state, saved)``."""
    return forward_into(call, torch.empty_like(call.u), save=save)


def forward_into(call: ScanCall, y: Tensor, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`forward` returns, ``y`` in the map that is given, of any strides."""
    shape, dtype = saved_spec(call)
    saved = call.u.new_empty(shape, dtype=dtype) if save else call.A.new_empty(0)
    if call.u.numel() == 0:
        return y, initial_states(call), saved
    last = call.A.new_empty(state_shape(call))
    maps: list[Placed] = [call.u, call.delta, y] if call.z is None else [call.u, call.delta, y, call.z]
    maps += _kept(call, saved) if save else []
    mixes = [call.B, call.C]
    plan = plan_of(call, "forward", maps, mixes)
    u, delta, out, *more = _located(plan, maps)
    z, kept = [*more, _NOTHING, _NOTHING][:2]
    B, C = _located(plan, mixes, len(maps))
    A = call.A.contiguous()
    D, bias, first = map(_plain, (call.D, call.delta_bias, call.initial_state))
    weight = _laid_weight(call, plan, turned=False)
    if plan.chunks > 1:
        first = _enter_chunks(call, plan, (u, delta, _NOTHING, B, C), A, bias, weight, first, back=False)
    words = [*plan.size(plan.channel_warps), *u, *delta, *z, *out, *kept, *B, *C]
    words += [*map(_address, (A, D, bias, first, last, saved, weight))]
    _launch_warps(call, plan.forward_warps, plan.forward[save], words)
    return y, last, saved


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument, summed in a fixed order."""
    return backward_into(call, saved, grad_y, grad_last, ANYWHERE)


def backward_into(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None, into: Places) -> Gradients:
    """What :func:`backward` returns, those named in ``into`` in their place there."""
    grads = empty_gradients(call, into)
    if call.u.numel() == 0:
        for gradient in grads:
            if gradient is not None:
                gradient.zero_()
        if grads.initial_state is not None and grad_last is not None:
            grads.initial_state.copy_(grad_last)
        return grads
    maps: list[Placed] = [call.u, call.delta, grad_y, grads.u, grads.delta]
    if call.z is not None and grads.z is not None:
        maps += [call.z, grads.z, *_kept(call, saved)]
    mixes = [call.B, call.C, grads.B, grads.C]
    plan = plan_of(call, "backward", maps, mixes)
    u, delta, dy, du, ddelta, *gate = _located(plan, maps)
    z, dz, kept = [*gate, _NOTHING, _NOTHING, _NOTHING][:3]
    B, C, dB, dC = _located(plan, mixes, len(maps))
    A = call.A.contiguous()
    D, bias, last = map(_plain, (call.D, call.delta_bias, grad_last))
    weight = _laid_weight(call, plan, turned=True)
    if plan.chunks > 1:
        last = _enter_chunks(call, plan, (dy, delta, z, B, C), A, bias, weight, last, back=True)
    blocks = -(-plan.channel_warps * 32 // plan.backward.threads)
    sums = plan.groups * blocks * plan.unit_groups * plan.packed * plan.tiles * plan.macros["TS"] * plan.row
    mixing = call.A.new_empty(sums) if blocks > 1 else None
    d, n = call.A.shape
    params = call.A.new_empty((plan.unit_groups, d * (n + 2 + plan.macros["RANK"])))
    size = plan.size(blocks, call.initial_state is not None)
    words = [*size, *u, *delta, *z, *dy, *du, *ddelta, *dz, *kept, *B, *C, *dB, *dC]
    words += [*map(_address, (A, D, bias, last, grads.initial_state, mixing, params, saved, weight))]
    driver.launch(call.u.device.index, plan.backward, plan.unit_groups * plan.groups * blocks, words)
    _finish(call, plan, [*size, *dB, *dC, *ddelta, _address(mixing)], mixing is not None, params, grads)
    return grads


def _kept(call: ScanCall, saved: Tensor) -> list[Part]:
    """The map of y before its gate inside ``saved``, if it is there."""
    if not keeps_y(call):
        return []
    _, h, w, d = call.u.shape
    start = saved.numel() - call.u.numel()
    return [Part(saved.data_ptr() + start * saved.element_size(), (h * w * d, w * d, d, 1))]


def _enter_chunks(
    call: ScanCall,
    plan: Plan,
    places: tuple[list[int], ...],
    A: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    enter: Tensor | None,
    *,
    back: bool,
) -> Tensor:
    """The state before every chunk, or the gradient behind it, from the one of the whole sequence."""
    d, n = A.shape
    units = plan.sequences * plan.chunks
    ends, steps = A.new_empty((units, d, n)), A.new_empty((units, d))
    words = plan.size(plan.channel_warps)
    for place in places:
        words += place
    words += [*map(_address, (A, bias, ends, steps, weight))]
    _launch_warps(call, plan.unit_groups * plan.channel_warps * plan.groups, plan.summary[back], words)
    words = [
        A.data_ptr(),
        _address(enter),
        ends.data_ptr(),
        steps.data_ptr(),
        plan.sequences,
        plan.chunks,
        d,
        int(back),
    ]
    driver.launch(call.u.device.index, plan.chain, -(-plan.sequences * d * n // plan.chain.threads), words)
    return ends


def _finish(call: ScanCall, plan: Plan, head: list[int], mixed: bool, params: Tensor, grads: Gradients) -> None:
    """Sum what the blocks of the backward pass left: dB, dC over blocks of channels, parameters over sequences."""
    d, n = call.A.shape
    columns = params.shape[1]
    unused = params.new_empty(d)
    targets = [_address(unused if g is None else g) for g in (grads.A, grads.D, grads.delta_bias, grads.delta_weight)]
    steps = plan.groups * plan.sequences * plan.chunks * plan.tiles * plan.macros["TS"] if mixed else 0
    mix_blocks = -(-steps * plan.row // 4 // plan.finish.threads)
    while True:
        rows = params.shape[0]
        slabs = -(-rows // _SLAB_ROWS)
        sums = params.new_empty((slabs, columns)) if slabs > 1 else None
        words = [*head, params.data_ptr(), *(targets if sums is None else (sums.data_ptr(), 0, 0, 0))]
        words += [mix_blocks, rows, columns, -(-rows // slabs), d * n, d * (n + 1), d * (n + 2)]
        driver.launch(call.u.device.index, plan.finish, mix_blocks + slabs * -(-columns // 32), words)
        if sums is None:
            return
        params, mix_blocks = sums, 0


def _launch_warps(call: ScanCall, warps: int, kernel: driver.Kernel, words: list[int]) -> None:
    """Start a kernel whose warps work alone."""
    driver.launch(call.u.device.index, kernel, -(-warps * 32 // kernel.threads), words)


def _laid_weight(call: ScanCall, plan: Plan, *, turned: bool) -> Tensor | None:
    """The step projection in the dtype of the maps and padded, with its transpose behind it if asked for."""
    if call.delta_weight is None:
        return None
    d, r = call.delta_weight.shape
    ranks, width = (r + -r % 16, d + -d % 32) if turned else (0, 0)
    given, laid = call.delta_weight.contiguous(), call.u.new_empty(d * plan.weight_pitch + ranks * width)
    words = [given.data_ptr(), laid.data_ptr(), d, plan.weight_pitch, ranks, width]
    driver.launch(call.u.device.index, plan.weights, -(-laid.numel() // plan.weights.threads), words)
    return laid


def _located(plan: Plan, tensors: Iterable[Placed], skip: int = 0) -> list[list[int]]:
    """Address of the first step and strides of tensors that the plan knows, as ``Map`` and ``Mix`` of scan.cuh."""
    places = plan.places[skip:]
    return [[t.data_ptr() + o, *p] for t, (o, p) in zip(tensors, places)]  # noqa: B905 (places may go on)


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
