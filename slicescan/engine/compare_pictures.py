"""Pictures of a comparison: every image's figure as curves, and sheets of the worst cases."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.engine.data import File, find_sets
from slicescan.engine.metrics.catalogue import Metric
from slicescan.engine.restored import find_restored

INKS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
WIDTH, HEIGHT, LEFT, BOTTOM = 760, 360, 64, 44
CROP, GAP, LINE = 208, 6, 18


def draw_figures(columns: Mapping[str, Sequence[float]], metric: Metric) -> Any:
    """Every image's figure as a Pillow image: one curve a run, images in the order of the first run's figures."""
    from PIL import Image, ImageDraw, ImageFont

    top = 14 + LINE * len(columns)
    sheet = Image.new("RGB", (WIDTH, top + HEIGHT + BOTTOM), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    finite = [value for values in columns.values() for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    step = _step(high - low)
    low, high = math.floor(low / step) * step, (math.floor(high / step) + 1) * step
    first = next(iter(columns.values()))
    order = sorted(range(len(first)), key=lambda i: first[i])
    right, down = WIDTH - 16, top + HEIGHT

    def place(rank: int, value: float) -> tuple[float, float]:
        across = LEFT + (right - LEFT) * (rank + 0.5) / len(order)
        return across, down - HEIGHT * (min(max(value, low), high) - low) / (high - low)

    for tick in np.arange(low, high + step / 2, step):
        y = place(0, tick)[1]
        pen.line((LEFT, y, right, y), fill=(225, 225, 225))
        pen.text((LEFT - 6, y), f"{tick:.6g}", fill="black", font=font, anchor="rm")
    pen.line((LEFT, top, LEFT, down, right, down), fill="black")
    about = f"{metric.title} ({metric.better} is better); {len(order)} images, ordered by {next(iter(columns))}"
    pen.text(((LEFT + right) / 2, down + BOTTOM / 2), about, fill="black", font=font, anchor="mm")
    for number, (name, values) in enumerate(columns.items()):
        ink = INKS[number % len(INKS)]
        points = [place(rank, values[i]) for rank, i in enumerate(order)]
        pen.line(points, fill=ink, width=2)
        for x, y in points if len(points) <= 60 else []:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
        y = 14 + LINE * number
        pen.line((LEFT, y, LEFT + 24, y), fill=ink, width=3)
        pen.text((LEFT + 32, y), name, fill="black", font=font, anchor="lm")
    return sheet


def draw_worst(
    chosen: Sequence[tuple[int, str]],
    about: Mapping[str, Any],
    places: Mapping[str, Path],
    figures: Mapping[str, Mapping[int, float]],
    metric: Metric,
) -> Any:
    """Crops of images: blurred, by every run, sharp; where the squared error of the first run is largest.

    Args:
        chosen: Indices and names of the images, a row for each.
        about: Facts of the first run: where the data are.
        places: Folder of restored images of every run.
        figures: Figures of every run by index.
        metric: What the figures are.

    Raises:
        FileNotFoundError: Data or restored images are gone.
        ValueError: The data set has no such image any more.
    """
    from PIL import Image, ImageDraw, ImageFont

    pairs = {pair.name: pair for one in find_sets(about["data"]) for pair in one.pairs if one.split == about["split"]}
    for _, name in chosen:
        if name not in pairs:
            raise ValueError(f"{about['data']}: {name} is not there any more")
    files = {run: find_restored(folder, [name for _, name in chosen]) for run, folder in places.items()}
    heads = ["blurred", *places, "sharp"]
    width = GAP + len(heads) * (CROP + GAP)
    sheet = Image.new("RGB", (width, LINE + GAP + len(chosen) * (CROP + 2 * LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, head in enumerate(heads):
        pen.text((GAP + column * (CROP + GAP), LINE / 2 + 2), _short(head, font), fill="black", font=font, anchor="lm")
    for row, (index, name) in enumerate(chosen):
        pair = pairs[name]
        restored = {run: _tensor(File(files[run][name]).read()) for run in places}
        blurred = _tensor(pair.blurred.read())
        sharp = _tensor(pair.sharp.read()) if pair.sharp is not None else blurred
        top, left = worst_place(next(iter(restored.values())), sharp)
        y = LINE + GAP + row * (CROP + 2 * LINE)
        below = ["", *(f"{metric.title} {figures[run][index]:.{metric.digits}f}" for run in places), ""]
        below[0] = _short(name, font)
        for column, image in enumerate([blurred, *restored.values(), sharp]):
            crop = image[:, top : top + CROP, left : left + CROP].permute(1, 2, 0).numpy()
            x = GAP + column * (CROP + GAP)
            sheet.paste(Image.fromarray(np.ascontiguousarray(crop)), (x, y))
            pen.text((x, y + CROP + LINE / 2), below[column], fill="black", font=font, anchor="lm")
    return sheet


def worst_place(restored: Tensor, sharp: Tensor) -> tuple[int, int]:
    """Top and left of the crop with the largest squared error, on a grid of 8 pixels."""
    h, w = (min(CROP, size) for size in sharp.shape[1:])
    error = (restored.float() - sharp.float()).square().sum(0)[None, None]
    means = F.avg_pool2d(error, (h, w), stride=8)[0, 0]
    best = int(means.argmax())
    return best // means.shape[1] * 8, best % means.shape[1] * 8


def save(sheet: Any, file: Path) -> None:
    """Write a picture under a temporary name and rename it."""
    fresh = file.with_name(f".{file.stem}.{os.getpid()}.partial{file.suffix}")
    try:
        sheet.save(fresh)
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _short(name: str, font: Any) -> str:
    """The end of a name that fits under a crop."""
    cut = 0
    while font.getlength(f"…{name[cut:]}" if cut else name) > CROP - GAP:
        cut += 1
    return f"…{name[cut:]}" if cut else name


def _step(span: float) -> float:
    """A round step that gives four to ten ticks."""
    rough = (span or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
