"""
Restore a photograph
====================

The shipped weights on a photograph that a shaking hand has blurred. On the command line it is
``slicescan restore blurred.jpg``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import slicescan

photos = Path(slicescan.__file__).parents[1] / "examples" / "photos"
photo = Image.open(photos / "red_panda.jpg").crop((260, 150, 436, 290))
model = slicescan.create_model("xyscannet_tiny", pretrained=True)
restored = slicescan.restore(model, photo)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for axis, (name, picture) in zip(axes, {"given": photo, "restored": restored}.items(), strict=True):
    axis.imshow(picture)
    axis.set(title=name, xticks=[], yticks=[])

# %%
# ``restore`` takes Pillow images, arrays and tensors of any size, and returns the same kind. Large images are streamed
# or tiled by themselves, see :doc:`/auto_gallery/huge_image`; what belongs to a photograph, such as its EXIF data, is
# kept by the command, see :doc:`/restore`.
