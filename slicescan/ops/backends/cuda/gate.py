"""Depth-wise 3x3 convolution of an image and the gate behind it, in one pass forwards and two backwards."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from slicescan.ops.backends.cuda import driver
from slicescan.ops.backends.cuda.eager import direct
from slicescan.ops.backends.cuda.plan import KINDS, copy_bytes, place_of, reach

ACTIVATIONS = {"linear": 0, "silu": 1, "gelu": 2}
_PIECES = {"forward": {2: (4, 8), 4: (2, 8)}, "gradient": {2: (1, 16), 4: (1, 16)}}  # rows and columns of a thread
_VECTOR = {"forward": 2, "gradient": 2}  # channels of a thread, at most
_ROWS = 1024  # rows of blocks whose sums of dweight and dbias remain
_ORDER = torch.channels_last


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say in one sentence why the kernels cannot convolve a map of ``dtype`` on ``device``, or None if they can."""
    if device.type != "cuda" or torch.version.hip:
        return "needs tensors of an NVIDIA device"
    if dtype not in KINDS:
        return f"computes in float32, so it takes no {str(dtype).removeprefix('torch.')}"
    return driver.lacking(device)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Convolve ``x`` (b, c, h, w) with ``weight`` (c, 1, 3, 3), differentiably, and gate unless ``activation`` is None.

    Returns:
        ``(b, c, h, w)``, gated ``(b, c / 2, h, w)``, with the channels of a pixel side by side.
    """
    if torch.is_autocast_enabled("cuda"):
        x = x.to(torch.get_autocast_dtype("cuda"))
    return _directly(x, weight, bias, activation or "")


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """What :func:`convolve` returns; ``""`` stands for no gate."""
    y = _result(x, activation)
    if not y.numel():
        return y
    kernel, places, sizes = _plan("forward", activation, x, y)
    taps, shift = _taps(weight), None if bias is None else _taps(bias)
    words = [*places[0], *places[1], *[0] * 5, taps.data_ptr(), 0 if shift is None else shift.data_ptr(), 0, *sizes, 0]
    jobs = _pieces(kernel, sizes) * (sizes[3] // dict(kernel.macros)["V"])
    driver.launch(x.device.index, kernel, -(-jobs // 256), words)
    return y


def backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``weight`` and the bias, summed in a fixed order."""
    channels = weight.shape[0]
    if not grad_y.numel():
        return torch.zeros_like(x), weight.new_zeros(weight.shape), weight.new_zeros(channels)
    inner = torch.empty_like(x, memory_format=_ORDER) if activation else grad_y  # gradient of the convolution's result
    kernel, places, sizes = _plan("gradient", activation, x, grad_y, inner)
    vectors = sizes[3] // dict(kernel.macros)["V"]
    across = min(vectors, 32)
    rows = max(1, min(_ROWS // -(-vectors // across), -(-_pieces(kernel, sizes) // (128 // across))))
    sums = torch.empty((rows, channels, 10), dtype=torch.float32, device=x.device)
    taps, shift = _taps(weight), None if bias is None else _taps(bias)
    words = [*places[0], *places[1], *places[2], taps.data_ptr(), 0 if shift is None else shift.data_ptr()]
    words += [sums.data_ptr(), *sizes, rows]
    driver.launch(x.device.index, kernel, rows * -(-vectors // across), words)
    total = sums.sum(0).to(weight.dtype)
    dx = forward(inner, weight.flip(2, 3), None, "")
    if dx.stride() != x.stride():
        dx = torch.empty_like(x).copy_(dx)
    return dx, total[:, :9].contiguous().view(weight.shape), total[:, 9].contiguous()


def _result(x: Tensor, activation: str) -> Tensor:
    b, c, h, w = x.shape
    shape = (b, c // 2 if activation else c, h, w)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_ORDER)


def _taps(tensor: Tensor) -> Tensor:
    taps = tensor.detach().float() if tensor.ndim == 1 else tensor.detach().float().flatten(1).t().contiguous()
    return taps if taps.data_ptr() % 8 == 0 else taps.clone()  # a part of a larger tensor; pairs are read at once


def _pieces(kernel: driver.Kernel, sizes: Sequence[int]) -> int:
    macros = dict(kernel.macros)
    tall, strip = macros["TALL"], macros["STRIP"]
    return sizes[0] * -(-sizes[1] // tall) * -(-sizes[2] // strip)


def _plan(direction: str, activation: str, *images: Tensor) -> tuple[driver.Kernel, list[list[int]], list[int]]:
    maps = [t.permute(0, 2, 3, 1) for t in images]
    layouts = tuple([(t.stride(), t.data_ptr() % 16) for t in maps])
    kernel, places, sizes = _planned(direction, activation, maps[0].dtype, tuple(maps[0].shape), layouts)
    return kernel, [[t.data_ptr(), *p] for t, p in zip(maps, places, strict=True)], sizes


@functools.lru_cache(maxsize=512)
def _planned(
    direction: str,
    activation: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    layouts: tuple[tuple[tuple[int, ...], int], ...],
) -> tuple[driver.Kernel, list[tuple[int, ...]], list[int]]:
    places = [place_of(stride, shape, "w", False, False)[1] for stride, _ in layouts]
    size, channels = dtype.itemsize, shape[3] // 2 if activation else shape[3]
    together = [copy_bytes(size, channels, 0, p, aligned) for p, (_, aligned) in zip(places, layouts, strict=True)]
    most = _VECTOR[direction] if size == 2 else 2
    vector = next((v for v in (4, 2) if v <= most and min(together) >= v * size), 1)
    wide = any(reach(stride, shape) >= 2**31 - 2**20 for stride, _ in layouts)
    tall, strip = _PIECES[direction][size]
    macros = {"KIND": KINDS[dtype], "WIDE": int(wide), "V": vector, "TALL": tall, "STRIP": strip,
              "GATE": int(bool(activation)), "ACT": ACTIVATIONS[activation or "linear"]}  # fmt: skip
    threads, halves = (256, 0) if direction == "forward" else (128, 1 + bool(activation))
    shared = threads * halves * 10 * vector * 4
    kernel = driver.Kernel(f"gate_{direction}", f"gate_{direction}", tuple(macros.items()), threads, shared)
    return kernel, places, [*shape[:3], channels]


@torch.library.custom_op("slicescan::cuda_gate", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return forward(x, weight, bias, activation)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return _result(x, activation)


@torch.library.custom_op("slicescan::cuda_gate_backward", mutates_args=())
def _convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    return backward(x, weight, bias, grad_y, activation)


@_convolve_backward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    x, weight, bias, ctx.activation = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _convolve_backward(x, weight, bias, grad_y, ctx.activation)
    return dx, dweight, None if bias is None else dbias, None


_convolve.register_autograd(_gradients, setup_context=_setup)
_directly = direct(_convolve, _convolve_backward, forward, backward, tensors=3)


@register_flop_formula(torch.ops.slicescan.cuda_gate)
def _forward_flops(x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    b, c, h, w = x_shape
    return 2 * 9 * b * c * h * w


@register_flop_formula(torch.ops.slicescan.cuda_gate_backward)
def _backward_flops(x_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _forward_flops(x_shape)
