"""Fields that can be told without a network: single layers, and sums done by hand."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import slicescan
from slicescan import create_model, effective_receptive_field
from slicescan.engine.erf import ReceptiveField, draw_images
from slicescan.engine.erf_picture import colours, draw_fields, level, write_fields
from slicescan.layers import InterScan, SliceScan2D


@pytest.fixture(autouse=True)
def _the_same_weights_in_every_run():
    torch.manual_seed(0)


def test_a_convolution_sees_its_kernel():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    field = effective_receptive_field(conv, (20, 26))
    assert field.energy.shape == (20, 26) and field.centre == (10, 13) and field.extent == (3, 3)
    expected = conv.weight.detach().double().sum(0).square().sum(0)  # cross-correlation: no flip around the output
    assert torch.allclose(field.energy[9:12, 12:15], expected, rtol=1e-5)
    assert field.share(1.5) == pytest.approx(1, rel=1e-12)
    kept = expected.sum() - expected[::2, ::2].sum()
    assert field.share(1) == pytest.approx((kept / expected.sum()).item(), rel=1e-5) == field.cross
    dilated = effective_receptive_field(nn.Conv2d(3, 3, 3, padding=4, dilation=4), 20)
    assert dilated.extent == (9, 9) and dilated.energy.count_nonzero() == 9


def test_pixels_handed_on_are_not_part_of_the_change():
    field = effective_receptive_field(nn.Identity(), 12)
    assert field.energy.sum() == field.energy[6, 6] == 3 and field.radius(1) == 0
    assert not field.change.energy.any() and math.isnan(field.change.share(3)) and math.isnan(field.change.radius(0.5))

    class Residual(nn.Conv2d):
        def forward(self, x):
            return x + super().forward(x)

    conv = nn.Conv2d(3, 3, 3, padding=1)
    residual = Residual(3, 3, 3, padding=1)
    residual.load_state_dict(conv.state_dict())
    plain, whole = effective_receptive_field(conv, 12), effective_receptive_field(residual, 12)
    assert torch.allclose(whole.change.energy, plain.energy, rtol=1e-4)


def field_of(layer, size):
    return effective_receptive_field(layer, images=torch.rand(2, 8, *size, generator=torch.Generator().manual_seed(0)))


def test_a_scan_inside_slices_sees_the_row_to_the_left_and_the_column_above():
    field = field_of(SliceScan2D(8), (17, 21))
    assert field.cross == pytest.approx(1, rel=1e-12)
    assert (field.energy[8, :11] > 0).all() and not field.energy[8, 11:].any()
    assert (field.energy[:9, 10] > 0).all() and not field.energy[9:, 10].any()


def test_a_scan_across_slices_sees_whole_slices_above_and_to_the_left():
    field = field_of(InterScan(8), (17, 21))
    assert (field.energy[:9] > 0).all() and (field.energy[:, :11] > 0).all()
    assert not field.energy[9:, 11:].any()


def test_a_network_is_left_as_it_was_and_measured_in_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.9)).train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (effective_receptive_field(model, 8) for _ in range(2))
    assert torch.equal(first.energy, second.energy)
    assert [module.training for module in model] == [True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_every_image_passes_alone():
    images = torch.rand(3, 3, 9, 9)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid())
    apart = [effective_receptive_field(model, images=image[None]).energy for image in images]
    assert torch.allclose(effective_receptive_field(model, images=images).energy, sum(apart) / 3, rtol=1e-12)


def test_enlarging_networks_are_measured_at_the_pixel_under_the_centre():
    field = effective_receptive_field(nn.Upsample(scale_factor=2), 10)
    assert field.centre == (5, 5) and field.energy[5, 5] == field.energy.sum() and field.change is None


def test_radius_is_the_inverse_of_share():
    draw = torch.Generator().manual_seed(1)
    field = ReceptiveField(torch.rand(30, 41, generator=draw, dtype=torch.float64), (15, 20))
    for share in (0.1, 0.5, 0.9, 1.0):
        radius = field.radius(share)
        assert field.share(radius) >= share * (1 - 1e-12) and field.share(radius - 1e-9) < share
    even = ReceptiveField(torch.ones(201, 201, dtype=torch.float64), (100, 100))
    assert even.share(50) == pytest.approx(math.pi * 50**2 / 201**2, rel=0.01)
    with pytest.raises(ValueError, match=r"\(0, 1\], got 90"):
        field.radius(90)


def test_a_whole_network_has_a_field_around_its_centre():
    model = create_model("xyscannet_tiny", dim=8, blocks=(1, 1, 1))
    field = effective_receptive_field(model, (24, 32), images=1)
    assert field.energy.shape == (24, 32) and field.energy.isfinite().all()
    assert field.energy.argmax() == field.centre[0] * 32 + field.centre[1]
    assert field.change.radius(0.9) > field.radius(0.9)


def test_drawn_images_have_the_spectrum_of_photographs():
    images = draw_images(8, 3, 64, 64).double()
    assert images.min() >= 0 and images.max() <= 1 and images.mean() == pytest.approx(0.5, abs=0.02)
    power = torch.fft.fft2(images).abs().square().mean((0, 1))
    assert power[0, 4] / power[0, 16] == pytest.approx(16, rel=0.5)
    assert torch.equal(draw_images(2, 3, 8, 9, seed=4), draw_images(2, 3, 8, 9, seed=4))


def test_what_does_not_give_images_is_refused():
    with pytest.raises(ValueError, match=r"Flatten: expected an image batch .* got \(1, 192\)"):
        effective_receptive_field(nn.Flatten(), 8)
    with pytest.raises(ValueError, match=r"expected images \(b, c, h, w\), got \(3, 8, 8\)"):
        effective_receptive_field(nn.Identity(), images=torch.rand(3, 8, 8))


def test_colours_are_the_logarithm_of_the_gradient():
    energy = torch.tensor([[1.0, 1e-6], [1e-12, 0.0]], dtype=torch.float64) * 7
    assert level(ReceptiveField(energy, (1, 1))) == pytest.approx(np.array([[1, 0.5], [0, 0]]))
    shown = colours(np.linspace(0, 1, 50)).astype(int).sum(-1)
    assert (np.diff(shown) > 0).all()


def test_fields_are_written_as_a_picture_and_their_figures(tmp_path):
    fields = {name: effective_receptive_field(nn.Conv2d(3, 3, 3, padding=1), 16) for name in ("one", "two")}
    fields["none"] = effective_receptive_field(nn.Identity(), 16)
    write_fields(fields, tmp_path / "deep/erf.png")
    assert sorted(file.name for file in (tmp_path / "deep").iterdir()) == ["erf.json", "erf.png"]
    figures = json.loads((tmp_path / "deep/erf.json").read_text(), parse_constant=pytest.fail)
    assert figures["one"]["extent"] == [3, 3] and figures["none"]["change"]["radius_50"] is None
    with Image.open(tmp_path / "deep/erf.png") as picture:
        assert picture.size == draw_fields(fields).size and picture.mode == "RGB"


def test_the_function_is_public():
    assert slicescan.effective_receptive_field is effective_receptive_field
