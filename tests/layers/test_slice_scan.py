from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slicescan.layers import Mamba, SliceScan2D
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


@pytest.fixture
def joining(monkeypatch):
    """The last two projections are one product, as on a GPU in half precision."""
    monkeypatch.setattr(SliceScan2D, "_joins", lambda self, x: self.fuse_out.bias is None and not self.bidirectional)
    monkeypatch.setattr(SliceScan2D, "_scan_together", lambda *_: pytest.fail("the scans were projected by themselves"))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("piece", [1, 2**20])
def test_the_last_two_projections_may_be_one_product(shared, recorded, piece, joining, monkeypatch):
    monkeypatch.setattr("slicescan.layers.mamba.PIECE", piece)
    monkeypatch.setattr(Mamba, "_differentiates", lambda self, x: True)
    layer = SliceScan2D(4, state=3, shared=shared)
    if recorded:
        assert_restates(layer, restated.slice_scan, noise(2, 4, 3, 5))
        return
    restated.perturb(layer)
    x = noise(2, 4, 3, 5)
    with torch.no_grad():
        assert relative(layer(x), restated.slice_scan(dict(layer.named_parameters()), x)) < 1e-12


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("piece", [1, 2**20])
def test_both_halves_may_be_written_where_they_belong(shared, piece, monkeypatch):
    monkeypatch.setattr("slicescan.layers.mamba.PIECE", piece)
    monkeypatch.setattr(SliceScan2D, "_writes", lambda *_: True)
    monkeypatch.setattr(SliceScan2D, "scan", lambda *_: pytest.fail("the halves were made by themselves"))
    layer = restated.perturb(SliceScan2D(4, state=3, shared=shared, bias=True))
    x = noise(2, 4, 3, 5)
    layer.fuse_out.bias.data.zero_(), layer.conv_input.bias.data.zero_()
    with torch.no_grad():
        assert relative(layer(x), restated.slice_scan(dict(layer.named_parameters()), x)) < 1e-12


@pytest.mark.parametrize("recorded", [True, False])
def test_one_product_in_bfloat16_is_as_near_as_two(recorded, monkeypatch):
    layer = restated.perturb(SliceScan2D(32))
    x = noise(2, 32, 9, 13)
    exact, layer = layer(x).detach(), layer.float()
    errors = []
    for joined in (True, False):
        monkeypatch.setattr(SliceScan2D, "_joins", lambda *_, joined=joined: joined)
        monkeypatch.setattr(Mamba, "_differentiates", lambda self, x: recorded)
        with torch.set_grad_enabled(recorded), torch.autocast("cpu", torch.bfloat16):
            y = layer(x.float())
        assert y.dtype == torch.bfloat16
        errors.append(relative(y, exact))
    assert errors[0] <= 1.1 * errors[1]


def test_projections_that_are_hooked_or_kept_apart_are_called(monkeypatch):
    monkeypatch.setattr(SliceScan2D, "_joins", lambda self, x: True)
    layer, seen = SliceScan2D(4, state=3), []
    assert layer.mamba.projects_apart(noise(1, 2, 2, 2)) is False  # gradients are recorded, and the maps are small
    layer.mamba.out_proj.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        layer(torch.rand(1, 4, 2, 3))
    assert seen == [1, 1]


@pytest.mark.parametrize("options", [{"bias": True}, {"bidirectional": True}])
def test_only_plain_projections_in_half_precision_on_a_gpu_are_joined(options):
    assert not SliceScan2D(4)._joins(torch.rand(1, 2, 2, 2))
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert SliceScan2D(4)._joins(on_gpu) and not SliceScan2D(4, **options)._joins(on_gpu)


def test_a_scan_of_ones_own_is_called(monkeypatch):
    class Swapped(SliceScan2D):
        def scan(self, first, second):
            return super().scan(second, first)

    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert not Swapped(4)._joins(on_gpu) and SliceScan2D(4)._joins(on_gpu)
    monkeypatch.setattr(Mamba, "projects_apart", lambda *_: True)
    assert not Swapped(4)._writes(on_gpu, Swapped(4).mamba) and SliceScan2D(4)._writes(on_gpu, SliceScan2D(4).mamba)
