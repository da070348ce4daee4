"""Memory: what is free, what a network needs, and how the C library keeps what is freed."""

import ctypes
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, from the C library's ``malloc.h``."""

KEPT = 2**25
"""Blocks up to this size, in bytes, are reused instead of going back to the system; larger ones would leave gaps."""

PROBE = 64
"""Side of the image that a network's need is measured on."""

BYTES_A_PIXEL = 4096
"""Assumed for networks whose need cannot be measured."""

_measured: WeakKeyDictionary[nn.Module, dict[object, float]] = WeakKeyDictionary()


class LiveMemory(TorchFunctionMode):
    """Follows which storages are alive after every call of PyTorch, and the most that they held together.

    What a call makes and drops inside is not seen; in return, no compiler of PyTorch is imported for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held = 0  # by what is alive, and by what went since that was last looked at
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._left_out: set[int] = set()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Never count these, nor views of them."""
        self._left_out.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of a tensor as alive."""
        storage = tensor.untyped_storage()
        known = self._alive.get(storage._cdata)
        if storage._cdata in self._left_out or (known is not None and not known[0].expired()):
            return
        self._held += storage.nbytes() - (known[1] if known is not None else 0)
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if self._held > self.peak:  # perhaps; look what is still there
            self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
            self._held = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._held)

    def follow_all(self, result: Any) -> None:
        """Count all tensors of what an operation returned."""
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.follow_all(result)
        return result


def bytes_a_pixel(model: nn.Module, run: Callable[[Tensor], Tensor], channels: int, precision: object = None) -> float:
    """Peak memory of one pass for each pixel, measured once on a small grey image, with a margin of a half.

    Args:
        model: Whose need it is; it is remembered as long as the model lives.
        run: Applies the model to ``(1, channels, h, w)``.
        channels: Channels of the image.
        precision: What else the need depends on.
    """
    known = _measured.setdefault(model, {})
    if precision not in known:
        memory = LiveMemory()
        try:
            with memory:
                run(torch.full((1, channels, PROBE, PROBE), 0.5))
            known[precision] = 1.5 * memory.peak / PROBE**2
        except Exception:  # any module may come here, and some take no image of this size
            known[precision] = BYTES_A_PIXEL
    return known[precision]


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where that cannot be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    found = [free for free in (_free_of_machine(), _free_of_container()) if free is not None]
    return min(found, default=None)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever kind, says that memory ran out."""
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in signs)


def keep_freed_memory() -> bool:
    """Have the C library reuse large blocks; else each is fetched from the system, page by page, and given back.

    It holds for the whole process, so it is for programs, not for libraries. Only glibc knows it; returns whether it
    does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, KEPT) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


def give_back_memory() -> None:
    """Return what :func:`keep_freed_memory` has kept to the system."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _free_of_container(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the tightest control group above this process leaves, its reclaimable file cache included."""
    free = []
    try:
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            new = kinds == ""
            names = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            place = (root if new else root / kinds) / name.lstrip("/")
            for folder in [place, *place.parents]:
                if not folder.is_relative_to(root):
                    break
                free += _free_of_group(folder, *names)
    except (OSError, ValueError):
        return None
    return min(free, default=None)


def _free_of_group(folder: Path, limit: str, used: str) -> list[int]:
    try:
        most, now = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        fields = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return [max(most - now + int(fields.get("total_inactive_file", fields.get("inactive_file", 0))), 0)]
    except (OSError, ValueError):  # "max", or no such file
        return []
