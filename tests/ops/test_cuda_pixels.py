"""The kernels on maps between the scans, on an emulated machine and compiled for two devices."""

import pytest
import torch
import torch.nn.functional as F

from slicescan.layers import InterVSSM, IntraVSSM, Upsample
from slicescan.ops import dispatch, divergence, silu_gate, twice
from slicescan.ops.backends.cuda import divergence as divergence_kernels
from slicescan.ops.backends.cuda import driver, nvrtc, pixels
from slicescan.ops.backends.cuda import silu_gate as gate_kernels
from slicescan.ops.backends.cuda import twice as twice_kernels
from tests.layers.agreement import noise, relative
from tests.layers.restated import perturb
from tests.ops import cuda_emulator

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
OPS = {
    "silu_gate": silu_gate.silu_gate,
    "twice": twice.twice,
    "gates of each image": lambda *maps: divergence.gated_by_divergence(maps[0], maps[1:], per_image=True),
    "gates of the batch": lambda *maps: divergence.gated_by_divergence(maps[0], maps[1:], per_image=False),
}
CASES = {
    "float32": {},
    "bfloat16": {"dtype": BFLOAT, "h": 3, "w": 7},
    "float16": {"dtype": HALF, "c": 24, "h": 4, "w": 3},
    "channels that fill no vector": {"c": 3, "dtype": BFLOAT},
    "pairs of channels": {"c": 6, "dtype": BFLOAT},
    "more items than a block has threads": {"c": 40, "h": 9, "w": 10, "dtype": BFLOAT},
    "one pixel": {"b": 1, "h": 1, "w": 1},
    "one row": {"h": 1, "w": 6},
    "one channel": {"c": 1},
    "large values": {"scale": 40.0},
    "nothing": {"b": 0, "others": ((3, 3), (2, 6))},
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The kernels on a processor, for all but float64; what they were started for."""
    return cuda_emulator.recording(monkeypatch, silu_gate, twice, divergence)


def draw(op, b=2, c=8, h=5, w=6, dtype=FLOAT, scale=1.0, others=None):
    """Maps for an op: a gate that is half of a map; levels of sizes that are no multiples of each other."""
    generator = torch.Generator().manual_seed(0)

    def image(channels, height, width):
        x = scale * torch.randn(b, channels, height, width, generator=generator)
        return x.to(dtype).contiguous(memory_format=torch.channels_last)

    x = image(c, h, w)
    if op == "twice":
        return [x]
    if op == "silu_gate":
        return [image(2 * c, h, w)[:, c:], x]
    return [x, *(image(c, *size) for size in others or ((-(-h // 2), -(-w // 2)), (-(-h // 4), w)))]


def results(op, maps, dtype=None):
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in maps]
    y = OPS[op](*leaves)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(maps[0].dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, probe.to(y.dtype))]


def plain(op, maps, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (silu_gate, twice, divergence):
            patch.setattr(module, "runs_kernels", lambda *_: False)
        return results(op, maps)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("op", OPS)
def test_values_and_gradients_are_those_of_plain_operations(op, name, kernels, monkeypatch):
    maps = draw(op, **CASES[name])
    exact, own = results(op, maps, torch.float64), plain(op, maps, monkeypatch)
    assert not kernels
    found = results(op, maps)
    assert kernels or name == "nothing"
    with torch.no_grad():
        assert torch.equal(found[0], OPS[op](*maps))
    for value, truth, plainly in zip(found, exact, own, strict=True):
        assert (value.shape, value.dtype) == (plainly.shape, plainly.dtype)
        scale = truth.norm().clamp_min(1e-30)
        error, allowed = ((x.double() - truth).norm() / scale for x in (value, plainly))
        assert error <= 2 * allowed + torch.finfo(value.dtype).eps


@pytest.mark.parametrize(
    "others",
    [((5, 6), (5, 6)), ((10, 12), (1, 1)), ((3, 4), (5, 2)), ((2, 5), (4, 1))],
    ids=["its own size", "finer and one pixel", "odd ratios", "one axis each"],
)
def test_maps_of_any_size_are_read_where_torch_would_copy_from(others, monkeypatch):
    maps = draw("gates of each image", others=others)
    truth = results("gates of each image", maps, torch.float64)
    for value, exact in zip(results("gates of each image", maps), truth, strict=True):
        assert (value - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize(("old", "new"), [(3, 7), (7, 23), (41, 97), (180, 719), (90, 90), (5, 3)])
def test_the_nearest_pixel_is_that_of_torch(old, new):
    x, n = torch.zeros(1, 1, 1, new), torch.arange(float(old)).view(1, 1, 1, old)
    z = divergence.beside(x, [n, n], torch.tensor([[1.0, 0.0]]))
    assert torch.equal(z[:, 1:], F.interpolate(n, (1, new)))


@pytest.mark.parametrize("op", OPS)
def test_equal_inputs_give_equal_bits_in_whatever_order_threads_run(op, monkeypatch):
    maps = draw(op, c=24, h=7, w=9)
    first = results(op, maps)
    monkeypatch.setattr(driver, "launch", lambda *given: cuda_emulator.launch(*given, falling=True))
    assert all(torch.equal(a, b) for a, b in zip(first, results(op, maps), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_a_far_part_of_a_large_map_is_reached_by_wide_offsets(op, monkeypatch):
    maps = draw(op, c=5, h=2, w=3)
    exact = results(op, maps)
    monkeypatch.setattr(pixels, "reach", lambda *_: 2**31)
    pixels._planned.cache_clear()
    found = results(op, maps)
    pixels._planned.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_maps_off_any_order_are_copied_first(op):
    maps = draw(op)
    exact = results(op, maps)
    spread = [x.repeat_interleave(2, 3)[..., ::2].contiguous() for x in maps]
    for value, truth in zip(results(op, spread), exact, strict=True):
        assert torch.equal(value, truth)


def test_a_gate_is_read_where_it_lies():
    wide = draw("twice", c=16)[0]
    assert pixels.flat(wide[:, 8:]).data_ptr() == wide[:, 8:].data_ptr()
    for x in (wide[:, :, :, 1:], wide[:, :, 1:], wide.contiguous()):
        assert pixels.flat(x).data_ptr() != x.data_ptr() and torch.equal(pixels.flat(x), x)


def test_the_sums_of_strips_are_those_of_the_whole():
    maps = draw("gates of each image", b=3, c=10, h=8, w=6)
    with torch.no_grad():
        whole = divergence.divergence_sums(maps[0], maps[1:])
        halves = [[x.chunk(2, 2)[i] for x in maps] for i in (0, 1)]
        parts = sum(divergence.divergence_sums(x, others) for x, *others in halves)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
def test_the_kernels_compile_without_a_gpu(architecture, dtype, monkeypatch):
    seen = set()
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: seen.add((kernel.file, kernel.macros)))
    for op in OPS:
        results(op, draw(op, dtype=dtype))
    assert len(seen) == 4  # the sums of the divergence's gradients are of their own
    for file, macros in seen:
        assert nvrtc.compile_source(driver.source(file), driver.options(macros), architecture).startswith(b"\x7fELF")


def test_a_map_is_enlarged_in_parts_that_torch_can_count(monkeypatch):
    x = draw("twice", b=2, c=7, h=3, w=4)[0]
    monkeypatch.setattr(twice, "runs_kernels", lambda *_: False)
    for most in (1, 100, 10_000):
        assert torch.equal(twice._in_parts(x, most), twice.twice(x))


def test_kernels_have_no_second_derivative():
    x = draw("twice")[0].requires_grad_()
    (grad,) = torch.autograd.grad(twice.twice(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_a_device_nothing_is_asked_of_the_kernels():
    assert not dispatch.has_map_kernels(torch.device("cpu"), FLOAT)
    assert {divergence_kernels, gate_kernels, twice_kernels} == {
        dispatch.load(f"cuda.{name}") for name in ("divergence", "silu_gate", "twice")
    }


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: IntraVSSM(4), ["silu_gate_forward", "silu_gate_backward"]),
        (lambda: InterVSSM(4), ["silu_gate_forward", "silu_gate_backward"]),
        (lambda: Upsample(4), ["twice_forward", "twice_backward"]),
    ],
    ids=["intra", "inter", "upsample"],
)
def test_layers_run_them_each_way_and_agree_with_themselves(make, names, kernels):
    layer, x = perturb(make()), noise(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    exact = [y.detach() for y in outcome(layer, x)]
    assert not kernels
    for got, want in zip(outcome(layer.float(), x.float()), exact, strict=True):
        assert relative(got, want) < 1e-5
    assert kernels == names


def outcome(layer, x):
    """The output and the gradients of the input and all parameters."""
    x = x.requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], noise(*y.shape, seed=1).to(y.dtype))]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of copies that the check makes
@pytest.mark.parametrize("per_image", [True, False])
def test_operators_keep_the_rules_of_the_library(per_image):
    x, *maps = (t.requires_grad_() for t in draw("gates of each image", h=4, w=4, others=((2, 2), (1, 4))))
    z, gates = divergence_kernels.traced(x, *maps, per_image)
    torch.library.opcheck(twice_kernels._twice, (x,))
    torch.library.opcheck(twice_kernels._twice_backward, (x.detach(),))
    torch.library.opcheck(divergence_kernels._gated, (x, *maps, per_image))
    given = [t.detach() for t in (x, *maps, gates, z)]
    torch.library.opcheck(divergence_kernels._gated_backward, (*given, per_image))


@pytest.mark.parametrize("case", ["float32", "bfloat16", "one pixel", "one channel"])
@pytest.mark.parametrize("op", ["twice", "gates of each image", "gates of the batch"])
def test_compilation_calls_operators_that_agree_with_eager(op, case, monkeypatch):
    maps = draw(op, **CASES[case])
    eager = results(op, maps)

    def run(*maps):
        if op == "twice":
            return twice_kernels.traced(maps[0])
        return divergence_kernels.traced(*maps, op == "gates of each image")[0]

    torch._dynamo.reset()
    monkeypatch.setitem(OPS, op, torch.compile(run, backend="aot_eager", fullgraph=True))
    for expected, found in zip(eager, results(op, maps), strict=True):
        assert torch.equal(found, expected) and found.stride() == expected.stride()
