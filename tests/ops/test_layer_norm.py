import pytest
import torch
from torch import nn

from slicescan.layers import FeedForwardBlock, LayerNorm2d, ScanBlock, with_body
from slicescan.layers.norm import add_and_norm
from slicescan.ops import add_layer_norm, dispatch, layer_norm
from slicescan.ops.backends.cuda import driver, norm
from tests.layers.agreement import noise, relative
from tests.layers.restated import perturb
from tests.ops import cuda_emulator

ORDER = torch.channels_last
BLOCKS = {"feed-forward": (FeedForwardBlock, [False, True]), "scan": (ScanBlock, [False, True, True, True])}


@pytest.fixture
def emulated(monkeypatch):
    """The kernels on a processor, for anything but float64; whether each call had a branch."""
    served = []

    def run(x, branch, *rest):
        served.append(branch is not None)
        return norm.norm(x, branch, *rest)

    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)
    monkeypatch.setattr(dispatch, "has_fast_norm", lambda device, dtype, weights, channels: dtype != torch.float64)
    monkeypatch.setattr(dispatch, "fast_norm", run)
    return served


def image(*shape, seed=0, dtype=torch.float32):
    return noise(*shape, seed=seed).to(dtype).contiguous(memory_format=ORDER)


def weights(dim):
    return 1 + noise(dim, seed=3).float(), noise(dim, seed=4).float()


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (1, 1)])
def test_it_has_mean_0_and_variance_1_before_the_weights(size):
    x, branch, weight, bias = noise(2, 6, *size), noise(2, 6, *size, seed=1), noise(6, seed=2), noise(6, seed=3)
    for s, y in ((x, layer_norm(x, weight, bias, eps=0.1)), add_layer_norm(x, branch, weight, bias, eps=0.1)):
        mean, var = s.mean(1, keepdim=True), s.var(1, keepdim=True, correction=0)
        assert relative(y, (s - mean) / (var + 0.1).sqrt() * weight[:, None, None] + bias[:, None, None]) < 1e-12
    assert torch.equal(s, x + branch)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_have_the_same_result_and_gradients_by_the_kernel(name, emulated, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    make, expected = BLOCKS[name]
    block = perturb(make(4))
    x = noise(2, 4, 3, 5).contiguous(memory_format=ORDER).requires_grad_()
    y = block(x)
    probe = noise(*y.shape, seed=1)
    exact = [y, *torch.autograd.grad(y, [x, *block.parameters()], probe)]
    assert not emulated
    block.float()
    x = x.detach().float().requires_grad_()
    y = block(x)
    for got, want in zip([y, *torch.autograd.grad(y, [x, *block.parameters()], probe.float())], exact, strict=True):
        assert relative(got, want) < 2e-5
    assert emulated == expected


@pytest.mark.parametrize("hook", ["forward", "pre", "backward", "own forward", "anywhere"])
def test_what_looks_at_a_norm_sees_it(hook, emulated):
    x, branch = image(1, 4, 2, 3), image(1, 4, 2, 3, seed=1)
    sequence = with_body(LayerNorm2d(4))
    s, y = add_and_norm(x, branch, sequence)
    assert emulated == [True]
    body, seen = sequence.body, []
    leaf = x.clone().requires_grad_()
    if hook == "forward":
        body.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    elif hook == "pre":
        sequence.register_forward_pre_hook(lambda module, args: seen.append((args[0], y)))
    elif hook == "backward":
        body.register_full_backward_hook(lambda module, *grads: seen.append((s, y)))
    elif hook == "own forward":
        body.forward = lambda x: seen.append((x, y)) or LayerNorm2d.forward(body, x)
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    again = add_and_norm(leaf, branch, sequence)
    again[1].sum().backward()
    if hook == "anywhere":
        handle.remove()
    assert seen and all(torch.equal(a, b) for a, b in zip(seen[0], (s, y), strict=True))
    assert torch.equal(again[0], s) and torch.equal(again[1], y)
    assert emulated == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast_the_kernel_takes_what_autocast_made(dtype, emulated):
    weight, bias = weights(6)
    x, branch = image(2, 6, 3, 5, dtype=dtype), image(2, 6, 3, 5, seed=1, dtype=dtype)
    with torch.autocast("cpu", dtype):
        assert layer_norm(x, weight, bias).dtype == dtype
        assert [t.dtype for t in add_layer_norm(x, branch, weight, bias)] == [dtype, dtype]
        assert layer_norm(x.float(), weight, bias).dtype == torch.float32
    assert emulated == [False, True, False]
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float16 else torch.float16):
        layer_norm(x, weight, bias)  # float32 on a GPU
    assert len(emulated) == 3


def test_maps_that_differ_in_dtype_or_order_are_added_plainly(emulated):
    weight, bias = weights(4)
    x, branch = image(2, 4, 3, 5), image(2, 4, 3, 5, seed=1)
    want = add_layer_norm(x, branch, weight, bias)
    for other in (branch.contiguous(), branch.double()):
        del emulated[:]
        for got, expected in zip(add_layer_norm(x, other, weight, bias.to(weight)), want, strict=True):
            assert relative(got, expected) < 1e-6
        assert not emulated
        weight, bias = weight.double(), bias.double()


def test_weights_that_do_not_lie_side_by_side_are_read_as_they_lie(emulated):
    weight, bias = weights(8)
    x = image(1, 4, 2, 3)
    assert relative(layer_norm(x, weight[::2], bias[:4]), layer_norm(x, weight[::2].clone(), bias[:4])) < 1e-6
    assert relative(layer_norm(x, weight[:4], bias[::2]), layer_norm(x, weight[:4], bias[::2].clone())) < 1e-6


def test_planes_counters_transforms_and_exports_see_the_plain_norm(emulated):
    weight, bias = weights(4)
    x = image(1, 4, 2, 3)
    layer_norm(x.contiguous(), weight, bias)
    torch.func.grad(lambda x: layer_norm(x, weight, bias).sum())(x)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        layer_norm(x, weight, bias)
    program = torch.export.export(FeedForwardBlock(4).eval().to(memory_format=ORDER), (x,))
    assert not [node for node in program.graph.nodes if "slicescan" in str(node.target)]
    assert not emulated
    layer_norm(x, weight, bias)
    assert emulated


def test_compiled_whole_the_kernel_stays_one_operator(emulated, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(dispatch, "fast_norm", norm.norm)
    seen = []

    def note(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    block = FeedForwardBlock(4).eval()
    x = image(1, 4, 3, 5)
    assert relative(torch.compile(block, fullgraph=True, backend=note)(x), block.double()(x.double())) < 1e-5
    assert len([name for name in seen if "cuda_norm" in name]) == 2


def test_compiled_gradients_are_those_of_the_kernel(emulated, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(dispatch, "fast_norm", norm.norm)
    weight, bias = weights(4)
    arguments = [image(1, 4, 3, 5), image(1, 4, 3, 5, seed=1), weight, bias]

    def run(function):
        leaves = [t.clone().requires_grad_() for t in arguments]
        s, y = function(*leaves)
        return [s, y, *torch.autograd.grad((s * s).sum() + (y * y).sum(), leaves)]

    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager")
    for got, want in zip(run(compiled), run(add_layer_norm), strict=True):
        assert torch.equal(got, want)


def test_a_second_derivative_is_refused_by_the_kernel(emulated):
    weight, bias = weights(4)
    x = image(1, 4, 2, 3).requires_grad_()
    (grad,) = torch.autograd.grad(layer_norm(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd formula"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 4, 2, 2), torch.ones(3), torch.ones(4)), r"weight must be \(c,\) = \(4,\), got \(3,\)"),
        ((torch.ones(1, 4, 2, 2), torch.ones(4), torch.ones(3)), r"bias must be \(c,\) = \(4,\), got \(3,\)"),
        ((torch.ones(4, 2, 2), torch.ones(4), torch.ones(4)), r"x must be \(b, c, h, w\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^layer_norm: {message}"):
        layer_norm(*arguments)
    with pytest.raises(ValueError, match=f"^add_layer_norm: {message}"):
        add_layer_norm(arguments[0], *arguments)


def test_a_branch_has_the_shape_of_the_map():
    one = torch.ones(4)
    with pytest.raises(ValueError, match=r"branch must be \(b, c, h, w\) = \(1, 4, 2, 2\), got \(1, 4, 1, 2\)"):
        add_layer_norm(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 1, 2), one, one)
