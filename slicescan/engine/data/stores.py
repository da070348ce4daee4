"""LMDB stores as BasicSR and NAFNet write them: encoded images under their names, and a list of these names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from slicescan.engine.data.pictures import DataError, decode

MARK = "data.mdb"
"""File that makes a folder a store."""

LINE = re.compile(r"(?P<key>.+?)(\.\w+)? \((?P<h>\d+), ?(?P<w>\d+)(, ?\d+)?\)( \d+)?")
"""A line of ``meta_info.txt``: name with suffix, height, width, channels, compression."""


@dataclass(frozen=True)
class Stored:
    """An image in a store; height and width as far as the list of names tells them."""

    store: Path
    key: str
    shape: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.store}: {self.key}"

    def read(self) -> np.ndarray:
        """Pixels ``(h, w, 3)``, RGB, uint8 or uint16.

        Raises:
            DataError: The store has no such entry, or it is no image.
        """
        with _open(self.store).begin() as transaction:
            data = transaction.get(self.key.encode())
        if data is None:
            raise DataError(f"{self}: named in meta_info.txt, but not in the store")
        return decode(bytes(data), str(self))

    def size(self) -> tuple[int, int]:
        """Height and width, from the list of names if it has them."""
        if self.shape is None:
            h, w = self.read().shape[:2]
            return h, w
        return self.shape


def stored(store: Path) -> Iterator[Stored]:
    """Every image of a store, from ``meta_info.txt``; without that file, from the store's own keys.

    Raises:
        DataError: A line of the list cannot be understood; the message has its number.
        ImportError: The ``train`` extra is missing.
    """
    listed = store / "meta_info.txt"
    if not listed.is_file():
        with _open(store).begin() as transaction:
            yield from (Stored(store, bytes(key).decode()) for key, _ in transaction.cursor())
        return
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        found = LINE.fullmatch(line.strip())
        if not found:
            raise DataError(f"{listed}, line {number}: expected 'name.png (height,width,channels) level', got {line!r}")
        yield Stored(store, found["key"], (int(found["h"]), int(found["w"])))


@cache
def _open(store: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise ImportError(f"{store}: reading LMDB needs the 'train' extra: pip install 'slicescan[train]'") from None
    try:
        return lmdb.open(str(store), readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(f"{store}: not a readable LMDB ({error})") from None
