"""The gated 3x3 convolution's kernels on an emulated machine, and compiled for two devices."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from slicescan.ops.backends.cuda import driver, gate, nvrtc
from tests.ops import cuda_emulator

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
ORDER = torch.channels_last
CASES = {
    "SiLU": {},
    "GELU with a bias": {"activation": "gelu", "bias": True},
    "no activation": {"activation": "linear", "h": 2, "w": 3},
    "no gate, with a bias": {"activation": None, "bias": True},
    "3 channels of each half, off any alignment": {"c": 6, "h": 4, "w": 9, "dtype": BFLOAT},
    "bfloat16": {"dtype": BFLOAT, "h": 3, "w": 17},
    "float16, no gate": {"dtype": HALF, "activation": None, "c": 10},
    "more channels than a block has": {"c": 132, "h": 3, "w": 4},
    "one pixel": {"h": 1, "w": 1},
    "planes": {"order": torch.contiguous_format},
    "nothing": {"b": 0},
}


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)


def draw(b=2, c=12, h=5, w=10, dtype=FLOAT, bias=False, activation="silu", order=ORDER):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, c, h, w, generator=generator).to(dtype).contiguous(memory_format=order)
    weight, shift = torch.randn(c, 1, 3, 3, generator=generator), torch.randn(c, generator=generator)
    grad_y = torch.randn(b, c // 2 if activation else c, h, w, generator=generator).to(dtype)
    return x, weight, shift if bias else None, grad_y.contiguous(memory_format=order)


def plain(x, weight, bias, activation):
    y = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=1, groups=x.shape[1])
    if activation is None:
        return y
    a, b = y.chunk(2, 1)
    return {"silu": F.silu, "gelu": F.gelu, "linear": lambda a: a}[activation](a) * b


def results(run, x, weight, bias, grad_y, activation, dtype=None):
    leaves = [t if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, weight, bias)]
    y = run(*leaves, activation)
    present = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, present, grad_y.to(y.dtype))]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_convolution(name):
    case = CASES[name]
    activation, arguments = case.get("activation", "silu"), draw(**case)
    exact = results(plain, *arguments, activation, torch.float64)
    own = results(plain, *arguments, activation)
    found = results(gate.convolve, *arguments, activation)
    assert torch.equal(found[0], gate.convolve(*arguments[:3], activation))
    assert found[0].is_contiguous(memory_format=ORDER) and found[1].stride() == arguments[0].stride()
    assert all(gradient.is_contiguous() for gradient in found[2:])  # as optimisers of many tensors want them
    for value, truth, plainly in zip(found, exact, own, strict=True):
        assert (value.shape, value.dtype) == (plainly.shape, plainly.dtype)
        scale = truth.norm().clamp_min(1e-30)
        error, allowed = ((x.double() - truth).norm() / scale for x in (value, plainly))
        assert error <= 2 * allowed + torch.finfo(value.dtype).eps


def test_equal_inputs_give_equal_bits_in_whatever_order_threads_run(monkeypatch):
    arguments = draw(c=36, h=6, w=19)
    first = results(gate.convolve, *arguments, "silu")
    monkeypatch.setattr(driver, "launch", lambda *given: cuda_emulator.launch(*given, falling=True))
    assert all(torch.equal(a, b) for a, b in zip(first, results(gate.convolve, *arguments, "silu"), strict=True))


def test_a_bias_may_be_a_part_of_a_larger_tensor():
    x, weight, _, _ = draw()
    bias = torch.randn(13)[1:]
    torch.testing.assert_close(gate.convolve(x, weight, bias, None), plain(x, weight, bias, None))


@pytest.mark.parametrize(("tall", "longest", "ahead"), [(1, 4, 3), (2, 7, 3), (3, 7, 1)])
def test_other_pieces_make_the_same_maps(tall, longest, ahead, monkeypatch):
    arguments = draw(c=16, h=7, w=26, dtype=BFLOAT)
    first = results(gate.convolve, *arguments, "silu")
    for case, (vector, _, blocks, _) in gate._SHAPES.items():
        monkeypatch.setitem(gate._SHAPES, case, (vector, tall, blocks, ahead))
    monkeypatch.setattr(gate, "_LONGEST", longest)
    monkeypatch.setattr(gate, "_ENOUGH_THREADS", 1)
    gate._planned.cache_clear()
    found = results(gate.convolve, *arguments, "silu")
    gate._planned.cache_clear()
    assert torch.equal(found[0], first[0]) and torch.equal(found[1], first[1])
    torch.testing.assert_close(found[2], first[2])


def test_weights_and_bias_may_be_of_a_map_s_own_dtype_or_another():
    x, weight, bias, _ = draw(bias=True)
    expected = gate.convolve(x, weight.bfloat16().float(), bias.bfloat16().float(), "silu")
    assert torch.equal(gate.convolve(x, weight.bfloat16(), bias, "silu"), expected)
    assert torch.equal(gate.convolve(x, weight.bfloat16().double(), bias.bfloat16(), "silu"), expected)


def test_the_gradient_of_the_map_can_go_to_a_part_of_a_wider_one():
    x, weight, _, grad_y = draw(activation=None)
    wide = torch.zeros(2, 20, 5, 10).contiguous(memory_format=ORDER)
    dx, *_ = gate.backward(x, weight, None, grad_y, "", out=wide[:, 4:16])
    assert torch.equal(dx, gate.backward(x, weight, None, grad_y, "")[0])
    assert torch.equal(wide[:, 4:16], dx) and not wide[:, :4].any() and not wide[:, 16:].any()


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
def test_the_gradients_find_what_the_gate_made_on_the_way(dtype):
    x, weight, bias, grad_y = draw(c=20, h=7, w=12, bias=True, dtype=dtype)
    wide = torch.zeros(2, 14, 7, 12, dtype=dtype).contiguous(memory_format=ORDER)
    found = gate.backward(x, weight, bias, grad_y, "silu", made=wide[:, 4:])
    torch.testing.assert_close(wide[:, 4:], gate.forward(x, weight, bias, "silu"), rtol=1e-2, atol=1e-4)
    assert not wide[:, :4].any()
    for mine, plainly in zip(found, gate.backward(x, weight, bias, grad_y, "silu"), strict=True):
        assert torch.equal(mine, plainly)


@pytest.mark.parametrize("width", [1, 2, 63, 64, 256, 1280])
@pytest.mark.parametrize("wanted", [0.01, 1, 3, 40])
def test_pieces_cover_a_row_and_come_out_even(width, wanted):
    strip = gate._strip(width, wanted)
    assert strip % 3 == 1 and 1 <= strip <= gate._LONGEST


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of copies that the check makes
def test_the_operators_declare_what_they_return():
    x, weight, bias, grad_y = draw(h=3, w=4, bias=True)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(gate._convolve, (*leaves, "silu"))
    torch.library.opcheck(gate._convolve, (x, weight, None, ""))
    torch.library.opcheck(gate._convolve_backward, (x, weight, None, grad_y, "silu"))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_without_a_gpu(architecture, monkeypatch):
    seen = set()
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: seen.add((kernel.file, kernel.macros)))
    for dtype, activation in ((BFLOAT, "silu"), (FLOAT, None)):
        x, weight, bias, grad_y = draw(h=3, w=4, dtype=dtype, activation=activation)
        gate.forward(x, weight, bias, activation or "")
        gate.backward(x, weight, bias, grad_y, activation or "")
    assert len(seen) == 5  # gradients behind a gate are spread by the forward kernel
    for file, macros in seen:
        assert nvrtc.compile_source(driver.source(file), driver.options(macros), architecture).startswith(b"\x7fELF")


def test_multiplications_are_counted():
    x, weight, bias, _ = draw(b=1, h=2, w=3)
    with FlopCounterMode(display=False) as counter:
        gate.convolve(x.requires_grad_(), weight, bias, "silu").sum().backward()
    assert counter.get_total_flops() == (1 + 2) * 2 * 9 * x.numel()


def test_refusals_say_why():
    assert gate.why_not(torch.device("cpu"), FLOAT) == "needs tensors of an NVIDIA device"
