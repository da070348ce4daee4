"""Distances to a reference: PSNR, SSIM of each channel, SSIM of the whole as a volume. 8-bit RGB as it is saved."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.engine.metrics.gaussian import weights, windowed

SIGMA, RADIUS = 1.5, 5
"""Window of SSIM: standard deviation in pixels, and where it is cut."""


def quantize(image: Tensor) -> Tensor:
    """The 8 bits that a restored image is saved with: ``floor(255 y + 0.5)``, clamped.

    Args:
        image: Floating point of any shape, nominally in [0, 1].

    Raises:
        ValueError: A value is NaN.

    Example:
        >>> quantize(torch.tensor([-0.1, 0.5 / 255, 2.5 / 255, 1.2], dtype=torch.float64)).tolist()
        [0, 1, 3, 255]
    """
    if image.isnan().any():
        raise ValueError("the restored image holds NaN")
    return image.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def psnr(restored: Tensor, sharp: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels, peak 255.

    Args:
        restored: uint8 of any shape.
        sharp: uint8 of the same shape.

    Returns:
        dB; infinity for equal images.

    Raises:
        ValueError: Shapes differ, or a tensor is not uint8.

    Example:
        >>> round(psnr(torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0, 254]], dtype=torch.uint8)), 2)
        51.14
    """
    check_pair(restored, sharp)
    error = (restored.double() - sharp.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(restored: Tensor, sharp: Tensor) -> float:
    """Structural similarity, mean over channels and over the pixels whose window lies inside the image.

    Gaussian window of standard deviation 1.5 cut at 3.5 of them (11x11), population moments, K 0.01 and 0.03, range
    255.

    Args:
        restored: uint8, ``(c, h, w)``, at least 11 pixels high and wide.
        sharp: uint8 of the same shape.

    Raises:
        ValueError: Shapes differ, a tensor is not uint8, or the image is smaller than the window.

    Source:
        Wang et al. 2004, Eq. 13.

    Example:
        >>> image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
        >>> round(ssim(image, image), 6), ssim(image, 255 - image) < 0
        (1.0, True)
    """
    check_pair(restored, sharp)
    check_size(restored, "ssim")
    return similarity(restored.double(), sharp.double(), 255).mean().item()


def volume_ssim(restored: Tensor, sharp: Tensor) -> float:
    """Structural similarity of an RGB image taken as a volume, as MATLAB's ``ssim`` does with an H x W x 3 array.

    The window is a ball of 11x11x11 voxels, sigma 1.5, that reaches over the three channels; borders are repeated in
    all three directions; population moments, K 0.01 and 0.03, range 255; mean over all voxels. Deblurring papers
    report this number for GoPro and HIDE. It is higher than that of separate channels.

    Args:
        restored: uint8, ``(c, h, w)``, any size.
        sharp: uint8 of the same shape.

    Raises:
        ValueError: Shapes differ, or a tensor is not uint8.

    Source:
        MATLAB's ``ssim`` of a volume; windows and constants of Wang et al. 2004, Eq. 13.

    Example:
        >>> image = torch.randint(0, 256, (3, 12, 9), dtype=torch.uint8)
        >>> round(volume_ssim(image, image), 6)
        1.0
    """
    check_pair(restored, sharp)
    if restored.ndim != 3:
        raise ValueError(f"volume_ssim expects (c, h, w), got {tuple(restored.shape)}")
    kernel = weights(SIGMA, RADIUS)
    across = _over_channels(restored.shape[0], kernel).to(restored.device)

    def mean(volume: Tensor) -> Tensor:
        padded = F.pad(volume[None], (RADIUS,) * 4, mode="replicate")[0]
        planes = torch.stack([windowed(plane, kernel) for plane in padded])
        return torch.tensordot(across, planes, 1)

    return _similarity(restored.double(), sharp.double(), 255, mean).mean().item()


def similarity(x: Tensor, y: Tensor, peak: float) -> Tensor:
    """Map of structural similarity of each channel where the window fits: ``(c, h, w)`` to ``(c, h - 10, w - 10)``."""
    kernel = weights(SIGMA, RADIUS)
    return _similarity(x, y, peak, lambda image: torch.stack([windowed(plane, kernel) for plane in image]))


def _similarity(x: Tensor, y: Tensor, peak: float, mean: Callable[[Tensor], Tensor]) -> Tensor:
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))


def _over_channels(channels: int, kernel: list[float]) -> Tensor:
    """Weights with which each channel's window sees every channel, the outer ones repeated without end."""
    table = torch.zeros(channels, channels, dtype=torch.float64)
    for channel in range(channels):
        for offset, weight in zip(range(-RADIUS, RADIUS + 1), kernel, strict=True):
            table[channel, min(max(channel + offset, 0), channels - 1)] += weight
    return table


def check_pair(restored: Tensor, sharp: Tensor) -> None:
    """Only uint8 images of one shape are compared.

    Raises:
        ValueError: They are not.
    """
    if restored.shape != sharp.shape or restored.dtype != torch.uint8 or sharp.dtype != torch.uint8:
        raise ValueError(
            f"expected two uint8 images of one shape, got {restored.dtype} {tuple(restored.shape)} "
            f"and {sharp.dtype} {tuple(sharp.shape)}"
        )


def check_size(image: Tensor, metric: str) -> None:
    """An image must be as large as the window.

    Raises:
        ValueError: It is not.
    """
    least = 2 * RADIUS + 1
    if image.ndim != 3 or min(image.shape[1:]) < least:
        raise ValueError(f"{metric} expects (c, h, w) with h, w >= {least}, got {tuple(image.shape)}")
