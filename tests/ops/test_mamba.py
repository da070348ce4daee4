"""The gradients of a Mamba block that are written by hand, against those of the operations that define it."""

import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slicescan.ops import dispatch
from slicescan.ops.backends import cuda
from slicescan.ops.backends.cuda import conv, plan
from slicescan.ops.mamba import Weights, can_mix_by_hand, mixed, mixed_by_hand, scan_to
from tests.layers.agreement import relative
from tests.ops import cuda_emulator

BFLOAT, HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64


def draw(b=2, h=3, w=7, dim=12, d=24, n=5, r=3, taps=4, bias=True, conv_bias=True, dtype=DOUBLE, of=None):
    """A map that is half of a wider one, and weights far from their initialisation, of dtypes ``of`` and ``dtype``."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=DOUBLE) * scale).to(dtype).requires_grad_()

    x = normal(b, h, w, 2 * dim).detach().to(of or dtype)[..., dim:].requires_grad_()
    weights = Weights(
        normal(2 * d, dim, scale=dim**-0.5), normal(2 * d) if bias else None,
        normal(d, 1, taps, scale=0.5), normal(d) if conv_bias else None,
        normal(r + 2 * n, d, scale=d**-0.5), normal(d, r), normal(d), normal(d, n, scale=0.5), normal(d),
        normal(dim, d, scale=d**-0.5), normal(dim) if bias else None,
    )  # fmt: skip
    return x, weights


def results(run, x, weights):
    """The output and the gradient of everything, by name."""
    leaves = {"x": x} | {name: t for name, t in weights._asdict().items() if t is not None}
    y = run(x, weights)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).to(y.dtype)
    return {"y": y.detach()} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), probe), strict=True))


def widened(x, weights):
    return x.detach().double().requires_grad_(), Weights(
        *[t if t is None else t.detach().double().requires_grad_() for t in weights]
    )


def judge(x, weights, axis, aligned, region=contextlib.nullcontext):
    """Demand gradients as near the exact ones as those of the ordinary operations, which round as often or oftener."""
    exact = results(lambda *given: mixed(*given, axis), *widened(x, weights))

    def inside(run):
        def within(*given):
            with region():
                return run(*given)

        return results(within, x, weights)

    plain = inside(lambda *given: mixed(*given, axis))
    found = inside(lambda *given: mixed_by_hand(*given, axis, aligned=aligned))
    assert found.keys() == plain.keys()
    for name, value in found.items():
        like = plain[name]
        assert (value.dtype, value.shape) == (like.dtype, like.shape), name
        rounding = max(torch.finfo(found["y"].dtype).eps, 1e-12)  # the exact ones are float64 themselves
        assert relative(value, exact[name]) <= 2 * relative(like, exact[name]) + rounding, name
    for name, value in inside(lambda *given: mixed_by_hand(*given, axis, aligned=aligned, keep=True)).items():
        assert torch.equal(value, found[name]), name


CASES = {
    "half of a wider map": {},
    "without biases": {"bias": False, "conv_bias": False},
    "bias of the projections alone": {"conv_bias": False},
    "rank 8, without a gap": {"r": 8},
    "one state, rank and tap": {"n": 1, "r": 1, "taps": 1},
    "one pixel": {"b": 1, "h": 1, "w": 1},
    "odd sizes": {"b": 1, "h": 5, "w": 3, "dim": 7, "d": 11, "n": 3, "r": 2, "taps": 3},
    "longer than a chunk": {"h": 19, "w": 21, "dim": 4, "d": 6},
}


@pytest.mark.parametrize("axis", ["h", "w"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [DOUBLE, FLOAT])
def test_gradients_are_those_of_the_operations(name, axis, dtype):
    for aligned in (False, True):
        judge(*draw(**CASES[name], dtype=dtype), axis, aligned)


@pytest.mark.parametrize("dtype", [BFLOAT, HALF])
@pytest.mark.parametrize("of", [FLOAT, None])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradients_in_autocast_round_as_those_of_the_operations(dtype, of, aligned):
    arguments = draw(h=9, w=17, dim=16, d=32, n=8, dtype=FLOAT, of=of or dtype)
    judge(*arguments, "h", aligned, lambda: torch.autocast("cpu", dtype=dtype))


def test_a_block_may_be_bfloat16_itself():
    judge(*draw(h=9, w=17, dtype=BFLOAT), "w", True)


def test_gradients_leave_autocast_as_they_entered_it():
    x, weights = draw(dtype=FLOAT)
    with torch.autocast("cpu", dtype=BFLOAT):
        y = mixed_by_hand(x, weights, "w", aligned=True)
        assert mixed(x, weights, "w").requires_grad  # no weight was cast without its gradient
    with torch.autocast("cpu", dtype=HALF):
        inside = torch.autograd.grad(y, weights.in_proj, torch.ones_like(y), retain_graph=True)[0]
    assert torch.equal(inside, torch.autograd.grad(y, weights.in_proj, torch.ones_like(y))[0])


@pytest.mark.parametrize("alone", ["x", *Weights._fields])
@pytest.mark.parametrize("aligned", [False, True])
def test_one_thing_alone_or_all_but_one_may_want_gradients(alone, aligned):
    x, weights = draw()
    expected = results(lambda *given: mixed(*given, "w"), x, weights)
    given = {"x": x} | weights._asdict()
    for wanted in ({alone}, given.keys() - {alone}):
        for name, tensor in given.items():
            tensor.requires_grad_(name in wanted)
        y = mixed_by_hand(x, weights, "w", aligned=aligned)
        probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
        names = [name for name in given if name in wanted]
        for name, found in zip(names, torch.autograd.grad(y, [given[k] for k in names], probe), strict=True):
            assert relative(found, expected[name]) < 1e-12, name
            given[name].grad = None


def test_nothing_is_kept_but_input_and_weights():
    x, weights = draw(h=16, w=16, dtype=FLOAT)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixed_by_hand(x, weights, "w", aligned=True)
    maps = [t for t in kept if t.numel() > max(weights.in_proj.numel(), weights.A_log.numel())]
    assert [t.data_ptr() for t in maps] == [x.data_ptr()]


def test_gradients_have_gradients_where_the_scan_has(monkeypatch):
    x, weights = draw(b=1, h=2, w=4, dim=3, d=5, n=2)
    leaves = [x, *weights]
    second = []
    for run in (mixed_by_hand, mixed):
        monkeypatch.delenv(dispatch.VARIABLE, raising=False)
        y = mixed_by_hand(x, weights, "h", aligned=True) if run is mixed_by_hand else None
        monkeypatch.setenv(dispatch.VARIABLE, "reference")
        y = mixed(x, weights, "h") if y is None else y
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for found, value in zip(*second, strict=True):
        assert relative(found, value) < 1e-10


@pytest.mark.parametrize("bias", [True, False])
def test_the_result_may_be_added_to_a_map(bias):
    x, weights = draw(bias=bias)
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=DOUBLE).requires_grad_()
    leaves = [start, x, *[t for t in weights if t is not None]]
    first, second = [], []
    for run in (mixed, mixed_by_hand):
        before = start * 2
        same = {} if run is mixed else {"aligned": True, "onto": before}
        y = before + run(x, weights, "h") if run is mixed else run(x, weights, "h", **same)
        assert run is mixed or y is before
        first.append([y, *torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)])
        second.append(torch.autograd.grad(y.square().sum(), leaves, create_graph=True))
    for found, value in zip([*first[1], *second[1]], [*first[0], *second[0]], strict=True):
        assert relative(found, value) < 1e-12


@pytest.mark.parametrize("keep", [False, True])
def test_a_graph_of_the_gradients_changes_none(keep):
    x, weights = draw()
    y = mixed_by_hand(x, weights, "w", aligned=True, keep=keep)
    total, leaves = y.square().sum(), [x, *weights]
    plain = torch.autograd.grad(total, leaves, retain_graph=True)
    for found, value in zip(torch.autograd.grad(total, leaves, create_graph=True), plain, strict=True):
        assert found.requires_grad
        assert relative(found, value) < 1e-12


def test_who_counts_gradients_sees_the_scan():
    x, weights = draw()
    y = mixed_by_hand(x, weights, "w", aligned=False)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert torch.ops.slicescan.slice_scan_backward in counter.get_flop_counts()["Global"]


def test_it_stands_in_only_where_gradients_are_wanted_and_nobody_watches(monkeypatch):
    x, weights = draw()
    assert can_mix_by_hand(x, weights)
    assert can_mix_by_hand(x.detach(), weights)
    assert not can_mix_by_hand(x.detach(), Weights(*[t.detach() for t in weights]))
    assert not can_mix_by_hand(x[:0], weights)
    assert not can_mix_by_hand(x[0], weights)
    assert not can_mix_by_hand(x.to("meta"), weights)
    with FlopCounterMode(display=False):
        assert not can_mix_by_hand(x, weights)
    torch.func.vmap(lambda x: [x, can_mix_by_hand(x[None], weights) and pytest.fail("inside vmap")][0])(x)
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert not can_mix_by_hand(x, weights)


@pytest.mark.parametrize("axis", ["h", "w"])
@pytest.mark.parametrize("project", [False, True])
def test_pieces_of_a_map_are_written_where_they_belong(axis, project):
    x, weights = draw(b=2, h=5, w=7, bias=False)
    place = torch.zeros(2, 5, 7, 50, dtype=DOUBLE)
    out = place[..., 2:14] if project else place[..., 2:26]
    last = weights if project else weights._replace(out_proj=torch.eye(24, dtype=DOUBLE))
    with torch.no_grad():
        expected = mixed(x, last, axis)
        for slices in (7, 3, 2):
            place.zero_()
            scan_to(x, weights, axis, out, aligned=True, slices=slices, project=project)
            assert relative(out, expected) < 1e-12
            assert not place[..., :2].any() and not place[..., 26:].any()


@pytest.fixture
def emulated(monkeypatch):
    kinds = plan.KINDS
    monkeypatch.setattr(dispatch, "has_fast_convolution", lambda device, dtype, taps: dtype in kinds)
    with cuda_emulator.scans(monkeypatch, lambda call: None if call.u.dtype in kinds else "no float64"):
        yield


KERNELS = {
    "float32 rows": ({}, "w", None),
    "bfloat16 columns": ({"dim": 16, "d": 32, "n": 16, "r": 2}, "h", BFLOAT),
    "float16 rows, several blocks": ({"h": 2, "d": 160, "n": 8, "r": 9}, "w", HALF),
}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_write_gradients_where_they_are_wanted(name, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(plan, "FUSED_RANKS", {"forward": 0, "backward": 0})
    places = []
    scan, convolution = cuda.backward_into, conv.backward

    def noting(call, saved, grad_y, grad_last, into):
        grads = scan(call, saved, grad_y, grad_last, into)
        assert all(getattr(grads, place) is into[place] for place in into)
        places.extend([into["z"].data_ptr()] if into else [])
        return grads

    def noting_too(*arguments):
        found = convolution(*arguments)
        places.append(found[0].data_ptr())
        return found

    monkeypatch.setattr(cuda, "backward_into", noting)
    monkeypatch.setattr(conv, "backward", noting_too)
    case, axis, cast = KERNELS[name]
    x, weights = draw(**case, dtype=FLOAT)
    region = contextlib.nullcontext if cast is None else lambda: torch.autocast("cpu", dtype=cast)
    for aligned in (False, True):
        places.clear()
        judge(x, weights, axis, aligned, region)
        z, raw = places[-2:]
        assert z - raw == weights.D.numel() * (cast or FLOAT).itemsize


@pytest.mark.parametrize("emulate", [False, True])
@pytest.mark.parametrize("slices", [1, 2, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_projected_last_is_written_to_a_part_of_a_map(name, slices, emulate, request):
    if emulate:
        request.getfixturevalue("emulated")
    case, axis, cast = KERNELS[name]
    x, weights = draw(**case, dtype=FLOAT, bias=False)
    inner = weights.D.numel()
    exact = mixed(*widened(x, weights._replace(out_proj=torch.eye(inner))), axis)
    both = torch.zeros(*x.shape[:3], 2 * inner, dtype=cast or FLOAT)
    with torch.no_grad(), torch.autocast("cpu", dtype=cast or BFLOAT, enabled=cast is not None):
        scan_to(x, weights, axis, both[..., inner:], aligned=True, slices=slices)
        plain = mixed(x, weights._replace(out_proj=torch.eye(inner)), axis)
    assert not both[..., :inner].any()
    assert relative(both[..., inner:], exact) <= 1.5 * relative(plain, exact) + torch.finfo(both.dtype).eps
