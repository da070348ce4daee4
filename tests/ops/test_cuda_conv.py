"""The convolution kernels on an emulated machine, and compiled for two devices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slicescan.ops import causal_conv
from slicescan.ops.backends.cuda import conv, driver, nvrtc
from tests.ops import cuda_emulator

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
CASES = {
    "rows": {},
    "columns": {"axis": "h"},
    "without SiLU and bias": {"silu": False, "bias": False},
    "7 channels": {"d": 7},
    "columns in bfloat16": {"axis": "h", "dtype": BFLOAT, "d": 36},
    "off its alignment in bfloat16, three taps": {"dtype": BFLOAT, "d": 33, "offset": 1, "taps": 3},
    "many channels in float16": {"dtype": HALF, "d": 160},
    "one tap": {"taps": 1},
    "eight taps": {"taps": 8},
    "one step": {"h": 2, "w": 1},
    "a transposed view": {"transpose": True},
    "nothing": {"h": 0},
}


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)
    monkeypatch.setattr(conv, "why_not", lambda x, weight: None)


def draw(b=2, h=5, w=37, d=24, taps=4, dtype=FLOAT, offset=0, bias=True, transpose=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, h, w, d + offset, generator=generator).to(dtype)[..., offset:]
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transpose else x
    grad_y = torch.randn(b, h, w, d, generator=generator).to(dtype)
    weight, shift = torch.randn(d, taps, generator=generator), torch.randn(d, generator=generator)
    return x, weight, shift if bias else None, grad_y


def gradients(run, x, weight, bias, grad_y, dtype):
    leaves = [t if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, weight, bias)]
    y = run(*leaves)
    present = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, present, grad_y.to(y.dtype))]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_convolution(name):
    case = dict(CASES[name])
    axis, silu = case.pop("axis", "w"), case.pop("silu", True)
    arguments = draw(**case)
    exact = gradients(lambda *leaves: causal_conv(*leaves, axis=axis, silu=silu), *arguments, torch.float64)
    found = gradients(lambda *leaves: conv.causal_conv(*leaves, axis, silu), *arguments, None)
    assert torch.equal(found[0], conv.causal_conv(*arguments[:3], axis, silu))
    for value, truth in zip(found, exact, strict=True):
        assert value.shape == truth.shape
        error = (value.double() - truth).norm() / truth.norm().clamp_min(1e-30)
        assert error <= 4 * torch.finfo(value.dtype).eps
    assert found[0].stride() == torch.empty_like(arguments[0]).stride()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of copies that the check makes
def test_the_operators_declare_what_they_return():
    x, weight, bias, grad_y = draw(w=5)
    torch.library.opcheck(conv._convolve, (*(t.clone().requires_grad_() for t in (x, weight, bias)), "w", True))
    torch.library.opcheck(conv._convolve, (x, weight, None, "h", False))
    torch.library.opcheck(conv._convolve_backward, (x, weight, None, grad_y, "h", True))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_without_a_gpu(architecture, monkeypatch):
    seen = set()
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: seen.add((kernel.file, kernel.macros)))
    for dtype in (BFLOAT, HALF, FLOAT):
        x, weight, bias, grad_y = draw(w=5, dtype=dtype)
        conv.forward(x, weight, bias, "w", True)
        conv.backward(x, weight, bias, grad_y, "w", True)
    assert len(seen) == 6
    for file, macros in seen:
        assert nvrtc.compile_source(driver.source(file), driver.options(macros), architecture).startswith(b"\x7fELF")


def test_multiplications_are_counted():
    x, weight, bias, _ = draw(b=1, h=2, w=3, d=8)
    with FlopCounterMode(display=False) as counter:
        conv.causal_conv(x.requires_grad_(), weight, bias, "w", True).sum().backward()
    assert counter.get_total_flops() == (1 + 2) * 2 * 4 * x.numel()


def test_refusals_say_why(monkeypatch):
    monkeypatch.undo()
    x, weight, *_ = draw(w=5)
    assert conv.why_not(x, weight) == "needs tensors of an NVIDIA device"


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
def test_the_gradient_of_the_input_may_have_a_place(dtype):
    x, weight, bias, grad_y = draw(dtype=dtype)
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), float("nan"), dtype=dtype)
    place = wide[..., : x.shape[3]]
    found = conv.backward(x, weight, bias, grad_y, "h", True, place)
    assert found[0] is place
    assert wide[..., x.shape[3] :].isnan().all()
    for value, expected in zip(found, conv.backward(x, weight, bias, grad_y, "h", True), strict=True):
        assert torch.equal(value, expected)
