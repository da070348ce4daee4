import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file

from slicescan.checkpoint import CheckpointError
from slicescan.engine.contrast import FILE, Contrast
from tests.engine.vgg import WIDTHS, random_weights, whole_file


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def contrast(weights):
    return Contrast(weights).double().requires_grad_(False)


@pytest.fixture(scope="module")
def exact(weights):
    """The term in float64 with weights that are not rounded to float32."""
    term = Contrast(weights).double()
    term.load_state_dict(weights)
    return term


def images(h=8, w=12, count=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, h, w, generator=draw, dtype=torch.float64) for _ in range(3)]


def convolved(x, weight, bias):
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def pooled(x):
    h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return np.maximum.reduce([x[:, :, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)])


def features(x, weights):
    for index in WIDTHS:
        if index in (5, 10):
            x = pooled(x)
        x = np.maximum(convolved(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]), 0)
    return x


def centres(mask):
    """Mean of the four centre pixels of every cell of 4x4."""
    return sum(mask[:, i::4, j::4] for i in (1, 2) for j in (1, 2)) / 4


def plain(restored, sharp, blurred, weights):
    r, s, i = (features(image - 0.5, weights) for image in (restored, sharp, blurred))
    mask = centres((np.abs(sharp - blurred).mean(1) > 0.01).astype(float))
    return (np.abs(r - s).mean(1) / (np.abs(r - i).mean(1) + 1e-7) * mask).sum() / mask.sum()


@pytest.mark.parametrize("changed", [1.0, 0.02])
def test_the_value_is_that_of_the_formula(changed, exact, weights):
    restored, sharp, other = images()
    blurred = torch.where(torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(1)) < 0.5, other, sharp)
    blurred = sharp + changed * (blurred - sharp)
    arrays = {name: value.numpy() for name, value in weights.items()}
    expected = plain(restored.numpy(), sharp.numpy(), blurred.numpy(), arrays)
    assert exact(restored, sharp, blurred).item() == pytest.approx(expected, rel=1e-11)


def test_the_gradient_is_the_slope_of_the_value_and_only_of_the_restored_image(exact):
    restored, sharp, blurred = images(4, 8, 1)
    assert torch.autograd.gradcheck(lambda r: exact(r, sharp, blurred), restored.requires_grad_())
    sharp.requires_grad_(), blurred.requires_grad_()
    exact(restored, sharp, blurred).backward()
    assert restored.grad.abs().max() > 0 and sharp.grad is None and blurred.grad is None


def test_the_mask_sums_over_the_whole_batch(contrast):
    restored, sharp, blurred = images()
    one = [contrast(*(image[k : k + 1] for image in (restored, sharp, blurred))) for k in (0, 1)]
    still = torch.cat([sharp[:1], blurred[1:]])
    torch.testing.assert_close(contrast(restored, sharp, blurred), (one[0] + one[1]) / 2)
    torch.testing.assert_close(contrast(restored, sharp, still), one[1])


def test_where_no_pixel_changed_the_term_is_zero_and_has_no_gradient(contrast):
    """The published term is 0/0 here."""
    restored, sharp, _ = images()
    restored.requires_grad_()
    value = contrast(restored, sharp, sharp + 0.0099)
    (gradient,) = torch.autograd.grad(value, restored)
    assert value.item() == 0 and gradient.abs().max() == 0


def test_one_changed_pixel_counts_in_full(contrast):
    restored, sharp, _ = images(8, 8, 1)
    blurred = sharp.clone()
    blurred[..., 1, 2] += 0.5
    value = contrast(restored, sharp, blurred)
    ratio = plain(*(image.numpy() for image in (restored, sharp, blurred)), {k: v.numpy() for k, v in _state(contrast)})
    assert value.item() == pytest.approx(ratio, rel=1e-9)


def _state(module):
    return module.state_dict().items()


def test_a_change_beside_the_centre_of_a_cell_does_not_count(contrast):
    restored, sharp, _ = images(8, 8, 1)
    blurred = sharp.clone()
    blurred[..., 0, 3] += 0.5
    assert contrast(restored, sharp, blurred).item() == 0


@pytest.mark.parametrize(("h", "w"), [(4, 4), (5, 7), (11, 13)])
def test_any_size_from_four_pixels_on(h, w, contrast):
    assert contrast(*images(h, w)).isfinite()


def test_weights_come_from_a_file_or_the_cache_of_torchvision(weights, contrast, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=rf"{FILE}: no weights of VGG-19 .* or name a file with vgg ="):
        Contrast.open()
    cache = tmp_path / "hub" / "checkpoints" / FILE
    cache.parent.mkdir(parents=True)
    torch.save(whole_file(weights), cache)
    save_file(whole_file(weights), tmp_path / "vgg.safetensors")
    for found in (Contrast.open(), Contrast.open(tmp_path / "vgg.safetensors")):
        assert not any(parameter.requires_grad for parameter in found.parameters())
        torch.testing.assert_close(found(*map(torch.Tensor.float, images())), contrast(*images()).float())


def test_a_named_file_must_be_there_and_be_vgg19(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no weights of VGG-19"):
        Contrast.open(tmp_path / "absent")
    state = whole_file(weights)
    del state["features.5.bias"]
    torch.save(state, tmp_path / "less.pth")
    torch.save(state | {"features.5.bias": torch.zeros(3)}, tmp_path / "other.pth")
    for name, reason in (("less", "features.5.bias"), ("other", "size mismatch")):
        with pytest.raises(CheckpointError, match=rf"{name}\.pth: not the weights of VGG-19 .*{reason}"):
            Contrast.open(tmp_path / f"{name}.pth")
