"""The scan in CUDA C++, compiled at first use: one lane a channel, sums over channels by the tensor cores, no atomics."""

from collections.abc import Iterable

import torch
from torch import Tensor

from slicescan.ops.backends.cuda import driver, nvrtc
from slicescan.ops.backends.cuda.plan import (
    KINDS,
    TILE_STEPS,
    Plan,
    backward_variant,
    finish_variant,
    forward_variant,
    plan_of,
    sequence_shape,
    states_per_lane,
)
from slicescan.ops.call import Gradients, ScanCall

MAX_STATES = 64
_SLAB_ROWS = 512  # rows of the parameter sums that a block adds up


def why_not(call: ScanCall) -> str | None:
    """Say in one sentence why the kernels cannot run a call, or None if they can."""
    device = call.u.device
    if device.type != "cuda":
        return f"needs CUDA tensors, got {device.type}"
    if torch.version.hip:
        return "needs an NVIDIA device; on AMD devices use backend='triton'"
    if call.u.dtype not in KINDS:
        return f"computes in float32, so it takes no {str(call.u.dtype).removeprefix('torch.')}; use backend='torch'"
    if call.A.shape[1] > MAX_STATES:
        return f"holds at most {MAX_STATES} states a channel, got {call.A.shape[1]}; use backend='triton'"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer; use backend='triton'"
    return nvrtc.missing()


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan: ``(y, last_state, saved)``, where ``saved`` holds the state before every tile of steps."""
    shape, dtype = saved_spec(call)
    y = torch.empty_like(call.u)
    saved = call.u.new_empty(shape if save else (0,), dtype=dtype)
    b, n = call.u.shape[0], call.A.shape[1]
    sequences, length, _ = sequence_shape(call)
    state_shape = (b, sequences // b if b else 0, call.u.shape[3], n)
    if sequences * length * call.u.shape[3] == 0:
        first = call.initial_state
        return y, call.A.new_zeros(state_shape) if first is None else first.clone(), saved
    last = call.A.new_empty(state_shape)
    maps = [call.u, call.delta, y] if call.z is None else [call.u, call.delta, call.z, y]
    plan = plan_of(call, "forward", maps, [call.B, call.C])
    macros, warps, own = forward_variant(plan, save)
    u, delta, *z, out = _located(plan, maps)
    mixes = _located(plan, [call.B, call.C], len(maps))
    words = plan.size(plan.channel_warps)
    parameters = [call.A.contiguous(), *map(_plain, (call.D, call.delta_bias, call.initial_state))]
    for part in (u, delta, z[0] if z else [0] * 5, out, *mixes):
        words += part
    words += [*map(_address, parameters), last.data_ptr(), saved.data_ptr()]
    jobs = plan.unit_groups * plan.channel_warps * plan.groups
    driver.launch(call.u.device.index, "forward", "scan_forward", macros, warps * own, (-(-jobs // warps), 1), 32 * warps, words)
    return y, last, saved


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward pass saves: ``(sequence, tile, channel, state)``."""
    sequences, length, _ = sequence_shape(call)
    nl, ns = states_per_lane(call.A.shape[1])
    dtype = torch.bfloat16 if call.u.dtype == torch.bfloat16 else torch.float32
    return (sequences, -(-length // TILE_STEPS[call.u.dtype]), call.u.shape[3], nl * ns), dtype


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument, summed in a fixed order."""
    sequences, length, _ = sequence_shape(call)
    d, n = call.A.shape
    grads = _empty_gradients(call)
    if sequences * length * d == 0:
        for gradient in grads:
            if gradient is not None:
                gradient.zero_()
        if grads.initial_state is not None and grad_last is not None:
            grads.initial_state.copy_(grad_last)
        return grads
    maps = [call.u, call.delta, grad_y, grads.u, grads.delta]
    if call.z is not None:
        maps += [call.z, grads.z]  # type: ignore[list-item]
    mixes = [call.B, call.C, grads.B, grads.C]
    plan = plan_of(call, "backward", maps, mixes)
    macros, warps, own = backward_variant(plan)
    blocks = -(-plan.channel_warps // warps)
    direct = blocks == 1
    mix_rows = plan.unit_groups * plan.packed * plan.tiles * plan.steps
    mixing = call.A.new_empty(0 if direct else plan.groups * blocks * mix_rows * 2 * plan.nt)
    rows = plan.unit_groups
    params = call.A.new_empty((rows, d * (n + 2)))
    u, delta, dy, du, ddelta, *gate = _located(plan, maps)
    z, dz = gate or [[0] * 5, [0] * 5]
    located_mixes = _located(plan, mixes, len(maps))
    size = plan.size(blocks, call.initial_state is not None)
    words = list(size)
    for part in (u, delta, z, dy, du, ddelta, dz, *located_mixes):
        words += part
    parameters = [call.A.contiguous(), *map(_plain, (call.D, call.delta_bias, grad_last))]
    words += [*map(_address, (*parameters, grads.initial_state)), mixing.data_ptr(), params.data_ptr(), saved.data_ptr()]
    grid = (rows * plan.groups * blocks, 1)
    driver.launch(call.u.device.index, "backward", "scan_backward", macros, warps * own + 16, grid, 32 * warps, words)
    _finish(call, plan, size, None if direct else mixing, params, grads, located_mixes[2:])
    return grads


def _finish(
    call: ScanCall,
    plan: Plan,
    size: list[int],
    mixing: Tensor | None,
    params: Tensor,
    grads: Gradients,
    outputs: list[list[int]],
) -> None:
    """Sum what the blocks of the backward pass left: dB, dC over blocks of channels, parameters over sequences."""
    d, n = call.A.shape
    columns = params.shape[1]
    unused = params.new_empty(d) if grads.D is None or grads.delta_bias is None else None
    targets = [_address(g if g is not None else unused) for g in (grads.A, grads.D, grads.delta_bias)]
    steps = 0 if mixing is None else plan.groups * plan.sequences * plan.tiles * plan.steps
    mix_blocks = -(-steps * plan.nt // 2 // 256)
    macros = finish_variant(plan, steps)
    while True:
        rows = params.shape[0]
        slabs = -(-rows // _SLAB_ROWS)
        slab = -(-rows // slabs)
        sums = params.new_empty((slabs, columns)) if slabs > 1 else None
        words = [*size, *outputs[0], *outputs[1], _address(mixing), params.data_ptr()]
        words += targets if sums is None else [sums.data_ptr(), 0, 0]
        words += [mix_blocks, rows, columns, slab, d * n, d * (n + 1)]
        grid = (mix_blocks + slabs * -(-columns // 32), 1)
        driver.launch(call.u.device.index, "reduce", "scan_finish", macros, 1024, grid, 256, words)
        if sums is None:
            return
        params, mix_blocks = sums, 0


def _empty_gradients(call: ScanCall) -> Gradients:
    def like(tensor: Tensor | None) -> Tensor | None:  # maps keep their memory order
        return None if tensor is None else torch.empty_like(tensor)

    def dense(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_empty(tensor.shape)

    return Gradients(
        torch.empty_like(call.u), torch.empty_like(call.delta), *map(dense, (call.A, call.B, call.C, call.D)),
        like(call.z), dense(call.delta_bias), dense(call.initial_state),
    )  # type: ignore[arg-type]  # fmt: skip


def _located(plan: Plan, tensors: Iterable[Tensor], skip: int = 0) -> list[list[int]]:
    """Address of the first step and strides of tensors that the plan knows, as ``Map`` and ``Mix`` of scan.cuh."""
    return [[t.data_ptr() + o, *p] for t, (o, p) in zip(tensors, plan.places[skip:])]


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
