"""Folders of photographs as tensors."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.data.kept import Kept
from slicescan.engine.data.pictures import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


MANY = 1000
"""More photographs are not read at once, so that a run begins in seconds."""

EXPANDS = 10
"""Bytes of pixels that a byte of a photograph's file holds, about: so JPEG compresses."""


class PhotoFolder(Sequence[Tensor]):
    """Photographs that are read when they are needed: uint8 RGB ``(3, h, w)``.

    Args:
        files: The photographs.
        memory: GiB of those read last that are kept.
    """

    def __init__(self, files: Sequence[Path], memory: float = 4.0):
        self.files, self.kept = list(files), Kept(int(memory * 2**30))

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "PhotoFolder": ...
    def __getitem__(self, index: int | slice) -> "Tensor | PhotoFolder":
        if isinstance(index, slice):
            return PhotoFolder(self.files[index], self.kept.most / 2**30)
        return torch.from_numpy(self.kept.get(index, lambda: _read(self.files[index]).numpy()))


def open_pictures(folder: str | Path, memory: float = 4.0) -> Sequence[Tensor]:
    """The photographs below a folder: read at once if they are few and, by their files, fit the memory; else later.

    Args:
        folder: Searched with its subfolders.
        memory: GiB of pixels to keep.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it.
        ValueError: A file is not readable as an image; the message names it.
    """
    files = _find(Path(folder))
    if len(files) > MANY or sum(file.stat().st_size for file in files) * EXPANDS > memory * 2**30:
        return PhotoFolder(files, memory)
    return [image for _, image in read_pictures(folder)]


def read_pictures(folder: str | Path) -> list[tuple[str, Tensor]]:
    """Every image below a folder, sorted by name: relative names and uint8 RGB tensors ``(3, h, w)``.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it.
        ValueError: A file is not readable as an image; the message names it.
    """
    folder = Path(folder)
    files = _find(folder)
    with ThreadPoolExecutor() as pool:
        images: Iterable[Tensor] = pool.map(_read, files)
        return [(str(file.relative_to(folder)), image) for file, image in zip(files, images, strict=True)]


def _find(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f"{folder}: no images found (looked for {', '.join(SUFFIXES)})")
    return files


def _read(file: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{file}: not a readable image ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
