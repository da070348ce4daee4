"""The layer norm's kernels on an emulated machine, and compiled for two devices."""

import pytest
import torch
import torch.nn.functional as F

from slicescan.ops.backends.cuda import driver, norm, nvrtc
from tests.ops import cuda_emulator

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
ORDER = torch.channels_last
CASES = {
    "24 channels, several pixels of a lane at once": {"h": 9, "w": 31},
    "72 channels in bfloat16": {"c": 72, "dtype": BFLOAT},
    "144 channels in bfloat16": {"c": 144, "dtype": BFLOAT, "w": 9},
    "288 channels in float16": {"c": 288, "dtype": HALF, "h": 2, "w": 3},
    "1000 channels": {"c": 1000, "dtype": BFLOAT, "h": 1, "w": 3},
    "2048 channels": {"c": 2048, "h": 1, "w": 3},
    "3 channels, off any alignment": {"c": 3, "dtype": BFLOAT},
    "35 channels": {"c": 35},
    "20 channels, 8 bytes at once": {"c": 20, "dtype": HALF},
    "one channel": {"c": 1},
    "one pixel": {"b": 1, "h": 1, "w": 1},
    "weights in half precision": {"c": 8, "dtype": BFLOAT, "weights": BFLOAT},
    "a map that starts between two words": {"c": 16, "dtype": BFLOAT, "offset": 1},
    "weights that start between two words": {"c": 16, "dtype": BFLOAT, "weight_offset": 1},
    "far from zero": {"c": 48, "shift": 300.0},
    "nothing": {"b": 0},
}
ALONE = [*CASES][:2] + [*CASES][-6:]


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)


def placed(values, offset):
    """The same values, some elements behind an aligned address."""
    room = torch.empty(values.numel() + offset, dtype=values.dtype)[offset:]
    return torch.as_strided(room, values.shape, values.stride()).copy_(values)


def draw(b=2, c=24, h=5, w=7, dtype=FLOAT, weights=FLOAT, offset=0, weight_offset=0, shift=0.0):
    """``x, branch, weight, bias`` and the gradients of sum and norm."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    x, *maps = (some(b, h, w, c).to(dtype).permute(0, 3, 1, 2) for _ in range(4))
    scale, bias = placed((1 + some(c)).to(weights), weight_offset), placed(some(c).to(weights), weight_offset)
    return placed(x + torch.tensor(shift, dtype=dtype), offset), maps[0], scale, bias, *maps[1:]


def plain(x, branch, weight, bias):
    s = x if branch is None else x + branch
    y = F.layer_norm(s.permute(0, 2, 3, 1), weight.shape, weight.to(s.dtype), bias.to(s.dtype), 1e-3)
    return s, y.permute(0, 3, 1, 2)


def fused(x, branch, weight, bias):
    return norm.norm(x, branch, weight, bias, 1e-3)


def results(run, x, branch, weight, bias, grad_sum, grad_y, dtype=None):
    """Outputs and gradients; without a branch those of the norm alone."""
    leaves = [
        None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, branch, weight, bias)
    ]
    s, y = run(*leaves)
    outputs, grads = ([y], [grad_y]) if branch is None else ([s, y], [grad_sum, grad_y])
    present = [t for t in leaves if t is not None]
    found = torch.autograd.grad(outputs, present, [g.to(y.dtype) for g in grads])
    return [*[t.detach() for t in outputs], *found]


@pytest.mark.parametrize(("name", "added"), [(name, True) for name in CASES] + [(name, False) for name in ALONE])
def test_values_and_gradients_are_those_of_the_plain_norm(name, added):
    x, branch, *rest = draw(**CASES[name])
    arguments = x, branch if added else None, *rest
    exact = results(plain, *arguments, torch.float64)
    own = results(plain, *arguments)
    found = results(fused, *arguments)
    with torch.no_grad():
        s, y = fused(*arguments[:4])
    assert torch.equal(y, found[int(added)]) and torch.equal(s, found[0] if added else x)
    for value, truth, plainly in zip(found, exact, own, strict=True):
        assert (value.shape, value.dtype) == (plainly.shape, plainly.dtype)
        assert value.ndim < 4 or value.is_contiguous(memory_format=ORDER)
        scale = truth.norm().clamp_min(1e-30)
        error, allowed = ((t.double() - truth).norm() / scale for t in (value, plainly))
        assert error <= 2 * allowed + torch.finfo(value.dtype).eps


def test_gradients_in_any_memory_order_are_taken():
    x, branch, weight, bias, grad_sum, grad_y = draw()
    found = results(fused, x, branch, weight, bias, grad_sum.contiguous(), grad_y.contiguous())
    for value, expected in zip(found, results(fused, x, branch, weight, bias, grad_sum, grad_y), strict=True):
        assert torch.equal(value, expected)


def test_an_output_that_nobody_used_has_no_gradient():
    x, branch, weight, bias, _, grad_y = draw(h=2, w=3)
    leaves = [t.clone().requires_grad_() for t in (x, branch, weight, bias)]
    found = torch.autograd.grad(fused(*leaves)[1], leaves, grad_y)
    expected = results(fused, x, branch, weight, bias, torch.zeros_like(x), grad_y)[2:]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    found = torch.autograd.grad(fused(*leaves)[0], leaves, grad_y)
    assert torch.equal(found[0], grad_y) and torch.equal(found[1], grad_y) and not found[2].any()


def test_equal_inputs_give_equal_bits_in_whatever_order_threads_run(monkeypatch):
    arguments = draw(h=30, w=31)
    first = results(fused, *arguments)
    monkeypatch.setattr(driver, "launch", lambda *given: cuda_emulator.launch(*given, falling=True))
    assert all(torch.equal(a, b) for a, b in zip(first, results(fused, *arguments), strict=True))


def test_blocks_may_take_several_rounds_of_pixels(monkeypatch):
    arguments = draw(h=9, w=31)
    first = results(fused, *arguments)
    monkeypatch.setattr(norm, "_ENOUGH_BLOCKS", 2)
    monkeypatch.setattr(norm, "_PROCESSORS", 1)
    norm._planned.cache_clear()
    found = results(fused, *arguments)
    norm._planned.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(first[:4], found[:4], strict=True))
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(first[4:], found[4:], strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of copies that the check makes
def test_the_operators_declare_what_they_return():
    x, branch, weight, bias, grad_sum, grad_y = draw(c=4, h=2, w=3)
    leaves = [t.clone().requires_grad_() for t in (x, branch, weight, bias)]
    torch.library.opcheck(norm._norm, (*leaves, 1e-5))
    torch.library.opcheck(norm._norm, (leaves[0], None, *leaves[2:], 1e-5))
    torch.library.opcheck(norm._norm_backward, (x, grad_sum, grad_y, weight, 1e-5))
    torch.library.opcheck(norm._norm_backward, (x, None, grad_y, weight, 1e-5))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_without_a_gpu(architecture, monkeypatch):
    seen = set()
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: seen.add((kernel.file, kernel.macros)))
    for case in ({"c": 144, "dtype": BFLOAT}, {"c": 3, "dtype": HALF}, {"c": 24}):
        x, branch, weight, bias, grad_sum, grad_y = draw(**case)
        norm.forward(x, branch, weight, bias, 1e-5)
        norm.backward(x, grad_sum, grad_y, weight, 1e-5)
        norm.backward(x, None, grad_y, weight, 1e-5)
    for file, macros in seen:
        assert nvrtc.compile_source(driver.source(file), driver.options(macros), architecture).startswith(b"\x7fELF")


def test_refusals_say_why():
    assert norm.why_not(torch.device("cpu"), FLOAT, FLOAT, 8) == "needs tensors of an NVIDIA device"
