"""Keep what was read last in memory, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np


class Kept:
    """Arrays under numbers: those used last stay, as long as all of them fit.

    Example:
        >>> kept = Kept(most=6)
        >>> [kept.get(index, lambda: np.zeros(3, np.uint8)).size for index in (0, 1, 2)], len(kept)
        ([3, 3, 3], 2)
    """

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self.arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self.lock = Lock()

    def __len__(self) -> int:
        return len(self.arrays)

    def get(self, index: int, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The array under a number, read if it is not there; may be called from many threads."""
        with self.lock:
            if index in self.arrays:
                self.arrays.move_to_end(index)
                return self.arrays[index]
        array = read()
        with self.lock:
            if index not in self.arrays:
                self.arrays[index] = array
                self.bytes += array.nbytes
            while self.bytes > self.most:
                self.bytes -= self.arrays.popitem(last=False)[1].nbytes
        return array
