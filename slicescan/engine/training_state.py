"""Checkpoints of a training run: all or nothing, in parts that are easy to move."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PART = 12 << 20
"""Bytes of tensors in one file, so that parts stay small whatever the network's size."""


def write_state(folder: Path, tensors: Sequence[Tensor], step: int) -> None:
    """Write tensors and the step to ``folder``; what was there stays until the new checkpoint is complete.

    Raises:
        OSError: It cannot be written; what was written of it is removed.
    """
    fresh, old = folder.with_name(folder.name + ".new"), _old(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _write_parts(fresh, tensors, step)
    except (OSError, SafetensorError):
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():  # otherwise the old one is all there is until the next rename
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_parts(folder: Path, tensors: Sequence[Tensor], step: int) -> None:
    folder.mkdir(parents=True)
    part: dict[str, Tensor] = {}
    size, parts = 0, 0
    for index, tensor in enumerate(tensors):
        if part and size + tensor.nbytes > PART:
            save_file(part, folder / f"part-{parts}.safetensors")
            part, size, parts = {}, 0, parts + 1
        part[str(index)] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    save_file(part, folder / f"part-{parts}.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step, "tensors": len(tensors), "parts": parts + 1}))


def has_state(folder: Path) -> bool:
    """Whether there is a complete checkpoint, also if writing the next one stopped between its two renames."""
    return any((place / "state.json").is_file() for place in (folder, _old(folder)))


def step_of(folder: Path) -> int | None:
    """Step of the last complete checkpoint; None if there is none that can be read."""
    for place in (folder, _old(folder)):
        try:
            return int(json.loads((place / "state.json").read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def read_state(folder: Path, tensors: Sequence[Tensor]) -> int:
    """Fill tensors from the last complete checkpoint and return its step; 0, and nothing filled, if there is none.

    Raises:
        ValueError: The checkpoint is damaged or belongs to another recipe.
    """
    if not has_state(folder):
        return 0
    if not (folder / "state.json").is_file():
        folder = _old(folder)  # stopped between the two renames
    try:
        about = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        step, count = int(about["step"]), int(about["tensors"])
        stored: dict[str, Tensor] = {}
        for part in range(about["parts"]):
            stored |= load_file(folder / f"part-{part}.safetensors")
        values = [stored[str(index)] for index in range(count)]
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: a damaged checkpoint ({error}); remove it to start again") from error
    if count != len(tensors):
        raise ValueError(f"{folder}: holds {count} tensors, this recipe has {len(tensors)}")
    for index, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
        if value.shape != tensor.shape:
            raise ValueError(f"{folder}: tensor {index} is {tuple(value.shape)}, not {tuple(tensor.shape)}")
    with torch.no_grad():
        for value, tensor in zip(values, tensors, strict=True):
            tensor.copy_(value)
    return step


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")
