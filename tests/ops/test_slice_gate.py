"""Gates of rows and columns from their means: the kernels on an emulated machine beside plain operations."""

import copy
import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from slicescan.layers import InterScan, InterVSSM, Mamba
from slicescan.ops import dispatch, slice_gate
from slicescan.ops.backends.cuda import driver, nvrtc
from slicescan.ops.backends.cuda import slice_gate as kernels_of_slices
from slicescan.ops.slice_gate import _beside, gate_slices
from tests.layers.agreement import noise, relative
from tests.layers.restated import perturb
from tests.ops import cuda_emulator

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
SUMS = ["slice_gate_sums", "slice_gate_finish"]
FORWARD, BACKWARD = [*SUMS, "slice_gate_apply"], [*SUMS, "slice_gate_apply"]
CASES = {
    "float32": ((2, 5, 6, 16), FLOAT),
    "bfloat16": ((2, 3, 7, 16), BFLOAT),
    "float16": ((2, 7, 3, 48), HALF),
    "halves that fill no vector": ((2, 5, 4, 6), BFLOAT),
    "halves of four vectors and a half": ((1, 4, 5, 72), BFLOAT),
    "one pixel": ((1, 1, 1, 2), FLOAT),
    "one row": ((2, 1, 9, 8), FLOAT),
    "one column": ((2, 9, 1, 8), FLOAT),
    "sums in parts": ((2, 70, 3, 16), FLOAT),
    "more vectors than a block adds up": ((1, 3, 65, 520), BFLOAT),
    "far from zero": ((2, 40, 33, 8), BFLOAT, 30.0),
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The kernels on a processor, for all but float64; what they were started for."""
    return cuda_emulator.recording(monkeypatch, slice_gate)


@pytest.fixture
def plainly(monkeypatch):
    """Call without the kernels."""

    def call(run):
        with monkeypatch.context() as patch:
            patch.setattr(slice_gate, "runs_kernels", lambda _: False)
            return run()

    return call


def scan(weight):
    """Gates that know the slices before them, in the dtype of the means."""
    return lambda means: torch.sigmoid((means * weight).cumsum(1))


def results(x, weight, dtype=None):
    """The gated map, and the gradients of the map and of what its gates are found with."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, weight)]
    y = gate_slices(leaves[0], scan(leaves[1]))
    return [y.detach(), *torch.autograd.grad(y, leaves, noise(*x.shape, seed=2).to(x.dtype).to(y.dtype))]


def draw(shape, dtype=FLOAT, shift=0.0):
    return (noise(*shape) + shift).to(dtype), noise(shape[-1] // 2, seed=1).to(dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_values_and_gradients_are_those_of_plain_operations(case, kernels, plainly):
    given = draw(*case)
    exact, own = results(*given, DOUBLE), plainly(lambda: results(*given))
    assert not kernels
    found = results(*given)
    assert kernels == FORWARD + BACKWARD
    with torch.no_grad():
        assert torch.equal(found[0], gate_slices(given[0], scan(given[1])))
    for value, truth, plain in zip(found, exact, own, strict=True):
        assert (value.shape, value.dtype, value.stride()) == (plain.shape, plain.dtype, plain.stride())
        scale = truth.norm().clamp_min(1e-30)
        error, allowed = ((t.double() - truth).norm() / scale for t in (value, plain))
        assert error <= 2 * allowed + torch.finfo(value.dtype).eps


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_sums_are_exact_to_one_rounding(case):
    x, _ = draw(*case)
    grad, k = noise(*x.shape, seed=3).to(x.dtype), x.shape[-1] // 2
    products = x.double() * grad.double()
    for found, whole, take in [
        (kernels_of_slices.means(x), x.double(), torch.mean),
        (kernels_of_slices.gate_gradients(x, grad), products, torch.sum),
    ]:
        truth, terms = (_beside(take(t[..., :k], 2), take(t[..., k:], 1)) for t in (whole, whole.abs()))
        near = torch.finfo(x.dtype).eps * truth.abs() + 8 * torch.finfo(FLOAT).eps * terms
        assert ((found.double() - truth).abs() <= near).all()


def test_equal_inputs_give_equal_bits_in_whatever_order_threads_run(monkeypatch):
    given = draw((2, 70, 5, 48))
    first = results(*given)
    monkeypatch.setattr(driver, "launch", lambda *given: cuda_emulator.launch(*given, falling=True))
    assert all(map(torch.equal, first, results(*given)))


@pytest.mark.parametrize("place", [1, 2, 4])
def test_a_map_that_begins_anywhere_is_read_by_narrower_accesses(place):
    x, weight = draw((2, 5, 3, 16))
    moved = torch.cat([torch.zeros(place), x.flatten()])[place:].view(x.shape)
    for value, truth in zip(results(moved, weight), results(x, weight), strict=True):
        torch.testing.assert_close(value, truth)


def test_maps_of_another_order_are_left_to_plain_operations(kernels):
    x, weight = draw((2, 5, 6, 16))
    turned = x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    own = results(turned, weight)
    assert not kernels
    for value, truth in zip(results(x, weight), own, strict=True):
        torch.testing.assert_close(value, truth)


def test_gates_and_gradients_may_lie_anyhow():
    x, weight = draw((2, 5, 6, 16))
    found = []
    for lay in (lambda t: t, lambda t: t.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        y = gate_slices(leaves[0], lambda means, leaves=leaves, lay=lay: lay(scan(leaves[1])(means)))
        found.append([y, *torch.autograd.grad(y, leaves, lay(noise(*y.shape).float()))])
    assert all(map(torch.equal, *found))


def test_a_large_map_is_cut_into_enough_blocks_with_few_parts():
    _, grids, sides, wanted = kernels_of_slices._plan_sums((4, 256, 256, 144), BFLOAT, 16, False)
    assert grids[0] > 2000 and sides[0][5] == 1 and sides[1][5] <= 8
    assert sum(wanted) * 4 < 0.05 * 4 * 256 * 256 * 144 * 2


def test_without_gradients_the_result_may_take_the_place_of_the_map():
    x, weight = draw((2, 5, 6, 16))
    with torch.no_grad():
        y = gate_slices(x, scan(weight))
        assert y.data_ptr() != x.data_ptr()
        again = gate_slices(x, scan(weight), overwrite=True)
    assert again.data_ptr() == x.data_ptr() and torch.equal(again, y)
    x = draw((2, 5, 6, 16))[0].requires_grad_()
    kept = x.detach().clone()
    gate_slices(x, scan(weight), overwrite=True)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["map", "gates"])
def test_what_needs_no_gradient_gets_none(wanted, kernels):
    given = draw((2, 5, 6, 16))
    every = dict(zip(wanted, results(*given)[1:], strict=True))
    kernels.clear()
    leaves = [t.requires_grad_(need) for t, need in zip(given, wanted, strict=True)]
    gate_slices(leaves[0], scan(leaves[1])).backward(noise(2, 5, 6, 16, seed=2).float())
    assert [t.grad is not None for t in leaves] == list(wanted)
    assert torch.equal(next(t.grad for t in leaves if t.grad is not None), every[True])
    assert kernels == FORWARD + (BACKWARD if wanted[0] else SUMS)


def test_gates_that_know_no_map_leave_it_its_gradient(kernels):
    x, _ = draw((2, 5, 6, 16))
    y = gate_slices(x.requires_grad_(), lambda means: torch.full_like(means, 0.5))
    y.sum().backward()
    assert (x.grad == 0.5).all()
    assert kernels == [*FORWARD, "slice_gate_apply"]


@pytest.mark.parametrize(
    "find", [lambda m: m.double().sigmoid(), lambda m: m[:, :1].sigmoid()], ids=["wider", "one for all"]
)
def test_gates_of_another_kind_are_multiplied_plainly(find, plainly):
    x, _ = draw((2, 5, 6, 16))

    def run():
        leaf = x.clone().requires_grad_()
        y = gate_slices(leaf, find)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]

    for found, wanted in zip(run(), plainly(run), strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted)


def test_second_derivatives_are_those_of_plain_operations(plainly):
    given = draw((2, 3, 4, 6))

    def run(create_first=True):
        leaves = [t.clone().requires_grad_() for t in given]
        y = gate_slices(leaves[0], scan(leaves[1]))
        if not create_first:  # what a pass for gradients leaves behind is not taken for another's
            torch.autograd.grad(y.sum(), leaves, retain_graph=True)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(grad.sin().sum() for grad in first), leaves, retain_graph=True)
        return [*first, *second, *torch.autograd.grad(y.square().sum(), leaves)]

    wanted = plainly(run)
    for found in (run(), run(create_first=False)):
        for value, truth in zip(found, wanted, strict=True):
            assert relative(value, truth) < 1e-5


def test_the_graph_of_a_result_is_freed_with_it():
    x, weight = (t.requires_grad_() for t in draw((2, 3, 4, 6)))
    inner = scan(weight)
    gone = []

    def find(means):
        gone.append(weakref.ref(means))
        return inner(means)

    gc.disable()
    try:
        gate_slices(x, find).sum().backward()
        assert [ref() for ref in gone] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("dtype", "width"), [(BFLOAT, 16), (FLOAT, 16), (HALF, 72), (BFLOAT, 6)])
def test_the_kernels_compile_without_a_gpu(architecture, dtype, width, monkeypatch):
    seen = set()
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: seen.add((kernel.file, kernel.macros)))
    results(*draw((2, 3, 4, width), dtype))
    assert len(seen) == 2  # forwards and backwards
    for file, macros in seen:
        assert nvrtc.compile_source(driver.source(file), driver.options(macros), architecture).startswith(b"\x7fELF")


def layers(dtype=FLOAT, **settings):
    """A layer in float64, and itself in another dtype."""
    exact = perturb(InterScan(12, state=3, **settings))
    return exact, copy.deepcopy(exact).to(dtype)


def outcome(layer, x, call=lambda layer, x: layer(x)):
    """The output, and the gradients of the input and all parameters."""
    x = x.detach().requires_grad_()
    y = call(layer, x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], noise(*y.shape, seed=1).to(y.dtype))]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (5, 7)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=["channels last", "planes"])
def test_a_layer_agrees_with_itself(size, order, kernels):
    exact, layer = layers(bias=True)
    x = noise(2, 12, *size).contiguous(memory_format=order)
    wanted = outcome(exact, x)
    assert not kernels
    for value, truth in zip(outcome(layer, x.float()), wanted, strict=True):
        assert relative(value, truth) < 1e-5
    assert kernels == FORWARD + BACKWARD
    with torch.no_grad():
        assert relative(layer(x.float()), wanted[0]) < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_in_half_precision_rounds_as_its_plain_operations(autocast, kernels, plainly):
    exact, layer = layers(FLOAT if autocast else BFLOAT)
    x = noise(2, 12, 9, 8).to(BFLOAT)

    def call(layer, x):
        with torch.autocast("cpu", BFLOAT, enabled=autocast):
            return layer(x)

    given = x.float() if autocast else x
    found, own = outcome(layer, given, call), plainly(lambda: outcome(layer, given, call))
    assert kernels == FORWARD + BACKWARD
    for value, plain, truth in zip(found, own, outcome(exact, x.double()), strict=True):
        assert (value.dtype, value.stride()) == (plain.dtype, plain.stride())
        assert relative(value, truth) <= 2 * relative(plain, truth) + torch.finfo(BFLOAT).eps


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_whose_inside_is_kept_by_nobody(reentrant):
    _, layer = layers()
    x = noise(2, 12, 5, 4).float().requires_grad_()
    found = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        layer.zero_grad()
        call(x).square().sum().backward()
        found.append([x.grad, *[p.grad for p in layer.parameters()]])
        x.grad = None
    assert all(relative(*pair) < 1e-6 for pair in zip(*found, strict=True))


def test_a_layer_of_frozen_parameters_passes_gradients_on(plainly):
    _, layer = layers()
    layer.requires_grad_(False)
    x = noise(2, 12, 5, 4).float()

    def run():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(layer(leaf).square().sum(), leaf)[0]

    assert relative(run(), plainly(run)) < 1e-6


def test_what_others_may_have_seen_is_not_written_over():
    _, layer = layers()
    x, seen = noise(2, 12, 5, 4).float(), []
    with torch.no_grad():
        y = layer(x)
        layer.conv_input.register_forward_hook(lambda _, __, out: seen.extend([out, out.clone()]))
        assert torch.equal(layer(x), y)
    assert torch.equal(*seen)


def test_hooks_see_the_scans_of_rows_and_of_columns(kernels):
    _, layer = layers()
    x, seen = noise(2, 12, 5, 4).float(), []
    y = layer(x)
    kernels.clear()
    layer.mamba.in_proj.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    assert relative(layer(x), y) < 1e-6
    assert seen == [(2, 5, 1, 6), (2, 4, 1, 6)] and not kernels


@pytest.mark.parametrize("make", [lambda: InterScan(12, compression=0.4), lambda: Doubled(12)], ids=["strips", "own"])
def test_other_scans_stay_as_they_are(make, kernels):
    layer = perturb(make()).float()
    layer(noise(2, 12, 5, 4).float())
    assert not kernels


def test_a_scan_that_knows_what_is_behind_is_not_given_more(kernels):
    class Mirrored(Mamba):
        def scan(self, x, **axis):
            return super().scan(x, **axis) + super().scan(x, **axis, reverse=True)

    layer = perturb(InterScan(12)).float()
    layer.mamba.__class__ = Mirrored
    layer(noise(2, 12, 5, 4).float())
    assert not kernels


class Doubled(InterScan):
    def scan(self, first, second):
        return first * 2, second


def test_who_counts_or_transforms_sees_the_plain_operations(kernels, monkeypatch):
    monkeypatch.setattr(slice_gate, "runs_kernels", lambda _: not slice_gate.looked_at())
    layer, x = perturb(InterVSSM(8)).float(), noise(1, 8, 3, 4).float()
    with FlopCounterMode(display=False):
        layer(x)
    torch.func.grad(lambda x: layer(x).sum())(x)
    assert not kernels
    y = layer(x.requires_grad_())
    with FlopCounterMode(display=False):
        y.sum().backward()
    assert kernels == FORWARD


def test_without_a_device_nothing_is_asked_of_the_kernels():
    assert not dispatch.has_map_kernels(torch.device("cpu"), FLOAT)
    assert dispatch.load("cuda.slice_gate") is kernels_of_slices
