"""Time and memory of a function, on a GPU or a CPU, and what machine that was."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
FLOORS = {"H100": (132 * 16 * 1.755e9, 3.0e12), "H200": (132 * 16 * 1.755e9, 4.3e12)}
"""Exponentials and bytes a second, by the name of the device; of the bytes nine tenths of what the maker says."""


def machine(device: str) -> dict[str, Any]:
    """Device and versions, as every file of results carries them."""
    about = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        from triton import __version__ as triton

        return {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": triton, **about}
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return {"device": f"{name}, {torch.get_num_threads()} threads", **about}


def floors(elements: int, states: int, bytes_moved: int) -> tuple[float | None, float | None]:
    """Least times in ms for a scan's exponentials and its bytes on this GPU; None where they are not known."""
    for name, (exponentials, bandwidth) in FLOORS.items():
        if name in torch.cuda.get_device_name():
            return elements * states / exponentials * 1e3, bytes_moved / bandwidth * 1e3
    return None, None


def times(runs: Mapping[str, Callable[[], Any]], device: str, *, rounds: int = 5) -> dict[str, float]:
    """Median time of each function in ms: with flushed caches on a GPU, in turn on a CPU."""
    if device == "cuda":
        from triton.testing import do_bench

        return {name: do_bench(run, warmup=10, rep=60, return_mode="median") for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def interleaved(runs: Mapping[str, Callable[[], Any]], device: str, *, rounds: int = 5) -> dict[str, float]:
    """Median time of each function in ms, all in turn in every round, each from an idle device to an idle device."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-2 if device == "cuda" else 0, rounds):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as a CUDA graph: a function that replays the kernels that it starts and returns what they fill anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose and allocate before the capture
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run()

    def replay() -> Any:
        graph.replay()
        return made

    return replay


def memory(run: Callable[[], Any], device: str) -> int:
    """Bytes that a call holds at its highest beyond what was there before, results included."""
    gc.collect()
    if device == "cuda":
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not count as there before
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest back to what is resident
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
