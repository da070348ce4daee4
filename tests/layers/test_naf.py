"""NAFNet's block, its gate, and means over windows, against statements of what they are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from slicescan.layers import LocalMean2d, NAFBlock, SimpleChannelAttention, SimpleGate
from tests.fingerprint import fill, picture, summary
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


@given(h=st.integers(1, 9), w=st.integers(1, 9), window=st.integers(1, 10), seed=st.integers(0, 99))
def test_a_position_has_the_mean_of_the_nearest_window_that_lies_inside(h, w, window, seed):
    x = noise(2, 3, h, w, seed=seed)
    height, width = min(window, h), min(window, w)
    got = LocalMean2d(window)(x).expand_as(x)
    for i in range(h):
        for j in range(w):
            top = min(max(i - (height - 1) // 2, 0), h - height)
            left = min(max(j - (width - 1) // 2, 0), w - width)
            want = x[:, :, top : top + height, left : left + width].mean((2, 3))
            assert relative(got[:, :, i, j], want) < 1e-12


def test_a_window_as_large_as_the_map_is_the_whole_map():
    x = noise(2, 3, 5, 4)
    for window in (None, 5, 99):
        assert torch.equal(LocalMean2d(window)(x), x.mean(2, keepdim=True).mean(3, keepdim=True))
    assert LocalMean2d(4)(x).shape == (2, 3, 5, 1)
    with pytest.raises(ValueError, match="window must be positive.*got 0"):
        LocalMean2d(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_windows_of_a_long_row_keep_the_precision_of_the_input(dtype):
    """Running sums of 65536 values of mean 100 leave the range of float16 and the precision of bfloat16."""
    x = (100 + noise(1, 1, 1, 2**16)).to(dtype)
    want = F.avg_pool1d(x.double()[0], 384, 1)
    got = LocalMean2d(384)(x)[0, :, 0, 191 : 191 + want.shape[-1]]
    assert relative(got, want) < 8 * torch.finfo(dtype).eps


def block(p: restated.Parameters, x: torch.Tensor, window: int | None = None) -> torch.Tensor:
    def conv(name: str, y: torch.Tensor) -> torch.Tensor:
        return restated.pointwise(p[f"{name}.weight"], y) + p[f"{name}.bias"][:, None, None]

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def gate(y: torch.Tensor) -> torch.Tensor:
        return y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :]

    y = gate(restated.depthwise(p["conv2.weight"], conv("conv1", norm("norm1", x))) + p["conv2.bias"][:, None, None])
    y = x + p["beta"] * conv("conv3", y * conv("sca.1", y.sum((2, 3), keepdim=True) / y[0, 0].numel()))
    return y + p["gamma"] * conv("conv5", gate(conv("conv4", norm("norm2", y))))


@pytest.mark.parametrize("arguments", [{}, {"expand": 1, "ffn_expand": 3.5}, {"window": 9}], ids=str)
def test_the_block_restates_its_definition(arguments):
    assert_restates(NAFBlock(4, **arguments), block, noise(2, 4, 3, 5))


def test_the_block_has_the_public_fingerprint():
    layer = NAFBlock(8).double()
    fill(layer)
    expected = [0.584616, 0.757951, 0.377748, 2.420619, 0.526499]
    assert summary(layer(picture(8, 6, 10, dtype=torch.float64))) == pytest.approx(expected, rel=3e-6)


def test_names_of_the_block_are_the_published_ones_in_their_order():
    layers = ("conv1", "conv2", "conv3", "sca.1", "conv4", "conv5", "norm1", "norm2")
    names = ["beta", "gamma", *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))]
    assert list(NAFBlock(4).state_dict()) == names


def test_means_over_windows_make_the_scale_differ_from_place_to_place():
    layer, x = restated.perturb(SimpleChannelAttention(4, window=3)), noise(1, 4, 6, 7)
    x[..., 3:] += 5
    scale = layer(x) / x
    assert relative(scale[..., -1], scale[..., 0]) > 0.1
    layer[0].window = None
    scale = layer(x) / x
    assert relative(scale[..., -1], scale[..., 0]) < 1e-12


def test_what_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="even number of channels, got"):
        SimpleGate()(noise(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"dim \* expand must be even.*got 9"):
        NAFBlock(9, expand=1)
