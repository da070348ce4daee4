"""What threads run: each calls a kernel once, and claims work in there until none is left.

A piece of work is a sequence, or a team of them, and all its channels or one block of them. It goes by chunks of steps,
which are copied into tiles, worked on there, and copied back.
"""

from collections.abc import Callable

import numpy as np
from numba import njit  # noqa: TID253

from slicescan.ops.backends.cpu import build, chunk, lanes, plan, tiles
from slicescan.ops.backends.cpu.build import claim, entry, fingerprint, room
from slicescan.ops.backends.cpu.chunk import advance, advance_keeping, complete, retreat, ungate, unweigh, weigh
from slicescan.ops.backends.cpu.lanes import EXACT
from slicescan.ops.backends.cpu.plan import (
    CHUNK,
    DELTA,
    FEW_STEPS,
    GRAD_B,
    GRAD_DELTA,
    GRAD_U,
    GRAD_Y,
    GRAD_Z,
    B,
    U,
    Y,
    Z,
)
from slicescan.ops.backends.cpu.tiles import load, store, walk


@njit(**EXACT)
def _clear(x):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = 0


@njit(**EXACT)
def _channels(block, in_group, per_group, width):
    """First channel of a block, and how many it has."""
    group, part = divmod(block, in_group)
    return group * per_group + part * width, min(width, per_group - part * width)


@njit(**EXACT)
def _take_states(h, states, sequence, start, in_group, per_group):
    """Copy the states ``(sequence, d, n)`` of a sequence's blocks; zeros if there are none."""
    for k in range(h.shape[0]):
        channel, count = _channels(start + k, in_group, per_group, h.shape[2])
        _clear(h[k])
        if states.size:
            for j in range(count):
                for i in range(h.shape[1]):
                    h[k, i, j] = states[sequence, channel + j, i]


@njit(**EXACT)
def _give_states(h, states, sequence, start, in_group, per_group):
    """The inverse of :func:`_take_states`."""
    for k in range(h.shape[0]):
        channel, count = _channels(start + k, in_group, per_group, h.shape[2])
        for j in range(count):
            for i in range(h.shape[1]):
                states[sequence, channel + j, i] = h[k, i, j]


def _kernels(sources: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Both kernels; ``sources`` stands for the files that they call."""

    @entry
    def scan_forward(counter, sizes, places, rates, vectors, first, last, saved):
        """Run all sequences forwards.

        Args:
            counter: One number, 0 at first, that the threads share.
            sizes: Of the plan.
            places: Where the maps are, ``(map, column)``.
            rates: Decay rates, ``(block, n, channel)``.
            vectors: ``D`` and ``delta_bias``, ``(2, block, channel)``.
            first: Initial states, ``(sequence, d, n)``, or empty.
            last: Final states, ``(sequence, d, n)``, to be written.
            saved: States before each chunk but the first, ``(sequence, chunk, n, d)``, to be written, or empty.
        """
        assert sources
        sequences, slices, length, total, in_group, per_group, span, kind, softplus, gated = sizes
        blocks, n, width = rates.shape
        maps, mixes = room((9, CHUNK, width), rates), room((2, CHUNK, n), rates)
        states = room((span, n, width), rates)
        u, raw, z, y, step, entering = maps[U], maps[DELTA], maps[Z], maps[Y], maps[7], maps[8]
        b, c = mixes[0], mixes[1]
        path = np.empty((3, CHUNK), np.int64)
        parts = blocks // span
        item = claim(counter)
        while item < sequences * parts:
            sequence, start = item // parts, (item % parts) * span
            _take_states(states, first, sequence, start, in_group, per_group)
            for begin in range(0, total, CHUNK):
                steps = min(CHUNK, total - begin)
                walk(path, begin, steps, length)
                for block in range(start, start + span):
                    group, part = divmod(block, in_group)
                    channel, count = _channels(block, in_group, per_group, width)
                    at = (sequence // slices, sequence % slices, group, part)
                    h, skip, bias = states[block - start], vectors[0, block], vectors[1, block]
                    if begin and saved.size:
                        for i in range(n):
                            for j in range(count):
                                saved[sequence, begin // CHUNK - 1, i, channel + j] = h[i, j]
                    if part == 0 or span == 1:
                        for k in range(2):
                            load(mixes[k], places[B + k], at, path, steps, n, kind)
                    for k in range(GRAD_Y + 1):
                        load(maps[k], places[k], at, path, steps, count, kind)
                    weigh(u, raw, bias, softplus, step, entering, steps)
                    advance(h, rates[block], step, entering, b, c, y, steps)
                    complete(y, u, skip, z, gated, steps)
                    store(y, places[Y], at, path, steps, count, kind)
            _give_states(states, last, sequence, start, in_group, per_group)
            item = claim(counter)

    @entry
    def scan_backward(counter, sizes, places, rates, vectors, first, saved, d_last, d_first, sums, mix_kind):
        """Run all sequences backwards.

        The same arguments, and ``d_last``: gradients of the final states, ``(sequence, d, n)``, or empty; ``d_first``:
        those of the initial states, to be written, or empty; ``sums``: those of ``A``, ``D`` and ``delta_bias``,
        ``(team, n + 2, d)``, zero, to be added to; ``mix_kind``: what the gradients of ``B`` and ``C`` hold.
        """
        assert sources
        sequences, slices, length, total, in_group, per_group, span, kind, softplus, gated = sizes
        blocks, n, width = rates.shape
        maps, mixes = room((12, CHUNK, width), rates), room((4, CHUNK, n), rates)
        u, raw, z, dy, y, step, entering = maps[U], maps[DELTA], maps[Z], maps[GRAD_Y], maps[Y], maps[10], maps[11]
        d_entering, d_power, dz = maps[GRAD_U], maps[GRAD_DELTA], maps[GRAD_Z]
        b, c, db, dc = mixes[0], mixes[1], mixes[2], mixes[3]
        starts, gradients = room((span, n, width), rates), room((span, n, width), rates)
        h, decay = room((CHUNK + 1, n, width), rates), room((CHUNK, n, width), rates)
        few, totals = room((n, width), rates), room((2, width), rates)
        path = np.empty((3, CHUNK), np.int64)
        parts, teams = blocks // span, sums.shape[0]
        item = claim(counter)
        while item < teams * parts:
            team, start = item // parts, (item % parts) * span
            for sequence in range(team * sequences // teams, (team + 1) * sequences // teams):
                _take_states(starts, first, sequence, start, in_group, per_group)
                _take_states(gradients, d_last, sequence, start, in_group, per_group)
                for begin in range((total - 1) // CHUNK * CHUNK, -1, -CHUNK):
                    steps = min(CHUNK, total - begin)
                    walk(path, begin, steps, length)
                    for block in range(start, start + span):
                        group, part = divmod(block, in_group)
                        channel, count = _channels(block, in_group, per_group, width)
                        at = (sequence // slices, sequence % slices, group, part)
                        g, skip, bias = gradients[block - start], vectors[0, block], vectors[1, block]
                        for i in range(n):
                            for j in range(width):
                                h[0, i, j] = starts[block - start, i, j]
                            if begin:
                                for j in range(count):
                                    h[0, i, j] = saved[sequence, begin // CHUNK - 1, i, channel + j]
                        if part == 0 or span == 1:
                            for k in range(2):
                                load(mixes[k], places[B + k], at, path, steps, n, kind)
                                _clear(mixes[2 + k])
                        for k in range(GRAD_Y + 1):
                            load(maps[k], places[k], at, path, steps, count, kind)
                        weigh(u, raw, bias, softplus, step, entering, steps)
                        advance_keeping(h, decay, rates[block], step, entering, b, c, y, steps)
                        if gated:
                            ungate(dy, dz, y, u, skip, z, steps)
                        _clear(totals)
                        for end in range(steps, 0, -FEW_STEPS):
                            _clear(few)
                            retreat(g, h, decay, rates[block], step, entering, b, c, dy, d_entering, d_power, few, db,
                                    dc, max(end - FEW_STEPS, 0), end)  # fmt: skip
                            for i in range(n):
                                for j in range(count):
                                    sums[team, i, channel + j] += few[i, j]
                        unweigh(d_entering, d_power, dy, u, raw, bias, skip, softplus, step, totals[0], totals[1],
                                steps)  # fmt: skip
                        for i in range(2):
                            for j in range(count):
                                sums[team, n + i, channel + j] += totals[i, j]
                        for k in range(GRAD_U, GRAD_Z + 1):
                            store(maps[k], places[k], at, path, steps, count, kind)
                        if part == in_group - 1 or span == 1:
                            for k in range(2):
                                store(mixes[2 + k], places[GRAD_B + k], at, path, steps, n, mix_kind)
                if d_first.size:
                    _give_states(gradients, d_first, sequence, start, in_group, per_group)
            item = claim(counter)

    return scan_forward, scan_backward


scan_forward, scan_backward = _kernels(fingerprint(build, chunk, lanes, plan, tiles))
