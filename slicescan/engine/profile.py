"""What a model costs: parameters, multiply-adds, scan updates, memory. Only shapes are followed; nothing is run."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from slicescan.engine.memory import LiveMemory
from slicescan.ops import dispatch
from slicescan.ops.library import scan_work


@dataclass(frozen=True)
class Profile:
    """Cost of one forward pass for one image.

    Attributes:
        size: Channels, height and width of the image.
        params: Number of parameters, shared ones once.
        macs: Multiply-adds of convolutions, linear layers and matrix products. Element-wise work, norms, resizing and
            scans are not in it.
        scan_updates: Updates of one state of one channel at one position, summed over all scans.
        activation_bytes: Most memory that tensors hold at any moment of the pass without gradients, the image included
            and the weights not. What a kernel needs for itself while it runs is not in it.
        backend: Backend that the scans go to on the model's device; None if there is no scan. The ``reference`` has no
            operator to count: where it is asked for, ``torch`` stands in.
    """

    size: tuple[int, ...]
    params: int
    macs: int
    scan_updates: int
    activation_bytes: int
    backend: str | None


def profile(model: nn.Module, size: Sequence[int] = (3, 256, 256)) -> Profile:
    """Count what ``model`` costs for one image, without running it: only shapes are followed.

    Args:
        model: Any module that maps one batch of images to tensors; its weights are neither read nor changed.
        size: ``(c, h, w)``; the batch has one image.

    Example:
        >>> found = profile(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10))
        >>> found.params, found.macs, found.scan_updates
        (224, 21600, 0)
    """
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    first = next(iter(weights.values()), torch.empty(0))
    dtype = first.dtype if first.is_floating_point() else torch.float32
    device = torch.device("cpu") if first.is_meta else first.device
    counter, memory = WorkCounter(), LiveMemory()
    with torch.no_grad(), FakeTensorMode(), dispatch.watching() as backends, _countable():
        shadows = {
            name: torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=device)
            for name, weight in weights.items()
        }
        image = torch.empty(1, *size, dtype=dtype, device=device)
        memory.leave_out(shadows.values())
        memory.follow(image)
        with counter, _Inside(memory):
            torch.func.functional_call(model, shadows, (image,))
    return Profile(
        size=tuple(size),
        params=sum(weight.numel() for weight in model.parameters()),
        macs=counter.macs,
        scan_updates=counter.scan_updates,
        activation_bytes=memory.peak,
        backend=", ".join(sorted(backends)) or None,
    )


@contextmanager
def _countable() -> Iterator[None]:
    """Where the environment asks for the reference, which no counter sees through, count an operator in its place."""
    asked = os.environ.get(dispatch.VARIABLE)
    if asked == "reference":
        os.environ[dispatch.VARIABLE] = "torch"
    try:
        yield
    finally:
        if asked is not None:
            os.environ[dispatch.VARIABLE] = asked


class WorkCounter(FlopCounterMode):
    """Counts multiply-adds, those of step projections inside scans among them, and updates of scans."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping={torch.ops.slicescan.slice_scan: self._scan})
        self.scan_updates = 0

    def _scan(self, *shapes: Any, **_: Any) -> int:
        updates, projection = scan_work(*shapes)
        self.scan_updates += updates
        return 2 * projection

    @property
    def macs(self) -> int:
        """Multiply-adds counted so far."""
        return self.get_total_flops() // 2


class _Inside(TorchDispatchMode):
    """Has live memory followed after every operation, also those inside a call."""

    def __init__(self, memory: LiveMemory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.memory.follow_all(result)
        return result
