"""
Export to ONNX
==============

A network becomes a file that runs without PyTorch: in onnxruntime, on phones, in a browser. Batch, height and width
stay free, and a scan is one ``Scan`` node, however long. It needs the extra ``onnx``:
``pip install "slicescan[onnx]"``. For the network of the package it is one command, which takes minutes:

.. code-block:: sh

   slicescan export xyscannet_tiny -o xyscannet_tiny.onnx

Any module can be exported. A small one of our layers is traced quickly enough for this page.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from slicescan.engine.export import export
from slicescan.layers import IntraVSSM, LayerNorm2d


class Small(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, dim, 3, padding=1), nn.Conv2d(dim, 3, 3, padding=1)
        self.norm, self.scan = LayerNorm2d(dim), IntraVSSM(dim)

    def forward(self, x):
        y = self.enter(x)
        return x + self.leave(y + self.scan(self.norm(y)))


torch.manual_seed(0)
model = Small().eval()
workplace = tempfile.TemporaryDirectory()
file = export(model, Path(workplace.name) / "small.onnx", size=(16, 24))
print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB")

# %%
# Run it at another size
# ----------------------
#
# The file tells what a user must know: sizes have to be multiples of ``size_multiple``, which is 4 for XYScanNet, and
# colours are RGB from 0 to 1. Padding to the multiple, cropping and clamping are left to the program around it.

import numpy as np
import onnxruntime
from PIL import Image

import slicescan

session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
print(session.get_modelmeta().custom_metadata_map)

photos = Path(slicescan.__file__).parents[1] / "examples" / "photos"
photo = Image.open(photos / "red_panda.jpg").crop((240, 90, 496, 346)).resize((91, 61))
image = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / 255  # traced at 16x24, run at 61x91
(restored,) = session.run(None, {"input": image})
workplace.cleanup()

# %%
# The same result
# ---------------
#
# What the two runtimes differ by lies far below a step of an 8-bit image:

import matplotlib.pyplot as plt

with torch.no_grad():
    expected = model(torch.from_numpy(image)).numpy()
steps = 255 * np.abs(restored - expected)[0].max(0)
assert steps.max() < 0.5

figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
axes[0].imshow(photo)
axes[0].set(title="photograph")
axes[1].imshow(restored[0].transpose(1, 2, 0).clip(0, 1))
axes[1].set(title="onnxruntime, random weights")
drawn = axes[2].imshow(steps, cmap="inferno")
axes[2].set(title="difference from PyTorch")
bar = figure.colorbar(drawn, ax=axes[2], label="steps of 255")
for axis in axes:
    axis.set(xticks=[], yticks=[])

# %%
# ``slicescan models --supports onnx`` lists the networks whose files onnxruntime runs with PyTorch's results. With the
# suffix ``.pt2`` the same function writes a program of PyTorch, in which a scan stays one operator of ours.
