"""Fit the weights of a file to a model: rename, compare, load."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from slicescan.checkpoint.error import CheckpointError


def rename(
    state_dict: Mapping[str, Tensor], table: Iterable[tuple[str, str]], *, to_published: bool = False
) -> dict[str, Tensor]:
    """Translate published parameter names into ours, or back.

    Args:
        state_dict: Names and tensors.
        table: Pairs (our name, published name) of leading dotted parts; ``*`` stands for one part, and the stars of a
            pair correspond in order. The first pair that fits a name applies; other names stay.
        to_published: From ours to published instead.

    Example:
        >>> import torch
        >>> table = [("encoder.*.*", "Encoder.*.layers.*")]
        >>> list(rename({"Encoder.0.layers.7.bias": torch.ones(1)}, table))
        ['encoder.0.7.bias']
        >>> list(rename({"encoder.0.7.bias": torch.ones(1)}, table, to_published=True))
        ['Encoder.0.layers.7.bias']
    """
    pairs = [(ours, published) if to_published else (published, ours) for ours, published in table]
    return {_translate(key, pairs): value for key, value in state_dict.items()}


def _translate(key: str, pairs: list[tuple[str, str]]) -> str:
    parts = key.split(".")
    for source, target in pairs:
        pattern = source.split(".")
        if len(pattern) <= len(parts) and all(want in ("*", part) for want, part in zip(pattern, parts, strict=False)):
            stars = iter([part for want, part in zip(pattern, parts, strict=False) if want == "*"])
            return ".".join(
                [next(stars) if part == "*" else part for part in target.split(".")] + parts[len(pattern) :]
            )
    return key


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str | Path) -> None:
    """Load strictly: every name and shape must agree. Values are cast to the model's own precision.

    Published names are translated by the model's ``renames``, if it has any.

    Raises:
        CheckpointError: Names or shapes disagree; the message counts them and shows the first few.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> load_weights(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "ones.pth")
        >>> layer.weight.tolist()
        [[1.0, 1.0]]
    """
    own = model.state_dict()
    if table := getattr(model, "renames", ()):
        state_dict = rename(state_dict, table)
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    reshaped = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {fault} ({_first(keys)})" for fault, keys in faults.items() if keys)
        raise CheckpointError(f"{source}: does not fit {type(model).__name__}: {found}")
    model.load_state_dict(dict(state_dict))


def _first(keys: list[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (", …" if len(keys) > most else "")
