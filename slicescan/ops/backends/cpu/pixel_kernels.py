"""What threads run of images whose channels of a pixel lie side by side: each claims pieces until none is left.

Images come as all their numbers in one line. Places have no sign: Python's negative ones would keep the compiler from
making vectors.
"""

from collections.abc import Callable

import numpy as np
from numba import njit  # noqa: TID253

from slicescan.ops.backends.cpu import build, lanes
from slicescan.ops.backends.cpu.build import arrays_are_apart, claim, entry, fingerprint, room
from slicescan.ops.backends.cpu.lanes import EXACT, SUMS, constants, sigmoid, softplus

FEW = 128
"""Numbers whose sum is float32 before it joins a float64 one."""

_place = np.uint64


@njit(**EXACT)
def convolve(y, above, here, below, column, taps, bias, channels):
    """A pixel that has neighbours on both sides, of three rows of an image."""
    arrays_are_apart()
    c = _place(channels)
    k = _place(column) * c
    left, right, two, three = k - c, k + c, c + c, c + c + c
    six, seven, eight = three + three, three + three + c, three + three + two
    for j in range(c):
        up = above[left + j] * taps[j] + above[k + j] * taps[c + j] + above[right + j] * taps[two + j]
        on = here[left + j] * taps[three + j] + here[k + j] * taps[three + c + j] + here[right + j] * taps[six - c + j]
        down = below[left + j] * taps[six + j] + below[k + j] * taps[seven + j] + below[right + j] * taps[eight + j]
        y[j] = bias[j] + up + on + down


@njit(**EXACT)
def convolve_four(y, above, here, below, column, taps, bias, channels):
    """Four pixels side by side, from ``column`` on, that have neighbours on both sides: they share what they read."""
    arrays_are_apart()
    c = _place(channels)
    left = _place(column) * c - c
    two, three = c + c, c + c + c
    four, five, six = two + two, two + three, three + three
    seven, eight = three + four, four + four
    for j in range(c):
        at = left + j
        y0 = y1 = y2 = y3 = bias[j]
        k0, k1, k2 = taps[j], taps[c + j], taps[two + j]
        a0, a1, a2 = above[at], above[at + c], above[at + two]
        a3, a4, a5 = above[at + three], above[at + four], above[at + five]
        y0 += a0 * k0 + a1 * k1 + a2 * k2
        y1 += a1 * k0 + a2 * k1 + a3 * k2
        y2 += a2 * k0 + a3 * k1 + a4 * k2
        y3 += a3 * k0 + a4 * k1 + a5 * k2
        k0, k1, k2 = taps[three + j], taps[four + j], taps[five + j]
        a0, a1, a2 = here[at], here[at + c], here[at + two]
        a3, a4, a5 = here[at + three], here[at + four], here[at + five]
        y0 += a0 * k0 + a1 * k1 + a2 * k2
        y1 += a1 * k0 + a2 * k1 + a3 * k2
        y2 += a2 * k0 + a3 * k1 + a4 * k2
        y3 += a3 * k0 + a4 * k1 + a5 * k2
        k0, k1, k2 = taps[six + j], taps[seven + j], taps[eight + j]
        a0, a1, a2 = below[at], below[at + c], below[at + two]
        a3, a4, a5 = below[at + three], below[at + four], below[at + five]
        y0 += a0 * k0 + a1 * k1 + a2 * k2
        y1 += a1 * k0 + a2 * k1 + a3 * k2
        y2 += a2 * k0 + a3 * k1 + a4 * k2
        y3 += a3 * k0 + a4 * k1 + a5 * k2
        y[j], y[c + j], y[two + j], y[three + j] = y0, y1, y2, y3


@njit(**EXACT)
def _convolve_at_edge(y, above, here, below, column, width, taps, bias, channels):
    """A pixel of the first or the last column."""
    arrays_are_apart()
    c = _place(channels)
    three = c + c + c
    for j in range(c):
        y[j] = bias[j]
    for k in range(max(0, 1 - column), min(3, width + 1 - column)):
        pixel, tap = _place(column + k - 1) * c, _place(k) * c
        for j in range(c):
            y[j] += above[pixel + j] * taps[tap + j]
            y[j] += here[pixel + j] * taps[three + tap + j]
            y[j] += below[pixel + j] * taps[three + three + tap + j]


@njit(**EXACT)
def gate_halves(y, pixel, values, half):
    """One half of the channels of a pixel gates the other."""
    arrays_are_apart()
    c = _place(half)
    to = _place(pixel) * c
    for j in range(c):
        y[to + j] = values[j] * sigmoid(values[j]) * values[c + j]


@njit(**SUMS)
def _add_and_norm(s, y, x, branch, weight, bias, eps, channels, first, last):
    """Pixels of a piece; without a branch, ``s`` is not written."""
    arrays_are_apart()
    zero, one, _, _, _, _, _ = constants(eps)
    c = _place(channels)
    for pixel in range(_place(first), _place(last)):
        at = pixel * c
        total = zero
        if branch.size:
            for j in range(c):
                value = x[at + j] + branch[at + j]
                s[at + j] = value
                total += value
        else:
            for j in range(c):
                total += x[at + j]
        source = s if branch.size else x
        mean, squares = total / np.float32(channels), zero
        for j in range(c):
            centred = source[at + j] - mean
            squares += centred * centred
        scale = one / np.sqrt(squares / np.float32(channels) + eps)
        for j in range(c):
            y[at + j] = (source[at + j] - mean) * scale * weight[j] + bias[j]


@njit(**SUMS)
def _diverge(x, first, second, start, stop):
    """Sums of both divergences over a few numbers."""
    arrays_are_apart()
    zero, _, _, _, _, _, _ = constants(x[0])
    one_sum = other_sum = zero
    for i in range(_place(start), _place(stop)):
        share, log = sigmoid(x[i]), softplus(-x[i])
        one_sum += share * (softplus(-first[i]) - log)
        other_sum += share * (softplus(-second[i]) - log)
    return one_sum, other_sum


def _kernels(sources: str) -> tuple[Callable[..., None], ...]:
    """All kernels; ``sources`` stands for the files that they call."""

    @entry
    def gated_conv(counter, height, width, y, x, taps, bias):
        """Convolve each channel with its 3x3 neighbourhood, then gate the second half of the channels by the first.

        Args:
            counter: One number, 0 at first, that the threads share.
            height: Rows of an image.
            width: Pixels of a row.
            y: All numbers of the result, to be written.
            x: All numbers of the images.
            taps: ``(9 channels,)``, a channel's neighbour in the taps.
            bias: ``(channels,)``.
        """
        assert sources
        channels = bias.size
        row, outside, values = width * channels, room((width * channels,), x), room((channels,), x)
        outside[:] = 0
        line = claim(counter)
        while line * row < x.size:
            y_in_image = line % height
            here = x[line * row : (line + 1) * row]
            above = x[(line - 1) * row : line * row] if y_in_image > 0 else outside
            below = x[(line + 1) * row : (line + 2) * row] if y_in_image < height - 1 else outside
            for column in range(width):
                if 0 < column < width - 1:
                    convolve(values, above, here, below, column, taps, bias, channels)
                else:
                    _convolve_at_edge(values, above, here, below, column, width, taps, bias, channels)
                gate_halves(y, line * width + column, values, channels // 2)
            line = claim(counter)

    @entry
    def norm(counter, pixels, s, y, x, branch, weight, bias, eps):
        """Give the channels of every pixel mean 0 and variance 1, then scale and shift them.

        Args:
            counter: One number, 0 at first, that the threads share.
            pixels: Of a piece of work.
            s: All numbers of ``x + branch``, to be written, or none.
            y: All numbers of the result, to be written.
            x: All numbers of the images.
            branch: What is added to them first, or none.
            weight: ``(channels,)``.
            bias: ``(channels,)``.
            eps: Added to the variance.
        """
        assert sources
        channels = weight.size
        total = y.size // channels
        first = claim(counter) * pixels
        while first < total:
            _add_and_norm(s, y, x, branch, weight, bias, np.float32(eps), channels, first, min(first + pixels, total))
            first = claim(counter) * pixels

    @entry
    def divergences(counter, sums, x, first, second):
        """Add up how much two maps diverge from a third: ``sigmoid(x) (log sigmoid(x) - log sigmoid(n))``.

        Args:
            counter: One number, 0 at first, that the threads share.
            sums: ``(image, piece, 2)``, float64, to be written.
            x: ``(image, numbers)``.
            first: Like ``x``.
            second: Like ``x``.
        """
        assert sources
        images, pieces, _ = sums.shape
        size = x.shape[1]
        item = claim(counter)
        while item < images * pieces:
            image, piece = item // pieces, item % pieces
            start, stop = piece * size // pieces, (piece + 1) * size // pieces
            one, other = 0.0, 0.0
            for few in range(start, stop, FEW):
                some = _diverge(x[image], first[image], second[image], few, min(few + FEW, stop))
                one, other = one + some[0], other + some[1]
            sums[image, piece, 0], sums[image, piece, 1] = one, other
            item = claim(counter)

    return gated_conv, norm, divergences


gated_conv, norm, divergences = _kernels(fingerprint(build, lanes))
