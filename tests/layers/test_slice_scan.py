import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slicescan.layers import SliceScan2D
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative

few = settings(deadline=None, derandomize=True, max_examples=6)
side = st.integers(1, 6)


@few
@given(b=st.integers(1, 2), h=side, w=side)
def test_restates_the_paper(b, h, w):
    assert_restates(SliceScan2D(4, state=3), restated.slice_scan, noise(b, 4, h, w))


@pytest.mark.parametrize("shared", [True, False])
def test_variants_restate_their_definition(shared):
    assert_restates(SliceScan2D(4, state=3, shared=shared), restated.slice_scan, noise(2, 4, 3, 5))
    both = SliceScan2D(4, state=3, bidirectional=True, shared=shared)
    assert_restates(both, restated.slice_scan_both_ways, noise(2, 4, 3, 5))


def test_a_shared_scanner_has_the_published_parameters_and_no_more():
    children = [name for name, _ in SliceScan2D(8).named_children()]
    assert children == ["conv_input", "fuse_out", "mamba"]
    assert [name for name, _ in SliceScan2D(8, bidirectional=True).named_children()] == children


@few
@given(h=side, w=side, bidirectional=st.booleans())
def test_the_row_half_never_mixes_rows_nor_the_column_half_columns(h, w, bidirectional):
    layer = restated.perturb(SliceScan2D(4, state=3, bidirectional=bidirectional))
    first, second = noise(1, h, w, 2, seed=1), noise(1, h, w, 2, seed=2)
    before = layer.scan(first, second)
    row, column = (h - 1) // 2, (w - 1) // 2
    first[:, row] += noise(1, w, 2, seed=3)
    second[:, :, column] += noise(1, h, 2, seed=4)
    after = layer.scan(first, second)
    rows_changed, columns_changed = ((a - b).abs().sum(-1)[0] > 0 for a, b in zip(after, before, strict=True))
    assert rows_changed[row].all() and rows_changed.sum() == w
    assert columns_changed[:, column].all() and columns_changed.sum() == h


@few
@given(h=side, w=side)
def test_without_the_backward_scan_no_pixel_knows_what_follows(h, w):
    layer = restated.perturb(SliceScan2D(4, state=3))
    x = noise(1, 4, h, w)
    y, i = h // 2, w // 2
    changed = x.clone()
    changed[:, :, y, i] += 1
    difference = (layer(changed) - layer(x)).abs().sum(1)[0] > 0
    want = torch.zeros(h, w, dtype=torch.bool)
    want[y, i:] = want[y:, i] = True
    assert torch.equal(difference, want)


@few
@given(h=side, w=side, bidirectional=st.booleans())
def test_columns_are_rows_of_the_transposed_image(h, w, bidirectional):
    layer = restated.perturb(SliceScan2D(4, state=3, bidirectional=bidirectional))
    first, second = noise(1, h, w, 2, seed=1), noise(1, h, w, 2, seed=2)
    a, b = layer.scan(first, second)
    b_transposed, a_transposed = layer.scan(second.transpose(1, 2), first.transpose(1, 2))
    assert relative(a_transposed.transpose(1, 2), a) < 1e-12
    assert relative(b_transposed.transpose(1, 2), b) < 1e-12


def test_a_bidirectional_shared_scan_of_the_mirrored_image_is_mirrored():
    layer = restated.perturb(SliceScan2D(4, state=3, bidirectional=True))
    x = noise(2, 4, 3, 5)
    assert relative(layer(x.flip(2, 3)).flip(2, 3), layer(x)) < 1e-12


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="dim must be even.*got 7"):
        SliceScan2D(7)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_both_directions_scan_the_same_channels_last_map_and_no_permuted_copy(order, monkeypatch):
    from slicescan.layers import mamba

    calls = []

    def recorded(u, delta, A, B, C, D, z, *rest, axis, **options):
        calls.append((axis, [t.shape[:3] for t in (u, delta, B, C, z)], [t.stride() for t in (u, delta, B, C, z)]))
        return slice_scan(u, delta, A, B, C, D, z, *rest, axis=axis, **options)

    slice_scan = mamba.slice_scan
    monkeypatch.setattr(mamba, "slice_scan", recorded)
    SliceScan2D(8)(torch.rand(2, 8, 3, 5).contiguous(memory_format=order))
    assert [axis for axis, _, _ in calls] == ["w", "h"]
    for _, shapes, strides in calls:
        assert shapes == [(2, 3, 5)] * 5
        for image, row, pixel, channel in strides:
            assert (channel, row, image) == (1, 5 * pixel, 15 * pixel)
