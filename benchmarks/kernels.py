"""Kernels of a profiled step: what they are called, what kind of work each does, and how long all of a kind take."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "scans": r"^scan_(forward|backward|summary|finish|weights|chain)$|^segment_ends|^chain_segments|selective_scan",
    "depth-wise convolutions": r"^gate_(forward|sums)$|depthwise|grouped_direct|c1_k1",
    "causal convolutions": r"^conv_(forward|backward)$|causal_conv1d",
    "norms": r"^norm_(forward|backward)$|(layer|batch|group)_?norm|GammaBeta|RowwiseMoments",
    "gates": r"^(silu|slice)_gate_",
    "divergences": r"^divergence_",
    "resampling and pooling": r"^twice_(forward|backward)$|upsample|pool",
    "matrix products": r"gem[mv]|nvjet|cutlass|xmma|cublas|splitK|conv(olve|2d|3d)|fprop|[dw]grad\d?_?|winograd"
    r"|region_transform|implicit_con|[sh\d]cudnn_|fft2d",
    "copies and casts": r"copy_kernel|^Mem(cpy|set)|CatArray|nchwToNhwc|nhwcToNchw|AddPadding|FillFunctor"
    r"|(reflection|replication)_pad|tensorTransform|convertTensor",
    "reductions": r"reduce_kernel|softmax|\bcub::|tensor_kernel_scan|welford",
    "element-wise": r"elementwise|multi_tensor_apply|silu|gelu|prelu",
}
"""Kinds of work by the names of kernels: the first that fits. Convolutions of whole groups are matrix products."""
OTHER = "other"
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}
_WRAPPERS = re.compile(r"^void |\(anonymous namespace\)::|\b(?:at|cudnn|cub)(?:::(?:native|cuda|detail|ops|cnn))*::")
_INSIDE = re.compile(r"\b(?!(?:[AB]?Unary|Binary)Functor)(?:cutlass_\w+|\w+_kernel(?:_cuda)?|\w*Functor\w*|\w+Ops)\b")
_NO_WORK = re.compile(r"^(ProfilerStep|Activity Buffer|Context Sync|Stream (Sync|Wait)|Event (Sync|Wait))")


class Launch(NamedTuple):
    """One run of a kernel, or one copy."""

    name: str
    ms: float


def kind_of(name: str) -> str:
    """The kind of work that a kernel does, by its whole name."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), OTHER)


def short(name: str) -> str:
    """A kernel's name without namespaces and arguments; of a template, the first argument that says what it does."""
    plain = _WRAPPERS.sub("", name)
    if plain.startswith("Mem"):
        return plain
    head = re.split(r"[<(]", plain, maxsplit=1)[0].strip()
    inside = _INSIDE.search(plain, len(head))
    return f"{head}<{inside[0]}>" if inside else head


def recorded(run: Callable[[], Any], device: str, warm: int = 3) -> list[Launch]:
    """What one call of ``run`` has a GPU do, after ``warm`` calls; on a CPU its operators, each with those inside it.

    Raises:
        RuntimeError: The profiler saw nothing.
    """
    gpu = device == "cuda"
    for _ in range(warm):
        run()
    if gpu:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU], acc_events=True) as prof:
        run()
        if gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    found = [
        Launch(event.name, event.time_range.elapsed_us() / 1e3)
        for event in prof.events() or ()
        if event.device_type == wanted and not event.is_user_annotation and not _NO_WORK.search(event.name)
    ]
    if not found:
        raise RuntimeError("the profiler recorded no kernels; CUPTI may not be allowed to on this machine")
    return found


def summed(launches: Iterable[Launch], longest: int = 12) -> dict[str, Any]:
    """Time and launches of everything, of each kind and of the kernels that take longest, all longest first."""
    kinds: dict[str, list[float]] = {}
    kernels: dict[tuple[str, str], list[float]] = {}
    for name, ms in launches:
        kind = kind_of(name)
        kinds.setdefault(kind, []).append(ms)
        kernels.setdefault((short(name), kind), []).append(ms)
    total = sum(map(sum, kinds.values()))

    def cost(times: list[float]) -> dict[str, Any]:
        return {"ms": sum(times), "share": sum(times) / total if total else 0.0, "launches": len(times)}

    order = sorted(kernels.items(), key=lambda item: -sum(item[1]))
    return {
        "device_ms": total,
        "launches": sum(map(len, kinds.values())),
        "kinds": {kind: cost(times) for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1]))},
        "longest": [{"name": name, "kind": kind, **cost(times)} for (name, kind), times in order[:longest]],
    }
