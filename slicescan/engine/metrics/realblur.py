"""How RealBlur measures: brightness and position of the restored image are fitted to the reference first."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.metrics.fidelity import RADIUS, check_pair, check_size, similarity

ITERATIONS, SMOOTHING = 100, 5


class AlignmentError(ValueError):
    """The restored image cannot be fitted to the reference; the message says why."""


@dataclass(frozen=True)
class Aligned:
    """A restored image fitted to its reference.

    Attributes:
        restored: Float ``(c, h, w)``, range 1, zero outside the mask.
        sharp: The reference, zero outside the mask.
        mask: ``(h, w)``, 1 where the fitted image has pixels, else 0.
        homography: ``(3, 3)``, from pixels of the reference to pixels of the restored image.
    """

    restored: Tensor
    sharp: Tensor
    mask: Tensor
    homography: Tensor


def align(restored: Tensor, sharp: Tensor) -> Aligned:
    """Fit a restored image to its reference: brightness by least squares, then position by a homography.

    The homography maximises the correlation (ECC) of the grey images, smoothed by a Gaussian of 5 pixels, in at most
    100 iterations. The image is warped bicubically with reflected borders.

    Args:
        restored: uint8 RGB, ``(3, h, w)``.
        sharp: uint8 of the same shape.

    Raises:
        ImportError: OpenCV is not there; the message has the command that installs it.
        ValueError: Shapes differ, a tensor is not uint8 RGB, or the image is smaller than the window of SSIM.
        AlignmentError: The correlation cannot be maximised, as for images without structure.

    Source:
        Rim et al. 2020, section 5; the alignment is that of Evangelidis and Psarakis 2008.
    """
    check_pair(restored, sharp)
    if restored.ndim != 3 or restored.shape[0] != 3:
        raise ValueError(f"align expects RGB images (3, h, w), got {tuple(restored.shape)}")
    check_size(sharp, "align")
    cv2 = _opencv()
    z, x = (image.permute(1, 2, 0).cpu().numpy().astype(np.float32) / 255 for image in (restored, sharp))
    energy = np.sum(z * z, dtype=np.float64)
    if energy == 0:
        raise AlignmentError("the restored image is black: its brightness cannot be fitted to the reference")
    z = z * np.float32(np.sum(x * z, dtype=np.float64) / energy)
    homography = np.eye(3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, ITERATIONS, 0)
    grey_x, grey_z = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (x, z))
    try:
        _, homography = cv2.findTransformECC(
            grey_x, grey_z, homography, cv2.MOTION_HOMOGRAPHY, stop, inputMask=None, gaussFiltSize=SMOOTHING
        )
    except cv2.error as error:
        raise AlignmentError(f"the restored image cannot be aligned to its reference ({error.err})") from None
    size = (x.shape[1], x.shape[0])
    warped = cv2.warpPerspective(
        z, homography, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    mask = cv2.warpPerspective(
        np.ones(x.shape[:2], np.float32),
        homography,
        size,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    if not mask[RADIUS:-RADIUS, RADIUS:-RADIUS].any():
        raise AlignmentError("the restored image cannot be aligned to its reference: nothing of it is left in sight")
    fitted, reference = (torch.from_numpy(image * mask[..., None]).permute(2, 0, 1).double() for image in (warped, x))
    return Aligned(fitted, reference, torch.from_numpy(mask).double(), torch.from_numpy(homography).double())


def aligned_psnr(found: Aligned) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of the mask; infinity for equal images."""
    error = (found.restored - found.sharp).square().sum() / (found.mask.sum() * len(found.sharp))
    return math.inf if error == 0 else -10 * math.log10(error.item())


def aligned_ssim(found: Aligned) -> float:
    """Structural similarity of the masked images, mean over the mask without a border of 5 pixels."""
    mask = found.mask[RADIUS:-RADIUS, RADIUS:-RADIUS]
    return ((similarity(found.restored, found.sharp, 1) * mask).sum((1, 2)) / mask.sum()).mean().item()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise ImportError(
            "the protocol realblur aligns images with OpenCV: pip install 'slicescan[metrics]', "
            "or opencv-python-headless alone"
        ) from None
    return cv2
