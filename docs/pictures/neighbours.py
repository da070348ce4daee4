"""Which pixels a scan makes neighbours: the order in which it meets them, counted by the scan itself."""

import torch
from card import BLUE, RED, card
from torch import Tensor

from slicescan.ops import slice_scan

H, W = 5, 7


def visits(axis: str, carry: bool) -> Tensor:
    """At every pixel, how many pixels the scan has met: it forgets nothing (A = 0) and adds one at each."""
    ones = torch.ones(1, H, W, 1)
    return slice_scan(ones, ones, torch.zeros(1, 1), ones, ones, axis=axis, carry=carry)[0, :, :, 0].int()


def draw():
    """Flatten and scan above, slice and scan below; rows on the left, columns on the right."""
    figure, axes = card(2, 2, 4.7)
    for panel, (axis, carry) in zip(axes.flat, [("w", True), ("h", True), ("w", False), ("h", False)], strict=True):
        count = visits(axis, carry)
        panel.imshow(count.numpy(), cmap="Blues", vmin=-10, vmax=2.2 * H * W)
        lines = count.flatten()[None] if carry else (count if axis == "w" else count.T)
        places = torch.arange(H * W).view(H, W)
        places = places.flatten()[None] if carry else (places if axis == "w" else places.T)
        jumps = 0
        for line, place in zip(lines, places, strict=True):
            path = [divmod(int(p), W) for p in place[line.argsort()]]
            for (y0, x0), (y1, x1) in zip(path, path[1:], strict=False):
                far = abs(y1 - y0) + abs(x1 - x0) > 1
                jumps += far
                arrow = {"arrowstyle": "-|>", "color": RED if far else BLUE, "lw": 1.1, "shrinkA": 8, "shrinkB": 8}
                panel.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
        for y in range(H):
            for x in range(W):
                panel.text(x, y, int(count[y, x]), ha="center", va="center", fontsize=8.5)
        sort, line = ("flatten" if carry else "slice"), ("rows" if axis == "w" else "columns")
        sequences = f"{len(lines)} sequence" + "s" * (len(lines) > 1)
        panel.set_title(f"{sort}, {line}\n{sequences}, {jumps} jump" + "s" * (jumps != 1))
        panel.set(xlabel="column", ylabel="row", xticks=range(0, W, 2), yticks=range(0, H, 2))
    return figure
