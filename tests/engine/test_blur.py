from dataclasses import replace

import pytest
import torch
from PIL import Image

from slicescan.engine.blur import MARGIN, SyntheticMotionBlur, expose, scaled, shake, to_8_bits, turning
from slicescan.engine.config import BlurSection, DataSection, Stage
from slicescan.engine.pictures import PhotoFolder

DATA = DataSection(patch=24, batch=6, words=0.0)
CLEAN = {"noise": 0.0, "highlights": 0.0, "jpeg": 0.0}


def photo(h=90, w=101, seed=0):
    return torch.randint(0, 256, (3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def still(t=5):
    return torch.zeros(1, t, 2), torch.zeros(1, t)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("together", [2, 25])
def test_positions_taken_together_make_the_same_exposure(together):
    draw = torch.Generator().manual_seed(4)
    light = torch.rand(2, 3, 9, 14, generator=draw)
    paths = scaled(torch.stack([shake(25, draw), shake(25, draw)]), torch.tensor([4.0, 16.0]))
    angles = torch.linspace(-0.05, 0.05, 25) * torch.tensor([[1.0], [-0.5]])
    torch.testing.assert_close(expose(light, paths, angles, together=together), expose(light, paths, angles))


def test_a_seed_and_a_step_always_give_the_same_bits():
    first, second = (SyntheticMotionBlur([photo(), photo(60, 77, 1)], DATA, BlurSection(), seed=3) for _ in range(2))
    second.batch(0)  # batches made before do not matter
    assert same(first.batch(5), second.batch(5))


def test_another_step_or_seed_gives_another_batch():
    source = SyntheticMotionBlur([photo()], DATA, BlurSection(), seed=3)
    other = SyntheticMotionBlur([photo()], DATA, BlurSection(), seed=4)
    assert not same(source.batch(5), source.batch(6))
    assert not same(source.batch(5), other.batch(5))


@pytest.mark.parametrize(("h", "w"), [(7, 7), (8, 13), (33, 20)])
def test_a_still_camera_leaves_the_image(h, w):
    light = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(0))
    # coordinates round to 2^-24 of the image's size, and the image changes by at most 1 a pixel
    torch.testing.assert_close(expose(light, *still()), light, rtol=0, atol=max(h, w) * 2.0**-21)


def test_a_constant_image_stays_constant_under_any_motion():
    draw = torch.Generator().manual_seed(1)
    paths = scaled(torch.stack([shake(25, draw), shake(25, draw)]), torch.tensor([4.0, 16.0]))
    light = torch.full((2, 3, 21, 34), 0.3)
    exposed = expose(light, paths, torch.linspace(-0.05, 0.05, 25).expand(2, 25))
    torch.testing.assert_close(exposed, light, rtol=1e-5, atol=0)


def test_light_in_the_interior_is_conserved():
    light = torch.zeros(1, 1, 41, 43)
    light[..., 15:25, 17:26] = torch.rand(10, 9, generator=torch.Generator().manual_seed(2))
    path = scaled(shake(25, torch.Generator().manual_seed(3))[None], torch.tensor([9.0]))
    exposed = expose(light, path, torch.zeros(1, 25))
    assert not torch.allclose(exposed, light, atol=1e-2)
    torch.testing.assert_close(exposed.sum(), light.sum(), rtol=1e-4, atol=0)


def test_whole_pixel_shifts_average_rolled_images():
    shifts = [(-3, 1), (0, 0), (2, -2), (1, 1)]
    light = torch.rand(1, 2, 20, 23, generator=torch.Generator().manual_seed(4))
    exposed = expose(light, torch.tensor(shifts).float()[None], torch.zeros(1, len(shifts)))
    expected = torch.stack([light.roll((-y, -x), (2, 3)) for x, y in shifts]).mean(0)
    inside = (..., slice(3, -3), slice(4, -4))
    torch.testing.assert_close(exposed[inside], expected[inside], rtol=0, atol=1e-5)


def test_a_quarter_turn_is_rot90():
    light = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(5))
    exposed = expose(light, torch.zeros(1, 1, 2), torch.full((1, 1), torch.pi / 2))
    torch.testing.assert_close(exposed, light.rot90(1, (2, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("section", [BlurSection(), BlurSection(still=1.0), BlurSection(still=0.0, straight=1.0)])
def test_paths_are_centred_and_as_long_as_they_should_be(section):
    source = SyntheticMotionBlur([photo()], DataSection(patch=8, batch=64), section)
    paths, angles = source._motions(torch.Generator().manual_seed(6), 8, 64)
    extent = (paths.amax(1) - paths.amin(1)).amax(1)
    low = 0.0 if section.still else section.extent[0]
    high = 1.0 if section.still == 1 else section.extent[1]
    assert paths.mean(1).abs().max() < 1e-4
    assert extent.min() >= low - 1e-4
    assert extent.max() <= high + 1e-4
    assert angles.abs().max() <= section.rotation
    torch.testing.assert_close(angles, -angles.flip(1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_uniform_share_does_not_turn(share):
    source = SyntheticMotionBlur([photo()], DataSection(patch=8, batch=1000), BlurSection(uniform=share, positions=3))
    _, angles = source._motions(torch.Generator().manual_seed(7), 8, 1000)
    without = (angles == 0).all(1).double().mean().item()
    # four standard deviations of a share of 1000 draws
    assert abs(without - share) <= 4 * (share * (1 - share) / 1000) ** 0.5


def test_the_straight_share_lies_on_lines():
    section = BlurSection(straight=1.0, still=0.0)
    paths, _ = SyntheticMotionBlur([photo()], DATA, section)._motions(torch.Generator().manual_seed(8), 24, 6)
    steps = paths.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [3, 25])
def test_a_turn_leaves_its_centre_and_draws_its_longest_trace_in_a_corner(t):
    draw, side = torch.Generator().manual_seed(10), 40
    centres, extent = side * (torch.rand(20, 2, generator=draw) - 0.5), torch.linspace(1, 9, 20)
    paths, angles = turning(centres, extent, side, t)
    cos, sin = angles.cos()[..., None, None], angles.sin()[..., None, None]
    rotations = torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)  # b t 2 2
    corners = side / 2 * torch.tensor([(x, y) for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    seen = torch.einsum("btij,bkj->btki", rotations, torch.cat([centres[:, None], corners.expand(20, 4, 2)], 1))
    seen = seen + paths[:, :, None]
    torch.testing.assert_close(seen[:, :, 0], centres[:, None].expand(20, t, 2))
    traces = seen.diff(dim=1).norm(dim=-1).sum(1)[:, 1:].amax(1)
    torch.testing.assert_close(traces, extent, rtol=3e-3, atol=0)  # chords are shorter than arcs


def test_the_turning_share_only_turns():
    section = BlurSection(turning=1.0, still=0.0, **CLEAN)
    source = SyntheticMotionBlur([photo()], DATA, section)
    paths, angles = source._motions(torch.Generator().manual_seed(11), 24, 6)
    assert (angles.diff(dim=1) > 0).all()
    assert (paths - paths.mean(1, keepdim=True)).norm(dim=-1).amax(1).gt(0).all()
    blurred, sharp = source.batch(0)
    assert (blurred != sharp).any()
    assert torch.equal(sharp, SyntheticMotionBlur([photo()], DATA, BlurSection(**CLEAN)).batch(0)[1])


def test_patches_grow_by_schedule():
    data = replace(DATA, progressive=(Stage(1, 32, 2), Stage(2, 40, 1)))
    source = SyntheticMotionBlur([photo()], data, BlurSection(positions=3))
    assert [tuple(source.batch(step)[1].shape) for step in range(3)] == [(6, 3, 24, 24), (2, 3, 32, 32), (1, 3, 40, 40)]
    with pytest.raises(ValueError, match=r"\(90, 101\) is too small for crops of 92"):
        SyntheticMotionBlur([photo()], replace(DATA, progressive=(Stage(1, 60, 2),)), BlurSection())


def test_photographs_of_a_large_folder_are_read_when_they_are_drawn(tmp_path):
    for index in range(3):
        Image.fromarray(photo(60 + index, 70, index).permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    files = sorted(tmp_path.iterdir())
    batches = []
    for memory in (1.0, 0.0):
        source = SyntheticMotionBlur(PhotoFolder(files, memory), DATA, BlurSection(positions=3), seed=3)
        assert len(source.photos.kept) == 0
        batches.append(source.batch(4))
    assert same(*batches)
    Image.new("RGB", (99, 20)).save(tmp_path / "9.png")
    small = SyntheticMotionBlur(PhotoFolder([tmp_path / "9.png"]), DATA, BlurSection())
    with pytest.raises(ValueError, match=r"9\.png: of \(20, 99\) is too small for crops of 56"):
        small.batch(0)


def test_blur_shifts_nothing():
    ramp = torch.linspace(0, 1, 60)[None, None, None].expand(1, 1, 40, 60)
    path = scaled(shake(25, torch.Generator().manual_seed(9))[None], torch.tensor([12.0]))
    inside = (..., slice(12, -12), slice(12, -12))
    torch.testing.assert_close(expose(ramp, path, torch.zeros(1, 25))[inside], ramp[inside], rtol=0, atol=1e-5)


def test_motion_blurs_what_is_recorded_and_not_the_target():
    checks = ((torch.arange(80)[:, None] // 2 + torch.arange(80)[None] // 2) % 2 * 255).to(torch.uint8)
    section = BlurSection(extent=(8.0, 12.0), still=0.0, **CLEAN)
    blurred, sharp = SyntheticMotionBlur(
        [checks.expand(3, 80, 80)], DataSection(patch=24, batch=8, shrink=1.0, words=0.0), section
    ).batch(0)
    assert set(sharp.unique().tolist()) == {0.0, 1.0}
    assert (blurred.std((1, 2, 3)) < 0.8 * sharp.std((1, 2, 3))).all()


def test_without_motion_and_noise_blurred_is_sharp():
    section = BlurSection(extent=(1e-6, 1e-6), rotation=0.0, still=0.0, **CLEAN)
    blurred, sharp = SyntheticMotionBlur([photo()], DATA, section).batch(0)
    assert (blurred - sharp).abs().max() <= 1 / 255 + 1e-6  # one step of rounding


@pytest.mark.parametrize("words", [0.0, 1.0])
@pytest.mark.parametrize("patch", [1, 15, 32])
def test_batches_are_8_bit_patches_of_the_size_asked_for(patch, words):
    section = BlurSection(positions=3, jpeg=1.0, highlights=1.0)
    for image in SyntheticMotionBlur([photo()], DataSection(patch=patch, batch=2, words=words), section).batch(0):
        assert image.shape == (2, 3, patch, patch) and image.dtype == torch.float32
        assert image.min() >= 0 and image.max() <= 1
        assert torch.equal(image, to_8_bits(image))


def test_a_photograph_may_be_just_large_enough():
    side = 24 + 2 * MARGIN
    assert SyntheticMotionBlur([photo(side, side)], DATA, BlurSection()).batch(0)[0].shape[-1] == 24


@pytest.mark.parametrize(("h", "w"), [(55, 90), (90, 55)])
def test_a_photograph_that_is_too_small_is_an_error(h, w):
    with pytest.raises(ValueError, match=rf"\({h}, {w}\) is too small for crops of 56"):
        SyntheticMotionBlur([photo(), photo(h, w)], DATA, BlurSection())


def test_no_photograph_is_an_error():
    with pytest.raises(ValueError, match="no photographs"):
        SyntheticMotionBlur([], DATA, BlurSection())
