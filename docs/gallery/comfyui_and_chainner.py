"""
Use it in ComfyUI and chaiNNer
==============================

ComfyUI and chaiNNer open models through spandrel, and spandrel opens those of slicescan after one call. It needs the
extra ``spandrel``: ``pip install "slicescan[spandrel]"``.

**ComfyUI.** Copy the folder ``examples/comfyui_node`` into ``custom_nodes``, and install the extra in ComfyUI's
environment. "Load Upscale Model" then opens the files. This is all that the folder holds:
"""

from pathlib import Path

import slicescan

examples = Path(slicescan.__file__).parents[1] / "examples"
print((examples / "comfyui_node" / "__init__.py").read_text(encoding="utf-8"))

# %%
# **chaiNNer** and programs of your own make the same call before they load a model: ``install`` adds the families
# that spandrel lacks to the registry that its loader asks.

import spandrel

from slicescan.integrations.spandrel import install

registry = spandrel.MAIN_REGISTRY.copy()
print(install(registry))

# %%
# The page adds them to a copy of the registry; ``install()`` without an argument adds them for good.
#
# Open a file
# -----------
#
# Files of slicescan and published ones open alike. Here it is one with the weights of the package, as
# ``slicescan convert`` writes it. Spandrel hands over the weights alone, so that a line of the log names the arguments
# that these leave open; ``slicescan.load`` reads them from the file.

import tempfile

from slicescan.checkpoint import write_checkpoint

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "xyscannet_tiny.safetensors"
    write_checkpoint(file, slicescan.create_model("xyscannet_tiny", pretrained=True))
    descriptor = spandrel.ModelLoader(device="cpu", registry=registry).load_from_file(file)

print(f"{descriptor.architecture.name}, for {descriptor.purpose}, scale {descriptor.scale}")
print(f"half precision: {descriptor.supports_half}, bfloat16: {descriptor.supports_bfloat16}")
print(f"tiles: {descriptor.tiling.name.lower()}")

# %%
# A program that asks spandrel learns that tiles are discouraged, because the network looks along whole rows and
# columns. Give it the whole image where memory allows.

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

photo = Image.open(examples / "photos" / "red_panda.jpg").crop((260, 150, 436, 290))
image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255
with torch.no_grad():
    restored = descriptor(image)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for axis, (name, picture) in zip(axes, {"given": image, "through spandrel": restored}.items(), strict=True):
    axis.imshow(picture[0].permute(1, 2, 0).numpy())
    axis.set(title=name, xticks=[], yticks=[])
