"""RealBlur's measure, against scikit-image and against what it is for: indifference to brightness and position."""

import math
import sys

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from skimage.transform import ProjectiveTransform, warp

from slicescan.engine.metrics import psnr
from slicescan.engine.metrics.realblur import AlignmentError, align, aligned_psnr, aligned_ssim
from tests.engine.metrics.pictures import blurred, texture

H, W = 110, 140
HOMOGRAPHY = np.array([[1.004, -0.006, 2.3], [0.005, 0.997, -1.6], [8e-6, -5e-6, 1]])


@pytest.fixture(scope="module")
def sharp():
    return texture(H, W, seed=3)


def moved(image, gain=1.0):
    """The image as a shifted, turned and darker camera would have it, by scikit-image."""
    pixels = image.permute(1, 2, 0).double().numpy()
    seen = gain * warp(pixels, ProjectiveTransform(HOMOGRAPHY), order=3, mode="reflect", preserve_range=True)
    return torch.from_numpy(seen.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def test_a_moved_and_darker_copy_scores_like_the_copy_itself(sharp):
    restored = blurred(sharp, 9)
    still = align(restored, sharp)
    other = align(moved(restored, 0.8), sharp)
    assert psnr(moved(restored, 0.8), sharp) < psnr(restored, sharp) - 8
    assert aligned_psnr(other) == pytest.approx(aligned_psnr(still), abs=0.25)
    assert aligned_ssim(other) == pytest.approx(aligned_ssim(still), abs=0.01)


def test_the_homography_is_found_and_what_it_moves_out_of_sight_is_masked(sharp):
    found = align(moved(sharp), sharp)
    corners = np.array([[10, 10, 1], [W - 11, 10, 1], [10, H - 11, 1], [W - 11, H - 11, 1]]).T
    true, fitted = (m @ corners for m in (np.linalg.inv(HOMOGRAPHY), found.homography.numpy()))
    assert np.abs(true[:2] / true[2] - fitted[:2] / fitted[2]).max() < 0.15  # pixels, of 2 to 3
    assert set(found.mask.unique().tolist()) == {0.0, 1.0}
    assert 0 < (found.mask == 0).sum() < 0.1 * H * W
    assert not found.restored[:, found.mask == 0].any() and not found.sharp[:, found.mask == 0].any()


def test_brightness_is_fitted_by_least_squares(sharp):
    found = align((sharp // 2), sharp)
    inside = found.mask.bool()
    x, z = found.sharp[:, inside], found.restored[:, inside]
    assert ((x * z).sum() / (z * z).sum()).item() == pytest.approx(1, abs=2e-3)


def test_figures_are_those_of_scikit_image_on_the_aligned_images(sharp):
    found = align(moved(blurred(sharp, 5), 0.9), sharp)
    x, z, mask = found.sharp.numpy(), found.restored.numpy(), found.mask.numpy()
    error = ((x - z) ** 2).sum() / (3 * mask.sum())
    assert aligned_psnr(found) == pytest.approx(10 * math.log10(1 / error), rel=1e-12)
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    _, similarity = structural_similarity(x, z, channel_axis=0, **settings)
    inner = (slice(5, -5), slice(5, -5))
    kept = (similarity * mask)[:, *inner].sum((1, 2)) / mask[inner].sum()
    assert aligned_ssim(found) == pytest.approx(kept.mean(), rel=1e-9)


def test_an_equal_image_is_perfect_up_to_rounding(sharp):
    found = align(sharp, sharp)
    assert aligned_psnr(found) > 60 and aligned_ssim(found) > 0.9999


def test_images_that_cannot_be_aligned_are_refused(sharp):
    with pytest.raises(AlignmentError, match="black"):
        align(torch.zeros_like(sharp), sharp)
    with pytest.raises(AlignmentError, match="cannot be aligned"):
        align(torch.full_like(sharp, 90), sharp)
    with pytest.raises(ValueError, match=r"RGB images \(3, h, w\), got \(1, 110, 140\)"):
        align(sharp[:1], sharp[:1])
    with pytest.raises(ValueError, match="h, w >= 11"):
        align(sharp[:, :9], sharp[:, :9])


def test_without_opencv_the_error_says_how_to_get_it(sharp, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'slicescan\[metrics\]'"):
        align(sharp, sharp)
