import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from slicescan.engine import memory
from slicescan.engine.memory import LiveMemory, bytes_a_pixel, free_memory, out_of_memory

CPU = torch.device("cpu")


def test_the_peak_is_what_tensors_hold_together():
    live = LiveMemory()
    with live:
        a = torch.zeros(1000)
        b = a + 1
        del a, b
        c = torch.zeros(500)
        c.view(50, 10)
    assert live.peak == 8000


def test_a_pixel_needs_what_was_measured_and_a_half():
    model = nn.Conv2d(3, 8, 1)
    assert bytes_a_pixel(model, lambda x: model(x).sum(), 3) == pytest.approx(1.5 * 4 * (3 + 8), rel=1e-3)


def test_what_a_network_needs_is_measured_once():
    calls, model = [], nn.Identity()

    def run(x):
        calls.append(x)
        return x + 1

    first = bytes_a_pixel(model, run, 3)
    assert bytes_a_pixel(model, run, 3) == first and len(calls) == 1
    bytes_a_pixel(model, run, 3, "bf16")
    assert len(calls) == 2


def test_a_network_that_cannot_be_measured_gets_a_guess():
    def run(x):
        raise ValueError("not this size")

    assert bytes_a_pixel(nn.Identity(), run, 3) == memory.BYTES_A_PIXEL


def test_free_memory_is_told_where_it_can_be(monkeypatch):
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 50)
    monkeypatch.setattr(memory, "_free_of_container", lambda: 30)
    assert free_memory(CPU) == 30 and free_memory(torch.device("meta")) is None
    monkeypatch.setattr(memory, "_free_of_container", lambda: None)
    assert free_memory(CPU) == 50
    monkeypatch.setattr(memory, "_free_of_machine", lambda: None)
    assert free_memory(CPU) is None


def group(folder, limit, used, cache, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cache}\n")


def test_the_tightest_group_of_a_container_counts(tmp_path):
    own, root, names = tmp_path / "own", tmp_path / "cgroup", ("memory.max", "memory.current")
    own.write_text("0::/outer/inner\n")
    group(root / "outer", 1000, 600, 50, names)
    group(root / "outer" / "inner", "max", 100, 0, names)
    assert memory._free_of_container(root, own) == 450
    group(root / "outer" / "inner", 300, 200, 10, names)
    assert memory._free_of_container(root, own) == 110


def test_groups_of_the_first_kind_are_read_where_the_container_sees_them(tmp_path):
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    group(root / "memory", 1000, 700, 100, ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    assert memory._free_of_container(root, own) == 400


@pytest.mark.parametrize("text", ["0::/\n", "nonsense", ""])
def test_without_a_limit_nothing_is_told(tmp_path, text):
    (tmp_path / "own").write_text(text)
    assert memory._free_of_container(tmp_path / "cgroup", tmp_path / "own") is None
    assert memory._free_of_container(tmp_path / "cgroup", tmp_path / "absent") is None


def test_lack_of_memory_has_many_names():
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_is_kept_is_not_fetched_again_until_it_is_given_back():
    code = """if True:
        import resource, sys, torch
        from slicescan.engine.memory import give_back_memory, keep_freed_memory

        def pages(times=10):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(times):
                torch.ones(2**22)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        def resident():
            total, shared = open("/proc/self/statm").read().split()[1:3]
            return int(total) - int(shared)

        fetched = pages()
        if not keep_freed_memory():
            sys.exit("no glibc")
        pages()
        kept, before = pages(), resident()
        give_back_memory()
        print(fetched, kept, before - resident())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("another C library")
    fetched, kept, given_back = map(int, done.stdout.split())
    block = 2**24 // resource.getpagesize()
    assert fetched > 2 * block  # of ten; when the C library begins to keep blocks by itself differs between versions
    assert kept < block / 10 and given_back > 0.9 * block
