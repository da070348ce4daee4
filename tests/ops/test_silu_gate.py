import warnings

import pytest
import torch
import torch.nn.functional as F

from slicescan.ops import dispatch
from slicescan.ops.backends.cpu import gate
from slicescan.ops.silu_gate import silu_gate
from tests.layers.agreement import noise, relative


@pytest.fixture
def served(monkeypatch):
    """Shapes of the maps that the kernel took."""
    shapes, run = [], gate.silu_gate

    def noted(a, b):
        shapes.append(tuple(a.shape))
        return run(a, b)

    monkeypatch.setattr(gate, "silu_gate", noted)
    return shapes


def images(layout, b=2, c=6, h=3, w=5):
    """Two float32 images, from -20 to 20, that lie in memory as ``layout`` says."""
    x = (20 * noise(b, 2 * c, h + 1, w).clamp(-1, 1)).float()
    if layout != "planes":
        x = x.contiguous(memory_format=torch.channels_last)
    a, b = x.chunk(2, 1)
    if layout == "cropped":
        return a[:1, :, 1:], b[:1, :, :-1]
    if layout == "mixed":
        return a, b.contiguous(memory_format=torch.channels_last)
    return a, b


@pytest.mark.parametrize("size", [{}, {"b": 1, "c": 1}, {"w": 1}, {"h": 0, "w": 1}, {"c": 50, "h": 40, "w": 33}])
@pytest.mark.parametrize("layout", ["halves", "mixed", "cropped", "planes"])
def test_it_is_the_silu_of_one_image_times_the_other(layout, size):
    a, b = images(layout, **size)
    exact = F.silu(a.double()) * b
    plain = relative(F.silu(a) * b, exact) if exact.numel() else 0
    with torch.no_grad():
        y = silu_gate(a, b)
    assert y.shape == a.shape and y.dtype == torch.float32
    assert not exact.numel() or relative(y, exact) <= 2 * plain + 1e-7


@pytest.mark.parametrize("layout", ["halves", "mixed", "cropped"])
def test_the_kernel_takes_channels_that_lie_side_by_side(layout, served):
    a, b = images(layout)
    with torch.no_grad():
        y = silu_gate(a, b)
    assert served == [(a.shape[0], *a.shape[2:], 6)]
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_finite_stays_so():
    values = torch.tensor([float("nan"), float("inf"), -90.0, 90.0]).view(1, 4, 1, 1)
    a, one = values.contiguous(memory_format=torch.channels_last), torch.ones(1, 4, 1, 1)
    y = silu_gate(a, one).flatten()
    assert y[0].isnan() and y[1] == float("inf") and abs(y[2]) < 1e-30 and y[3] == 90


def test_the_number_of_threads_changes_no_bit():
    a, b = images("halves", c=50, h=63, w=80)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(silu_gate(a, b))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_gradients_planes_other_dtypes_and_tracers_have_it_from_pytorch(served):
    a, b = images("halves")
    silu_gate(*images("planes"))
    silu_gate(a.double(), b.double())
    silu_gate(a.bfloat16(), b.bfloat16())
    silu_gate(a.to("meta"), b.to("meta"))
    silu_gate(a, b[:, :1])
    torch.func.grad(lambda a: silu_gate(a, b).sum())(a)
    y = silu_gate(a.clone().requires_grad_(), b)
    assert y.grad_fn is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(silu_gate, (a, b), check_trace=False)
    torch.testing.assert_close(traced(b, a), F.silu(b) * a)
    program = torch.compile(silu_gate, fullgraph=True, backend="eager")
    torch.testing.assert_close(program(a, b), F.silu(a) * b)
    assert not served


def test_a_named_backend_is_heeded(served, monkeypatch):
    a, b = images("halves")
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    silu_gate(a, b)
    assert not served
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    silu_gate(a, b)
    assert served
