import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from slicescan.layers import BiasFreeNorm2d, FeedForwardBlock, InterVSSM, IntraVSSM, ScanBlock
from slicescan.layers.block import one_by_one
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise


def feed_forward_block(p, x):
    for i in ("1", "2"):
        normed = restated.layer_norm(restated.inside(p, f"norm{i}_ffn.body"), x)
        x = x + restated.feed_forward(restated.inside(p, f"ffn{i}"), normed)
    return x


def scan_block(p, x):
    for i, name, scanner in (("1", "intra", restated.slice_scan), ("2", "inter", restated.inter_scan)):
        normed = restated.layer_norm(restated.inside(p, f"norm{i}_ssm.body"), x)
        x = x + restated.shell(restated.inside(p, name), normed, scanner)
        normed = restated.layer_norm(restated.inside(p, f"norm{i}_ffn.body"), x)
        x = x + restated.feed_forward(restated.inside(p, f"ffn{i}"), normed)
    return x


def test_the_encoder_block_restates_the_paper():
    assert_restates(FeedForwardBlock(4), feed_forward_block, noise(2, 4, 3, 5))


def test_the_decoder_block_restates_the_paper():
    block = ScanBlock(4, intra=lambda dim: IntraVSSM(dim, state=3), inter=lambda dim: InterVSSM(dim, state=3))
    assert_restates(block, scan_block, noise(2, 4, 3, 5))


def test_keys_come_in_the_published_order():
    tops = list(dict.fromkeys(key.split(".")[0] for key in ScanBlock(8).state_dict()))
    assert tops == ["norm1_ssm", "norm2_ssm", "intra", "inter", "norm1_ffn", "norm2_ffn", "ffn1", "ffn2"]
    assert len(ScanBlock(8).state_dict()) == 42
    assert len(FeedForwardBlock(8).state_dict()) == 10
    assert "norm1_ffn.body.weight" in FeedForwardBlock(8, norm=BiasFreeNorm2d).state_dict()


def test_weights_are_drawn_in_the_published_order():
    torch.manual_seed(3)
    block = ScanBlock(8)
    torch.manual_seed(3)
    for name, layer in (("intra", IntraVSSM(8)), ("inter", InterVSSM(8))):
        for key, value in layer.state_dict().items():
            assert torch.equal(block.state_dict()[f"{name}.{key}"], value)


def test_blocks_in_a_row_join_sums_and_norms_without_changing_a_bit():
    blocks = restated.perturb(nn.Sequential(FeedForwardBlock(4), FeedForwardBlock(4), ScanBlock(4), nn.Identity()))
    x, seen = noise(2, 4, 3, 5), []
    assert torch.equal(one_by_one(blocks, x), blocks(x)) and torch.equal(one_by_one(blocks[:3], x), blocks[:3](x))
    blocks[1].register_forward_hook(lambda module, given, made: seen.append(made))
    assert torch.equal(one_by_one(blocks, x), blocks(x)) and torch.equal(seen[0], seen[1])
    assert one_by_one(nn.Sequential(), x) is x


def test_any_module_of_the_width_fits_a_slot():
    block = ScanBlock(8, intra=nn.Identity, inter=lambda dim: nn.Conv2d(dim, dim, 1), norm=nn.BatchNorm2d)
    assert block(torch.rand(2, 8, 3, 5)).shape == (2, 8, 3, 5)


class Copies(TorchDispatchMode):
    """Counts the operations that do nothing but move values in memory."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "contiguous")
        return func(*args, **(kwargs or {}))


def test_blocks_copy_nothing_but_the_half_that_a_scanner_takes():
    x = noise(2, 8, 4, 6).float().contiguous(memory_format=torch.channels_last)
    for block, copies in ((FeedForwardBlock(8), 0), (ScanBlock(8), 2)):
        with torch.no_grad(), Copies() as counted:
            y = block(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert counted.count == copies, type(block).__name__
