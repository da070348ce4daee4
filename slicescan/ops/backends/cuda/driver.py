"""Load and launch compiled kernels through the CUDA driver, on torch's own context and stream."""

import contextlib
import ctypes
import functools
import os
import pathlib
import threading

import torch

from slicescan.ops.backends.cuda import nvrtc

_SOURCES = {
    "forward": ("machine.cuh", "scan.cuh", "forward.cu"),
    "backward": ("machine.cuh", "scan.cuh", "backward.cu"),
    "summary": ("machine.cuh", "scan.cuh", "summary.cu"),
    "reduce": ("machine.cuh", "scan.cuh", "reduce.cu"),
}
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
_lock = threading.Lock()


@functools.cache
def source(kernel: str) -> str:
    """CUDA C++ of one kernel file with what it builds on."""
    folder = pathlib.Path(__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _SOURCES[kernel])


def options(macros: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """Compiler options that set ``macros``."""
    return tuple(f"-D{name}={value}" for name, value in macros)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def _check(code: int, doing: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code} while {doing}: {(text.value or b'unknown').decode()}")


class Function:
    """One kernel on one device, ready to launch."""

    def __init__(self, module: ctypes.c_void_p, name: str, shared: int) -> None:
        self.handle, self.name, self.shared = ctypes.c_void_p(), name, shared
        _check(_driver().cuModuleGetFunction(ctypes.byref(self.handle), module, name.encode()), f"looking up {name}")
        if shared > 48 * 1024:
            code = _driver().cuFuncSetAttribute(self.handle, _MAX_DYNAMIC_SHARED, shared)
            _check(code, f"reserving {shared} bytes of shared memory for {name}")

    def __call__(self, device: int, grid: int, threads: int, words: list[int]) -> None:
        """Start the kernel on the current stream; ``words`` are its one argument, 8 bytes each."""
        packed = (ctypes.c_longlong * len(words))(*words)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        for attempt in (0, 1):
            code = _driver().cuLaunchKernel(
                self.handle, grid, 1, 1, threads, 1, 1, self.shared, stream, arguments, None
            )
            if code != _INVALID_CONTEXT or attempt:
                break
            _enter_context(device)
        _check(code, f"starting {self.name}")


def _enter_context(device: int) -> None:
    """Make torch's context current in a thread that has made no CUDA call yet, such as autograd's."""
    context = ctypes.c_void_p()
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "retaining the primary context")
    _check(_driver().cuCtxSetCurrent(context), "entering the primary context")


_functions: dict[tuple, Function] = {}


def function(kernel: str, name: str, macros: tuple[tuple[str, int], ...], shared: int, device: int) -> Function:
    """Kernel ``name`` of file ``kernel`` for ``macros`` on a device, compiled and loaded at most once."""
    key = (kernel, name, macros, shared, device)
    found = _functions.get(key)
    if found is None:
        with _lock:
            found = _functions.get(key) or _load(kernel, name, macros, shared, device)
            _functions[key] = found
    return found


def _load(kernel: str, name: str, macros: tuple[tuple[str, int], ...], shared: int, device: int) -> Function:
    major, minor = torch.cuda.get_device_capability(device)
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # the primary context exists from here on
        module = ctypes.c_void_p()
        for fresh in (False, True):  # a file of the cache may be damaged
            image = nvrtc.compile_cached(source(kernel), options(macros), 10 * major + minor, fresh=fresh)
            code = _driver().cuModuleLoadData(ctypes.byref(module), image)
            if not code:
                break
        _check(code, f"loading {name}")
        return Function(module, name, shared)


def launch(
    device: int,
    kernel: str,
    name: str,
    macros: tuple[tuple[str, int], ...],
    shared: int,
    grid: int,
    threads: int,
    words: list[int],
) -> None:
    """Run kernel ``name`` of file ``kernel`` on a device's current stream; ``words`` are its argument, 8 bytes each."""
    current = contextlib.nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device)
    with current:
        function(kernel, name, macros, shared, device)(device, grid, threads, words)
