"""Strips: run a network over an image a few rows at a time, with the result of the whole image.

A layer that can be streamed has ``reach``, the rows above and below that it looks at around each row. If it depends on
more of the image than those, it also has ``stream(pieces)``: given every strip of its input once, to gather what it
must know of the whole, it returns a function that treats the strips in order, from the top to the bottom.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ALIGNMENT = 4
"""Strips begin at multiples of this, so that they have whole rows in maps of a half and a quarter of the size."""


class Strip(NamedTuple):
    """Some rows of a map, and the neighbouring rows that are looked at; the same part of maps of other sizes.

    Attributes:
        height: Rows of the map.
        first: The strip's first row.
        last: One more than its last row.
        above: Rows above it that are looked at.
        below: Rows below it that are looked at.
    """

    height: int
    first: int
    last: int
    above: int = 0
    below: int = 0

    def of(self, x: Tensor) -> Tensor:
        """Its part of ``x``, ``(b, c, h, w)``, neighbouring rows included; ``h`` may be any multiple or fraction."""
        top, bottom = self.first - self.above, self.last + self.below
        return x[:, :, top * x.shape[2] // self.height : bottom * x.shape[2] // self.height]

    def inner(self, y: Tensor) -> Tensor:
        """What was made of such a part, without that of the neighbouring rows."""
        rows = self.above + self.last - self.first + self.below
        return y[:, :, self.above * y.shape[2] // rows : (rows - self.below) * y.shape[2] // rows]

    def alone(self) -> "Strip":
        """The strip without its neighbours."""
        return Strip(self.height, self.first, self.last)


Treat = Callable[..., Tensor]
"""``treat(strip, x)``: what a layer makes of a strip, from its rows and their neighbours."""


class Strips:
    """Run layers strip by strip; only whole maps that pass from layer to layer are kept.

    Args:
        rows: Rows of a strip, in maps of every size; rounded down to a multiple of 4, but at least 4.

    Example:
        >>> conv, x = nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 1, 10, 3)
        >>> torch.allclose(Strips(4).run(conv, x, 10, reach=1), conv(x))
        True
    """

    def __init__(self, rows: int):
        self.rows = max(rows // ALIGNMENT, 1) * ALIGNMENT

    def each(self, height: int, reach: int = 0) -> Iterator[Strip]:
        """The strips of a map of ``height`` rows, from the top to the bottom."""
        for first in range(0, height, self.rows):
            last = min(first + self.rows, height)
            yield Strip(height, first, last, min(reach, first), min(reach, height - last))

    def make(self, height: int, reach: int, piece: Callable[[Strip], Tensor]) -> Tensor:
        """A map of ``height`` rows from its strips, ``piece(strip)``."""
        made = None
        for strip in self.each(height, reach):
            part = piece(strip)
            if made is None:
                b, c, _, w = part.shape
                size, order = (b, c, height, w), torch.channels_last
                made = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=order)
            made[:, :, strip.first : strip.last] = part
        assert made is not None
        return made

    def overwrite(
        self,
        x: Tensor,
        reach: int,
        piece: Callable[[Strip, Tensor], Tensor],
        put: Callable[[Tensor, Tensor], Tensor] = Tensor.copy_,
    ) -> Tensor:
        """Put ``piece(strip, old)`` in the place of every strip of ``x``; ``old`` has ``reach`` rows around it.

        The last rows of a strip are put in their place when the next one, which looks at the old ones, is made.
        """
        late, made_late = x[:, :, :0], x[:, :, :0]
        for strip in self.each(x.shape[2], reach):
            made = piece(strip, strip.of(x).contiguous(memory_format=torch.channels_last))  # of one image, no copy
            put(late, made_late)
            end = strip.last - (reach if strip.last < strip.height else 0)
            put(x[:, :, strip.first : end], made[:, :, : end - strip.first])
            late, made_late = x[:, :, end : strip.last], made[:, :, end - strip.first :].clone()
        put(late, made_late)
        return x

    def run(self, layer: nn.Module, x: Tensor, height: int, *, reach: int) -> Tensor:
        """``layer(x)``, a map of ``height`` rows, for a layer that looks at ``reach`` rows of it around each row."""
        return self.make(height, reach, lambda strip: strip.inner(layer(strip.of(x))))

    def merge(self, up: nn.Module, coarse: Tensor, skip: Tensor, reduce: nn.Module) -> Tensor:
        """``reduce(cat(up(coarse), skip))`` in the place of ``skip``, which has twice the rows of ``coarse``."""

        def piece(strip: Strip, old: Tensor) -> Tensor:
            return reduce(torch.cat([strip.inner(up(strip.of(coarse))), strip.inner(old)], 1))

        return self.overwrite(skip, 2, piece)

    def fuse(self, layer: Any, levels: Sequence[Tensor], index: int, *, keep: bool = False) -> Tensor:
        """What a fusion makes of one of three ``levels``, in its place unless that is to be kept."""
        cur, others = levels[index], [*levels[:index], *levels[index + 1 :]]
        height, reach = cur.shape[2], layer.reach

        def beside(strip: Strip) -> list[Tensor]:
            return [strip.of(other) for other in others]

        treat = layer.stream((strip, strip.of(cur), beside(strip)) for strip in self.each(height, reach))
        if keep:
            return self.make(height, reach, lambda strip: treat(strip, strip.of(cur), beside(strip)))
        return self.overwrite(cur, reach, lambda strip, old: treat(strip, old, beside(strip)))

    def refine(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        """``blocks(x)`` in the place of ``x``, for residual blocks that name their ``branches``."""
        for block in blocks:
            for norm, layer in block.branches():  # type: ignore[operator]
                self._add(norm, layer, x)
        return x

    def _add(self, norm: nn.Module, layer: Any, x: Tensor) -> None:
        reach = getattr(layer, "reach", None)
        if not isinstance(reach, int):
            raise ValueError(f"{type(layer).__name__} depends on the whole image and cannot be streamed")
        treat: Treat = partial(_treat_alone, layer)
        if hasattr(layer, "stream"):
            treat = layer.stream((strip, norm(strip.of(x))) for strip in self.each(x.shape[2], reach))
        self.overwrite(x, reach, lambda strip, old: treat(strip, norm(old)), Tensor.add_)


def _treat_alone(layer: nn.Module, strip: Strip, x: Tensor) -> Tensor:
    return strip.inner(layer(x))
