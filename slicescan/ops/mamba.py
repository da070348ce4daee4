"""A Mamba block as a function of its weights, whose gradients may keep the input alone and compute the rest anew.

Keeping nothing inside frees the maps between two blocks; written by hand, the gradients also spare the passes over maps
in which automatic differentiation adds and joins them: those of both halves of the first projection are written into
one map, those of the steps and mixes into another, and products of matrices add to what is there.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch, low_rank, products
from slicescan.ops.call import ScanCall
from slicescan.ops.causal_conv import causal_conv, conv_silu, conv_silu_gradients
from slicescan.ops.library import autocast_dtype, is_ordinary, looked_at, without_autocast
from slicescan.ops.slice_scan import slice_scan

Axis = Literal["h", "w"]


class Weights(NamedTuple):
    """Parameters of a block with ``d`` inner channels, ``n`` states, steps of rank ``r`` and ``k`` taps."""

    in_proj: Tensor  # 2 d, dim
    in_bias: Tensor | None
    conv: Tensor  # d, 1, k
    conv_bias: Tensor | None
    x_proj: Tensor  # r + 2 n, d
    dt_proj: Tensor  # d, r
    dt_bias: Tensor | None
    A_log: Tensor  # d, n
    D: Tensor  # d
    out_proj: Tensor  # dim, d
    out_bias: Tensor | None


def decay_rates(A_log: Tensor) -> Tensor:
    """``A = -exp(A_log)`` in float32 or wider, whatever dtype the module was cast to."""
    return torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float()).neg()


def mixed(x: Tensor, weights: Weights, axis: Axis) -> Tensor:
    """Mix every row or column of ``(b, h, w, dim)`` as :class:`slicescan.layers.Mamba`, differentiated as usual."""
    u, z = F.linear(x, weights.in_proj, weights.in_bias).chunk(2, -1)
    u = causal_conv(u, weights.conv[:, 0], weights.conv_bias, axis=axis, silu=True)
    (_, n), r = weights.A_log.shape, weights.dt_proj.shape[1]
    step, B, C = F.linear(u, weights.x_proj).split([r, n, n], -1)
    y = slice_scan(
        u, step, decay_rates(weights.A_log), B, C, weights.D, z, weights.dt_bias,
        axis=axis, delta_softplus=True, delta_weight=weights.dt_proj,
    )  # fmt: skip
    return F.linear(y, weights.out_proj, weights.out_bias)


def can_mix_by_hand(x: Tensor, weights: Weights) -> bool:
    """Whether :func:`mixed_by_hand` may stand for :func:`mixed`: something wants gradients, and nobody watches."""
    if looked_at() or x.ndim != 4 or not x.numel():
        return False
    given = [t for t in (x, *weights) if t is not None]
    wanted = any([t.requires_grad for t in given])
    return wanted and all([is_ordinary(t) for t in given]) and dispatch.requested(None) != "reference"


def mixed_by_hand(
    x: Tensor, weights: Weights, axis: Axis, *, aligned: bool, onto: Tensor | None = None, keep: bool = False
) -> Tensor:
    """The same as :func:`mixed`; only ``x`` is kept for the gradients, or with ``keep`` what lies inside as well.

    Args:
        x: ``(b, h, w, dim)``, any strides.
        weights: Parameters.
        axis: ``"w"`` mixes each row, ``"h"`` each column.
        aligned: Whether step, B and C of a pixel begin at multiples of 8 numbers; no result depends on it.
        onto: A contiguous map that the result is added to in place, and that is returned.
        keep: Whether to keep the maps inside, which takes memory and saves time.
    """
    return _ByHand.apply(axis, aligned, keep, onto, x, *weights)


def scan_to(
    x: Tensor, weights: Weights, axis: Axis, out: Tensor, *, aligned: bool, slices: int, project: bool = False
) -> None:
    """Write what the last projection of :func:`mixed` is given to a map; nothing is recorded for gradients.

    Args:
        x: ``(b, h, w, dim)``, any strides.
        weights: Parameters; unless ``project``, those of the last projection do not matter.
        axis: ``"w"`` mixes each row, ``"h"`` each column.
        out: ``(b, h, w, d)``, or ``(b, h, w, dim)`` with ``project``, any strides, in the dtype that the maps of ``x``
            have.
        aligned: As in :func:`mixed_by_hand`.
        slices: Rows or columns that are mixed at once.
        project: Whether to apply the last projection, which has no bias.
    """
    cast, across = autocast_dtype(x), 2 if axis == "h" else 1
    gap = -weights.dt_proj.shape[1] % 8 if aligned else 0
    with without_autocast(x.device.type):
        laid = _lay(weights, cast or x.dtype, cast, gap)
        for piece, place in zip(x.split(slices, across), out.split(slices, across), strict=True):
            given = piece if cast is None else piece.to(cast)
            call = _call(_inner(given, weights, laid, axis, gap), weights, laid, axis, gap)
            backend = dispatch.load(dispatch.pick(call))
            y = low_rank.forward(backend, call, save=False, out=None if project else place)[0]
            del given, call  # they make room for those of the next piece
            if project:
                _product(y, laid.out_proj, None, place)


class _Laid(NamedTuple):
    """Parameters as products and the scan take them."""

    in_proj: Tensor
    in_bias: Tensor | None
    x_proj: Tensor  # r + gap + 2 n, d
    out_proj: Tensor
    out_bias: Tensor | None
    A: Tensor


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, axis: Axis, aligned: bool, keep: bool, onto: Tensor | None, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        weights = Weights(*parameters)  # type: ignore[arg-type]
        ctx.axis, ctx.cast = axis, autocast_dtype(x)
        ctx.gap = -weights.dt_proj.shape[1] % 8 if aligned else 0
        with without_autocast(x.device.type):
            laid = _lay(weights, ctx.cast or x.dtype, ctx.cast, ctx.gap)
            inner = _inner(x if ctx.cast is None else x.to(ctx.cast), weights, laid, axis, ctx.gap)
            call = _call(inner, weights, laid, axis, ctx.gap)
            ctx.backend = dispatch.pick(call)
            y, _, states = low_rank.forward(dispatch.load(ctx.backend), call, save=keep)
            ctx.save_for_backward(x, *parameters, *laid, *((*inner, y, states) if keep else ()))
            if onto is None:  # made whole, as a view of it could not be added to
                made = y.new_empty(*x.shape[:3], len(laid.out_proj))
                return _product(y, laid.out_proj, laid.out_bias, made)
            ctx.mark_dirty(onto)
            total = onto.view(-1, onto.shape[3]).addmm_(y.flatten(0, 2), laid.out_proj.t())
            if laid.out_bias is not None:
                total += laid.out_bias
            return onto

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_onto = grad if ctx.needs_input_grad[3] else None
        if torch.is_grad_enabled() or looked_at():
            return (None, None, None, grad_onto, *_by_autograd(ctx, grad))
        with without_autocast(grad.device.type):
            return (None, None, None, grad_onto, *_gradients(ctx, grad))


def _by_autograd(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated or counted, of the operations that define the block."""
    given = ctx.saved_tensors[: 1 + len(Weights._fields)]
    needed = ctx.needs_input_grad[4:]
    kind, cast = grad.device.type, ctx.cast
    region = without_autocast(kind) if cast is None else torch.autocast(kind, dtype=cast)
    with torch.enable_grad(), region:
        y = mixed(given[0], Weights(*given[1:]), ctx.axis)
    wanted = [t for t, need in zip(given, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needed]


class _Inner(NamedTuple):
    """Maps between a block's first and last projection."""

    wide: Tensor  # both halves of the first projection
    u: Tensor  # the first half behind the convolution
    mixes: Tensor  # step, a gap, B and C


def _inner(x: Tensor, weights: Weights, laid: _Laid, axis: Axis, gap: int) -> _Inner:
    """Compute what the scan takes; ``x`` is in the dtype of the maps."""
    wide = _product(x, laid.in_proj, laid.in_bias)
    u = conv_silu(wide.chunk(2, -1)[0], weights.conv[:, 0], weights.conv_bias, axis)
    return _Inner(wide, u, _product(u, laid.x_proj, None))


def _call(inner: _Inner, weights: Weights, laid: _Laid, axis: Axis, gap: int) -> ScanCall:
    step, B, C = _parts(inner.mixes, weights, gap)
    wide, z = laid.A.dtype, inner.wide.chunk(2, -1)[1]
    bias = None if weights.dt_bias is None else weights.dt_bias.to(wide)
    return ScanCall(inner.u, step, laid.A, B, C, weights.D.to(wide), z, bias, None, weights.dt_proj.to(wide), axis,
                    delta_softplus=True)  # fmt: skip


def _parts(mixes: Tensor, weights: Weights, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step, B and C of every pixel, of one group of channels."""
    r, n = weights.dt_proj.shape[1], weights.A_log.shape[1]
    step, B, C = mixes[..., :r], mixes[..., r + gap : r + gap + n], mixes[..., r + gap + n :]
    return step, B.unsqueeze(3), C.unsqueeze(3)


def _gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    x, *saved = ctx.saved_tensors
    parameters, rest = len(Weights._fields), len(Weights._fields) + len(_Laid._fields)
    weights, laid, kept = Weights(*saved[:parameters]), _Laid(*saved[parameters:rest]), saved[rest:]
    needs_x, needs = ctx.needs_input_grad[4], Weights(*ctx.needs_input_grad[5:])
    backend, found = dispatch.load(ctx.backend), dict.fromkeys(Weights._fields)
    given = x if ctx.cast is None else x.to(ctx.cast)
    inner = _Inner(*kept[:3]) if kept else _inner(given, weights, laid, ctx.axis, ctx.gap)
    call = _call(inner, weights, laid, ctx.axis, ctx.gap)
    raw, pixels = inner.wide.chunk(2, -1)[0], given.flatten(0, 2)
    y, states = kept[3:] if kept else low_rank.forward(backend, call, save=True)[::2]
    y, grad = y.flatten(0, 2), grad.flatten(0, 2)
    if needs.out_proj:
        found["out_proj"] = grad.t() @ y
    if needs.out_bias:
        found["out_bias"] = grad.sum(0)
    if not (needs_x or any(needs[:-2])):
        return [None, *_typed(weights, found, ctx.gap)]
    place = torch.empty_like(y) if kept else y
    grad_y = products.product(grad, laid.out_proj.t(), place).view(call.u.shape)
    del y, place

    both = torch.empty(*x.shape[:3], len(laid.in_proj), dtype=raw.dtype, device=x.device)
    grad_raw, grad_z = both.chunk(2, -1)
    mixes = both.new_empty(*x.shape[:3], len(laid.x_proj))
    step, B, C = _parts(mixes, weights, ctx.gap)
    if ctx.gap:
        mixes[..., (rank := step.shape[-1]) : rank + ctx.gap] = 0
    grads = low_rank.backward(backend, call, states, grad_y, None, {"delta": step, "B": B, "C": C, "z": grad_z})
    del grad_y, states
    if needs.A_log:
        found["A_log"] = grads.A * laid.A
    found |= {"D": grads.D, "dt_proj": grads.delta_weight, "dt_bias": grads.delta_bias}

    mixes, u = mixes.flatten(0, 2), call.u.flatten(0, 2)
    if needs.x_proj:
        found["x_proj"] = mixes.t() @ u
    if needs_x or any(needs[:4]):
        grad_u = grads.u.flatten(0, 2)
        grad_u = products.product(mixes, laid.x_proj.t(), grad_u, add=True).view(call.u.shape)
        taps = weights.conv[:, 0]
        grad_taps, found["conv_bias"] = conv_silu_gradients(raw, taps, weights.conv_bias, grad_u, ctx.axis, grad_raw)
        found["conv"] = grad_taps[:, None]
        del grad_u, grads

    both = both.flatten(0, 2)
    if needs.in_proj:
        found["in_proj"] = both.t() @ pixels
    if needs.in_bias:
        found["in_bias"] = both.sum(0)
    grad_x = None
    if needs_x:
        grad_x = products.product(both, laid.in_proj.t(), torch.empty_like(pixels)).view(x.shape).to(x.dtype)
    kept = {name: value if need else None for (name, value), need in zip(found.items(), needs, strict=True)}
    return [grad_x, *_typed(weights, kept, ctx.gap)]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for every pixel of a map, into ``out`` if that is given; neither is copied."""
    b, h, w = x.shape[:3]
    if out is None:
        out = x.new_empty(b, h, w, len(weight))
    if all([_lies_in_a_row(t) for t in (x, out)]):
        pixels, place = (t.view(-1, t.shape[3]) for t in (x, out))
        if bias is None:
            products.product(pixels, weight, place)
        else:
            torch.addmm(bias, pixels, weight.t(), out=place)
        return out
    for image, place in zip(x, out, strict=True):  # a product for each row
        products.product(image, weight, place)
    return out if bias is None else out.add_(bias)


def _lies_in_a_row(x: Tensor) -> bool:
    """Whether all pixels of a map follow each other at one distance."""
    shape, stride = x.shape, x.stride()
    return all([shape[i] == 1 or stride[i] == shape[i + 1] * stride[i + 1] for i in (0, 1)])


def _lay(weights: Weights, maps: torch.dtype, cast: torch.dtype | None, gap: int) -> _Laid:
    """Cast matrices to ``cast`` if it is given, and put rows of zeros behind those of the step."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def laid(tensor: Tensor | None, gap: int = 0) -> Any:
        if tensor is None or not gap and cast in (None, tensor.dtype):
            return tensor
        empty = tensor.new_zeros if gap else tensor.new_empty
        made = empty((len(tensor) + gap, *tensor.shape[1:]), dtype=cast or tensor.dtype)
        pairs.extend(
            zip(_rows(made, weights, gap), _rows(tensor, weights, 0), strict=True) if gap else [(made, tensor)]
        )
        return made

    A = decay_rates(weights.A_log).to(torch.float64 if maps == torch.float64 else torch.float32)
    made = _Laid(laid(weights.in_proj), laid(weights.in_bias), laid(weights.x_proj, gap), laid(weights.out_proj),
                 laid(weights.out_bias), A)  # fmt: skip
    _copy(pairs)
    return made


def _typed(weights: Weights, found: dict[str, Tensor | None], gap: int) -> list[Tensor | None]:
    """Gradients in the dtypes of the parameters, without the rows of zeros."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, gradient in found.items():
        like, gapped = getattr(weights, name), gap > 0 and name == "x_proj"
        if gradient is None or gradient.dtype == like.dtype and not gapped:
            continue
        found[name] = made = torch.empty_like(like)
        pairs.extend(
            zip(_rows(made, weights, 0), _rows(gradient, weights, gap), strict=True) if gapped else [(made, gradient)]
        )
    _copy(pairs)
    return list(found.values())


def _rows(matrix: Tensor, weights: Weights, gap: int) -> tuple[Tensor, Tensor]:
    """The rows of ``x_proj`` before and behind a gap."""
    rank = weights.dt_proj.shape[1]
    return matrix[:rank], matrix[rank + gap :]


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair to the first, all in one kernel of a GPU."""
    if pairs:
        to, given = zip(*pairs, strict=True)
        torch._foreach_copy_(list(to), list(given))
