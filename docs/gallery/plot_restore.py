"""
Restore a photograph
====================

The shipped weights on a small photograph.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import slicescan

photos = Path("../../examples/photos")  # the build runs each script in its own folder
photo = Image.open(photos / "red_panda.jpg").convert("RGB").resize((128, 128))
model = slicescan.create_model("xyscannet_tiny", pretrained=True).eval()
restored = slicescan.restore(model, photo)

figure, axes = plt.subplots(1, 2)
for axis, picture, title in zip(axes, (photo, restored), ("given", "restored"), strict=True):
    axis.imshow(picture)
    axis.set(title=title, xticks=[], yticks=[])
