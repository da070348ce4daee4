import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from slicescan.engine.metrics import psnr, quantize, ssim, volume_ssim


def pair(h, w, noise, channels=3):
    draw = torch.Generator().manual_seed(h * w)
    base = torch.nn.functional.interpolate(torch.rand(1, channels, 4, 4, generator=draw), (h, w), mode="bicubic")[0]
    base = base.clamp(0, 1) * 255
    worse = base + noise * torch.randn(base.shape, generator=draw)
    return tuple(x.round().clamp(0, 255).to(torch.uint8) for x in (worse, base))


SIZES = [(11, 11), (12, 31), (45, 64)]


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("noise", [1, 12, 80])
def test_psnr_is_scikit_images(h, w, noise):
    a, b = pair(h, w, noise)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=255), rel=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("noise", [1, 12, 80])
def test_ssim_is_scikit_images(h, w, noise, channels):
    a, b = pair(h, w, noise, channels)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = structural_similarity(b.numpy(), a.numpy(), channel_axis=0, **settings)
    assert ssim(a, b) == pytest.approx(expected, rel=1e-9)


def test_equal_images_have_infinite_psnr_and_ssim_one():
    image, _ = pair(16, 16, 10)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1, rel=1e-12)
    assert volume_ssim(image, image) == pytest.approx(1, rel=1e-12)


def by_direct_convolution(a, b):
    """SSIM of ``(h, w, 3)`` as a volume: one dense window of 11x11x11, nearest voxel beyond the borders."""
    offsets = np.arange(-5, 6)
    d, e, f = np.meshgrid(offsets, offsets, offsets, indexing="ij")
    window = np.exp(-(d**2 + e**2 + f**2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(volume):
        return ndimage.correlate(volume, window, mode="nearest")

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x**2) - mx**2, mean(y**2) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 7), (11, 11), (14, 31)])
@pytest.mark.parametrize("noise", [1, 30])
def test_volume_ssim_is_a_direct_convolution_in_three_dimensions(h, w, noise, channels):
    a, b = pair(h, w, noise, channels)
    expected = by_direct_convolution(*(x.permute(1, 2, 0).numpy() for x in (a, b)))
    assert volume_ssim(a, b) == pytest.approx(expected, rel=1e-10)


def test_the_volume_is_not_the_mean_of_its_channels():
    a, b = pair(24, 24, 30)
    assert volume_ssim(a, b) > ssim(a, b) + 0.01


def test_images_are_saved_with_halves_rounded_up():
    assert quantize(torch.arange(-1, 258).double() / 255).tolist() == [0, *range(256), 255, 255]
    halves = (torch.arange(255).double() + 0.5) / 255
    inside = halves.mul(255) == torch.arange(255) + 0.5  # those that 255 y brings back exactly
    assert inside.sum() > 100
    assert torch.equal(quantize(halves)[inside].long(), torch.arange(1, 256)[inside])
    assert quantize(torch.tensor([math.inf, -math.inf])).tolist() == [255, 0]
    with pytest.raises(ValueError, match="holds NaN"):
        quantize(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize("metric", [psnr, ssim, volume_ssim])
def test_only_uint8_images_of_one_shape_are_compared(metric):
    image = torch.zeros(3, 12, 12, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"one shape, got torch.uint8 \(3, 12, 12\) and torch.uint8 \(3, 12, 13\)"):
        metric(image, torch.zeros(3, 12, 13, dtype=torch.uint8))
    with pytest.raises(ValueError, match="torch.float32"):
        metric(image, image.float())


@pytest.mark.parametrize("shape", [(3, 10, 40), (12, 12), (1, 3, 12, 12)])
def test_ssim_needs_an_image_as_large_as_its_window(shape):
    image = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=">= 11"):
        ssim(image, image)
