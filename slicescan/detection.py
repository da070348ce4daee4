"""Which of several families the weights of a file belong to."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from slicescan.checkpoint import Checkpoint, CheckpointError, rename
from slicescan.models.base import Detected, Restorer

Families = Sequence[type[Restorer]]


def detect(found: Checkpoint, families: Families, outside: Iterable[object]) -> tuple[type[Restorer], Detected]:
    """Which family the names and shapes belong to: one of the package, else one from outside.

    Raises:
        CheckpointError: None of them; the message names the nearest of the package.
    """
    others = [entry for entry in outside if isinstance(entry, type) and issubclass(entry, Restorer)]
    for family in dict.fromkeys([*families, *others]):
        detected = family.detect(rename(found.state_dict, family.renames))
        if detected is not None:
            return family, detected
    keys = ", ".join(list(found.state_dict)[:3])
    known = ", ".join(family.__name__ for family in families)
    raise CheckpointError(
        f"{found.path}: these {len(found.state_dict)} weights ({keys}, …) belong to no known model ({known})"
        f"{_nearest(found.state_dict, families)}"
    )


def _nearest(state_dict: Mapping[str, Tensor], families: Families) -> str:
    """For a damaged file: the family that has most of its names, and in which names the two differ."""

    def kinds(names: Iterable[str]) -> dict[str, str]:
        return {re.sub(r"(?<=\.)\d+(?=\.)", "*", name): name for name in reversed(list(names))}

    hint, best = "", 0.5
    for family in families:
        with torch.device("meta"):
            own = kinds(family(**next(iter(family.variants.values()))).state_dict())
        theirs = kinds(rename(state_dict, family.renames))
        likeness = len(own.keys() & theirs.keys()) / len(own.keys() | theirs.keys())
        if likeness > best:
            missing = [name for kind, name in own.items() if kind not in theirs]
            unexpected = [name for kind, name in theirs.items() if kind not in own]
            faults = {"missing": missing, "unexpected": unexpected}
            best, hint = (
                likeness,
                f"; nearest: {family.__name__}"
                + "".join(
                    f", {len(names)} {fault} ({', '.join(names[-3:])})" for fault, names in faults.items() if names
                ),
            )
    return hint
