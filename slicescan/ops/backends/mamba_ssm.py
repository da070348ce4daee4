"""Adapter to the compiled scan of the optional package ``mamba_ssm``; its layout is ``(s, d, l)``: maps are copied."""

from functools import cache

import torch
from torch import Tensor

from slicescan.ops.call import Gradients, ScanCall
from slicescan.ops.paths import roll, state_shape, unroll

INSTALL = "pip install 'slicescan[mamba]', which needs a CUDA toolchain"
MAX_STATES = 256
MAX_CHANNELS = 2**16 - 1
MAX_ELEMENTS = 2**31


def why_not(call: ScanCall) -> str | None:
    """Say in one sentence why the package cannot run a call, or None if it can."""
    if call.u.device.type != "cuda":
        return f"needs CUDA tensors, got {call.u.device.type}"
    if call.u.dtype == torch.float64:
        return "computes in float32, so it takes no float64; use backend='torch'"
    if call.initial_state is not None:
        return "starts from zero, so it takes no initial_state; use another backend"
    if call.A.shape[1] > MAX_STATES:
        return f"holds at most {MAX_STATES} states a channel, got {call.A.shape[1]}"
    if call.A.shape[0] > MAX_CHANNELS or call.u.numel() >= MAX_ELEMENTS:
        return "counts at most 65535 channels and fewer than 2^31 elements; use another backend"
    if 0 in call.u.shape:
        return "takes no empty maps; use backend='torch'"
    return _broken(call.u.device.index or 0)


@cache
def _broken(device: int) -> str | None:
    """Run a tiny scan: an installed package is no proof of a working one."""
    try:
        scan = _scan_function()
        ones = torch.ones(1, 8, 4, device=f"cuda:{device}")
        out = scan(ones, ones, -ones[0], ones[:, :4], ones[:, :4])
        if not torch.isfinite(out).all():
            return f"its kernel returns no finite numbers on this device; reinstall it: {INSTALL}"
    except ImportError as error:
        return f"the package does not import ({error}): {INSTALL}"
    except RuntimeError as error:
        return f"its kernel does not run on this device ({str(error).splitlines()[0]}): {INSTALL}"
    return None


def _scan_function():
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def forward(call: ScanCall, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run a call: ``(y, last_state, saved)``; nothing is saved, the backward pass scans again."""
    with torch.no_grad():
        y, last = _run(call)
    return torch.empty_like(call.u).copy_(y), last, call.A.new_empty(0)


def saved_spec(call: ScanCall) -> tuple[tuple[int, ...], torch.dtype]:
    """Nothing is saved."""
    return (0,), call.A.dtype


def backward(call: ScanCall, saved: Tensor, grad_y: Tensor, grad_last: Tensor | None) -> Gradients:
    """Gradients by the package's own kernel, which adds with atomics: two runs may differ in the last bits."""
    names = [name for name in Gradients._fields if getattr(call, name) is not None]
    leaves = {name: getattr(call, name).detach().requires_grad_() for name in names}
    settings = {name: getattr(call, name) for name in ("axis", "reverse", "carry", "delta_softplus")}
    if grad_last is not None:
        raise RuntimeError("backend 'mamba_ssm' has no gradient of the last state; use another backend")
    with torch.enable_grad():
        y, _ = _run(ScanCall(**leaves, **settings))
    found = dict(zip(names, torch.autograd.grad(y, list(leaves.values()), grad_y, allow_unused=True), strict=True))
    filled = {
        name: None if name not in found else torch.empty_like(leaves[name]).copy_(_or_zero(found[name]))
        for name in Gradients._fields
    }
    return Gradients(**filled)  # type: ignore[arg-type]


def _or_zero(gradient: Tensor | None) -> Tensor:
    return torch.zeros(()) if gradient is None else gradient


def _run(call: ScanCall) -> tuple[Tensor, Tensor]:
    u, delta = (unroll(x, call).permute(1, 2, 0).contiguous() for x in (call.u, call.delta))  # s d l
    z = None if call.z is None else unroll(call.z, call).permute(1, 2, 0).contiguous()
    B, C = (unroll(x, call).permute(1, 2, 3, 0).contiguous() for x in (call.B, call.C))  # s g n l
    y, last = _scan_function()(
        u, delta, call.A, B, C, call.D, z, call.delta_bias, call.delta_softplus, return_last_state=True
    )
    return roll(y.permute(2, 0, 1), call), last.reshape(state_shape(call)).to(call.A.dtype)
