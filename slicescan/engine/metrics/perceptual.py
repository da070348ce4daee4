"""Perceptual distances to a reference by the libraries of their authors: LPIPS, ST-LPIPS, DISTS."""

import contextlib
import importlib
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], float]
"""Two uint8 RGB images ``(3, h, w)`` of one size to a number; lower is better."""

ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


class MetricUnavailable(RuntimeError):
    """A library or its weights are missing; the message says how to get them."""


def open_distance(name: str, device: str | torch.device = "cpu", weights: str | Path | None = None) -> Distance:
    """A perceptual distance, ready to measure on a device.

    ``lpips`` is version 0.1 on AlexNet; ``stlpips`` the shift-tolerant one on AlexNet, whose weights its library
    carries; ``dists`` is on VGG16. Images are measured whole, in [-1, 1] or [0, 1] as each library expects.

    Args:
        name: ``"lpips"``, ``"stlpips"`` or ``"dists"``.
        device: Where networks run.
        weights: Folder that holds the backbone's published file; by default PyTorch's own cache. Nothing is
            downloaded.

    Raises:
        MetricUnavailable: The library or the file of weights is missing; the message says how to get it.
    """
    library, package, address, build = _LIBRARIES[name]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of old calls to torchvision
        module = find_library(name, library, package)
        with _cached(find_weights(name, address, weights)) if address else contextlib.nullcontext():
            network = build(module)
    network = network.to(device).eval()
    low = 0 if name == "dists" else -1

    @torch.inference_mode()
    def distance(restored: Tensor, sharp: Tensor) -> float:
        x, y = (image[None].to(device).float() / 255 * (1 - low) + low for image in (restored, sharp))
        return network(x, y).item()

    return distance


_LIBRARIES: dict[str, tuple[str, str, str | None, Callable[[Any], torch.nn.Module]]] = {
    "lpips": ("lpips", "lpips", ALEXNET, lambda m: m.LPIPS(net="alex", version="0.1", verbose=False)),
    "stlpips": (
        "stlpips_pytorch.stlpips",
        "stlpips-pytorch ipython torchsummary",
        None,
        lambda m: m.LPIPS(net="alex", variant="shift_tolerant", verbose=False),
    ),
    "dists": ("DISTS_pytorch", "DISTS-pytorch", VGG16, lambda m: _dists(m)),
}
"""Module, what to install, address of the backbone's weights, how to build."""


def find_library(metric: str, module: str, packages: str) -> Any:
    """Import the library of a metric.

    Raises:
        MetricUnavailable: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MetricUnavailable(f"{metric} needs a library ({error}): pip install {packages}") from None


def find_weights(metric: str, address: str, folder: str | Path | None) -> Path:
    """The published file of weights in ``folder``, by default PyTorch's own cache.

    Raises:
        MetricUnavailable: It is not there.
    """
    place = Path(folder) if folder is not None else Path(torch.hub.get_dir()) / "checkpoints"
    file = place / address.rpartition("/")[2]
    if not file.is_file():
        raise MetricUnavailable(f"{metric} needs the weights {address}: put the file into {place}")
    return file


@contextlib.contextmanager
def _cached(file: Path) -> Iterator[None]:
    """While this lasts, PyTorch's cache is a folder that holds ``file``, so that a library finds it there."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkpoints" / file.name
        copy.parent.mkdir()
        try:
            os.symlink(file.resolve(), copy)
        except OSError:  # not everyone may make links
            shutil.copyfile(file, copy)
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _dists(module: Any) -> torch.nn.Module:
    """DISTS with its own weights, which its package installs beside the interpreter or beside itself."""
    places = [Path(sys.prefix) / "weights.pt", Path(module.__file__).parent / "weights.pt"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise MetricUnavailable(f"dists needs weights.pt of its package at {places[0]}: pip install DISTS-pytorch")
    network = module.DISTS(load_weights=False)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    network.alpha.data, network.beta.data = stored["alpha"], stored["beta"]
    return network
