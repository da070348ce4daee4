"""NIQE: its parts against their definitions, the whole against the program whose parameters it uses."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from slicescan.engine.metrics import niqe
from slicescan.engine.metrics.niqe import _fit, _halved, _normalised, _parameters, _shapes
from tests.engine.metrics.pictures import blurred, noisy, texture

# BasicSR 1.4.2, function ``niqe`` with its own parameters, on the grey levels of these images in float64. Its half size
# is computed in float32, which is what the fourth digit differs by.
GOLDEN = {
    "texture": (11.989380, 11.434475),
    "blurred": (13.469430, 12.527747),
    "noisy": (15.418308, 15.737415),
    "tall": (9.285096, 8.826707),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_niqe_is_that_of_the_program_whose_parameters_it_uses(name):
    sharp = texture(480, 576)
    image = {
        "texture": sharp,
        "blurred": blurred(sharp, 5),
        "noisy": noisy(sharp, 12),
        "tall": texture(600, 200, 1),  # cut to six by two patches
    }[name]
    video, grey = GOLDEN[name]
    assert niqe(image, luma="y") == pytest.approx(video, rel=5e-4)
    assert niqe(image) == pytest.approx(grey, rel=5e-4)


def test_a_fit_finds_the_distribution_that_was_drawn_from():
    draw = np.random.default_rng(0)
    for shape, left, right in [(0.7, 1.0, 1.0), (2.0, 0.5, 1.5), (4.0, 2.0, 1.0)]:
        count = 300_000
        size = draw.gamma(1 / shape, 1, count) ** (1 / shape)  # of a generalised Gaussian of width 1
        negative = draw.random(count) < left / (left + right)
        values = torch.from_numpy(np.where(negative, -left * size, right * size))
        found = [x.item() for x in _fit(values.view(1, 500, 600))]
        assert found == pytest.approx([shape, left, right], rel=0.02)


def test_the_ratio_of_moments_of_a_gaussian_is_two_over_pi():
    shapes, ratios = _shapes()
    assert ratios[shapes == 2].item() == pytest.approx(2 / math.pi, rel=1e-12)
    assert (shapes[0], shapes[-1], len(shapes)) == (0.2, 10, 9801)
    inverse = 1 / shapes.numpy()
    expected = special.gamma(2 * inverse) ** 2 / (special.gamma(inverse) * special.gamma(3 * inverse))
    assert ratios.numpy() == pytest.approx(expected, rel=1e-10)


def test_values_are_normalised_by_their_neighbours():
    grey = texture(40, 50)[0].double()
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = ndimage.correlate(grey.numpy(), window, mode="nearest")
    deviation = np.sqrt(np.abs(ndimage.correlate(grey.numpy() ** 2, window, mode="nearest") - mean**2))
    expected = torch.from_numpy((grey.numpy() - mean) / (deviation + 1))
    assert torch.allclose(_normalised(grey), expected, rtol=1e-8, atol=1e-10)


def test_flat_areas_have_no_sign():
    grey = torch.full((20, 20), 211.0, dtype=torch.float64)
    assert not _normalised(grey).any()


def test_half_size_keeps_planes_and_mirrors_borders():
    y, x = torch.meshgrid(torch.arange(20.0).double(), torch.arange(30.0).double(), indexing="ij")
    half = _halved(3 * y + 2 * x)
    expected = 3 * (2 * y[:10, :15] + 0.5) + 2 * (2 * x[:10, :15] + 0.5)
    assert torch.allclose(half[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=1e-12)
    grey = texture(20, 30)[0].double()
    mirrored = torch.cat([grey.flip(1), grey, grey.flip(1)], 1)
    assert torch.allclose(_halved(mirrored)[:, 15:30], _halved(grey), rtol=1e-12)


def test_parameters_are_a_mean_and_a_covariance():
    mean, covariance = _parameters()
    assert mean.shape == (36,) and covariance.shape == (36, 36)
    assert torch.equal(covariance, covariance.T) and torch.linalg.eigvalsh(covariance).min() > -1e-12


def test_only_whole_rgb_images_with_structure_are_measured():
    with pytest.raises(ValueError, match=r"uint8 RGB image \(3, h, w\), got torch.float32"):
        niqe(torch.zeros(3, 200, 200))
    with pytest.raises(ValueError, match="two patches of 96x96 pixels, got 100x191"):
        niqe(texture(100, 191))
    with pytest.raises(ValueError, match="not flat"):
        niqe(torch.full((3, 200, 200), 7, dtype=torch.uint8))
