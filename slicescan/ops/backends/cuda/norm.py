"""Layer norm over the channels of each pixel, alone or of a sum, in one pass each way."""

import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slicescan.ops.backends.cuda import driver
from slicescan.ops.backends.cuda.driver import Kernel
from slicescan.ops.backends.cuda.plan import KINDS

MAX_CHANNELS = 2048
_THREADS = 128
_LOADS = 4  # of a lane and a pixel, at most, where 32 lanes suffice for that
_PROCESSORS = 132  # of an H100; the backward pass has as many blocks as these hold at once
_ENOUGH_BLOCKS, _MOST_ROUNDS = 2048, 8  # forward: only beyond these do blocks take several rounds of pixels


@functools.cache
def why_not(device: torch.device, dtype: torch.dtype, weights: torch.dtype, channels: int) -> str | None:
    """Say in one sentence why the kernels cannot norm a map of ``dtype`` on ``device``, or None if they can."""
    if device.type != "cuda" or torch.version.hip:
        return "needs tensors of an NVIDIA device"
    for given in (dtype, weights):
        if given not in KINDS:
            return f"computes in float32, so it takes no {str(given).removeprefix('torch.')}"
    if channels > MAX_CHANNELS:
        return f"holds at most {MAX_CHANNELS} channels, got {channels}"
    return driver.lacking(device)


def norm(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + branch``, or ``x`` without one, and its norm, differentiably.

    Maps are ``(b, c, h, w)``, of one dtype and densely packed with the channels of a pixel side by side; weight and
    bias are of one dtype and device.
    """
    if torch.compiler.is_compiling():
        total, y = _norm(x, branch, weight, bias, eps)
        return (x if branch is None else total), y
    given = (x, weight, bias) if branch is None else (x, branch, weight, bias)
    if torch.is_grad_enabled() and any([t.requires_grad for t in given]):
        made = _Unwatched.apply(x, branch, weight, bias, eps)
        return (x, made) if branch is None else made
    return forward(x, branch, weight, bias, eps)


def forward(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What :func:`norm` returns."""
    y = torch.empty_like(x)
    total, more = (x, 0) if branch is None else (torch.empty_like(x), branch.data_ptr())
    if x.numel():
        maps, shift = [x.data_ptr(), more, 0, total.data_ptr(), y.data_ptr()], bias.data_ptr()
        words = [*maps, weight.data_ptr(), shift, 0]
        kernel, grid, sizes = _plan("forward", x, weight, words, eps)
        driver.launch(x.device.index, kernel, grid, words + sizes)
    return total, y


def backward(x: Tensor, grad_sum: Tensor | None, grad_y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of what is normed, ``grad_sum`` included, and of weight and bias, ``(2, c)`` in float32.

    The sums over pixels are taken in a fixed order.
    """
    dx, channels = torch.empty_like(x), weight.shape[0]
    if not x.numel():
        return dx, torch.zeros((2, channels), dtype=torch.float32, device=x.device)
    grad_y = _dense(grad_y)
    if grad_sum is not None:
        grad_sum = _dense(grad_sum)
    more = 0 if grad_sum is None else grad_sum.data_ptr()
    words = [x.data_ptr(), more, grad_y.data_ptr(), 0, dx.data_ptr(), weight.data_ptr(), 0, 0]
    kernel, grid, sizes = _plan("backward", x, weight, words, eps)
    sums = torch.empty((grid, 2, channels), dtype=torch.float32, device=x.device)
    words[-1] = sums.data_ptr()
    driver.launch(x.device.index, kernel, grid, words + sizes)
    return dx, sums.sum(0)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _plan(direction: str, x: Tensor, weight: Tensor, words: list[int], eps: float) -> tuple[Kernel, int, list[int]]:
    first, more, grad, total, y, scale, shift, _ = words
    lowest = first | more | grad | total | y | 16, scale | shift | 16
    aligned = tuple([word & -word for word in lowest])
    return _planned(direction, x.dtype, weight.dtype, tuple(x.shape), aligned, bool(more), eps)


@functools.lru_cache(maxsize=512)
def _planned(
    direction: str,
    dtype: torch.dtype,
    weights: torch.dtype,
    shape: tuple[int, int, int, int],
    aligned: tuple[int, int],
    added: bool,
    eps: float,
) -> tuple[Kernel, int, list[int]]:
    b, channels, h, w = shape
    pixels = b * h * w
    vector = math.gcd(aligned[0], channels * dtype.itemsize) // dtype.itemsize
    lanes, pieces = _share(channels // vector)
    held = pieces * vector  # elements of a lane
    at_once = max(1, min(4, (32 if direction == "forward" else 16) // held))
    blocks = 6 if held <= 8 else 4 if held <= 16 else 3 if held <= 24 else 2
    together = math.gcd(aligned[1], vector * weights.itemsize) // weights.itemsize
    macros = {"KIND": KINDS[dtype], "WEIGHTS": KINDS[weights], "C": channels, "V": vector, "LANES": lanes,
              "PIECES": pieces, "PIXELS": at_once, "WV": together, "ADD": int(added), "BLOCKS": blocks}  # fmt: skip
    shared = 0 if direction == "forward" else _THREADS // 32 * 2 * channels * 4
    kernel = Kernel("norm", f"norm_{direction}", tuple(macros.items()), _THREADS, shared)
    rounds = -(-pixels // (_THREADS // lanes * at_once))
    if direction == "forward":
        each = max(1, min(_MOST_ROUNDS, rounds // _ENOUGH_BLOCKS))
        grid = -(-rounds // each)
    else:
        grid = each = min(_PROCESSORS * blocks, rounds)
    return kernel, grid, [pixels, each, *struct.unpack("I", struct.pack("f", eps))]


def _share(vectors: int) -> tuple[int, int]:
    """Lanes that share a pixel, and the vectors that each has of it: few idle lanes, few and wide accesses."""

    def idle(lanes: int) -> float:
        return -(-vectors // lanes) * lanes / vectors

    choices = [n for n in (32, 16, 8, 4, 2, 1) if -(-vectors // n) <= _LOADS and n >= min(vectors, 4)]
    lanes = min(choices or [32], key=idle)
    return lanes, -(-vectors // lanes)


class _Unwatched(torch.autograd.Function):
    """The operator without its wrapper."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        total, y = forward(x, branch, weight, bias, eps)
        ctx.eps = eps
        ctx.save_for_backward(total, weight)
        return y if branch is None else (total, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
        return _differentiate(_norm_backward if watched else backward, ctx, *grads)


@torch.library.custom_op("slicescan::cuda_norm", mutates_args=())
def _norm(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, branch = _dense(x), None if branch is None else _dense(branch)
    total, y = forward(x, branch, weight, bias, eps)
    return (x.new_empty(0) if branch is None else total), y  # an operator returns no argument


@_norm.register_fake
def _(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    return (x.new_empty(0) if branch is None else torch.empty_like(x)), torch.empty_like(x)


@torch.library.custom_op("slicescan::cuda_norm_backward", mutates_args=())
def _norm_backward(
    x: Tensor, grad_sum: Tensor | None, grad_y: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return backward(_dense(x), grad_sum, grad_y, weight, eps)


@_norm_backward.register_fake
def _(x: Tensor, grad_sum: Tensor | None, grad_y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_dense(x)), torch.empty((2, weight.shape[0]), dtype=torch.float32, device=x.device)


def _setup(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    x, branch, weight, _, ctx.eps = inputs
    ctx.alone = branch is None
    ctx.save_for_backward(x if ctx.alone else output[0], weight)


def _gradients(ctx: Any, grad_sum: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return _differentiate(_norm_backward, ctx, *([grad_y] if ctx.alone else [grad_sum, grad_y]))


def _differentiate(run: Callable[..., tuple[Tensor, Tensor]], ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    grad_sum = grads[0] if len(grads) > 1 else None
    dx, sums = run(total, grad_sum, grads[-1], weight, ctx.eps)
    dweight, dbias = sums.to(weight.dtype).unbind()
    return dx, None if grad_sum is None else dx, dweight, dbias, None


_norm.register_autograd(_gradients, setup_context=_setup)
