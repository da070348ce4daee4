"""The gates of InterScan on a photograph: one for every row and one for every column, in each channel."""

import torch
from card import card, photo, shown
from torch import Tensor

import slicescan

LEVEL, BLOCK = "decoder_level1", 1


def gates_of(model, image: Tensor) -> tuple[Tensor, Tensor]:
    """Gates of the rows, ``(h, channels)``, and of the columns, ``(w, channels)``, of one InterScan.

    A gate is the sigmoid of what the scanner's Mamba returns; its last layer meets the rows first, then the columns.
    """
    found = []
    last = getattr(model, LEVEL)[BLOCK].inter.mamba.out_proj
    hook = last.register_forward_hook(lambda layer, inputs, output: found.append(torch.sigmoid(output)))
    with torch.no_grad():
        model(image)
    hook.remove()
    rows, columns = (gate.flatten(0, 2) for gate in found)
    return rows, columns


def draw():
    """The photograph, the gates of its rows at its side and of its columns below."""
    image = photo("red_panda", 60, 240, 256, 320)
    rows, columns = gates_of(slicescan.create_model("xyscannet_tiny", pretrained=True), image)
    rows_change, columns_change = rows - rows.mean(0), columns - columns.mean(0)
    spread = torch.cat([rows_change, columns_change]).abs().quantile(0.99).item()
    figure, axes = card(2, 2, 4.6, gridspec_kw={"width_ratios": (320, 110), "height_ratios": (256, 110)})
    (picture, side), (below, corner) = axes
    picture.imshow(shown(image), aspect="auto")
    picture.set(xticks=(), ylabel="row")
    look = {"cmap": "PuOr", "vmin": -spread, "vmax": spread, "aspect": "auto"}
    drawn = side.imshow(rows_change.numpy(), **look)
    side.set(title="gates of rows", xlabel="channel", yticks=())
    below.imshow(columns_change.T.numpy(), **look)
    below.set(xlabel="column", ylabel="channel", title="gates of columns")
    corner.set_axis_off()
    found = f"rows {rows.min():.2f} to {rows.max():.2f}\ncolumns {columns.min():.2f} to {columns.max():.2f}"
    corner.text(0.5, 1, found, ha="center", va="top", fontsize=8)
    scale = corner.inset_axes((0.05, 0.22, 0.9, 0.12))
    bar = figure.colorbar(drawn, cax=scale, orientation="horizontal", ticks=(-0.1, 0, 0.1))
    bar.set_label("gate minus the\nchannel's mean", fontsize=8)
    return figure
