"""Selective scan of sequences."""

from typing import Literal, overload

from torch import Tensor

from slicescan.ops.library import run
from slicescan.ops.shapes import Axes
from slicescan.ops.slice_scan import prepare


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, reverse: bool = False, initial_state: Tensor | None = None,
    return_last_state: Literal[False] = False, delta_softplus: bool = False,
    delta_weight: Tensor | None = None, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, reverse: bool = False, initial_state: Tensor | None = None,
    return_last_state: Literal[True], delta_softplus: bool = False,
    delta_weight: Tensor | None = None, backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    *,
    reverse=False,
    initial_state=None,
    return_last_state=False,
    delta_softplus=False,
    delta_weight=None,
    backend=None,
):
    """Run a linear recurrence whose step, input and read-out depend on the input.

    ``h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``, times ``silu(z_t)`` if
    there is a gate. :func:`~slicescan.ops.slice_scan` on a map with one row.

    Args:
        u: Input, ``(b, l, d)``, any strides.
        delta: Step sizes, ``(b, l, d)``, dimensionless; made positive by ``delta_softplus``. With ``delta_weight``
            their form of low rank, ``(b, l, r)``.
        A: Decay rates, ``(d, n)``, negative for a stable scan.
        B: How the input enters the state, ``(b, l, n)``, or ``(b, l, g, n)`` for ``g`` groups of channels.
        C: How the state is read out, shaped as ``B``.
        D: Skip weights, ``(d,)``.
        z: Gate, ``(b, l, d)``.
        delta_bias: Added to ``delta`` before the softplus, ``(d,)``.
        reverse: Scan from the last position to the first.
        initial_state: State before the first step, ``(b, d, n)``.
        return_last_state: Also return the state after the last step, ``(b, d, n)``.
        delta_softplus: Take the softplus of the step sizes.
        delta_weight: ``(d, r)``; the steps of channel ``c``, before bias and softplus, are ``delta @ delta_weight[c]``,
            rounded to the dtype of the maps as those of a linear layer. The ``cuda`` backend forms them inside the scan
            and stores no map of them.
        backend: Name of the backend; None or ``"auto"`` takes the fastest that can run the call.

    Returns:
        ``(b, l, d)`` in the dtype of ``u``; with ``return_last_state`` also the last state, float32 or wider.

    Raises:
        ValueError: Two arguments disagree on an axis; the message names the argument, what was expected and what came.
        BackendError: The named backend cannot run this call; the message says why.

    Source:
        Gu and Dao 2023 (Mamba), Eq. 2a-2b, Algorithm 2. Differs: Euler step ``delta B`` for the input, as their code.

    Example:
        >>> import torch
        >>> u, b = torch.ones(1, 3, 2), torch.ones(1, 3, 4)
        >>> selective_scan(u, u, -torch.ones(2, 4), b, b).shape
        torch.Size([1, 3, 2])
    """
    axes = Axes("selective_scan")
    axes.bind("u", u, "bld")
    fields = prepare(
        axes, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_weight, maps="bld", mixes="bl", states="bdn"
    )
    u_, delta_, A_, B_, C_, D_, z_, bias_, state_, weight_ = fields
    y, last = run(
        *(x.unsqueeze(1) for x in (u_, delta_)),
        A_,
        *(x.unsqueeze(1) for x in (B_, C_)),
        D_,
        None if z_ is None else z_.unsqueeze(1),
        bias_,
        None if state_ is None else state_.unsqueeze(1),
        weight_,
        "w",
        reverse,
        False,
        delta_softplus,
        backend=backend,
    )
    y = y.squeeze(1)
    y = y if y.dtype == u.dtype else y.to(u.dtype)
    return (y, last.squeeze(1)) if return_last_state else y
