"""Layers whose gradients compute their inside anew, beside the same layers that keep it."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from slicescan.layers import GatedDconvFFN, InterVSSM, IntraVSSM, ScanBlock, hooks
from slicescan.ops import dispatch, recompute, silu_gate
from slicescan.ops.depthwise_conv import conv_halves
from tests.layers.agreement import noise, relative
from tests.layers.restated import perturb
from tests.ops import cuda_emulator

BFLOAT, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
LAYERS = {
    "GatedDconvFFN": GatedDconvFFN,
    "wider, with GELU": partial(GatedDconvFFN, expand=2.66, activation=F.gelu),
    "IntraVSSM": partial(IntraVSSM, state=3),
    "InterVSSM": partial(InterVSSM, state=3, expand=2.0),
}
ORDERS = {
    "planes": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other column": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "half of a map": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
}
every_layer = pytest.mark.parametrize("kind", LAYERS.values(), ids=list(LAYERS))


@pytest.fixture(autouse=True)
def _also_on_a_cpu(monkeypatch):
    monkeypatch.setattr(hooks, "RECOMPUTING", ("cpu",))
    monkeypatch.setattr(hooks, "KEPT", 0)


@pytest.fixture
def kernels(monkeypatch):
    """The kernels on a processor, for all but float64; what they were started for."""
    monkeypatch.setattr(dispatch, "has_fast_gate", lambda device, dtype: dtype != DOUBLE)
    return cuda_emulator.recording(monkeypatch, recompute, silu_gate)


def both(layer, dtype=DOUBLE):
    """A layer far from its initialisation that keeps its inside, and one that computes it anew."""
    perturb(layer).to(dtype)
    keeping = copy.deepcopy(layer)
    keeping.recompute = False
    return keeping, layer


def results(layer, x, autocast=False, wanted=None):
    """What a layer returns, and the gradients of what is asked for: the input and all parameters."""
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", BFLOAT, enabled=autocast):
        y = layer(leaf)
    named = {"x": leaf, **dict(layer.named_parameters())}
    leaves = [named[name] for name in wanted or named]
    return [y, *torch.autograd.grad((y * noise(*y.shape, seed=9).to(y.dtype)).sum(), leaves)]


def maps_kept(layer, x):
    """Elements that a call keeps for the gradients, besides parameters, by storage, in those of ``x``."""
    inner, sizes = {p.untyped_storage().data_ptr() for p in layer.parameters()}, {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in inner:
            sizes[storage.data_ptr()] = storage
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    return sum(s.nbytes() for s in sizes.values()) / x.untyped_storage().nbytes(), y


def computes_anew(layer, x=None):
    """Whether a call goes through a function of this kind."""
    nodes, seen = [layer(noise(1, 8, 3, 5).float() if x is None else x).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    names = {type(node).__name__ for node in seen}
    return bool(names & {"_FeedForwardBackward", "_WidenedBackward", "_GatedProjectionBackward"})


@every_layer
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bias", [False, True])
def test_results_and_all_gradients_are_the_same(kind, bias, order):
    keeping, anew = both(kind(8, bias=bias))
    x = ORDERS[order](noise(2, 8, 5, 7))
    assert computes_anew(anew, x) and not computes_anew(keeping, x)
    wanted = results(keeping, x)
    for found, value in zip(results(anew, x), wanted, strict=True):
        assert found.stride() == value.stride()
        assert torch.equal(found, value)


@every_layer
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_so_they_are_at_the_smallest_sizes(kind, size):
    keeping, anew = both(kind(8))
    x = noise(2, 8, *size)
    assert all(map(torch.equal, results(anew, x), results(keeping, x)))


@every_layer
@pytest.mark.parametrize("given", [BFLOAT, FLOAT])
def test_dtypes_and_roundings_inside_autocast_are_the_same(kind, given):
    keeping, anew = both(kind(8, bias=True), FLOAT)
    x = noise(2, 8, 5, 7).to(given)
    for found, value in zip(results(anew, x, True), results(keeping, x, True), strict=True):
        assert found.dtype == value.dtype
        assert torch.equal(found, value)


@every_layer
def test_half_precision_weights_round_alike(kind):
    keeping, anew = both(kind(8, bias=True), BFLOAT)
    x = noise(2, 8, 5, 7).to(BFLOAT)
    pair = [results(layer, x) for layer in (anew, keeping)]
    assert all(map(torch.equal, *pair))


@every_layer
def test_gradients_may_be_found_inside_autocast_where_the_result_was_not(kind):
    x, found = noise(2, 8, 5, 7).float().requires_grad_(), []
    for layer in both(kind(8), FLOAT):
        y = layer(x)
        with torch.autocast("cpu", BFLOAT):
            found.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert relative(*found) < 1e-6


def test_autocast_remembers_no_weight_without_its_gradient():
    _, anew = both(GatedDconvFFN(8), FLOAT)
    x = noise(1, 8, 3, 5).float()
    with torch.autocast("cpu", BFLOAT):
        anew(x)
        anew.recompute = False
        y = anew(x)
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(y.float().sum(), list(anew.parameters())))


@every_layer
@pytest.mark.parametrize("bias", [False, True])
def test_second_derivatives_are_the_same(kind, bias, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "reference")  # whose scan has them
    found = []
    for layer in both(kind(4, bias=bias)):
        x = noise(2, 4, 3, 2).requires_grad_()
        leaves = [x, *layer.parameters()]
        first = torch.autograd.grad(layer(x).square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.sin().sum() for grad in first), leaves))
    for anew, kept in zip(*found, strict=True):
        assert relative(anew, kept) < 1e-12


def test_a_map_made_from_the_other_has_a_gradient_of_its_own_to_differentiate():
    def second(project):
        gate, weight = noise(1, 3, 2, 4).requires_grad_(), noise(2, 3, 1, 1, seed=1).requires_grad_()
        y = project(gate, gate.tanh(), weight)
        first = torch.autograd.grad(y.square().sum(), [gate, weight], create_graph=True)
        return *first, *torch.autograd.grad(sum(grad.sin().sum() for grad in first), [gate, weight])

    anew = second(lambda gate, x, weight: recompute.gated_projection(gate, x, (weight, None)))
    for found, value in zip(anew, second(lambda gate, x, weight: F.conv2d(F.silu(gate) * x, weight)), strict=True):
        assert relative(found, value) < 1e-12


@every_layer
def test_what_needs_no_gradient_gets_none(kind):
    keeping, anew = both(kind(8, bias=True))
    x, names = noise(2, 8, 4, 3), [name for name, _ in anew.named_parameters() if "mamba" not in name]
    for name in ["x", *names]:
        assert torch.equal(results(anew, x, wanted=[name])[1], results(keeping, x, wanted=[name])[1])
        for layer in (keeping, anew):
            layer.requires_grad_(False)
            dict(layer.named_parameters()).get(name, torch.empty(0)).requires_grad_()
            leaf = x.clone().requires_grad_(name == "x")
            layer(leaf).sin().sum().backward()
            grads = {"x": leaf.grad, **{n: p.grad for n, p in layer.named_parameters()}}
            assert [n for n, grad in grads.items() if grad is not None] == [name]
            layer.zero_grad()
            layer.requires_grad_()


def test_what_nobody_differentiates_goes_the_ordinary_way():
    layer = GatedDconvFFN(8)
    assert computes_anew(layer)
    with torch.no_grad():
        assert not computes_anew(layer)
    assert not computes_anew(layer.requires_grad_(False))


def test_on_a_cpu_maps_are_kept(monkeypatch):
    monkeypatch.undo()
    assert not computes_anew(GatedDconvFFN(8))


@every_layer
def test_a_compiled_layer_is_one_graph_without_such_a_function(kind):
    torch.compiler.reset()
    keeping, anew = both(kind(8))
    x = noise(1, 8, 3, 5)
    found = results(torch.compile(anew, fullgraph=True, backend="aot_eager"), x, wanted=["x"])
    for value, wanted in zip(found, results(keeping, x, wanted=["x"]), strict=True):
        assert relative(value, wanted) < 1e-12


def test_only_the_input_of_a_feed_forward_layer_is_kept():
    keeping, anew = both(GatedDconvFFN(8))
    x = noise(2, 8, 5, 7).requires_grad_()
    assert maps_kept(anew, x)[0] == 1
    assert maps_kept(keeping, x)[0] >= 4


def test_less_is_kept_around_a_scan():
    keeping, anew = both(IntraVSSM(8, state=3))
    x = noise(2, 8, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert maps_kept(anew, x)[0] <= maps_kept(keeping, x)[0] - 3  # two maps before the scan and the product behind it


@pytest.mark.usefixtures("kernels")
def test_with_kernels_the_inside_is_one_map_in_four_too():
    keeping, anew = both(GatedDconvFFN(8), FLOAT)
    x = noise(2, 8, 5, 7).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert maps_kept(anew, x)[0] == 1 and maps_kept(keeping, x)[0] == 4


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dim", "dtype"), [(8, FLOAT), (16, BFLOAT), (6, torch.float16)])
@every_layer
def test_kernels_give_the_same(kind, dim, dtype, bias, kernels):
    keeping, anew = both(kind(dim, bias=bias))
    x = noise(2, dim, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    exact = results(copy.deepcopy(keeping).double(), x.double())
    kept, found = results(keeping.to(dtype), x), results(anew.to(dtype), x)
    assert any(name.startswith("gate_") for name in kernels)
    for name, value, plain, truth in zip(["y", "x", *dict(anew.named_parameters())], found, kept, exact, strict=True):
        assert value.dtype == plain.dtype and (name not in "xy" or value.stride() == plain.stride()), name
        assert relative(value, truth) <= 1.5 * relative(plain, truth) + torch.finfo(dtype).eps, name


@pytest.mark.parametrize("bias", [False, True])
def test_without_gradients_both_halves_are_maps_of_their_own(bias, kernels):
    x, weight = (
        noise(2, 6, 4, 5).float().contiguous(memory_format=torch.channels_last),
        noise(6, 1, 3, 3, seed=1).float(),
    )
    shift = noise(6, seed=2).float() if bias else None
    expected = torch.nn.functional.conv2d(
        x.double(), weight.double(), None if shift is None else shift.double(), padding=1, groups=6
    )
    with torch.no_grad():
        first, second = conv_halves(x, weight, shift)
    assert kernels == ["gate_forward"] * 2
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert relative(torch.cat([first, second], 1), expected) < 1e-6


def test_kernels_read_each_half_of_the_gradient_where_it_lies(kernels):
    x, weight = noise(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), noise(8, 3, 1, 1, seed=1)
    taps, shift = noise(8, 1, 3, 3, seed=2), noise(8, seed=3)
    seed = noise(2, 12, 4, 5, seed=4).contiguous(memory_format=torch.channels_last)[:, 2:6]
    found = []
    for dtype in (FLOAT, DOUBLE):
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight, taps, shift)]
        f, gate = recompute.widened(leaves[0], (leaves[1], None), tuple(leaves[2:]))
        found.append(torch.autograd.grad((f * seed.to(dtype)).sum() + gate.sum(), leaves))
        f, gate = recompute.widened(leaves[0], (leaves[1], None), tuple(leaves[2:]))
        found[-1] += torch.autograd.grad(f.sum(), leaves)
    assert kernels.count("gate_forward") == 2 and len(kernels) == 2 + 4  # two for each gradient
    for value, truth in zip(*found, strict=True):
        assert relative(value, truth) < 1e-6


@every_layer
def test_hooked_and_replaced_modules_are_called(kind):
    layer, x = perturb(kind(8)), noise(1, 8, 3, 5)
    names = [name for name, _ in layer.named_children() if "proj" in name or name == "dwconv"]
    assert len(names) == 3
    for name in names:
        hooked, replaced = copy.deepcopy(layer), copy.deepcopy(layer)
        getattr(hooked, name).register_forward_hook(lambda module, given, y: 2 * y)
        plain = type(getattr(layer, name))
        twice = type("Twice", (plain,), {"forward": lambda self, x, plain=plain: 2 * plain.forward(self, x)})
        getattr(replaced, name).__class__ = twice
        assert torch.equal(hooked(x), replaced(x))
        assert relative(hooked(x), layer(x)) > 0.1


def test_what_may_stand_for_a_call():
    assert hooks.is_pointwise(nn.Conv2d(2, 4, 1)) and hooks.is_pointwise(nn.Conv2d(2, 4, 1, padding="same"))
    others = [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1, stride=2), nn.Conv2d(2, 4, 1, groups=2)]
    hooked = nn.Conv2d(2, 4, 1)
    hooked.register_full_backward_hook(lambda *_: None)
    for module in [*others, hooked, nn.Conv2d(2, 4, 1, padding=1), nn.Sequential(nn.Conv2d(2, 4, 1)), nn.Identity()]:
        assert not hooks.is_pointwise(module)


def test_a_wider_convolution_in_place_of_a_projection_is_called():
    layer = GatedDconvFFN(8)
    layer.project_out = nn.Conv2d(8, 8, 3, padding=1)
    assert not computes_anew(layer)
    assert layer(noise(1, 8, 3, 5).float()).shape == (1, 8, 3, 5)


def test_an_activation_that_the_operator_lacks_takes_the_ordinary_path():
    assert not computes_anew(GatedDconvFFN(8, activation=torch.tanh))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # PyTorch's own use of it
@every_layer
def test_counters_and_transforms_see_the_operations(kind):
    keeping, anew = both(kind(8))
    x = noise(1, 8, 3, 5)
    totals = []
    for layer in (keeping, anew):
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0
    gradients = [torch.func.grad(lambda x, layer=layer: layer(x).sin().sum())(x) for layer in (keeping, anew)]
    assert relative(*gradients) < 1e-12
    tangents = [torch.func.jvp(layer, (x,), (x.cos(),))[1] for layer in (keeping, anew)]
    assert relative(*tangents) < 1e-12


def test_a_counter_of_the_gradients_alone_sees_what_is_computed_anew():
    def count(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    keeping, anew = both(GatedDconvFFN(8))
    x = noise(1, 8, 3, 5).requires_grad_()
    kept, again = (count(layer(x).sum().backward) for layer in (keeping, anew))
    assert again == kept + count(lambda: keeping(x))


@every_layer
def test_checkpoints_of_a_block_change_no_gradient(kind):
    layer = perturb(kind(8))
    x = noise(2, 8, 5, 3)
    saved = lambda x: checkpoint(layer, x, use_reentrant=False)  # noqa: E731
    saved.named_parameters = layer.named_parameters
    assert all(map(torch.equal, results(layer, x), results(saved, x)))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_block_trains_alike(autocast):
    block = perturb(ScanBlock(8)).float()
    x = noise(2, 8, 5, 7).float()
    found = []
    for recomputing in (True, False):
        for layer in (block.intra, block.ffn1, block.inter, block.ffn2):
            layer.recompute = recomputing
        assert computes_anew(block, x) == recomputing
        found.append(results(block, x, autocast))
    for anew, kept in zip(*found, strict=True):
        assert relative(anew, kept) < (0.02 if autocast else 1e-5)


def test_small_maps_are_kept(monkeypatch):
    layer, x = GatedDconvFFN(4), torch.rand(1, 4, 3, 5)
    monkeypatch.setattr(hooks, "KEPT", 15)
    assert layer._computes_again(x)
    monkeypatch.setattr(hooks, "KEPT", 16)
    assert not layer._computes_again(x)
