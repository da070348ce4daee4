from functools import partial

import pytest
import torch

from slicescan import profile
from slicescan.layers import SS2D, cross_scan, hooks
from slicescan.layers.mamba import log_decay
from slicescan.ops.recompute import gated_projection
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


VARIANTS = [
    {"paths": "unidi"},
    {"paths": "bidi", "gate": "linear"},
    {"paths": "cascade2d", "gate": "none"},
    *({"out_norm": out_norm} for out_norm in ("none", "dwconv3", "cnorm", "softmax", "sigmoid")),
    {"out_act": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_restates_its_description(variant):
    assert_restates(SS2D(4, state=3, expand=1.5, **variant), partial(restated.cross_scan, **variant), noise(2, 4, 3, 5))


def test_odd_settings_restate_the_paper():
    layer = SS2D(5, state=2, expand=1.3, dt_rank=3, conv_bias=False, bias=True)
    assert_restates(layer, restated.cross_scan, noise(1, 5, 4, 3))


FINGERPRINTS = [
    ({"state": 4, "expand": 1.5}, True, [-0.078647, 0.376821, 0.477046, 0.099421, 0.673473]),
    (
        {"state": 1, "gate": "none", "conv_bias": False},
        False,
        [-1.533211, 1.798791, 3.150919, -2.987926, 1.571666],
    ),
]


@pytest.mark.parametrize(("options", "channels_at_the_end", "expected"), FINGERPRINTS, ids=["MambaIR", "VMamba"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)], ids=str)
def test_the_public_fingerprint_is_reproduced(options, channels_at_the_end, expected, dtype, tolerance):
    layer = SS2D(8, **options).to(dtype)
    fill(layer)
    y = layer(picture(8, 6, 10, dtype=dtype))
    assert summary(y.permute(0, 2, 3, 1) if channels_at_the_end else y) == pytest.approx(expected, rel=tolerance)


def test_projections_may_be_stored_as_convolutions():
    layer, other = restated.perturb(SS2D(4)), SS2D(4).double()
    state = layer.state_dict()
    for name in ("in_proj.weight", "out_proj.weight"):
        state[name] = state[name][:, :, None, None]
    other.load_state_dict(state)
    assert torch.equal(other(noise(1, 4, 2, 3)), layer(noise(1, 4, 2, 3)))


@pytest.mark.parametrize("paths", ["cross2d", "unidi", "bidi", "cascade2d"])
@torch.no_grad()
def test_scanning_in_bands_changes_nothing(paths, monkeypatch):
    layer, x = restated.perturb(SS2D(4, state=3, paths=paths)), noise(2, 4, 5, 7)
    want = layer(x)
    for piece in (1, 200, 300):
        monkeypatch.setattr("slicescan.layers.cross_scan.PIECE", piece)
        assert relative(layer(x), want) < 1e-12


def test_without_gradients_three_maps_are_enough_beside_a_backend(monkeypatch):
    """Maps as wide as the scans, beside the image and its copy with the channels at the end."""
    layer, inner_map, images = SS2D(16, state=2, expand=3), 48 * 64 * 64 * 4, 2 * 16 * 64 * 64 * 4
    whole = profile(layer, (16, 64, 64)).activation_bytes - images
    monkeypatch.setattr("slicescan.layers.cross_scan.PIECE", 48 * 64 * 8)
    bands = profile(layer, (16, 64, 64)).activation_bytes - images
    assert 3.0 * inner_map < whole < 3.2 * inner_map  # scanned map, sum and output of a path
    assert 2.9 * inner_map < bands < 3.1 * inner_map  # normalised sum, gate before and after its SiLU


def test_the_backward_pass_keeps_no_output_of_a_path():
    layer, x = SS2D(8, state=1, expand=2), torch.rand(1, 8, 9, 11)
    kept: dict[int, int] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        layer(x)
    maps = sum(size == 16 * 9 * 11 * 4 for size in kept.values())
    assert maps == 3 + 5  # around the first convolution and SiLU, and from the norm to the projection


def test_decay_rates_and_steps_start_as_asked():
    torch.manual_seed(0)
    usual, normal, uniform = (SS2D(64, init=init) for init in ("v0", "v1", "v2"))
    assert torch.equal(usual.A_logs, log_decay(512, 16)) and not uniform.A_logs.any()
    assert abs(normal.A_logs.mean()) < 0.05 and abs(normal.A_logs.std() - 1) < 0.05
    for steps in (normal.dt_projs_weight, normal.dt_projs_bias):
        assert abs(steps.std() - 0.1) < 0.02 and steps.min() < 0
    for steps in (uniform.dt_projs_weight, uniform.dt_projs_bias):
        assert 0 <= steps.min() and 0.09 < steps.max() < 0.1
    steps = torch.nn.functional.softplus(usual.dt_projs_bias)
    assert 9e-4 < steps.min() and steps.max() < 0.11
    assert all(bool((layer.Ds == 1).all()) for layer in (usual, normal, uniform))


@pytest.mark.parametrize("name", ["paths", "gate", "out_norm", "init"])
def test_an_unknown_choice_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is one of '.*', got 'v05_noz'"):
        SS2D(4, **{name: "v05_noz"})


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


@pytest.mark.parametrize("bias", [False, True])
def test_the_gated_map_may_be_made_anew_for_the_gradients(bias, monkeypatch):
    layer = restated.perturb(SS2D(6, state=3, bias=bias))
    x = noise(2, 6, 3, 5).requires_grad_()

    def results():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], noise(2, 6, 3, 5, seed=1))]

    kept = results()
    monkeypatch.setattr(hooks, "RECOMPUTING", ("cpu",))
    monkeypatch.setattr(hooks, "KEPT", 0)
    calls = []
    monkeypatch.setattr(cross_scan, "gated_projection", lambda *given: calls.append(1) or gated_projection(*given))
    for mine, theirs in zip(results(), kept, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert calls
    layer.recompute = False
    assert all(map(torch.equal, results(), kept)) and len(calls) == 1
