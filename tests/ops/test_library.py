"""The scan as an operator: compiled, exported, counted, under autocast, and with its derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from slicescan.ops import BackendError, causal_conv, selective_scan, slice_scan
from slicescan.ops.library import FLOPS_PER_UPDATE, slice_scan_backward_op, slice_scan_op
from tests.layers.agreement import relative
from tests.parity import available
from tests.strategies import Scan

FIELDS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "delta_weight")
operators = pytest.mark.parametrize("backend", [name for name in available("cpu") if name != "reference"])


def split(scan: Scan) -> tuple[dict, dict]:
    arguments = scan.arguments()
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    return tensors, {name: x for name, x in arguments.items() if name not in tensors}


def leaves(tensors: dict) -> dict:
    return {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}


def results(run: Callable, tensors: dict) -> list[Tensor]:
    """Outputs and gradients of ``run(**tensors) -> (y, last_state)``."""
    own = leaves(tensors)
    y, last = run(**own)
    return [y, last, *torch.autograd.grad(y.square().sum() + last.sum(), list(own.values()))]


def assert_equal(one: list[Tensor], two: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of copies that the check makes
@operators
@pytest.mark.parametrize(
    "scan",
    [
        Scan(groups=2),
        Scan(axis="h", reverse=True, layout="planes", dtype=torch.bfloat16),
        Scan(carry=True, without=("D", "z", "delta_bias", "initial_state"), delta_softplus=False, dtype=torch.float64),
        Scan(w=0, dtype=torch.float16),
        Scan(rank=3, layout="cut", reverse=True, dtype=torch.bfloat16),
    ],
    ids=["grouped", "columns", "carried", "empty", "low rank"],
)
def test_the_operator_passes_the_checks_of_pytorch(backend, scan):
    tensors, flags = split(scan)
    own = leaves(tensors)
    if scan.groups is None:
        own |= {name: own[name].detach().unsqueeze(3).requires_grad_() for name in ("B", "C")}
    if scan.carry and "initial_state" in own:
        own["initial_state"] = own["initial_state"].detach().unsqueeze(1).requires_grad_()
    fields = [own.get(name) for name in FIELDS]
    settings = (flags["axis"], flags["reverse"], flags["carry"], flags["delta_softplus"], backend)
    torch.library.opcheck(slice_scan_op, (*fields, *settings, True))
    plain = [None if x is None else x.detach() for x in fields]
    torch.library.opcheck(slice_scan_op, (*plain, *settings, False))
    y, last, saved = slice_scan_op(*plain, *settings, True)
    torch.library.opcheck(slice_scan_backward_op, (*plain, *settings, saved, y, last))


@operators
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rank", [None, 3])
def test_compiled_whole_it_gives_equal_bits(backend, dynamic, rank):
    torch.compiler.reset()  # its limit of recompilations counts those of earlier tests
    tensors, _ = split(Scan(axis="h", reverse=True, rank=rank))

    def run(**tensors):
        return slice_scan(
            **tensors, axis="h", reverse=True, delta_softplus=True, return_last_state=True, backend=backend
        )

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_equal(results(compiled, tensors), results(run, tensors))
    with torch.no_grad():
        assert_equal(list(compiled(**tensors)), list(run(**tensors)))
    other, _ = split(Scan(h=7, w=4, axis="h", reverse=True, rank=rank))
    assert_equal(results(compiled, other), results(run, other))


def test_every_function_compiles_whole_with_the_backend_left_open():
    def run(u, steps, A, mix, weight):
        u = causal_conv(u, weight, axis="w", silu=True)
        y = slice_scan(u, steps, A, mix, mix, axis="w")
        return y + selective_scan(u[:, 0], steps[:, 0], A, mix[:, 0], mix[:, 0], reverse=True)[:, None]

    tensors, _ = split(Scan(delta_softplus=False))
    arguments = tensors["u"], tensors["delta"], tensors["A"], tensors["B"], torch.ones(6, 4)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert relative(compiled(*arguments), run(*arguments)) < 1e-6  # eagerly a CPU convolves by a kernel of its own
    arguments[0].requires_grad_()  # then it does not
    assert torch.equal(compiled(*arguments), run(*arguments))


def test_the_reference_compiles_as_plain_code():
    def run(**tensors):
        return slice_scan(**tensors, axis="w", delta_softplus=True, return_last_state=True, backend="reference")

    tensors, _ = split(Scan(w=2))
    found = results(torch.compile(run, fullgraph=True, backend="aot_eager"), tensors)
    for one, two in zip(found, results(run, tensors), strict=True):
        torch.testing.assert_close(one, two)


class Rows(nn.Module):
    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Tensor:
        return slice_scan(u, delta, A, B, C, None, z, axis="w", delta_softplus=True)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_one_scan_for_every_size(strict):
    def inputs(scan: Scan) -> tuple[Tensor, ...]:
        return tuple(scan.arguments()[name] for name in ("u", "delta", "A", "B", "C", "z"))

    h, w = torch.export.Dim("h", min=1, max=512), torch.export.Dim("w", min=1, max=512)
    sizes = {name: None if name == "A" else {1: h, 2: w} for name in ("u", "delta", "A", "B", "C", "z")}
    program = torch.export.export(Rows(), inputs(Scan()), dynamic_shapes=sizes, strict=strict)
    calls = [node.target for node in program.graph.nodes if "slicescan" in str(node.target)]
    assert calls == [torch.ops.slicescan.slice_scan.default]
    for scan in (Scan(), Scan(h=2, w=31)):
        assert torch.equal(program.module()(*inputs(scan)), Rows()(*inputs(scan)))


def test_shapes_are_known_without_numbers():
    scan = Scan(b=2, h=1080, w=1920, d=6, n=16, axis="h", layout="planes")
    with FakeTensorMode():
        arguments = {
            "u": torch.empty(2, 6, 1080, 1920, dtype=torch.bfloat16).permute(0, 2, 3, 1),
            "A": torch.empty(6, 16),
            "B": torch.empty(2, 1080, 1920, 16, dtype=torch.bfloat16),
        }
        u, A, B = (x.requires_grad_() for x in arguments.values())
        y, last = slice_scan(u, u, A, B, B, axis="h", return_last_state=True)
        grads = torch.autograd.grad(y.sum(), (u, A, B))
    assert (y.shape, y.stride(), y.dtype) == (u.shape, u.stride(), torch.bfloat16)
    assert (last.shape, last.dtype) == ((2, 1920, 6, 16), torch.float32)
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in (u, A, B)]
    nowhere = {
        name: x.to("meta") if isinstance(x, Tensor) else x for name, x in scan.replace(h=9, w=9).arguments().items()
    }
    assert slice_scan(**nowhere).shape == (2, 9, 9, 6)


@pytest.mark.parametrize("rank", [None, 3])
def test_state_updates_and_projected_steps_are_counted_forwards_and_twice_backwards(rank):
    tensors, flags = split(Scan(rank=rank))
    own = leaves(tensors)
    flops = own["u"].numel() * (FLOPS_PER_UPDATE * own["A"].shape[1] + 2 * (rank or 0))
    with FlopCounterMode(display=False) as counter:
        y = slice_scan(**own, **flags)
    assert counter.get_total_flops() == flops
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        slice_scan(**tensors, **flags)
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize("backend", available("cpu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_bit(backend, dtype):
    tensors, flags = split(Scan(dtype=dtype))

    def run(**tensors):
        return slice_scan(**tensors, **flags, return_last_state=True, backend=backend)

    plain = results(run, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(results(run, tensors), plain)
        with torch.no_grad():
            assert_equal(
                list(run(**tensors)), list(slice_scan(**tensors, **flags, return_last_state=True, backend=backend))
            )
        found = (
            results(torch.compile(run, fullgraph=True, backend="aot_eager"), tensors)
            if backend != "reference"
            else plain
        )
    assert_equal(found, plain)


def test_results_share_no_memory_with_arguments():
    for scan in (Scan(), Scan(w=0), Scan(h=0, carry=True), Scan(d=1, n=1, w=1)):
        for backend in available("cpu"):
            arguments = scan.arguments()
            given = {x.untyped_storage().data_ptr() for x in arguments.values() if isinstance(x, Tensor)}
            for result in slice_scan(**arguments, return_last_state=True, backend=backend):
                assert not result.numel() or result.untyped_storage().data_ptr() not in given


def test_a_second_derivative_is_refused_with_a_way_out():
    tensors, flags = split(Scan())
    own = leaves(tensors)
    first = torch.autograd.grad(slice_scan(**own, **flags, backend="torch").sum(), own["u"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative.*backend='reference'"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # PyTorch's own use of it
def test_transforms_of_functions_run_the_reference():
    tensors, flags = split(Scan(dtype=torch.float64))

    def run(u):
        return slice_scan(**(tensors | {"u": u}), **flags)

    u = tensors["u"]
    value, tangent = torch.func.jvp(run, (u,), (u,))
    skew = run(torch.zeros_like(u))  # what the state before the first step leaves
    torch.testing.assert_close(tangent, value - skew)
    torch.testing.assert_close(torch.vmap(run)(torch.stack([u, 2 * u]))[0], run(u))
    gradient = torch.func.grad(lambda u: run(u).sum())(u)
    own = leaves({"u": u})["u"]
    torch.testing.assert_close(gradient, torch.autograd.grad(run(own).sum(), own)[0])
    with pytest.raises(BackendError, match="'torch' has no rules.*backend='reference'"):
        torch.vmap(lambda u: slice_scan(**(tensors | {"u": u}), **flags, backend="torch"))(torch.stack([u, u]))


def test_the_environment_may_change_before_the_backward_pass(monkeypatch):
    tensors, flags = split(Scan())
    own = leaves(tensors)
    y = slice_scan(**own, **flags)
    monkeypatch.setenv("SLICESCAN_BACKEND", "mamba_ssm")
    y.sum().backward()
    assert own["A"].grad is not None


def test_frozen_arguments_get_no_gradient():
    tensors, flags = split(Scan())
    own = leaves(tensors)
    own["u"].requires_grad_(False)
    slice_scan(**own, **flags).sum().backward()
    assert own["u"].grad is None and own["delta"].grad is not None
