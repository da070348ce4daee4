import pytest
import torch

from slicescan.layers import BiasFreeNorm2d, LayerNorm2d, with_body
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


def test_layer_norm_restates_its_definition():
    assert_restates(LayerNorm2d(6), restated.layer_norm, noise(2, 6, 3, 5))


def test_the_bias_free_norm_restates_its_definition():
    assert_restates(BiasFreeNorm2d(6), restated.bias_free_norm, noise(2, 6, 3, 5) + 2)


def test_only_the_bias_free_norm_keeps_the_mean():
    x = noise(1, 6, 3, 5)
    assert relative(LayerNorm2d(6).double()(x + 3), LayerNorm2d(6).double()(x)) < 1e-12
    assert BiasFreeNorm2d(6).double()(x + 3).mean() > 1


@pytest.mark.parametrize("norm", [LayerNorm2d, BiasFreeNorm2d])
def test_float16_values_whose_squares_overflow_are_normalised(norm):
    x = 1e3 * noise(1, 8, 4, 4)
    assert relative(norm(8).half()(x.half()), norm(8).double()(x)) < 2e-3


def test_eps_is_what_was_asked_for():
    x = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    x[:, 0] = 2e-3
    got = LayerNorm2d(2, eps=1e-6).double()(x)[0, 0]
    assert got.item() == pytest.approx(1e-3 / (1e-6 + 1e-6) ** 0.5)


def test_a_body_gives_the_published_keys():
    assert list(with_body(LayerNorm2d(4)).state_dict()) == ["body.weight", "body.bias"]
    assert list(with_body(BiasFreeNorm2d(4)).state_dict()) == ["body.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_a_map_in_half_precision_and_weights_in_float32(dtype):
    norm, x = restated.perturb(LayerNorm2d(6)), noise(2, 6, 3, 5) + 2
    probe, leaves = noise(2, 6, 3, 5, seed=1), list(norm.parameters())
    half = x.to(dtype).contiguous(memory_format=torch.channels_last)
    want = norm(half.double())
    exact = [want, *torch.autograd.grad((want * probe).sum(), leaves)]
    norm.float()
    with torch.autocast("cpu", dtype):
        y = norm(half)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    found = torch.autograd.grad((y * probe).sum(), list(norm.parameters()))
    for got, expected in zip([y, *found], exact, strict=True):
        assert relative(got, expected) < 2 * torch.finfo(dtype).eps
    assert all(gradient.dtype == torch.float32 for gradient in found)
    with torch.autocast("cpu", dtype):
        assert norm(x.float()).dtype == torch.float32


def test_compiled_inside_autocast_it_is_one_graph():
    torch.compiler.reset()
    norm, x = LayerNorm2d(6), noise(1, 6, 3, 5).bfloat16()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(x)
        assert y.dtype == torch.bfloat16 and relative(y, norm(x)) < 1e-2
