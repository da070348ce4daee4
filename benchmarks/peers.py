"""What a scan is measured against: mamba-ssm as images use it, and the recurrence written down with tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import slice_scan

MAPS = ("u", "delta", "z", "B", "C")
Arguments = dict[str, Tensor]


class Peer(NamedTuple):
    """A way to scan: a function of the arguments and the axis, and how to lay the arguments out for it beforehand."""

    scan: Callable[[Arguments, str], Tensor]
    prepare: Callable[[Arguments, str], Arguments]


def ours(backend: str) -> Peer:
    """One of slicescan's backends, on the map as it lies."""
    return Peer(lambda a, axis: slice_scan(**a, axis=axis, delta_softplus=True, backend=backend), lambda a, _: dict(a))


def sequences(x: Tensor, axis: str) -> Tensor:
    """A map ``(b, h, w, c)`` as mamba-ssm wants it, ``(sequences, c, length)``, contiguous."""
    rows = x if axis == "w" else x.transpose(1, 2)
    return rows.flatten(0, 1).transpose(1, 2).contiguous()


def image(y: Tensor, like: Tensor, axis: str) -> Tensor:
    """The inverse of :func:`sequences`, contiguous."""
    b, h, w, d = like.shape
    slices = h if axis == "w" else w
    rows = y.transpose(1, 2).unflatten(0, (b, slices))
    return (rows if axis == "w" else rows.transpose(1, 2)).contiguous()


def _all_sequences(arguments: Arguments, axis: str) -> Arguments:
    return {name: sequences(x, axis) if name in MAPS else x for name, x in arguments.items()}


def compiled_scan() -> Callable[..., Tensor] | None:
    """``selective_scan_fn`` of mamba-ssm, if it runs here; why not is printed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        ones = torch.ones(1, 8, 4, device="cuda")
        selective_scan_fn(ones, ones, -ones[0], ones[:, :4], ones[:, :4])
    except (ImportError, RuntimeError) as error:
        print(f"mamba-ssm is left out: {str(error).splitlines()[0]}")
        return None
    return selective_scan_fn


def _mamba(a: Arguments, _: str) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(
        a["u"], a["delta"], a["A"], a["B"], a["C"], a["D"], a["z"], a["delta_bias"], delta_softplus=True
    )


def _mamba_on_an_image(a: Arguments, axis: str) -> Tensor:
    return image(_mamba(_all_sequences(a, axis), axis), a["u"], axis)


def materialised(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None,
                 delta_bias: Tensor) -> Tensor:  # fmt: skip
    """The recurrence on sequences, ``(s, d, l)``, with tensors ``(s, d, l, n)`` for all steps, and a loop over steps.

    ``B`` and ``C`` are ``(s, n, l)``, or ``(s, g, n, l)`` for groups of channels.
    """
    step = F.softplus(delta + delta_bias[:, None])
    B, C = (_for_each_channel(mix, u.shape[1]) for mix in (B, C))
    decay = torch.exp(torch.einsum("sdl,dn->sdln", step, A))
    entering = torch.einsum("sdl,sdnl,sdl->sdln", step, B, u)
    state, outputs = torch.zeros_like(entering[:, :, 0]), []
    for t in range(decay.shape[2]):
        state = decay[:, :, t] * state + entering[:, :, t]
        outputs.append(torch.einsum("sdn,sdn->sd", state, C[..., t]))
    y = torch.stack(outputs, 2) + u * D[:, None]
    return y if z is None else y * F.silu(z)


def _for_each_channel(mix: Tensor, channels: int) -> Tensor:
    if mix.ndim == 3:
        return mix[:, None].expand(-1, channels, -1, -1)
    return mix.repeat_interleave(channels // mix.shape[1], 1)


def _materialised(a: Arguments, axis: str) -> Tensor:
    s = _all_sequences(a, axis)
    return image(
        materialised(*(s[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))), a["u"], axis
    )


OWN_LAYOUT, WITH_LAYOUT, MATERIALISED = "mamba-ssm, its layout", "mamba-ssm, layout changes", "materialised loop"


def peers(device: str) -> dict[str, Peer]:
    """The peers of a device that can run here, by name."""
    if device == "cpu":
        return {MATERIALISED: Peer(_materialised, lambda a, _: dict(a))}
    if compiled_scan() is None:
        return {}
    return {OWN_LAYOUT: Peer(_mamba, _all_sequences), WITH_LAYOUT: Peer(_mamba_on_an_image, lambda a, _: dict(a))}


def runs(peer: Peer, arguments: Arguments, axis: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The forward pass without gradients, and the forward pass with the gradients of every argument."""
    prepared = peer.prepare(arguments, axis)
    leaves = {name: x.detach().clone().requires_grad_() for name, x in prepared.items()}

    @torch.no_grad()
    def forward() -> Tensor:
        return peer.scan(prepared, axis)

    seeds: list[Tensor] = []  # made by the first run

    def both() -> tuple[Tensor, ...]:
        y = peer.scan(leaves, axis)
        if not seeds:
            seeds.append(torch.ones_like(y))
        return torch.autograd.grad(y, list(leaves.values()), seeds[0])

    return forward, both
