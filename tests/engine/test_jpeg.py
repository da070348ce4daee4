import io

import numpy as np
import pytest
import torch
from PIL import Image

from slicescan.engine.jpeg import CHROMINANCE, LUMINANCE, _steps, jpeg

TABLES = torch.tensor([LUMINANCE, CHROMINANCE, CHROMINANCE]).float()


def picture(h, w):
    """Shapes, slopes and a little noise: uint8 ``(h, w, 3)``."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    image = np.stack([120 + 90 * np.sin(x / 7), 2.0 * y % 256, 200.0 * ((x - w / 2) ** 2 + (y - h / 2) ** 2 < 90)], -1)
    return (image + draw.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def ours(image, quality):
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return (jpeg(x, torch.tensor([float(quality)]))[0].permute(1, 2, 0) * 255).round().numpy()


def pillows(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return file, np.array(Image.open(file)).astype(np.float32)


@pytest.mark.parametrize("quality", [10, 33, 50, 60, 75, 90, 95])
@pytest.mark.parametrize(("h", "w"), [(32, 40), (37, 51)])
def test_artefacts_are_those_of_pillow(quality, h, w):
    image = picture(h, w)
    _, theirs = pillows(image, quality)
    found = ours(image, quality)
    # libjpeg rounds colours to 8 bits on the way in and out, which moves a value by about one step, and now and then
    # moves a coefficient across a rounding boundary; the artefacts themselves are far larger at most qualities
    assert np.abs(found - theirs).mean() < 1.5
    assert np.abs(found - theirs).mean() < 0.6 * np.abs(image - theirs).mean()


@pytest.mark.parametrize("quality", range(1, 101))
def test_quantisation_steps_are_libjpegs(quality):
    file, _ = pillows(picture(8, 8), quality)
    tables = Image.open(file).quantization
    steps = _steps(TABLES, torch.tensor([float(quality)]))[0].reshape(3, 64).int().tolist()
    assert steps[0] == list(tables[0])
    assert steps[1] == steps[2] == list(tables[1])


def test_quality_50_is_the_standards_tables():
    steps = _steps(TABLES, torch.tensor([50.0]))[0]
    assert steps.int().tolist() == [list(map(list, table)) for table in (LUMINANCE, CHROMINANCE, CHROMINANCE)]


def test_each_image_has_its_own_quality():
    image = torch.from_numpy(picture(20, 24)).permute(2, 0, 1).float() / 255
    both = jpeg(torch.stack([image, image]), torch.tensor([20.0, 90.0]))
    for one, quality in zip(both, (20.0, 90.0), strict=True):
        torch.testing.assert_close(one, jpeg(image[None], torch.tensor([quality]))[0], rtol=0, atol=1e-6)
    error = (both - image).abs().mean((1, 2, 3))
    assert error[0] > 2 * error[1]


@pytest.mark.parametrize(("h", "w"), [(1, 1), (7, 9), (8, 8), (17, 3)])
def test_any_size_keeps_its_shape_and_range(h, w):
    image = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(1))
    before = image.clone()
    result = jpeg(image, torch.tensor([5.0, 100.0]))
    assert result.shape == image.shape
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(image, before)
