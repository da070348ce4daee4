import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from slicescan.engine.metrics import psnr, ssim


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


@pytest.mark.parametrize("metric", [psnr, ssim])
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
