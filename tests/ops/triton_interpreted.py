"""What test_triton.py runs in a process of its own: kernels in Triton's interpreter, with ``TRITON_INTERPRET=1``."""

import dataclasses

import numpy
import pytest
import torch
import triton

from slicescan.ops.backends import reference
from slicescan.ops.backends import triton as backend
from slicescan.ops.backends.triton import plan, product
from slicescan.ops.call import Gradients, ScanCall

TENSORS = tuple(field.name for field in dataclasses.fields(ScanCall))[:9]
VERSIONS = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, numpy)]
pytestmark = pytest.mark.skipif(
    VERSIONS[0] < (3, 7) and VERSIONS[1] >= (2, 4), reason="this Triton's interpreter needs NumPy 2.3 or older"
)

CASES = {
    "rows": {"shape": (2, 1, 19, 3)},
    "columns": {"shape": (2, 4, 3, 3), "axis": "h"},
    "rows backwards": {"shape": (1, 1, 18, 3), "reverse": True},
    "columns backwards": {"shape": (1, 5, 2, 3), "axis": "h", "reverse": True},
    "rows carried on": {"shape": (1, 3, 6, 3), "carry": True},
    "columns carried on, backwards": {"shape": (1, 6, 3, 3), "axis": "h", "carry": True, "reverse": True},
    "nothing optional": {"shape": (1, 2, 3, 3), "without": ("D", "z", "delta_bias", "initial_state")},
    "no gate": {"shape": (1, 2, 3, 3), "without": ("z",)},
    "no skip": {"shape": (1, 2, 3, 3), "without": ("D",)},
    "step sizes as they are": {"shape": (1, 2, 3, 3), "softplus": False, "without": ("delta_bias",)},
    "groups": {"shape": (1, 2, 3, 6), "groups": 3},
    "groups of several blocks": {"shape": (1, 1, 2, 70), "groups": 2},
    "several blocks": {"shape": (1, 1, 17, 36)},
    "one state": {"shape": (1, 2, 3, 3), "n": 1},
    "24 states": {"shape": (1, 1, 2, 5), "n": 24},
    "64 states": {"shape": (1, 1, 3, 20), "n": 64},
    "one step": {"shape": (2, 3, 1, 1)},
    "no step": {"shape": (2, 3, 0, 3)},
    "no image": {"shape": (0, 3, 2, 3)},
    "float16": {"shape": (1, 1, 17, 3), "dtype": torch.float16},
    "bfloat16": {"shape": (1, 1, 17, 3), "dtype": torch.bfloat16},
}


@pytest.fixture(autouse=True)
def _memory_starts_as_nan():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def draw(
    shape,
    *,
    n=4,
    groups=1,
    dtype=torch.float32,
    axis="w",
    reverse=False,
    carry=False,
    softplus=True,
    without=(),
    seed=0,
) -> ScanCall:
    """A random call."""
    b, h, w, d = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, dtype=torch.float32):
        return torch.randn(*sizes, generator=generator).to(dtype)

    tensors = {
        "u": normal(b, h, w, d, dtype=dtype),
        "delta": normal(b, h, w, d, dtype=dtype) if softplus else normal(b, h, w, d, dtype=dtype).abs() * 0.3,
        "A": -(normal(d, n).abs() + 0.1),
        "B": normal(b, h, w, groups, n, dtype=dtype),
        "C": normal(b, h, w, groups, n, dtype=dtype),
        "D": normal(d),
        "z": normal(b, h, w, d, dtype=dtype),
        "delta_bias": normal(d).abs(),
        "initial_state": normal(b, 1 if carry else h if axis == "w" else w, d, n),
    }
    tensors |= dict.fromkeys(without)
    return ScanCall(**tensors, axis=axis, reverse=reverse, carry=carry, delta_softplus=softplus)


def plainly(call: ScanCall, dtype: torch.dtype, grad_y, grad_last) -> dict[str, torch.Tensor]:
    """Outputs and gradients of the reference, with activations in ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    tensors = {name: getattr(call, name) for name in TENSORS if getattr(call, name) is not None}
    kinds = {name: dtype if name in ("u", "delta", "B", "C", "z") else wide for name in tensors}
    leaves = {name: tensor.detach().to(kinds[name]).requires_grad_() for name, tensor in tensors.items()}
    y, last = reference.slice_scan(dataclasses.replace(call, **leaves))
    grads = torch.autograd.grad(
        [y, last], list(leaves.values()), [grad_y.to(y.dtype), grad_last.to(wide)], allow_unused=True
    )
    found = {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }
    return {"y": y.detach(), "last": last.detach(), **found}


def ours(call: ScanCall, grad_y, grad_last) -> dict[str, torch.Tensor]:
    y, last, saved = backend.forward(call, save=True)
    shape, dtype = backend.saved_spec(call)
    assert (saved.shape, saved.dtype) == (shape, dtype)
    grads = backend.backward(call, saved, grad_y, grad_last)
    assert y.dtype == call.u.dtype and y.stride() == torch.empty_like(call.u).stride()
    for name in Gradients._fields:
        tensor, grad = getattr(call, name), getattr(grads, name)
        assert (tensor is None) == (grad is None), name
        assert tensor is None or (tensor.shape, tensor.dtype) == (grad.shape, grad.dtype), name
    return {"y": y, "last": last, **{k: v for k, v in grads._asdict().items() if v is not None}}


def agree(call: ScanCall) -> None:
    """Judge by float64: at most twice the reference's own error in this dtype, and a few roundings."""
    assert backend.why_not(call) is None
    y, last, _ = backend.forward(call, save=False)
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(y.shape, generator=generator).to(y.dtype)
    grad_last = torch.randn(last.shape, generator=generator)
    exact = plainly(call, torch.float64, grad_y.double(), grad_last.double())
    plain = plainly(call, call.u.dtype, grad_y, grad_last)
    found = ours(call, grad_y, grad_last)
    assert torch.equal(found["y"], y) and torch.equal(found["last"], last)
    assert found.keys() == exact.keys()
    roundings = 1e-6 if call.u.dtype == torch.float32 else torch.finfo(call.u.dtype).eps
    for name, value in found.items():
        scale = exact[name].norm().clamp_min(1e-30)
        error, own = ((x[name].double() - exact[name]).norm() / scale for x in (found, plain))
        assert not value.numel() or error <= 2 * own + roundings, (name, error, own)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_agree_with_float64(case):
    agree(draw(**CASES[case]))


@pytest.mark.parametrize(("shape", "carry", "reverse"), [((1, 1, 37, 2), False, False), ((1, 3, 12, 2), True, True)])
def test_a_path_cut_into_segments_agrees(monkeypatch, shape, carry, reverse):
    monkeypatch.setattr(plan, "FEW_PROGRAMS", 3)
    monkeypatch.setattr(plan, "SHORTEST_SEGMENT", 12)
    call = draw(shape, carry=carry, reverse=reverse, n=3, without=("z", "initial_state") if carry else ())
    assert plan.plan_of(call).segments == 3
    agree(call)


def test_any_strides_agree():
    call = draw((2, 2, 3, 6), groups=2, axis="h")
    packed = torch.cat([call.u, call.delta, torch.zeros_like(call.u)], -1)
    mixed = torch.cat([call.B.flatten(3), torch.zeros(2, 2, 3, 3), call.C.flatten(3)], -1)
    agree(
        dataclasses.replace(
            call,
            u=packed[..., :6],
            delta=call.delta.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
            z=call.z[:, :, :1].expand(2, 2, 3, 6),
            B=mixed[..., :8].unflatten(-1, (2, 4)),
            C=mixed[..., 11:].unflatten(-1, (2, 4)),
            A=call.A.t().contiguous().t(),
            D=torch.ones(1).expand(6),
            initial_state=call.initial_state.transpose(1, 2).contiguous().transpose(1, 2),
        )
    )


def test_a_missing_gradient_of_the_last_state_counts_as_zero():
    call = draw((1, 2, 3, 3))
    y, last, saved = backend.forward(call, save=True)
    without = backend.backward(call, saved, y, None)
    zero = backend.backward(call, saved, y, torch.zeros_like(last))
    assert all(a is b or torch.equal(a, b) for a, b in zip(without, zero, strict=True))


def test_steps_from_tiny_to_huge_and_large_inputs_stay_exact():
    call = draw((1, 1, 18, 3), without=("delta_bias", "z"))
    steps = torch.logspace(-4, 1.3, 18).log().reshape(1, 1, 18, 1) + torch.zeros(3)
    agree(dataclasses.replace(call, u=call.u * 1e3, delta=steps))


def test_extreme_gates_and_steps_stay_finite():
    call = draw((1, 1, 4, 3))
    wild = torch.tensor([-1e4, -90.0, 90.0, 1e4]).reshape(1, 1, 4, 1) + torch.zeros(3)
    call = dataclasses.replace(call, z=wild, delta=wild)
    y, last, saved = backend.forward(call, save=True)
    grads = backend.backward(call, saved, torch.ones_like(y), torch.ones_like(last))
    assert all(x is None or bool(x.isfinite().all()) for x in (y, last, *grads))


def test_other_dtypes_and_more_states_are_refused_with_a_way_out():
    call = draw((1, 1, 1, 1))
    assert "float64; use backend='torch'" in backend.why_not(dataclasses.replace(call, u=call.u.double()))
    assert "at most 64 states a channel, got 65" in backend.why_not(draw((1, 1, 1, 1), n=65))


@pytest.mark.parametrize(
    ("lines", "width", "k", "n"), [(1, 70, 36, 40), (3, 30, 16, 130), (2, 1, 5, 1), (1, 64, 161, 64)]
)
@pytest.mark.parametrize("add", [False, True])
def test_products_are_as_exact_as_in_float32_and_stay_in_their_place(lines, width, k, n, add):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(lines, 2 * width, 2 * k, generator=generator)[:, width:, k:]
    weight = torch.randn(k, n, generator=generator).t()
    whole = torch.randn(lines, 2 * width, n + 7, generator=generator)
    before, out = whole.clone(), whole[:, :width, 3 : n + 3]
    exact = x.double() @ weight.double().t() + (out.double() if add else 0)
    product.run(x, weight, out, add=add)
    assert (out - exact).norm() <= 1e-6 * exact.norm()
    before[:, :width, 3 : n + 3] = out
    assert torch.equal(whole, before)
