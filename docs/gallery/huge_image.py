"""
Stream or tile a huge image
===========================

What a network needs grows with the pixels of an image, and no memory is large enough for a panorama. There
are two ways out. *Streaming* passes over the image layer by layer and strip by strip, and hands on what scans and
means carry: the result is that of the whole image. *Tiling* cuts the image into pieces, which for a network that
looks along whole rows and columns is an approximation.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import slicescan

photos = Path(slicescan.__file__).parents[1] / "examples" / "photos"
photo = np.asarray(Image.open(photos / "berlin_cathedral.jpg").crop((130, 130, 290, 258)))
model = slicescan.create_model("xyscannet_tiny", pretrained=True)

restored = {
    "whole": slicescan.restore(model, photo, mode="whole"),
    "stream": slicescan.restore(model, photo, mode="stream"),
    "tile": slicescan.restore(model, photo, mode="tile", tile=80, overlap=16),
}

# %%
# ``mode="auto"``, the default, decides by itself: whole if it fits into memory, else as a stream, else in tiles. On the
# command line it is ``slicescan restore huge.jpg --mode stream``.
#
# A stream is the whole image
# ---------------------------
#
# In steps of the 8-bit result, the stream is where the whole image is, but for rounding. Tiles differ wherever there is
# something to restore, because each of them has rows, columns and means of its own.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
axes[0].imshow(restored["stream"])
axes[0].set(title="restored as a stream")
for axis, mode in zip(axes[1:], ("stream", "tile"), strict=True):
    steps = np.abs(restored[mode].astype(int) - restored["whole"].astype(int)).max(2)
    drawn = axis.imshow(steps, cmap="inferno", vmin=0, vmax=32)
    axis.set(title=f"{mode} against whole: at most {steps.max()} of 255")
bar = figure.colorbar(drawn, ax=axes[1:], label="steps of 255")
for axis in axes:
    axis.set(xticks=[], yticks=[])

# %%
# What they need
# --------------
#
# ``LiveMemory``, which ``slicescan.profile`` counts with, follows the tensors that are alive. The network has one block
# at each level here: depth costs time, and no memory where no gradients are wanted.

import torch

from slicescan.engine.memory import LiveMemory

thin = slicescan.create_model("xyscannet_tiny", blocks=(1, 1, 1))


def peak(run, *arguments, **settings):
    """Most memory that tensors hold at any moment of a call, in MiB."""
    memory = LiveMemory()
    with torch.no_grad(), memory:
        run(*arguments, **settings)
    return memory.peak / 2**20


heights = (64, 128, 256)
needs = {"whole": [], "stream": []}
for height in heights:
    image = torch.rand(1, 3, height, 256)
    needs["whole"].append(peak(thin, image))
    needs["stream"].append(peak(thin.stream, image, rows=16))
    print(f"256 x {height}: whole {needs['whole'][-1]:4.0f} MiB, as a stream {needs['stream'][-1]:4.0f} MiB")

plt.figure(figsize=(6, 3.5), layout="constrained")
for name, need in needs.items():
    plt.plot(heights, need, "o-", label=name)
plt.xlabel("height of an image 256 pixels wide")
plt.ylabel("activations, MiB")
plt.ylim(bottom=0)
legend = plt.legend()

# %%
# The stream grows only by the maps between the layers. Strips of 64 rows, the default, are a little faster; running out
# of memory halves them by itself. Tiles need the memory of one tile, however large the image is. What a whole image
# would need is told without running anything by ``slicescan profile xyscannet_tiny --size 4000x6000``.
