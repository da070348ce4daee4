"""Tiles: cut an image into overlapping pieces, treat each by itself, blend them without seams."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def starts(size: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """First positions of equally spaced tiles that cover ``size`` and share at least ``overlap``.

    Args:
        size: Length to cover.
        tile: Length of a tile, divisible by ``multiple``; the last one may be shorter, by less than ``multiple``.
        overlap: Least length that neighbours share, less than ``tile``.
        multiple: What positions are divisible by, so that a network that halves its input halves every tile alike.

    Example:
        >>> starts(100, 40, 8), starts(101, 40, 8, 4)
        ([0, 30, 60], [0, 32, 64])
    """
    if tile >= size:
        return [0]
    length, side = -(-size // multiple), tile // multiple  # in units of multiple
    shared = min(-(-overlap // multiple), side - 1)
    count = -(-(length - shared) // (side - shared))
    return [(2 * i * (length - side) + count - 1) // (2 * (count - 1)) * multiple for i in range(count)]


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
    multiple: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Apply ``treat`` to overlapping tiles and blend what comes back; sums are kept on the CPU.

    Args:
        treat: ``(b, c, h, w)`` to ``(b, c, h * scale, w * scale)`` on the CPU, for one whole ``scale``.
        image: ``(b, c, h, w)``.
        tile: Largest side of a tile, in pixels of ``image``, divisible by ``multiple``.
        overlap: Least number of pixels that neighbours share; at most half a tile is.
        multiple: What the tiles' positions are divisible by.
        progress: Called with the number of tiles done and of all.

    Returns:
        ``(b, c, h * scale, w * scale)``, on the CPU, in the dtype of what ``treat`` returns.
    """
    h, w = image.shape[2:]
    overlap = min(overlap, tile // 2, tile - multiple)
    places = [(top, left) for top in starts(h, tile, overlap, multiple) for left in starts(w, tile, overlap, multiple)]
    total = weight = torch.empty(0)
    for done, (top, left) in enumerate(places, 1):
        given = image[:, :, top : top + tile, left : left + tile]
        piece = treat(given)
        scale = piece.shape[3] // given.shape[3]
        if done == 1:
            total = piece.new_zeros(*piece.shape[:2], h * scale, w * scale)
            weight = piece.new_zeros(h * scale, w * scale)
        height, width = piece.shape[2:]
        down = window(top * scale, height, h * scale, overlap * scale)
        across = window(left * scale, width, w * scale, overlap * scale)
        share = down[:, None] * across
        place = (slice(top * scale, top * scale + height), slice(left * scale, left * scale + width))
        total[:, :, place[0], place[1]] += piece * share
        weight[place] += share
        if progress:
            progress(done, len(places))
    return total / weight
