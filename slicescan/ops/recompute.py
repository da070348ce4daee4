"""Compositions of 1x1 and depth-wise convolutions that keep nothing for their gradients but what they are given.

The maps inside are computed anew with the gradients, step by step as the composition has them, in the same dtypes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.depthwise_conv import Gate, depthwise_conv, ordinary
from slicescan.ops.library import autocast_dtype, looked_at, runs_kernels, without_autocast
from slicescan.ops.pointwise_conv import Affine, is_product, torch_pointwise_conv
from slicescan.ops.silu_gate import silu_gate

_Gradients = tuple[Tensor | None, ...]


def gated_feed_forward(x: Tensor, first: Affine, around: Affine, last: Affine, gate: Gate) -> Tensor:
    """``last(depthwise_conv(first(x), gate=gate))``, of which ``x`` alone is kept: one map of about four.

    Args:
        x: ``(b, c, h, w)``.
        first: 1x1, to ``2 d`` channels.
        around: Depth-wise, of ``2 d`` channels.
        last: 1x1, from ``d`` channels.
        gate: As :func:`~slicescan.ops.depthwise_conv` has it.

    Example:
        >>> one = torch.ones(2, 1, 1, 1), None
        >>> around = torch.ones(2, 1, 3, 3), None
        >>> gated_feed_forward(torch.ones(1, 1, 2, 2), one, around, (torch.ones(1, 1, 1, 1), None), "linear")
        tensor([[[[16., 16.],
                  [16., 16.]]]])
    """
    x, *outer = _as_autocast_has_them(x, *first, *last)
    return _FeedForward.apply(gate, x, *outer[:2], *around, *outer[2:])


def widened(x: Tensor, first: Affine, around: Affine) -> tuple[Tensor, Tensor]:
    """The halves of ``depthwise_conv(first(x))``, of which ``x`` alone is kept: one map of three.

    Args:
        x: ``(b, c, h, w)``.
        first: 1x1, to ``2 d`` channels.
        around: Depth-wise, of ``2 d`` channels.

    Example:
        >>> f, gate = widened(torch.ones(1, 1, 2, 2), (torch.ones(2, 1, 1, 1), None), (torch.ones(2, 1, 3, 3), None))
        >>> f
        tensor([[[[4., 4.],
                  [4., 4.]]]])
    """
    x, *outer = _as_autocast_has_them(x, *first)
    return _Widened.apply(x, *outer, *around)


def gated_projection(gate: Tensor, x: Tensor, last: Affine) -> Tensor:
    """``last(silu(gate) * x)``, of which the product is not kept.

    Args:
        gate: ``(b, d, h, w)``.
        x: Like ``gate``.
        last: 1x1, from ``d`` channels.

    Example:
        >>> gated_projection(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), (torch.ones(1, 1, 1, 1), torch.ones(1)))
        tensor([[[[1.]]]])
    """
    return _GatedProjection.apply(gate, x, *_as_autocast_has_them(*last))


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def plain(gate: Gate, x: Tensor, *parameters: Any) -> Tensor:
        weight, bias, taps, shift, last, last_bias = parameters
        return torch_pointwise_conv(_around(torch_pointwise_conv(x, weight, bias), taps, shift, gate), last, last_bias)

    @staticmethod
    def forward(ctx: Any, gate: Gate, *tensors: Any) -> Tensor:
        ctx.gate = gate
        ctx.save_for_backward(*tensors)
        return _FeedForward.plain(gate, *tensors)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> _Gradients:
        _, *needs = ctx.needs_input_grad
        if _seen():
            return None, *_by_autograd(partial(_FeedForward.plain, ctx.gate), ctx.saved_tensors, needs, [grad_y])
        x, weight, bias, taps, shift, last, last_bias = ctx.saved_tensors
        with without_autocast(x.device.type):
            wide = torch_pointwise_conv(x, weight, bias)
            if _fast(wide) and any(needs[:5]):  # the kernel that takes the gradients finds the gated map on the way
                gated = torch.empty_like(wide[:, : last.shape[1]], memory_format=torch.channels_last)
                grad_gated = _conv_gradients(grad_y, gated, last, None, [True, False, False])[0]
                kernels = dispatch.load("cuda.gate")
                grad_wide, *middles = kernels.backward(wide, taps, shift, grad_gated, ctx.gate, made=gated)
                _, *ends = _conv_gradients(grad_y, gated, last, last_bias, [False, *needs[5:]])
                del gated
            else:
                around = partial(_around, gate=ctx.gate)
                gated, pull = _recorded(around, [wide, taps, shift], [any(needs[:3]), *needs[3:5]])
                grad_gated, *ends = _conv_gradients(grad_y, gated, last, last_bias, [any(needs[:5]), *needs[5:]])
                grad_wide, *middles = [None] * 3 if grad_gated is None else pull(grad_gated)
                del gated, pull
            del wide, grad_gated
            grads = (*_conv_gradients(grad_wide, x, weight, bias, needs[:3]), *middles, *ends)
        return None, *_wanted(grads, needs)


class _Widened(torch.autograd.Function):
    @staticmethod
    def plain(x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
        weight, bias, taps, shift = parameters
        return _around(torch_pointwise_conv(x, weight, bias), taps, shift, None).chunk(2, 1)

    @staticmethod
    def forward(ctx: Any, *tensors: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        return _Widened.plain(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        needs = ctx.needs_input_grad
        if _seen():
            return _by_autograd(_Widened.plain, ctx.saved_tensors, needs, grads)
        x, weight, bias, taps, shift = ctx.saved_tensors
        with without_autocast(x.device.type):
            wide = torch_pointwise_conv(x, weight, bias)
            if _fast(wide):
                grad_wide, *middles = _from_halves(wide, taps, shift, grads)
            else:
                around = [any(needs[:3]), *needs[3:]]
                grad_wide, *middles = _conv_gradients(torch.cat(grads, 1), wide, taps, shift, around)
            del wide
            found = (*_conv_gradients(grad_wide, x, weight, bias, needs[:3]), *middles)
        return _wanted(found, needs)


class _GatedProjection(torch.autograd.Function):
    @staticmethod
    def plain(gate: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch_pointwise_conv(silu_gate(gate, x).to(weight.dtype), weight, bias)

    @staticmethod
    def forward(ctx: Any, *tensors: Any) -> Tensor:
        ctx.save_for_backward(*tensors)
        return _GatedProjection.plain(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> _Gradients:
        needs = ctx.needs_input_grad
        if _seen():
            return _by_autograd(_GatedProjection.plain, ctx.saved_tensors, needs, [grad_y])
        gate, x, weight, bias = ctx.saved_tensors
        with without_autocast(x.device.type):
            if runs_kernels(x, gate) and x.dtype == weight.dtype and any(needs[:2]):  # as in a feed-forward layer
                y = torch.empty_like(x, memory_format=torch.channels_last)
                grad = _conv_gradients(grad_y, y, weight, None, [True, False, False])[0]
                maps: Sequence[Tensor | None] = dispatch.load("cuda.silu_gate").backward(gate, x, grad, y)
                _, *ends = _conv_gradients(grad_y, y, weight, bias, [False, *needs[2:]])
            else:
                y, pull = _recorded(silu_gate, [gate, x], needs[:2])
                grad, *ends = _conv_gradients(grad_y, y.to(weight.dtype), weight, bias, [any(needs[:2]), *needs[2:]])
                maps = [None] * 2 if grad is None else pull(grad.to(y.dtype))
        return _wanted((*maps, *ends), needs)


def _as_autocast_has_them(*tensors: Any) -> list[Any]:
    """The arguments of a convolution in the dtype that autocast, if it is on, converts them to."""
    dtype = autocast_dtype(tensors[0])
    return [t if t is None or dtype is None else t.to(dtype) for t in tensors]


def _fast(x: Tensor) -> bool:
    """Whether the kernels convolve ``x`` depth-wise, as :func:`depthwise_conv` decides."""
    return dispatch.has_fast_gate(x.device, x.dtype) and ordinary(x)


def _around(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Gate | None) -> Tensor:
    """The depth-wise convolution, whose kernels take weights of any dtype, but PyTorch's only those of ``x``."""
    if not _fast(x):
        weight, bias = weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)
    return depthwise_conv(x, weight, bias, gate=gate)


Pull = Callable[[Tensor], Sequence[Tensor | None]]
"""Takes the gradient of a result to those of the arguments."""


def _from_halves(wide: Tensor, weight: Tensor, bias: Tensor | None, grads: Sequence[Tensor]) -> _Gradients:
    """Gradients of a depth-wise convolution's arguments from those of both halves of its result, joined nowhere."""
    kernels = dispatch.load("cuda.gate")
    grad_wide = torch.empty_like(wide)
    shifts = [None, None] if bias is None else bias.chunk(2)
    sums = []
    for x, taps, shift, grad, out in zip(
        wide.chunk(2, 1), weight.chunk(2), shifts, grads, grad_wide.chunk(2, 1), strict=True
    ):
        sums.append(kernels.backward(x, taps, shift, grad, "", out=out)[1:])
    return grad_wide, *[torch.cat(halves) for halves in zip(*sums, strict=True)]


def _recorded(run: Callable[..., Tensor], inputs: Sequence[Any], needs: Sequence[bool]) -> tuple[Tensor, Pull]:
    """A result and its pull by autograd itself, of the inputs that need a gradient."""
    with torch.enable_grad():
        leaves = [t if t is None else t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
        y = run(*leaves)
    return y.detach(), lambda grad: _grad([y], leaves, needs, [grad], False)


def _by_autograd(
    plain: Callable[..., Any], inputs: Sequence[Any], needs: Sequence[bool], grads: Sequence[Tensor]
) -> _Gradients:
    """Gradients by way of the composition, where they are differentiated or looked at themselves."""
    differentiated = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(inputs[0].device.type):
        # views, so that an input that another was made from has a gradient of its own
        given = [t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)]
        y = plain(*given)
        return _grad([y] if isinstance(y, Tensor) else y, given, needs, grads, differentiated)


def _grad(
    outputs: Sequence[Tensor], inputs: Sequence[Any], needs: Sequence[bool], grads: Sequence[Tensor], create: bool
) -> _Gradients:
    asked = [t for t, need in zip(inputs, needs, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, asked, grads, create_graph=create))
    return tuple([next(found) if need else None for need in needs])


def _conv_gradients(
    grad_y: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]
) -> _Gradients:
    """Gradients of a convolution's ``x``, weight and bias by the kernels of its own backward pass; zeros lie around."""
    if grad_y is None or not any(needs):
        return None, None, None
    if is_product(x, weight):
        return _product_gradients(grad_y, x, weight, needs)
    around, groups = weight.shape[2] // 2, x.shape[1] // weight.shape[1]
    sizes = None if bias is None else [weight.shape[0]]
    taps = weight.to(x.dtype)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad_y, x, taps, sizes, [1, 1], [around, around], [1, 1], False, [0, 0], groups, list(needs)
    )
    dweight, dbias = (t if t is None else t.to(weight.dtype) for t in (dweight, dbias))
    return dx, dweight, dbias


def _product_gradients(grad_y: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]) -> _Gradients:
    """The same of a 1x1 convolution that is run as a matrix product."""
    pixels, grads = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, grad_y))
    needs_x, needs_weight, needs_bias = needs
    dx = torch.mm(grads, weight.to(x.dtype).flatten(1)) if needs_x else None
    dweight = (grads.t() @ pixels).view_as(weight).to(weight.dtype) if needs_weight else None
    dbias = grads.sum(0).to(weight.dtype) if needs_bias else None
    if dx is not None:
        dx = dx.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return dx, dweight, dbias


def _seen() -> bool:
    """Whether something differentiates, compiles or counts the gradients."""
    return torch.is_grad_enabled() or looked_at()


def _wanted(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> _Gradients:
    return tuple([grad if need else None for grad, need in zip(grads, needs, strict=True)])
