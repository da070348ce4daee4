import pytest
import torch

from slicescan.layers.drop_path import DropPath


def test_a_branch_is_dropped_or_scaled_for_whole_images_and_kept_in_the_mean():
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert abs(y.mean() - 1) < 0.05


def test_nothing_is_dropped_while_testing_or_at_rate_0():
    x = torch.rand(3, 2)
    assert DropPath(0.9).eval()(x) is x and DropPath(0.0)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_impossible_rate_is_named(rate):
    with pytest.raises(ValueError, match=f"rate must be from 0 to below 1, got {rate}"):
        DropPath(rate)


def test_the_dtype_stays():
    assert DropPath(0.5)(torch.ones(2, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16
