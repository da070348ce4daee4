"""Check and time the layer norm's kernels on a GPU: ``python benchmarks/check_cuda.py norm``.

Errors are relative RMS against float64; beside them stands what PyTorch's norm in the map's dtype is allowed, twice its
own and one rounding. Times are medians in ms of captured graphs with flushed caches, next to the least for the bytes.
"""

import functools
import itertools
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import captured, floors
from slicescan.ops import add_layer_norm, layer_norm
from slicescan.ops.backends.cuda import driver, norm, nvrtc

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHANNELS = (3, 8, 24, 72, 144, 288, 576, 1000)
SIZES = ((2, 37, 53), (1, 1, 1), (1, 1, 129))
TIMED = ((4, 256, 256, 144), (4, 256, 256, 24), (1, 720, 1280, 144))


def make(b, h, w, c, dtype, seed=0) -> list[Tensor]:
    """``x, branch, weight, bias``, and the gradients of sum and norm; weights are float32."""
    gen = torch.Generator("cuda").manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, device="cuda", generator=gen)

    x, branch, grad_sum, grad_y = (some(b, h, w, c).to(dtype).permute(0, 3, 1, 2) for _ in range(4))
    return [x, branch, 1 + 0.5 * some(c), some(c), grad_sum, grad_y]


def plain(x, branch, weight, bias) -> list[Tensor]:
    s = x if branch is None else x + branch
    y = F.layer_norm(s.permute(0, 2, 3, 1), weight.shape, weight.to(s.dtype), bias.to(s.dtype))
    y = y.permute(0, 3, 1, 2)
    return [y] if branch is None else [s, y]


def ours(x, branch, weight, bias) -> list[Tensor]:
    return [layer_norm(x, weight, bias)] if branch is None else [*add_layer_norm(x, branch, weight, bias)]


def results(run, tensors, added, dtype=None) -> list[Tensor]:
    """Outputs and gradients of ``run``, computed in ``dtype``."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors[:4]]
    outputs = run(leaves[0], leaves[1] if added else None, *leaves[2:])
    grads = [t.to(outputs[0].dtype) for t in (tensors[4:] if added else tensors[5:])]
    wanted = leaves if added else [leaves[0], *leaves[2:]]
    return [*[t.detach() for t in outputs], *torch.autograd.grad(outputs, wanted, grads)]


def compile_ahead() -> None:
    """Compile the kernels of all checks side by side."""
    from concurrent.futures import ThreadPoolExecutor

    seen: set = set()
    launch, driver.launch = driver.launch, lambda device, kernel, *_: seen.add((kernel.file, kernel.macros))
    for dtype, c, size in itertools.product(DTYPES, CHANNELS, SIZES):
        x, branch, weight, bias, grad_sum, grad_y = make(*size, c, dtype)
        for more, grad in ((None, None), (branch, grad_sum)):
            norm.forward(x, more, weight, bias, 1e-5)
            norm.backward(x, grad, grad_y, weight, 1e-5)
    driver.launch = launch
    major, minor = torch.cuda.get_device_capability()
    with ThreadPoolExecutor(16) as pool:
        jobs = [(driver.source(file), driver.options(macros), 10 * major + minor) for file, macros in seen]
        list(pool.map(lambda job: nvrtc.compile_cached(*job), jobs))


def check() -> int:
    """How many results are wrong; each is printed."""
    failed = cases = 0
    worst = (0.0, "")
    for dtype, c, size, added in itertools.product(DTYPES, CHANNELS, SIZES, (False, True)):
        tensors = make(*size, c, dtype)
        torch.use_deterministic_algorithms(True)  # fills new memory with NaN
        found = results(ours, tensors, added)
        torch.use_deterministic_algorithms(False)
        exact, own = results(plain, tensors, added, torch.float64), results(plain, tensors, added)
        names = ["s", "y", "dx", "dbranch", "dweight", "dbias"] if added else ["y", "dx", "dweight", "dbias"]
        for name, value, truth, plainly in zip(names, found, exact, own, strict=True):
            error, limit = (
                ((t.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item() for t in (value, plainly)
            )
            limit = 2 * limit + torch.finfo(value.dtype).eps
            cases += 1
            case = (
                f"{str(dtype)[6:]} {c} channels {size} {'sum' if added else 'alone'} {name}: {error:.1e} of {limit:.1e}"
            )
            worst = max(worst, (error / limit, case))
            if not error <= limit:
                failed += 1
                print("WRONG", case, flush=True)
    print(f"norm: {cases} results, {failed} wrong; nearest to the limit: {worst[1]}")
    return failed


def same_bits() -> None:
    for size, c, dtype in (((4, 128, 128), 144, torch.bfloat16), ((2, 37, 53), 24, torch.float32)):
        tensors = make(*size, c, dtype)
        first = results(ours, tensors, True)
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(first, results(ours, tensors, True), strict=True))
        print("norm: 20 runs give equal bits:", dtype, size, c)


def both(run, tensors, added) -> list[Tensor]:
    """Outputs and gradients, with what requires gradients as it is."""
    x, branch, weight, bias, grad_sum, grad_y = tensors
    outputs = run(x, branch if added else None, weight, bias)
    wanted = [x, branch, weight, bias] if added else [x, weight, bias]
    return [*torch.autograd.grad(outputs, wanted, [grad_sum, grad_y] if added else [grad_y])]


def times() -> None:
    from triton.testing import do_bench

    for dtype, (b, h, w, c), added in itertools.product((torch.bfloat16, torch.float32), TIMED, (False, True)):
        tensors = make(b, h, w, c, dtype)
        cast = [tensors[0], tensors[1], *[t.to(dtype) for t in tensors[2:4]], *tensors[4:]]  # spares torch the casts
        passes = {"forward": 4 if added else 2, "both": 8 if added else 5}
        cells = []
        for name, maps in passes.items():
            medians = []
            for run, given in ((ours, tensors), (plain, cast)):
                given = [t.detach().requires_grad_(name == "both" and i < 4) for i, t in enumerate(given)]
                alone = functools.partial(run, given[0], given[1] if added else None, *given[2:4])
                call = captured(alone if name == "forward" else functools.partial(both, run, given, added))
                medians.append(do_bench(call, warmup=4, rep=30, return_mode="median"))
            floor = floors(0, 0, maps * tensors[0].numel() * dtype.itemsize)[1]
            least = f"{floor:.3f}" if floor else "unknown"
            cells.append(f"{name} {medians[0]:.3f}, torch {medians[1]:.3f}, bytes {least}")
        what = "sum and norm" if added else "norm"
        print(f"{what:12s} {(b, h, w, c)} {str(dtype)[6:]} |", " | ".join(cells), flush=True)


def host_time() -> None:
    """Microseconds of the host a call, with a GPU that is never behind."""
    tensors = make(1, 8, 8, 24, torch.float32)
    leaves = [t.detach().requires_grad_(i < 4) for i, t in enumerate(tensors)]
    for added, (name, run) in itertools.product((False, True), {"ours": ours, "torch": plain}.items()):
        branch = tensors[1] if added else None
        calls = {
            "forward": functools.partial(run, tensors[0], branch, *tensors[2:4]),
            "forward and backward": functools.partial(both, run, leaves, added),
        }
        for what, call in calls.items():
            call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(500):
                call()
            torch.cuda.synchronize()
            took = (time.perf_counter() - start) * 2000
            print(f"host, {'sum and norm' if added else 'norm'}, {name}, {what}: {took:.0f} us")


def main() -> int:
    compile_ahead()
    failed = check()
    same_bits()
    host_time()
    times()
    return failed
