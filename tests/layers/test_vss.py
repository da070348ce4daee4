import pytest
import torch

from slicescan.layers import VSSBlock
from slicescan.layers.vss import ResidualGroup
from tests.fingerprint import fill, picture, summary
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (4, 1)], ids=str)
def test_a_block_restates_the_paper(light, size):
    assert_restates(VSSBlock(4, state=3, expand=1.5, light=light), restated.vss_block, noise(2, 4, *size))


@pytest.mark.parametrize(
    ("light", "expected"),
    [
        (False, [0.491708, 0.641425, 0.799581, 0.749457, 0.351614]),
        (True, [0.489700, 0.597335, 0.836201, 0.072937, -0.108347]),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)], ids=str)
def test_a_block_has_the_public_fingerprint(light, expected, dtype, tolerance):
    block = VSSBlock(32, state=4, expand=1.5, light=light).to(dtype)
    fill(block)
    tokens = block(picture(32, 6, 10, dtype=dtype)).permute(0, 2, 3, 1)
    assert summary(tokens) == pytest.approx(expected, rel=tolerance)


def test_only_the_scan_is_left_out_while_training():
    torch.manual_seed(0)
    block, x = restated.perturb(VSSBlock(4, drop_path=0.5)), noise(64, 4, 2, 3)
    halves = torch.stack([block(x) for _ in range(20)])
    kept = block.eval()
    with_scan = kept(x)
    kept.self_attention.out_proj.weight.data.zero_()
    without = kept(x)
    dropped = (halves - without).flatten(2).norm(dim=2) < 1e-9
    assert 0.4 < dropped.double().mean() < 0.6 and relative(with_scan, without) > 1e-2


@pytest.mark.parametrize("convs", ["1conv", "3conv"])
def test_a_group_is_its_input_plus_convolved_blocks(convs):
    group, x = restated.perturb(ResidualGroup(8, [VSSBlock(8), VSSBlock(8)], convs=convs)), noise(1, 8, 3, 5)
    first, second = group.residual_group.blocks
    y = second(first(x))
    conv = torch.nn.functional.conv2d
    if convs == "1conv":
        want = conv(y, group.conv.weight, group.conv.bias, padding=1)
    else:
        for i, padding in ((0, 1), (2, 0), (4, 1)):
            y = conv(y, group.conv[i].weight, group.conv[i].bias, padding=padding)
            y = torch.where(y > 0, y, 0.2 * y) if i < 4 else y
        want = y
    assert relative(group(x), x + want) < 1e-12


def test_another_number_of_convolutions_is_refused():
    with pytest.raises(ValueError, match="convs is '1conv' or '3conv', got '2conv'"):
        ResidualGroup(8, [VSSBlock(8)], convs="2conv")
