"""Compile CUDA C++ at first use with the NVRTC that torch installs, and keep the result on disk."""

import ctypes
import functools
import glob
import hashlib
import os
import pathlib
import sys
import tempfile


class CompileError(RuntimeError):
    """NVRTC is missing or refused the source."""


def _candidates() -> list[str]:
    folders = [pathlib.Path(p) / "nvidia" for p in sys.path if p]
    pattern = "nvrtc64_*_0.dll" if os.name == "nt" else "libnvrtc.so.*"
    found: list[str] = []
    for folder in folders:
        for place in ("cu*/lib", "cu*/bin", "cu*/bin/x86_64", "cuda_nvrtc/lib", "cuda_nvrtc/bin"):
            found += sorted(glob.glob(str(folder / place / pattern)), reverse=True)
    if os.name == "nt":
        import torch

        found += sorted(glob.glob(str(pathlib.Path(torch.__file__).parent / "lib" / pattern)), reverse=True)
        return [f for f in found if "alt" not in f]
    return found + ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]


@functools.cache
def _library() -> ctypes.CDLL:
    reasons = []
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise CompileError(f"NVRTC was not found; `pip install nvidia-cuda-nvrtc` brings it ({reasons[-1]})")


def missing() -> str | None:
    """Say why nothing can be compiled here, or None."""
    try:
        _library()
    except CompileError as error:
        return str(error)
    return None


def _check(code: int) -> None:
    if code:
        name = _library().nvrtcGetErrorString
        name.restype = ctypes.c_char_p
        raise CompileError(f"NVRTC: {name(code).decode()}")


@functools.cache
def version() -> tuple[int, int]:
    """NVRTC's version, as ``(major, minor)``."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@functools.cache
def _architectures() -> tuple[int, ...]:
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    values = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(values))
    return tuple(values)


def target(capability: int) -> str:
    """Choose what to compile for: machine code for a known device, else code that its driver finishes."""
    known = [a for a in _architectures() if a <= capability]
    return f"sm_{capability}" if capability in known else f"compute_{max(known)}"


def compile_source(source: str, options: tuple[str, ...], architecture: str) -> bytes:
    """Compile CUDA C++ to a loadable image.

    Args:
        source: CUDA C++ that includes nothing.
        options: Compiler options, such as ``-DN=16``.
        architecture: ``sm_90`` for machine code, ``compute_90`` for PTX.

    Raises:
        CompileError: With the compiler's log.
    """
    lib, program = _library(), ctypes.c_void_p()
    _check(lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"slicescan.cu", 0, None, None))
    try:
        flags = [f"--gpu-architecture={architecture}", "--std=c++17", *options]
        code = lib.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
        size = ctypes.c_size_t()
        if code:
            _check(lib.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _check(lib.nvrtcGetProgramLog(program, log))
            raise CompileError(
                f"NVRTC refused a kernel for {architecture} with {' '.join(options)}:\n{log.value.decode()}"
            )
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        _check(getattr(lib, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        image = ctypes.create_string_buffer(size.value)
        _check(getattr(lib, f"nvrtcGet{kind}")(program, image))
        return image.raw
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def cache_folder() -> pathlib.Path:
    """Folder of compiled kernels: ``$SLICESCAN_CACHE``, else ``slicescan`` in the user's cache folder."""
    if given := os.environ.get("SLICESCAN_CACHE"):
        return pathlib.Path(given)
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "slicescan"


def compile_cached(source: str, options: tuple[str, ...], capability: int, *, fresh: bool = False) -> bytes:
    """Compile like :func:`compile_source`, or read the same compilation from disk; ``fresh`` compiles anew.

    A cache folder that cannot be written only costs time.
    """
    architecture = target(capability)
    words = repr((source, options, architecture, version()))
    path = cache_folder() / "cuda" / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.{architecture}"
    if not fresh:
        try:
            if image := path.read_bytes():
                return image
        except OSError:
            pass
    image = compile_source(source, options, architecture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(image)
        os.replace(file.name, path)
    except OSError:
        pass
    return image
