"""Layers and models for image restoration with state-space scans.

Names are imported when first used, so that ``import slicescan`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slicescan import layers, ops
    from slicescan.engine.erf import effective_receptive_field
    from slicescan.engine.profile import profile
    from slicescan.engine.restore import restore
    from slicescan.registry import (
        create_model,
        is_model,
        list_models,
        list_pretrained,
        load,
        model_entry,
        register_model,
        unregister_model,
    )

__version__ = "0.1.0"

__all__ = [
    "create_model",
    "effective_receptive_field",
    "is_model",
    "layers",
    "list_models",
    "list_pretrained",
    "load",
    "model_entry",
    "ops",
    "profile",
    "register_model",
    "restore",
    "unregister_model",
]

_HOMES = {
    "effective_receptive_field": "slicescan.engine.erf",
    "profile": "slicescan.engine.profile",
    "restore": "slicescan.engine.restore",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'slicescan' has no attribute {name!r}")
    if name in ("layers", "ops"):
        return import_module(f"slicescan.{name}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "slicescan.registry")), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
