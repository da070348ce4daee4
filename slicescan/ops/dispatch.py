"""Which backend runs a call, and why the others do not."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slicescan.ops.backends import ALL as BUILT_IN
from slicescan.ops.backends import reference as reference
from slicescan.ops.call import ScanCall

VARIABLE = "SLICESCAN_BACKEND"
"""Environment variable that names the backend for calls that name none."""

ALL: tuple[str, ...] = BUILT_IN
"""Names of all backends, fastest first, with those from outside the package."""

_PLAIN = ("torch", "reference")
_COMPILED = {"cpu": ("cpu",), "cuda": ("cuda", "triton"), "xpu": ("triton",)}  # what is made for a kind of device

_FUNCTIONS = ("why_not", "forward", "saved_spec", "backward")

_outside: dict[str, Any] = {}
_watchers: list[set[str]] = []


class BackendError(RuntimeError):
    """The named backend cannot run this call; the message says why and what to do."""


class BackendStatus(NamedTuple):
    """A backend, and why it cannot run on a device; ``reason`` is None if it can."""

    name: str
    reason: str | None


def pick(call: ScanCall, backend: str | None = None) -> str:
    """Name of the backend that runs ``call``: the one asked for, else the first in ``ALL`` that can.

    Raises:
        BackendError: The backend asked for does not exist or cannot run the call.
    """
    name = requested(backend)
    if name is None:
        name = next(name for name in ALL if load(name).why_not(call) is None)
        if name in _PLAIN:
            _warn_of_slowness(call.u.device.type)
    elif (reason := load(name).why_not(call)) is not None:
        raise BackendError(f"backend {name!r} cannot run this call: {reason}")
    for names in _watchers:
        names.add(name)
    return name


@cache
def _warn_of_slowness(device: str) -> None:
    """Say once if a compiled backend is made for this kind of device but cannot run here at all."""
    fast = [status for status in report(device) if status.name in _COMPILED.get(device, ())]
    if fast and all(status.reason for status in fast):
        reasons = "; ".join(f"{status.name}: {status.reason}" for status in fast)
        warnings.warn(f"scans on {device} run slowly, without a compiled backend: {reasons}", stacklevel=5)


def requested(backend: str | None) -> str | None:
    """The backend that a caller or the environment names; None for ``"auto"`` or nothing.

    Raises:
        BackendError: There is no backend of that name.
    """
    name = backend or os.environ.get(VARIABLE) or "auto"
    if name == "auto":
        return None
    if name not in ALL:
        source = "" if backend else f" (from {VARIABLE})"
        raise BackendError(f"unknown backend {name!r}{source}; there are {', '.join(ALL)}, and 'auto'")
    return name


@cache
def load(name: str) -> ModuleType:
    """The module of a backend, imported when first asked for."""
    return _outside[name] if name in _outside else import_module(f"slicescan.ops.backends.{name}")


def register_backend(name: str, backend: Any, *, before: str = "reference") -> None:
    """Give a scan backend from outside the package a name: calls, ``slicescan doctor`` and reports find it.

    Args:
        name: What calls and the environment variable ``SLICESCAN_BACKEND`` ask for. A name registered before is given
            to the new backend.
        backend: A module or any object with the functions of a backend: ``why_not``, ``forward``, ``saved_spec`` and
            ``backward``; :doc:`/auto_gallery/write_a_backend` shows them, and :doc:`/api/ops` what they are given:
            a ``ScanCall``, with ``unroll`` and ``roll`` to bring its maps into sequences and back.
        before: The backend that it is tried before when a call names none. By default it comes after all that can run
            anything, so that it runs only the calls that name it.

    Raises:
        ValueError: The name is taken by the package, or ``before`` is no backend.
        TypeError: A function is missing.

    Example:
        >>> register_backend("mine", load("torch"))
        >>> u, mix = torch.ones(1, 3, 2), torch.ones(1, 3, 4)
        >>> from slicescan.ops import selective_scan
        >>> selective_scan(u, u, -torch.ones(2, 4), mix, mix, backend="mine").shape
        torch.Size([1, 3, 2])
        >>> unregister_backend("mine")
    """
    global ALL
    if name in {*BUILT_IN, "auto"}:
        raise ValueError(f"the name {name!r} is taken by the package; choose another")
    if before not in ALL or before == name:
        others = ", ".join(other for other in ALL if other != name)
        raise ValueError(f"before must be one of {others}; got {before!r}")
    missing = [function for function in _FUNCTIONS if not callable(getattr(backend, function, None))]
    if missing:
        raise TypeError(f"backend {name!r} lacks {', '.join(missing)}; it needs {', '.join(_FUNCTIONS)}")
    unregister_backend(name)
    _outside[name] = backend
    place = ALL.index(before)
    ALL = (*ALL[:place], name, *ALL[place:])


def unregister_backend(name: str) -> None:
    """Forget a backend that :func:`register_backend` added; any other name changes nothing.

    Example:
        >>> register_backend("mine", load("torch"))
        >>> unregister_backend("mine")
        >>> "mine" in dict(report("cpu"))
        False
    """
    global ALL
    if _outside.pop(name, None) is not None:
        ALL = tuple(other for other in ALL if other != name)
        load.cache_clear()


def has_fast_convolution(device: torch.device, dtype: torch.dtype, taps: int) -> bool:
    """Whether the ``cuda`` backend runs a causal convolution; a constant for compilation."""
    if device.type != "cuda" or requested(None) not in (None, "cuda"):
        return False
    x, weight = SimpleNamespace(device=device, dtype=dtype), SimpleNamespace(shape=(1, taps))
    return load("cuda.conv").why_not(x, weight) is None


# what torch.compiler.assume_constant_result sets; that function would load the compiler
has_fast_convolution._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_fast_gate(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the ``cuda`` backend runs a 3x3 convolution with or without a gate; a constant for compilation."""
    if device.type != "cuda" or requested(None) not in (None, "cuda"):
        return False
    return load("cuda.gate").why_not(device, dtype) is None


has_fast_gate._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_map_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the ``cuda`` backend's kernels between the scans run."""
    return requested(None) in (None, "cuda") and _has_map_kernels(device, dtype)


@cache
def _has_map_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    return load("cuda.gate").why_not(device, dtype) is None


def has_float_products(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Whether Triton multiplies float32 maps by a matrix faster than PyTorch, and as exactly."""
    if not x.is_cuda or requested(None) not in (None, "cuda", "triton"):
        return False
    return out.stride(-1) == 1 and load("triton.product").why_not(x, weight) is None


def traced_twice(x: Tensor) -> Tensor:
    """The bilinear enlargement of the ``cuda`` backend, as an operator."""
    from slicescan.ops.backends.cuda import twice as backend

    return backend.traced(x)


def traced_divergence(x: Tensor, first: Tensor, second: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """Two maps gated by their divergence by the ``cuda`` backend, and the gates, as an operator."""
    from slicescan.ops.backends.cuda import divergence as backend

    return backend.traced(x, first, second, per_image)


def fast_gate(x: Tensor, weight: Tensor, bias: Tensor | None, gate: str | None) -> Tensor:
    """The 3x3 convolution of the ``cuda`` backend."""
    from slicescan.ops.backends.cuda import gate as backend

    return backend.convolve(x, weight, bias, gate)


def has_fast_norm(device: torch.device, dtype: torch.dtype, weights: torch.dtype, channels: int) -> bool:
    """Whether the ``cuda`` backend runs a layer norm over channels; a constant for compilation."""
    if device.type != "cuda" or requested(None) not in (None, "cuda"):
        return False
    return load("cuda.norm").why_not(device, dtype, weights, channels) is None


has_fast_norm._dynamo_marked_constant = True  # type: ignore[attr-defined]


def fast_norm(x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The layer norm of the ``cuda`` backend, behind the sum if there is a branch."""
    from slicescan.ops.backends.cuda import norm as backend

    return backend.norm(x, branch, weight, bias, eps)


def has_cpu_gate(a: Tensor, b: Tensor) -> bool:
    """Whether the ``cpu`` backend gates a map ``(b, h, w, c)`` by another."""
    return a.is_cpu and requested(None) in (None, "cpu") and load("cpu.gate").why_not(a, b) is None


def has_cpu_kernels(*images: Tensor) -> bool:
    """Whether the ``cpu`` backend's kernels between the scans take images ``(b, c, h, w)`` of one size."""
    return images[0].is_cpu and requested(None) in (None, "cpu") and load("cpu.pixels").why_not(*images) is None


def has_cpu_products(*images: Tensor) -> bool:
    """Whether the ``cpu`` backend's 1x1 convolutions take images ``(b, c, h, w)`` of one size."""
    return images[0].is_cpu and requested(None) in (None, "cpu") and load("cpu.pointwise").why_not(*images) is None


def fast_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, axis: str, silu: bool) -> Tensor:
    """The causal convolution of the ``cuda`` backend."""
    from slicescan.ops.backends.cuda import conv

    return conv.causal_conv(x, weight, bias, axis, silu)


def report(device: str | torch.device) -> list[BackendStatus]:
    """Every backend, fastest first, and why it cannot run an ordinary float32 call on ``device``."""
    u = torch.zeros(1, 2, 2, 8, device=device)
    mix = torch.zeros(1, 2, 2, 1, 4, device=device)
    call = ScanCall(u, u, torch.zeros(8, 4, device=device), mix, mix)
    return [BackendStatus(name, load(name).why_not(call)) for name in ALL]


@contextmanager
def watching() -> Iterator[set[str]]:
    """Collect the names of the backends that are picked inside the block."""
    names: set[str] = set()
    _watchers.append(names)
    try:
        yield names
    finally:
        _watchers.remove(names)
