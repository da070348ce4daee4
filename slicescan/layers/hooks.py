"""Modules whose parameters other code may use in place of a call."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def hooked(module: nn.Module) -> bool:
    """Whether a call of a module is more than the ``forward`` of its class."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__ or bool(_has_any_global_hook())
