import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from slicescan.engine.tiles import starts, tiled, window

SIZES = st.integers(1, 60)


@st.composite
def cuts(draw):
    """A size, a tile and an overlap in pixels, and what tiles are divisible by."""
    multiple = draw(st.sampled_from([1, 2, 4, 8]))
    return draw(SIZES), draw(st.integers(1, 8)) * multiple, draw(st.integers(0, 40)), multiple


@given(cuts())
def test_tiles_cover_everything_and_share_what_was_asked(cut):
    size, tile, overlap, multiple = cut
    overlap = min(overlap, tile - multiple)
    found = starts(size, tile, overlap, multiple)
    ends = [min(first + tile, size) for first in found]
    assert found[0] == 0 and ends[-1] == size and all(first % multiple == 0 for first in found)
    assert all(end - first >= overlap for first, end in zip(found[1:], ends, strict=False))
    assert found == sorted(set(found)) and all(end > first for first, end in zip(found, ends, strict=True))


@given(cuts())
def test_there_are_no_more_tiles_than_needed(cut):
    size, tile, overlap, _ = cut
    overlap = min(overlap, tile - 1)
    most = 1 if tile >= size else math.ceil((size - overlap) / (tile - overlap))
    assert len(starts(size, tile, overlap)) == most


@given(st.integers(2, 40), st.data())
def test_the_ramps_of_neighbours_add_up_to_one(tile, data):
    ramp = data.draw(st.integers(0, tile // 2))
    left, right = window(0, tile, 2 * tile - ramp, ramp), window(tile - ramp, tile, 2 * tile - ramp, ramp)
    total = torch.zeros(2 * tile - ramp)
    total[:tile] += left
    total[tile - ramp :] += right
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=4 * torch.finfo(torch.float32).eps)


def test_a_ramp_is_a_raised_cosine():
    ramp = 5
    expected = torch.tensor([(1 - math.cos(math.pi * (i + 0.5) / ramp)) / 2 for i in range(ramp)])
    assert torch.allclose(window(3, 12, 15, ramp)[:ramp], expected, atol=1e-6)
    assert (window(3, 12, 15, ramp)[ramp:] == 1).all() and (window(0, 12, 12, ramp) == 1).all()


@given(cuts(), SIZES, st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_tiling_the_identity_is_the_identity(cut, width, dtype, seed):
    height, tile, overlap, multiple = cut
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    found = tiled(lambda piece: piece, image, tile, overlap, multiple=multiple)
    assert found.dtype == dtype
    assert (found - image).abs().max() <= 8 * torch.finfo(dtype).eps


@given(cuts(), SIZES, st.sampled_from([2, 3]))
def test_tiling_a_network_that_enlarges_is_that_network(cut, width, scale):
    height, tile, overlap, multiple = cut
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))

    def enlarge(piece):
        return piece.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    found = tiled(enlarge, image, tile, overlap, multiple=multiple)
    assert (found - enlarge(image)).abs().max() <= 8 * torch.finfo(torch.float32).eps


@given(cuts(), SIZES)
def test_a_network_that_halves_its_input_sees_every_tile_in_step(cut, width):
    height, tile, overlap, multiple = cut
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(width))

    def blocks(piece):
        """Mean over blocks of ``multiple``, padded right and below: exact in tiles only where blocks are not cut."""
        h, w = piece.shape[2:]
        padded = torch.nn.functional.pad(piece, (0, -w % multiple, 0, -h % multiple), mode="replicate")
        mean = torch.nn.functional.avg_pool2d(padded, multiple)
        return mean.repeat_interleave(multiple, 2).repeat_interleave(multiple, 3)[:, :, :h, :w]

    found = tiled(blocks, image, tile, overlap, multiple=multiple)
    assert (found - blocks(image)).abs().max() <= 16 * torch.finfo(torch.float32).eps


def test_seams_of_tiles_that_disagree_are_smooth():
    calls = []

    def disagree(piece):
        calls.append(piece)
        return torch.full_like(piece, float(len(calls) % 2))

    found = tiled(disagree, torch.zeros(1, 1, 1, 400), 64, 32)[0, 0, 0]
    assert found.min() == 0 and found.max() == 1
    assert found.diff().abs().max() <= math.pi / 2 / 32 * 1.01  # the steepest slope of the ramp


def test_progress_counts_every_tile():
    seen = []
    tiled(lambda piece: piece, torch.zeros(1, 1, 20, 30), 10, 0, progress=lambda *now: seen.append(now))
    assert seen == [(i, 6) for i in range(1, 7)]
