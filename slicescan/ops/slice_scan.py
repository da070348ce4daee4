"""Selective scan along the rows or columns of a channels-last map."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from slicescan.ops.library import run
from slicescan.ops.shapes import Axes


@overload
def slice_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, axis: Literal["h", "w"], reverse: bool = False, carry: bool = False,
    initial_state: Tensor | None = None, return_last_state: Literal[False] = False, delta_softplus: bool = False,
    delta_weight: Tensor | None = None, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def slice_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, axis: Literal["h", "w"], reverse: bool = False, carry: bool = False,
    initial_state: Tensor | None = None, return_last_state: Literal[True], delta_softplus: bool = False,
    delta_weight: Tensor | None = None, backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def slice_scan(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    *,
    axis,
    reverse=False,
    carry=False,
    initial_state=None,
    return_last_state=False,
    delta_softplus=False,
    delta_weight=None,
    backend=None,
):
    """Run a selective scan inside every row or every column of a map, without permuting or copying it.

    Along each slice ``h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, times ``silu(z_t)``
    if there is a gate. The direction is a stride: rows and columns cost the same.

    Args:
        u: Input, ``(b, h, w, d)``, any strides.
        delta: Step sizes, ``(b, h, w, d)``, dimensionless; made positive by ``delta_softplus``. With ``delta_weight``
            their form of low rank, ``(b, h, w, r)``.
        A: Decay rates, ``(d, n)``, negative for a stable scan.
        B: How the input enters the state, ``(b, h, w, n)``, or ``(b, h, w, g, n)`` for ``g`` groups of channels.
        C: How the state is read out, shaped as ``B``.
        D: Skip weights, ``(d,)``.
        z: Gate, ``(b, h, w, d)``; the output, skip included, is multiplied by ``silu(z)``.
        delta_bias: Added to ``delta`` before the softplus, ``(d,)``.
        axis: ``"w"`` scans along each row, ``"h"`` along each column.
        reverse: Scan from the last position to the first.
        carry: The state runs on from slice to slice, as if they were laid end to end.
        initial_state: State before the first step, ``(b, slices, d, n)``, or ``(b, d, n)`` with ``carry``.
        return_last_state: Also return the state after the last step.
        delta_softplus: Take the softplus of the step sizes.
        delta_weight: ``(d, r)``; the steps of channel ``c``, before bias and softplus, are ``delta @ delta_weight[c]``,
            rounded to the dtype of the maps as those of a linear layer. The ``cuda`` backend forms them inside the scan
            and stores no map of them.
        backend: Name of the backend; None or ``"auto"`` takes the fastest that can run the call.

    Returns:
        ``(b, h, w, d)`` in the dtype and memory order of ``u``; with ``return_last_state`` also the last state, shaped
        as ``initial_state``, in float32, or float64 for float64 maps. The state is never less precise than that.

    Raises:
        ValueError: Two arguments disagree on an axis, a device or a kind; the message names the argument, what was
            expected and what came.
        BackendError: The named backend cannot run this call; the message says why.

    Source:
        Gu and Dao 2023 (Mamba), Eq. 2a-2b, Algorithm 2. Differs: Euler step ``delta B`` for the input, as their code.

    Example:
        >>> u, mix = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5)
        >>> y = slice_scan(u, u, -torch.ones(4, 5), mix, mix, axis="h")
        >>> y.shape, y[0, 0, 0, 0].item()
        (torch.Size([1, 2, 3, 4]), 5.0)
    """
    if axis not in ("h", "w"):
        raise ValueError(f"slice_scan: axis must be 'h' or 'w', got {axis!r}")
    axes = Axes("slice_scan")
    axes.bind("u", u, "bhwd")
    states = "bd" if carry else ("bhd" if axis == "w" else "bwd")
    fields = prepare(
        axes, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_weight, maps="bhwd", mixes="bhw",
        states=states + "n",
    )  # fmt: skip
    *others, state, weight = fields
    if carry and state is not None:
        state = state.unsqueeze(1)
    y, last = run(*others, state, weight, axis, reverse, carry, delta_softplus, backend=backend)
    y = y if y.dtype == u.dtype else y.to(u.dtype)
    if not return_last_state:
        return y
    return y, last.squeeze(1) if carry else last


def prepare(
    axes: Axes,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_weight: Tensor | None,
    *,
    maps: str,
    mixes: str,
    states: str,
) -> tuple[Any, ...]:
    """Check shapes, devices and kinds, and bring all tensors to the dtypes of one call.

    Maps are promoted to their widest dtype; parameters and states are float32, or float64 beside float64 maps.
    """
    op = axes.op
    axes.bind("delta", delta, maps if delta_weight is None else maps[:-1] + "r")
    axes.bind("A", A, "dn")
    grouped = B.ndim == len(mixes) + 2
    axes.bind("B", B, mixes + ("gn" if grouped else "n"))
    axes.bind("C", C, mixes + ("gn" if grouped else "n"))
    d, groups = axes.sizes["d"], axes.sizes.get("g", 1)
    if groups < 1 or d % groups:
        raise ValueError(f"{op}: B has {groups} groups, which do not divide the {d} channels of u")
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    given |= {"initial_state": initial_state, "delta_weight": delta_weight}
    for name, tensor, letters in (
        ("D", D, "d"),
        ("z", z, maps),
        ("delta_bias", delta_bias, "d"),
        ("initial_state", initial_state, states),
        ("delta_weight", delta_weight, "dr"),
    ):
        if tensor is not None:
            axes.bind(name, tensor, letters)
    for name, tensor in given.items():
        if tensor is None:
            continue
        if tensor.dtype not in _KINDS:
            raise ValueError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != u.device:
            raise ValueError(f"{op}: {name} must be on {u.device} like u, got {tensor.device}")
    dtype = u.dtype
    for tensor in (delta, B, C, z):
        if tensor is not None and tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if not grouped:
        B, C = B.unsqueeze(-2), C.unsqueeze(-2)
    cast_u, cast_delta, cast_B, cast_C, cast_z = (_cast(x, dtype) for x in (u, delta, B, C, z))
    cast_A, cast_D, bias, state, weight = (_cast(x, wide) for x in (A, D, delta_bias, initial_state, delta_weight))
    return cast_u, cast_delta, cast_A, cast_B, cast_C, cast_D, cast_z, bias, state, weight


_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)
