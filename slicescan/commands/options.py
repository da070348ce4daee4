"""What options of several commands mean."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """``i/n`` with 0 <= i < n."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"expected i/n with 0 <= i < n, got {text!r}")
    return int(part), int(parts)


def height_and_width(text: str) -> tuple[int, int]:
    """``HxW``, or one number for both."""
    sides = text.split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, such as 720x1280, got {text!r}")
    h, w = positive(sides[0]), positive(sides[-1])
    return h, w


def open_network(name: str, checkpoint: str | None, device: str | None) -> tuple["nn.Module", dict[str, Any]]:
    """A network by the name of a model or of a file of weights, on a device, and which file its weights came from.

    Raises:
        FileNotFoundError: There is neither such a file nor weights for such a model.
        ValueError: The name is unknown, or the device is not there.
    """
    import torch

    from slicescan.registry import WEIGHTS, create_model, is_model, load, model_entry

    file: Path | None
    if checkpoint is not None:
        model, file = create_model(name, checkpoint_path=checkpoint), Path(checkpoint)
    elif Path(name).exists() and not is_model(name):
        model, file = load(name), Path(name)
    else:
        if Path(name).suffix or "/" in name:
            raise FileNotFoundError(f"{name}: no such file")
        model_entry(name)
        model, file = create_model(name, pretrained=True), WEIGHTS / f"{name}.safetensors"
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = model.to(place).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {place}: {str(error).splitlines()[0]}") from None
    return model, {"checkpoint": file.name, "checkpoint_sha256": _hash(file)} if file.is_file() else {}


def _hash(file: Path) -> str:
    import hashlib

    with file.open("rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()
