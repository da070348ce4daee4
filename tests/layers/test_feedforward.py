import pytest
import torch
import torch.nn.functional as F

from slicescan.layers import GatedDconvFFN, InterVSSM, IntraVSSM, NAFBlock
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1)])
@pytest.mark.parametrize("expand", [1.0, 2.66])
def test_restates_the_paper(size, expand):
    assert_restates(GatedDconvFFN(4, expand=expand), restated.feed_forward, noise(2, 4, *size))


@pytest.mark.parametrize("activation", [F.gelu, F.silu, torch.tanh])
def test_the_first_half_is_activated_by_whatever_is_asked_for(activation):
    layer = restated.perturb(GatedDconvFFN(4, activation=activation))
    x = noise(1, 4, 3, 3)
    a, b = F.conv2d(layer.project_in(x), layer.dwconv.weight, padding=1, groups=8).chunk(2, 1)
    assert relative(layer(x), layer.project_out(activation(a) * b)) < 1e-12
    assert activation.__name__ in repr(layer)


@pytest.mark.parametrize("kind", [GatedDconvFFN, NAFBlock, IntraVSSM, InterVSSM])
def test_hooks_of_every_convolution_run(kind):
    layer = kind(4)
    convs = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Conv2d)}
    called = set()
    for name, module in convs.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    layer(noise(1, 4, 3, 5).float())
    assert called == set(convs)


def test_keys_are_the_published_ones():
    names = ["project_in", "dwconv", "project_out"]
    assert list(GatedDconvFFN(4).state_dict()) == [f"{name}.weight" for name in names]
    assert set(GatedDconvFFN(4, bias=True).state_dict()) == {
        f"{n}.{kind}" for n in names for kind in ("weight", "bias")
    }
