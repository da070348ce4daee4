"""
Replace MambaIR's scan
======================

MambaIR flattens the image into four long sequences and scans each to its end. Here its network keeps its
shape, and the scan inside its blocks is exchanged for those of XYScanNet, which stay inside rows and
columns or go from slice to slice.
"""

import torch

import slicescan
from slicescan.layers import InterVSSM, IntraVSSM, VSSBlock

torch.manual_seed(0)
small = dict(dim=32, depths=(2, 2))  # two groups of two blocks, to be quick here
model = slicescan.create_model("mambair_light_sr_x2", **small)


def replace_scan(model, make):
    """Give every residual block of a MambaIR another scan, made for its number of channels."""
    for block in model.modules():
        if isinstance(block, VSSBlock):
            block.self_attention = make(block.self_attention.out_proj.out_features)
    return model


# %%
# The scan of a ``VSSBlock`` is its ``self_attention``, an ``SS2D``. Whatever takes ``(b, dim, h, w)`` and
# returns the same may stand in its place: the norm before it and the weighted residual around it are the
# block's own.

networks = {"SS2D": model}
for make in (IntraVSSM, InterVSSM):
    torch.manual_seed(0)
    network = slicescan.create_model("mambair_light_sr_x2", **small)
    networks[make.__name__] = replace_scan(network, make)

image = torch.rand(1, 3, 16, 23)
print(f"{'scan':<10}{'parameters':>11}{'GMACs':>8}{'scan updates':>14}  output")
for name, network in networks.items():
    cost = slicescan.profile(network, (3, 64, 64))
    made = network(image)
    made.mean().backward()
    print(f"{name:<10}{cost.params:>11,}{cost.macs / 1e9:>8.2f}{cost.scan_updates / 1e6:>12.1f} M  {tuple(made.shape)}")

# %%
# The multiply-adds are those of convolutions and matrix products; updates of the scans' states are counted
# apart. ``InterVSSM`` scans one descriptor for each row and column, which is why it has next to none.
#
# What the scans see
# ------------------
#
# How much each pixel of a map moves the centre of what the scan alone makes of it, on a logarithmic scale,
# before any training. The four flattened paths reach everything, the nearer along a row or a column the
# better; the scan inside the slices reaches along its own row and column; the one across them weighs whole
# rows and columns by what came before.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for axis, (name, network) in zip(axes, networks.items(), strict=True):
    scan = next(block for block in network.modules() if isinstance(block, VSSBlock)).self_attention
    field = slicescan.effective_receptive_field(scan, images=torch.randn(4, 32, 33, 33))
    powers = (field.energy / field.energy.max()).sqrt().clamp(min=1e-6).log10()
    drawn = axis.imshow(powers.numpy(), cmap="inferno", vmin=-6, vmax=0)
    axis.set(title=name, xticks=[], yticks=[])
bar = figure.colorbar(drawn, ax=axes, label="gradient / largest, powers of ten")

# %%
# The other direction, MambaIR's scan in the place of XYScanNet's, is an ablation with a name; with
# ``scanners=("ss2d", "ss2d")`` it can be had in any size.

for name in ("xyscannet_small", "xyscannet_small_mambair"):
    entry = slicescan.model_entry(name)
    print(f"{name}: {entry.params:,} parameters, {entry.macs_256 / 1e9:.1f} GMACs at 256x256")
