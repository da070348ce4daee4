"""The one numerical judge of scans.

    judge(arguments, backend)           # arguments: keywords of slice_scan, as tests.strategies.Scan.arguments() makes

runs ``slice_scan`` on a backend, without gradients and with, and raises ``Disagreement`` unless outputs and every
gradient have the right shape, dtype and memory order and lie near the exact ones, which the reference computes in
float64. "Near" is measured, not typed: an error may be twice the one that the plain reference makes with the call's
own dtypes (the largest of a few, for arguments a rounding away), and one rounding more. A rounding is what moves the
exact result when every argument is rounded once in the compute dtype, and the result in the dtype of the maps. Errors
are relative: RMS of the difference over RMS of the exact.

    measure(run, arguments)             # the same for any function with the signature of slice_scan: name -> Error
    available(device)                   # names of the backends that can run an ordinary call there, to parametrise with
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slicescan.ops import dispatch, slice_scan

MAPS = ("u", "delta", "B", "C", "z")
ROUNDINGS = 4  # sets of arguments a rounding away

Run = Callable[..., tuple[Tensor, Tensor]]


class Disagreement(AssertionError):
    """A result is farther from the exact one than allowed, or of another form."""


class Error(NamedTuple):
    """Relative error of one result, and the one that is allowed."""

    error: float
    allowed: float

    @property
    def passes(self) -> bool:
        return self.error <= self.allowed  # never, if it is not a number


def available(device: str) -> list[str]:
    return [status.name for status in dispatch.report(device) if status.reason is None]


def judge(arguments: Mapping[str, Any], backend: str | None, *, last_state: bool = True) -> None:
    """Raise ``Disagreement`` unless a backend runs a call as well as the reference; see the top of this file.

    Args:
        arguments: Keywords of ``slice_scan``.
        backend: Name of the backend.
        last_state: Whether a gradient flows into the last state.
    """
    found = measure(partial(slice_scan, backend=backend), arguments, last_state=last_state)
    wrong = {name: error for name, error in found.items() if not error.passes}
    if wrong:
        lines = [f"{name}: error {error:.3g}, allowed {allowed:.3g}" for name, (error, allowed) in wrong.items()]
        raise Disagreement(f"backend {backend!r}: " + "; ".join(lines))


def measure(run: Run, arguments: Mapping[str, Any], *, last_state: bool = True) -> dict[str, Error]:
    """Errors of all results of ``run(**arguments, return_last_state=True)``, by name.

    ``y``, ``last_state``; the same with ``no_grad``; and the gradient of every tensor under its argument's name.

    Raises:
        Disagreement: A result has another shape, dtype or memory order than it must have.
    """
    u = arguments["u"]
    outcome = partial(_outcome, last_state=last_state)
    plain = partial(slice_scan, backend="reference")
    exact, own = outcome(plain, _in_float64(arguments)), _own_errors(outcome, arguments)
    wide = torch.promote_types(u.dtype, torch.float32)
    moved = [outcome(plain, _moved(_in_float64(arguments), wide, seed)) for seed in range(ROUNDINGS)]
    found = outcome(run, arguments)
    _check_form(arguments, found)
    with torch.no_grad():
        y, last = run(**arguments, return_last_state=True)
    found |= {"y, no_grad": y, "last_state, no_grad": last}
    errors = {}
    for name, value in found.items():
        key = name.removesuffix(", no_grad")
        rounding = torch.tensor([_relative(other[key], exact[key]) for other in moved]).square().mean().sqrt().item()
        rounding += torch.finfo(u.dtype).eps / 2
        allowed = 2 * own[key] + rounding
        if wide == torch.float64:  # here the exact result errs too
            allowed += own[key] + rounding
        errors[name] = Error(_relative(value, exact[key]), allowed)
    return errors


def _own_errors(outcome: Callable[..., dict[str, Tensor]], arguments: Mapping[str, Any]) -> dict[str, float]:
    """Errors of the plain reference; for float64, which nothing here excels, as many roundings as in float32."""
    ratio = 1.0
    if arguments["u"].dtype == torch.float64:
        arguments = {name: x.float() if isinstance(x, Tensor) else x for name, x in arguments.items()}
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    plain = partial(slice_scan, backend="reference")
    largest: dict[str, float] = {}
    for nearby in [arguments, *(_moved(arguments, None, seed) for seed in range(1, ROUNDINGS))]:
        exact = outcome(plain, _in_float64(nearby))
        for name, value in outcome(plain, nearby).items():
            largest[name] = max(ratio * _relative(value, exact[name]), largest.get(name, 0.0))
    return largest


def _outcome(run: Run, arguments: Mapping[str, Any], *, last_state: bool) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items() if isinstance(x, Tensor)}
    y, last = run(**{**arguments, **leaves}, return_last_state=True)
    outputs = [x for x in ((y, last) if last_state else (y,)) if x.requires_grad]
    probes = [_probe(x, seed) for seed, x in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), probes, allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), "last_state": last.detach(), **dict(zip(leaves, grads, strict=True))}


def _probe(like: Tensor, seed: int) -> Tensor:
    """Fixed gradient of an output, representable in every dtype, with zeros and both signs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, like.shape, generator=generator).to(like) / 4


def _check_form(arguments: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        if name == "last_state":
            continue
        like = arguments["u"] if name == "y" else arguments[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise Disagreement(f"{name}: is {tuple(value.shape)} {value.dtype}, not {tuple(like.shape)} {like.dtype}")
    u, y = arguments["u"], found["y"]
    if y.numel() and y.stride() != torch.empty_like(u).stride():
        raise Disagreement(f"y: has strides {y.stride()}, u has {u.stride()}")
    b, h, w, d = u.shape
    slices = () if arguments.get("carry") else (h if arguments["axis"] == "w" else w,)
    form = (b, *slices, d, arguments["A"].shape[1]), torch.promote_types(u.dtype, torch.float32)
    if (tuple(found["last_state"].shape), found["last_state"].dtype) != form:
        last = found["last_state"]
        raise Disagreement(f"last_state: is {tuple(last.shape)} {last.dtype}, not {form[0]} {form[1]}")


def _in_float64(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, Tensor) else x for name, x in arguments.items()}


def _moved(arguments: Mapping[str, Any], dtype: torch.dtype | None, seed: int) -> dict[str, Any]:
    """Every number moved at random by up to a rounding of ``dtype``, or of its own dtype."""
    generator = torch.Generator().manual_seed(seed)

    def moved(x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device) * 2 - 1
        return (x.double() * (1 + torch.finfo(dtype or x.dtype).eps * noise)).to(x.dtype)

    return {name: moved(x) if isinstance(x, Tensor) else x for name, x in arguments.items()}


def _relative(value: Tensor, exact: Tensor) -> float:
    scale, error = exact.double().norm(), (value.double() - exact.double()).norm()
    if scale == 0:
        return 0.0 if error == 0 else float("inf")
    return (error / scale).item()
