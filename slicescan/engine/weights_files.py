"""The weights of a run as files for others: the average to use, and both for those who go on with them."""

import io
from pathlib import Path
from typing import Any

import torch

from slicescan.checkpoint import write_checkpoint
from slicescan.checkpoint.write import replacing, weights_of
from slicescan.engine.run import Run


def write_weights(out: Path, run: Run) -> Path:
    """Write ``<model>.safetensors``, the average, and ``<model>.pth`` with ``params`` and ``params_ema`` as in BasicSR.

    Of the second file :func:`slicescan.load` takes the average too. Each file appears when it is whole.

    Returns:
        The first file.
    """
    average = run.averaged()
    file = out / f"{run.recipe.model.name}.safetensors"
    write_checkpoint(file, average)
    content: dict[str, Any] = {"params": weights_of(run.model), "params_ema": weights_of(average)}
    if hasattr(average, "architecture") and hasattr(average, "arguments"):
        content |= {"architecture": average.architecture, "arguments": average.arguments}
    buffer = io.BytesIO()  # so that a full disk is an error of the disk, not one of the packer
    torch.save(content, buffer)
    with replacing(file.with_suffix(".pth")) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return file
