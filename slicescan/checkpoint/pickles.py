"""Open PyTorch's pickled files without running anything they carry.

``torch.load(weights_only=True)`` rebuilds tensors and plain containers and refuses every other global. Training loops
also store NumPy scalars (a best PSNR, say), so three globals of NumPy are allowed, each replaced by a stand-in of ours
that turns bytes into a Python number: no code of NumPy runs either.
"""

import pickletools
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from slicescan.checkpoint.error import CheckpointError

NUMBERS = {"b1": "?", "f2": "e", "f4": "f", "f8": "d"}
NUMBERS |= dict(zip(("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), "bhiqBHIQ", strict=True))
"""NumPy's type codes and the letters of :mod:`struct` that mean the same."""


class NumpyType:
    """Stands in for ``numpy.dtype``: remembers which number the bytes mean."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def numpy_scalar(kind: NumpyType, data: bytes) -> bool | int | float:
    """Stands in for the function that NumPy pickles a scalar with."""
    code = getattr(kind, "code", None)
    if code not in NUMBERS or not isinstance(data, bytes):
        raise UnpicklingError(f"a NumPy scalar of type {code!r}, which is not a number")
    return struct.unpack(kind.order + NUMBERS[code], data)[0]


ALLOWED: list[Callable | tuple[Callable, str]] = [
    (numpy_scalar, "numpy.core.multiarray.scalar"),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    (NumpyType, "numpy.dtype"),
]
"""Every global beyond PyTorch's own list for ``weights_only``, with what is called in its place."""


def unpickle(path: Path) -> Any:
    """Read a ``.pth``, ``.pt`` or ``.pkl`` file of tensors and plain containers to CPU memory.

    Raises:
        CheckpointError: The file wants to run code, or is damaged; nothing of it has run.
    """
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
        named = re.search(r"GLOBAL (\S+)", str(error))
        refused = named[1] if named else _first_import(path)
        if refused:
            raise CheckpointError(
                f"{path}: refused, because it asks to import {refused}, which could run code; nothing was run. "
                f"Ask its author for the tensors alone (safetensors, or torch.save of a state dict)"
            ) from None
        cause = f"{type(error).__name__}: {_first_sentence(str(error))}"
        raise CheckpointError(f"{path}: not a readable PyTorch file, damaged or cut short ({cause})") from error


def _first_import(path: Path) -> str | None:
    """What a plain pickle, outside PyTorch's own formats, would import first; found without unpickling it."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except ValueError:  # no pickle from here on
        pass
    return None


def _first_sentence(message: str) -> str:
    """The cause, without PyTorch's advice to switch the safety off."""
    text = message.rpartition("WeightsUnpickler error:")[2].strip() or "no reason given"
    return text.splitlines()[0].split(". ")[0]
