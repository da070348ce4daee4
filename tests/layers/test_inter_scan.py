import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slicescan.layers import InterScan
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative

few = settings(deadline=None, derandomize=True, max_examples=6)
side = st.integers(1, 6)


def gates(layer: InterScan, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the two halves of ``x`` are multiplied by, (b, h, w, d) each."""
    first, second = x.permute(0, 2, 3, 1).chunk(2, -1)
    a, b = layer.scan(first, second)
    return a / first, b / second


@few
@given(b=st.integers(1, 2), h=side, w=side)
def test_restates_the_paper(b, h, w):
    assert_restates(InterScan(4, state=3), restated.inter_scan, noise(b, 4, h, w))


@pytest.mark.parametrize("compression", [0.01, 0.3, 0.5, 0.75, 1.0])
def test_compression_restates_its_definition(compression):
    h, w = 5, 7
    strips = math.ceil(compression * w), math.ceil(compression * h)
    layer = InterScan(4, state=3, compression=compression)
    assert_restates(layer, lambda p, x: restated.inter_scan(p, x, strips), noise(2, 4, h, w))


@few
@given(w=st.integers(1, 40), data=st.data())
def test_strips_are_the_floor_bounded_intervals(w, data):
    from slicescan.layers.inter_scan import _strips_of

    s = data.draw(st.integers(1, w))
    want = torch.zeros(s, w, dtype=torch.bool)
    for i in range(s):
        want[i, i * w // s : (i + 1) * w // s] = True
    assert torch.equal(_strips_of(w, s, torch.device("cpu")), want)


@few
@given(h=side, w=side)
def test_a_gate_is_constant_along_its_slice(h, w):
    layer = restated.perturb(InterScan(4, state=3))
    rows, columns = gates(layer, noise(1, 4, h, w))
    assert relative(rows, rows[:, :, :1].expand_as(rows)) < 1e-12
    assert relative(columns, columns[:, :1].expand_as(columns)) < 1e-12
    assert (rows > 0).all() and (rows < 1).all()


@few
@given(h=side, w=side, seed=st.integers(0, 99))
def test_permuting_pixels_inside_the_slices_changes_no_gate(h, w, seed):
    layer = restated.perturb(InterScan(4, state=3))
    x = noise(1, 4, h, w)
    draw = torch.Generator().manual_seed(seed)
    shuffled = x.clone()
    for y in range(h):
        shuffled[:, :2, y] = x[:, :2, y][..., torch.randperm(w, generator=draw)]
    for i in range(w):
        shuffled[:, 2:, :, i] = x[:, 2:, :, i][..., torch.randperm(h, generator=draw)]
    for got, want in zip(gates(layer, shuffled), gates(layer, x), strict=True):
        assert relative(got, want) < 1e-12


def test_a_gate_knows_its_slice_and_those_before_it():
    layer = restated.perturb(InterScan(4, state=3))
    x = noise(1, 4, 5, 6)
    changed = x.clone()
    changed[:, :, 2, 3] += 1
    rows, columns = (
        (a - b).abs().sum(-1)[0] > 1e-12 for a, b in zip(gates(layer, changed), gates(layer, x), strict=True)
    )
    assert not rows[:2].any() and rows[2:].all()
    assert not columns[:, :3].any() and columns[:, 3:].all()


def test_full_compression_gives_every_pixel_its_own_gate():
    layer = restated.perturb(InterScan(4, state=3, compression=1.0))
    x = noise(1, 4, 5, 6)
    changed = x.clone()
    changed[:, :, 2, 3] += 1
    rows, columns = (
        (a - b).abs().sum(-1)[0] > 1e-12 for a, b in zip(gates(layer, changed), gates(layer, x), strict=True)
    )
    want = torch.zeros(5, 6, dtype=torch.bool)
    want[2:, 3] = True
    assert torch.equal(rows, want)
    want[:], want[2, 3:] = False, True
    assert torch.equal(columns, want)


def test_the_transposed_image_with_swapped_halves_gives_the_transposed_result():
    for compression in (None, 0.4):
        layer = restated.perturb(InterScan(4, state=3, compression=compression))
        first, second = noise(1, 3, 5, 2, seed=1), noise(1, 3, 5, 2, seed=2)
        a, b = layer.scan(first, second)
        b_transposed, a_transposed = layer.scan(second.transpose(1, 2), first.transpose(1, 2))
        assert relative(a_transposed.transpose(1, 2), a) < 1e-12
        assert relative(b_transposed.transpose(1, 2), b) < 1e-12


@pytest.mark.parametrize(("compression", "width", "strips"), [(0.07, 100, 7), (0.1, 30, 3), (0.5, 1, 1), (1e-9, 50, 1)])
def test_the_number_of_strips_is_not_a_victim_of_rounding(compression, width, strips):
    layer = restated.perturb(InterScan(2, state=1, compression=compression))
    rows, _ = gates(layer, noise(1, 2, 1, width))
    steps = rows[0, 0].diff(dim=0).abs().sum(-1) > 1e-9
    assert steps.sum() + 1 == strips


@pytest.mark.parametrize("compression", [0, -1, 1.5])
def test_a_compression_outside_its_range_is_refused(compression):
    with pytest.raises(ValueError, match=f"compression.*got {compression}"):
        InterScan(8, compression=compression)


@pytest.mark.parametrize("compression", [None, 0.4, 0.5])
def test_without_gradients_the_halves_are_written_into_one_map_with_equal_bits(compression):
    layer = restated.perturb(InterScan(4, compression=compression))
    x = noise(2, 4, 4, 6)
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y, layer(x))
