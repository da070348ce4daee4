"""
A timm encoder with a scanning decoder
======================================

Any network of timm that returns feature maps can be the encoder. The decoder below takes its maps from
the coarsest to the finest, enlarges what it has, adds the next map and runs a ``ScanBlock``: the decoder
block of XYScanNet. It needs the extra ``timm``: ``pip install "slicescan[timm]"``.
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers import ScanBlock


class ScanDecoder(nn.Module):
    """Restore an image: maps of an encoder, coarsest first, enlarged, added to the next finer one, scanned."""

    def __init__(self, encoder: nn.Module, dim: int = 32):
        super().__init__()
        self.encoder = encoder
        widths = encoder.feature_info.channels()
        self.narrow = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)
        self.blocks = nn.ModuleList(ScanBlock(dim) for _ in widths)
        self.output = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add a residual to ``(b, 3, h, w)``."""
        y = None
        for level, narrow, block in list(zip(self.encoder(x), self.narrow, self.blocks, strict=True))[::-1]:
            skip = narrow(level)
            y = block(skip if y is None else skip + F.interpolate(y, skip.shape[2:], mode="bilinear"))
        return x + F.interpolate(self.output(y), x.shape[2:], mode="bilinear")


# %%
# The encoder
# -----------
#
# ``features_only=True`` makes timm return maps, and ``out_indices`` says which. The weights are random
# here, because nothing on this page is downloaded: with ``pretrained=True`` timm fetches trained ones.

torch.manual_seed(0)
encoder = timm.create_model("resnet10t", features_only=True, pretrained=False, out_indices=(0, 1, 2))
model = ScanDecoder(encoder)
blurred, sharp = torch.rand(2, 1, 3, 61, 94)
restored = model(blurred)
F.l1_loss(restored, sharp).backward()
parameters = sum(parameter.numel() for parameter in model.parameters())
print(f"{parameters:,} parameters, {tuple(blurred.shape)} -> {tuple(restored.shape)}")

# %%
# Any size goes in, odd ones too, because the decoder follows the sizes of the encoder's maps.
#
# What the decoder makes of the encoder's maps
# --------------------------------------------
#
# The mean over the channels of each level, before and after its ``ScanBlock``, for a photograph of the
# repository:

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import slicescan

photos = Path(slicescan.__file__).parents[1] / "examples" / "photos"
photo = np.asarray(Image.open(photos / "red_panda.jpg").crop((240, 90, 496, 346)))
seen = []
for narrow, block in zip(model.narrow, model.blocks, strict=True):
    narrow.register_forward_hook(lambda module, given, made: seen.append(made))
    block.register_forward_hook(lambda module, given, made: seen.append(made))
with torch.no_grad():
    model.eval()(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] / 255)

figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
for column, (before, after) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
    for axis, level, name in ((axes[0, column], before, "encoder"), (axes[1, column], after, "after the scans")):
        axis.imshow(level[0].mean(0).numpy(), cmap="gray")
        axis.set(title=f"{name}, {level.shape[3]}x{level.shape[2]}", xticks=[], yticks=[])

# %%
# The other way round
# -------------------
#
# timm also builds the networks of slicescan, once they are registered. Its trainers, optimisers and
# schedulers then take them as their own.

from slicescan.integrations.timm import register

print(register("xyscannet_t*"))
model = timm.create_model("slicescan_xyscannet_tiny", pretrained=True)  # weights in the package
