"""The scan as an operator of ``torch.library``: what compilation, export, autograd and FLOP counting see.

The backend is picked inside the operator, so that no choice is traced.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from slicescan.ops import dispatch, low_rank
from slicescan.ops.call import Gradients, ScanCall
from slicescan.ops.paths import state_shape

FLOPS_PER_UPDATE = 9
"""Declared for one update of one state; the field's convention for selective scans."""

TENSORS = tuple(field.name for field in dataclasses.fields(ScanCall))[:10]

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? delta_weight, str axis, bool reverse, bool carry, bool delta_softplus, str backend"
)


def run(*arguments: Any, backend: str | None) -> tuple[Tensor, Tensor]:
    """Run the scan with the fields of a :class:`ScanCall`: ``(y, last_state)``.

    Calls that nobody traces or counts go to the backend directly, which saves 0.1 ms of forward and backward.
    """
    tensors = [argument for argument in arguments[: len(TENSORS)] if argument is not None]
    recorded = torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])
    if torch.compiler.is_compiling():
        asked = dispatch.requested(backend) or ""
        if asked == "reference":
            return _plain(ScanCall(*arguments))
        return slice_scan_op(*arguments, asked, recorded)[:2]
    call = ScanCall(*arguments)
    name = dispatch.pick(call, _for_transforms(backend) if transformed() else backend)
    if name == "reference":
        return _plain(call)
    if torch._C._len_torch_dispatch_stack() or not all([is_ordinary(x) for x in tensors]):
        return slice_scan_op(*arguments, name, recorded)[:2]
    if recorded:
        return _Unwatched.apply(call, name, *arguments[: len(TENSORS)])
    with _no_autocast(call):
        return low_rank.forward(dispatch.load(name), call, save=False)[:2]


_ORDINARY = (Tensor, torch.nn.Parameter)


def is_ordinary(x: Tensor) -> bool:
    """Whether a tensor holds numbers and has no class of its own, which might watch or replace what is done with it."""
    return type(x) in _ORDINARY and not x.is_meta


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work, for which the operator has no rules."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def watched() -> bool:
    """Whether something counts, exports or transforms: it is to see the operations that a network is defined by."""
    if torch.compiler.is_compiling():
        return _exporting()
    return bool(torch._C._len_torch_dispatch_stack()) or transformed()


def _exporting() -> bool:
    """Whether a network is exported; asked while compilation traces, which before PyTorch 2.14 takes it for granted."""
    return getattr(torch.compiler, "is_exporting", bool)()


_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def looked_at() -> bool:
    """Whether something compiles, counts, exports or transforms; where not, only the result of a call matters."""
    return torch.compiler.is_compiling() or watched()


def side_by_side(x: Tensor) -> bool:
    """Whether an image ``(b, c, h, w)`` fills its memory pixel by pixel, with the channels of each side by side.

    Strides are compared for sizes that compilation keeps open: before PyTorch 2.14 such a map is said not to.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    if not torch.compiler.is_compiling() or x.ndim != 4:
        return False
    _, c, h, w = x.shape
    return x.stride() == (c * h * w, 1, c * w, c)


def traces_kernels(*maps: Tensor) -> bool:
    """Whether compilation is to call the ``cuda`` backend's operators on images of which each fills its memory."""
    first = maps[0]
    if not first.is_cuda or not torch.compiler.is_compiling() or watched():
        return False
    alike = all([x.dtype == first.dtype and x.device == first.device and side_by_side(x) for x in maps])
    return alike and dispatch.has_fast_gate(first.device, first.dtype)


def runs_kernels(*maps: Tensor) -> bool:
    """Whether the ``cuda`` backend's kernels on maps may stand for plain operations, which nobody watches or traces.

    Compilation is left the plain operations, which it fuses itself, or asks :func:`traces_kernels`.
    """
    first = maps[0]
    if not first.is_cuda or looked_at():
        return False
    alike = all([x.dtype == first.dtype and x.device == first.device and type(x) in _ORDINARY for x in maps])
    return alike and first.stride(1) == 1 and dispatch.has_map_kernels(first.device, first.dtype)


def is_final(*maps: Tensor) -> bool:
    """Whether nobody compiles, traces, counts or records, so that a CPU's result need not come from PyTorch.

    Maps have four axes; weights may have others.
    """
    if not maps[0].is_cpu or torch.jit.is_tracing() or looked_at():
        return False
    recorded = torch.is_grad_enabled() and any([x.requires_grad for x in maps])
    ordinary = all([type(x) in _ORDINARY and x.is_cpu for x in maps])
    return ordinary and not recorded and not torch.is_autocast_enabled("cpu")


def _for_transforms(backend: str | None) -> str:
    asked = dispatch.requested(backend)
    if asked not in (None, "reference"):
        raise dispatch.BackendError(
            f"backend {asked!r} has no rules for torch.func transforms and forward-mode derivatives; "
            "use backend='reference', which is chosen for them where none is named"
        )
    return "reference"


def _plain(call: ScanCall) -> tuple[Tensor, Tensor]:
    with _no_autocast(call):
        return dispatch.reference.slice_scan(low_rank.project(call))


def _no_autocast(call: ScanCall) -> AbstractContextManager[Any]:
    """The scan chooses its dtypes itself, whatever region it runs in."""
    return without_autocast(call.u.device.type)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A region of a device type in which dtypes stay as they are."""
    return torch.autocast(device, enabled=False) if device in _CASTING and torch.is_autocast_enabled(device) else _AS_IS


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast brings ``x`` and matrices to for a product of them; None where it does not."""
    kind = x.device.type
    casts = kind in _CASTING and x.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else None


_AS_IS = nullcontext()
_CASTING = ("cpu", "cuda", "xpu", "mps")


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, backend, save = arguments
    call = ScanCall(*fields)
    with _no_autocast(call):
        return low_rank.forward(_differentiable(call, backend), call, save=save)


def _forward_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, backend, save = arguments
    call = ScanCall(*fields)
    shape, dtype = low_rank.saved_spec(_differentiable(call, backend), call) if save else ((0,), call.A.dtype)
    saved = call.u.new_empty(shape, dtype=dtype)
    return torch.empty_like(call.u), call.A.new_empty(state_shape(call)), saved


def _backward(*arguments: Any) -> list[Tensor]:
    *fields, backend, saved, grad_y, grad_last = arguments
    call = ScanCall(*fields)
    with _no_autocast(call):
        grads = low_rank.backward(_differentiable(call, backend), call, saved, grad_y, grad_last)
    return [call.A.new_empty(0) if grad is None else grad for grad in grads]


def _backward_shapes(*arguments: Any) -> list[Tensor]:
    call = ScanCall(*arguments[: len(dataclasses.fields(ScanCall))])
    values = [getattr(call, name) for name in Gradients._fields]
    strided = (call.u, call.delta, call.z)
    return [
        call.A.new_empty(0)
        if value is None
        else torch.empty_like(value)
        if any(value is map_ for map_ in strided)
        else value.new_empty(value.shape)
        for value in values
    ]


def _differentiable(call: ScanCall, backend: str) -> Any:
    name = dispatch.pick(call, backend)
    if name == "reference":
        raise dispatch.BackendError(f"backend 'reference' is not an operator: name it, or ask by {dispatch.VARIABLE}")
    return dispatch.load(name)


def _setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    *fields, backend, _ = inputs
    ctx.settings = (*fields[len(TENSORS) :], backend)
    ctx.save_for_backward(*fields[: len(TENSORS)], output[2])
    ctx.set_materialize_grads(False)


class _Unwatched(torch.autograd.Function):
    """The operator without its wrapper, and without ``setup_context``, which inspects signatures at every call."""

    @staticmethod
    def forward(ctx: Any, call: ScanCall, backend: str, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        with _no_autocast(call):
            y, last, saved = low_rank.forward(dispatch.load(backend), call, save=True)
        ctx.settings = (call.axis, call.reverse, call.carry, call.delta_softplus, backend)
        ctx.save_for_backward(*tensors, saved)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
        run = slice_scan_backward_op if watched else _unwatched_backward
        return (None, None, *_differentiate(run, ctx, *grads)[: len(TENSORS)])


def _unwatched_backward(*arguments: Any) -> Gradients:
    *fields, backend, saved, grad_y, grad_last = arguments
    call = ScanCall(*fields)
    with _no_autocast(call):
        return low_rank.backward(dispatch.load(backend), call, saved, grad_y, grad_last)


def _gradients(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    return _differentiate(slice_scan_backward_op, ctx, *grads)


def _differentiate(
    run: Callable[..., Sequence[Tensor | None]], ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    grad_y = torch.zeros_like(tensors[0]) if grad_y is None else grad_y
    grads = run(*tensors, *ctx.settings, saved, grad_y, grad_last)
    found = [None if tensor is None else grad for tensor, grad in zip(tensors, grads, strict=True)]
    return (*found, *[None] * (len(ctx.settings) + 1))


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError("slice_scan has no second derivative on this backend; use backend='reference'")


slice_scan_op = torch.library.custom_op(
    "slicescan::slice_scan",
    _forward,
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool save) -> (Tensor, Tensor, Tensor)",
)
slice_scan_backward_op = torch.library.custom_op(
    "slicescan::slice_scan_backward",
    _backward,
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor saved, Tensor grad_y, Tensor? grad_last) -> Tensor[]",
)
slice_scan_op.register_fake(_forward_shapes)
slice_scan_backward_op.register_fake(_backward_shapes)
slice_scan_op.register_autograd(_gradients, setup_context=_setup)
slice_scan_backward_op.register_autograd(_no_second_derivative)


@register_flop_formula(torch.ops.slicescan.slice_scan)
def _forward_flops(u_shape: Sequence[int], *others: Any, **_: Any) -> int:
    updates, projection = scan_work(u_shape, *others)
    return FLOPS_PER_UPDATE * updates + 2 * projection


@register_flop_formula(torch.ops.slicescan.slice_scan_backward)
def _backward_flops(u_shape: Sequence[int], *others: Any, **_: Any) -> int:
    return 2 * _forward_flops(u_shape, *others)


def scan_work(*shapes: Any) -> tuple[int, int]:
    """State updates of a scan and multiply-adds of its step projection, from the shapes of the operator's arguments."""
    given = dict(zip(TENSORS, shapes, strict=False))
    b, h, w, d = given["u"]
    rank = 0 if given.get("delta_weight") is None else given["delta_weight"][1]
    return b * h * w * d * given["A"][1], b * h * w * d * rank
