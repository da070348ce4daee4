"""Image quality against a reference, protocol ``plain``: 8-bit RGB as it is saved."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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
    _check(restored, sharp)
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
    """
    _check(restored, sharp)
    if restored.ndim != 3 or min(restored.shape[1:]) < 11:
        raise ValueError(f"ssim expects (c, h, w) with h, w >= 11, got {tuple(restored.shape)}")
    x, y = restored.double()[:, None], sharp.double()[:, None]
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    k = torch.exp(-offsets.square() / (2 * 1.5**2))
    k = k / k.sum()

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, k.view(1, 1, 1, 11)), k.view(1, 1, 11, 1))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean().item()


def _check(restored: Tensor, sharp: Tensor) -> None:
    if restored.shape != sharp.shape or restored.dtype != torch.uint8 or sharp.dtype != torch.uint8:
        raise ValueError(
            f"expected two uint8 images of one shape, got {restored.dtype} {tuple(restored.shape)} "
            f"and {sharp.dtype} {tuple(sharp.shape)}"
        )
