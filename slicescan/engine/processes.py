"""The processes that train one network together: which one this is, and what they tell each other.

``accelerate launch`` or ``torchrun`` starts them, on one host or many; a process that was started alone needs neither.
"""

import atexit
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")
Part = tuple[int, int]
"""Number of a process, from 0, and how many there are."""

WHOLE: Part = (0, 1)
PATIENCE = timedelta(minutes=30)
"""How long a process waits for another: the first one measures and writes while they wait."""

GONE = ("closed by peer", "reset by peer", "gloo", "nccl", "timed out", "broken pipe")
"""Words of errors that the others cause."""


def share(items: int, part: Part) -> range:
    """Places in a batch that one of several processes works on: as many as another's, or one more.

    In a batch with fewer items than processes some have none of their own; they work on the first one, for nothing.

    Example:
        >>> [list(share(5, (index, 2))) for index in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    first, last = _bounds(items, part)
    return range(first, last) if first < last else range(1)


def weight(items: int, part: Part) -> float:
    """What the mean over a share counts, so that the mean over processes is that over the batch; 1 for equal shares.

    Example:
        >>> weight(5, (0, 2)), weight(5, (1, 2))
        (0.8, 1.2)
    """
    first, last = _bounds(items, part)
    return (last - first) * part[1] / items


def _bounds(items: int, part: Part) -> tuple[int, int]:
    index, count = part
    return items * index // count, items * (index + 1) // count


class Processes:
    """One process, or several that were started together and join when this is made.

    Args:
        device: Where to train; by default a GPU if there is one, of several processes each its own.

    Attributes:
        part: Number of this process, and how many there are.
        device: Of this process.

    Raises:
        ImportError: There are several processes, and ``accelerate`` is missing.
        ValueError: A device was named that several processes cannot share.
    """

    def __init__(self, device: str | torch.device | None = None):
        self.accelerator = _join(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        if self.accelerator is None:
            self.part = WHOLE
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            self.part = (self.accelerator.process_index, self.accelerator.num_processes)
            self.device = self.accelerator.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.part[0] == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.accelerator is None

    def parallel(self, module: nn.Module) -> nn.Module:
        """A module whose gradients become their means over the processes; the module itself if there is one process."""
        return module if self.accelerator is None else self.accelerator.prepare_model(module)

    def quiet(self, module: nn.Module) -> AbstractContextManager:
        """In which gradients of a module that :meth:`parallel` made stay where they are."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(module)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Fill tensors with those of the first process."""
        if self.accelerator is not None:
            from accelerate.utils import broadcast

            with torch.no_grad():
                for tensor in tensors:
                    tensor.copy_(broadcast(tensor.detach().to(self.device, copy=True).contiguous()))

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes."""
        return tensor if self.accelerator is None else self.accelerator.reduce(tensor, "mean")

    def average(self, tensor: Tensor) -> None:
        """Fill a tensor with its mean over the processes."""
        if self.accelerator is not None:
            torch.distributed.all_reduce(tensor)
            tensor.div_(self.part[1])

    def any(self, truth: bool) -> bool:
        """Whether it is true of a process."""
        if self.accelerator is None:
            return truth
        return bool(self.mean(torch.tensor(float(truth), device=self.device)) > 0)

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, those of the first one first."""
        if self.accelerator is None:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def lost(self, error: BaseException) -> bool:
        """Whether an error says that another process is gone."""
        return self.accelerator is not None and any(word in str(error).lower() for word in GONE)


def _join(device: str | torch.device | None) -> Any:
    """The accelerator of this process, connected to the others.

    Mixed precision, accumulation and state are the run's own: see docs/decisions.
    """
    if device is not None and str(device) not in ("cpu", "cuda"):
        raise ValueError(
            f"device {device}: of several processes each takes the GPU of its number; leave the device out"
        )
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise ImportError(
            "training with several processes needs the 'train' extra: pip install 'slicescan[train]'"
        ) from None
    on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(
        mixed_precision="no",
        gradient_accumulation_steps=1,
        cpu=on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    atexit.register(_leave)
    return accelerator


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
