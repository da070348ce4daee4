"""Operators whose eager calls go round their wrapper, which costs the host more than their kernels cost a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def direct(
    operator: Callable[..., Tensor],
    backward_operator: Callable[..., Any],
    forward: Callable[..., Tensor],
    backward: Callable[..., Any],
    tensors: int,
) -> Callable[..., Tensor]:
    """A function like ``operator`` that calls ``forward`` and ``backward`` themselves where nobody traces or counts.

    Args:
        operator: The registered operator; its first ``tensors`` arguments are tensors or None.
        backward_operator: The registered operator of its gradients.
        forward: What ``operator`` does.
        backward: Gradients of the tensors from ``(*tensors, grad_y, *settings)``; those of None are not looked at.
        tensors: How many.
    """

    class Direct(torch.autograd.Function):
        """Without ``setup_context``, which inspects signatures at every call."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            ctx.save_for_backward(*arguments[:tensors])
            ctx.settings = arguments[tensors:]
            return forward(*arguments)

        @staticmethod
        def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            run = backward_operator if torch.is_grad_enabled() or _watched() else backward
            grads = run(*saved, grad_y, *ctx.settings)
            found = [None if tensor is None else grad for tensor, grad in zip(saved, grads, strict=True)]
            return (*found, *[None] * len(ctx.settings))

    def call(*arguments: Any) -> Tensor:
        if _watched():
            return operator(*arguments)
        if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in arguments[:tensors]]):
            return Direct.apply(*arguments)
        return forward(*arguments)

    return call


def _watched() -> bool:
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
