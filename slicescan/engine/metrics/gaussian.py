"""Means under a Gaussian window: what SSIM and NIQE are made of."""

import torch
from torch import Tensor


def weights(sigma: float, radius: int) -> list[float]:
    """Gaussian of standard deviation ``sigma`` at -radius … radius, with sum 1."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    k = torch.exp(-offsets.square() / (2 * sigma**2))
    return (k / k.sum()).tolist()


def windowed(plane: Tensor, kernel: list[float]) -> Tensor:
    """Mean of ``(h, w)`` under a symmetric separable window, where the window lies inside: ``(h - 2r, w - 2r)``.

    Shifted copies are added up, which is several times as fast as a convolution of one channel in float64.
    """
    return _along_rows(_along_rows(plane, kernel).T, kernel).T


def _along_rows(plane: Tensor, kernel: list[float]) -> Tensor:
    r = len(kernel) // 2
    h = plane.shape[0] - 2 * r
    total = plane[r : r + h] * kernel[r]
    for i in range(r):
        total.add_(plane[i : i + h] + plane[2 * r - i : 2 * r - i + h], alpha=kernel[i])
    return total
