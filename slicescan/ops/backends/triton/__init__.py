"""The scan in Triton: for GPUs of every maker that Triton serves, and wherever the compiled CUDA source cannot run."""

import contextlib
import importlib.util
import os
import shutil
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slicescan.ops.backends.triton.plan import CHUNK, MAX_STATES, Plan, plan_of, strides_of
from slicescan.ops.call import Gradients, ScanCall, empty_gradients
from slicescan.ops.paths import initial_states, state_shape

_TERMS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}  # bfloat16 parts of a float32 summand that matter
_REGISTERS = 168  # of a lane of the backward pass on NVIDIA devices: 12 warps a multiprocessor, few spills


def why_not(call: ScanCall) -> str | None:
    """Say in one sentence why the kernels cannot run a call, or None if they can."""
    device = call.u.device
    if not _installed():
        return f"needs Triton: pip install {'triton-windows' if os.name == 'nt' else 'triton'}"
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and _interpreted()
    if device.type not in ("cuda", "xpu") and not interpreted:
        return f"needs a GPU that Triton serves, got {device.type} tensors; use backend='cpu' or 'torch'"
    if call.u.dtype not in _TERMS:
        return f"computes in float32, so it takes no {str(call.u.dtype).removeprefix('torch.')}; use backend='torch'"
    if call.A.shape[1] > MAX_STATES:
        return f"holds at most {MAX_STATES} states a channel, got {call.A.shape[1]}; use backend='torch'"
    if call.u.shape[1] * call.u.shape[2] >= 2**31:
        return f"counts fewer than 2^31 positions an image, got {call.u.shape[1]} x {call.u.shape[2]}"
    if _nvidia(device) and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer; use backend='torch'"
    return None if interpreted else _compiler_missing()


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan: ``(y, last_state, saved)``, where ``saved`` holds the state before every chunk of steps."""
    shape, dtype = saved_spec(call)
    y = torch.empty_like(call.u)
    saved = call.u.new_empty(shape if save else (0,), dtype=dtype)
    plan = plan_of(call)
    if plan.empty:
        return y, initial_states(call), saved
    rates = _rates(call)
    first = _states_first(call.initial_state)
    if plan.segments > 1:
        first = _between_segments(call, plan, rates, first)
    last = call.A.new_empty(plan.sequences, plan.n, plan.d)
    arguments = (call.u, call.delta, rates, call.B, call.C, *_vectors(call), first, y, last, saved if save else None)
    strides = strides_of(call, call.u, call.delta, call.B, call.C, call.z, y)
    _launch(call, plan.programs, "scan_forward", *arguments, *strides, plan.d, *plan.sizes, CHUNK=CHUNK, **plan.options)
    return y, _states_last(last, call), saved


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward pass saves: ``(sequence, chunk, state, channel)``."""
    plan = plan_of(call)
    dtype = torch.bfloat16 if call.u.dtype == torch.bfloat16 else torch.float32
    return (plan.sequences, -(-plan.total // CHUNK), plan.n, plan.d), dtype


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument, summed in a fixed order."""
    grads = empty_gradients(call)
    plan = plan_of(call)
    if plan.empty:
        for gradient in grads:
            if gradient is not None:
                gradient.zero_()
        if grads.initial_state is not None and grad_last is not None:
            grads.initial_state.copy_(grad_last)
        return grads
    rates = _rates(call)
    later = _states_first(grad_last)
    if plan.segments > 1:
        later = _between_segments(call, plan, rates, later, grad_y)
    room = CHUNK * plan.states * plan.lanes
    scratch = saved.new_empty(plan.programs * room)
    sums = call.A.new_empty(plan.sequences * plan.segments, plan.n + 2, plan.d)
    first = None if grads.initial_state is None else call.A.new_empty(plan.sequences, plan.n, plan.d)
    direct = plan.group_blocks == 1  # else B and C collect gradients from several blocks of channels
    dB, dC = (x[None] if direct else call.A.new_empty(plan.group_blocks, *x.shape) for x in (grads.B, grads.C))
    arguments = (call.u, call.delta, rates, call.B, call.C, *_vectors(call), grad_y, later, saved, scratch,
                 grads.u, grads.delta, dB, dC, grads.z, sums, first)  # fmt: skip
    strides = strides_of(call, call.u, call.delta, call.B, call.C, call.z, grad_y, grads.u, grads.delta, dB[0], dC[0],
                         grads.z)  # fmt: skip
    strides[8:10] = [(*strides[8], dB.stride(0)), (*strides[9], dC.stride(0))]
    options = {**plan.options, "CHUNK": CHUNK, "TERMS": 0 if _interpreted() else _TERMS[call.u.dtype]}
    if _nvidia(call.u.device) and plan.warps == 1:
        options["maxnreg"] = _REGISTERS
    _launch(call, plan.programs, "scan_backward", *arguments, *strides, plan.d, room, *plan.sizes, **options)
    if not direct:
        grads.B.copy_(dB.sum(0))
        grads.C.copy_(dC.sum(0))
    totals = sums.sum(0)
    grads.A.copy_(totals[: plan.n].t())
    for gradient, total in ((grads.D, totals[plan.n]), (grads.delta_bias, totals[plan.n + 1])):
        if gradient is not None:
            gradient.copy_(total)
    return grads if first is None else grads._replace(initial_state=_states_last(first, call))


def _between_segments(
    call: ScanCall, plan: Plan, rates: Tensor, start: Tensor | None, dy: Tensor | None = None
) -> Tensor:
    """The state that enters each segment, ``(sequence, segment, n, d)``; with ``dy`` the gradient, from its end."""
    ends = call.A.new_empty(plan.sequences * plan.segments, plan.n, plan.d)
    spans = call.A.new_empty(plan.sequences * plan.segments, plan.d)
    arguments = (call.u, call.delta, rates, call.B, call.C, *_vectors(call)[1:], dy, ends, spans)
    strides = strides_of(call, call.u, call.delta, call.B, call.C, call.z, dy)
    _launch(call, plan.programs, "segment_ends", *arguments, *strides, plan.d, *plan.sizes, **plan.options)
    blocks = -(-plan.d // plan.lanes)
    _launch(call, plan.sequences * blocks, "chain_segments", rates, start, ends, spans, plan.d, blocks, plan.segments,
            n=plan.n, N=plan.states, LANES=plan.lanes, BACK=dy is not None, num_warps=plan.warps)  # fmt: skip
    return ends


def _rates(call: ScanCall) -> Tensor:
    return call.A.t().contiguous()  # n d


def _vectors(call: ScanCall) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    skip, bias = (None if x is None else x.contiguous() for x in (call.D, call.delta_bias))
    return skip, call.z, bias


def _states_first(states: Tensor | None) -> Tensor | None:
    return None if states is None else states.flatten(0, 1).transpose(1, 2).contiguous()  # s n d


def _states_last(states: Tensor, call: ScanCall) -> Tensor:
    return states.transpose(1, 2).contiguous().view(state_shape(call))  # b s d n


def _launch(call: ScanCall, programs: int, name: str, *arguments: Any, **options: Any) -> None:
    device = call.u.device
    current = contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
    with current:
        getattr(_kernels(), name)[(programs,)](*arguments, num_stages=1, enable_fp_fusion=True, **options)


def _nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.version.hip


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _kernels() -> ModuleType:
    return importlib.import_module("slicescan.ops.backends.triton.kernels")


@cache
def _interpreted() -> bool:
    """Whether Triton runs the kernels in its interpreter: ``TRITON_INTERPRET=1`` was set when they were loaded."""
    from triton import JITFunction

    return not isinstance(_kernels().scan_forward, JITFunction)


@cache
def _compiler_missing() -> str | None:
    if os.name == "nt" or os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "Triton needs a C compiler for the code that starts its kernels: install gcc or clang, or set CC"
