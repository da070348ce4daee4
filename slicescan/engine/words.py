"""Words on patches: text is where deblurring is looked at first, and photographs hold little of it."""

import numpy as np
import torch
from torch import Tensor

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def draw_word(image: Tensor, draw: torch.Generator) -> Tensor:
    """Draw a few random words in random colours on an image ``(3, h, w)`` in [0, 1]; returns a new one."""
    from PIL import Image, ImageDraw, ImageFont

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    canvas = Image.fromarray((image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(number(1, 5)):
        word = "".join(LETTERS[number(0, len(LETTERS))] for _ in range(number(3, 11)))
        place = (number(0, canvas.width), number(0, canvas.height))
        colour = tuple(number(0, 256) for _ in range(3))
        pen.text(place, word, fill=colour, font=ImageFont.load_default(number(10, 48)), anchor="mm")
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).to(image) / 255
