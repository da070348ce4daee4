import pytest
import torch

from slicescan.layers import CAB, ChannelAttention
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise


def test_attention_restates_the_paper():
    assert_restates(ChannelAttention(6, squeeze=2), restated.channel_attention, noise(2, 6, 3, 5))


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (6, 2)], ids=str)
def test_the_block_restates_the_paper(light, size):
    assert_restates(CAB(6, light=light, squeeze=2), restated.cab, noise(2, 6, *size))


def attention(prefix: str, dim: int) -> dict[str, tuple[int, ...]]:
    shapes = {"1.weight": (dim // 30, dim, 1, 1), "1.bias": (dim // 30,)}
    shapes |= {"3.weight": (dim, dim // 30, 1, 1), "3.bias": (dim,)}
    return {f"{prefix}.attention.{name}": shape for name, shape in shapes.items()}


def test_keys_shapes_and_order_are_the_published_ones():
    full = {"cab.0.weight": (20, 60, 3, 3), "cab.0.bias": (20,), "cab.2.weight": (60, 20, 3, 3), "cab.2.bias": (60,)}
    light = {"cab.0.weight": (30, 60, 1, 1), "cab.0.bias": (30,), "cab.1.weight": (30, 1, 3, 3), "cab.1.bias": (30,)}
    light |= {"cab.3.weight": (60, 30, 1, 1), "cab.3.bias": (60,), "cab.4.weight": (60, 1, 3, 3), "cab.4.bias": (60,)}
    for layer, want in (
        (CAB(60), full | attention("cab.3", 60)),
        (CAB(60, light=True), light | attention("cab.5", 60)),
    ):
        found = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
        assert list(found.items()) == list(want.items())


def test_the_gate_is_one_number_for_each_image_and_channel():
    layer, x = restated.perturb(ChannelAttention(6, squeeze=2)), noise(2, 6, 3, 5)
    gates = layer(x) / x
    assert torch.allclose(gates, gates.mean((2, 3), keepdim=True).expand_as(gates), atol=1e-12)
    assert gates.min() > 0 and gates.max() < 1
