"""
Write a scan backend
====================

Every scan of slicescan ends in one operator, and a backend is what runs it: four functions that receive
one checked call. This page writes one that needs ``log2(l)`` rounds instead of ``l`` steps, in plain
PyTorch, and holds it against the exact recurrence.

The idea: after ``h_t = a_t h_(t-1) + x_t``, two steps are again one step, with decay ``a_t a_(t-1)`` and input
``x_t + a_t x_(t-1)``. Doubling the stride until it passes the end gives all states at once.
"""

import torch
import torch.nn.functional as F

from slicescan.ops import register_backend, slice_scan, unregister_backend
from slicescan.ops.call import Gradients
from slicescan.ops.paths import roll, state_shape, unroll


def states(decay, x):
    """All ``h_t = decay_t h_(t-1) + x_t`` along the first axis, ``(l, s, d, n)``."""
    stride = 1
    while stride < len(x):
        x = torch.cat([x[:stride], x[stride:] + decay[stride:] * x[:-stride]])
        decay = torch.cat([decay[:stride], decay[stride:] * decay[:-stride]])
        stride *= 2
    return x


# %%
# The four functions
# ------------------
#
# ``why_not`` says in words what the backend leaves to others. ``unroll`` and ``roll`` turn a map into
# sequences, time first, and back; in between there is neither an axis nor a direction. The gradient of a
# scan is a scan from the end, so ``backward`` uses the same function.


class Doubling:
    def why_not(self, call):
        if call.z is not None or call.initial_state is not None or call.B.shape[3] > 1:
            return "it has no gate, no initial state and no groups of channels"
        return "it runs no empty maps" if 0 in call.u.shape else None

    def saved_spec(self, call):
        return (0,), call.A.dtype  # it keeps nothing for the backward pass

    def forward(self, call, *, save):
        decay, _, _, h, C = self._run(call)
        y = roll((h * C).sum(-1), call)
        if call.D is not None:
            y = y + call.D * call.u
        return self._like(call.u, y), h[-1].reshape(state_shape(call)), call.A.new_empty(0)

    def backward(self, call, saved, grad_y, grad_last):
        decay, step, B, h, C = self._run(call)
        u, g = unroll(call.u.to(call.A.dtype), call), unroll(grad_y.to(call.A.dtype), call)
        into = g[..., None] * C
        if grad_last is not None:
            into[-1] += grad_last.flatten(0, 1)
        after = torch.cat([decay[1:], decay[:1]])  # the decay that a state meets in the next step
        grad_h = states(after.flip(0), into.flip(0)).flip(0)
        before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
        exponent = grad_h * before * decay
        to_input = (grad_h * B).sum(-1)
        grad_step = (exponent * call.A).sum(-1) + to_input * u
        if call.delta_softplus:
            grad_step = grad_step * (1 - torch.exp(-step))  # the sigmoid of what softplus was given
        grad_u = to_input * step + (0 if call.D is None else call.D * g)
        mixes = [(grad_h * (step * u)[..., None]).sum(2), (g[..., None] * h).sum(2)]
        grad_B, grad_C = (roll(grad[:, :, None], call).to(call.u.dtype).contiguous() for grad in mixes)
        return Gradients(
            u=self._like(call.u, roll(grad_u, call)),
            delta=self._like(call.delta, roll(grad_step, call)),
            A=(exponent * step[..., None]).sum((0, 1)),
            B=grad_B,
            C=grad_C,
            D=None if call.D is None else (g * u).sum((0, 1)),
            z=None,
            delta_bias=None if call.delta_bias is None else grad_step.sum((0, 1)),
            initial_state=None,
        )

    def _run(self, call):
        step = call.delta.to(call.A.dtype)
        step = step if call.delta_bias is None else step + call.delta_bias
        step = unroll(F.softplus(step) if call.delta_softplus else step, call)
        u, B, C = (unroll(x.to(call.A.dtype), call) for x in (call.u, call.B, call.C))
        decay = torch.exp(step[..., None] * call.A)
        return decay, step, B, states(decay, (step * u)[..., None] * B), C

    def _like(self, map_, value):
        return torch.empty_like(map_).copy_(value)  # in the dtype and memory order of a map of the call


# %%
# Register it
# -----------
#
# From here on a call can name it, ``SLICESCAN_BACKEND=doubling`` chooses it for everything, and
# ``slicescan doctor`` lists it. It runs only where it is named, unless ``before="cpu"`` puts it before another.

register_backend("doubling", Doubling())

from slicescan.engine.doctor import diagnosis

report = diagnosis()
print(report[report.index("Scan backends") : report.index("Extras")])

# %%
# Hold it against the exact recurrence
# ------------------------------------
#
# The ``reference`` in float64 is exact as far as float32 can tell. A backend may err twice as much as the
# plain reference does in its own precision, and one rounding more; nobody types a tolerance.

torch.manual_seed(0)
b, h, w, d, n = 2, 3, 200, 6, 4
call = {
    "u": torch.randn(b, h, w, d),
    "delta": torch.randn(b, h, w, d),
    "A": -torch.rand(d, n) - 0.1,
    "B": torch.randn(b, h, w, n),
    "C": torch.randn(b, h, w, n),
    "D": torch.randn(d),
    "delta_bias": torch.randn(d),
}


def results(backend, dtype, **settings):
    """The output, and the gradient of every argument."""
    leaves = {name: value.to(dtype).requires_grad_() for name, value in call.items()}
    y = slice_scan(**leaves, delta_softplus=True, **settings, backend=backend)
    grads = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def errors(found, exact):
    return {name: ((found[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}


ways = [{"axis": axis, "reverse": reverse} for axis in "wh" for reverse in (False, True)]
ours, plain = {}, {}
for way in ways:
    exact = results("reference", torch.float64, **way)
    for collected, backend in ((ours, "doubling"), (plain, "reference")):
        for name, error in errors(results(backend, torch.float32, **way), exact).items():
            collected[name] = max(error, collected.get(name, 0.0))
rounding = torch.finfo(torch.float32).eps
assert all(ours[name] <= 2 * plain[name] + rounding for name in ours)

# %%
# For every result, the largest error over rows and columns in both directions:

import matplotlib.pyplot as plt
import numpy as np

place = np.arange(len(ours))
allowed = [2 * plain[name] + rounding for name in ours]
plt.figure(figsize=(8, 3.5), layout="constrained")
plt.bar(place - 0.2, list(plain.values()), 0.4, label="plain recurrence in float32")
plt.bar(place + 0.2, list(ours.values()), 0.4, label="doubling in float32")
plt.hlines(allowed, place - 0.45, place + 0.45, color="black", label="allowed")
plt.xticks(place, ["y", *(f"grad {name}" for name in list(ours)[1:])])
plt.ylabel("relative error")
legend = plt.legend()

# %%
# What it cannot do it says, and nothing falls back in silence:

from slicescan.ops import BackendError

try:
    slice_scan(**call, z=torch.ones(b, h, w, d), axis="w", backend="doubling")
except BackendError as error:
    print(error)

unregister_backend("doubling")

# %%
# A backend that should join the package is a module with these four functions in
# ``slicescan/ops/backends``, and its name in ``ALL``: the tests of parity, of which the check above is a
# small part, and the benchmarks then find it by themselves. See :doc:`/extending`.
