"""Read a file of weights, whatever wrapped it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from slicescan.checkpoint.error import CheckpointError
from slicescan.checkpoint.pickles import unpickle

CONTAINERS = ("params_ema", "params", "state_dict_ema", "state_dict", "model_state", "model_state_dict", "model")
"""Keys under which training loops keep the weights; the first one present wins, so averages come before raw weights."""

PREFIXES = ("module.", "_orig_mod.")
"""What data-parallel wrappers and ``torch.compile`` put before every key."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file.

    Attributes:
        path: Where they came from.
        state_dict: Names and tensors, on the CPU, in the precision of the file.
        architecture: Registered name of the model, if the file says.
        arguments: Constructor arguments, if the file says.
        stripped: Containers and prefixes that were taken off, outermost first.
    """

    path: Path
    state_dict: dict[str, Tensor]
    architecture: str | None = None
    arguments: dict[str, Any] | None = None
    stripped: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read safetensors, a PyTorch file, or a folder with ``model.safetensors`` and ``config.json``.

    The format is told by the file's first bytes, not by its name. Pickled files are opened without running anything
    they carry; the weights may lie bare or inside any of ``CONTAINERS``, with any of ``PREFIXES``.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is no checkpoint, is damaged, or wants to run code.

    Example:
        >>> import os, tempfile, torch
        >>> path = os.path.join(tempfile.mkdtemp(), "last.pth")
        >>> torch.save({"epoch": 3, "model_state": {"module.weight": torch.ones(2)}}, path)
        >>> found = read_checkpoint(path)
        >>> found.state_dict, found.stripped
        ({'weight': tensor([1., 1.])}, ('model_state', 'module.'))
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return _unwrap(path, unpickle(path))
    raise CheckpointError(f"{path}: {_describe(head)}, not a checkpoint (safetensors or a PyTorch file)")


def _read_folder(folder: Path) -> Checkpoint:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if not weights.is_file():
        raise CheckpointError(f"{folder}: a folder without model.safetensors")
    found = read_checkpoint(weights)
    if not config.is_file():
        return found
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
        return Checkpoint(weights, found.state_dict, described["architecture"], dict(described["arguments"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{config}: expected a JSON object with architecture and arguments ({error!r})"
        ) from error


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file, damaged or cut short ({error})") from error
    try:
        arguments = json.loads(about["arguments"]) if "arguments" in about else None
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata 'arguments' is not JSON ({error})") from error
    return _unwrap(path, state, about.get("architecture"), arguments)


def _unwrap(path: Path, content: Any, architecture: str | None = None, arguments: dict | None = None) -> Checkpoint:
    """Take containers and prefixes off, remembering them and what the file says about itself."""
    stripped: list[str] = []
    while isinstance(content, Mapping):
        if isinstance(content.get("architecture"), str) and isinstance(content.get("arguments"), Mapping):
            architecture, arguments = content["architecture"], dict(content["arguments"])
        key = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        stripped.append(key)
        content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise CheckpointError(
            f"{path}: no weights found; it holds {keys}; known containers are {', '.join(CONTAINERS)}"
        )
    while prefix := next((prefix for prefix in PREFIXES if _all_start_with(prefix, state)), None):
        stripped.append(prefix)
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return Checkpoint(path, state, architecture, arguments, tuple(stripped))


def _all_start_with(prefix: str, state: Mapping[str, Tensor]) -> bool:
    """Whether every key does, but for the counter that ``torch.optim.swa_utils.AveragedModel`` adds."""
    keys = [key for key in state if key != "n_averaged"]
    return bool(keys) and all(key.startswith(prefix) for key in keys)


def _describe(head: bytes) -> str:
    """Say what a file that is no checkpoint seems to be."""
    signatures = {
        b"\xff\xd8": "a JPEG image",
        b"\x89PNG": "a PNG image",
        b"\x89HDF": "an HDF5 file",
        b"\x1f\x8b": "a gzip file",
    }
    if not head:
        return "an empty file"
    for signature, name in signatures.items():
        if head.startswith(signature):
            return name
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (fetch the real file with `git lfs pull`)"
    if head.lstrip()[:1] == b"<":
        return "a web page (a download that failed?)"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return "a file of an unknown format"
