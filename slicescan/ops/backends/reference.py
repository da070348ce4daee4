"""The recurrence as the paper writes it: the oracle of the tests, never optimised, differentiated by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops.call import ScanCall
from slicescan.ops.paths import initial_states, roll, unroll


def why_not(call: ScanCall) -> None:
    """It runs everything, anywhere."""


def slice_scan(call: ScanCall) -> tuple[Tensor, Tensor]:
    """Run a call; ``y`` and the last states are connected to the call's tensors by autograd, to any order."""
    dtype, heads = call.A.dtype, call.u.shape[3] // call.B.shape[3]
    step = call.delta.to(dtype)
    if call.delta_bias is not None:
        step = step + call.delta_bias
    if call.delta_softplus:
        step = F.softplus(step)
    u, step = unroll(call.u.to(dtype), call), unroll(step, call)  # l s d
    B, C = (unroll(x.to(dtype), call).repeat_interleave(heads, 2) for x in (call.B, call.C))  # l s d n
    states = initial_states(call)
    h = states.flatten(0, 1)  # s d n
    y = []
    for t in range(u.shape[0]):
        h = torch.exp(step[t, :, :, None] * call.A) * h + (step[t] * u[t])[:, :, None] * B[t]
        y.append((h * C[t]).sum(-1))
    out = roll(torch.stack(y) if y else u, call)
    if call.D is not None:
        out = out + call.D * call.u.to(dtype)
    if call.z is not None:
        out = out * F.silu(call.z.to(dtype))
    return _in_order_of(call.u, out.to(call.u.dtype)), h.reshape(states.shape)


def _in_order_of(like: Tensor, x: Tensor) -> Tensor:
    """``x`` with its axes in memory as those of ``like``."""
    order = sorted(range(x.ndim), key=like.stride().__getitem__, reverse=True)
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])
