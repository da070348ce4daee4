"""What threads run of a gate: each claims pixels until none is left."""

from collections.abc import Callable

import numpy as np
from numba import njit  # noqa: TID253

from slicescan.ops.backends.cpu import build, lanes
from slicescan.ops.backends.cpu.build import arrays_are_apart, claim, entry, fingerprint
from slicescan.ops.backends.cpu.lanes import EXACT, sigmoid


@njit(**EXACT)
def gate(y, a, b, channels, from_a, from_b, first, last):
    """Pixels of a piece. Places have no sign: Python's negative ones would keep the compiler from making vectors."""
    arrays_are_apart()
    for pixel in range(np.uint64(first), np.uint64(last)):
        to, at_a, at_b = pixel * np.uint64(channels), pixel * np.uint64(from_a), pixel * np.uint64(from_b)
        for j in range(np.uint64(channels)):
            x = a[at_a + j]
            y[to + j] = x * sigmoid(x) * b[at_b + j]


def _kernel(sources: str) -> Callable[..., None]:
    """The kernel; ``sources`` stands for the files that it calls."""

    @entry
    def silu_gate(counter, channels, pixels, y, a, b, from_a, from_b):
        """Gate ``b`` by ``silu(a)``.

        Args:
            counter: One number, 0 at first, that the threads share.
            channels: Of a pixel.
            pixels: Of a piece of work.
            y: All numbers of the result, to be written.
            a: All numbers of a map.
            b: All numbers of the other.
            from_a: Numbers from a pixel of ``a`` to the next.
            from_b: The same of ``b``.
        """
        assert sources
        total = y.size // channels
        first = claim(counter) * pixels
        while first < total:
            gate(y, a, b, channels, from_a, from_b, first, min(first + pixels, total))
            first = claim(counter) * pixels

    return silu_gate


silu_gate = _kernel(fingerprint(build, lanes))
