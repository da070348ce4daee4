"""
Plug a layer into your U-Net
============================

Every scanner of slicescan takes a map ``(b, c, h, w)`` and returns one of the same shape, for any
height and width, so it goes where a convolution goes. Copy these fourteen lines and run them: a
small U-Net with two scanners at its bottom, one forward and one backward pass.
"""

from torch import nn, rand

from slicescan.layers import InterVSSM, LayerNorm2d, SliceScan2D


class UNet(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 2 * dim, 2, 2)
        self.norm, self.along, self.across = LayerNorm2d(2 * dim), SliceScan2D(2 * dim), InterVSSM(2 * dim)
        self.up, self.leave = nn.ConvTranspose2d(2 * dim, dim, 2, 2), nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x):
        skip = self.enter(x)
        deep = self.norm(self.down(skip))
        deep = deep + self.along(deep)
        return x + self.leave(skip + self.up(deep + self.across(deep)))


UNet()(rand(1, 3, 64, 96)).mean().backward()

# %%
# That is all: no compiler, no GPU, no flattening into sequences. ``SliceScan2D`` scans along every
# row and every column; ``InterVSSM`` scans across them, from slice to slice, and gates each slice by
# what the scan has seen. Both need an even number of channels, and both are at their best behind a
# norm and beside a residual.
#
# What it does
# ------------
#
# The convolutions see a few pixels around each pixel. With the scans a pixel sees its row to the
# left and its column above, all of it, and by the gates, ever more faintly, the rest of the map. The
# effective receptive field shows this: how much every pixel of the input moves the centre of the
# output, here in powers of ten, for weights as they are before training.

import matplotlib.pyplot as plt
import torch

import slicescan

torch.manual_seed(0)
net = UNet()
fields = {"with scans": slicescan.effective_receptive_field(net, size=64)}
net.along, net.across = nn.Identity(), nn.Identity()
fields["convolutions alone"] = slicescan.effective_receptive_field(net, size=64)

figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for axis, (name, field) in zip(axes, fields.items(), strict=True):
    powers = field.change.energy.sqrt().clamp(min=1e-10).log10()
    drawn = axis.imshow(powers.numpy(), cmap="inferno", vmin=-10, vmax=0)
    axis.set(title=name, xticks=[], yticks=[])
bar = figure.colorbar(drawn, ax=axes, label="gradient, powers of ten")

# %%
# Scans run forwards. What lies behind a pixel reaches it through the gates of ``InterVSSM``, through
# later layers, or through ``SliceScan2D(dim, bidirectional=True)``.
#
# Where to go from here
# ---------------------
#
# ``InterVSSM`` and ``IntraVSSM`` bring a gated shell of their own around ``InterScan`` and
# ``SliceScan2D``, which are the bare scanners. ``ScanBlock`` is the whole decoder block of
# XYScanNet: norms, both scanners, two feed-forward layers and the residuals.

from slicescan.layers import ScanBlock

block = ScanBlock(32)
print(f"{sum(parameter.numel() for parameter in block.parameters()):,} parameters")
print(tuple(block(rand(2, 32, 17, 1)).shape))
