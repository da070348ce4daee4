"""Classical deconvolution by scikit-image, told the kernel: what a network that is not told it is set beside."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.blur import GAMMA
from slicescan.engine.metrics import psnr

MARGIN = 32
"""Pixels by which a picture is mirrored outwards, so that its edges ring less."""

ITERATIONS = 30
BALANCES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Of the Wiener filter, from little smoothing to much."""

Restore = Callable[[Tensor], Tensor]


def kernel(path: Tensor) -> np.ndarray:
    """The kernel that a path convolves light with, of odd sides, in float64, with sum 1.

    Args:
        path: Places of the camera in pixels, ``(t, 2)`` as x and y: the mean of the light at ``x + path`` is seen at x.
    """
    reach = int(path.abs().max().ceil()) + 1
    found = np.zeros((2 * reach + 1, 2 * reach + 1))
    for dx, dy in path.double().numpy():
        x, y = reach - dx, reach - dy  # light from the right of a pixel is moved to the left
        left, top = int(np.floor(x)), int(np.floor(y))
        across, down = np.array([left + 1 - x, x - left]), np.array([top + 1 - y, y - top])
        found[top : top + 2, left : left + 2] += np.outer(down, across)
    return found / found.sum()


def richardson_lucy(psf: np.ndarray, iterations: int = ITERATIONS) -> Restore:
    """Richardson and Lucy's iteration in linear light, as a function on uint8 images ``(3, h, w)``."""
    from skimage.restoration import richardson_lucy as deconvolve

    return lambda image: _in_light(image, lambda light: deconvolve(light, psf, num_iter=iterations))


def wiener(psf: np.ndarray, balance: float) -> Restore:
    """Wiener and Hunt's filter in linear light, as a function on uint8 images ``(3, h, w)``."""
    from skimage.restoration import wiener as deconvolve

    return lambda image: _in_light(image, lambda light: deconvolve(light, psf, balance, clip=False))


def best_balance(cases: list[tuple[np.ndarray, Tensor, Tensor]]) -> float:
    """The balance with the best mean PSNR over cases of kernel, blurred and sharp: chosen in favour of the filter."""
    means = {}
    for balance in BALANCES:
        means[balance] = np.mean([psnr(wiener(psf, balance)(blurred), sharp) for psf, blurred, sharp in cases])
    return max(means, key=means.__getitem__)


def _in_light(image: Tensor, deconvolve: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    light = (image.double().numpy() / 255) ** GAMMA
    light = np.pad(light, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode="reflect")
    found = np.stack([deconvolve(channel) for channel in light])[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    return torch.from_numpy((found.clip(0, 1) ** (1 / GAMMA) * 255).round().astype(np.uint8))
