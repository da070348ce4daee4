"""What tests of the command line share: a small network's weights, photographs, and how a command is called."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from slicescan.checkpoint import write_checkpoint
from slicescan.cli import main
from slicescan.models.xyscannet import XYScanNet


class Caller:
    """Runs commands in this process; each returns exit code, standard output and standard error."""

    def __init__(self, capsys, weights):
        self.capsys, self.weights = capsys, weights

    def __call__(self, *arguments):
        code = main([str(argument) for argument in arguments])
        return code, *self.capsys.readouterr()

    def restore(self, *arguments, checkpoint=None):
        return self("restore", "--device", "cpu", "--checkpoint", checkpoint or self.weights, *arguments)


def small_network():
    torch.manual_seed(0)
    return XYScanNet(4, blocks=(1, 1, 1)).eval()


def small_weights(folder):
    path = folder / "small.safetensors"
    write_checkpoint(path, small_network())
    return str(path)


def photo(path, mode="RGB", size=(9, 7), **settings):
    """Write noise as an image, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB" if mode in ("P", "CMYK") else mode).convert(mode)
    image.save(path, **settings)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def one_error(err, *words):
    """The only line on standard error, which has all the words."""
    (line,) = err.splitlines()
    assert line.startswith("slicescan: error: ")
    for word in words:
        assert str(word) in line
    return line


def everything(folder):
    """Relative names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
