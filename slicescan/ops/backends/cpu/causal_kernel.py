"""What threads run of a causal convolution with SiLU: each claims pixels until none is left."""

from collections.abc import Callable

import numpy as np
from numba import njit  # noqa: TID253

from slicescan.ops.backends.cpu import build, lanes
from slicescan.ops.backends.cpu.build import arrays_are_apart, claim, entry, fingerprint
from slicescan.ops.backends.cpu.lanes import EXACT, sigmoid

_place = np.uint64


@njit(**EXACT)
def _four_taps(y, to, x, at, back, taps, bias):
    """A pixel with three before it, and four taps."""
    arrays_are_apart()
    c, to, back = _place(bias.size), _place(to), _place(back)
    third = _place(at)
    second = third - back
    first = second - back
    start = first - back
    two, three = c + c, c + c + c
    for j in range(c):
        value = bias[j] + x[start + j] * taps[j] + x[first + j] * taps[c + j]
        value = value + x[second + j] * taps[two + j] + x[third + j] * taps[three + j]
        y[to + j] = value * sigmoid(value)


@njit(**EXACT)
def _some_taps(y, to, x, at, back, taps, bias, first):
    """Any pixel, with the taps from ``first`` on."""
    arrays_are_apart()
    c, to = _place(bias.size), _place(to)
    for j in range(c):
        y[to + j] = bias[j]
    count = taps.size // bias.size
    for k in range(first, count):
        source, tap = _place(at - (count - 1 - k) * back), _place(k) * c
        for j in range(c):
            y[to + j] += x[source + j] * taps[tap + j]
    for j in range(c):
        y[to + j] = y[to + j] * sigmoid(y[to + j])


def _kernel(sources: str) -> Callable[..., None]:
    """The kernel; ``sources`` stands for the files that it calls."""

    @entry
    def causal_silu(counter, pixels, y, x, x_step, stride, length, taps, bias):
        """Convolve each channel with the positions up to its own in its sequence, and apply SiLU.

        Args:
            counter: One number, 0 at first, that the threads share.
            pixels: Of a piece of work.
            y: To be written.
            x: All numbers from the first to the last of a map, those between its pixels too.
            x_step: Numbers from a pixel of ``x`` to the next.
            stride: Pixels from a position of a sequence to the next.
            length: Of a sequence.
            taps: ``(taps channels,)``, a channel's neighbour in the taps.
            bias: ``(channels,)``.
        """
        assert sources
        channels = bias.size
        total, count = y.size // channels, taps.size // channels
        first = claim(counter) * pixels
        while first < total:
            beside, before = first % stride, first // stride % length
            for pixel in range(first, min(first + pixels, total)):
                to, at, back = pixel * channels, pixel * x_step, stride * x_step
                if count == 4 and before >= 3:
                    _four_taps(y, to, x, at, back, taps, bias)
                else:
                    _some_taps(y, to, x, at, back, taps, bias, max(0, count - 1 - before))
                beside += 1
                if beside == stride:
                    beside, before = 0, before + 1 if before + 1 < length else 0
            first = claim(counter) * pixels

    return causal_silu


causal_silu = _kernel(fingerprint(build, lanes))
