"""What all pictures share: a white card as wide as a phone, colours that every eye can tell apart, the photographs."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
WIDTH = 5.0
"""Inches; text of 10 points stays readable when a phone shrinks the card to 360 pixels."""

ROOT = Path(__file__).parents[2]
PHOTOS, RESULTS = ROOT / "examples" / "photos", ROOT / "benchmarks" / "results"

STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.titlesize": 10, "axes.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5, "font.size": 9.5, "axes.spines.top": False,
    "axes.spines.right": False, "figure.constrained_layout.use": True, "image.interpolation": "nearest",
}  # fmt: skip


def card(rows: int, columns: int, height: float, **options):
    """A figure of ``rows`` by ``columns`` panels; ``height`` in inches."""
    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)


def photo(name: str, top: int, left: int, height: int, width: int) -> Tensor:
    """A piece of a photograph in ``examples/photos``, ``(1, 3, height, width)`` in [0, 1]."""
    with Image.open(PHOTOS / f"{name}.jpg") as image:
        pixels = np.array(image.convert("RGB"))[top : top + height, left : left + width]
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def shown(image: Tensor) -> np.ndarray:
    """``(1, 3, h, w)`` as ``imshow`` takes it."""
    return image[0].permute(1, 2, 0).clamp(0, 1).numpy()
