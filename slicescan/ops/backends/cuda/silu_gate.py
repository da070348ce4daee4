"""``silu(gate) * x`` in one pass each way, the gate where it lies: nothing but the two is kept for the gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from slicescan.ops.backends.cuda import pixels


def run(gate: Tensor, x: Tensor) -> Tensor:
    """``silu(gate) * x``, both (b, c, h, w) of one dtype, differentiably, channels side by side."""
    recorded = torch.is_grad_enabled() and (gate.requires_grad or x.requires_grad)
    return _SiluGate.apply(gate, x) if recorded else forward(gate, x)


def forward(gate: Tensor, x: Tensor) -> Tensor:
    """What :func:`run` returns."""
    gate, x = pixels.flat(gate), pixels.flat(x)
    y = pixels.empty(x, *x.shape)
    if x.numel():
        _start("silu_gate_forward", x, [gate, x, y])
    return y


def backward(gate: Tensor, x: Tensor, grad_y: Tensor, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` and ``x``; ``made`` takes what :func:`run` returned, channels side by side."""
    gate, x, grad_y = map(pixels.flat, (gate, x, grad_y))
    dgate, dx = pixels.empty(x, *x.shape), pixels.empty(x, *x.shape)
    if x.numel():
        _start("silu_gate_backward", x, [gate, x, grad_y, dgate, dx, *([] if made is None else [made])])
    return dgate, dx


def _start(name: str, x: Tensor, maps: list[Tensor]) -> None:
    b, c, h, w = x.shape
    kernel, places = pixels.plan("silu_gate", name, c, *maps)
    words = sum(places, []) + [0, 0] * (6 - len(places))
    pixels.launch(kernel, x, c, [*words, b * h * w, c])


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(gate, x)
        return forward(gate, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        gate, x = ctx.saved_tensors
        return backward(gate, x, grad_y)
