"""Receptive fields side by side: a picture on a logarithmic scale, and their figures as JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slicescan.engine.erf import ReceptiveField
from slicescan.engine.results import write_text

PANEL, GAP, TITLE, CAPTION, BAR = 288, 16, 30, 62, 40
DECADES = 6
"""Powers of ten of the gradient that the colours span."""

COLOURS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


def write_fields(fields: Mapping[str, ReceptiveField], png: str | Path) -> None:
    """Write a picture of fields and, beside it under the same name, their figures as JSON.

    Args:
        fields: By the names that they carry in the picture; of each, the field of the change is shown if there is one.
        png: File of the picture.
    """
    png = Path(png)
    png.parent.mkdir(parents=True, exist_ok=True)
    fresh = png.with_name(f".{png.stem}.{os.getpid()}.partial.png")
    try:
        draw_fields(fields).save(fresh)
        os.replace(fresh, png)
    finally:
        fresh.unlink(missing_ok=True)
    figures = {name: _finite(field.summary()) for name, field in fields.items()}
    write_text(png.with_suffix(".json"), json.dumps(figures, indent=1, allow_nan=False) + "\n")


def draw_fields(fields: Mapping[str, ReceptiveField]) -> Any:
    """Panels side by side as a Pillow image; colours are the logarithm of the gradient over its largest value.

    Circles hold 50 and 90 percent of the energy.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = GAP + len(fields) * (PANEL + GAP)
    sheet = Image.new("RGB", (width, TITLE + PANEL + CAPTION + BAR), "white")
    pen, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    for i, (name, whole) in enumerate(fields.items()):
        field = whole.change if whole.change is not None else whole
        left = GAP + i * (PANEL + GAP)
        panel = Image.fromarray(colours(level(field))).resize((PANEL, PANEL), Image.Resampling.NEAREST)
        sheet.paste(panel, (left, TITLE))
        pen.text((left, TITLE // 2), name, fill="black", font=large, anchor="lm")
        h, w = field.energy.shape
        for share in (0.5, 0.9):
            _circle(sheet, (left, TITLE), (h, w), field, share)
        lines = [
            f"50 % within {field.radius(0.5):.1f} px, 90 % within {field.radius(0.9):.1f} px",
            f"{100 * field.share(16):.1f} % within 16 px, {100 * field.cross:.1f} % on the cross",
            f"{w}x{h}" + (", output minus input" if whole.change is not None else ""),
        ]
        for row, line in enumerate(lines):
            pen.text((left, TITLE + PANEL + 5 + 18 * row), line, fill="black", font=small)
    top = TITLE + PANEL + CAPTION + 4
    ramp = np.broadcast_to(np.linspace(0, 1, 240), (12, 240))
    sheet.paste(Image.fromarray(colours(ramp)), (GAP, top))
    pen.text((GAP, top + 14), f"1e-{DECADES}", fill="black", font=small)
    pen.text((GAP + 240, top + 14), "gradient / largest = 1", fill="black", font=small, anchor="ra")
    return sheet


def level(field: ReceptiveField) -> np.ndarray:
    """Logarithm of the gradient as ``(h, w)`` from 0, ``DECADES`` below the largest, to 1, the largest."""
    most = field.energy.max()
    relative = (field.energy / most if most else field.energy).sqrt()
    return (1 + relative.clamp(min=10.0**-DECADES).log10() / DECADES).numpy()


def colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as uint8 colours from black over red to light yellow, ``(..., 3)``."""
    stops = np.linspace(0, 1, len(COLOURS))
    table = np.array(COLOURS, dtype=np.float64)
    return np.stack([np.interp(values, stops, table[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def _circle(sheet: Any, corner: tuple[int, int], size: tuple[int, int], field: ReceptiveField, share: float) -> None:
    """Draw the circle that holds a share of the energy, cut at the borders of its panel."""
    radius = field.radius(share)
    if math.isnan(radius):
        return
    angle = torch.linspace(0, 2 * math.pi, 720, dtype=torch.float64)
    y = (field.centre[0] + 0.5 + (radius + 0.5) * angle.sin()) * PANEL / size[0]
    x = (field.centre[1] + 0.5 + (radius + 0.5) * angle.cos()) * PANEL / size[1]
    for across, down in zip(x.round().int().tolist(), y.round().int().tolist(), strict=True):
        if 0 <= across < PANEL and 0 <= down < PANEL:
            sheet.putpixel((corner[0] + across, corner[1] + down), (255, 255, 255) if share > 0.5 else (120, 220, 255))


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
