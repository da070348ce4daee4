"""
Load a published checkpoint
===========================

Papers publish their weights in many wrappers. ``slicescan.load`` takes the file as it is: it finds the weights
inside, tells the network and its sizes from names and shapes, and loads strictly. The page makes such files
itself, from small random networks, because the real ones have to be fetched by you: ``slicescan info
xyscannet_plus`` says where, and under which licence.
"""

import contextlib
import logging
import os
import sys
import tempfile
from pathlib import Path

import torch

import slicescan
from slicescan.checkpoint import rename

workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)


class Short(logging.Formatter):
    """The log on this page, without the folder."""

    def format(self, record):
        return "log: " + super().format(record).replace(f"{folder}{os.sep}", "")


handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(Short())
logging.getLogger("slicescan").addHandler(handler)
logging.getLogger("slicescan").setLevel(logging.INFO)


def publish(model, wrap, name):
    """Write weights as a release would: under published names, in its own wrapper."""
    state = rename(model.state_dict(), model.renames, to_published=True)
    torch.save(wrap(state), folder / name)
    return folder / name


# %%
# XYScanNet was trained in a data-parallel wrapper, so that every name in its files begins with ``module.``. The file
# of the last epoch also carries the state of the optimiser and the epoch.

torch.manual_seed(0)
network = slicescan.create_model("xyscannet_tiny", dim=16, blocks=(1, 1, 2))


def last_epoch(state):
    return {"epoch": 3000, "model_state": {f"module.{name}": value for name, value in state.items()}}


file = publish(network, last_epoch, "last_XYScanNet.pth")
model = slicescan.load(file)
print(type(model).__name__, {name: model.arguments[name] for name in ("dim", "blocks", "scanners")})

# %%
# The log says what was taken off the names, and which arguments leave no trace in the weights, so that their
# defaults were taken. If yours is another, name it: ``slicescan.load(file, fusion_gate="tensor")``. Every weight has
# arrived:

assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.state_dict().items())

# %%
# Other families, other wrappers, one function:

restormer = slicescan.create_model("restormer", dim=8, blocks=(1, 1, 1, 1), refinement=1)
mambair = slicescan.create_model("mambair_light_sr_x2", dim=16, depths=(1,))
for network, key in ((restormer, "params"), (mambair, "params_ema")):
    file = publish(network, lambda state, key=key: {key: state}, "net_g.pth")
    model = slicescan.load(file)
    print(type(model).__name__, f"{sum(p.numel() for p in model.parameters()):,} parameters, scale {model.scale}")

# %%
# ``create_model`` is the strict door: the name says what the file must hold, and a file that holds something else is
# an error that says what it seems to be.

from slicescan.checkpoint import CheckpointError

try:
    slicescan.create_model("nafnet_w32", checkpoint_path=file)
except CheckpointError as error:
    print(str(error).replace(f"{folder}{os.sep}", ""))

# %%
# Convert
# -------
#
# ``slicescan convert`` rewrites a file as safetensors that carries its architecture and arguments: it opens
# without a guess, without a pickle, and half as large with ``--half``. ``--to published`` goes the other way, for
# the authors' own code. On the command line:
#
# .. code-block:: sh
#
#    slicescan convert last_XYScanNet.pth xyscannet.safetensors --half

from slicescan.cli import main

logging.getLogger("slicescan").setLevel(logging.ERROR)  # all has been said
with contextlib.chdir(folder):
    code = main(["convert", "last_XYScanNet.pth", "xyscannet.safetensors", "--half"])
    code = main(["info", "xyscannet.safetensors"])

# %%
# What comes out of the network hardly changes when its weights are stored in half the bits:

import matplotlib.pyplot as plt

source, target = folder / "last_XYScanNet.pth", folder / "xyscannet.safetensors"
image = torch.rand(1, 3, 48, 48)
with torch.no_grad():
    difference = (slicescan.load(target)(image) - slicescan.load(source)(image)).abs()
sizes = {path.suffix: path.stat().st_size / 1024 for path in (source, target)}
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
axes[0].bar(list(sizes), list(sizes.values()))
axes[0].set(ylabel="KiB", title="size of the file")
axes[1].hist(255 * difference.flatten().numpy(), bins=40)
axes[1].set(xlabel="difference in steps of 1/255", ylabel="values", title="what half the bits change")
workplace.cleanup()

# sphinx_gallery_start_ignore
logging.getLogger("slicescan").removeHandler(handler)
logging.getLogger("slicescan").setLevel(logging.NOTSET)
# sphinx_gallery_end_ignore
