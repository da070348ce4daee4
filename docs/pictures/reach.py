"""What one layer lets a pixel see: the gradient of one output pixel by every input pixel."""

import torch
from card import RED, card
from matplotlib.colors import LogNorm
from torch import Tensor, nn

from slicescan.layers import SS2D, InterScan, SliceScan2D

SIDE, AT, DIM = 24, (14, 9), 8


def seen(layer: nn.Module) -> Tensor:
    """Size of the gradient at every pixel, ``(SIDE, SIDE)``."""
    x = torch.randn(1, DIM, SIDE, SIDE, requires_grad=True)
    y = layer(x)[0, :, AT[0], AT[1]]
    (gradient,) = torch.autograd.grad(y @ torch.randn(DIM), x)
    return gradient[0].norm(dim=0)


def draw():
    """Six layers with random weights; white is exactly zero."""
    torch.manual_seed(0)
    layers = {
        "SliceScan2D": SliceScan2D(DIM),
        "SliceScan2D, bidirectional": SliceScan2D(DIM, bidirectional=True),
        "SliceScan2D, twice": nn.Sequential(SliceScan2D(DIM), SliceScan2D(DIM)),
        "InterScan": InterScan(DIM),
        "SliceScan2D, then InterScan": nn.Sequential(SliceScan2D(DIM), InterScan(DIM)),
        "SS2D": SS2D(DIM),
    }
    figure, axes = card(3, 2, 7.6)
    for panel, (name, layer) in zip(axes.flat, layers.items(), strict=True):
        size = seen(layer)
        share = (size > 0).double().mean().item()
        relative = (size / size.max()).where(size > 0, torch.nan)
        image = panel.imshow(relative.numpy(), cmap="cividis_r", norm=LogNorm(1e-8, 1))
        panel.plot(AT[1], AT[0], "+", color=RED, ms=9, mew=2)
        panel.set_title(f"{name}\n{share:.0%} of the pixels")
        panel.set(xlabel="column", ylabel="row", xticks=(0, 10, 20), yticks=(0, 10, 20))
        panel.spines[:].set_visible(True)
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=40, label="gradient, largest = 1 (log)")
    return figure
