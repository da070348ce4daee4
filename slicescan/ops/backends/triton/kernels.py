"""The scan in Triton: a program runs ``LANES`` channels of one stretch of one path, with all states in registers.

A tile is ``(N, LANES)``, states first: Triton then gives a lane one channel and all its states, so sums over states
stay inside a lane and nothing is computed twice. Tiles in memory are ``(n, d)`` for the same reason, with a pitch that
the compiler does not know: a known one would make it spread the states over lanes, to load them in wider words.

Sums over channels (gradients of B and C) go through the tensor cores: a tile times a matrix of ones has the sums in
every column, and column ``i`` of an accumulator keeps those of step ``i`` until the chunk ends. There are no atomics.

Positions: a path has ``total`` steps, and a long one may be cut into segments that run side by side. Step ``t`` lies at
``(row, step)`` of the map, where a row is a slice: a row or a column of the image. ``*_at`` are strides in elements:
batch, slice, step, channel for maps; batch, slice, step, group, state for B and C (and block of channels for their
gradients).
"""

import triton  # noqa: TID253
import triton.language as tl  # noqa: TID253

from slicescan.ops.backends.triton.steps import (
    LOG2E,
    advance,
    channels,
    lanes,
    load,
    locate,
    place,
    set_column,
    sigmoid,
    softplus,
    states,
    store,
)

SIZES = ["d", "room", "blocks", "per_group", "group_blocks", "segment_steps", "segments", "slices", "total", "length"]


@triton.jit(do_not_specialize=SIZES)
def scan_forward(
    u, delta, A, B, C, D, z, bias, first, y, last, saved,
    u_at, delta_at, B_at, C_at, z_at, y_at,
    d, blocks, per_group, group_blocks, segment_steps, segments, slices, total, length,
    n: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr,
    CARRY: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Outputs and last states; states before every chunk go to ``saved``, where that is given."""
    sequence, batch, own, segment, begin, end = place(blocks, segment_steps, segments, slices, total)
    group, _, channel, live = lanes(blocks, per_group, group_blocks, LANES)
    state = tl.arange(0, N)
    real = state < n
    held = real[:, None] & live[None, :]
    at = state[:, None] * d + channel[None, :]
    u = channels(u, u_at, batch, channel)
    delta = channels(delta, delta_at, batch, channel)
    y = channels(y, y_at, batch, channel)
    B = states(B, B_at, batch, group, state)
    C = states(C, C_at, batch, group, state)
    if z is not None:
        z = channels(z, z_at, batch, channel)
    a = tl.load(A + at, held, 0.0) * LOG2E
    if D is not None:
        skip = tl.load(D + channel, live, 0.0)
    if bias is not None:
        shift = tl.load(bias + channel, live, 0.0)
    h = tl.zeros((N, LANES), tl.float32)
    if first is not None:
        h = tl.load(first + (sequence * segments + segment) * n * d + at, held, 0.0)
    row, step = locate(begin, own, total, length, CARRY, REVERSE)
    for t in range(begin, end):
        if saved is not None:
            if t % CHUNK == 0:
                chunk = sequence * tl.cdiv(total, CHUNK) + t // CHUNK
                tl.store(saved + chunk * n * d + at, h.to(saved.dtype.element_ty), held)
        x = load(u, u_at, row, step, live)
        dt = load(delta, delta_at, row, step, live)
        b = load(B, B_at, row, step, real)
        c = load(C, C_at, row, step, real)
        if bias is not None:
            dt += shift
        if SOFTPLUS:
            dt = softplus(dt)
        h = tl.exp2(dt[None, :] * a) * h + (dt * x)[None, :] * b[:, None]
        out = tl.sum(h * c[:, None], 0)
        if D is not None:
            out += skip * x
        if z is not None:
            gate = load(z, z_at, row, step, live)
            out *= gate * sigmoid(gate)
        store(y, y_at, row, step, out, live)
        row, step = advance(row, step, length, CARRY, REVERSE)
    if end == total:
        tl.store(last + sequence * n * d + at, h, held)


@triton.jit(do_not_specialize=SIZES)
def scan_backward(
    u, delta, A, B, C, D, z, bias, dy, later, saved, scratch, du, ddelta, dB, dC, dz, sums, dfirst,
    u_at, delta_at, B_at, C_at, z_at, dy_at, du_at, ddelta_at, dB_at, dC_at, dz_at,
    d, room, blocks, per_group, group_blocks, segment_steps, segments, slices, total, length,
    n: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, TERMS: tl.constexpr,
    CARRY: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """All gradients: chunks from last to first, each run forwards into ``scratch``, then backwards.

    Gradients of B and C are sums over this block of channels; ``sums`` ``(sequence, segment, n + 2, d)`` holds those of
    A (n), D and the bias over this path. ``room`` is the size of a program's scratch.
    """
    sequence, batch, own, segment, begin, end = place(blocks, segment_steps, segments, slices, total)
    group, block, channel, live = lanes(blocks, per_group, group_blocks, LANES)
    state = tl.arange(0, N)
    real = state < n
    held = real[:, None] & live[None, :]
    at = state[:, None] * d + channel[None, :]
    u = channels(u, u_at, batch, channel)
    delta = channels(delta, delta_at, batch, channel)
    dy = channels(dy, dy_at, batch, channel)
    du = channels(du, du_at, batch, channel)
    ddelta = channels(ddelta, ddelta_at, batch, channel)
    B = states(B, B_at, batch, group, state)
    C = states(C, C_at, batch, group, state)
    dB = states(dB, dB_at, batch, group, state[:, None]) + block * dB_at[5]
    dC = states(dC, dC_at, batch, group, state[:, None]) + block * dC_at[5]
    scratch += tl.program_id(0).to(tl.int64) * room + state[:, None] * LANES + tl.arange(0, LANES)[None, :]
    if z is not None:
        z = channels(z, z_at, batch, channel)
        dz = channels(dz, dz_at, batch, channel)
    a = tl.load(A + at, held, 0.0) * LOG2E
    if D is not None:
        skip = tl.load(D + channel, live, 0.0)
    if bias is not None:
        shift = tl.load(bias + channel, live, 0.0)
    g = tl.zeros((N, LANES), tl.float32)  # exp(delta A) times the gradient of the state, from the step after
    if later is not None:
        g = tl.load(later + (sequence * segments + segment) * n * d + at, held, 0.0)
    dA = tl.zeros((N, LANES), tl.float32)
    dD = tl.zeros((LANES,), tl.float32)
    dbias = tl.zeros((LANES,), tl.float32)
    column = tl.arange(0, CHUNK)
    chunks = tl.cdiv(end - begin, CHUNK)
    for k in range(chunks):
        start = begin + (chunks - 1 - k) * CHUNK
        steps = tl.minimum(CHUNK, end - start)
        chunk = sequence * tl.cdiv(total, CHUNK) + start // CHUNK
        h = tl.load(saved + chunk * n * d + at, held, 0.0).to(tl.float32)
        row, step = locate(start, own, total, length, CARRY, REVERSE)
        for i in range(steps):
            tl.store(scratch + i * (N * LANES), h.to(scratch.dtype.element_ty))
            x = load(u, u_at, row, step, live)
            dt = load(delta, delta_at, row, step, live)
            b = load(B, B_at, row, step, real)
            if bias is not None:
                dt += shift
            if SOFTPLUS:
                dt = softplus(dt)
            h = tl.exp2(dt[None, :] * a) * h + (dt * x)[None, :] * b[:, None]
            row, step = advance(row, step, length, CARRY, REVERSE)
        tl.debug_barrier()
        sum_B = tl.zeros((N, CHUNK), tl.float32)
        sum_C = tl.zeros((N, CHUNK), tl.float32)
        row, step = locate(start + steps - 1, own, total, length, CARRY, REVERSE)
        for j in range(steps):
            i = steps - 1 - j
            x = load(u, u_at, row, step, live)
            raw = load(delta, delta_at, row, step, live)
            b = load(B, B_at, row, step, real)
            c = load(C, C_at, row, step, real)
            gy = load(dy, dy_at, row, step, live)
            before = tl.load(scratch + i * (N * LANES)).to(tl.float32)
            if bias is not None:
                raw += shift
            dt = raw
            if SOFTPLUS:
                dt = softplus(raw)
            if z is not None:
                gate = load(z, z_at, row, step, live)
                opened = sigmoid(gate)
                out = tl.sum(h * c[:, None], 0)
                if D is not None:
                    out += skip * x
                store(dz, dz_at, row, step, gy * out * opened * (1.0 + gate * (1.0 - opened)), live)
                gy *= gate * opened
            dh = g + gy[None, :] * c[:, None]
            sum_C = set_column(sum_C, gy[None, :] * h, column == i, TERMS)
            sum_B = set_column(sum_B, (dt * x)[None, :] * dh, column == i, TERMS)
            ddtu = tl.sum(dh * b[:, None], 0)
            g = tl.exp2(dt[None, :] * a) * dh
            q = g * before
            dA += dt[None, :] * q
            dx = dt * ddtu
            ddt = x * ddtu + tl.sum(a * q, 0) * (1 / LOG2E)
            if D is not None:
                dx += skip * gy
                dD += x * gy
            if SOFTPLUS:
                ddt *= sigmoid(raw)
            dbias += ddt
            store(du, du_at, row, step, dx, live)
            store(ddelta, ddelta_at, row, step, ddt, live)
            h = before
            row, step = advance(row, step, length, CARRY, not REVERSE)
        rows, at_step = locate(start + column, own, total, length, CARRY, REVERSE)
        wanted = real[:, None] & (column < steps)[None, :]
        tl.store(dB + (rows * dB_at[1] + at_step * dB_at[2])[None, :], sum_B.to(dB.dtype.element_ty), wanted)
        tl.store(dC + (rows * dC_at[1] + at_step * dC_at[2])[None, :], sum_C.to(dC.dtype.element_ty), wanted)
        tl.debug_barrier()
    sums += (sequence * segments + segment) * (n + 2) * d
    tl.store(sums + at, dA, held)
    tl.store(sums + n * d + channel, dD, live)
    tl.store(sums + (n + 1) * d + channel, dbias, live)
    if dfirst is not None:
        if begin == 0:
            tl.store(dfirst + sequence * n * d + at, g, held)


@triton.jit(do_not_specialize=SIZES)
def segment_ends(
    u, delta, A, B, C, z, bias, dy, ends, spans,
    u_at, delta_at, B_at, C_at, z_at, dy_at,
    d, blocks, per_group, group_blocks, segment_steps, segments, slices, total, length,
    n: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr,
    CARRY: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """What a segment leaves behind if it starts from nothing, and the sum of its step sizes.

    That is its last state; with ``dy``, the gradient that it hands to the segment before.
    """
    sequence, batch, own, segment, begin, end = place(blocks, segment_steps, segments, slices, total)
    group, _, channel, live = lanes(blocks, per_group, group_blocks, LANES)
    state = tl.arange(0, N)
    real = state < n
    held = real[:, None] & live[None, :]
    at = state[:, None] * d + channel[None, :]
    delta = channels(delta, delta_at, batch, channel)
    if dy is not None:
        dy = channels(dy, dy_at, batch, channel)
        C = states(C, C_at, batch, group, state)
        if z is not None:
            z = channels(z, z_at, batch, channel)
        row, step = locate(end - 1, own, total, length, CARRY, REVERSE)
    else:
        u = channels(u, u_at, batch, channel)
        B = states(B, B_at, batch, group, state)
        row, step = locate(begin, own, total, length, CARRY, REVERSE)
    a = tl.load(A + at, held, 0.0) * LOG2E
    if bias is not None:
        shift = tl.load(bias + channel, live, 0.0)
    x = tl.zeros((N, LANES), tl.float32)
    span = tl.zeros((LANES,), tl.float32)
    for _ in range(begin, end):
        dt = load(delta, delta_at, row, step, live)
        if bias is not None:
            dt += shift
        if SOFTPLUS:
            dt = softplus(dt)
        e = tl.exp2(dt[None, :] * a)
        if dy is not None:
            gy = load(dy, dy_at, row, step, live)
            c = load(C, C_at, row, step, real)
            if z is not None:
                gate = load(z, z_at, row, step, live)
                gy *= gate * sigmoid(gate)
            x = e * (x + gy[None, :] * c[:, None])
            row, step = advance(row, step, length, CARRY, not REVERSE)
        else:
            dtu = dt * load(u, u_at, row, step, live)
            b = load(B, B_at, row, step, real)
            x = e * x + dtu[None, :] * b[:, None]
            row, step = advance(row, step, length, CARRY, REVERSE)
        span += dt
    part = sequence * segments + segment
    tl.store(ends + part * n * d + at, x, held)
    tl.store(spans + part * d + channel, span, live)


@triton.jit(do_not_specialize=SIZES)
def chain_segments(
    A, start, ends, spans,
    d, blocks, segments, n: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Replace what every segment leaves behind by what enters it; ``start`` enters the first, or ``BACK`` the last."""
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * LANES + tl.arange(0, LANES)
    live = channel < d
    state = tl.arange(0, N)
    held = (state < n)[:, None] & live[None, :]
    at = state[:, None] * d + channel[None, :]
    a = tl.load(A + at, held, 0.0) * LOG2E
    x = tl.zeros((N, LANES), tl.float32)
    if start is not None:
        x = tl.load(start + sequence * n * d + at, held, 0.0)
    for i in range(segments):
        part = sequence * segments + i
        if BACK:
            part = sequence * segments + (segments - 1 - i)
        end = tl.load(ends + part * n * d + at, held, 0.0)
        span = tl.load(spans + part * d + channel, live, 0.0)
        tl.store(ends + part * n * d + at, x, held)
        x = tl.exp2(span[None, :] * a) * x + end
