"""Tiles: cut an image into overlapping pieces, treat each by itself, blend them without seams."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """First positions of equally spaced tiles that cover ``size`` and share at least ``overlap``.

    Example:
        >>> starts(100, 40, 8)
        [0, 30, 60]
    """
    if tile >= size:
        return [0]
    count = math.ceil((size - overlap) / (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def window(first: int, tile: int, size: int, ramp: int) -> Tensor:
    """Weights of a tile's positions: a raised cosine over ``ramp`` positions at borders inside the image, else 1."""
    weights = torch.ones(tile)
    rise = torch.sin(math.pi * (torch.arange(ramp) + 0.5) / (2 * ramp)).square() if ramp else weights[:0]
    if first > 0:
        weights[:ramp] *= rise
    if first + tile < size:
        weights[tile - ramp :] *= rise.flip(0)
    return weights


def tiled(
    treat: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int,
    overlap: int,
    *,
    scale: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Apply ``treat`` to overlapping tiles and blend what comes back; sums are kept on the CPU.

    Args:
        treat: ``(b, c, h, w)`` to ``(b, c, h * scale, w * scale)``.
        image: ``(b, c, h, w)``.
        tile: Largest side of a tile, in pixels of ``image``.
        overlap: Least number of pixels that neighbours share.
        scale: Output size over input size.
        progress: Called with the number of tiles done and of all.

    Returns:
        ``(b, c, h * scale, w * scale)``, float32, on the CPU.
    """
    h, w = image.shape[2:]
    height, width = min(tile, h), min(tile, w)
    overlap = min(overlap, tile // 2)
    rows, columns = starts(h, height, overlap), starts(w, width, overlap)
    total = torch.zeros(*image.shape[:2], h * scale, w * scale)
    weight = torch.zeros(h * scale, w * scale)
    for done, (top, left) in enumerate(((top, left) for top in rows for left in columns), 1):
        piece = treat(image[:, :, top : top + height, left : left + width]).float().cpu()
        down = window(top * scale, height * scale, h * scale, min(overlap, height) * scale)
        across = window(left * scale, width * scale, w * scale, min(overlap, width) * scale)
        share = down[:, None] * across
        place = (slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale))
        total[:, :, place[0], place[1]] += piece * share
        weight[place] += share
        if progress:
            progress(done, len(rows) * len(columns))
    return total / weight
