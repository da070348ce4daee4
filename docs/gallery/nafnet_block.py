"""
Scan in a NAFNet-style block
============================

NAFNet's block looks at 3x3 pixels and, by its channel attention, at the mean of the whole map, which
forgets where things are. Here the attention gives way to a scan, so that every pixel learns from its
own row and column. The gates, the weighted residuals and everything else stay.
"""

import torch
from torch import nn

from slicescan.layers import LayerNorm2d, NAFBlock, SliceScan2D


class ScanNAFBlock(NAFBlock):
    """A NAFNet block whose channel attention is a scan along every row and every column."""

    def __init__(self, dim):
        super().__init__(dim)
        self.sca = nn.Sequential(LayerNorm2d(dim), SliceScan2D(dim))


# %%
# One line is enough, because ``self.sca`` is called with a map of ``dim`` channels, and every layer of
# slicescan takes and returns such a map. The norm lifts what the gate leaves, which is small, to a size at
# which a scan has something to remember. In a block of your own it is the same line, in the place of the
# attention or beside it.

for block in (NAFBlock(32), ScanNAFBlock(32)):
    x = torch.rand(1, 32, 45, 67, requires_grad=True)
    block(x).square().mean().backward()
    parameters = sum(parameter.numel() for parameter in block.parameters())
    print(f"{type(block).__name__}: {parameters:,} parameters, gradient {tuple(x.grad.shape)}")

# %%
# What one pixel moves
# --------------------
#
# A fresh block returns its input, because the weights of its residuals start at zero. With these at
# one, change a single pixel of a map and look at what else changes. The plain block moves the
# neighbours, and through the mean everything by the same little. The scanning block moves what lies to
# the right of the pixel and below it, less and less.

import matplotlib.pyplot as plt

torch.manual_seed(0)
before = torch.rand(1, 16, 33, 33)
after = before.clone()
after[..., 10, 10] = torch.rand(16)

figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for axis, kind in zip(axes, (NAFBlock, ScanNAFBlock), strict=True):
    block = kind(16)
    nn.init.ones_(block.beta)
    with torch.no_grad():
        moved = (block(after) - block(before))[0].norm(dim=0).clamp(min=1e-7)
    drawn = axis.imshow(moved.log10().numpy(), cmap="inferno", vmin=-7, vmax=1)
    axis.set(title=kind.__name__, xticks=[], yticks=[])
bar = figure.colorbar(drawn, ax=axes, label="change, powers of ten")
