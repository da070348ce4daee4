"""Words on patches: text is where deblurring is looked at first, and photographs hold little of it."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def words(side: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A few random words in random colours, to lay over a square image: it becomes ``image * keep + paint``.

    Args:
        side: Of the image, in pixels.
        draw: What is random.

    Returns:
        ``keep`` ``(1, side, side)`` and ``paint`` ``(3, side, side)``, both in [0, 1].
    """
    from PIL import Image, ImageDraw

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    keep: np.ndarray = np.ones((1, side, side), np.float32)
    paint: np.ndarray = np.zeros((3, side, side), np.float32)
    for _ in range(number(1, 5)):
        word = "".join(LETTERS[number(0, len(LETTERS))] for _ in range(number(3, 11)))
        place = (number(0, side), number(0, side))
        colour = np.array([number(0, 256) for _ in range(3)], np.float32).reshape(3, 1, 1) / 255
        ink = Image.new("L", (side, side))
        ImageDraw.Draw(ink).text(place, word, fill=255, font=_font(number(10, 48)), anchor="mm")
        covered = np.asarray(ink, np.float32) / 255
        keep, paint = keep * (1 - covered), paint * (1 - covered) + colour * covered
    return torch.from_numpy(keep), torch.from_numpy(paint)


@cache
def _font(size: int) -> Any:
    """Kept, because opening a font takes longer than drawing with it."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
