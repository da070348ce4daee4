"""
Write and register a model
==========================

A model of slicescan is a subclass of ``Restorer`` with two methods. The base class does the rest: it takes
any size, pads and crops, checks its input, and reads and writes files that say what they hold.
"""

import torch
from torch import Tensor, nn

import slicescan
from slicescan.layers import Downsample, ScanBlock, Upsample
from slicescan.models.base import ModelRecord, Reconstruction, Restorer


@slicescan.register_model
class TwoLevels(Restorer):
    """A residual made from two levels of scan blocks."""

    variants = {"two_levels": {"dim": 16}, "two_levels_wide": {"dim": 32}}
    record = ModelRecord(task="motion deblurring", supports=frozenset({"bf16"}))
    size_multiple = 2  # what one downsampling asks for

    def __init__(self, dim: int = 16, *, blocks: int = 1):
        super().__init__()
        self.enter = nn.Conv2d(3, dim, 3, padding=1)
        self.down, self.up = Downsample(dim), Upsample(2 * dim)
        self.deep = nn.Sequential(*(ScanBlock(2 * dim) for _ in range(blocks)))
        self.fine = nn.Sequential(*(ScanBlock(dim) for _ in range(blocks)))
        self.leave = nn.Conv2d(dim, 3, 3, padding=1)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The decoder's maps, finest first, of an image that is padded already."""
        fine = self.enter(x)
        deep = self.deep(self.down(fine))
        return [self.fine(fine + self.up(deep)), deep]

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """The restored image, and the residual for losses that want it."""
        residual = self.leave(levels[0])
        return Reconstruction([x + residual], residual)


# %%
# The decorator entered both names of ``variants``, so that they can be listed, built, described and
# measured like any other. Arguments of the constructor go by keyword, and a wrong one is named.

print(slicescan.list_models("two_*"))
model = slicescan.create_model("two_levels", blocks=2)
print(slicescan.model_entry("two_levels_wide").task, set(slicescan.model_entry("two_levels_wide").supports))
try:
    slicescan.create_model("two_levels", block=2)
except TypeError as error:
    print(error)

cost = slicescan.profile(model, (3, 256, 256))
print(f"{cost.params:,} parameters, {cost.macs / 1e9:.1f} GMACs, {cost.scan_updates / 1e6:.0f} M scan updates")

# %%
# Its files say what they hold, so ``slicescan.load`` needs nothing but the file:

import tempfile
from pathlib import Path

from slicescan.checkpoint import write_checkpoint

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "mine.safetensors"
    write_checkpoint(file, model)
    again = slicescan.load(file)
print(type(again).__name__, again.architecture, again.arguments)

# %%
# See it learn
# ------------
#
# Forty steps on one photograph, no more than a beginning: what a blur took away starts to come back.

import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from PIL import Image

photos = Path(slicescan.__file__).parents[1] / "examples" / "photos"
photo = Image.open(photos / "berlin_cathedral.jpg").crop((200, 80, 520, 400)).resize((64, 64))
sharp = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 0, 0), mode="replicate"), (1, 5), stride=1)

torch.manual_seed(0)
model = slicescan.create_model("two_levels")
nn.init.zeros_(model.leave.weight)  # begin with the image as it is
nn.init.zeros_(model.leave.bias)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(40):
    loss = F.l1_loss(model(blurred), sharp)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
restored = slicescan.restore(model, blurred)

figure, axes = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
for axis, (name, image) in zip(axes, {"blurred": blurred, "restored": restored, "sharp": sharp}.items(), strict=False):
    axis.imshow(image[0].permute(1, 2, 0).numpy())
    axis.set(title=name, xticks=[], yticks=[])
axes[3].plot(losses)
_ = axes[3].set(title="loss", xlabel="step")

# %%
# A function ``(pretrained=False, **kwargs)`` that returns any module can be registered as well; its name
# becomes the model's. A network that should join the package has one more line to write, see
# :doc:`/extending`.

for name in TwoLevels.variants:  # a name can be given up again
    slicescan.unregister_model(name)
