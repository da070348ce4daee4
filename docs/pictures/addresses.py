"""Where the numbers of one pixel lie in memory, channels first and channels last."""

import torch
from card import BLUE, GREEN, ORANGE, card
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

C, H, W = 8, 4, 6
PIXELS = {"a pixel": (1, 2, BLUE), "the next in its row": (1, 3, ORANGE), "the next in its column": (2, 2, GREEN)}


def draw():
    """All of memory, 24 numbers a line, with three pixels marked."""
    figure, axes = card(2, 1, 4.4)
    orders = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    for (panel,), (name, order) in zip(axes, orders.items(), strict=True):
        x = torch.zeros(1, C, H, W).contiguous(memory_format=order)
        memory = torch.zeros(C * H * W)
        for mark, (row, column, _) in enumerate(PIXELS.values(), 1):
            addresses = [x[0, c, row, column].storage_offset() for c in range(C)]
            memory[addresses] = mark
        stretches = int((memory == 1).int().diff(prepend=torch.zeros(1)).clamp(min=0).sum())
        colours = ListedColormap(["#eeeeee", *(colour for _, _, colour in PIXELS.values())])
        panel.pcolormesh(memory.view(-1, 24).numpy(), cmap=colours, vmin=-0.5, vmax=3.5, edgecolors="white", lw=1)
        panel.invert_yaxis()
        panel.set(title=f"{name}: one pixel lies in {stretches} stretch" + "es" * (stretches > 1), ylabel="line of 24")
        panel.set(aspect="equal", xticks=(0, 8, 16, 24), yticks=(0, 4, 8))
    axes[1, 0].set_xlabel("address within the line")
    marks = [Patch(color=colour, label=name) for name, (_, _, colour) in PIXELS.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=8, handlelength=1)
    return figure
