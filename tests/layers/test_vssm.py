import pytest
import torch

from slicescan.layers import InterVSSM, IntraVSSM, halves
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise

PUBLISHED_KEYS = [
    "proj_in.weight",
    "dwconv.weight",
    "proj_out.weight",
    "conv_input.weight",
    "fuse_out.weight",
    "mamba.A_log",
    "mamba.D",
    "mamba.in_proj.weight",
    "mamba.conv1d.weight",
    "mamba.conv1d.bias",
    "mamba.x_proj.weight",
    "mamba.dt_proj.weight",
    "mamba.dt_proj.bias",
    "mamba.out_proj.weight",
]


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 4)])
@pytest.mark.parametrize("expand", [1.0, 2.0])
def test_intra_restates_the_paper(size, expand):
    layer = IntraVSSM(4, state=3, expand=expand)
    assert_restates(layer, lambda p, x: restated.shell(p, x, restated.slice_scan), noise(2, 4, *size))


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 4)])
@pytest.mark.parametrize("expand", [1.0, 2.0])
def test_inter_restates_the_paper(size, expand):
    layer = InterVSSM(4, state=3, expand=expand)
    assert_restates(layer, lambda p, x: restated.shell(p, x, restated.inter_scan), noise(2, 4, *size))


@pytest.mark.parametrize("layer", [IntraVSSM, InterVSSM])
def test_keys_are_the_published_ones(layer):
    assert sorted(layer(8).state_dict()) == sorted(PUBLISHED_KEYS)
    order = [name for name, _ in layer(8).named_children()]
    assert order == ["proj_in", "dwconv", "proj_out", "conv_input", "fuse_out", "mamba"]


@pytest.mark.parametrize("layer", [IntraVSSM, InterVSSM])
def test_bias_reaches_every_convolution_but_no_projection_of_mamba(layer):
    added = set(layer(8, bias=True).state_dict()) - set(layer(8).state_dict())
    assert added == {f"{name}.bias" for name in ("proj_in", "dwconv", "proj_out", "conv_input", "fuse_out")}


@pytest.mark.parametrize("layer", [IntraVSSM, InterVSSM])
@pytest.mark.parametrize(("dim", "count"), [(48, 18_672), (96, 67_488), (192, 255_936)])
def test_the_number_of_parameters_is_the_published_one(layer, dim, count):
    assert sum(p.numel() for p in layer(dim).parameters()) == count


@pytest.mark.parametrize("bias", [False, True])
def test_a_half_read_in_place_is_projected_alike(bias, monkeypatch):
    layer = restated.perturb(IntraVSSM(8, bias=bias)).double()
    x = noise(2, 8, 3, 5).requires_grad_()
    leaves = [x, *layer.parameters()]
    plain = layer(x)
    seed = torch.randn_like(plain)
    expected = [plain, *torch.autograd.grad(plain, leaves, seed)]
    monkeypatch.setattr(halves, "_in_place", lambda *_: True)
    y = layer(x)
    for found, value in zip([y, *torch.autograd.grad(y, leaves, seed)], expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
