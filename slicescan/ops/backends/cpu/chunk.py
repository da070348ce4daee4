"""What happens to a chunk of steps of a block of channels: tiles ``(step, channel)`` and states ``(n, channel)``.

The innermost loops run over channels, side by side in memory, and the compiler turns them into vectors. The order of
all sums is fixed by the code, but for those over the channels of a block, which it fixes when it compiles.
"""

from numba import njit  # noqa: TID253

from slicescan.ops.backends.cpu.build import arrays_are_apart
from slicescan.ops.backends.cpu.lanes import EXACT, SUMS, constants, exp, sigmoid, softplus


@njit(**EXACT)
def weigh(u, raw, bias, positive, step, entering, steps):
    """Step sizes, through the softplus if they are to be ``positive``, and what enters the state before ``B``."""
    arrays_are_apart()
    for t in range(steps):
        for j in range(u.shape[1]):
            x = raw[t, j] + bias[j]
            step[t, j] = softplus(x) if positive else x
            entering[t, j] = step[t, j] * u[t, j]


@njit(**EXACT)
def advance(h, rates, step, entering, B, C, y, steps):
    """Run the recurrence, the state in place, and read it out; four states at a time, which share what they read."""
    arrays_are_apart()
    n, width = rates.shape
    for t in range(steps):
        for j in range(width):
            y[t, j] = 0
        for i in range(0, n - 3, 4):
            b0, b1, b2, b3 = B[t, i], B[t, i + 1], B[t, i + 2], B[t, i + 3]
            c0, c1, c2, c3 = C[t, i], C[t, i + 1], C[t, i + 2], C[t, i + 3]
            for j in range(width):
                state0 = exp(step[t, j] * rates[i, j]) * h[i, j] + entering[t, j] * b0
                state1 = exp(step[t, j] * rates[i + 1, j]) * h[i + 1, j] + entering[t, j] * b1
                state2 = exp(step[t, j] * rates[i + 2, j]) * h[i + 2, j] + entering[t, j] * b2
                state3 = exp(step[t, j] * rates[i + 3, j]) * h[i + 3, j] + entering[t, j] * b3
                h[i, j], h[i + 1, j], h[i + 2, j], h[i + 3, j] = state0, state1, state2, state3
                y[t, j] = y[t, j] + state0 * c0 + state1 * c1 + state2 * c2 + state3 * c3
        for i in range(n // 4 * 4, n):
            b, c = B[t, i], C[t, i]
            for j in range(width):
                state = exp(step[t, j] * rates[i, j]) * h[i, j] + entering[t, j] * b
                h[i, j] = state
                y[t, j] += state * c


@njit(**EXACT)
def advance_keeping(h, decay, rates, step, entering, B, C, y, steps):
    """The same, from ``h[0]``, keeping the state after each step in ``h`` and by what the last was multiplied."""
    arrays_are_apart()
    n, width = rates.shape
    for t in range(steps):
        for j in range(width):
            y[t, j] = 0
        for i in range(n):
            b, c = B[t, i], C[t, i]
            for j in range(width):
                kept = exp(step[t, j] * rates[i, j])
                decay[t, i, j] = kept
                state = kept * h[t, i, j] + entering[t, j] * b
                h[t + 1, i, j] = state
                y[t, j] += state * c


@njit(**SUMS)
def retreat(g, h, decay, rates, step, entering, B, C, dy, d_entering, d_power, d_A, dB, dC, first, last):
    """The recurrence backwards, from step ``last - 1`` to ``first``.

    ``g``, the gradient of the state, changes in place; others are added to, or written.
    ``d_power`` is the sum over the states of the rate times the gradient of the logarithm of the decay.
    """
    arrays_are_apart()
    n, width = rates.shape
    zero, _, _, _, _, _, _ = constants(g[0, 0])
    for t in range(last - 1, first - 1, -1):
        for j in range(width):
            d_entering[t, j] = 0
            d_power[t, j] = 0
        for i in range(n):
            b, c = B[t, i], C[t, i]
            sum_b = sum_c = zero
            for j in range(width):
                gradient = g[i, j] + dy[t, j] * c
                sum_c += dy[t, j] * h[t + 1, i, j]
                sum_b += gradient * entering[t, j]
                d_entering[t, j] += gradient * b
                before = gradient * decay[t, i, j]
                g[i, j] = before
                logarithm = before * h[t, i, j]
                d_power[t, j] += logarithm * rates[i, j]
                d_A[i, j] += logarithm * step[t, j]
            dB[t, i] += sum_b
            dC[t, i] += sum_c


@njit(**EXACT)
def complete(y, u, skip, z, gated, steps):
    """Skip and gate of the output, in place."""
    arrays_are_apart()
    for t in range(steps):
        for j in range(y.shape[1]):
            whole = y[t, j] + skip[j] * u[t, j]
            y[t, j] = whole * (z[t, j] * sigmoid(z[t, j])) if gated else whole


@njit(**EXACT)
def ungate(dy, dz, y, u, skip, z, steps):
    """Gradients of the output before the gate, in the place of ``dy``, and of the gate."""
    arrays_are_apart()
    _, one, _, _, _, _, _ = constants(y[0, 0])
    for t in range(steps):
        for j in range(y.shape[1]):
            share = sigmoid(z[t, j])
            gradient, whole = dy[t, j], y[t, j] + skip[j] * u[t, j]
            dy[t, j] = gradient * (z[t, j] * share)
            dz[t, j] = gradient * whole * (share * (one + z[t, j] * (one - share)))


@njit(**EXACT)
def unweigh(d_entering, d_power, dy, u, raw, bias, skip, positive, step, d_skip, d_bias, steps):
    """Gradients of the input and of the raw step sizes, in the places of ``d_entering`` and ``d_power``."""
    arrays_are_apart()
    _, one, _, _, _, _, _ = constants(u[0, 0])
    for t in range(steps):
        for j in range(u.shape[1]):
            d_step = u[t, j] * d_entering[t, j] + d_power[t, j]
            d_raw = d_step * (sigmoid(raw[t, j] + bias[j]) if positive else one)
            d_entering[t, j] = step[t, j] * d_entering[t, j] + dy[t, j] * skip[j]
            d_power[t, j] = d_raw
            d_skip[j] += dy[t, j] * u[t, j]
            d_bias[j] += d_raw
