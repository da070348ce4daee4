import pytest
import torch

from slicescan.layers import BidirectionalMamba, Mamba
from tests.fingerprint import fill, picture, summary
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "options", [{}, {"shared": True}, {"conv": 1}, {"layer_scale": 0.1, "conv": 2, "dt_rank": 2}], ids=str
)
def test_restates_the_paper(length, options):
    assert_restates(BidirectionalMamba(4, state=3, **options), restated.bidirectional_mamba, noise(2, length, 4))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 4e-5)], ids=str)
def test_the_public_fingerprint_is_reproduced(dtype, tolerance):
    layer = BidirectionalMamba(8, state=4).to(dtype)
    fill(layer)
    tokens = picture(8, 1, 12, dtype=dtype)[:, :, 0].transpose(1, 2)
    expected = [-0.266138, 0.537517, -1.104285, -0.013523, 0.290872]
    assert summary(layer(tokens)) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("dim", "count"), [(192, 281_856), (384, 1_042_944), (768, 4_002_816)])
def test_the_number_of_parameters_is_the_published_one(dim, count):
    with torch.device("meta"):
        layer = BidirectionalMamba(dim)
    assert sum(p.numel() for p in layer.parameters()) == count


def test_keys_and_shapes_are_the_published_ones():
    own = {name: value.shape for name, value in Mamba(24).state_dict().items()}
    shapes = {name: value.shape for name, value in BidirectionalMamba(24, layer_scale=1).state_dict().items()}
    back = {"A_log": "A_b_log", "D": "D_b", "x_proj.weight": "x_proj_b.weight"}
    back |= {f"{name}.{x}": f"{name}_b.{x}" for name in ("conv1d", "dt_proj") for x in ("weight", "bias")}
    assert shapes == own | {back[name]: own[name] for name in back} | {"gamma": (24,)}
    assert BidirectionalMamba(24, shared=True).state_dict().keys() == own.keys() | {"A_b_log"}


@torch.no_grad()
def test_the_same_parameters_both_ways_make_the_reversed_sequence_give_the_reversed_result():
    layer = restated.perturb(BidirectionalMamba(4, shared=True))
    layer.A_b_log.copy_(layer.A_log)
    x = noise(2, 7, 4)
    assert relative(layer(x.flip(1)), layer(x).flip(1)) < 1e-12


@torch.no_grad()
def test_rows_and_columns_of_a_map_are_mixed_like_sequences():
    layer, x = restated.perturb(BidirectionalMamba(4, state=3)), noise(2, 3, 5, 4)
    want = torch.stack([layer(x[:, y]) for y in range(3)], 1)
    assert relative(layer.scan(x, axis="w"), want) < 1e-12
    assert relative(layer.scan(x.transpose(1, 2), axis="h").transpose(1, 2), want) < 1e-12


@torch.no_grad()
def test_the_last_projection_starts_smaller_in_a_deep_network_and_the_sum_may_stay_whole():
    torch.manual_seed(0)
    shallow = BidirectionalMamba(4)
    torch.manual_seed(0)
    deep = BidirectionalMamba(4, depth=16)
    assert torch.equal(deep.out_proj.weight * 4, shallow.out_proj.weight)
    assert not shallow.dt_proj_b.bias.any() and shallow.dt_proj.bias.all()
    whole = BidirectionalMamba(4, divide=False)
    whole.load_state_dict(shallow.state_dict())
    x = noise(1, 5, 4).float()
    assert relative(whole(x), 2 * shallow(x)) < 1e-6


def test_a_sequence_cannot_be_resumed():
    with pytest.raises(NotImplementedError, match="BidirectionalMamba cannot resume a sequence"):
        BidirectionalMamba(4).resume(torch.ones(1, 2, 3, 4), None, axis="h")
