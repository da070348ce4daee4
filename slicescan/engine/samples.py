"""A sheet of held-out pictures as a run restores them now: input, output, sharp."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slicescan.checkpoint.write import replacing

SIDE, GAP, LINE = 256, 6, 18
HEADS = ("input", "output", "sharp")

Sample = tuple[str, Tensor, Tensor, Tensor]
"""Name; blurred, restored and sharp, uint8 ``(3, h, w)`` each."""


def draw_samples(samples: Sequence[Sample]) -> Any:
    """A Pillow image with a row for each sample: the centres of its three pictures, pixel by pixel, side by side."""
    from PIL import Image, ImageDraw, ImageFont

    cut = [(name, [_centre(picture) for picture in pictures]) for name, *pictures in samples]
    width = max(picture.shape[2] for _, pictures in cut for picture in pictures)
    heights = [max(picture.shape[1] for picture in pictures) for _, pictures in cut]
    sheet = Image.new("RGB", (GAP + 3 * (width + GAP), LINE + sum(height + LINE + GAP for height in heights)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, head in enumerate(HEADS):
        pen.text((GAP + column * (width + GAP), LINE / 2), head, fill="black", font=font, anchor="lm")
    y = LINE
    for (name, pictures), height in zip(cut, heights, strict=True):
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (GAP + column * (width + GAP), y))
        pen.text((GAP, y + height + LINE / 2), name, fill="black", font=font, anchor="lm")
        y += height + LINE + GAP
    return sheet


def write_samples(folder: Path, step: int, sheet: Any) -> Path:
    """Write a sheet as ``step-<step>.png``, whole or not at all."""
    folder.mkdir(exist_ok=True)
    file = folder / f"step-{step:08}.png"
    with replacing(file) as temporary:
        sheet.save(temporary, "PNG")
    return file


def _centre(picture: Tensor) -> Tensor:
    h, w = picture.shape[1:]
    top, left = max(0, h - SIDE) // 2, max(0, w - SIDE) // 2
    return picture[:, top : top + SIDE, left : left + SIDE].to(torch.uint8).contiguous()
