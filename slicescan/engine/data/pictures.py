"""Pictures that are named long before they are opened: a file, or an entry of a store."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slicescan.engine.photos import PNG, SUFFIXES, read_photo

NUMBER = re.compile(r"(\d+)")


class DataError(ValueError):
    """A data set does not fit together, or a picture of it cannot be read; the message names the file."""


class Picture(Protocol):
    """What can be read when it is needed; ``str()`` of it is what messages call it."""

    def read(self) -> np.ndarray:
        """Pixels ``(h, w, 3)``, RGB, uint8 or uint16."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width, without reading the pixels where that can be."""
        ...


@dataclass(frozen=True)
class Pair:
    """A blurred picture and its sharp partner, None where a set has no references."""

    name: str
    blurred: Picture
    sharp: Picture | None


@dataclass(frozen=True)
class File:
    """A picture in a file of its own."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        """Pixels ``(h, w, 3)``, RGB, upright, uint8 or uint16; grey is repeated, transparency left out.

        Raises:
            FileNotFoundError: The file is gone.
            PhotoError: It is no image, or a damaged one.
        """
        return _three_channels(read_photo(self.path).pixels)

    def size(self) -> tuple[int, int]:
        """Height and width, from the file's head."""
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                turned = image.format in ("JPEG", "MPO", "TIFF", "WEBP") and image.getexif().get(0x0112, 1) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.path}: not a readable image ({error})") from None


def decode(data: bytes, name: str) -> np.ndarray:
    """An encoded image as pixels ``(h, w, 3)``, RGB, uint8, or uint16 for a 16-bit PNG.

    Raises:
        DataError: These bytes are no image.
        ImportError: 16 bits need the ``io`` extra.
    """
    from PIL import Image

    if data[:8] == PNG and data[24:25] == b"\x10":
        cv2 = _opencv(name)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if pixels is None:
            raise DataError(f"{name}: not a readable image (a damaged 16-bit PNG)")
        return np.ascontiguousarray(pixels[..., ::-1])
    try:
        with Image.open(BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a readable image ({str(error).split(' <')[0]})") from None


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below a root, and its files; links are followed once, hidden names left out; nothing is opened."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def in_order(name: str) -> list[tuple[int, str]]:
    """Key that sorts numbers in names by their value: frame 9 before frame 10.

    Example:
        >>> sorted(["f10.png", "f9.png"], key=in_order)
        ['f9.png', 'f10.png']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in NUMBER.split(name)]


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def _opencv(name: str) -> Any:
    try:
        import cv2
    except ImportError:
        raise ImportError(f"{name}: 16 bits a channel need the 'io' extra: pip install 'slicescan[io]'") from None
    return cv2
