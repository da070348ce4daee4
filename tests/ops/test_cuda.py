"""The CUDA backend without a GPU: its source compiles, its cache and its refusals hold."""

import pytest
import torch

from slicescan.ops.backends import cuda
from slicescan.ops.backends.cuda import driver, nvrtc, plan
from slicescan.ops.call import ScanCall


def call_of(shape, *, n=16, groups=1, rank=None, dtype=torch.bfloat16, device="cpu", offset=0, **flags) -> ScanCall:
    d = shape[3]
    u = torch.zeros(*shape[:3], d + offset, dtype=dtype, device=device)[..., offset:]
    mix = torch.zeros(*shape[:3], groups, n, dtype=dtype, device=device)
    delta = u if rank is None else torch.zeros(*shape[:3], rank + 2 * n, dtype=dtype, device=device)[..., :rank]
    weight = None if rank is None else torch.zeros(d, rank, device=device)
    A = torch.zeros(d, n, device=device)
    return ScanCall(u, delta, A, mix, mix, z=u, delta_weight=weight, delta_softplus=True, **flags)


def kernels_of(call, monkeypatch, *, chunks=False) -> set:
    """Kernel files and macros of a forward and backward pass."""
    seen = set()
    monkeypatch.setattr(driver, "launch", lambda device, kernel, *_: seen.add((kernel.file, kernel.macros)))
    monkeypatch.setattr(plan, "_ENOUGH_WARPS", 10**6 if chunks else 0)
    plan._plan.cache_clear()
    y, last, saved = cuda.forward(call, save=True)
    cuda.backward(call, saved, y, last)
    plan._plan.cache_clear()
    return seen


VARIANTS = {
    "bfloat16, 32 lanes": {"shape": (1, 4, 64, 288)},
    "bfloat16, 16 lanes": {"shape": (1, 4, 64, 48)},
    "bfloat16, 8 lanes, off its alignment": {"shape": (1, 4, 64, 8), "offset": 1},
    "float16": {"shape": (1, 4, 64, 96), "dtype": torch.float16},
    "float32": {"shape": (1, 4, 64, 288), "dtype": torch.float32},
    "64 states, columns carried on": {"shape": (1, 4, 64, 24), "n": 64, "axis": "h", "carry": True},
    "chunks": {"shape": (1, 1, 4096, 72)},
    "bfloat16, rank 9": {"shape": (1, 4, 64, 288), "rank": 9},
    "bfloat16, 8 lanes, rank 18": {"shape": (1, 4, 64, 24), "rank": 18},
    "float16, rank 5": {"shape": (1, 4, 64, 144), "rank": 5, "dtype": torch.float16},
    "float32, 64 states, rank 64": {"shape": (1, 4, 64, 576), "n": 64, "rank": 64, "dtype": torch.float32},
    "chunks, rank 2": {"shape": (1, 1, 4096, 72), "rank": 2},
}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_kernels_compile_without_a_gpu(name, architecture, monkeypatch):
    kernels = kernels_of(call_of(**VARIANTS[name]), monkeypatch, chunks="chunks" in name)
    assert {kernel for kernel, _ in kernels} >= {"forward", "backward", "reduce"}
    rank = VARIANTS[name].get("rank", 0)
    for kernel, macros in kernels:
        assert dict(macros)["RANK"] == rank, kernel
        image = nvrtc.compile_source(driver.source(kernel), driver.options(macros), architecture)
        assert image.startswith(b"\x7fELF")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ranks_that_the_plan_leaves_out_are_projected_first(direction, monkeypatch):
    monkeypatch.setattr(plan, "pays", lambda *_: True)
    call = call_of((1, 2, 9, 24), rank=5)
    assert cuda.fuses_steps(call, direction)
    monkeypatch.setitem(plan.FUSED_RANKS, direction, 4)
    assert not cuda.fuses_steps(call, direction)
    assert cuda.fuses_steps(call_of((1, 2, 9, 24), rank=4), direction)
    assert not cuda.fuses_steps(call_of((1, 2, 9, 24), rank=0), direction)


def test_steps_are_projected_inside_where_that_is_faster():
    half, single = torch.bfloat16, torch.float32
    forward = {
        (d, r, t): plan.pays(t, d, r, "forward") for d, r in ((72, 3), (144, 5), (288, 9)) for t in (half, single)
    }
    assert [key for key, inside in forward.items() if not inside] == [(144, 5, half)]
    backward = {(d, t): plan.pays(t, d, 5, "backward") for d in (72, 144) for t in (half, single)}
    assert [key for key, inside in backward.items() if not inside] == [(72, single)]


def test_an_error_in_the_source_comes_with_the_compilers_words():
    with pytest.raises(nvrtc.CompileError, match="identifier .*undefined_thing"):
        nvrtc.compile_source("int x = undefined_thing;", (), "sm_80")


def test_a_device_newer_than_the_compiler_gets_code_that_its_driver_finishes():
    assert nvrtc.target(90) == "sm_90"
    assert nvrtc.target(999).startswith("compute_")
    assert b".target sm_" in nvrtc.compile_source("__global__ void f() {}", (), nvrtc.target(999))


KERNEL = 'extern "C" __global__ void f(int* x) { *x = VALUE; }'


def test_a_kernel_is_compiled_once_and_then_read_from_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESCAN_CACHE", str(tmp_path))
    first = nvrtc.compile_cached(KERNEL, ("-DVALUE=1",), 80)
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: pytest.fail("compiled again"))
    assert nvrtc.compile_cached(KERNEL, ("-DVALUE=1",), 80) == first
    assert len(list((tmp_path / "cuda").iterdir())) == 1


def test_source_options_and_device_each_make_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESCAN_CACHE", str(tmp_path))
    for source, value, capability in ((KERNEL, 1, 80), (KERNEL, 2, 80), (KERNEL, 1, 90), (KERNEL + " ", 1, 80)):
        nvrtc.compile_cached(source, (f"-DVALUE={value}",), capability)
    assert len(list((tmp_path / "cuda").iterdir())) == 4


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLICESCAN_CACHE", str(tmp_path / "file"))
    assert nvrtc.compile_cached(KERNEL, ("-DVALUE=1",), 80).startswith(b"\x7fELF")


def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.delenv("SLICESCAN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path / "slicescan"


def test_tensors_of_the_cpu_are_refused():
    assert cuda.why_not(call_of((1, 2, 3, 4))) == "needs CUDA tensors, got cpu"


@pytest.fixture
def pretend_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    driver.lacking.cache_clear()
    yield lambda call: type("Call", (), {"u": PretendCuda(call.u), "A": call.A})()
    driver.lacking.cache_clear()


class PretendCuda:
    device = torch.device("cuda", 0)

    def __init__(self, tensor):
        self.dtype = tensor.dtype


def test_refusals_name_the_remedy(pretend_cuda, monkeypatch):
    good = pretend_cuda(call_of((1, 2, 3, 4)))
    assert cuda.why_not(good) is None
    assert "float64; use backend='torch'" in cuda.why_not(pretend_cuda(call_of((1, 2, 3, 4), dtype=torch.float64)))
    assert "at most 64 states a channel, got 65" in cuda.why_not(pretend_cuda(call_of((1, 2, 3, 4), n=65)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    driver.lacking.cache_clear()
    assert "compute capability 8.0" in cuda.why_not(good)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc, "_candidates", lambda: ["libnothing.so"])
    driver.lacking.cache_clear()
    assert "pip install nvidia-cuda-nvrtc" in cuda.why_not(good)
    nvrtc._library.cache_clear()
