"""The arithmetic and the data movement of the CUDA kernels, on a processor that stands in for a GPU."""

import functools

import pytest
import torch

from slicescan.ops.backends import cuda
from slicescan.ops.backends.cuda import driver, plan
from slicescan.ops.call import ScanCall
from slicescan.ops.library import TENSORS
from slicescan.ops.paths import state_shape
from tests.ops import cuda_emulator
from tests.parity import Disagreement, judge
from tests.strategies import OPTIONAL, Scan

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
BASE = Scan(b=1, h=3, w=11, d=24, n=16)
COLUMNS = BASE.replace(b=2, h=13, w=3, axis="h")

SCANS = {
    "rows": BASE,
    "rows in bfloat16": BASE.replace(dtype=BFLOAT),
    "rows in float16": BASE.replace(dtype=HALF),
    "columns": COLUMNS,
    "columns backwards in bfloat16": COLUMNS.replace(reverse=True, dtype=BFLOAT),
    "rows backwards": BASE.replace(reverse=True),
    "rows carried on": BASE.replace(carry=True),
    "columns carried on, backwards, in bfloat16": COLUMNS.replace(carry=True, reverse=True, dtype=BFLOAT),
    "no gate": BASE.replace(without=("z",)),
    "no gate in bfloat16": BASE.replace(without=("z",), dtype=BFLOAT),
    "nothing optional": BASE.replace(without=OPTIONAL),
    "step sizes as they are": BASE.replace(delta_softplus=False),
    "step sizes as they are in bfloat16": BASE.replace(delta_softplus=False, dtype=BFLOAT, h=9, d=8),
    "groups": BASE.replace(groups=3),
    "groups in bfloat16": BASE.replace(groups=2, d=16, dtype=BFLOAT),
    "cut out of wider maps": BASE.replace(layout="cut", n=5, d=7),
    "planes in bfloat16": BASE.replace(layout="planes", dtype=BFLOAT),
    "every other channel": BASE.replace(layout="spread"),
    "one state": BASE.replace(n=1),
    "24 states": BASE.replace(n=24),
    "24 states in bfloat16": BASE.replace(n=24, dtype=BFLOAT),
    "40 states in float16": BASE.replace(n=40, dtype=HALF),
    "64 states": BASE.replace(n=64, d=9),
    "one channel": BASE.replace(d=1),
    "3 channels in bfloat16": BASE.replace(d=3, dtype=BFLOAT),
    "72 channels in bfloat16": BASE.replace(h=5, w=17, d=72, dtype=BFLOAT),
    "several blocks of channels": BASE.replace(h=1, w=9, d=160, dtype=BFLOAT),
    "several blocks of channels in float32": BASE.replace(h=2, w=9, d=112),
    "one step": BASE.replace(w=1),
    "eight steps": BASE.replace(w=8),
    "large inputs": BASE.replace(w=40, scale=1e3, dtype=BFLOAT),
    "no step": BASE.replace(w=0),
    "no image": BASE.replace(b=0),
}
CHUNKED = ("rows", "columns backwards in bfloat16", "columns carried on, backwards, in bfloat16", "no gate", "groups",
           "24 states in bfloat16", "step sizes as they are", "one step")  # fmt: skip


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    monkeypatch.setattr(driver, "launch", cuda_emulator.launch)
    monkeypatch.setattr(cuda, "why_not", lambda call: None)
    plan._plan.cache_clear()
    torch.use_deterministic_algorithms(True)  # memory starts as NaN
    yield
    torch.use_deterministic_algorithms(False)
    plan._plan.cache_clear()


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.setattr(plan, "_ENOUGH_WARPS", 0)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", SCANS)
def test_the_kernels_keep_the_contract(name):
    judge(SCANS[name].arguments(), "cuda")


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_of_a_sequence_give_the_same_as_the_whole(name, monkeypatch):
    monkeypatch.setattr(plan, "_ENOUGH_WARPS", 10**6)
    monkeypatch.setattr(plan, "_SHORTEST_CHUNK", 1)
    judge(SCANS[name].arguments(), "cuda")


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT])
@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_every_lane_width_sums_over_channels(lanes, dtype, monkeypatch):
    monkeypatch.setattr(plan, "_lane_width", lambda *_: lanes)
    judge(BASE.replace(h=5, w=9, d=40, dtype=dtype).arguments(), "cuda")


def call_of(scan) -> ScanCall:
    arguments = {"initial_state": None} | scan.arguments()
    mixes = {name: arguments[name].unsqueeze(3) for name in ("B", "C")}
    return ScanCall(**arguments | mixes)


def results(call) -> list[torch.Tensor]:
    y, last, saved = cuda.forward(call, save=True)
    return [y, last, *cuda.backward(call, saved, torch.ones_like(y), torch.ones(state_shape(call)))]


@pytest.mark.usefixtures("whole")
def test_the_order_of_threads_does_not_matter(monkeypatch):
    call = call_of(BASE.replace(w=19, d=72, dtype=BFLOAT))
    first = results(call)
    monkeypatch.setattr(driver, "launch", functools.partial(cuda_emulator.launch, falling=True))
    assert all(torch.equal(a, b) for a, b in zip(first, results(call), strict=True))


@pytest.mark.usefixtures("whole")
def test_maps_of_more_than_two_to_the_31_elements_have_wide_offsets():
    call = call_of(BASE.replace(dtype=BFLOAT, d=8))
    b, h, w, d = call.u.shape
    torch.use_deterministic_algorithms(False)  # most of this memory is never touched
    far = torch.empty(2**31 + w * d, dtype=BFLOAT).as_strided((b, h, w, d), (0, 2**30, d, 1)).copy_(call.u)
    wide = ScanCall(far, *(getattr(call, name) for name in TENSORS[1:]), delta_softplus=True)
    made = plan.plan_of(wide, "forward", [far], [call.B])
    assert made.macros["WIDE"] == 1
    assert all(torch.equal(a, b) for a, b in zip(results(call), results(wide), strict=True))


def test_the_emulator_finds_a_missing_wait(monkeypatch):
    source = driver.source("forward")
    monkeypatch.setattr(driver, "source", lambda _: source.replace("      copies_wait(); warp_sync();", "", 1))
    cuda_emulator.library.cache_clear()
    with pytest.raises(Disagreement):
        with torch.no_grad():
            judge(BASE.arguments(), "cuda")
    cuda_emulator.library.cache_clear()
