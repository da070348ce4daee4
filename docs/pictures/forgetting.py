"""How much of the pixel above is left when a scan arrives: as a neighbour on the path, or a whole row later."""

import torch
from card import BLUE, RED, card

from slicescan.ops import slice_scan

WIDTHS = [2**k for k in range(1, 12)]


def left_of_the_pixel_above(width: int, axis: str, carry: bool) -> float:
    """What an input of one at pixel (0, 0) adds to the output at (1, 0), mean over 64 channels.

    Decay rates and steps are those that a Mamba starts with: 1 to 16, and 0.001 to 0.1 on a logarithmic scale.
    """
    u = torch.zeros(1, 2, width, 64)
    u[0, 0, 0] = 1
    steps = torch.logspace(-3, -1, 64).expand_as(u)
    mix = torch.ones(1, 2, width, 16)
    rates = -torch.arange(1.0, 17).expand(64, 16)
    return slice_scan(u, steps, rates, mix, mix, axis=axis, carry=carry)[0, 1, 0].mean().item()


def draw():
    """One path through the flattened image against a column of its own."""
    near = left_of_the_pixel_above(WIDTHS[0], "h", False)
    column = [left_of_the_pixel_above(w, "h", False) / near for w in WIDTHS]
    flat = [left_of_the_pixel_above(w, "w", True) / near for w in WIDTHS]
    figure, ((panel,),) = card(1, 1, 3.0)
    panel.plot(WIDTHS, column, "o-", color=BLUE, label="slice: the column is a sequence")
    panel.plot(WIDTHS, flat, "s--", color=RED, label="flatten: row after row")
    panel.set(
        xscale="log", xlabel="width of the image in pixels", ylabel="what is left of the pixel above", ylim=(0, 1.08)
    )
    ticks = WIDTHS[::2]
    panel.set_xticks(ticks, [str(w) for w in ticks])
    panel.minorticks_off()
    for width in (64, 256):
        value = flat[WIDTHS.index(width)]
        panel.annotate(f"{value:.1%}", (width, value), (0, 9), textcoords="offset points", ha="center", color=RED)
    panel.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.7))
    return figure
