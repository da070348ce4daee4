"""What is particular to the CPU backend; that it is exact, tests/ops/test_parity.py shows for every backend."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from numba import njit

from slicescan.ops import slice_scan
from slicescan.ops.backends import cpu as backend
from slicescan.ops.backends.cpu import build, kernels
from slicescan.ops.backends.cpu.plan import CHUNK, plan_of
from slicescan.ops.call import ScanCall
from tests.parity import judge
from tests.strategies import Scan

MANY = Scan(b=2, h=70, w=2 * CHUNK + 3, d=24, n=16, groups=2)  # more sequences than teams, several chunks


def run(arguments) -> list[torch.Tensor]:
    """Outputs and all gradients."""
    leaves = {name: x.clone().requires_grad_() for name, x in arguments.items() if isinstance(x, torch.Tensor)}
    y, last = slice_scan(**(arguments | leaves), return_last_state=True, backend="cpu")
    return [y.detach(), last.detach(), *torch.autograd.grad(y.sum() + last.sum(), list(leaves.values()))]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("steps", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_chunks_meet_without_a_seam(steps):
    judge(Scan(b=1, h=2, w=steps, d=16).arguments(), "cpu")
    judge(Scan(b=1, h=3, w=steps // 3 + 1, d=16, carry=True, reverse=True).arguments(), "cpu")


@pytest.mark.parametrize("sequences", [2, 20])
@pytest.mark.parametrize(("channels", "groups"), [(7, None), (8, None), (9, None), (150, None), (300, 2), (290, None)])
def test_blocks_of_channels_meet_without_a_seam(sequences, channels, groups):
    scan = Scan(b=1, h=sequences, w=CHUNK + 2, d=channels, n=3, groups=groups)
    judge(scan.arguments(), "cpu")


def test_few_sequences_are_cut_into_blocks_of_channels_and_many_states_into_narrow_ones():
    def plan(**sizes):
        arguments = Scan(**sizes, without=("initial_state",)).arguments()
        arguments["B"], arguments["C"] = arguments["B"][..., None, :], arguments["C"][..., None, :]
        return plan_of(ScanCall(**arguments))

    assert plan(b=1, h=1, d=144, n=16).parts > 1 and plan(b=1, h=64, d=144, n=16).parts == 1
    assert plan(b=1, h=64, d=144, n=16).width == 144 and plan(b=1, h=64, d=144, n=64).width < 72


@pytest.mark.parametrize("scan", [MANY, Scan(b=1, h=1, w=100, d=96, n=16)], ids=["many sequences", "one sequence"])
def test_twenty_runs_in_any_number_of_threads_give_equal_bits(scan, threads, monkeypatch):
    monkeypatch.setattr("slicescan.ops.backends.cpu.threads._SMALLEST", 1000)
    arguments = scan.arguments()
    threads(1)
    first = run(arguments)
    for i in range(20):
        threads(1 + i % 3)
        assert equal(first, run(arguments))


def test_an_image_does_not_depend_on_its_batch():
    arguments = MANY.arguments()
    alone = {name: x[:1] if isinstance(x, torch.Tensor) and x.shape[0] == 2 else x for name, x in arguments.items()}
    assert torch.equal(slice_scan(**arguments, backend="cpu")[:1], slice_scan(**alone, backend="cpu"))


def test_four_python_threads_may_scan_at_once(threads, monkeypatch):
    monkeypatch.setattr("slicescan.ops.backends.cpu.threads._SMALLEST", 1000)
    threads(3)
    calls = [MANY.replace(seed=seed).arguments() for seed in range(4)]
    alone = [run(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, calls * 5))
    assert all(equal(alone[i % 4], found) for i, found in enumerate(together))


FORKS = """
import multiprocessing
import torch
from slicescan.ops.backends.cpu import threads
from slicescan.ops.backends.cpu.plan import CHUNK
from tests.ops.test_cpu import run
from tests.strategies import Scan

threads._SMALLEST = 1000
torch.set_num_threads(2)
# so small that PyTorch shares out none of its own work: its OpenMP would hang in a child, whatever we do
arguments = Scan(b=1, h=20, w=2 * CHUNK + 3, d=16, n=8, groups=2).arguments()
assert max(x.numel() for x in arguments.values() if isinstance(x, torch.Tensor)) < 32768
here = run(arguments)[0]  # there are threads now, which a fork does not copy
ours, theirs = multiprocessing.Pipe()
child = multiprocessing.get_context("fork").Process(
    target=lambda: theirs.send(run(arguments)[0].numpy()), daemon=True
)
child.start()
assert ours.poll(60), "the child hangs"
found = torch.from_numpy(ours.recv())
child.join(60)
assert child.exitcode == 0 and torch.equal(found, here)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_a_forked_process_scans_with_threads_of_its_own():
    """In a process of its own: what other tests leave running would not be in a child."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_convert_as_pytorch_does(dtype):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    u = torch.where(bits.isnan(), 0, bits).reshape(1, 64, 64, 16)
    u = torch.where(u.isinf(), 1, u)
    mix, A = torch.zeros(1, 64, 64, 1, dtype=dtype), torch.zeros(16, 1)
    skip = torch.logspace(-9, 3, 16)  # the products overflow, round to ties, and underflow
    for D in (torch.ones(16), skip, torch.full((16,), 0.5), torch.full((16,), 1.5)):
        y = slice_scan(u, torch.zeros_like(u), A, mix, mix, D, axis="w", backend="cpu")
        assert torch.equal(y, (u.float() * D).to(dtype))


def test_what_is_not_a_number_stays_so():
    for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"):
        arguments = Scan().arguments()
        arguments[name] = arguments[name].clone().fill_(torch.nan)
        y, last = slice_scan(**arguments, return_last_state=True, backend="cpu")
        assert y.isnan().all()
        assert last.isnan().all() == (name not in ("C", "D", "z"))


def test_saved_states_take_less_memory_than_one_map():
    arguments = Scan(b=1, h=64, w=256, d=144, n=16).arguments()
    arguments["B"], arguments["C"] = arguments["B"][..., None, :], arguments["C"][..., None, :]
    shape, dtype = backend.saved_spec(ScanCall(**arguments))
    assert torch.empty(shape, dtype=dtype).nbytes <= arguments["u"].nbytes / 2
    assert backend.saved_spec(ScanCall(**(arguments | {"axis": "h"})))[0][1] == 1


def test_a_second_process_finds_the_compiled_kernels():
    run(Scan().arguments())  # compiles, if nobody has
    if kernels.scan_forward.stats.cache_path is None:
        pytest.fail("numba finds no folder for its cache")
    script = "\n".join([
        "from tests.ops.test_cpu import Scan, kernels, run",
        "run(Scan().arguments())",
        "hits = [sum(kernel.stats.cache_hits.values()) for kernel in (kernels.scan_forward, kernels.scan_backward)]",
        "assert hits == [1, 1], hits",
    ])  # fmt: skip
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch):
    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(build, "njit", refusing)
    assert build.entry(lambda x: x + 1)(1) == 2


def test_it_says_why_it_cannot_run(monkeypatch):
    u, mix = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 1, 2)
    call = ScanCall(u, u, torch.zeros(4, 2), mix, mix)
    assert backend.why_not(call) is None
    assert (
        backend.why_not(ScanCall(u.to("meta"), u, torch.zeros(4, 2), mix, mix)) == "needs tensors on the CPU, got meta"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install numba" in backend.numba_missing.__wrapped__()
    monkeypatch.undo()

    def broken(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr("importlib.import_module", broken)
    assert backend.numba_missing.__wrapped__() == (
        "numba does not load (Numba needs NumPy 2.3 or less): pip install --upgrade numba"
    )
