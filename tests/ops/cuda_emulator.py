"""Runs the CUDA kernels' source on the processor, so that their every case is tested without a GPU."""

import contextlib
import ctypes
import functools
import hashlib
import pathlib
import subprocess
import tempfile

import torch

from slicescan.ops.backends import cuda
from slicescan.ops.backends.cuda import driver, plan

_MACHINE = pathlib.Path(__file__).with_name("cuda_machine.h")
_FOLDER = pathlib.Path(tempfile.gettempdir()) / "slicescan-cuda-emulator"
_ENTRY = """
extern "C" void enter_{name}(const void* words, int grid, int threads, int falling) {{
  run([](const void* a) {{ {name}(*(const {args}*)a); }}, words, grid, threads, falling);
}}
"""
_KERNELS = {
    "forward": [("scan_forward", "Args")],
    "backward": [("scan_backward", "Args")],
    "summary": [("scan_summary", "Args")],
    "conv": [("conv_forward", "Args"), ("conv_backward", "Args")],
    "gate_forward": [("gate_forward", "Args")],
    "gate_gradient": [("gate_sums", "Args")],
    "gate_spread": [("gate_sums", "Args")],
    "norm": [("norm_forward", "Args"), ("norm_backward", "Args")],
    "silu_gate": [("silu_gate_forward", "Args"), ("silu_gate_backward", "Args")],
    "slice_gate": [("slice_gate_sums", "SumArgs"), ("slice_gate_finish", "SumArgs"), ("slice_gate_apply", "GateArgs")],
    "twice": [("twice_forward", "Args"), ("twice_backward", "Args")],
    "divergence": [(f"divergence_{name}", "Args") for name in ("sums", "mix", "gradient", "spread")],
    "reduce": [("scan_finish", "Args"), ("scan_chain", "ChainArgs"), ("scan_weights", "WeightArgs")],
}


def recording(monkeypatch, *modules, watches=lambda: False) -> list[str]:
    """Start kernels here, and have modules take maps for a GPU's, but for float64; names of what is started.

    ``watches()`` says when modules are to do without kernels, as while somebody counts.
    """
    started = []

    def start(device, kernel, *rest):
        started.append(kernel.name)
        launch(device, kernel, *rest)

    monkeypatch.setattr(driver, "launch", start)
    for module in modules:
        monkeypatch.setattr(module, "runs_kernels", lambda *maps: maps[0].dtype != torch.float64 and not watches())
    return started


@contextlib.contextmanager
def scans(monkeypatch, why_not):
    """Scans on the emulator wherever ``why_not(call)`` is None; memory starts as NaN."""
    monkeypatch.setattr(driver, "launch", launch)
    monkeypatch.setattr(cuda, "why_not", why_not)
    monkeypatch.setattr(plan, "pays", lambda *_: True)
    plan._plan.cache_clear()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    plan._plan.cache_clear()


@functools.cache
def library(file: str, macros: driver.Macros) -> ctypes.CDLL:
    """Compile a kernel file for the processor."""
    machine = (pathlib.Path(driver.__file__).parent / "machine.cuh").read_text()
    source = driver.source(file).replace(machine, _MACHINE.read_text())
    source += "".join(_ENTRY.format(name=name, args=args) for name, args in _KERNELS[file])
    flags = ["-x", "c++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", *driver.options(macros)]
    name = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:24]
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        _FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_FOLDER) as scratch:
            made = pathlib.Path(scratch) / "kernel.so"
            subprocess.run(["g++", *flags, "-o", str(made), "-"], input=source, text=True, check=True)
            made.replace(path)
    return ctypes.CDLL(str(path))


def launch(device: int | None, kernel: driver.Kernel, grid: int, words: list[int], *, falling: bool = False) -> None:
    """Stand in for ``driver.launch``."""
    packed = (ctypes.c_longlong * len(words))(*words)
    enter = getattr(library(kernel.file, kernel.macros), f"enter_{kernel.name}")
    enter(packed, grid, kernel.threads, int(falling))
