"""Parts of the kernels: where a program works, how it moves from step to step, and the formulas of one step."""

import triton  # noqa: TID253
import triton.language as tl  # noqa: TID253

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    """Logistic function, without overflow."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    r = 1.0 / (1.0 + e)
    return tl.where(x >= 0, r, e * r)


@triton.jit
def softplus(x):
    """``log(1 + exp(x))`` to float32 accuracy: ``log(1 + e) = 2 artanh(e / (2 + e))`` by its series."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    tail = 1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + q * (1 / 3 + q * tail))


@triton.jit
def place(blocks, segment_steps, segments, slices, total):
    """Sequence, batch entry, slice, segment of a program, and the first and last step of the segment."""
    part = tl.program_id(0) // blocks
    segment = part % segments
    sequence = (part // segments).to(tl.int64)
    begin = segment * segment_steps
    return sequence, sequence // slices, sequence % slices, segment, begin, tl.minimum(begin + segment_steps, total)


@triton.jit
def lanes(blocks, per_group, group_blocks, LANES: tl.constexpr):
    """Group, block inside the group, channels and mask of a program: no block holds channels of two groups."""
    group = tl.program_id(0) % blocks // group_blocks
    block = tl.program_id(0) % blocks % group_blocks
    inner = block * LANES + tl.arange(0, LANES)
    return group.to(tl.int64), block.to(tl.int64), group * per_group + inner, inner < per_group


@triton.jit
def locate(t, own, total, length, CARRY: tl.constexpr, REVERSE: tl.constexpr):
    """Slice and step of position ``t``; ``own`` is the slice of a path that stays inside one."""
    if REVERSE:
        t = total - 1 - t
    if CARRY:
        return (t // length).to(tl.int64), (t % length).to(tl.int64)
    else:
        return own, t.to(tl.int64)


@triton.jit
def advance(row, step, length, CARRY: tl.constexpr, REVERSE: tl.constexpr):
    """Slice and step of the next position."""
    step += 1 - 2 * REVERSE
    if CARRY:
        if REVERSE:
            row -= (step < 0).to(tl.int64)
            step = tl.where(step < 0, length - 1, step)
        else:
            row += (step == length).to(tl.int64)
            step = tl.where(step == length, 0, step)
    return row, step


@triton.jit
def channels(pointer, at, batch, channel):
    """Where the channels of one image begin."""
    return pointer + batch * at[0] + channel.to(tl.int64) * at[3]


@triton.jit
def states(pointer, at, batch, group, state):
    """Where the states of one group of one image begin."""
    return pointer + batch * at[0] + group * at[3] + state.to(tl.int64) * at[4]


@triton.jit
def load(pointer, at, row, step, mask):
    """Read one step as float32; 0 outside the mask."""
    return tl.load(pointer + row * at[1] + step * at[2], mask, 0.0).to(tl.float32)


@triton.jit
def store(pointer, at, row, step, value, mask):
    """Write one step in the pointer's type."""
    tl.store(pointer + row * at[1] + step * at[2], value.to(pointer.dtype.element_ty), mask)


@triton.jit
def set_column(total, tile, here, TERMS: tl.constexpr):
    """Put the channel sums of a tile into the column of ``total`` that is ``here``.

    The tensor cores multiply bfloat16: ``TERMS`` of it carry the leading 8, 16 or 24 bits of the tile. Triton's
    interpreter cannot: with no terms, the product is one of float32.
    """
    if TERMS == 0:
        sums = tl.dot(tile, tl.full((tile.shape[1], total.shape[1]), 1.0, tl.float32))
    else:
        ones = tl.full((tile.shape[1], total.shape[1]), 1.0, tl.bfloat16)
        part = tile.to(tl.bfloat16)
        sums = tl.dot(part, ones)
        for _ in tl.static_range(TERMS - 1):
            tile -= part.to(tl.float32)
            part = tile.to(tl.bfloat16)
            sums = tl.dot(part, ones, sums)
    return tl.where(here[None, :], sums, total)
