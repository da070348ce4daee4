from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slicescan.layers import Mamba
from slicescan.layers.mamba import HALVED, KEPT, KEPT_WIDE, NARROW, PIECE, PIECE_CUDA, _pieces
from tests.layers import restated
from tests.layers.agreement import assert_restates, noise, relative

PUBLISHED_KEYS = {
    "A_log": (48, 16),
    "D": (48,),
    "in_proj.weight": (96, 24),
    "conv1d.weight": (48, 1, 4),
    "conv1d.bias": (48,),
    "x_proj.weight": (2 + 32, 48),
    "dt_proj.weight": (48, 2),
    "dt_proj.bias": (48,),
    "out_proj.weight": (24, 48),
}


@settings(deadline=None, derandomize=True, max_examples=8)
@given(b=st.integers(1, 3), length=st.integers(1, 9))
def test_restates_the_paper(b, length):
    assert_restates(Mamba(4, state=3), restated.mamba, noise(b, length, 4))


def test_odd_settings_restate_the_paper():
    assert_restates(Mamba(6, state=5, conv=2, expand=1.5, dt_rank=2), restated.mamba, noise(2, 7, 6))


def test_keys_shapes_and_order_are_those_of_mamba_ssm():
    assert {name: tuple(value.shape) for name, value in Mamba(24).state_dict().items()} == PUBLISHED_KEYS
    assert list(Mamba(24).state_dict()) == list(PUBLISHED_KEYS)


def test_scanning_rows_of_a_map_is_mixing_each_row():
    mamba = restated.perturb(Mamba(4, state=3))
    x = noise(2, 3, 5, 4)
    want = torch.stack([mamba(x[:, y]) for y in range(3)], 1)
    assert relative(mamba.scan(x, axis="w"), want) < 1e-12


def test_scanning_columns_is_scanning_rows_of_the_transposed_map():
    mamba = restated.perturb(Mamba(4, state=3))
    x = noise(2, 3, 5, 4)
    for reverse in (False, True):
        rows = mamba.scan(x.transpose(1, 2), axis="w", reverse=reverse).transpose(1, 2)
        assert relative(mamba.scan(x, axis="h", reverse=reverse), rows) < 1e-12


@pytest.mark.parametrize("axis", ["h", "w"])
@pytest.mark.parametrize("reverse", [False, True])
def test_working_in_pieces_changes_nothing(axis, reverse, monkeypatch):
    mamba = restated.perturb(Mamba(4, state=3))
    x = noise(2, 5, 7, 4)
    want = mamba.scan(x, axis=axis, reverse=reverse)
    for piece in (1, 200, 300):
        monkeypatch.setattr("slicescan.layers.mamba.PIECE", piece)
        with torch.no_grad():
            assert relative(mamba.scan(x, axis=axis, reverse=reverse), want) < 1e-12


def test_a_reverse_scan_knows_only_what_follows():
    mamba = restated.perturb(Mamba(4, state=3))
    x = noise(1, 1, 6, 4)
    changed = x.clone()
    changed[:, :, 2] += 1
    difference = (mamba.scan(changed, axis="w", reverse=True) - mamba.scan(x, axis="w", reverse=True)).abs().sum(-1)
    assert (difference[0, 0, :3] > 0).all()
    assert (difference[0, 0, 3:] == 0).all()


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    step = torch.nn.functional.softplus(Mamba(64).dt_proj.bias)
    assert 1e-3 * 0.999 <= step.min() < 3e-3
    assert 0.03 < step.max() <= 0.1 * 1.001


def test_decay_rates_stay_float32_in_a_half_precision_module():
    from slicescan.layers.mamba import decay_rates

    assert decay_rates(Mamba(4).bfloat16().A_log).dtype == torch.float32
    assert decay_rates(Mamba(4).double().A_log).dtype == torch.float64


@pytest.mark.parametrize("axis", ["h", "w"])
def test_what_gpus_do_otherwise_changes_nothing(axis, monkeypatch):
    layer = restated.perturb(Mamba(36, state=5).double())
    x = torch.randn(2, 3, 7, 36, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    seed = torch.randn(2, 3, 7, 36, dtype=torch.float64)
    plain = layer.scan(x, axis=axis)
    expected = [plain, *torch.autograd.grad(plain, leaves, seed)]
    monkeypatch.setattr(Mamba, "_differentiates", lambda *_: True)
    monkeypatch.setattr(Mamba, "_aligns", lambda *_: True)
    y = layer.scan(x, axis=axis)
    for found, value in zip([y, *torch.autograd.grad(y, leaves, seed)], expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


def test_a_projection_that_is_hooked_or_replaced_is_called(monkeypatch):
    u = SimpleNamespace(is_cuda=True, shape=(1, 8), numel=lambda: 10**7)
    monkeypatch.setattr("slicescan.layers.mamba.can_mix_by_hand", lambda *_: True)

    def changed(name, change):
        layer = Mamba(8)
        assert layer._aligns(u) and layer._differentiates(u)
        change(layer, name)
        assert layer._aligns(u) == (name != "x_proj")
        assert not layer._differentiates(u)

    for name in ("in_proj", "x_proj", "out_proj"):
        changed(name, lambda layer, name: getattr(layer, name).register_forward_hook(lambda *_: None))
        changed(name, lambda layer, name: setattr(layer, name, nn.Sequential(getattr(layer, name))))
    changed("x_proj", lambda layer, name: setattr(layer, name, nn.Linear(16, 33)))


def test_maps_are_kept_where_they_are_asked_for_or_small():
    layer = Mamba(8)

    def keeps(pixels, dtype):
        return layer._keeps(torch.empty(1, 1, pixels, 8, dtype=dtype))

    assert keeps(KEPT - 1, torch.bfloat16) and not keeps(KEPT, torch.bfloat16)
    assert keeps(KEPT_WIDE - 1, torch.float32) and not keeps(KEPT_WIDE, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not keeps(KEPT, torch.float32)
    layer.recompute = False
    assert keeps(KEPT_WIDE, torch.float32)


def test_nothing_is_differentiated_where_nothing_records_gradients():
    with torch.no_grad():
        assert not Mamba(8)._differentiates(SimpleNamespace(is_cuda=True, shape=(1, 8), numel=lambda: 10**7))


@pytest.mark.parametrize(
    ("kind", "elements", "channels", "pieces"),
    [
        ("cpu", 0, 8, 1), ("cpu", PIECE, 8, 1), ("cpu", PIECE + 1, 8, 2), ("mps", 2**40, 8, 1),
        ("cuda", HALVED, NARROW, 1), ("cuda", HALVED + 1, NARROW, 2), ("cuda", HALVED + 1, NARROW + 1, 1),
        ("cuda", 2 * PIECE_CUDA, 99, 2), ("cuda", 2 * PIECE_CUDA + 1, 99, 3), ("cuda", 2 * PIECE_CUDA + 1, 8, 3),
    ],
)  # fmt: skip
def test_large_maps_are_cut_into_pieces_of_like_size(kind, elements, channels, pieces):
    assert _pieces(kind, elements, channels) == pieces


def test_a_part_of_a_sequence_keeps_what_the_next_needs(monkeypatch):
    layer = restated.perturb(Mamba(4, state=3))
    x = noise(1, 3, 5, 4)
    monkeypatch.setattr(Mamba, "_differentiates", lambda *_: True)
    first, past = layer.resume(x[:, :2], None, axis="h")
    joined = torch.cat([first, layer.resume(x[:, 2:], past, axis="h")[0]], 1)
    assert relative(joined, layer.scan(x, axis="h")) < 1e-12
