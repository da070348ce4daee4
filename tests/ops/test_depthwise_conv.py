import pytest
import torch
import torch.nn.functional as F

from slicescan.layers import GatedDconvFFN, IntraVSSM, NAFBlock
from slicescan.ops import depthwise_conv, dispatch
from slicescan.ops.backends.cuda import driver, gate
from tests.layers.agreement import noise, relative
from tests.layers.restated import depthwise, perturb
from tests.ops import cuda_emulator

LAYERS = {
    "feed-forward": lambda: GatedDconvFFN(4, bias=True),
    "shell": lambda: IntraVSSM(4),
    "naf": lambda: NAFBlock(4),
}
GATES = {"silu": F.silu, "gelu": F.gelu, "linear": lambda a: a}


@pytest.fixture
def emulated(monkeypatch):
    """The kernels on a processor, for float32; the calls that they served."""
    served = []

    def convolve(x, *rest):
        served.append(x.shape)
        return gate.convolve(x, *rest)

    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)
    monkeypatch.setattr(dispatch, "has_fast_gate", lambda device, dtype: dtype == torch.float32)
    monkeypatch.setattr(dispatch, "fast_gate", convolve)
    return served


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (1, 1)])
def test_it_is_the_sum_over_the_neighbourhood(size):
    x, weight, bias = noise(2, 6, *size), noise(6, 1, 3, 3, seed=1), noise(6, seed=2)
    y = depthwise(weight, x) + bias[:, None, None]
    assert relative(depthwise_conv(x, weight, bias), y) < 1e-12
    for name, activation in GATES.items():
        assert relative(depthwise_conv(x, weight, bias, gate=name), activation(y[:, :3]) * y[:, 3:]) < 1e-12


def test_wider_neighbourhoods_are_taken_too():
    x, weight = noise(1, 2, 5, 6), noise(2, 1, 5, 5, seed=1)
    assert relative(depthwise_conv(x, weight), F.conv2d(x, weight, padding=2, groups=2)) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_same_result_and_gradients_by_the_kernel(name, emulated):
    layer = perturb(LAYERS[name]())
    x = noise(2, 4, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = [x, *layer.parameters()]
    y = layer(x)
    probe = noise(*y.shape, seed=1)
    exact = [y, *torch.autograd.grad(y, wanted, probe)]
    assert not emulated
    layer.float()
    x = x.detach().float().requires_grad_()
    y = layer(x)
    for got, want in zip([y, *torch.autograd.grad(y, [x, *layer.parameters()], probe.float())], exact, strict=True):
        assert relative(got, want) < 1e-5
    assert len(emulated) == 1


def test_planes_counters_transforms_and_exports_see_convolutions(emulated):
    weight = noise(4, 1, 3, 3).float()
    x = noise(1, 4, 2, 3).float()
    depthwise_conv(x, weight, gate="silu")
    x = x.contiguous(memory_format=torch.channels_last)
    torch.func.grad(lambda x: depthwise_conv(x, weight, gate="silu").sum())(x)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        depthwise_conv(x, weight, gate="silu")
    assert counter.get_total_flops() == 2 * 9 * x.numel()
    layer = GatedDconvFFN(2).eval().to(memory_format=torch.channels_last)
    program = torch.export.export(layer, (x[:, :2].contiguous(memory_format=torch.channels_last),))
    assert not [node for node in program.graph.nodes if "slicescan" in str(node.target)]
    assert not emulated
    depthwise_conv(x, weight, gate="silu")
    assert emulated


def test_compiled_whole_the_kernel_stays_one_operator(emulated, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(dispatch, "fast_gate", gate.convolve)
    seen = []

    def note(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    layer = GatedDconvFFN(2).eval()
    x = noise(1, 2, 3, 4).float().contiguous(memory_format=torch.channels_last)
    assert relative(torch.compile(layer, fullgraph=True, backend=note)(x), layer.double()(x.double())) < 1e-5
    assert [name for name in seen if "cuda_gate" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 4, 2, 2), torch.ones(3, 1, 3, 3)), "weight must be"),
        ((torch.ones(1, 4, 2, 2), torch.ones(4, 1, 2, 2)), r"with an odd k, got \(4, 1, 2, 2\)"),
        ((torch.ones(1, 4, 2, 2), torch.ones(4, 1, 3, 3), torch.ones(3)), r"bias must be \(c,\) = \(4,\), got \(3,\)"),
        ((torch.ones(4, 2, 2), torch.ones(4, 1, 3, 3)), r"x must be \(b, c, h, w\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(*arguments)


def test_a_gate_is_known_and_has_halves():
    with pytest.raises(ValueError, match="silu, gelu, linear or None, got 'tanh'"):
        depthwise_conv(torch.ones(1, 2, 2, 2), torch.ones(2, 1, 3, 3), gate="tanh")
    with pytest.raises(ValueError, match=r"even number of channels, got \(1, 3, 2, 2\)"):
        depthwise_conv(torch.ones(1, 3, 2, 2), torch.ones(3, 1, 3, 3), gate="silu")
