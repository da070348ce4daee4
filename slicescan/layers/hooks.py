"""Modules whose parameters other code may use in place of a call."""

from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from slicescan.layers.depthwise import DepthwiseConv2d
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.ops.library import is_ordinary, looked_at
from slicescan.ops.pointwise_conv import pointwise_linear

RECOMPUTING = ("cuda",)
"""Kinds of devices where gradients compute anew what is cheap: they have arithmetic to spare, and little memory."""

KEPT = 40_000
"""Pixels of a batch below which maps are kept: those of deep levels hold little, and their kernels are short."""

Kind = TypeVar("Kind", bound=nn.Module)


def hooked(module: nn.Module) -> bool:
    """Whether a call of a module is more than the ``forward`` of its class."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__ or bool(_has_any_global_hook())


def is_plain(module: nn.Module | None, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a call of a module is the ``forward`` of ``kind`` and no more."""
    return type(module) is kind and not hooked(module)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a call of a module is a 1x1 convolution by its weight and bias and no more."""
    if is_plain(module, PointwiseConv2d):
        return True
    if (
        not is_plain(module, nn.Conv2d)
        or module.kernel_size != (1, 1)
        or module.padding not in ((0, 0), "valid", "same")
    ):
        return False
    return module.stride == (1, 1) and module.groups == 1


def is_bare_product(module: nn.Module) -> bool:
    """Whether a call of a module is a product with its weight and no more: a 1x1 convolution without a bias."""
    return is_pointwise(module) and module.bias is None


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` for a map ``(b, h, w, c)``, by a kernel where a CPU has it and the module is a plain linear one."""
    if x.is_cpu and is_plain(module, nn.Linear):
        return pointwise_linear(x, module.weight, module.bias)
    return module(x)


def are_weights(pointwise: Sequence[nn.Module], around: nn.Module | None = None) -> bool:
    """Whether calls of 1x1 convolutions, and of a depth-wise one, are but those of their weights and biases."""
    return all([is_pointwise(conv) for conv in pointwise]) and (around is None or is_plain(around, DepthwiseConv2d))


def recomputes(maps: Sequence[Tensor], pointwise: Sequence[nn.Module], around: nn.Module | None = None) -> bool:
    """Whether the gradients of a layer may compute its inside anew, by ``slicescan.ops.recompute``.

    So it is for large maps in training on a GPU, where nobody compiles, transforms or counts, and the parameters stand
    for the calls.

    Args:
        maps: What the layer is given, first an image ``(b, c, h, w)``.
        pointwise: What the layer calls for 1x1 convolutions.
        around: What it calls for a depth-wise convolution.
    """
    kind = maps[0].device.type
    if maps[0].numel() < KEPT * maps[0].shape[1]:
        return False
    if kind not in RECOMPUTING or not torch.is_grad_enabled() or looked_at():
        return False
    if not are_weights(pointwise, around):
        return False
    convs: list[Any] = [*pointwise] if around is None else [*pointwise, around]
    tensors = [*maps, *[p for conv in convs for p in (conv.weight, conv.bias) if p is not None]]
    if not all([is_ordinary(t) for t in tensors]) or not any([t.requires_grad for t in tensors]):
        return False
    return torch.is_autocast_enabled(kind) or len({t.dtype for t in tensors}) == 1
