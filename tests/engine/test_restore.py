import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import slicescan
from slicescan.engine import memory
from slicescan.engine import restore as module
from slicescan.engine.restore import restore
from slicescan.models.xyscannet import XYScanNet

KINDS = [np.uint8, np.uint16, np.float16, np.float32, np.float64, ">u2"]
TENSORS = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Shift(nn.Module):
    """Adds a number and has a weight, so that it has a precision."""

    def __init__(self, by=0.0, most=None, **attributes):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(by))
        self.most, self.seen = most, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        if self.most and x.shape[2] * x.shape[3] > self.most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate a lot")
        self.seen.append(tuple(x.shape))
        return x + self.weight


class Corners(nn.Module):
    """Not equal to itself under any rotation or reflection."""

    def forward(self, x):
        ramp = torch.linspace(0, 1, x.shape[2])[:, None] + torch.linspace(0, 0.5, x.shape[3]) ** 2
        return x * 0.5 + 0.2 * ramp


def array(*shape, dtype=np.uint8, seed=0):
    draw = np.random.default_rng(seed).random(shape)
    kind = np.dtype(dtype)
    return draw.astype(kind) if kind.kind == "f" else (draw * (np.iinfo(kind).max + 1)).astype(kind)


@given(
    st.sampled_from(KINDS),
    st.sampled_from([(), (1,), (3,), (4,)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["auto", "whole", "tile"]),
    st.none() | st.integers(1, 50),
    st.none() | st.integers(0, 50),
    st.sampled_from([1, 4, 8]),
)
def test_the_identity_gives_any_array_back(dtype, channels, h, w, mode, tile, overlap, multiple):
    image = array(h, w, *channels, dtype=dtype, seed=h * w)
    before = image.copy()
    found = restore(Shift(size_multiple=multiple), image, mode, tile, overlap)
    assert isinstance(found, np.ndarray) and found.dtype == image.dtype and found.shape == image.shape
    if found.dtype.kind == "f":
        assert np.abs(found - image).max() <= 16 * np.finfo(found.dtype).eps + (0 if found.dtype.itemsize < 8 else 1e-6)
    else:
        assert np.array_equal(found, image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("dtype", TENSORS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 5, 7), (2, 3, 5, 7), (2, 1, 1, 9)])
@pytest.mark.parametrize("tile", [None, 3])
def test_the_identity_gives_any_tensor_back(dtype, shape, tile):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    image = (image * 255).round().to(dtype) if dtype == torch.uint8 else image.to(dtype)
    found = restore(nn.Identity(), image, tile=tile)
    assert found.dtype == dtype and found.shape == image.shape
    worst = (found.double() - image.double()).abs().max()
    assert worst <= (0 if dtype == torch.uint8 else 8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_pillow_image_stays_one_with_what_it_carries(mode):
    image = Image.fromarray(array(6, 9, 4)).convert(mode)
    image.info["icc_profile"] = b"profile"
    found = restore(Shift(), image)
    assert isinstance(found, Image.Image) and found.mode == mode and found.info["icc_profile"] == b"profile"
    assert np.array_equal(np.array(found), np.array(image))


def test_alpha_is_not_touched():
    image = array(4, 5, 4)
    found = restore(Shift(0.5), image)
    assert np.array_equal(found[..., 3], image[..., 3]) and (found[..., :3] >= image[..., :3]).all()


@pytest.mark.parametrize("by", [2.0, -2.0])
@pytest.mark.parametrize(
    "image",
    [array(3, 4, 3), array(3, 4, dtype=np.float32), torch.linspace(0, 1, 12).reshape(3, 2, 2)],
    ids=["uint8", "float32", "tensor"],
)
def test_results_are_clamped(by, image):
    found = restore(Shift(by), image)
    most = 255 if str(image.dtype) == "uint8" else 1
    assert (found == (most if by > 0 else 0)).all()


def test_a_double_precision_network_on_a_double_image_keeps_all_digits():
    image = torch.rand(1, 3, 20, 21, dtype=torch.float64) / 2
    for tile in (None, 8):
        found = restore(Shift(0.1).double(), image, tile=tile)
        assert (found - image - torch.tensor(0.1, dtype=torch.float32).double()).abs().max() < 1e-15


def test_values_between_two_levels_are_rounded_not_cut():
    assert (restore(Shift(0.6 / 255), np.full((2, 2), 100, np.uint8)) == 101).all()
    assert (restore(Shift(0.6 / 65535), np.full((2, 2), 100, np.uint16)) == 101).all()


def test_views_are_restored_as_their_copies_are():
    image = array(12, 10, 3)
    view = image[::-2, 1::3, ::-1]
    found = restore(Corners(), view)
    assert np.array_equal(found, restore(Corners(), view.copy())) and found.flags["C_CONTIGUOUS"]


def test_a_network_that_overwrites_its_input_leaves_the_image_alone():
    class Overwrite(nn.Module):
        def forward(self, x):
            return x.mul_(0.5)

    image = torch.rand(1, 3, 30, 30)
    before = image.clone()
    found = restore(Overwrite(), image, tile=16, overlap=8)
    assert torch.equal(image, before) and torch.allclose(found, before / 2, atol=1e-6)


def test_the_result_can_be_trained_on():
    image = torch.rand(3, 4, 5, requires_grad=True)
    target = restore(Shift(), image)
    assert not target.requires_grad and not target.is_inference()
    (torch.rand(3, 4, 5, requires_grad=True) * target).sum().backward()


@pytest.mark.parametrize("shape", [(5, 9, 3), (9, 5), (1, 7, 3), (6, 6, 3)])
def test_the_ensemble_is_the_mean_over_eight_transforms(shape):
    image = array(*shape, dtype=np.float64)
    flips = [lambda x: x, np.flipud, np.fliplr, lambda x: x[::-1, ::-1]]
    mirrors = [lambda x: x, lambda x: np.swapaxes(x, 0, 1)]
    turned_back = [flip(mirror(restore(Corners(), mirror(flip(image))))) for flip in flips for mirror in mirrors]
    expected = np.mean(turned_back, 0)
    assert np.abs(restore(Corners(), image, ensemble=True) - expected).max() < 1e-6
    assert np.abs(restore(Corners(), image) - expected).max() > 0.01


def test_the_ensemble_can_be_made_in_tiles():
    image = array(20, 30, 3, dtype=np.float32) / 2
    assert np.abs(restore(Shift(0.25), image, ensemble=True, tile=8) - image - 0.25).max() < 1e-6


def test_a_network_for_grey_images_restores_each_colour():
    model = Shift(0.1, in_chans=1)
    image = array(2, 5, 3, dtype=np.float32) / 2
    assert np.allclose(restore(model, image), image + 0.1) and set(model.seen) == {(3, 1, 2, 5)}
    assert np.allclose(restore(model, image[..., 0]), image[..., 0] + 0.1)
    two = torch.rand(2, 3, 4, 4) / 2
    assert torch.allclose(restore(model, two), two + 0.1)


@pytest.mark.parametrize("tile", [None, 6])
def test_a_network_that_enlarges_gives_a_larger_image(tile):
    image = array(7, 10, 3)
    found = restore(nn.Upsample(scale_factor=3), image, tile=tile)
    assert np.array_equal(found, image.repeat(3, 0).repeat(3, 1))
    with pytest.raises(ValueError, match="alpha cannot change its size"):
        restore(nn.Upsample(scale_factor=3), array(7, 10, 4))


@pytest.mark.parametrize(("mode", "tile"), [("auto", None), ("auto", 100), ("tile", None), ("tile", 200)])
def test_running_out_of_memory_halves_the_piece_and_goes_on(mode, tile):
    model = Shift(0.25, most=70 * 70, size_multiple=4)
    image = array(150, 90, 3, dtype=np.float32) / 2
    found = restore(model, image, mode, tile)
    assert np.abs(found - image - 0.25).max() < 1e-6
    assert max(h * w for _, _, h, w in model.seen) <= 70 * 70


def test_out_of_memory_of_a_gpu_is_out_of_memory():
    class Full(Shift):
        def forward(self, x):
            if x.shape[2] > 70:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return super().forward(x)

    assert np.array_equal(restore(Full(), array(100, 20, 3)), array(100, 20, 3))


def test_where_nothing_fits_the_error_says_so():
    with pytest.raises(
        MemoryError, match=re.escape("an image of 90x80 does not fit into the memory of cpu; use mode=")
    ):
        restore(Shift(most=10), array(80, 90, 3), "whole")
    with pytest.raises(MemoryError, match="a tile of 64x64 does not fit into the memory of cpu"):
        restore(Shift(most=10), array(80, 90, 3))


def test_other_errors_are_not_taken_for_memory():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError, match="a fault of its own"):
        restore(Broken(), array(8, 8, 3))


def test_the_tile_follows_the_memory_that_is_free(monkeypatch):
    image, seen = array(300, 400, 3), {}
    for free in (10**12, 10**8, 10**6):
        model = Shift(size_multiple=4)
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        assert np.array_equal(restore(model, image), image)
        seen[free] = max(h * w for _, _, h, w in model.seen)
    need = memory.bytes_a_pixel(model, None, 3)
    assert seen[10**12] == seen[10**8] == 300 * 400
    assert 0.9 * 0.6 * 10**6 < seen[10**6] * need <= 0.6 * 10**6


def test_a_little_memory_is_not_too_little(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 1)
    model = Shift()
    assert np.array_equal(restore(model, array(150, 150, 3)), array(150, 150, 3))
    assert model.seen[-1] == (1, 3, 64, 64)


def test_the_tile_that_was_asked_for_is_used():
    model = Shift(size_multiple=4)
    restore(model, array(100, 90, 3), "tile", 50, 10)
    assert [shape[2:] for shape in model.seen] == [(48, 48), (48, 48), (48, 46)] * 2 + [(48, 48), (48, 48), (48, 46)]


def test_progress_is_told_for_whole_images_too():
    seen = []
    restore(Shift(), array(8, 8, 3), progress=lambda *now: seen.append(now))
    restore(Shift(), array(8, 8, 3), "tile", 4, 0, progress=lambda *now: seen.append(now))
    assert seen == [(1, 1), (1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_is_near_full_precision(amp):
    torch.manual_seed(0)
    model, image = XYScanNet(8, blocks=(1, 1, 1)), array(17, 22, 3, dtype=np.float32)
    full, half = restore(model, image), restore(model, image, amp=amp)
    assert half.dtype == np.float32 and 0 < np.abs(full - half).max() < 0.02


def test_a_result_that_is_not_finite_is_an_error():
    for amp, hint in ((None, "not finite$"), ("fp16", "fp16 overflows easily, try bf16")):
        with pytest.raises(ValueError, match=hint):
            restore(Shift(float("nan")), array(4, 4, 3), amp=amp)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (31, 33)])
@pytest.mark.parametrize("tile", [None, 16])
def test_a_network_takes_images_of_any_size(size, tile):
    torch.manual_seed(0)
    image = array(*size, 3)
    assert restore(XYScanNet(4, blocks=(1, 1, 1)), image, tile=tile).shape == image.shape


def test_the_public_name_is_this_function():
    assert slicescan.restore is restore


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (array(3, 4, 2), "(3, 4, 2)"),
        (array(3, 0, 3), "(3, 0, 3)"),
        (array(2, 3, 4, 3), "(2, 3, 4, 3)"),
        (array(3, 4, 3).astype(np.int64), "int64"),
        (array(3, 4) > 5, "bool"),
        (torch.zeros(4, 3, 3), "(4, 3, 3)"),
        (torch.zeros(3, 3), "(3, 3)"),
        (torch.zeros(3, 3, 3, dtype=torch.int32), "torch.int32"),
        (Image.new("CMYK", (3, 3)), "CMYK"),
        (array(3, 4, 3).astype(np.float32), "values up to 25"),
        (torch.full((3, 4, 4), 255.0), "values up to 255"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_that_does_not_fit_is_named(image, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        restore(nn.Identity(), image)


def test_what_is_no_image_is_a_type_error():
    with pytest.raises(TypeError, match="expected a Pillow image, a NumPy array or a tensor, got str"):
        restore(nn.Identity(), "photo.jpg")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "fast"}, "mode must be 'auto', 'whole', 'stream' or 'tile', got 'fast'"),
        (
            {"mode": "stream"},
            "Identity cannot stream: it is no model of this package; use mode='auto', 'whole' or 'tile'",
        ),
        ({"tile": 0}, "tile must be at least 1, got 0"),
        ({"overlap": -1}, "overlap must be at least 0, got -1"),
        ({"amp": "fp8"}, "amp must be 'bf16', 'fp16' or None, got 'fp8'"),
    ],
)
def test_a_setting_that_does_not_exist_is_named(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        restore(nn.Identity(), array(3, 3, 3), **settings)


@pytest.mark.parametrize("made", [lambda x: [x], lambda x: x[:, :2], lambda x: x[..., 1:], lambda x: x[0]])
def test_a_network_that_returns_something_else_is_named(made):
    class Other(nn.Module):
        def forward(self, x):
            return made(x)

    with pytest.raises(ValueError, match="^Other (returned a list|made .*), expected"):
        restore(Other(), array(6, 6, 3))


def test_restoring_imports_no_shape_tracer():
    code = "import slicescan, numpy, torch, sys; slicescan.restore(torch.nn.Identity(), numpy.zeros((200, 200), 'u1'));"
    code += "print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
