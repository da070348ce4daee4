"""Chunks of maps to small tiles ``(step, channel)`` of the compute dtype, and back: all strides and dtypes end here."""

import numpy as np
from numba import carray, njit, types  # noqa: TID253

from slicescan.ops.backends.cpu.build import arrays_are_apart
from slicescan.ops.backends.cpu.lanes import EXACT, intrinsic, narrow, widen
from slicescan.ops.backends.cpu.plan import (
    ADDRESS,
    BATCH,
    BFLOAT16,
    BLOCK,
    COMPUTED,
    GROUP,
    LAST,
    SLICE,
    STEP,
)

IN_SLICE, IN_STEP, OFFSET = range(3)
"""Rows of a path, which has a column for each step of a chunk: its slice, its step in there, and room for offsets."""


@njit(**EXACT)
def walk(path, start, steps, length):
    """Fill in the path of a chunk: a sequence is one slice, or all slices of an image end to end."""
    slice_, step = divmod(start, length)
    for t in range(steps):
        path[IN_SLICE, t] = slice_
        path[IN_STEP, t] = step
        step += 1
        if step == length:
            step = 0
            slice_ += 1


@njit(**EXACT)
def load(tile, place, at, path, steps, count, kind):
    """Copy ``count`` channels of a chunk of a map into a tile, and zeros beside them.

    Args:
        tile: ``(step, channel)``.
        place: Row of the table of places.
        at: Batch, slice, group and block of the group.
        path: Of the chunk.
        steps: Of the chunk.
        count: At most the tile's channels.
        kind: What the map holds.
    """
    if place[ADDRESS] == 0:  # there is no such map
        return
    if kind == COMPUTED:
        _read(tile, place, at, path, steps, count, tile.dtype, tile.itemsize)
    elif kind == BFLOAT16:
        _read(tile, place, at, path, steps, count, np.int16, 2)
    else:
        _read(tile, place, at, path, steps, count, np.uint16, 2)
    for t in range(steps):
        for j in range(count, tile.shape[1]):
            tile[t, j] = 0


@njit(**EXACT)
def store(tile, place, at, path, steps, count, kind):
    """The inverse of :func:`load`."""
    if place[ADDRESS] == 0:
        return
    if kind == COMPUTED:
        _write(tile, place, at, path, steps, count, tile.dtype, tile.itemsize)
    elif kind == BFLOAT16:
        _write(tile, place, at, path, steps, count, np.int16, 2)
    else:
        _write(tile, place, at, path, steps, count, np.uint16, 2)


@njit(**EXACT)
def _widen_row(to, row):
    arrays_are_apart()
    for j in range(row.size):
        to[j] = widen(row[j])


@njit(**EXACT)
def _read(tile, place, at, path, steps, count, dtype, size):
    stride, start = place[LAST], _locate(place, at, path, steps)
    if stride == size:
        for t in range(steps):
            _widen_row(tile[t], carray(_pointer(start + path[OFFSET, t], dtype), (count,)))
    else:  # perhaps the steps are neighbours in memory
        for j in range(count):
            for t in range(steps):
                tile[t, j] = widen(carray(_pointer(start + path[OFFSET, t] + j * stride, dtype), (1,))[0])


@njit(**EXACT)
def _write(tile, place, at, path, steps, count, dtype, size):
    stride, start = place[LAST], _locate(place, at, path, steps)
    if stride == size:
        for t in range(steps):
            row = carray(_pointer(start + path[OFFSET, t], dtype), (count,))
            for j in range(count):
                row[j] = narrow(tile[t, j], dtype)
    else:
        for j in range(count):
            for t in range(steps):
                carray(_pointer(start + path[OFFSET, t] + j * stride, dtype), (1,))[0] = narrow(tile[t, j], dtype)


@njit(**EXACT)
def _locate(place, at, path, steps):
    """Address of a block of a sequence of a map; offsets of the chunk's steps from there go into the path."""
    batch, slice_, group, block = at
    for t in range(steps):
        path[OFFSET, t] = path[IN_SLICE, t] * place[SLICE] + path[IN_STEP, t] * place[STEP]
    start = place[ADDRESS] + batch * place[BATCH] + slice_ * place[SLICE]
    return start + group * place[GROUP] + block * place[BLOCK]


@intrinsic
def _pointer(context, address, dtype):
    """An address as a pointer to numbers of a dtype."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype.dtype)(address, dtype), generate
