"""A lean loop over the steps in plain PyTorch, for any device: one state at a time, never all of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops.call import Gradients, ScanCall
from slicescan.ops.paths import initial_states, roll, state_shape, unroll

CHUNK = 16
"""Steps between two saved states; the backward pass computes those between anew."""


def why_not(call: ScanCall) -> None:
    """It runs everything, anywhere."""


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run a call: ``(y, last_state, saved)``."""
    steps = _Steps(call)
    shape, dtype = saved_spec(call)
    saved = call.A.new_empty(shape if save else (0,), dtype=dtype)
    h = _states_first(initial_states(call), call)
    scanned = steps.u.new_empty(steps.u.shape)
    decay = torch.empty_like(h)
    for t in range(steps.length):
        if save and t % CHUNK == 0:
            saved[t // CHUNK] = h
        _advance(h, decay, steps, t)
        torch.matmul(steps.C[t, :, :, None], h, out=scanned[t, :, :, None])
    y = torch.empty_like(call.u)
    out = _maps(scanned, call)
    if call.D is not None:
        out = torch.addcmul(out, call.u.to(out.dtype), call.D)
    if call.z is not None:
        out = out * F.silu(call.z.to(out.dtype))
    y.copy_(out)
    return y, _states_last(h, call), saved


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the saved states: ``(chunks, s, g, n, d / g)``."""
    b, slices, d, n = state_shape(call)
    length = call.u.shape[1] * call.u.shape[2] if call.carry else call.u.shape[2 if call.axis == "w" else 1]
    groups = call.B.shape[3]
    return ((length + CHUNK - 1) // CHUNK, b * slices, groups, n, d // groups), call.A.dtype


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients of every argument of a call, from the saved states."""
    steps = _Steps(call)
    grad_y = grad_y.to(call.A.dtype)
    grad_z = grad_skip = None
    grad_scan = grad_y
    if call.z is not None:
        z = call.z.to(call.A.dtype)
        gate = torch.sigmoid(z)
        grad_scan = grad_y * z * gate
    if call.D is not None:
        grad_skip = (grad_scan * call.u).sum((0, 1, 2))
    grads = _Reverse(call, steps, saved, _steps_first(grad_scan, call), grad_last, keep_y=call.z is not None)
    if call.z is not None and grads.scanned is not None:
        y = _maps(grads.scanned, call)
        if call.D is not None:
            y = torch.addcmul(y, call.u.to(y.dtype), call.D)
        grad_z = grad_y * y * gate * (1 + z * (1 - gate))
    grad_u, grad_delta = _maps(grads.u, call), _maps(grads.delta, call)
    if call.D is not None:
        grad_u = torch.addcmul(grad_u, grad_scan, call.D)
    if call.delta_softplus:
        raw = call.delta.to(call.A.dtype)
        grad_delta = grad_delta * torch.sigmoid(raw if call.delta_bias is None else raw + call.delta_bias)
    return Gradients(
        _filled(call.u, grad_u),
        _filled(call.delta, grad_delta),
        grads.A.transpose(1, 2).contiguous().flatten(0, 1),
        _dense(call.B, roll(grads.B, call)),
        _dense(call.C, roll(grads.C, call)),
        grad_skip,
        None if call.z is None or grad_z is None else _filled(call.z, grad_z),
        None if call.delta_bias is None else grad_delta.sum((0, 1, 2)),
        None if call.initial_state is None else _states_last(grads.state, call),
    )


class _Steps:
    """A call's maps with time first and the channels of a group together: ``(l, s, g, d / g)`` and ``(l, s, g, n)``."""

    def __init__(self, call: ScanCall):
        dtype = call.A.dtype
        step = call.delta.to(dtype)
        if call.delta_bias is not None:
            step = step + call.delta_bias
        self.delta = _steps_first(F.softplus(step) if call.delta_softplus else step, call)
        self.u = _steps_first(call.u.to(dtype), call)
        self.input = self.delta * self.u
        self.B, self.C = (unroll(x, call).to(dtype).contiguous() for x in (call.B, call.C))
        groups, n = call.B.shape[3], call.A.shape[1]
        self.A = (
            call.A.unflatten(0, (groups, -1)).transpose(1, 2).contiguous()
            if call.A.numel()
            else call.A.new_zeros(groups, n, call.A.shape[0] // groups)
        )  # g n d
        self.length = self.u.shape[0]


class _Reverse:
    """The recurrence backwards: gradients of all that enters a step, and of the first state."""

    def __init__(
        self, call: ScanCall, steps: _Steps, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None, *, keep_y: bool
    ):
        self.u, self.delta = torch.empty_like(steps.u), torch.empty_like(steps.u)
        self.B, self.C = torch.empty_like(steps.B), torch.empty_like(steps.C)
        self.scanned = torch.empty_like(steps.u) if keep_y else None
        b, slices, _, _ = state_shape(call)
        groups, n, heads = steps.A.shape
        start = call.A.new_zeros(b * slices, groups, n, heads)
        self.state = start if grad_last is None else _states_first(grad_last.to(start.dtype), call).clone()
        decayed = torch.zeros_like(start)  # sum over time of the gradient of the exponent times the step
        states = call.A.new_empty(min(CHUNK, steps.length) + 1, *start.shape)
        decays = torch.empty_like(states[:-1])
        for chunk in reversed(range(saved.shape[0])):
            first = chunk * CHUNK
            last = min(first + CHUNK, steps.length)
            states[0] = saved[chunk]
            for k, t in enumerate(range(first, last)):
                states[k + 1] = states[k]
                _advance(states[k + 1], decays[k], steps, t)
                if self.scanned is not None:
                    torch.matmul(steps.C[t, :, :, None], states[k + 1], out=self.scanned[t, :, :, None])
            for t in reversed(range(first, last)):
                self._step_back(
                    steps, t, states[t - first], states[t - first + 1], decays[t - first], grad_y[t], decayed
                )
        self.A = decayed.sum(0)

    def _step_back(
        self, steps: _Steps, t: int, before: Tensor, after: Tensor, decay: Tensor, grad_y: Tensor, decayed: Tensor
    ) -> None:
        grad = self.state.addcmul_(grad_y[:, :, None], steps.C[t, :, :, :, None])  # s g n d
        self.C[t] = torch.matmul(after, grad_y[:, :, :, None])[..., 0]
        self.B[t] = torch.matmul(grad, steps.input[t, :, :, :, None])[..., 0]
        grad_input = torch.matmul(steps.B[t, :, :, None], grad)[:, :, 0]  # s g d
        grad.mul_(decay)  # of the state before, and with it of the exponent
        exponent = grad * before
        self.u[t] = grad_input * steps.delta[t]
        self.delta[t] = torch.addcmul((exponent * steps.A).sum(2), grad_input, steps.u[t])
        decayed.addcmul_(exponent, steps.delta[t][:, :, None])


def _advance(h: Tensor, decay: Tensor, steps: _Steps, t: int) -> None:
    """One step in place: ``h`` to the next state, ``decay`` to what the old one was multiplied by."""
    torch.mul(steps.delta[t][:, :, None], steps.A, out=decay).exp_()
    h.mul_(decay).addcmul_(steps.input[t][:, :, None], steps.B[t, :, :, :, None])


def _steps_first(x: Tensor, call: ScanCall) -> Tensor:
    """``(b, h, w, d)`` to ``(l, s, g, d / g)``, contiguous."""
    groups = call.B.shape[3]
    return unroll(x, call).unflatten(2, (groups, x.shape[3] // groups)).contiguous()


def _maps(x: Tensor, call: ScanCall) -> Tensor:
    """The inverse of :func:`_steps_first`."""
    return roll(x.flatten(2), call)


def _states_first(x: Tensor, call: ScanCall) -> Tensor:
    """``(b, slices, d, n)`` to ``(s, g, n, d / g)``, contiguous."""
    groups, d = call.B.shape[3], x.shape[2]
    return x.flatten(0, 1).unflatten(1, (groups, d // groups)).transpose(2, 3).contiguous()


def _states_last(x: Tensor, call: ScanCall) -> Tensor:
    """The inverse of :func:`_states_first`."""
    return x.transpose(2, 3).contiguous().view(state_shape(call))


def _filled(like: Tensor, value: Tensor) -> Tensor:
    """``value`` in the dtype and memory order of ``like``."""
    return torch.empty_like(like).copy_(value)


def _dense(like: Tensor, value: Tensor) -> Tensor:
    """``value`` in the dtype of ``like``, contiguous."""
    return like.new_empty(like.shape).copy_(value)
