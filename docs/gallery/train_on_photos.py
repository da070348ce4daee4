"""
Train on your own photographs
=============================

A folder of sharp photographs is enough: they are blurred while the network trains, as a shaking hand would blur
them. A run is one recipe and one folder, and the same command begins it and goes on with it. It needs nothing but
the package; on a real folder, with a GPU, it is

.. code-block:: sh

   slicescan train xyscannet_tiny --photos ~/Photos --out runs/tiny

``slicescan train finetune --pairs FOLDER --out runs/mine`` learns from blurred and sharp pairs of your own instead,
beginning with the weights of the package. Here twenty steps of a tiny network have to do.
"""

import json
import tempfile
from pathlib import Path

from PIL import Image

import slicescan
from slicescan.engine.config import BlurSection, DataSection, ModelSection, OptimizerSection, Recipe
from slicescan.engine.train import train

workplace = tempfile.TemporaryDirectory()
photos, run = Path(workplace.name, "photos"), Path(workplace.name, "run")
photos.mkdir()
for source in (Path(slicescan.__file__).parents[1] / "examples" / "photos").glob("*.jpg"):
    Image.open(source).reduce(3).save(photos / source.with_suffix(".png").name)  # small, and sharp again

# %%
# The recipe
# ----------
#
# On the command line a recipe is a TOML file; ``slicescan/recipes`` has those of the package. In Python it is a
# dataclass with the same names, and a wrong one is an error that names the nearest.

recipe = Recipe(
    model=ModelSection("xyscannet_tiny", {"dim": 8, "blocks": [1, 1, 1]}),
    data=DataSection(patch=48, batch=2),
    blur=BlurSection(extent=(1.0, 6.0)),
    optimizer=OptimizerSection(rate=2e-3, warmup=5, ema_decay=0.9),
    iterations=20,
    log_every=4,
    save_every=10,
    tensorboard=False,
)

# %%
# Stop, and go on
# ---------------
#
# ``max_seconds`` stops a run after its next step, as a queue of jobs would. Calling it again goes on from the
# checkpoint and ends with the same bits as a run that was never stopped, because a batch depends on seed, epoch and
# index alone.


def log():
    """The lines of the run's log, each a dictionary."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


train(recipe, out=run, photos=photos, max_seconds=0)
print(f"stopped after step {log()[-1]['step']} of {recipe.iterations}")
weights = train(recipe, out=run, photos=photos)
print(f"went on to step {log()[-1]['step']}")
print(*sorted(path.name for path in run.iterdir()), sep=", ")

# %%
# The weights carry the network's name and arguments, so that every door of the package opens them:
# ``slicescan restore photo.jpg --checkpoint run/xyscannet_tiny.safetensors``.

model = slicescan.load(weights)
print(model.architecture, model.arguments["dim"], model.arguments["blocks"])

# %%
# What the network was shown
# --------------------------
#
# The first batch, blurred and sharp, and the mean loss of every four steps:

import matplotlib.pyplot as plt
import torch

from slicescan.engine.blur import SyntheticMotionBlur
from slicescan.engine.pictures import open_pictures

batches = SyntheticMotionBlur(open_pictures(photos, 1.0), recipe.data, recipe.blur, seed=0, device=torch.device("cpu"))
blurred, sharp = batches.batch(0)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for axis, (name, patches) in zip(axes, {"blurred": blurred, "sharp": sharp}.items(), strict=False):
    axis.imshow(torch.cat(list(patches), 2).permute(1, 2, 0).numpy())
    axis.set(title=name, xticks=[], yticks=[])
losses = {line["step"]: line["loss"] for line in log() if "loss" in line}
axes[2].plot(list(losses), list(losses.values()), "o-")
axes[2].set(title="loss", xlabel="step")
workplace.cleanup()
