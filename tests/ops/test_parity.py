"""Every backend that can run here against the exact recurrence, and the judge against planted faults."""

import pytest
import torch
from hypothesis import given, settings

from slicescan.ops import BackendError, selective_scan, slice_scan
from tests.parity import Disagreement, available, judge, measure
from tests.strategies import LAYOUTS, OPTIONAL, Scan, scans

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
HALVES = (BF16, FP16)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
PLACES = [(device, name) for device in DEVICES for name in available(device) if name != "reference"]
places = pytest.mark.parametrize(("device", "backend"), PLACES)
dtypes = pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=lambda dtype: str(dtype).removeprefix("torch."))


def judged(scan: Scan, device: str, backend: str, **settings) -> None:
    """Judge a scan; what a backend leaves to others it must refuse."""
    arguments = scan.arguments(device)
    if backend == "mamba_ssm" and "initial_state" in arguments:
        with pytest.raises(BackendError, match="initial_state"):
            slice_scan(**arguments, backend=backend)
        del arguments["initial_state"]
    left = scan.dtype == FP64 and backend in ("cuda", "triton", "mamba_ssm")
    if left or (backend == "mamba_ssm" and 0 in arguments["u"].shape):
        with pytest.raises(BackendError, match="float64|empty"):
            slice_scan(**arguments, backend=backend)
    else:
        judge(arguments, backend, **({"last_state": False} if backend == "mamba_ssm" else settings))


@places
@dtypes
@pytest.mark.parametrize("axis", ["h", "w"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("carry", [False, True], ids=["slices", "carried"])
def test_every_direction_is_exact(device, backend, dtype, axis, reverse, carry):
    judged(Scan(axis=axis, reverse=reverse, carry=carry, dtype=dtype, groups=2), device, backend)


@places
@settings(max_examples=60)
@given(scan=scans(dtypes=(FP32, FP32, BF16, FP16, FP64), ranks=(None, None, 1, 3)))
def test_every_call_is_exact(device, backend, scan):
    judged(scan, device, backend)


@places
@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 8, 9, 63, 64, 65, 257, 720, 1280])
def test_every_length_is_exact(device, backend, length):
    judged(Scan(b=1, h=1, w=length, d=3, n=3, seed=length), device, backend)


@places
@pytest.mark.parametrize("channels", [1, 3, 24, 36, 72, 144, 576])
@pytest.mark.parametrize("states", [1, 4, 8, 16, 24])
def test_every_width_is_exact(device, backend, channels, states):
    judged(Scan(b=1, h=2, w=4, d=channels, n=states), device, backend)


@places
@dtypes
@pytest.mark.parametrize("rank", [1, 2, 5, 9, 18, 36, 65])
def test_steps_of_every_rank_are_exact(device, backend, dtype, rank):
    scan = Scan(d=40, rank=rank, dtype=dtype, axis="wh"[rank % 2], reverse=rank > 9, delta_softplus=rank != 5)
    judged(scan, device, backend)


@places
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [None, 3])
def test_every_memory_layout_is_exact(device, backend, layout, groups, rank):
    judged(Scan(layout=layout, groups=groups, rank=rank, axis="h"), device, backend)


@places
@pytest.mark.parametrize("absent", [*OPTIONAL, "all"])
@pytest.mark.parametrize("delta_softplus", [False, True], ids=["steps", "softplus"])
def test_every_optional_argument_may_be_absent(device, backend, absent, delta_softplus):
    without = OPTIONAL if absent == "all" else (absent,)
    judged(Scan(without=without, delta_softplus=delta_softplus), device, backend)


@places
@pytest.mark.parametrize("empty", ["b", "h", "w"])
@pytest.mark.parametrize("carry", [False, True], ids=["slices", "carried"])
def test_an_empty_map_hands_the_state_on(device, backend, empty, carry):
    judged(Scan(carry=carry, dtype=FP32).replace(**{empty: 0}), device, backend)


@places
def test_no_gradient_need_flow_into_the_last_state(device, backend):
    judged(Scan(), device, backend, last_state=False)


@places
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
def test_large_inputs_stay_exact(device, backend, dtype):
    scan = Scan(dtype=dtype, scale=1e3 if dtype == BF16 else 10.0)
    judged(scan, device, backend)


@places
def test_extreme_steps_and_gates_stay_finite(device, backend):
    for dtype, far in ((FP32, 3e4), (BF16, 3e4), (FP16, 30.0)):
        arguments = Scan(dtype=dtype, without=("delta_bias", "initial_state")).arguments(device)
        wild = torch.tensor([-far, -20.0, 0.0, 20.0, far], device=device, dtype=dtype)[:, None].expand(2, 3, 5, 6)
        arguments |= {"z": wild, "delta": wild}
        tensors = {name: x.clone().requires_grad_() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
        y = slice_scan(**(arguments | tensors), backend=backend)
        grads = torch.autograd.grad(y.float().sum() * 1e-4, list(tensors.values()))
        assert y.isfinite().all() and all(grad.isfinite().all() for grad in grads)


@places
def test_two_runs_give_equal_bits(device, backend):
    if backend == "mamba_ssm":
        return  # its kernels add with atomics
    arguments = Scan(h=9, w=17, d=24, n=16).arguments(device)

    def run() -> list[torch.Tensor]:
        leaves = {name: x.clone().requires_grad_() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
        y, last = slice_scan(**(arguments | leaves), return_last_state=True, backend=backend)
        return [y, last, *torch.autograd.grad(y.sum() + last.sum(), list(leaves.values()))]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("rank", [None, 2])
def test_sequences_are_maps_of_one_row(rank):
    arguments = Scan(h=1, groups=2, rank=rank).arguments()
    arguments.pop("axis"), arguments.pop("carry")
    rowless = {
        name: x[:, 0] if name in ("u", "delta", "z", "B", "C", "initial_state") else x for name, x in arguments.items()
    }
    y, last = selective_scan(**rowless, return_last_state=True, backend="torch")
    want, state = slice_scan(**arguments, axis="w", return_last_state=True, backend="torch")
    assert torch.equal(y, want[:, 0]) and torch.equal(last, state[:, 0])


# The judge, judged


def shifted(**arguments):
    y, last = slice_scan(**arguments, backend="torch")
    return y.roll(1, dims=2), last


def forgetful(**arguments):
    return slice_scan(**(arguments | {"initial_state": None}), backend="torch")


def without_skip(**arguments):
    return slice_scan(**(arguments | {"D": None}), backend="torch")


def coarse(**arguments):
    y, last = slice_scan(**arguments, backend="torch")
    return y.bfloat16().float(), last


def held_order(**arguments):
    return slice_scan(**(arguments | {"B": arguments["B"].flip(-1)}), backend="torch")


@pytest.mark.parametrize("fault", [shifted, forgetful, without_skip, coarse, held_order])
def test_the_judge_finds_a_wrong_output(fault):
    errors = measure(fault, Scan(axis="w").arguments())
    assert not errors["y"].passes and not errors["y, no_grad"].passes


class Skewed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", *OPTIONAL, "delta_weight"])
def test_the_judge_finds_a_gradient_one_percent_off(name, dtype):
    def skewed(**arguments):
        return slice_scan(**(arguments | {name: Skewed.apply(arguments[name], 1.01)}), backend="torch")

    errors = measure(skewed, Scan(dtype=dtype, rank=1 if name == "delta_weight" else None).arguments())
    assert [key for key, error in errors.items() if not error.passes] == [name]


def test_the_judge_finds_a_nan_an_order_and_a_dtype():
    arguments = Scan(layout="planes").arguments()

    def hollow(**arguments):
        y, last = slice_scan(**arguments)
        y = y.clone()
        y[0, 0, 0, 3] = torch.nan
        return y, last

    def repacked(**arguments):
        y, last = slice_scan(**arguments)
        return y.contiguous(), last

    def widened(**arguments):
        y, last = slice_scan(**arguments)
        return y.double(), last

    assert not measure(hollow, arguments)["y"].passes
    for fault, word in ((repacked, "strides"), (widened, "float64")):
        with pytest.raises(Disagreement, match=word):
            measure(fault, arguments)


def test_the_judge_says_what_is_wrong(monkeypatch):
    monkeypatch.setattr("tests.parity.slice_scan", lambda backend, **call: slice_scan(**call, backend="reference")
                        if backend == "reference" else shifted(**call))  # fmt: skip
    with pytest.raises(Disagreement, match=r"backend 'torch': y: error \S+, allowed \S+; .*y, no_grad"):
        judge(Scan().arguments(), "torch")


@pytest.mark.parametrize(
    "scan",
    [
        Scan(b=1, h=2, w=3, d=2, n=2, groups=2, carry=True, dtype=FP64),
        Scan(b=1, h=3, w=1, d=2, n=2, axis="h", dtype=FP64),
        Scan(b=1, h=2, w=2, d=2, n=2, rank=3, dtype=FP64),
    ],
)
def test_the_reference_has_the_derivatives_that_differences_show(scan):
    arguments = scan.arguments()
    tensors = {name: x.requires_grad_() for name, x in arguments.items() if isinstance(x, torch.Tensor)}

    def run(*values):
        named = dict(zip(tensors, values, strict=True))
        return slice_scan(**(arguments | named), return_last_state=True, backend="reference")

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()))
