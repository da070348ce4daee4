import pytest
import torch
import torch.nn.functional as F

from slicescan.layers import Downsample, ShuffleDownsample, ShuffleUpsample, Upsample
from tests.layers.agreement import noise, relative


def test_halving_even_sizes_takes_means_of_two_by_two_pixels():
    layer, x = Downsample(4).double(), noise(2, 4, 6, 8)
    means = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    assert relative(layer(x), F.conv2d(means, layer.body[1].weight, padding=1)) < 1e-12


def test_doubling_weighs_the_nearer_pixel_by_three_quarters():
    layer, x = Upsample(4).double(), noise(2, 4, 3, 5)

    def doubled(x, axis):
        n = x.shape[axis]
        before = x.index_select(axis, torch.arange(n).sub(1).clamp(min=0))
        after = x.index_select(axis, torch.arange(n).add(1).clamp(max=n - 1))
        return torch.stack([(3 * x + before) / 4, (3 * x + after) / 4], axis + 1).flatten(axis, axis + 1)

    assert relative(layer(x), F.conv2d(doubled(doubled(x, 2), 3), layer.body[1].weight, padding=1)) < 1e-12


@pytest.mark.parametrize(("size", "half"), [((1, 1), (1, 1)), ((1, 7), (1, 4)), ((5, 2), (3, 1))])
def test_odd_sizes_are_rounded_up_and_none_vanishes(size, half):
    assert Downsample(4)(torch.rand(1, 4, *size)).shape == (1, 8, *half)
    assert Upsample(4)(torch.rand(1, 4, *size)).shape == (1, 2, 2 * size[0], 2 * size[1])


def test_keys_and_widths_are_the_published_ones():
    assert {k: tuple(v.shape) for k, v in Downsample(4).state_dict().items()} == {"body.1.weight": (8, 4, 3, 3)}
    assert {k: tuple(v.shape) for k, v in Upsample(4, 3).state_dict().items()} == {"body.1.weight": (3, 4, 3, 3)}


def test_shuffling_moves_squares_of_pixels_into_neighbouring_channels_and_back():
    down, up, x = ShuffleDownsample(4).double(), ShuffleUpsample(4).double(), noise(2, 4, 6, 8)
    narrow = F.conv2d(x, down.body[0].weight, padding=1)
    squares = torch.stack([narrow[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2)
    assert torch.equal(down(x), squares)
    wide, found = F.conv2d(x, up.body[0].weight, padding=1), up(x)
    for i in (0, 1):
        for j in (0, 1):
            assert torch.equal(found[:, :, i::2, j::2], wide[:, 2 * i + j :: 4])


def test_an_odd_row_and_column_count_twice():
    layer, x = ShuffleDownsample(4).double(), noise(1, 4, 3, 5)
    even = x[:, :, [0, 1, 2, 2]][..., [0, 1, 2, 3, 4, 4]]
    assert torch.equal(layer(x), layer(even))


def test_shuffles_have_the_published_names_and_widths():
    assert {k: tuple(v.shape) for k, v in ShuffleDownsample(4).state_dict().items()} == {"body.0.weight": (2, 4, 3, 3)}
    assert {k: tuple(v.shape) for k, v in ShuffleUpsample(4).state_dict().items()} == {"body.0.weight": (8, 4, 3, 3)}
    with pytest.raises(ValueError, match="out_dim.*multiple of 4, got 6"):
        ShuffleDownsample(3)
