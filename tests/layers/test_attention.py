import pytest
import torch

from slicescan.layers import MDTA
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


def attend(p: restated.Parameters, x: torch.Tensor) -> torch.Tensor:
    """Head by head, channel by channel."""

    def conv(name: str, y: torch.Tensor, apply=restated.pointwise) -> torch.Tensor:
        y = apply(p[f"{name}.weight"], y)
        return y + p[f"{name}.bias"][:, None, None] if f"{name}.bias" in p else y

    q, k, v = conv("qkv_dwconv", conv("qkv", x), restated.depthwise).split(x.shape[1], 1)
    size = x.shape[1] // len(p["temperature"])
    out = []
    for i in range(x.shape[1]):
        head = i // size
        peers = range(head * size, (head + 1) * size)

        def cosine(j: int, i: int = i) -> torch.Tensor:
            length = (q[:, i].square().sum((1, 2)) * k[:, j].square().sum((1, 2))).sqrt()
            return (q[:, i] * k[:, j]).sum((1, 2)) / length

        scores = torch.stack([cosine(j) * p["temperature"][head, 0, 0] for j in peers]).exp()  # peers b
        shares = scores / scores.sum(0)
        out.append(sum(share[:, None, None] * v[:, j] for share, j in zip(shares, peers, strict=True)))
    return conv("project_out", torch.stack(out, 1))


@pytest.mark.parametrize("arguments", [{}, {"heads": 2}, {"heads": 4, "bias": True}], ids=str)
def test_channels_attend_to_those_of_their_head_by_the_cosine_of_their_maps(arguments):
    assert_restates(MDTA(8, **arguments), attend, noise(2, 8, 3, 5))


def test_names_are_the_published_ones_in_their_order():
    layers = ("qkv", "qkv_dwconv", "project_out")
    assert list(MDTA(4).state_dict()) == ["temperature", *(f"{layer}.weight" for layer in layers)]
    assert MDTA(4, heads=2).temperature.tolist() == [[[1.0]], [[1.0]]]


def test_maps_whose_length_leaves_float16_are_compared_nonetheless():
    layer, x = restated.perturb(MDTA(4)), 2000 * noise(1, 4, 48, 48)  # lengths of about 1e5
    assert relative(layer.half()(x.half()), layer.double()(x)) < 0.01


def test_a_map_of_zeros_is_like_none():
    assert MDTA(4)(torch.zeros(1, 4, 3, 3)).abs().max() == 0


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got 4 and 3"):
        MDTA(4, heads=3)
