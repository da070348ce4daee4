import pytest

from slicescan.layers import SS2D
from tests.fingerprint import fill, picture, summary
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative

PUBLISHED_KEYS = {
    "x_proj_weight": (4, 1 + 8, 12),
    "dt_projs_weight": (4, 12, 1),
    "dt_projs_bias": (4, 12),
    "A_logs": (48, 4),
    "Ds": (48,),
    "in_proj.weight": (24, 8),
    "conv2d.weight": (12, 1, 3, 3),
    "conv2d.bias": (12,),
    "out_norm.weight": (12,),
    "out_norm.bias": (12,),
    "out_proj.weight": (8, 12),
}


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 4), (5, 1)])
def test_restates_the_paper(size):
    assert_restates(SS2D(4, state=3, expand=1.5), restated.cross_scan, noise(2, 4, *size))


def test_the_public_fingerprint_is_reproduced():
    layer = SS2D(8, state=4, expand=1.5)
    fill(layer)
    got = summary(layer(picture(8, 6, 10)).permute(0, 2, 3, 1))
    assert got == pytest.approx([-0.078647, 0.376821, 0.477046, 0.099421, 0.673473], rel=1e-5, abs=1e-6)


def test_keys_and_shapes_are_the_published_ones():
    state = SS2D(8, state=4, expand=1.5).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == PUBLISHED_KEYS


@pytest.mark.parametrize(("dim", "count"), [(48, 27_360), (96, 78_912), (192, 254_592)])
def test_the_number_of_parameters_is_the_published_one(dim, count):
    assert sum(p.numel() for p in SS2D(dim, expand=1.5).parameters()) == count


def test_with_equal_paths_the_transposed_image_gives_the_transposed_result():
    layer = restated.perturb(SS2D(4, state=3))
    layer.conv2d.weight.data = layer.conv2d.weight.data + layer.conv2d.weight.data.transpose(2, 3)
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
        stacked = getattr(layer, name).data
        stacked.copy_(stacked[: len(stacked) // 4].repeat(4, *[1] * (stacked.dim() - 1)))
    x = noise(1, 4, 3, 5)
    assert relative(layer(x.transpose(2, 3)).transpose(2, 3), layer(x)) < 1e-12
    assert relative(layer(x.flip(2, 3)), layer(x).flip(2, 3)) > 1e-3  # the convolution is not symmetric
