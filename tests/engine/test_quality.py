import math

import numpy as np
import pytest
import torch

from slicescan.engine.metrics import psnr
from slicescan.engine.quality import SIDE, BlurredCrops, Measured, blurred_crop, mean_gain, measure


def photo(h, w, seed=0):
    coarse = torch.rand(1, 3, h // 6, w // 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (h, w))[0].mul(255).to(torch.uint8)


@pytest.fixture(scope="module")
def pairs():
    return [blurred_crop(photo(460, 470), seed) for seed in range(2)]


def test_the_crop_is_the_centre_of_the_photograph(pairs):
    assert torch.equal(pairs[0][1], photo(460, 470)[:, 38 : 38 + SIDE, 43 : 43 + SIDE])


def test_a_seed_always_gives_the_same_bits_and_another_seed_another_blur(pairs):
    assert torch.equal(blurred_crop(photo(460, 470), 0)[0], pairs[0][0])
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert not torch.equal(pairs[0][0], pairs[1][0])


def test_the_crop_is_blurred_but_not_moved(pairs):
    for blurred, sharp in pairs:
        assert blurred.dtype == sharp.dtype == torch.uint8
        at = {
            (dy, dx): psnr(blurred[:, 12:-12, 12:-12], sharp.roll((dy, dx), (1, 2))[:, 12:-12, 12:-12])
            for dy in (-8, 0, 8)
            for dx in (-8, 0, 8)
        }
        assert 10 < at[0, 0] < 30
        assert max(at, key=at.__getitem__) == (0, 0)


def bilinear(image, y, x):
    """Values of ``(h, w, 3)`` at fractional places; edges repeated."""
    h, w = image.shape[:2]
    y, x = y.clip(0, h - 1), x.clip(0, w - 1)
    top, left = np.floor(y).astype(int).clip(0, h - 2), np.floor(x).astype(int).clip(0, w - 2)
    fy, fx = (y - top)[..., None], (x - left)[..., None]
    upper = (1 - fx) * image[top, left] + fx * image[top, left + 1]
    lower = (1 - fx) * image[top + 1, left] + fx * image[top + 1, left + 1]
    return (1 - fy) * upper + fy * lower


@pytest.mark.parametrize("seed", [0, 7])
def test_the_blur_is_the_one_of_the_definition(seed):
    """Every number written out again, in float64; only the random draws are shared."""
    draw = torch.Generator().manual_seed(seed)
    kicks = 0.35 * torch.randn(25, 2, generator=draw).double().numpy()
    extent, turn = 7 + 7 * torch.rand(1, generator=draw).item(), 0.004 * (2 * torch.rand(1, generator=draw).item() - 1)
    noise = 0.004 * torch.randn(1, 3, 384, 384, generator=draw)[0].permute(1, 2, 0).double().numpy()
    velocity, places = np.zeros(2), [np.zeros(2)]
    for kick in kicks:
        velocity = 0.9 * velocity + kick
        places.append(places[-1] + velocity)
    path = np.array(places[1:])
    path = (path - path.mean(0)) * extent / np.ptp(path, axis=0).max()
    light = (photo(460, 470)[:, 6:454, 11:459].permute(1, 2, 0).double().numpy() / 255) ** 2.2
    y, x = np.mgrid[:448, :448] - 223.5
    seen = np.zeros_like(light)
    for t, (dx, dy) in enumerate(path):
        angle = turn * (t - 12) / 12
        across = np.cos(angle) * x - np.sin(angle) * y + dx
        down = np.sin(angle) * x + np.cos(angle) * y + dy
        seen += bilinear(light, down + 223.5, across + 223.5) / 25
    expected = ((seen[32:-32, 32:-32] ** (1 / 2.2) + noise).clip(0, 1) * 255).round()
    found = blurred_crop(photo(460, 470), seed)[0].permute(1, 2, 0).double().numpy()
    # float32 against float64 now and then rounds to the other neighbour
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.005


def test_a_missing_margin_is_repeated():
    small = photo(SIDE, SIDE + 6)
    blurred, sharp = blurred_crop(small, 0)
    assert torch.equal(sharp, small[:, :, 3:-3])
    assert blurred.shape == sharp.shape


def test_measured_figures_are_those_of_each_photograph_with_its_own_seed(pairs):
    crops, seen = BlurredCrops([("a", photo(460, 470)), ("b", photo(460, 470))]), []
    found = measure(lambda image: image.roll(1, 2), crops, lambda *one: seen.append(one))
    for one, name, (blurred, sharp) in zip(found, "ab", pairs, strict=True):
        assert one == Measured(name, psnr(blurred, sharp), psnr(blurred.roll(1, 2), sharp))
        assert one.gain == one.psnr_out - one.psnr_in
    assert len(crops) == 2 and [one.name for one, _ in seen] == ["a", "b"]
    assert all(torch.equal(restored, one.blurred.roll(1, 2)) for one, restored in seen)
    assert crops[0] is crops[0]  # made once


def test_mean_gain_is_the_mean_and_nan_of_nothing():
    assert mean_gain([Measured("a", 20.0, 23.0), Measured("b", 25.0, 24.0)]) == 1.0
    assert math.isnan(mean_gain([]))
