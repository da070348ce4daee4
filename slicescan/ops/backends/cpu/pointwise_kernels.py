"""What threads run of 1x1 convolutions and what lies between two of them: each claims pieces until none is left.

Images come as all their numbers in one line, matrices ``(outputs, channels)`` too; a bias may be empty.
"""

from collections.abc import Callable

import numpy as np
from numba import njit  # noqa: TID253

from slicescan.ops.backends.cpu import build, gate_kernel, lanes, panel, pixel_kernels
from slicescan.ops.backends.cpu.build import claim, entry, fingerprint, room
from slicescan.ops.backends.cpu.gate_kernel import gate
from slicescan.ops.backends.cpu.lanes import EXACT
from slicescan.ops.backends.cpu.panel import multiply, pack, packed_size
from slicescan.ops.backends.cpu.pixel_kernels import convolve, convolve_four, gate_halves


@njit(**EXACT)
def _packed(weight, bias, depth):
    made = room((packed_size(weight.size // depth, depth),), weight)
    pack(made, weight, bias, depth)
    return made


@njit(**EXACT)
def _clear(x, start, count):
    for j in range(np.uint64(start), np.uint64(start + count)):
        x[j] = 0


@njit(**EXACT)
def _widen_row(to, x, start, width, left, right, channels, packed, wide):
    """A row of an image, from column ``left - 1`` up to ``right + 1``, times a matrix; zeros beside the image."""
    first, last = max(left - 1, 0), min(right + 1, width)
    begin = (first - left + 1) * wide
    _clear(to, 0, begin)
    multiply(to, begin, wide, x, (start + first) * channels, channels, packed, last - first, wide, channels)
    end = begin + (last - first) * wide
    _clear(to, end, (right - left + 2) * wide - end)


def _kernels(sources: str) -> tuple[Callable[..., None], ...]:
    """All kernels; ``sources`` stands for the files that they call."""

    @entry
    def product(counter, pixels, y, x, x_step, weight, bias, depth):
        """Multiply the channels of each pixel by a matrix.

        Args:
            counter: One number, 0 at first, that the threads share.
            pixels: Of a piece of work.
            y: To be written.
            x: All numbers from the first to the last of an image, those between its pixels too.
            x_step: Numbers from a pixel of ``x`` to the next.
            weight: The matrix.
            bias: What is added.
            depth: Channels of a pixel of ``x``.
        """
        assert sources
        outputs = weight.size // depth
        total, packed = y.size // outputs, _packed(weight, bias, depth)
        first = claim(counter) * pixels
        while first < total:
            count = min(pixels, total - first)
            multiply(y, first * outputs, outputs, x, first * x_step, x_step, packed, count, outputs, depth)
            first = claim(counter) * pixels

    @entry
    def gated_product(counter, pixels, y, a, b, from_a, from_b, weight, bias, depth):
        """Multiply ``silu(a) * b`` by a matrix.

        Args:
            counter: One number, 0 at first, that the threads share.
            pixels: Of a piece of work.
            y: To be written.
            a: All numbers of an image, as ``x`` of ``product``.
            b: Those of the other.
            from_a: Numbers from a pixel of ``a`` to the next.
            from_b: The same of ``b``.
            weight: The matrix.
            bias: What is added.
            depth: Channels of a pixel of ``a``.
        """
        assert sources
        outputs = weight.size // depth
        total, packed, gated = y.size // outputs, _packed(weight, bias, depth), room((pixels * depth,), a)
        first = claim(counter) * pixels
        while first < total:
            count = min(pixels, total - first)
            gate(gated, a[first * from_a :], b[first * from_b :], depth, from_a, from_b, 0, count)
            multiply(y, first * outputs, outputs, gated, 0, depth, packed, count, outputs, depth)
            first = claim(counter) * pixels

    @entry
    def around(counter, bands, height, width, y, x, weight, bias, taps, shift, last, last_bias):
        """Widen by a matrix, convolve each channel with its 3x3 neighbourhood; gate and narrow if there is ``last``.

        Args:
            counter: One number, 0 at first, that the threads share.
            bands: Pieces of work that an image is cut into, by its columns.
            height: Rows of an image.
            width: Pixels of a row.
            y: To be written.
            x: All numbers of the images.
            weight: The first matrix.
            bias: What is added to the first product.
            taps: ``(9 channels,)``, a channel's neighbour in the taps.
            shift: ``(channels,)``, what is added to the convolution.
            last: The last matrix; empty to stop after the convolution, without a gate.
            last_bias: What is added to the last product.
        """
        assert sources
        wide = shift.size
        half, depth, most = wide // 2, weight.size // wide, width // bands + 1
        packed, narrowing = _packed(weight, bias, depth), _packed(last, last_bias, half)
        outputs = last.size // half if last.size else wide
        rows, row = room((3, (most + 2) * wide), x), room((most * half,), x)
        values = room((4 * wide,), x)
        images = x.size // (height * width * depth)
        item = claim(counter)
        while item < images * bands:
            image, band = item // bands, item % bands
            left, right = band * width // bands, (band + 1) * width // bands
            start = image * height * width
            _clear(rows[2], 0, (right - left + 2) * wide)
            _widen_row(rows[0], x, start, width, left, right, depth, packed, wide)
            for line in range(height):
                above, here, below = rows[(line + 2) % 3], rows[line % 3], rows[(line + 1) % 3]
                if line + 1 < height:
                    _widen_row(below, x, start + (line + 1) * width, width, left, right, depth, packed, wide)
                else:
                    _clear(below, 0, (right - left + 2) * wide)
                to = start + line * width + left
                many = (right - left) // 4 * 4
                if last.size:
                    for column in range(0, many, 4):
                        convolve_four(values, above, here, below, column + 1, taps, shift, wide)
                        for k in range(4):
                            gate_halves(row, column + k, values[k * wide : (k + 1) * wide], half)
                    for column in range(many, right - left):
                        convolve(values, above, here, below, column + 1, taps, shift, wide)
                        gate_halves(row, column, values, half)
                    multiply(y, to * outputs, outputs, row, 0, half, narrowing, right - left, outputs, half)
                else:
                    for column in range(0, many, 4):
                        pixel = (to + column) * wide
                        convolve_four(y[pixel : pixel + 4 * wide], above, here, below, column + 1, taps, shift, wide)
                    for column in range(many, right - left):
                        pixel = (to + column) * wide
                        convolve(y[pixel : pixel + wide], above, here, below, column + 1, taps, shift, wide)
            item = claim(counter)

    return product, gated_product, around


product, gated_product, around = _kernels(fingerprint(build, gate_kernel, lanes, panel, pixel_kernels))
