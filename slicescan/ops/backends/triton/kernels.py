"""The scan in Triton: one program runs ``LANES`` channels of one stretch of one sequence, all their states in registers.

A tile is ``(N, LANES)``, states first: Triton then gives every lane one channel, so that the sum over states (``y``) stays
inside a lane and nothing is computed twice. Sums over channels (``dB``, ``dC``) go through the tensor cores: the tile times a
matrix of zeros with one column of ones puts the sum of step ``i`` into column ``i`` of a small accumulator. No atomics.

A path of ``total`` steps is cut into ``segments`` of ``stride`` steps where there are too few sequences to fill a device.
Step ``t`` of the path lies at ``(slice, step)`` of the map (see :func:`locate`); rows and columns differ in strides only.
"""

import triton
import triton.language as tl

CHUNK = tl.constexpr(16)  # steps between two saved states; also columns of an accumulator
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    e = tl.exp2(-tl.abs(x) * LOG2E)
    r = 1.0 / (1.0 + e)
    return tl.where(x >= 0, r, e * r)


@triton.jit
def softplus(x):
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)  # log(1 + e) = 2 artanh(s), s <= 1/3
    q = s * s
    tail = 1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))
    return tl.maximum(x, 0.0) + 2.0 * s * (1.0 + q * (1 / 3 + q * tail))


@triton.jit
def locate(t, own, total, length, CARRY: tl.constexpr, REVERSE: tl.constexpr):
    """Slice and step of position ``t`` of a path; ``own`` is the slice of a path that stays inside one."""
    if REVERSE:
        t = total - 1 - t
    if CARRY:
        return (t // length).to(tl.int64), (t % length).to(tl.int64)
    else:
        return own, t.to(tl.int64)


@triton.jit
def program(blocks, segments, slices, segment_steps, total):
    """Block of channels, sequence, its batch entry and slice, its segment and that segment's first and last step."""
    index = tl.program_id(0)
    rest = index // blocks
    sequence = rest // segments
    segment = rest % segments
    begin = segment * segment_steps
    return index % blocks, sequence.to(tl.int64), segment, begin, min(begin + segment_steps, total)


@triton.jit
def lanes(block, group_blocks, per_group, LANES: tl.constexpr):
    """Group, channels and mask of a block of channels: no block holds channels of two groups."""
    group = block // group_blocks
    inner = (block % group_blocks) * LANES + tl.arange(0, LANES)
    return group, group * per_group + inner, inner < per_group


@triton.jit(do_not_specialize=["per_group", "blocks", "group_blocks", "segments", "segment_steps", "slices", "total", "length", "d"])
def scan_forward(
    u, delta, A, B, C, D, z, bias, first, y, last, saved,
    u_at, delta_at, B_at, C_at, z_at, y_at,
    d, per_group, blocks, group_blocks, segments, segment_steps, slices, total, length,
    n: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, CARRY: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    block, sequence, segment, begin, end = program(blocks, segments, slices, segment_steps, total)
    group, channel, live = lanes(block, group_blocks, per_group, LANES)
    batch, own = sequence // slices, sequence % slices
    state = tl.arange(0, N)
    held = (state < n)[:, None] & live[None, :]
    u += batch * u_at[0] + channel * u_at[3]
    delta += batch * delta_at[0] + channel * delta_at[3]
    y += batch * y_at[0] + channel * y_at[3]
    B += batch * B_at[0] + group * B_at[3] + state * B_at[4]
    C += batch * C_at[0] + group * C_at[3] + state * C_at[4]
    if z is not None:
        z += batch * z_at[0] + channel * z_at[3]
    at = state[:, None] * d + channel[None, :]
    a = tl.load(A + at, held, 0.0) * LOG2E
    if D is not None:
        skip = tl.load(D + channel, live, 0.0)
    if bias is not None:
        shift = tl.load(bias + channel, live, 0.0)
    h = tl.zeros((N, LANES), tl.float32)
    if first is not None:
        h = tl.load(first + (sequence * segments + segment) * d * n + at, held, 0.0)

    for t in range(begin, end):
        if saved is not None:
            if t % CHUNK == 0:
                chunk = sequence * tl.cdiv(total, CHUNK) + t // CHUNK
                tl.store(saved + chunk * d * n + at, h.to(saved.dtype.element_ty), held)
        row, step = locate(t, own, total, length, CARRY, REVERSE)
        x = tl.load(u + row * u_at[1] + step * u_at[2], live, 0.0).to(tl.float32)
        dt = tl.load(delta + row * delta_at[1] + step * delta_at[2], live, 0.0).to(tl.float32)
        b = tl.load(B + row * B_at[1] + step * B_at[2], state < n, 0.0).to(tl.float32)
        c = tl.load(C + row * C_at[1] + step * C_at[2], state < n, 0.0).to(tl.float32)
        if bias is not None:
            dt += shift
        if SOFTPLUS:
            dt = softplus(dt)
        h = tl.exp2(dt[None, :] * a) * h + (dt * x)[None, :] * b[:, None]
        out = tl.sum(h * c[:, None], 0)
        if D is not None:
            out += skip * x
        if z is not None:
            gate = tl.load(z + row * z_at[1] + step * z_at[2], live, 0.0).to(tl.float32)
            out *= gate * sigmoid(gate)
        tl.store(y + row * y_at[1] + step * y_at[2], out.to(y.dtype.element_ty), live)

    if end == total:
        tl.store(last + sequence * d * n + at, h, held)


@triton.jit
def add_column(total, tile, hot, TERMS: tl.constexpr):
    """Add the channel sums of a tile to the column of ``total`` that ``hot`` marks.

    Tensor cores take bfloat16; so many ``TERMS`` of it carry 8, 16 or 24 bits of the tile.
    """
    part = tile.to(tl.bfloat16)
    total = tl.dot(part, hot, total)
    for _ in tl.static_range(TERMS - 1):
        tile -= part.to(tl.float32)
        part = tile.to(tl.bfloat16)
        total = tl.dot(part, hot, total)
    return total


@triton.jit(do_not_specialize=["per_group", "blocks", "group_blocks", "segments", "segment_steps", "slices", "total", "length", "d", "width"])
def scan_backward(
    u, delta, A, B, C, D, z, bias, dy, later, saved, scratch, du, ddelta, dB, dC, dz, sums, dfirst,
    u_at, delta_at, B_at, C_at, z_at, dy_at, du_at, ddelta_at, dB_at, dC_at, dz_at,
    d, width, per_group, blocks, group_blocks, segments, segment_steps, slices, total, length,
    n: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr, TERMS: tl.constexpr,
    CARRY: tl.constexpr, REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    block, sequence, segment, begin, end = program(blocks, segments, slices, segment_steps, total)
    group, channel, live = lanes(block, group_blocks, per_group, LANES)
    batch, own = sequence // slices, sequence % slices
    state = tl.arange(0, N)
    held = (state < n)[:, None] & live[None, :]
    at = state[:, None] * d + channel[None, :]
    u += batch * u_at[0] + channel * u_at[3]
    delta += batch * delta_at[0] + channel * delta_at[3]
    dy += batch * dy_at[0] + channel * dy_at[3]
    du += batch * du_at[0] + channel * du_at[3]
    ddelta += batch * ddelta_at[0] + channel * ddelta_at[3]
    B += batch * B_at[0] + group * B_at[3] + state * B_at[4]
    C += batch * C_at[0] + group * C_at[3] + state * C_at[4]
    inner = (block % group_blocks).to(tl.int64)
    dB += inner * dB_at[5] + batch * dB_at[0] + group * dB_at[3] + state[:, None] * dB_at[4]
    dC += inner * dC_at[5] + batch * dC_at[0] + group * dC_at[3] + state[:, None] * dC_at[4]
    if z is not None:
        z += batch * z_at[0] + channel * z_at[3]
        dz += batch * dz_at[0] + channel * dz_at[3]
    a = tl.load(A + at, held, 0.0) * LOG2E
    if D is not None:
        skip = tl.load(D + channel, live, 0.0)
    if bias is not None:
        shift = tl.load(bias + channel, live, 0.0)
    slot = tl.arange(0, CHUNK)
    pad = state[:, None] * width + tl.arange(0, LANES)[None, :]
    scratch += tl.program_id(0).to(tl.int64) * LANES
    g = tl.zeros((N, LANES), tl.float32)
    if later is not None:
        g = tl.load(later + (sequence * segments + segment) * d * n + at, held, 0.0)
    dA = tl.zeros((N, LANES), tl.float32)
    dD = tl.zeros((LANES,), tl.float32)
    dbias = tl.zeros((LANES,), tl.float32)
    chunks = tl.cdiv(end - begin, CHUNK)
    for k in range(chunks):
        start = begin + (chunks - 1 - k) * CHUNK
        steps = min(CHUNK, end - start)
        chunk = sequence * tl.cdiv(total, CHUNK) + start // CHUNK
        h = tl.load(saved + chunk * d * n + at, held, 0.0).to(tl.float32)
        for i in range(steps):
            tl.store(scratch + i * (N * width) + pad, h.to(scratch.dtype.element_ty))
            row, step = locate(start + i, own, total, length, CARRY, REVERSE)
            x = tl.load(u + row * u_at[1] + step * u_at[2], live, 0.0).to(tl.float32)
            dt = tl.load(delta + row * delta_at[1] + step * delta_at[2], live, 0.0).to(tl.float32)
            b = tl.load(B + row * B_at[1] + step * B_at[2], state < n, 0.0).to(tl.float32)
            if bias is not None:
                dt += shift
            if SOFTPLUS:
                dt = softplus(dt)
            h = tl.exp2(dt[None, :] * a) * h + (dt * x)[None, :] * b[:, None]
        tl.debug_barrier()
        sum_B = tl.zeros((N, CHUNK), tl.float32)
        sum_C = tl.zeros((N, CHUNK), tl.float32)
        for j in range(steps):
            i = steps - 1 - j
            row, step = locate(start + i, own, total, length, CARRY, REVERSE)
            x = tl.load(u + row * u_at[1] + step * u_at[2], live, 0.0).to(tl.float32)
            raw = tl.load(delta + row * delta_at[1] + step * delta_at[2], live, 0.0).to(tl.float32)
            b = tl.load(B + row * B_at[1] + step * B_at[2], state < n, 0.0).to(tl.float32)
            c = tl.load(C + row * C_at[1] + step * C_at[2], state < n, 0.0).to(tl.float32)
            gy = tl.load(dy + row * dy_at[1] + step * dy_at[2], live, 0.0).to(tl.float32)
            before = tl.load(scratch + i * (N * width) + pad).to(tl.float32)
            if bias is not None:
                raw += shift
            dt = raw
            if SOFTPLUS:
                dt = softplus(raw)
            if z is not None:
                gate = tl.load(z + row * z_at[1] + step * z_at[2], live, 0.0).to(tl.float32)
                open = sigmoid(gate)
                out = tl.sum(h * c[:, None], 0)
                if D is not None:
                    out += skip * x
                dgate = gy * out * open * (1.0 + gate * (1.0 - open))
                tl.store(dz + row * dz_at[1] + step * dz_at[2], dgate.to(dz.dtype.element_ty), live)
                gy *= gate * open
            hot = tl.where(slot[None, :] == i, 1.0, 0.0).to(tl.bfloat16)
            hot = tl.broadcast_to(hot, (LANES, CHUNK))
            dh = g + gy[None, :] * c[:, None]
            sum_C = add_column(sum_C, gy[None, :] * h, hot, TERMS)
            sum_B = add_column(sum_B, (dt * x)[None, :] * dh, hot, TERMS)
            dx = tl.sum(dh * b[:, None], 0)
            g = tl.exp2(dt[None, :] * a) * dh
            q = g * before
            dA += dt[None, :] * q
            ddt = x * dx + tl.sum(a * q, 0) * (1 / LOG2E)
            dx *= dt
            if D is not None:
                dx += skip * gy
                dD += x * gy
            if SOFTPLUS:
                ddt *= sigmoid(raw)
            dbias += ddt
            tl.store(du + row * du_at[1] + step * du_at[2], dx.to(du.dtype.element_ty), live)
            tl.store(ddelta + row * ddelta_at[1] + step * ddelta_at[2], ddt.to(ddelta.dtype.element_ty), live)
            h = before
        row, step = locate(start + slot, own, total, length, CARRY, REVERSE)
        wanted = (state < n)[:, None] & (slot < steps)[None, :]
        tl.store(dB + (row * dB_at[1] + step * dB_at[2])[None, :], sum_B.to(dB.dtype.element_ty), wanted)
        tl.store(dC + (row * dC_at[1] + step * dC_at[2])[None, :], sum_C.to(dC.dtype.element_ty), wanted)
    sums += (sequence * segments + segment) * d * (n + 2)
    tl.store(sums + at, dA, held)
    tl.store(sums + n * d + channel, dD, live)
    tl.store(sums + (n + 1) * d + channel, dbias, live)
    if dfirst is not None:
        if begin == 0:
            tl.store(dfirst + sequence * d * n + at, g, held)
