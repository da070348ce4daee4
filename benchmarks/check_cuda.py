"""Check and time the CUDA backend on a GPU: ``python benchmarks/check_cuda.py [check] [times] [steps] [fuse] ...``.

Errors are relative RMS against a float64 recurrence; beside them stands the limit that the same recurrence sets when it
is computed plainly in the call's dtype. Times are medians in ms with flushed caches, next to the exponentials' floor.
"""

import dataclasses
import functools
import importlib
import itertools
import sys
import time

import torch
import torch.nn.functional as F

from slicescan.ops import low_rank
from slicescan.ops.backends import cuda
from slicescan.ops.call import ScanCall

TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "delta_weight")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make(shape, n=16, *, dtype="bf16", groups=1, rank=None, axis="w", reverse=False, carry=False, softplus=True,
         without="", odd=0, seed=0) -> ScanCall:  # fmt: skip
    """A random call; ``odd`` shifts every map off its alignment, ``without`` names arguments to leave out.

    With ``rank`` the steps are of low rank and cut, with ``B`` and ``C``, out of one map, as a layer makes it.
    """
    gen = torch.Generator("cuda").manual_seed(seed)
    b, h, w, d = shape
    t = DTYPES[dtype]

    def draw(*size):
        return torch.randn(*size, device="cuda", generator=gen)

    def mapped(*tail):
        x = draw(b, h, w, torch.Size(tail).numel() + odd).to(t)[..., odd:]
        return x.unflatten(-1, tail) if len(tail) > 1 else x

    states = 1 if carry else h if axis == "w" else w
    delta = mapped(d) * 0.5 - 1.0 if softplus else mapped(d).abs() * 0.2
    A = -torch.arange(1, n + 1, device="cuda") * (1 + 0.1 * torch.rand(d, n, device="cuda", generator=gen))
    optional = {"D": draw(d), "z": mapped(d), "delta_bias": draw(d).abs() * 0.3, "initial_state": draw(b, states, d, n)}
    for name in without.split():
        optional[name] = None
    B, C = mapped(groups, n), mapped(groups, n)
    if rank is not None:
        sizes = [rank, groups * n, groups * n]
        low, weight = mapped(rank), draw(d, rank) * rank**-0.5
        low, weight = (low, weight) if softplus else (low.abs() * 0.2, weight.abs())
        delta, B, C = torch.cat([low, B.flatten(3), C.flatten(3)], -1).split(sizes, -1)
        B, C = B.unflatten(-1, (groups, n)), C.unflatten(-1, (groups, n))
        optional["delta_weight"] = weight
    return ScanCall(mapped(d), delta, A, B, C, **optional, axis=axis, reverse=reverse, carry=carry,
                    delta_softplus=softplus)  # fmt: skip


def plain(call: ScanCall, dtype, state, grad_y, grad_last) -> dict[str, torch.Tensor]:
    """Outputs and gradients of the recurrence, one step after another, in ``dtype`` with the state in ``state``."""
    leaves = {k: getattr(call, k).detach().to(dtype if k in "uBC" or k in ("delta", "z") else state).requires_grad_()
              for k in TENSORS if getattr(call, k) is not None}  # fmt: skip

    def sequences(name):
        if name not in leaves:
            return None
        x = leaves[name] if call.axis == "w" else leaves[name].transpose(1, 2)
        if call.carry:
            x = x.reshape(x.shape[0], 1, -1, *x.shape[3:])
        return (x.flip(2) if call.reverse else x).to(state)

    u, delta, B, C, z = map(sequences, ("u", "delta", "B", "C", "z"))
    b, s, length, d = u.shape
    share = d // B.shape[3]
    delta = delta if call.delta_weight is None else F.linear(delta, leaves["delta_weight"])
    dt = delta if call.delta_bias is None else delta + leaves["delta_bias"]
    dt = F.softplus(dt) if call.delta_softplus else dt
    h = leaves.get("initial_state", u.new_zeros(b, s, d, call.A.shape[1]))
    ys = []
    for i in range(length):
        decay = torch.exp(dt[:, :, i, :, None] * leaves["A"])
        h = decay * h + (dt[:, :, i] * u[:, :, i])[..., None] * B[:, :, i].repeat_interleave(share, 2)
        ys.append((h * C[:, :, i].repeat_interleave(share, 2)).sum(-1))
    y = torch.stack(ys, 2)
    if call.D is not None:
        y = y + leaves["D"] * u
    if z is not None:
        y = y * F.silu(z)
    y = y.flip(2) if call.reverse else y
    outer = (call.u if call.axis == "w" else call.u.transpose(1, 2)).shape
    y = y.reshape(outer).to(dtype)
    y = y if call.axis == "w" else y.transpose(1, 2)
    names = list(leaves)
    grads = torch.autograd.grad([y, h], [leaves[k] for k in names], [grad_y.to(dtype), grad_last.to(state)])
    return {"y": y.detach(), "last": h.detach(), **{"d" + k: g for k, g in zip(names, grads, strict=True)}}


def ours(backend, call, grad_y, grad_last) -> dict[str, torch.Tensor]:
    y, last, saved = low_rank.forward(backend, call, save=True)
    again, _, _ = low_rank.forward(backend, call, save=False)
    assert torch.equal(y, again), "saving changes the result"
    grads = low_rank.backward(backend, call, saved, grad_y, grad_last)
    return {"y": y, "last": last, **{"d" + k: getattr(grads, k) for k in TENSORS if getattr(call, k) is not None}}


def error(x, exact) -> float:
    return ((x.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def compile_ahead(calls) -> None:
    """Compile the kernels of many calls side by side."""
    from concurrent.futures import ThreadPoolExecutor

    from slicescan.ops.backends.cuda import driver, nvrtc

    seen: set = set()
    launch, driver.launch = driver.launch, lambda device, kernel, *_: seen.add((kernel.file, kernel.macros))
    for call in calls:
        y, last, saved = low_rank.forward(cuda, call, save=True)
        low_rank.forward(cuda, call, save=False)
        low_rank.backward(cuda, call, saved, y, last)
    driver.launch = launch
    major, minor = torch.cuda.get_device_capability()
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(
                lambda k: nvrtc.compile_cached(driver.source(k[0]), driver.options(k[1]), major * 10 + minor), seen
            )
        )
    print(f"{len(seen)} kernels compiled")


def check(backend, cases) -> int:
    """How many cases are wrong; each is printed."""
    if backend is cuda:
        compile_ahead(make(**arguments) for _, arguments in cases)
    worst: dict[tuple[str, str], tuple[float, float, str]] = {}
    failed = 0
    for name, arguments in cases:
        call = make(**arguments)
        gen = torch.Generator("cuda").manual_seed(1)
        grad_y = torch.randn(call.u.shape, device="cuda", generator=gen).to(call.u.dtype)
        d, n = call.A.shape
        b, h, w, _ = call.u.shape
        grad_last = torch.randn(
            b, 1 if call.carry else h if call.axis == "w" else w, d, n, device="cuda", generator=gen
        )
        exact = plain(call, torch.float64, torch.float64, grad_y, grad_last)
        low = call.u.dtype
        common = plain(call, low, low, grad_y, grad_last)
        if reason := backend.why_not(call):
            print("cannot run", name, reason)
            continue
        torch.use_deterministic_algorithms(True)  # fills new memory with NaN
        got = ours(backend, call, grad_y, grad_last)
        torch.use_deterministic_algorithms(False)
        bad = []
        for k, x in exact.items():
            mine, theirs = error(got[k], x), error(common[k], x)
            limit = max(1e-5, 2 * theirs) if low == torch.float32 else 2 * theirs
            key = (str(low)[6:], k)
            if key not in worst or mine / limit > worst[key][0] / worst[key][1]:
                worst[key] = (mine, limit, name)
            if not mine <= limit:
                bad.append(f"{k} {mine:.1e} > {limit:.1e}")
        failed += bool(bad)
        if bad:
            print("WRONG", name, *bad, flush=True)
    print(f"{len(cases)} cases, {failed} wrong; the worst ratio to the limit:")
    for kind in DTYPES.values():
        print(" ", str(kind)[6:], *(f"{k} {m:.1e}/{lim:.1e} ({case})" for (t, k), (m, lim, case) in worst.items()
                                    if t == str(kind)[6:]), sep="  ")  # fmt: skip
    return failed


def cases():
    base = {"shape": (2, 3, 21, 24)}
    for t, axis, d in itertools.product(DTYPES, "wh", (24, 36, 72, 144)):
        yield f"{t} {axis} d{d}", {"shape": (2, 5, 19, d) if axis == "w" else (2, 19, 5, d), "axis": axis, "dtype": t}
    for d in (1, 3, 576):
        yield f"bf16 d{d}", {"shape": (1, 3, 9, d)}
    for t, w in itertools.product(("bf16", "fp32"), (1, 2, 3, 5, 7, 8, 9, 63, 64, 65, 257)):
        yield f"{t} l{w}", {"shape": (1, 2, w, 24), "dtype": t}
    for t, n in itertools.product(("bf16", "fp32"), (1, 4, 8, 24, 64)):
        yield f"{t} n{n}", {**base, "n": n, "dtype": t}
    yield "fp16 n40", {**base, "n": 40, "dtype": "fp16"}
    yield "bf16 chunks", {"shape": (1, 1, 2011, 72)}
    yield "fp32 chunks", {"shape": (1, 45, 31, 24), "dtype": "fp32", "axis": "h", "carry": True, "reverse": True}
    turned = {"carry": True, "axis": "h", "shape": (2, 7, 5, 24)}
    for t, r in itertools.product(DTYPES, (1, 2, 5, 9, 18, 36, 64, 65)):
        for axis, d in (("w", 72), ("h", 36)):
            yield f"{t} {axis} d{d} rank{r}", {"shape": (2, 21, 21, d), "axis": axis, "rank": r, "dtype": t}
    for t in ("bf16", "fp32"):
        yield f"{t} rank9 n24", {**base, "n": 24, "rank": 9, "dtype": t}
        yield f"{t} rank9 n64", {**base, "n": 64, "rank": 9, "dtype": t}
        yield f"{t} rank5 d8", {"shape": (2, 5, 19, 8), "rank": 5, "dtype": t}
        yield f"{t} rank18 d576", {"shape": (1, 3, 19, 576), "rank": 18, "dtype": t}
        yield f"{t} rank5 chunks", {"shape": (1, 1, 2011, 72), "rank": 5, "dtype": t}
        turns = {"axis": "h", "carry": True, "reverse": True}
        yield f"{t} rank3 chunks carry h reverse", {"shape": (1, 45, 31, 24), "rank": 3, "dtype": t, **turns}
    settings = {
        "rank": {"rank": 4},
        "rank bare": {"rank": 4, "without": "D z delta_bias initial_state"},
        "rank no softplus no bias": {"rank": 4, "softplus": False, "without": "delta_bias"},
        "rank groups": {"rank": 4, "groups": 3},
        "reverse": {"reverse": True},
        "carry": {"carry": True},
        "carry h": turned,
        "carry h reverse": {**turned, "reverse": True},
        "groups": {"groups": 3},
        "odd": {"odd": 1},
        "bare": {"without": "D z delta_bias initial_state"},
        "no z": {"without": "z"},
        "no softplus": {"softplus": False},
        "no bias": {"softplus": False, "without": "delta_bias"},
    }
    for t, (name, flags) in itertools.product(("bf16", "fp32"), settings.items()):
        yield f"{t} {name}", {**base, "dtype": t, **flags}


def same_bits(backend) -> None:
    for shape, t, rank in (((4, 128, 128, 144), "bf16", None), ((4, 96, 96, 24), "fp32", None),
                           ((4, 128, 128, 144), "bf16", 5), ((1, 64, 256, 72), "fp32", 3)):  # fmt: skip
        call = make(shape, dtype=t, rank=rank)
        grad_y = torch.randn_like(call.u)
        first = None
        for _ in range(20):
            got = ours(backend, call, grad_y, call.initial_state)
            first = first or got
            assert all(torch.equal(got[k], first[k]) for k in got), "two runs differ"
        print("20 runs give equal bits:", t, shape, "rank", rank)


def median(f) -> float:
    from triton.testing import do_bench

    return do_bench(f, warmup=4, rep=20, return_mode="median")


def times(backend, rows, tune=lambda _: None, axes="wh") -> None:
    for label, shape, t, odd, setting in rows:
        tune(setting)
        cells = []
        for axis in axes:
            call = make(shape, dtype=t, axis=axis, odd=odd, without="initial_state")
            saved = backend.forward(call, save=True)[2]
            both = (functools.partial(backend.forward, call, save=save) for save in (False, True))
            parts = [*map(median, both), median(functools.partial(backend.backward, call, saved, call.z, None))]
            cells.append(f"{axis} {parts[0]:.3f} {parts[1]:.3f} {parts[2]:.3f} = {parts[1] + parts[2]:.3f}")
        floor = call.u.numel() * 16 / (16 * 132 * 1.755e9) * 1e3
        print(f"{label:28s} {t} floor {floor:.3f} |", " | ".join(cells), flush=True)


def steps(rows) -> None:
    """Steps of low rank, projected inside the scan and before it: by these times ``plan.pays`` chooses.

    Columns are the forward pass without saving, with saving, and the backward pass, all with their matrix products.
    """
    from slicescan.ops.backends.cuda import plan

    ranks, pays = dict(plan.FUSED_RANKS), plan.pays
    plan.pays = lambda *_: True
    for (shape, t), axis in itertools.product(rows, "wh"):
        rank = -(-shape[3] // 32)  # a layer's default beside inner maps twice as wide
        call = make(shape, dtype=t, axis=axis, rank=rank, without="initial_state")
        cells = []
        for name, most in (("inside", 64), ("before", 0)):
            plan.FUSED_RANKS.update(forward=most, backward=most)
            saved = low_rank.forward(cuda, call, save=True)[2]
            parts = [median(functools.partial(low_rank.forward, cuda, call, save=save)) for save in (False, True)]
            parts.append(median(functools.partial(low_rank.backward, cuda, call, saved, call.z, None)))
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            low_rank.backward(cuda, call, saved, call.z, None)
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            cells.append(
                f"{name} {parts[0]:.3f} {parts[1]:.3f} {parts[2]:.3f} = {parts[1] + parts[2]:.3f}, {peak:.0f} MiB"
            )
        plan.FUSED_RANKS.update(ranks)
        print(f"steps of rank {rank:2d} {str(shape):22s} {t} {axis} |", " | ".join(cells), flush=True)
    plan.pays = pays


SQUARE = [(4, 256, 256, 144), (4, 128, 128, 288), (4, 64, 64, 576), (1, 720, 1280, 72)]


def huge(backend) -> None:
    """More than 2**31 elements: every row equals that row alone."""
    call = make((1, 6000, 5600, 64), without="initial_state")
    rows = slice(5996, 6000)
    part = dataclasses.replace(call, **{k: getattr(call, k)[:, rows] for k in ("u", "delta", "z", "B", "C")})
    y, _, saved = backend.forward(call, save=True)
    y_part, _, saved_part = backend.forward(part, save=True)
    assert torch.equal(y[:, rows], y_part)
    grads, grads_part = backend.backward(call, saved, call.u, None), backend.backward(part, saved_part, part.u, None)
    for k in ("u", "delta", "z", "B", "C"):
        whole, alone = getattr(grads, k)[:, rows].double(), getattr(grads_part, k).double()
        assert error(whole, alone) < 1e-2, k
    print(f"{call.u.numel() / 2**31:.2f} x 2**31 elements: right")


def tuning(backend) -> None:
    """Times of settings that a plan could choose."""
    from slicescan.ops.backends.cuda import plan

    width, make_plan, keeps = plan._lane_width, plan._plan, plan.keeps_y

    def tune(setting):
        plan._lane_width = lambda *_: setting["lanes"] if "lanes" in setting else width(*_)
        plan.keeps_y = backend.keeps_y = (lambda _: False) if "bare" in setting else keeps
        make_plan.cache_clear()
        macros = {k: v for k, v in setting.items() if k.isupper()}

        def changed(*arguments):
            p = make_plan(*arguments)
            p.__dict__["backward"] = dataclasses.replace(
                p.backward, macros=tuple((dict(p.backward.macros) | macros).items()), functions={}
            )
            return p

        plan._plan = changed if macros else make_plan

    small = (16, 192, 192, 24)
    rows = [
        (SQUARE[1], "bf16", 0, {}), (SQUARE[1], "bf16", 0, {"AT_ONCE": 1}), (SQUARE[1], "bf16", 0, {"bare": True}),
        (SQUARE[0], "bf16", 0, {"lanes": 32}), (SQUARE[0], "bf16", 0, {"lanes": 16}),
        (SQUARE[3], "bf16", 0, {"lanes": 32}), (SQUARE[3], "bf16", 0, {"lanes": 16}),
        (small, "bf16", 1, {"lanes": 8}), (small, "bf16", 1, {"lanes": 16}),
        (small, "bf16", 1, {"lanes": 32}), (SQUARE[0], "fp32", 0, {"lanes": 32}), (SQUARE[0], "fp32", 0, {"lanes": 16}),
    ]  # fmt: skip
    times(backend, [(f"{shape} {setting}", shape, t, odd, setting) for shape, t, odd, setting in rows], tune)
    tune({})


def host_time(backend) -> None:
    """Microseconds of the host a call, with a GPU that is never behind."""
    call = make((1, 2, 8, 24), without="initial_state")
    saved = backend.forward(call, save=True)[2]
    for name, f in {"forward": lambda: backend.forward(call, save=False),
                    "backward": lambda: backend.backward(call, saved, call.u, None)}.items():  # fmt: skip
        f()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(500):
            f()
        print(f"host, {name}: {(time.perf_counter() - start) * 2000:.0f} us")


def profile(backend) -> None:
    """One launch of each kernel, for a profiler to watch."""
    for shape in SQUARE[1:2]:
        call = make(shape, without="initial_state")
        backend.forward(call, save=False)
        saved = backend.forward(call, save=True)[2]
        backend.backward(call, saved, call.u, None)
    torch.cuda.synchronize()


def main() -> int:
    failed = 0
    wanted = sys.argv[1:] or ["check", "equal", "times"]
    print(torch.cuda.get_device_name(), torch.__version__)
    start = time.perf_counter()
    if "check" in wanted:
        failed += check(cuda, list(cases()))
    if "equal" in wanted:
        same_bits(cuda)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    if "profile" in wanted:
        profile(cuda)
    if "conv" in wanted:
        importlib.import_module("benchmarks.check_conv").main()
    if "norm" in wanted:
        failed += importlib.import_module("benchmarks.check_norm").main()
    if "fuse" in wanted:
        failed += importlib.import_module("benchmarks.check_fuse").main()
    if "huge" in wanted:
        huge(cuda)
    if "long" in wanted:
        rows = [(1, 1, n, d) for n in (16384, 65536) for d in (72, 216)] + [(1, 1, 10**6, 72)]
        times(cuda, [(str(s), s, t, 0, None) for t in ("bf16", "fp32") for s in rows], axes="w")
    if "host" in wanted:
        host_time(cuda)
    if "tune" in wanted:
        tuning(cuda)
    if "times" in wanted:
        times(cuda, [(str(s), s, t, 0, None) for t in ("bf16", "fp32") for s in SQUARE])
    if "times" in wanted or "steps" in wanted:
        steps([(s, t) for t in ("bf16", "fp32") for s in SQUARE])
    if "triton" in wanted:
        backend = importlib.import_module("slicescan.ops.backends.triton")
        failed += check(backend, list(cases())[::9])
        times(backend, [(str(s), s, "bf16", 0, None) for s in SQUARE[:2]])
    print(f"{', '.join(wanted)}: {failed} wrong; {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
