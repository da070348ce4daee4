"""Stream: restore an image strip by strip in bounded memory, with the result of the whole image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slicescan.engine.memory import out_of_memory
from slicescan.models.base import Restorer

ROWS = 64
"""Rows of a strip where memory allows; taller ones hardly save time."""

FEWEST_ROWS = 4


def stream(model: nn.Module, image: Tensor, rows: int | None = None) -> Tensor:
    """Restore an image as ``model(image)`` does, equal to rounding, in less memory; see ``Restorer.stream``.

    Args:
        model: A network that can be streamed, see :func:`why_not`.
        image: ``(b, c, h, w)``, RGB in [0, 1], on the device and in the precision of the weights.
        rows: Rows of a strip; 64 by default. Running out of memory halves them, down to 4.

    Returns:
        ``(b, c, h, w)``, not clamped.

    Raises:
        ValueError: The network cannot be streamed; the message says why.
        MemoryError: The maps between layers and a strip of 4 rows do not fit into memory.

    Example:
        >>> from slicescan import create_model
        >>> model, image = create_model("xyscannet_tiny", blocks=(1, 1, 1)), torch.rand(1, 3, 20, 8)
        >>> with torch.no_grad():
        ...     torch.allclose(stream(model, image, rows=4), model(image), atol=1e-5)
        True
    """
    reason = why_not(model)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot stream: {reason}; use mode='auto', 'whole' or 'tile'")
    assert isinstance(model, Restorer)
    rows = max(rows or ROWS, FEWEST_ROWS)
    while True:
        try:
            return model.stream(image, rows)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if rows <= FEWEST_ROWS:
                h, w = image.shape[2:]
                raise MemoryError(f"an image of {w}x{h} does not fit into memory even when streamed") from error
        rows = max(rows // 2, FEWEST_ROWS)
        if image.is_cuda:
            torch.cuda.empty_cache()


def why_not(model: nn.Module) -> str | None:
    """Why a network cannot be streamed, in words; None if it can."""
    if not isinstance(model, Restorer):
        return "it is no model of this package"
    return model.why_not_stream(model.arguments)


def rows_that_fit(model: nn.Module, size: Sequence[int], memory: float, need: float) -> int:
    """Rows of strips with which an image is predicted to fit into memory, 64 at most; 0 if there are none.

    Args:
        model: A network that can be streamed.
        size: ``(b, c, h, w)`` of the image.
        memory: Bytes that may be filled.
        need: Bytes that a pixel needs inside the layers.
    """
    assert isinstance(model, Restorer)
    b, _, h, w = size
    maps = b * h * w * model.stream_channels * next(model.parameters()).element_size()
    rows = (memory - maps) / (b * w * need)
    return min(int(rows), ROWS) if rows >= FEWEST_ROWS else 0
