"""The arithmetic and the data movement of the CUDA kernels, on a processor that stands in for a GPU."""

import dataclasses
import functools

import pytest
import torch

from slicescan.ops.backends import cuda, reference
from slicescan.ops.backends.cuda import driver, plan
from slicescan.ops.call import ScanCall
from tests.ops import cuda_emulator

TENSORS = tuple(field.name for field in dataclasses.fields(ScanCall))[:9]
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
BASE = {"shape": (1, 3, 11, 24), "n": 16}
COLUMNS = {"shape": (2, 13, 3, 24), "axis": "h"}

CASES = {
    "rows": {},
    "rows in bfloat16": {"dtype": BFLOAT},
    "rows in float16": {"dtype": HALF},
    "columns": COLUMNS,
    "columns backwards in bfloat16": {**COLUMNS, "reverse": True, "dtype": BFLOAT},
    "rows backwards": {"reverse": True},
    "rows carried on": {"carry": True},
    "columns carried on, backwards, in bfloat16": {**COLUMNS, "carry": True, "reverse": True, "dtype": BFLOAT},
    "no gate": {"without": "z"},
    "nothing optional": {"without": "D z delta_bias initial_state"},
    "step sizes as they are": {"softplus": False},
    "groups": {"shape": (1, 3, 9, 24), "groups": 3},
    "groups in bfloat16": {"shape": (1, 3, 9, 16), "groups": 2, "dtype": BFLOAT},
    "maps off their alignment": {"offset": 1},
    "maps off their alignment in bfloat16": {"offset": 1, "dtype": BFLOAT},
    "one state": {"n": 1},
    "5 states in bfloat16": {"n": 5, "dtype": BFLOAT},
    "24 states": {"n": 24},
    "24 states in bfloat16": {"n": 24, "dtype": BFLOAT},
    "40 states in float16": {"n": 40, "dtype": HALF},
    "64 states": {"n": 64},
    "one channel": {"shape": (1, 3, 11, 1)},
    "3 channels in bfloat16": {"shape": (1, 3, 11, 3), "dtype": BFLOAT},
    "36 channels in bfloat16": {"shape": (1, 3, 11, 36), "dtype": BFLOAT},
    "72 channels in bfloat16": {"shape": (1, 5, 17, 72), "dtype": BFLOAT},
    "several blocks of channels": {"shape": (1, 1, 9, 160), "dtype": BFLOAT},
    "several blocks of channels in float32": {"shape": (1, 2, 9, 112)},
    "one step": {"shape": (1, 2, 1, 8)},
    "eight steps": {"shape": (1, 2, 8, 8)},
    "nine steps of many slices": {"shape": (1, 9, 9, 8)},
    "no step": {"shape": (1, 2, 0, 8)},
    "no image": {"shape": (0, 2, 3, 8)},
}
CHUNKED = ("rows", "columns backwards in bfloat16", "columns carried on, backwards, in bfloat16", "no gate", "groups",
           "24 states in bfloat16", "step sizes as they are", "one step")  # fmt: skip


def draw(shape, *, n, groups=1, dtype=FLOAT, axis="w", reverse=False, carry=False, softplus=True, offset=0, without=""):
    b, h, w, d = shape
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)

    def mapped(*tail):
        x = normal(b, h, w, torch.Size(tail).numel() + offset).to(dtype)[..., offset:]
        return x.unflatten(-1, tail) if len(tail) > 1 else x

    slices = 1 if carry else h if axis == "w" else w
    tensors = {
        "u": mapped(d), "delta": mapped(d) if softplus else mapped(d).abs() * 0.3, "A": -normal(d, n).abs() - 0.1,
        "B": mapped(groups, n), "C": mapped(groups, n), "D": normal(d), "z": mapped(d),
        "delta_bias": normal(d).abs() * 0.1, "initial_state": normal(b, slices, d, n),
    }  # fmt: skip
    tensors |= dict.fromkeys(without.split())
    return ScanCall(**tensors, axis=axis, reverse=reverse, carry=carry, delta_softplus=softplus)


def found(call, grad_y, grad_last):
    """What the kernels compute, by name."""
    y, last, saved = cuda.forward(call, save=True)
    assert torch.equal(y, cuda.forward(call, save=False)[0])
    gradients = cuda.backward(call, saved, grad_y, grad_last)
    present = {k: g for k, g in gradients._asdict().items() if getattr(call, k) is not None}
    return {"y": y, "last": last} | {f"grad {k}": g for k, g in present.items()}


def expected(call, grad_y, grad_last, dtype=None):
    """What the reference computes; in float64 if ``dtype`` says so."""
    names = [k for k in TENSORS if getattr(call, k) is not None]
    leaves = {k: getattr(call, k).detach().to(dtype or getattr(call, k).dtype).requires_grad_() for k in names}
    y, last = reference.slice_scan(dataclasses.replace(call, **leaves))
    targets = [grad_y.to(y.dtype), grad_last.to(last.dtype)]
    gradients = torch.autograd.grad(
        [y, last], list(leaves.values()), targets, allow_unused=True, materialize_grads=True
    )
    return {"y": y, "last": last} | {f"grad {k}": g for k, g in zip(names, gradients, strict=True)}


def check(call):
    generator = torch.Generator().manual_seed(1)
    grad_y = torch.randn(call.u.shape, generator=generator).to(call.u.dtype)
    grad_last = torch.randn(cuda.state_shape(call), generator=generator)
    exact = expected(call, grad_y, grad_last, torch.float64)
    plain = expected(call, grad_y, grad_last)
    for name, value in found(call, grad_y, grad_last).items():
        assert value.shape == exact[name].shape
        if value.numel():
            scale = exact[name].norm().clamp_min(1e-30)
            error, allowed = ((x.double() - exact[name]).norm() / scale for x in (value, plain[name]))
            assert error <= 2 * allowed + torch.finfo(call.u.dtype).eps, (name, error, allowed)


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)
    torch.use_deterministic_algorithms(True)  # memory starts as NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_keep_the_contract(name, monkeypatch):
    monkeypatch.setattr(plan, "_ENOUGH_WARPS", 0)
    plan._plan.cache_clear()
    check(draw(**BASE | CASES[name]))


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_of_a_sequence_give_the_same_as_the_whole(name, monkeypatch):
    monkeypatch.setattr(plan, "_ENOUGH_WARPS", 10**6)
    monkeypatch.setattr(plan, "_SHORTEST_CHUNK", 1)
    plan._plan.cache_clear()
    check(draw(**BASE | CASES[name]))


def test_wide_offsets_and_short_tiles_give_the_same(monkeypatch):
    make_plan = plan._plan.__wrapped__

    def wide(*arguments):
        made = make_plan(*arguments)
        return dataclasses.replace(made, macros=made.macros | {"WIDE": 1})

    monkeypatch.setattr(plan, "_plan", wide)
    check(draw(**BASE | {"dtype": BFLOAT}))


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_every_lane_width_sums_over_channels(lanes, dtype, monkeypatch):
    monkeypatch.setattr(plan, "_lane_width", lambda *_: lanes)
    plan._plan.cache_clear()
    check(draw((1, 5, 9, 40), n=16, dtype=dtype))
    plan._plan.cache_clear()


def test_the_order_of_threads_does_not_matter(monkeypatch):
    call = draw((1, 3, 19, 72), n=16, dtype=BFLOAT)
    grad_y, grad_last = torch.ones_like(call.u), torch.ones(cuda.state_shape(call))
    first = found(call, grad_y, grad_last)
    monkeypatch.setattr(driver, "launch", functools.partial(cuda_emulator.launch, falling=True))
    second = found(call, grad_y, grad_last)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_the_emulator_finds_a_missing_wait(monkeypatch):
    source = driver.source("forward")
    monkeypatch.setattr(driver, "source", lambda _: source.replace("      copies_wait(); warp_sync();", "", 1))
    cuda_emulator.library.cache_clear()
    with pytest.raises(AssertionError):
        check(draw(**BASE))
    cuda_emulator.library.cache_clear()
