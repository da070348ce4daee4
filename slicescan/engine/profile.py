"""What a model costs: parameters, multiply-adds, scan updates, memory. Only shapes are followed; nothing is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from slicescan.ops.dispatch import watching
from slicescan.ops.library import FLOPS_PER_UPDATE


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
        backend: Backends that ran the scans; None if there was no scan.
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
    counter, memory = FlopCounterMode(display=False), _LiveMemory()
    with torch.no_grad(), FakeTensorMode():
        shadows = {
            name: torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=device)
            for name, weight in weights.items()
        }
        image = torch.empty(1, *size, dtype=dtype, device=device)
        memory.follow(image)
        with counter, memory, watching() as backends:
            torch.func.functional_call(model, shadows, (image,))
    flops = {str(op): count for op, count in counter.get_flop_counts().get("Global", {}).items()}
    scans = {
        op.removeprefix("slicescan."): count
        for op, count in flops.items()
        if op.startswith("slicescan.") and "scan" in op.split(".")[1]
    }
    return Profile(
        size=tuple(size),
        params=sum(weight.numel() for weight in model.parameters()),
        macs=sum(count for op, count in flops.items() if op.removeprefix("slicescan.") not in scans) // 2,
        scan_updates=sum(scans.values()) // FLOPS_PER_UPDATE,
        activation_bytes=memory.peak,
        backend=", ".join(sorted(backends)) or None,
    )


class _LiveMemory(TorchDispatchMode):
    """Follows which storages are alive after every operation, and the most that they held together."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result
