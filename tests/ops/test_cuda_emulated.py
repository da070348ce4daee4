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
    "steps of rank 1": BASE.replace(rank=1),
    "steps of rank 2 in bfloat16": BASE.replace(rank=2, dtype=BFLOAT),
    "steps of rank 5, columns backwards, in bfloat16": COLUMNS.replace(
        rank=5, reverse=True, dtype=BFLOAT, layout="cut"
    ),
    "steps of rank 9, columns carried on": COLUMNS.replace(rank=9, carry=True),
    "steps of rank 9 in float16": BASE.replace(rank=9, dtype=HALF, d=37),
    "steps of rank 18 in bfloat16": BASE.replace(rank=18, dtype=BFLOAT, d=40, layout="planes"),
    "steps of rank 36": BASE.replace(rank=36, d=17, without=("z", "delta_bias", "D", "initial_state")),
    "steps of rank 64 in bfloat16": BASE.replace(rank=64, d=8, dtype=BFLOAT),
    "steps of rank 65 are projected first": BASE.replace(rank=65, d=8),
    "steps of rank 3 as they are in bfloat16": BASE.replace(rank=3, delta_softplus=False, dtype=BFLOAT),
    "steps of rank 4, groups": BASE.replace(rank=4, groups=2, d=16, dtype=BFLOAT),
    "steps of rank 5, 24 states": BASE.replace(rank=5, n=24),
    "steps of rank 5, 64 states in bfloat16": BASE.replace(rank=5, n=64, d=9, dtype=BFLOAT),
    "steps of rank 5, several blocks of channels in bfloat16": BASE.replace(rank=5, h=1, d=160, dtype=BFLOAT),
    "steps of rank 6, several blocks of channels": BASE.replace(rank=6, h=2, w=9, d=112, layout="spread"),
    "steps of rank 7, one step": BASE.replace(rank=7, w=1, d=3),
    "no step": BASE.replace(w=0),
    "no image": BASE.replace(b=0),
}
CHUNKED = ("rows", "columns backwards in bfloat16", "columns carried on, backwards, in bfloat16", "no gate", "groups",
           "24 states in bfloat16", "step sizes as they are", "one step",
           "steps of rank 5, columns backwards, in bfloat16", "steps of rank 9, columns carried on",
           "steps of rank 36")  # fmt: skip


@pytest.fixture(autouse=True)
def _emulated(monkeypatch):
    with cuda_emulator.scans(monkeypatch, lambda call: None):
        yield


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
@pytest.mark.parametrize("rank", [None, 18])
def test_every_lane_width_sums_over_channels(lanes, dtype, rank, monkeypatch):
    monkeypatch.setattr(plan, "_lane_width", lambda *_: lanes)
    monkeypatch.setattr(plan, "_with_tail", lambda *_: (lanes, 0))
    judge(BASE.replace(h=5, w=9, d=40, rank=rank, dtype=dtype).arguments(), "cuda")


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("tail", "scan"),
    {
        8: BASE.replace(h=5, w=9, d=36),
        16: BASE.replace(h=3, w=9, d=48, dtype=BFLOAT, rank=4),
        -8: BASE.replace(h=5, w=9, d=112, groups=2, n=24, dtype=BFLOAT),
    }.items(),
)
def test_the_last_channels_may_have_warps_of_their_own(tail, scan, monkeypatch):
    seen, real = set(), plan.plan_of

    def noted(call, direction, *rest):
        seen.add((direction, real(call, direction, *rest).tail))
        return real(call, direction, *rest)

    monkeypatch.setattr(plan, "_WORTH_A_TAIL", 0)
    monkeypatch.setattr(cuda, "plan_of", noted)
    judge(scan.arguments(), "cuda")
    assert ("forward", abs(tail)) in seen


def call_of(scan) -> ScanCall:
    arguments = {"initial_state": None} | scan.arguments()
    mixes = {name: arguments[name].unsqueeze(3) for name in ("B", "C")}
    return ScanCall(**arguments | mixes)


def results(call) -> list[torch.Tensor]:
    y, last, saved = cuda.forward(call, save=True)
    grads = cuda.backward(call, saved, torch.ones_like(y), torch.ones(state_shape(call)))
    return [y, last, *(grad for grad in grads if grad is not None)]


@pytest.mark.usefixtures("whole")
def test_the_order_of_threads_does_not_matter(monkeypatch):
    call = call_of(BASE.replace(w=19, d=72, rank=5, dtype=BFLOAT))
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


FAULTS = {
    "waits": ("forward", "      copies_wait(); warp_sync();", "", BASE),
    "keeps the low-rank steps": ("backward", "low_grads.take(x_tile, lane);", "", BASE.replace(rank=3)),
    "adds up over steps": ("backward", "low_grads.sum_steps(", "if (i) low_grads.sum_steps(", BASE.replace(rank=3)),
    "adds up over channels": ("backward", "k < CW; k += K", "k < CW; k += 2 * K", BASE.replace(rank=3)),
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_emulator_finds_a_kernel_that_no_longer(what, monkeypatch):
    file, line, instead, scan = FAULTS[what]
    sources = {name: driver.source(name) for name in ("forward", "backward", "reduce")}
    assert line in sources[file]
    sources[file] = sources[file].replace(line, instead, 1)
    monkeypatch.setattr(driver, "source", sources.__getitem__)
    cuda_emulator.library.cache_clear()
    with pytest.raises(Disagreement):
        judge(scan.arguments(), "cuda")
    cuda_emulator.library.cache_clear()
