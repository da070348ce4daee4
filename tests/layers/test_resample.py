import pytest
import torch
import torch.nn.functional as F

from slicescan.layers import Downsample, Upsample
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
