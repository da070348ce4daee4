"""Depth-wise 3x3 convolution of an image and the gate behind it, in one pass forwards, and one or two backwards."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from slicescan.ops.backends.cuda import driver
from slicescan.ops.backends.cuda.eager import direct
from slicescan.ops.backends.cuda.plan import KINDS, copy_bytes, place_of

ACTIVATIONS = {"linear": 0, "silu": 1, "gelu": 2}
_SHAPES = {
    ("forward", False, 2): (2, 4, 5, 1), ("forward", True, 2): (2, 4, 3, 3),
    ("spread", False, 2): (2, 3, 4, 1), ("gradient", True, 2): (2, 2, 2, 1),
    ("forward", False, 4): (2, 4, 5, 1), ("forward", True, 4): (2, 3, 4, 1),
    ("spread", False, 4): (1, 4, 5, 1), ("gradient", True, 4): (2, 2, 2, 1),
}  # fmt: skip
"""By pass, gate and bytes of an element: channels and rows of a thread, blocks of a processor, which leave a thread the
registers that it needs, and columns read ahead, 1 or 3. The fastest that were found on an H100."""
_THREADS = 128
_PROCESSORS = 132  # of an H100; the gradient has as many blocks as these hold at once, on any device
_ENOUGH_THREADS = 2**18  # beyond these the pieces of a map grow longer
_LONGEST = 61  # columns of a piece; one more than a multiple of three, so that walks come out even
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


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    *,
    turned: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """What :func:`convolve` returns; ``""`` stands for no gate.

    Args:
        x: ``(b, c, h, w)``.
        weight: ``(c, 1, 3, 3)``.
        bias: ``(c,)``.
        activation: The gate.
        turned: Whether the taps go from the last to the first, as gradients spread.
        out: What to write to instead of a new map; the channels of a pixel lie side by side.
    """
    x, weight, bias = _pixels(x), _known(weight), None if bias is None else _known(bias.to(weight.dtype))
    y = _result(x, activation) if out is None else out
    if not y.numel():
        return y
    kernel, places, sizes = _plan("forward", activation, (weight, bias), (x, y), turned)
    jobs = _pieces(kernel, sizes) * (weight.shape[0] // (2 if activation else 1) // dict(kernel.macros)["V"])
    words = [*places[0], *places[1], *[0] * 10, *_addresses(weight, bias), 0, *sizes, 0]
    driver.launch(x.device.index, kernel, -(-jobs // _THREADS), words)
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_y: Tensor,
    activation: str,
    *,
    out: Tensor | None = None,
    made: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``weight`` and the bias, summed in a fixed order.

    Without a bias its gradient is empty. That of ``x`` goes to ``out`` if it is given, and what a gate made, which is
    found on the way, to ``made``; both have the channels of a pixel side by side.
    """
    given, channels = weight, weight.shape[0]
    if not grad_y.numel():
        return torch.zeros_like(x), weight.new_zeros(weight.shape), weight.new_zeros(0 if bias is None else channels)
    order = x.stride()
    x, grad_y = _pixels(x), _pixels(grad_y)
    weight, bias = _known(weight), None if bias is None else _known(bias.to(weight.dtype))
    if activation:  # `third` is the gradient of the convolution's result
        direction, first, second, third = "gradient", x, grad_y, torch.empty_like(x, memory_format=_ORDER)
    else:
        direction, first, second, third = "spread", grad_y, x, _result(x, "") if out is None else out
    images = [first, second, third] if made is None else [first, second, third, made]
    kernel, places, sizes = _plan(direction, activation, (weight, bias), images, not activation)
    macros = dict(kernel.macros)
    groups, lines = -(-(macros["CHANNELS"] // macros["V"]) // macros["ACROSS"]), _THREADS // macros["ACROSS"]
    rows = max(1, min(_PROCESSORS * macros["MIN_BLOCKS"] // groups, -(-_pieces(kernel, sizes) // lines)))
    taps = 9 + macros["BIAS"]
    sums = torch.empty((rows, channels, taps), dtype=torch.float32, device=x.device)
    words = [*sum(places, []), *[0] * 5 * (4 - len(places)), *_addresses(weight, bias), sums.data_ptr(), *sizes, rows]
    driver.launch(x.device.index, kernel, rows * groups, words)
    total = sums.sum(0).to(given.dtype)
    if bias is None:
        dweight, dbias = total.view(given.shape), total.new_empty(0)
    else:
        dweight, dbias = total[:, :9].contiguous().view(given.shape), total[:, 9].contiguous()
    dx = forward(third, weight, None, "", turned=True, out=out) if activation else third
    if out is None and dx.stride() != order:
        dx = torch.empty_strided(dx.shape, order, dtype=dx.dtype, device=dx.device).copy_(dx)
    return dx, dweight, dbias


def _result(x: Tensor, activation: str) -> Tensor:
    b, c, h, w = x.shape
    shape = (b, c // 2 if activation else c, h, w)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_ORDER)


def _pixels(x: Tensor) -> Tensor:
    """A map whose pixels have their channels side by side."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous(memory_format=_ORDER)


def _known(weights: Tensor) -> Tensor:
    """Weights as the kernels read them."""
    weights = weights.detach()
    return (weights if weights.dtype in KINDS else weights.float()).contiguous()


def _addresses(weight: Tensor, bias: Tensor | None) -> list[int]:
    return [weight.data_ptr(), 0 if bias is None else bias.data_ptr()]


def _pieces(kernel: driver.Kernel, sizes: Sequence[int]) -> int:
    b, h, w, strip = sizes
    return b * -(-h // dict(kernel.macros)["TALL"]) * -(-w // strip)


def _plan(
    direction: str,
    activation: str,
    weights: tuple[Tensor, Tensor | None],
    images: Sequence[Tensor],
    turned: bool = False,
) -> tuple[driver.Kernel, list[list[int]], list[int]]:
    maps = [t.permute(0, 2, 3, 1) for t in images]
    layouts = tuple([(t.stride(), t.data_ptr() % 16) for t in maps])
    kernel, places, sizes = _planned(
        direction, activation, maps[0].dtype, weights[0].dtype, weights[1] is not None, turned, tuple(maps[0].shape),
        layouts,
    )  # fmt: skip
    return kernel, [[t.data_ptr(), *p] for t, p in zip(maps, places, strict=True)], sizes


@functools.lru_cache(maxsize=512)
def _planned(
    direction: str,
    activation: str,
    dtype: torch.dtype,
    weights: torch.dtype,
    biased: bool,
    turned: bool,
    shape: tuple[int, int, int, int],
    layouts: tuple[tuple[tuple[int, ...], int], ...],
) -> tuple[driver.Kernel, list[tuple[int, ...]], list[int]]:
    b, h, w, channels = shape
    places = [place_of(stride, shape, "w", False, False)[1] for stride, _ in layouts]
    gated, size = bool(activation), dtype.itemsize
    channels = channels // 2 if gated else channels
    together = [copy_bytes(size, channels, 0, p, aligned) for p, (_, aligned) in zip(places, layouts, strict=True)]
    most, tall, blocks, ahead = _SHAPES[direction, gated, size]
    vector = 2 if most == 2 and min(together) >= 2 * size else 1
    pitches = [*[p[2] for p in places], 0, 0][:4]
    macros = {"KIND": KINDS[dtype], "WKIND": KINDS[weights], "V": vector, "TALL": tall, "GATE": int(gated),
              "ACT": ACTIVATIONS[activation or "linear"], "BIAS": int(biased), "TURN": int(turned),
              "CHANNELS": channels, "XT": pitches[0], "YT": pitches[1], "GT": pitches[2],
              "MT": pitches[3], "MADE": int(len(places) == 4), "THREADS": _THREADS,
              "MIN_BLOCKS": blocks, "AHEAD": ahead}  # fmt: skip
    vectors, shared = channels // vector, 0
    if direction != "forward":
        macros["ACROSS"] = _across(vectors, vector * size)
        shared = _THREADS * (1 + gated) * (9 + biased) * vector * 4
    strip = _strip(w, _ENOUGH_THREADS / (b * -(-h // tall) * vectors))
    name = "gate_sums" if shared else "gate_forward"
    kernel = driver.Kernel(f"gate_{direction}", name, tuple(macros.items()), _THREADS, shared)
    return kernel, places, [b, h, w, strip]


def _strip(width: int, wanted: float) -> int:
    """Columns of a piece, so that a row of the map has about as many pieces as are wanted, of about one length."""
    longest = max(4, min(_LONGEST, math.ceil(width / max(wanted, 1.0))))
    even = math.ceil(width / math.ceil(width / longest))
    return min(_LONGEST, even + (1 - even) % 3)


def _across(vectors: int, size: int) -> int:
    """Neighbouring threads for the channels of a pixel: few idle ones, and enough for whole lines of memory."""

    def busy(across: int) -> float:
        groups = -(-vectors // across)
        return vectors / (groups * across) * (_THREADS // across * across / _THREADS)

    choices = [n for n in (64, 48, 40, 32, 24, 16, 8, 4) if n <= vectors and n * size >= 64]
    return max([*choices, min(vectors, 64)], key=busy)


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
    return torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else weight.shape[0])


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
