"""Distances between two sets of images by Inception features: FID and KID, by torch-fidelity."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.data.pictures import Picture
from slicescan.engine.metrics.perceptual import find_library, find_weights

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def measure_sets(
    restored: Sequence[Picture],
    sharp: Sequence[Picture],
    names: Sequence[str] = ("fid", "kid"),
    *,
    patch: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    weights: str | Path | None = None,
) -> dict[str, float]:
    """Distances between restored and sharp images as two sets, not as pairs.

    FID is that of Heusel et al. 2017; KID the mean over 100 subsets of at most 1000 (Binkowski et al. 2018), drawn from
    a fixed seed. Neither is divided or multiplied by anything.

    Args:
        restored: Restored images, 8-bit.
        sharp: References.
        names: Which of ``"fid"`` and ``"kid"``.
        patch: Height and width of patches that images are cut into without overlap, rests left out; ``(240, 256)``
            gives 15 of a GoPro frame. None takes images whole.
        device: ``cpu`` or ``cuda``.
        weights: Folder with the published file of the Inception network; by default PyTorch's own cache. Nothing is
            downloaded.

    Raises:
        MetricUnavailable: The library or its weights are missing; the message says how to get them.
        ValueError: There are fewer than two images or patches.
    """
    library = find_library(" and ".join(names), "torch_fidelity", "'slicescan[metrics]'")
    file = find_weights(" and ".join(names), INCEPTION, weights)
    first, second = _Images(restored, patch), _Images(sharp, patch)
    least = min(len(first), len(second))
    if least < 2:
        raise ValueError(f"{' and '.join(names)} need two images or patches in each set, got {least}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the number of processes that read
        found = library.calculate_metrics(
            input1=first,
            input2=second,
            fid="fid" in names,
            kid="kid" in names,
            kid_subset_size=min(1000, least),
            cuda=torch.device(device).type == "cuda",
            batch_size=16 if patch else 1,
            feature_extractor_weights_path=str(file),
            samples_shuffle=False,
            cache=False,
            verbose=False,
        )
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    return {name: float(found[keys[name]]) for name in names}


class _Images(torch.utils.data.Dataset):
    """Images or their patches as uint8 ``(3, h, w)``."""

    def __init__(self, pictures: Sequence[Picture], patch: tuple[int, int] | None):
        self.patch: tuple[int, int] | None = patch
        self.places = []
        for picture in pictures:
            if patch is None:
                self.places.append((picture, 0, 0))
                continue
            tops, lefts = (range(0, size - side + 1, side) for size, side in zip(picture.size(), patch, strict=True))
            self.places += [(picture, top, left) for top in tops for left in lefts]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        picture, top, left = self.places[index]
        pixels = picture.read()
        if self.patch is not None:
            pixels = pixels[top : top + self.patch[0], left : left + self.patch[1]]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
