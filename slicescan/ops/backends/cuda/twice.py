"""Bilinear enlargement of an image by two, in its own dtype with arithmetic in float32, of any size."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slicescan.ops.backends.cuda import pixels


def run(x: Tensor) -> Tensor:
    """Enlarge ``x`` (b, c, h, w) to (b, c, 2 h, 2 w), differentiably, channels side by side."""
    return _Twice.apply(x) if torch.is_grad_enabled() and x.requires_grad else forward(x)


def traced(x: Tensor) -> Tensor:
    """:func:`run` as an operator, for compilation."""
    return _twice(x)


def forward(x: Tensor) -> Tensor:
    """What :func:`run` returns."""
    x = pixels.flat(x)
    b, c, h, w = x.shape
    y = pixels.empty(x, b, c, 2 * h, 2 * w)
    if x.numel():
        _start("twice_forward", x, y)
    return y


def backward(grad_y: Tensor) -> Tensor:
    """Gradient of ``x``."""
    grad_y = pixels.flat(grad_y)
    b, c, h, w = grad_y.shape
    dx = pixels.empty(grad_y, b, c, h // 2, w // 2)
    if dx.numel():
        _start("twice_backward", dx, grad_y)
    return dx


def _start(name: str, small: Tensor, large: Tensor) -> None:
    b, c, h, w = small.shape
    kernel, places = pixels.plan("twice", name, c, small, large)
    pixels.launch(kernel, small, c, [*places[0], *places[1], b, h, w, c])


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        return backward(grad_y)


@torch.library.custom_op("slicescan::cuda_twice", mutates_args=())
def _twice(x: Tensor) -> Tensor:
    return forward(x)


@_twice.register_fake
def _(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return pixels.empty(x, b, c, 2 * h, 2 * w)


@torch.library.custom_op("slicescan::cuda_twice_backward", mutates_args=())
def _twice_backward(grad_y: Tensor) -> Tensor:
    return backward(grad_y)


@_twice_backward.register_fake
def _(grad_y: Tensor) -> Tensor:
    b, c, h, w = grad_y.shape
    return pixels.empty(grad_y, b, c, h // 2, w // 2)


def _gradient(ctx: Any, grad_y: Tensor) -> Tensor:
    return _twice_backward(grad_y)


_twice.register_autograd(_gradient)
