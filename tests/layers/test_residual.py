"""Sums of residual branches: in place where the map is nobody else's, and nowhere else."""

import pytest
import torch
from torch import nn

from slicescan.layers import BiasFreeNorm2d, FeedForwardBlock, GatedDconvFFN, LayerNorm2d, ScanBlock
from slicescan.layers.block import one_by_one
from slicescan.layers.norm import with_body
from slicescan.layers.residual import Residual
from slicescan.ops import pointwise_conv
from tests.layers import restated
from tests.layers.agreement import noise, relative


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Half precision is taken for that of a GPU; counts the sums in place."""
    added = []

    def add(total, x, weight):
        added.append(total.data_ptr())
        plain(total, x, weight)

    plain = pointwise_conv.add_pointwise_conv
    monkeypatch.setattr(pointwise_conv, "_halves_precision", lambda x: True)
    for layer in ("feedforward", "vssm"):
        monkeypatch.setattr(f"slicescan.layers.{layer}.add_pointwise_conv", add)
    return added


def blocks(kind=torch.bfloat16, **options):
    return restated.perturb(nn.Sequential(FeedForwardBlock(8, **options), ScanBlock(8, **options))).to(kind)


def image(dtype=torch.bfloat16):
    return noise(2, 8, 3, 5).to(dtype).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_all_layers_but_the_first_add_in_place_and_leave_the_input_alone(as_on_a_gpu):
    layers, x = blocks(), image()
    given = x.clone()
    y = one_by_one(layers, x)
    assert len(as_on_a_gpu) == 5 and set(as_on_a_gpu) == {y.data_ptr()}
    assert torch.equal(x, given)
    exact = one_by_one(layers.double(), given.double())
    assert relative(y, exact) < 2 * torch.finfo(torch.bfloat16).eps


@torch.no_grad()
def test_a_map_that_a_hook_has_seen_is_not_changed(as_on_a_gpu):
    layers, seen = blocks(), []
    for norm in (layers[1].norm1_ffn, layers[1].norm2_ssm.body):
        norm.register_forward_pre_hook(lambda module, given: seen.append((given[0], given[0].clone())))
    layers[0].register_forward_hook(lambda module, given, made: seen.append((made, made.clone())))
    one_by_one(layers, image())
    assert len(seen) == 3 and all(torch.equal(now, then) for now, then in seen)
    assert as_on_a_gpu


@torch.no_grad()
def test_layers_that_a_hook_looks_at_are_called(as_on_a_gpu):
    layers, seen = blocks(), []
    for layer in (layers[0].ffn2, layers[1].intra.proj_out, layers[1].ffn1, layers[1].inter, layers[1].ffn2):
        layer.register_forward_hook(lambda *_: seen.append(1))
    one_by_one(layers, image())
    assert len(seen) == 5 and not as_on_a_gpu


@pytest.mark.parametrize("change", ["gradients", "float32", "bias", "another norm"])
def test_nothing_is_added_in_place_where_it_would_be_seen_or_wrong(change, as_on_a_gpu, monkeypatch):
    kind = torch.float32 if change == "float32" else torch.bfloat16
    options = {"ffn": lambda dim: GatedDconvFFN(dim, bias=True)} if change == "bias" else {}
    if change == "another norm":
        options = {"norm": nn.BatchNorm2d}
    layers = blocks(kind, **options)
    with torch.set_grad_enabled(change == "gradients"):
        one_by_one(layers, image(kind))
    assert len(as_on_a_gpu) == (2 if change == "bias" else 0)  # both scanners


@torch.no_grad()
def test_a_norm_without_bias_leaves_the_sum_to_the_layers(as_on_a_gpu):
    one_by_one(blocks(norm=BiasFreeNorm2d), image())
    assert len(as_on_a_gpu) == 5


def test_a_list_is_emptied_and_a_map_is_not():
    layers, x = blocks(torch.float32), image(torch.float32)
    given = [x]
    assert torch.equal(one_by_one(layers, given), one_by_one(layers, x)) and not given
    given = [x]
    assert torch.equal(one_by_one(nn.Sequential(), given), x) and not given


def test_a_total_lets_go_of_its_terms():
    residual = Residual(image()).refined([(with_body(LayerNorm2d(8).bfloat16()), nn.Tanh())])
    residual.total()
    assert not residual._terms
