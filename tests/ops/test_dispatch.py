"""Which backend runs a call, what a user reads where one cannot, and the adapter to a package that is not here."""

import dataclasses
import subprocess
import sys
import types
import warnings

import pytest
import torch
from torch import Tensor

from slicescan import ops
from slicescan.ops import BackendError, dispatch, low_rank, slice_scan
from slicescan.ops.backends import mamba_ssm
from slicescan.ops.call import ScanCall
from tests.parity import measure
from tests.strategies import Scan


def run(**changes) -> Tensor:
    return slice_scan(**(Scan().arguments() | changes))


def test_every_backend_keeps_the_contract():
    assert dispatch.ALL[-1] == "reference"
    for name in dispatch.ALL:
        backend = dispatch.load(name)
        assert callable(backend.why_not)
        if name != "reference":
            assert callable(backend.forward) and callable(backend.backward) and callable(backend.saved_spec)


def test_importing_operators_loads_no_fast_backend():
    program = "import sys, slicescan.ops; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in found if name.startswith("slicescan.ops.backends.")] == [
        "slicescan.ops.backends.reference"
    ]
    assert not {"numba", "mamba_ssm", "torch._dynamo", "torch._inductor"} & set(found)


def test_the_first_backend_that_can_runs_the_call():
    with dispatch.watching() as names:
        run()
    able = [status.name for status in dispatch.report("cpu") if status.reason is None]
    assert names == {able[0]} and able[0] != "reference"


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_a_name_or_the_environment_chooses(name, monkeypatch):
    with dispatch.watching() as names:
        run(backend=name)
    assert names == {name}
    monkeypatch.setenv("SLICESCAN_BACKEND", name)
    with dispatch.watching() as names:
        run()
        run(backend=None)
    assert names == {name}
    with dispatch.watching() as names:
        run(backend="reference" if name == "torch" else "torch")
    assert name not in names


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="'cuda' cannot run this call: needs CUDA tensors, got cpu"):
            run(backend="cuda")
    with pytest.raises(BackendError, match="unknown backend 'tritonn'; there are cuda, .*reference, and 'auto'"):
        run(backend="tritonn")
    monkeypatch.setenv("SLICESCAN_BACKEND", "numba")
    with pytest.raises(BackendError, match=r"unknown backend 'numba' \(from SLICESCAN_BACKEND\)"):
        run()
    monkeypatch.setenv("SLICESCAN_BACKEND", "auto")
    run()


def test_the_report_names_every_backend_in_order():
    report = dispatch.report("cpu")
    assert tuple(status.name for status in report) == dispatch.ALL
    reasons = dict(report)
    assert reasons["torch"] is None and reasons["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in reasons.values())


@pytest.fixture
def mine():
    """A backend from outside the package that runs calls of one direction, and remembers that it did."""
    plain = dispatch.load("torch")
    seen = []

    def forward(call, *, save):
        seen.append("forward")
        return plain.forward(call, save=save)

    def backward(*arguments):
        seen.append("backward")
        return plain.backward(*arguments)

    mine = types.SimpleNamespace(forward=forward, backward=backward, saved_spec=plain.saved_spec, seen=seen)
    mine.why_not = lambda call: "it runs forwards only" if call.reverse else None
    yield mine
    dispatch.unregister_backend("mine")
    assert dispatch.ALL == dispatch.BUILT_IN


def test_a_backend_from_outside_runs_the_calls_that_name_it(mine):
    ops.register_backend("mine", mine)
    assert dispatch.report("cpu")[-2:] == [("mine", None), ("reference", None)]
    u = Scan().arguments()["u"].requires_grad_()
    run(u=u)
    assert not mine.seen
    run(u=u, backend="mine").sum().backward()
    assert mine.seen == ["forward", "backward"]
    with pytest.raises(BackendError, match="backend 'mine' cannot run this call: it runs forwards only"):
        run(reverse=True, backend="mine")


def test_a_backend_meets_steps_of_low_rank_only_if_it_says_so(mine):
    ops.register_backend("mine", mine)
    arguments = Scan(rank=2).arguments()
    tensors = {name: x.requires_grad_() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    widths, plain = [], mine.forward

    def forward(call, *, save):
        widths.append((call.delta.shape[3], call.delta_weight is None))
        return plain(low_rank.project(call), save=save)

    mine.forward = forward
    slice_scan(**tensors, backend="mine").sum().backward()
    mine.fuses_steps = lambda call, direction: direction == "forward"
    slice_scan(**tensors, backend="mine").sum().backward()
    assert widths == [(6, True), (2, False)] and mine.seen == ["forward", "backward"] * 2


def test_a_backend_from_outside_may_be_tried_before_others(mine):
    ops.register_backend("mine", mine, before="cuda")
    with dispatch.watching() as names:
        run()
        run(reverse=True)
    assert "mine" in names and len(names) == 2
    ops.register_backend("mine", dispatch.load("torch"), before="torch")  # once more, elsewhere
    assert dispatch.ALL == (*dispatch.BUILT_IN[:-2], "mine", "torch", "reference")
    assert dispatch.load("mine") is dispatch.load("torch")


def test_what_is_no_backend_is_not_registered(mine):
    for name in ("cpu", "auto"):
        with pytest.raises(ValueError, match=f"the name '{name}' is taken"):
            ops.register_backend(name, mine)
    with pytest.raises(ValueError, match="before must be one of cuda, .*reference; got 'gpu'"):
        ops.register_backend("mine", mine, before="gpu")
    with pytest.raises(TypeError, match="'mine' lacks saved_spec, backward; it needs why_not"):
        ops.register_backend("mine", types.SimpleNamespace(why_not=mine.why_not, forward=mine.forward))


@pytest.fixture
def forgetful():
    dispatch._warn_of_slowness.cache_clear()
    yield
    dispatch._warn_of_slowness.cache_clear()


def test_a_slow_scan_is_told_once_with_the_reason(monkeypatch, forgetful):
    broken = types.SimpleNamespace(why_not=lambda call: "needs numba: pip install numba")
    load = dispatch.load
    monkeypatch.setattr(dispatch, "ALL", ("cpu", "torch", "reference"))
    monkeypatch.setattr(dispatch, "load", lambda name: broken if name == "cpu" else load(name))
    with pytest.warns(UserWarning, match="scans on cpu run slowly.*cpu: needs numba: pip install numba") as told:
        run()
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
        run(backend="torch")


# mamba_ssm, with a plain function in the place of its kernel


def package_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, *, return_last_state):
    """The signature and layout of the package's function: (s, d, l), and (s, g, n, l)."""
    assert all(x.is_contiguous() for x in (u, delta, B, C))
    rows = {"u": u, "delta": delta, "z": z}
    rows = {name: None if x is None else x.permute(0, 2, 1)[:, None] for name, x in rows.items()}
    mixes = {name: x.permute(0, 3, 1, 2)[:, None] for name, x in (("B", B), ("C", C))}
    flags = {"axis": "w", "delta_softplus": delta_softplus, "return_last_state": return_last_state}
    y, last = slice_scan(**rows, **mixes, A=A, D=D, delta_bias=delta_bias, **flags, backend="reference")
    return y[:, 0].permute(0, 2, 1), last[:, 0]


@pytest.mark.parametrize(
    "scan",
    [
        Scan(),
        Scan(axis="h", reverse=True, groups=2, layout="planes", dtype=torch.bfloat16),
        Scan(carry=True, axis="h", delta_softplus=False, without=("D",)),
        Scan(carry=True, reverse=True, without=("z", "delta_bias"), layout="cut"),
        Scan(rank=2),
    ],
    ids=["rows", "columns", "carried", "backwards", "low rank"],
)
def test_the_adapter_to_mamba_ssm_brings_every_call_to_its_layout(scan, monkeypatch):
    monkeypatch.setattr(mamba_ssm, "_scan_function", lambda: package_scan)
    monkeypatch.setattr(mamba_ssm, "why_not", lambda call: None)
    scan = scan.replace(without=(*scan.without, "initial_state"))

    def adapted(**arguments):
        return slice_scan(**arguments, backend="mamba_ssm")

    errors = measure(adapted, scan.arguments(), last_state=False)
    assert all(error.passes for error in errors.values()), errors


def test_the_adapter_to_mamba_ssm_differentiates_no_last_state(monkeypatch):
    monkeypatch.setattr(mamba_ssm, "_scan_function", lambda: package_scan)
    monkeypatch.setattr(mamba_ssm, "why_not", lambda call: None)
    arguments = Scan(without=("initial_state",)).arguments()
    tensors = {name: x.requires_grad_() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    _, last = slice_scan(**tensors, return_last_state=True, backend="mamba_ssm")
    with pytest.raises(RuntimeError, match="no gradient of the last state"):
        last.sum().backward()


def on_a_gpu(scan: Scan) -> ScanCall:
    """A call whose tensors claim to be on a GPU: as much as is asked before the package is tried."""

    class Claimed(Tensor):
        device = torch.device("cuda:0")

    arguments = scan.arguments()
    u = arguments["u"].as_subclass(Claimed)
    mix = torch.zeros(*u.shape[:3], 1, scan.n)
    state = arguments.get("initial_state")
    return ScanCall(u, u, arguments["A"], mix, mix, initial_state=state)


def test_mamba_ssm_says_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr(mamba_ssm, "_broken", lambda device: None)
    bare = Scan(without=("initial_state",))
    assert mamba_ssm.why_not(on_a_gpu(bare)) is None
    assert "initial_state" in mamba_ssm.why_not(on_a_gpu(Scan()))
    assert "float64" in mamba_ssm.why_not(on_a_gpu(bare.replace(dtype=torch.float64)))
    assert "at most 256 states" in mamba_ssm.why_not(on_a_gpu(bare.replace(n=257, d=1)))
    long = on_a_gpu(bare)
    maps = {name: getattr(long, name)[:, :1].expand(-1, 2**29, -1, -1) for name in ("u", "delta")}
    assert "fewer than 2^31 elements" in mamba_ssm.why_not(dataclasses.replace(long, **maps))
    assert "empty" in mamba_ssm.why_not(on_a_gpu(bare.replace(w=0)))


def test_an_absent_or_broken_mamba_ssm_is_named_with_its_install_line(monkeypatch):
    mamba_ssm._broken.cache_clear()
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert "pip install 'slicescan[mamba]'" in mamba_ssm._broken(0)
    mamba_ssm._broken.cache_clear()

    def dies():
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(mamba_ssm, "_scan_function", dies)
    assert "does not run on this device (no kernel image is available)" in mamba_ssm._broken(0)
    mamba_ssm._broken.cache_clear()
