"""A matrix product in float32 by the tensor cores, in three parts: as exact as one without them, and faster."""

import triton  # noqa: TID253
import triton.language as tl  # noqa: TID253


@triton.jit(do_not_specialize=["pixels", "x_width", "y_width"])
def product(
    x, weight, y, pixels, x_width, x_line, y_width, y_line,
    x_step: tl.constexpr, y_step: tl.constexpr, K: tl.constexpr, N: tl.constexpr, ADD: tl.constexpr,
    PIXELS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``y = x @ weight.T``, added to ``y`` with ``ADD``; ``weight`` is ``(N, K)`` and dense.

    Pixel ``i`` of a map lies at ``i // width * line + i % width * step``.
    """
    tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    pixel = program // tiles * PIXELS + tl.arange(0, PIXELS)
    column = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    here, real = pixel[:, None] < pixels, column < N
    x += (pixel // x_width).to(tl.int64)[:, None] * x_line + (pixel % x_width).to(tl.int64)[:, None] * x_step
    weight += column[:, None] * K
    total = tl.zeros((PIXELS, COLUMNS), tl.float32)
    for start in range(0, K, DEPTH):
        k = start + depth
        part = tl.load(x + k[None, :], here & (k[None, :] < K), 0.0)
        rows = tl.load(weight + k[None, :], real[:, None] & (k[None, :] < K), 0.0)
        total = tl.dot(part, tl.trans(rows), total, input_precision="tf32x3")
    y += (pixel // y_width).to(tl.int64)[:, None] * y_line + (pixel % y_width).to(tl.int64)[:, None] * y_step
    place = y + column[None, :]
    if ADD:
        total += tl.load(place, here & real[None, :], 0.0)
    tl.store(place, total, here & real[None, :])
