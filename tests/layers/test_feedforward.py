import pytest
import torch.nn.functional as F

from slicescan.layers import GatedDconvFFN
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1)])
@pytest.mark.parametrize("expand", [1.0, 2.66])
def test_restates_the_paper(size, expand):
    assert_restates(GatedDconvFFN(4, expand=expand), restated.feed_forward, noise(2, 4, *size))


def test_the_first_half_is_activated_by_whatever_is_asked_for():
    layer = restated.perturb(GatedDconvFFN(4, activation=F.gelu))
    x = noise(1, 4, 3, 3)
    a, b = layer.dwconv(layer.project_in(x)).chunk(2, 1)
    assert relative(layer(x), layer.project_out(F.gelu(a) * b)) < 1e-12
    assert "gelu" in repr(layer)


def test_keys_are_the_published_ones():
    names = ["project_in", "dwconv", "project_out"]
    assert list(GatedDconvFFN(4).state_dict()) == [f"{name}.weight" for name in names]
    assert set(GatedDconvFFN(4, bias=True).state_dict()) == {
        f"{n}.{kind}" for n in names for kind in ("weight", "bias")
    }
