"""One picture, four small faults, three protocols: the figures that each reports."""

import torch
import torch.nn.functional as F
from card import BLUE, GREEN, ORANGE, card, photo
from torch import Tensor

from slicescan.engine.metrics import find_protocol, quantize

SHOWN = {"gopro": (BLUE, ""), "plain": (ORANGE, "//"), "realblur": (GREEN, "..")}


def faults() -> tuple[Tensor, dict[str, Tensor]]:
    """A piece of a photograph, ``(3, 160, 200)`` uint8, and faulty copies of it."""
    wide = photo("berlin_cathedral", 100, 240, 162, 202)
    noise = 0.03 * torch.randn(wide.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(wide, 3, 1, 1)
    copies = {"noise": wide + noise, "3x3 blur": blurred, "moved 1 px": wide.roll(1, 3), "6 % darker": 0.94 * wide}
    return quantize(wide[0, :, 1:-1, 1:-1]), {name: quantize(x[0, :, 1:-1, 1:-1]) for name, x in copies.items()}


def draw():
    """PSNR above, SSIM below."""
    sharp, copies = faults()
    figure, axes = card(2, 1, 5.4)
    for (panel,), metric, digits in zip(axes, ("psnr", "ssim"), (1, 3), strict=True):
        for k, (name, (colour, hatch)) in enumerate(SHOWN.items()):
            values = [find_protocol(name).compare(copy, sharp)[metric] for copy in copies.values()]
            places = [i + 0.27 * (k - 1) for i in range(len(values))]
            panel.bar(places, values, 0.25, color=colour, hatch=hatch, edgecolor="white", label=name, lw=0)
            for place, value in zip(places, values, strict=True):
                text = f"{value:.{digits}f}".removeprefix("0")
                panel.text(place, value, text, ha="center", va="bottom", fontsize=7.5)
        panel.set_xticks(range(len(copies)), list(copies))
    axes[0, 0].set(ylabel="PSNR in dB", ylim=(15, None))
    axes[1, 0].set(ylabel="SSIM", ylim=(0.5, 1.05))
    axes[0, 0].legend(frameon=False, ncols=3, loc="upper left")
    return figure
