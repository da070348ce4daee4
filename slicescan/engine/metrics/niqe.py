"""NIQE: how far the statistics of an image are from those of good photographs; no reference is needed."""

import math
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from slicescan.engine.metrics.gaussian import weights, windowed

PATCH = 96
SIGMA, RADIUS = 7 / 6, 3
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
FLAT = 1e-9
"""Grey levels below which a difference is rounding, whose sign would count otherwise."""

PARAMETERS = Path(__file__).parent / "niqe.safetensors"

_GREY = {"grey": ((0.298936021293775, 0.587043074451121, 0.114020904255103), 0.0), "y": ((65.481, 128.553, 24.966), 16)}


def niqe(image: Tensor, *, luma: Literal["grey", "y"] = "grey") -> float:
    """Distance between an image and undistorted photographs; lower is better, photographs have 2 to 4.

    The image becomes grey and is cut to whole patches of 96x96. Each patch gives 36 figures: shapes and widths of
    generalised Gaussian distributions fitted to its locally normalised values and to products of neighbours, at full
    and at half size. Their mean and covariance are compared with those of photographs. All patches count; sharp ones
    were selected for the photographs only.

    Args:
        image: uint8 RGB, ``(3, h, w)``, with room for two patches.
        luma: Grey values: ``"grey"`` is MATLAB's ``rgb2gray``, 0 to 255; ``"y"`` the luma of digital video, 16 to
            235, which is the default of BasicSR. Both are rounded to 8 bits.

    Raises:
        ValueError: Not uint8 RGB, fewer than two patches, or nothing but flat patches.

    Source:
        Mittal, Soundararajan and Bovik 2013, section II; parameters as published, see ``niqe.md`` beside this file.

    Example:
        >>> noise = torch.randint(0, 256, (3, 96, 192), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        >>> niqe(noise) > 10
        True
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"niqe expects a uint8 RGB image (3, h, w), got {image.dtype} {tuple(image.shape)}")
    down, across = (size // PATCH for size in image.shape[1:])
    if down * across < 2:
        raise ValueError(f"niqe needs two patches of {PATCH}x{PATCH} pixels, got {image.shape[1]}x{image.shape[2]}")
    factors, offset = _GREY[luma]
    grey = torch.tensordot(torch.tensor(factors, dtype=torch.float64), image.cpu().double(), 1)
    grey = (grey / (255 if luma == "y" else 1) + offset + 0.5).floor()[: down * PATCH, : across * PATCH]
    full, half = _features(_normalised(grey), PATCH), _features(_normalised(_halved(grey)), PATCH // 2)
    return _distance(torch.cat([full, half], 1))


def _distance(features: Tensor) -> float:
    """Distance of patch features ``(patches, 36)`` from those of photographs, by their means and covariances."""
    mean, covariance = _parameters()
    whole = features[~features.isnan().any(1)]
    if len(whole) < 2:
        raise ValueError("niqe needs two patches that are not flat")
    gap = mean - features.nanmean(0)
    pooled = (covariance + torch.cov(whole.T)) / 2
    return math.sqrt((gap @ torch.linalg.pinv(pooled) @ gap).item())


def _normalised(grey: Tensor) -> Tensor:
    """Local mean taken away, divided by the local standard deviation plus 1 (Eqs. 1 to 3); flat areas are exactly 0."""
    kernel = weights(SIGMA, RADIUS)
    padded = F.pad(grey[None, None], (RADIUS,) * 4, mode="replicate")[0, 0]
    mean = windowed(padded, kernel)
    deviation = (windowed(padded * padded, kernel) - mean * mean).abs().sqrt()
    gap = grey - mean
    gap[gap.abs() < FLAT] = 0
    return gap / (deviation + 1)


def _features(values: Tensor, side: int) -> Tensor:
    """The 18 figures of every patch: ``(patches, 18)``."""
    h, w = values.shape
    patches = values.reshape(h // side, side, w // side, side).transpose(1, 2).reshape(-1, side, side)
    shape, left, right = _fit(patches)
    columns = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _fit(patches * patches.roll(shift, (1, 2)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        columns += [shape, mean, left, right]
    return torch.stack(columns, 1)


def _fit(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape and both widths of the asymmetric generalised Gaussian with the moments of each patch (Eqs. 5 to 8)."""
    values = patches.flatten(1)
    squares = values.square()
    below, above = values < 0, values > 0
    left, right = ((squares * side).sum(1).div(side.sum(1)).sqrt() for side in (below, above))
    skew = left / right
    ratio = values.abs().mean(1).square() / squares.mean(1)
    ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1).square()
    shapes, ratios = _shapes()
    shape = shapes[(ratios - ratio[:, None]).abs().argmin(1)]
    width = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    shape = torch.where(ratio.isnan(), ratio, shape)
    return shape, left * width, right * width


@cache
def _shapes() -> tuple[Tensor, Tensor]:
    """Shapes from 0.2 to 10, and the squared mean absolute value over the variance that each of them has."""
    shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000
    ratios = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    return shapes, ratios


@cache
def _parameters() -> tuple[Tensor, Tensor]:
    stored = load_file(PARAMETERS)
    return stored["mean"], stored["covariance"]


def _halved(grey: Tensor) -> Tensor:
    """Half the size by a cubic kernel as wide as the step, borders mirrored, as MATLAB's ``imresize``."""
    return _rows_halved(_rows_halved(grey).T).T


def _rows_halved(grey: Tensor) -> Tensor:
    taps = [_cubic(abs(k - 3.5) / 2) / 2 for k in range(8)]
    padded = torch.cat([grey[:3].flip(0), grey, grey[-3:].flip(0)])
    h = grey.shape[0] // 2
    total = torch.zeros(h, grey.shape[1], dtype=grey.dtype)
    for k, tap in enumerate(taps):
        total.add_(padded[k : k + 2 * h : 2], alpha=tap)
    return total


def _cubic(x: float) -> float:
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
