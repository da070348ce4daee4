"""Causal depth-wise convolution along the rows or columns of a map, with SiLU, in one pass over it each way."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from slicescan.ops.backends.cuda import driver
from slicescan.ops.backends.cuda.eager import direct
from slicescan.ops.backends.cuda.plan import KINDS, copy_bytes, place_of, reach

MAX_TAPS = 8
_STRIP = {"forward": 16, "backward": 32}  # steps of a thread
_ROWS = 1024  # rows of blocks whose sums of dweight and dbias remain


def why_not(x: Tensor, weight: Tensor) -> str | None:
    """Say in one sentence why the kernels cannot convolve ``x``, or None if they can."""
    if x.device.type != "cuda" or torch.version.hip:
        return "needs tensors of an NVIDIA device"
    if x.dtype not in KINDS:
        return f"computes in float32, so it takes no {str(x.dtype).removeprefix('torch.')}"
    if weight.shape[1] > MAX_TAPS:
        return f"holds at most {MAX_TAPS} taps, got {weight.shape[1]}"
    return driver.lacking(x.device)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str, silu: bool) -> Tensor:
    """Convolve ``x`` (b, h, w, d) with ``weight`` (d, k), differentiably: a map like ``x``."""
    if torch.is_autocast_enabled("cuda"):
        x = x.to(torch.get_autocast_dtype("cuda"))
    return _directly(x, weight, bias, axis, silu)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str, silu: bool) -> Tensor:
    """What :func:`causal_conv` returns."""
    y = torch.empty_like(x)
    if x.numel():
        kernel, places, sizes = _plan("forward", axis, silu, weight.shape[1], x, y)
        taps, shift = _taps(weight), None if bias is None else _taps(bias)
        words = [
            *places[0],
            *places[1],
            *[0] * 10,
            taps.data_ptr(),
            0 if shift is None else shift.data_ptr(),
            0,
            *sizes,
            0,
        ]
        batch, slices, length, channels = sizes[:4]
        jobs = batch * slices * -(-length // _STRIP["forward"]) * (channels // dict(kernel.macros)["V"])
        driver.launch(x.device.index, kernel, -(-jobs // 256), words)
    return y


def backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, axis: str, silu: bool, into: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, in the place ``into`` if given, of ``weight`` and of the bias, summed in a fixed order."""
    dx, (d, taps) = torch.empty_like(x) if into is None else into, weight.shape
    if not x.numel():
        return dx, weight.new_zeros(weight.shape), weight.new_zeros(d)
    kernel, places, sizes = _plan("backward", axis, silu, taps, x, grad_y, dx)
    batch, slices, length, _ = sizes[:4]
    vectors = d // dict(kernel.macros)["V"]
    across = min(vectors, 32)
    items = batch * slices * -(-length // _STRIP["backward"])
    rows = max(1, min(_ROWS // -(-vectors // across), -(-items // (256 // across))))
    sums = torch.empty((rows, d, taps + 1), dtype=torch.float32, device=x.device)
    tap, shift = _taps(weight), None if bias is None else _taps(bias)
    words = [*places[0], *[0] * 5, *places[1], *places[2], tap.data_ptr(), 0 if shift is None else shift.data_ptr()]
    words += [sums.data_ptr(), *sizes, rows]
    driver.launch(x.device.index, kernel, rows * -(-vectors // across), words)
    total = sums.sum(0).to(weight.dtype)
    return dx, total[:, :taps].contiguous(), total[:, taps].contiguous()


def _taps(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()


def _plan(
    direction: str, axis: str, silu: bool, taps: int, *maps: Tensor
) -> tuple[driver.Kernel, list[list[int]], list[int]]:
    layouts = tuple([(t.stride(), t.data_ptr() % 16) for t in maps])
    kernel, places, sizes = _planned(direction, axis, silu, taps, maps[0].dtype, tuple(maps[0].shape), layouts)
    return kernel, [[t.data_ptr(), *p] for t, p in zip(maps, places, strict=True)], sizes


@functools.lru_cache(maxsize=512)
def _planned(
    direction: str,
    axis: str,
    silu: bool,
    taps: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    layouts: tuple[tuple[tuple[int, ...], int], ...],
) -> tuple[driver.Kernel, list[tuple[int, ...]], list[int]]:
    places = [place_of(stride, shape, axis, False, False)[1] for stride, _ in layouts]
    size, d = dtype.itemsize, shape[3]
    together = [copy_bytes(size, d, 0, p, aligned) for p, (_, aligned) in zip(places, layouts, strict=True)]
    vector = 4 if min(together) >= 4 * size else 1
    wide = any(reach(stride, shape) >= 2**31 - 2**20 for stride, _ in layouts)
    macros = {"KIND": KINDS[dtype], "WIDE": int(wide), "K": taps, "V": vector, "STRIP": _STRIP[direction],
              "SILU": int(silu)}  # fmt: skip
    shared = 256 * (taps + 1) * vector * 4 if direction == "backward" else 0
    kernel = driver.Kernel("conv", f"conv_{direction}", tuple(macros.items()), 256, shared)
    slices, length = (shape[1], shape[2]) if axis == "w" else (shape[2], shape[1])
    return kernel, places, [shape[0], slices, length, d, int(abs(places[0][2]) < abs(places[0][1]))]


@torch.library.custom_op("slicescan::cuda_conv", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str, silu: bool) -> Tensor:
    return forward(x, weight, bias, axis, silu)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str, silu: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("slicescan::cuda_conv_backward", mutates_args=())
def _convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, axis: str, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return backward(x, weight, bias, grad_y, axis, silu)


@_convolve_backward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, axis: str, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    x, weight, bias, ctx.axis, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _convolve_backward(x, weight, bias, grad_y, ctx.axis, ctx.silu)
    return dx, dweight, None if bias is None else dbias, None, None


_convolve.register_autograd(_gradients, setup_context=_setup)
_directly = direct(_convolve, _convolve_backward, forward, backward, tensors=3)


@register_flop_formula(torch.ops.slicescan.cuda_conv)
def _forward_flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[1]


@register_flop_formula(torch.ops.slicescan.cuda_conv_backward)
def _backward_flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _forward_flops(x_shape, weight_shape)
