"""Let timm build this package's models: ``timm.create_model("slicescan_xyscannet_tiny", pretrained=True)``."""

from collections import deque
from collections.abc import Callable
from typing import Any

import timm
from timm.models import DefaultCfg, PretrainedCfg, is_model
from torch import nn

from slicescan.registry import WEIGHTS, create_model, list_models, model_entry

PREFIX = "slicescan_"
"""Before every name, so that none meets one of timm's."""

default_cfgs: dict[str, DefaultCfg] = {}
"""What timm knows of each model; its registry looks for this name in the module of an entry."""

__all__ = ["register"]


def register(filter: str = "") -> list[str]:
    """Enter models in timm's registry; those that are there already stay.

    Args:
        filter: As for :func:`slicescan.list_models`.

    Returns:
        Their names in timm.

    Example:
        >>> register("xyscannet_tiny")
        ['slicescan_xyscannet_tiny']
        >>> sum(p.numel() for p in timm.create_model("slicescan_xyscannet_tiny").parameters())
        1917504
    """
    names = []
    for name in list_models(filter):
        if not is_model(PREFIX + name):
            default_cfgs[PREFIX + name] = _config(name)
            timm.models.register_model(_entry(name))
        names.append(PREFIX + name)
    return names


def _config(name: str) -> DefaultCfg:
    shipped = WEIGHTS / f"{name}.safetensors"
    record = model_entry(name)
    about: dict[str, Any] = {
        "architecture": PREFIX + name,
        "file": str(shipped) if shipped.is_file() else None,
        "input_size": (3, 256, 256),
        "num_classes": 0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "license": record.license,
        "paper_ids": record.paper,
    }
    return DefaultCfg(tags=deque([""]), cfgs={"": PretrainedCfg(**about)}, is_pretrained=shipped.is_file())


def _entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls; it passes keywords of its own."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        if isinstance(pretrained_cfg, str):
            raise ValueError(f"{PREFIX}{name} has no weights tagged {pretrained_cfg!r}; its name alone means its own")
        given = {**_fields(pretrained_cfg), **_fields(pretrained_cfg_overlay)}
        source = next(({key: given[key]} for key in ("state_dict", "file") if given.get(key)), None)
        model = create_model(name, pretrained=pretrained, pretrained_cfg=source, cache_dir=cache_dir, **kwargs)
        model.pretrained_cfg = model.default_cfg = default_cfgs[PREFIX + name].default.to_dict() | given
        return model

    build.__name__ = build.__qualname__ = PREFIX + name
    build.__module__ = __name__
    build.__doc__ = f"``{name}`` of slicescan, see ``slicescan.model_entry({name!r})``."
    return build


def _fields(config: Any) -> dict[str, Any]:
    """What a caller says of weights, to timm: nothing, a mapping, or timm's own record."""
    return config.to_dict() if isinstance(config, PretrainedCfg) else dict(config or {})
