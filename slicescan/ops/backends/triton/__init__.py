"""The scan in Triton: for GPUs of every maker that Triton serves, and wherever the compiled CUDA source cannot run."""

import contextlib
import importlib.util
import os
import shutil
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slicescan.ops.call import Gradients, ScanCall
from slicescan.ops.paths import state_shape

MAX_STATES = 64
CHUNK = 16
"""Steps between two saved states; the backward pass recomputes those between."""

_PROGRAMS = 1024  # enough to fill a device: with fewer, long paths are cut into segments
_SHORTEST = 256  # steps of a segment
_REGISTERS = 168  # of a lane in the backward pass on NVIDIA devices: 12 warps a multiprocessor, spills between chunks only


def why_not(call: ScanCall) -> str | None:
    """Say in one sentence why the kernels cannot run a call, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return f"needs Triton: pip install {'triton-windows' if os.name == 'nt' else 'triton'}"
    if call.u.dtype not in _TERMS:
        return f"computes in float32, so it takes no {str(call.u.dtype).removeprefix('torch.')}; use backend='torch'"
    if call.A.shape[1] > MAX_STATES:
        return f"holds at most {MAX_STATES} states a channel, got {call.A.shape[1]}; use backend='torch'"
    if call.u.shape[1] * call.u.shape[2] >= 2**31:
        return f"counts fewer than 2^31 positions an image, got {call.u.shape[1]} x {call.u.shape[2]}"
    device = call.u.device
    if device.type in ("cuda", "xpu"):
        if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < (8, 0):
            return "needs compute capability 8.0 or newer; use backend='torch'"
        return _compiler_missing()
    if device.type != "cpu" or not _interpreted():
        return f"needs a GPU that Triton serves, got {device.type} tensors; use backend='cpu' or 'torch'"
    return None


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan: ``(y, last_state, saved)``, where ``saved`` holds the state before every chunk of steps."""
    shape, dtype = saved_spec(call)
    y = torch.empty_like(call.u)
    saved = call.u.new_empty(shape if save else (0,), dtype=dtype)
    first = _states_first(call.initial_state)
    plan = _plan(call)
    if plan.sequences * plan.total * plan.d == 0:
        last = call.A.new_zeros(state_shape(call)) if call.initial_state is None else call.initial_state.clone()
        return y, last, saved
    last = call.A.new_empty(plan.sequences, plan.n, plan.d)
    if plan.segments > 1:
        first = _between_segments(call, plan, first)
    tensors = (call.u, call.delta, _rates(call), call.B, call.C, call.D, call.z, call.delta_bias)
    strides = _strides(call, plan, call.u, call.delta, call.B, call.C, call.z, y)
    options = plan.options()
    _launch(call, plan, "scan_forward", *tensors, first, y, last, saved if save else None, *strides,
            plan.d, *plan.sizes(), CHUNK=CHUNK, **options)  # fmt: skip
    return y, _states_last(last, call), saved


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward pass saves: ``(sequence, chunk, state, channel)``."""
    plan = _plan(call)
    dtype = torch.bfloat16 if call.u.dtype == torch.bfloat16 else torch.float32
    return (plan.sequences, -(-plan.total // CHUNK), plan.n, plan.d), dtype


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument, summed in a fixed order."""
    grads = Gradients(*(
        None if value is None else torch.empty_like(value) if name in ("u", "delta", "z") else value.new_empty(value.shape)
        for name, value in ((name, getattr(call, name)) for name in Gradients._fields)
    ))  # fmt: skip
    plan = _plan(call)
    if plan.sequences * plan.total * plan.d == 0:
        for gradient in grads:
            if gradient is not None:
                gradient.zero_()
        if grads.initial_state is not None and grad_last is not None:
            grads.initial_state.copy_(grad_last)
        return grads
    later = _states_first(grad_last)
    if plan.segments > 1:
        later = _between_segments(call, plan, later, grad_y)
    room = CHUNK * plan.states * plan.lanes
    scratch = saved.new_empty(plan.programs * room)
    sums = call.A.new_empty(plan.sequences * plan.segments, plan.n + 2, plan.d)
    first = None if grads.initial_state is None else call.A.new_empty(plan.sequences, plan.n, plan.d)
    one_block = plan.group_blocks == 1
    parts = [x[None] if one_block else call.A.new_empty(plan.group_blocks, *x.shape) for x in (grads.B, grads.C)]
    maps = _strides(call, plan, call.u, call.delta, call.B, call.C, call.z, grad_y, grads.u, grads.delta)
    mixes = [(*at, part.stride(0)) for at, part in zip(_strides(call, plan, parts[0][0], parts[1][0]), parts, strict=True)]
    tensors = (call.u, call.delta, _rates(call), call.B, call.C, call.D, call.z, call.delta_bias, grad_y, later, saved,
               scratch, grads.u, grads.delta, *parts, grads.z, sums, first)  # fmt: skip
    options, terms = plan.options(), 0 if call.u.device.type == "cpu" else _TERMS[call.u.dtype]
    if call.u.is_cuda and not torch.version.hip:
        options["maxnreg"] = _REGISTERS
    _launch(call, plan, "scan_backward", *tensors, *maps, *mixes, *_strides(call, plan, grads.z), plan.d, room,
            *plan.sizes(), CHUNK=CHUNK, TERMS=terms, **options)  # fmt: skip
    if not one_block:
        for part, gradient in zip(parts, (grads.B, grads.C), strict=True):
            gradient.copy_(part.sum(0))
    totals = sums.sum(0)
    grads.A.copy_(totals[: plan.n].t())
    for gradient, total in ((grads.D, totals[plan.n]), (grads.delta_bias, totals[plan.n + 1])):
        if gradient is not None:
            gradient.copy_(total)
    return grads if first is None else grads._replace(initial_state=_states_last(first, call))


_TERMS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}  # bfloat16 parts of a float32 summand that matter


class _Plan(NamedTuple):
    """How a call is cut into programs."""

    sequences: int
    slices: int  # of one image that are separate sequences
    total: int  # steps of a sequence
    length: int  # of a slice
    carry: bool  # the sequence jumps from slice to slice
    reverse: bool
    softplus: bool
    d: int
    n: int
    states: int  # n, padded to a power of 2
    lanes: int
    warps: int
    per_group: int
    group_blocks: int
    blocks: int
    segment_steps: int
    segments: int

    @property
    def programs(self) -> int:
        return self.sequences * self.segments * self.blocks

    def sizes(self) -> tuple[int, ...]:
        return (self.blocks, self.per_group, self.group_blocks, self.segment_steps, self.segments, self.slices, self.total,
                self.length)  # fmt: skip

    def options(self) -> dict[str, Any]:
        return {"n": self.n, "N": self.states, "LANES": self.lanes, "CARRY": self.carry, "REVERSE": self.reverse,
                "SOFTPLUS": self.softplus, "num_warps": self.warps}  # fmt: skip


def _plan(call: ScanCall) -> _Plan:
    b, h, w, d = call.u.shape
    slices, length = (h, w) if call.axis == "w" else (w, h)
    total = slices * length if call.carry else length
    sequences = b if call.carry else b * slices
    n = call.A.shape[1]
    per_group = d // call.B.shape[3]
    states = 1 << (n - 1).bit_length()
    # B and C of a step are read without a detour if they are fewer than the lanes of a program
    warps = max(1, states // 16)
    lanes = min(warps, 2) * _warp_size(call.u.device)
    group_blocks = -(-per_group // lanes)
    blocks = group_blocks * call.B.shape[3]
    segments, segment_steps = 1, max(total, 1)
    if total >= 2 * _SHORTEST and sequences * blocks < _PROGRAMS:
        wanted = min(total // _SHORTEST, -(-_PROGRAMS // max(1, sequences * blocks)))
        segment_steps = -(-total // (wanted * CHUNK)) * CHUNK
        segments = -(-total // segment_steps)
    return _Plan(sequences, 1 if call.carry else slices, total, length, call.carry and slices > 1, call.reverse,
                 call.delta_softplus, d, n, states, lanes, warps, per_group, group_blocks, blocks, segment_steps,
                 segments)  # fmt: skip


def _between_segments(call: ScanCall, plan: _Plan, start: Tensor | None, grad_y: Tensor | None = None) -> Tensor:
    """State that enters each segment; with ``grad_y`` the gradient that enters from behind: ``(sequence, segment, n, d)``."""
    ends = call.A.new_empty(plan.sequences * plan.segments, plan.n, plan.d)
    spans = call.A.new_empty(plan.sequences * plan.segments, plan.d)
    rates = _rates(call)
    options = plan.options()
    strides = _strides(call, plan, call.u, call.delta, call.B, call.C, call.z, grad_y)
    _launch(call, plan, "segment_ends", call.u, call.delta, rates, call.B, call.C, call.z, call.delta_bias, grad_y, ends,
            spans, *strides, plan.d, *plan.sizes(), **options)  # fmt: skip
    blocks = -(-plan.d // plan.lanes)
    whole = plan._replace(segments=1, blocks=blocks)
    _launch(call, whole, "chain_segments", rates, start, ends, spans, plan.d, blocks, plan.segments, n=plan.n,
            N=plan.states, LANES=plan.lanes, BACK=grad_y is not None, num_warps=plan.warps)  # fmt: skip
    return ends


def _strides(call: ScanCall, plan: _Plan, *tensors: Tensor | None) -> list[tuple[int, ...] | None]:
    """Strides in the order batch, slice, step, and the rest."""
    found: list[tuple[int, ...] | None] = []
    for tensor in tensors:
        if tensor is None:
            found.append(None)
            continue
        batch, rows, columns, *rest = tensor.stride()
        slice_, step = (rows, columns) if call.axis == "w" else (columns, rows)
        found.append((batch, slice_, step, *rest))
    return found


def _rates(call: ScanCall) -> Tensor:
    return call.A.t().contiguous()  # n d


def _states_first(states: Tensor | None) -> Tensor | None:
    return None if states is None else states.flatten(0, 1).transpose(1, 2).contiguous()  # s n d


def _states_last(states: Tensor, call: ScanCall) -> Tensor:
    return states.transpose(1, 2).reshape(state_shape(call)).contiguous()  # b s d n


def _launch(call: ScanCall, plan: _Plan, name: str, *arguments: Any, **options: Any) -> None:
    device = call.u.device
    current = contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
    with current:
        getattr(_kernels(), name)[(plan.programs,)](*arguments, num_stages=1, enable_fp_fusion=True, **options)


@cache
def _kernels() -> ModuleType:
    from slicescan.ops.backends.triton import kernels

    return kernels


@cache
def _interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on tensors of the CPU."""
    from triton import JITFunction

    return not isinstance(_kernels().scan_forward, JITFunction)


@cache
def _compiler_missing() -> str | None:
    if os.name == "nt" or os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "Triton needs a C compiler for the code that starts its kernels: install gcc or clang, or set CC"


@cache
def _warp_size(device: torch.device) -> int:
    return 64 if torch.version.hip and torch.cuda.get_device_properties(device).warp_size == 64 else 32
