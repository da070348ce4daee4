"""Write weights so that a file is whole or absent, and says what it holds."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from slicescan.checkpoint.match import rename


def write_checkpoint(
    path: str | Path, model: nn.Module, *, published: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Write a model's weights, with its architecture and arguments, in the format that the file's suffix names.

    ``.safetensors`` keeps architecture and arguments (JSON) as metadata; ``.pth`` and ``.pt`` hold a dictionary
    ``{architecture, arguments, state_dict}``. The file appears under its name only when it is complete.

    Args:
        path: Ends in ``.safetensors``, ``.pth`` or ``.pt``; its folder exists.
        model: What to write; ``architecture`` and ``arguments`` are left out where the model has none.
        published: Write the bare state dict under the names of the paper's own release instead.
        dtype: Store floating-point weights in this precision; loading casts them back. None keeps the model's.

    Raises:
        ValueError: The suffix names no format.
        FileNotFoundError: The folder does not exist.

    Example:
        >>> import tempfile
        >>> from slicescan.checkpoint import read_checkpoint
        >>> path = Path(tempfile.mkdtemp()) / "layer.safetensors"
        >>> write_checkpoint(path, nn.Linear(2, 1), dtype=torch.float16)
        >>> read_checkpoint(path).state_dict["weight"].dtype
        torch.float16
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(
            f"{path}: the suffix names the format: .safetensors, .pth or .pt, not {path.suffix or 'none'!r}"
        )
    state = weights_of(model)
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    about = {}
    if published:
        state = rename(state, getattr(model, "renames", ()), to_published=True)
    elif hasattr(model, "architecture") and hasattr(model, "arguments"):
        about = {"architecture": model.architecture, "arguments": model.arguments}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary, {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()})
        else:
            torch.save(state if published else {**about, "state_dict": state}, temporary)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model as files hold it: on the CPU, contiguous."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, moved over it at the end, or removed if anything fails."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
