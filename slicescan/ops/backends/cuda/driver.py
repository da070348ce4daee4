"""Load and launch compiled kernels through the CUDA driver, on torch's own context and stream."""

import array
import ctypes
import dataclasses
import functools
import os
import pathlib
import threading

import torch

from slicescan.ops.backends.cuda import nvrtc

_SOURCES = {
    "forward": ("machine.cuh", "maps.cuh", "scan.cuh", "forward.cu"),
    "backward": ("machine.cuh", "maps.cuh", "scan.cuh", "backward.cu"),
    "summary": ("machine.cuh", "maps.cuh", "scan.cuh", "summary.cu"),
    "conv": ("machine.cuh", "maps.cuh", "conv.cu"),
    "gate_forward": ("machine.cuh", "maps.cuh", "gate.cuh", "gate_forward.cu"),
    "gate_gradient": ("machine.cuh", "maps.cuh", "gate.cuh", "gate_gradient.cu", "gate_sums.cuh"),
    "gate_spread": ("machine.cuh", "maps.cuh", "gate.cuh", "gate_spread.cu", "gate_sums.cuh"),
    "norm": ("machine.cuh", "norm.cu"),
    "reduce": ("machine.cuh", "maps.cuh", "scan.cuh", "reduce.cu"),
    "silu_gate": ("machine.cuh", "maps.cuh", "pixels.cuh", "silu_gate.cu"),
    "slice_gate": ("machine.cuh", "maps.cuh", "slice_gate.cu"),
    "twice": ("machine.cuh", "maps.cuh", "pixels.cuh", "twice.cu"),
    "divergence": ("machine.cuh", "maps.cuh", "pixels.cuh", "divergence.cu"),
}
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
_lock = threading.Lock()
Macros = tuple[tuple[str, int], ...]


@functools.cache
def lacking(device: torch.device) -> str | None:
    """Why no kernel runs on a CUDA device, or None."""
    if torch.version.hip:
        return "needs an NVIDIA device; on AMD devices use backend='triton'"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer; use backend='triton'"
    return nvrtc.missing()


@functools.cache
def source(file: str) -> str:
    """CUDA C++ of one kernel file with what it builds on."""
    folder = pathlib.Path(__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _SOURCES[file])


def options(macros: Macros) -> tuple[str, ...]:
    """Compiler options that set ``macros``."""
    return tuple(f"-D{name}={value}" for name, value in macros)


_Arguments = ctypes.c_void_p * 1


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    unsigned, pointer = ctypes.c_uint, ctypes.c_void_p
    driver.cuLaunchKernel.argtypes = [pointer, *[unsigned] * 7, pointer, pointer, pointer]
    return driver


def _check(code: int, doing: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code} while {doing}: {(text.value or b'unknown').decode()}")


class Function:
    """A kernel on one device, ready to start."""

    def __init__(self, module: ctypes.c_void_p, name: str, shared: int) -> None:
        self.handle, self.name, self.shared = ctypes.c_void_p(), name, shared
        _check(_driver().cuModuleGetFunction(ctypes.byref(self.handle), module, name.encode()), f"looking up {name}")
        if shared > 48 * 1024:
            code = _driver().cuFuncSetAttribute(self.handle, _MAX_DYNAMIC_SHARED, shared)
            _check(code, f"reserving {shared} bytes of shared memory for {name}")

    def start(self, device: int, grid: int, threads: int, words: list[int]) -> None:
        """Start on the device's current stream."""
        packed = array.array("q", words)
        arguments = _Arguments(packed.buffer_info()[0])
        stream = torch._C._cuda_getCurrentRawStream(device)
        start = _driver().cuLaunchKernel
        code = start(self.handle, grid, 1, 1, threads, 1, 1, self.shared, stream, arguments, None)
        if code == _INVALID_CONTEXT:
            _enter_context(device)
            code = start(self.handle, grid, 1, 1, threads, 1, 1, self.shared, stream, arguments, None)
        _check(code, f"starting {self.name}")


def _enter_context(device: int) -> None:
    """Make torch's context current in a thread that has made no CUDA call yet, such as autograd's."""
    context = ctypes.c_void_p()
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "retaining the primary context")
    _check(_driver().cuCtxSetCurrent(context), "entering the primary context")


@functools.cache
def _load(file: str, name: str, macros: Macros, shared: int, device: int) -> Function:
    major, minor = torch.cuda.get_device_capability(device)
    torch.cuda.current_stream(device)  # the primary context exists from here on
    module = ctypes.c_void_p()
    for fresh in (False, True):  # a file of the cache may be damaged
        image = nvrtc.compile_cached(source(file), options(macros), 10 * major + minor, fresh=fresh)
        code = _driver().cuModuleLoadData(ctypes.byref(module), image)
        if code == _INVALID_CONTEXT:
            _enter_context(device)
            code = _driver().cuModuleLoadData(ctypes.byref(module), image)
        if not code:
            break
    _check(code, f"loading {name}")
    return Function(module, name, shared)


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """One way to compile and start a kernel; threads and bytes of shared memory are those of a block."""

    file: str
    name: str
    macros: Macros
    threads: int
    shared: int
    functions: dict[int, Function] = dataclasses.field(default_factory=dict, repr=False)


def launch(device: int, kernel: Kernel, grid: int, words: list[int]) -> None:
    """Run ``grid`` blocks of a kernel on a device's current stream; ``words`` are its one argument, 8 bytes each.

    The kernel is compiled and loaded at most once for a device.
    """
    function = kernel.functions.get(device)
    if function is not None and device == torch._C._cuda_getDevice():
        function.start(device, grid, kernel.threads, words)
        return
    with torch.cuda.device(device):
        if function is None:
            with _lock:
                function = _load(kernel.file, kernel.name, kernel.macros, kernel.shared, device)
            kernel.functions[device] = function
        function.start(device, grid, kernel.threads, words)
