"""Layers strip by strip against the same layers on the whole map, in float64, weights far from their initial values."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from slicescan.layers import (
    AFF,
    KLFF,
    SS2D,
    Downsample,
    FeedForwardBlock,
    InterScan,
    InterVSSM,
    IntraVSSM,
    Mamba,
    ScanBlock,
    SliceScan2D,
    Upsample,
)
from slicescan.layers.strips import Strip, Strips
from tests.layers.agreement import noise, relative
from tests.layers.restated import perturb

DIM = 8
ROUNDINGS = 64 * torch.finfo(torch.float64).eps
HEIGHTS = (3, 4, 8, 13, 22)
"""Less than a strip of 4 rows, one, two, and strips that are cut short: at a row, and at two."""


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_strips_cover_every_row_once_and_look_no_farther_than_the_image():
    for height in range(1, 30):
        for rows in (1, 4, 7, 8, 100):
            strips = list(Strips(rows).each(height, reach=2))
            assert [row for strip in strips for row in range(strip.first, strip.last)] == list(range(height))
            assert all(strip.first % 4 == 0 for strip in strips)
            for strip in strips:
                assert strip.above == min(2, strip.first) and strip.below == min(2, height - strip.last)


def test_a_strip_is_the_same_part_of_maps_of_other_sizes():
    strip = Strip(16, 4, 8, above=4, below=2)
    for height in (8, 16, 32, 48):
        row = torch.arange(height, dtype=torch.float64)[None, None, :, None]
        part, scale = strip.of(row), height / 16
        assert part.flatten().tolist() == list(range(0, int(10 * scale)))
        assert strip.inner(part).flatten().tolist() == list(range(int(4 * scale), int(8 * scale)))


@pytest.mark.parametrize("height", HEIGHTS)
def test_overwritten_rows_are_seen_as_they_were(height):
    """A convolution in place: without the rows kept aside, every strip but the first would see new ones."""
    conv = nn.Conv2d(DIM, DIM, 5, padding=2).double()
    x = noise(2, DIM, height, 5)
    want = conv(x)
    got = Strips(4).overwrite(x, 2, lambda strip, old: strip.inner(conv(old)))
    assert got is x and relative(got, want) <= ROUNDINGS


@pytest.mark.parametrize("height", (2, 8, 10, 24))
def test_resampling_in_strips_equals_resampling_the_whole(height):
    down, up = perturb(Downsample(DIM)), perturb(Upsample(DIM))
    x = noise(2, DIM, height, 6)
    assert relative(Strips(4).run(down, x, height // 2, reach=1), down(x)) <= ROUNDINGS
    skip, reduce = noise(2, DIM, 2 * height, 12, seed=1), perturb(nn.Conv2d(DIM + DIM // 2, DIM, 1))
    want = reduce(torch.cat([up(x), skip], 1))
    assert relative(Strips(4).merge(up, x, skip, reduce), want) <= ROUNDINGS


BLOCKS = {
    "feed-forward": lambda: FeedForwardBlock(DIM),
    "intra, inter": lambda: ScanBlock(DIM),
    "inter, intra": lambda: ScanBlock(DIM, intra=InterVSSM, inter=IntraVSSM),
    "bare scanners": lambda: ScanBlock(DIM, intra=SliceScan2D, inter=InterScan),
    "own weights for columns": lambda: ScanBlock(DIM, intra=lambda dim: IntraVSSM(dim, shared=False)),
    "biases": lambda: ScanBlock(
        DIM, intra=lambda dim: IntraVSSM(dim, bias=True), inter=lambda dim: InterVSSM(dim, bias=True, expand=1.5)
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("rows", (4, 8))
def test_blocks_in_strips_equal_the_blocks(name, rows):
    blocks = nn.Sequential(perturb(BLOCKS[name](), seed=1), perturb(BLOCKS[name](), seed=2))
    for height in HEIGHTS:
        x = noise(2, DIM, height, 7)
        want = blocks(x)
        assert relative(Strips(rows).refine(blocks, x), want) <= ROUNDINGS


@pytest.mark.parametrize("gate", ["sample", "tensor", "pixel", "aff"])
@pytest.mark.parametrize("index", (0, 1))
@pytest.mark.parametrize("keep", (False, True))
def test_fusion_in_strips_equals_fusion_of_the_whole(gate, index, keep):
    dims = (DIM, 2 * DIM, 4 * DIM)
    others = [dim for dim in dims if dim != dims[index]]
    layer = perturb(AFF(dims, dims[index]) if gate == "aff" else KLFF(dims[index], others, gate=gate))
    for height in (4, 8, 12, 20):
        levels = [noise(2, dim, height >> i, 8 >> i, seed=i) for i, dim in enumerate(dims)]
        before = [level.clone() for level in levels]
        beside = levels[:index] + levels[index + 1 :]
        want = layer(levels) if gate == "aff" else layer(levels[index], beside)
        assert relative(Strips(4).fuse(layer, levels, index, keep=keep), want) <= ROUNDINGS
        kept = [torch.equal(a, b) for a, b in zip(levels, before, strict=True)]
        assert kept == [keep or i != index for i in range(3)]


@pytest.mark.parametrize("axis", ("h", "w"))
@pytest.mark.parametrize("cuts", [(9,), (4, 5), (1, 1, 7), (2, 2, 2, 2, 1)], ids=str)
def test_a_resumed_mamba_equals_one_scan(axis, cuts):
    """Also where a part is shorter than the convolution."""
    mamba, along = perturb(Mamba(DIM)), 1 if axis == "h" else 2
    x = noise(2, 9, 9, DIM)
    past, parts = None, []
    for part in x.split(cuts, along):
        y, past = mamba.resume(part, past, axis=axis)
        parts.append(y)
    assert relative(torch.cat(parts, along), mamba.scan(x, axis=axis)) <= ROUNDINGS


def test_a_mamba_that_forgets_either_part_of_its_past_is_caught():
    mamba, x = perturb(Mamba(DIM)), noise(1, 9, 4, DIM)
    first, past = mamba.resume(x[:, :5], None, axis="h")
    for forgetful in (past._replace(inputs=past.inputs * 0), past._replace(state=past.state * 0)):
        second, _ = mamba.resume(x[:, 5:], forgetful, axis="h")
        assert relative(torch.cat([first, second], 1), mamba.scan(x, axis="h")) > 1e6 * ROUNDINGS


def test_many_slices_are_resumed_a_few_at_a_time(monkeypatch):
    """On a CPU inner maps are worked on in pieces, and so must be what was carried."""
    mamba, x = perturb(Mamba(DIM)), noise(2, 8, 11, DIM)
    want = mamba.scan(x, axis="h")
    monkeypatch.setattr("slicescan.layers.mamba.PIECE", 2 * 4 * 2 * DIM * 3)  # 3 of the 11 columns
    first, past = mamba.resume(x[:, :4], None, axis="h")
    second, _ = mamba.resume(x[:, 4:], past, axis="h")
    assert relative(torch.cat([first, second], 1), want) <= ROUNDINGS


class Outside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda dim: SS2D(dim), "SS2D depends on the whole image and cannot be streamed"),
        (lambda dim: Outside(), "Outside depends on the whole image"),
        (lambda dim: IntraVSSM(dim, bidirectional=True), "bidirectional SliceScan2D cannot be streamed"),
        (lambda dim: InterVSSM(dim, compression=0.5), "InterScan with compression cannot be streamed"),
    ],
    ids=["ss2d", "unknown", "bidirectional", "compressed"],
)
def test_a_layer_that_cannot_be_streamed_is_refused(layer, message):
    block = ScanBlock(DIM, intra=layer)
    with pytest.raises(ValueError, match=message):
        Strips(4).refine(nn.Sequential(block), torch.rand(1, DIM, 6, 6))
