"""Folders of photographs as tensors."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def read_pictures(folder: str | Path) -> list[tuple[str, Tensor]]:
    """Every image below a folder, sorted by name: relative names and uint8 RGB tensors ``(3, h, w)``.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it.
        ValueError: A file is not readable as an image; the message names it.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f"{folder}: no images found (looked for {', '.join(SUFFIXES)})")
    with ThreadPoolExecutor() as pool:
        images: Iterable[Tensor] = pool.map(_read, files)
        return [(str(file.relative_to(folder)), image) for file, image in zip(files, images, strict=True)]


def _read(file: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file}: not a readable image ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
