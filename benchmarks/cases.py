"""Shapes that the benchmarks share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One scan: a map ``(b, h, w, d)`` with state size ``n``."""

    name: str
    b: int
    h: int
    w: int
    d: int
    n: int = 16

    def arguments(self, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Arguments of ``slice_scan`` in the ranges that a trained network has."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        map_shape = (self.b, self.h, self.w)
        return {
            "u": normal(*map_shape, self.d),
            "delta": normal(*map_shape, self.d),
            "A": -torch.arange(1.0, self.n + 1, device=device).repeat(self.d, 1),
            "B": normal(*map_shape, self.n),
            "C": normal(*map_shape, self.n),
            "D": torch.ones(self.d, device=device),
            "z": normal(*map_shape, self.d),
            "delta_bias": torch.full((self.d,), -4.0, device=device),
        }


CPU = (
    Case("64x64x48", 1, 64, 64, 48),
    Case("256x256x24", 1, 256, 256, 24),
    Case("512 slices of 256, 144", 2, 256, 256, 144),
)

GPU = (
    Case("4x256x256x144", 4, 256, 256, 144),
    Case("4x128x128x288", 4, 128, 128, 288),
    Case("4x64x64x576", 4, 64, 64, 576),
    Case("1x720x1280x72", 1, 720, 1280, 72),
)

KNOWN = {
    (case, "bf16", "w"): {
        "mamba-ssm, its layout": {"forward": own, "both": both},
        "mamba-ssm, layout changes": {"forward": changed},
    }
    for case, own, changed, both in (
        ("4x256x256x144", 0.67, 1.64, 6.07),
        ("4x128x128x288", 0.46, 0.91, 2.30),
        ("4x64x64x576", 0.67, 0.89, 2.47),
        ("1x720x1280x72", 3.79, 5.68, 17.5),
    )
}
"""Times of mamba-ssm 2.3.2 with PyTorch 2.11 on one H100, in ms; if others are found, something is composed wrongly."""

LINEAR_GPU = tuple(Case(f"linear: {side}x{side}x144", 1, side, side, 144) for side in (512, 2048))
LINEAR_CPU = tuple(Case(f"linear: {side}x{side}x48", 1, side, side, 48) for side in (64, 256))
"""A map, and one of 16 times as many positions: the time an element should be the same."""

LONG = tuple(Case(f"one sequence of {length}, {d}", 1, 1, length, d) for d in (72, 216) for length in (16384, 65536))


@dataclass(frozen=True)
class Sizes:
    """What the table of the networks measures.

    Attributes:
        dims: Base widths of whole networks.
        cases: Whether with gradients, and ``(b, 3, h, w)``, of whole networks.
        check: Image on which two compositions must agree.
        block_dims: Widths of single scanners.
        block: ``(b, h, w)`` of their input.
        stream_dims: Base widths of streamed networks.
        stream: ``(h, w)`` of a smaller and a larger image to stream.
        models: Other networks, and ``model_cases`` what they are given, as in ``cases``.
        blocks: Blocks of each level.
    """

    dims: tuple[int, ...]
    cases: tuple[tuple[bool, tuple[int, int, int, int]], ...]
    check: tuple[int, int, int, int]
    block_dims: tuple[int, ...]
    block: tuple[int, int, int]
    stream_dims: tuple[int, ...]
    stream: tuple[tuple[int, int], tuple[int, int]]
    models: tuple[str, ...]
    model_cases: tuple[tuple[bool, tuple[int, int, int, int]], ...]
    blocks: tuple[int, int, int] = (3, 3, 6)


NETWORK_GPU = Sizes(
    dims=(144, 72, 24),
    cases=((False, (1, 3, 720, 1280)), (False, (1, 3, 256, 256)), (True, (4, 3, 256, 256))),
    check=(1, 3, 64, 96),
    block_dims=(144,),
    block=(4, 256, 256),
    stream_dims=(144,),
    stream=((720, 1280), (2160, 3840)),
    models=("xyscannet_plus", "nafnet_w64", "restormer", "mambair_unet"),
    model_cases=((False, (1, 3, 736, 1280)), (True, (4, 3, 256, 256))),
)
NETWORK_CPU = Sizes(
    dims=(24,),
    cases=((False, (1, 3, 256, 256)),),
    check=(1, 3, 16, 24),
    block_dims=(24,),
    block=(1, 64, 64),
    stream_dims=(24,),
    stream=((128, 128), (256, 256)),
    models=("xyscannet_tiny",),
    model_cases=((False, (1, 3, 128, 128)),),
)

SS2D_GPU = tuple((dim, 1.5, (1, side, side)) for dim in (144, 48) for side in (128, 256))
SS2D_CPU = ((16, 1.5, (1, 48, 48)),)
"""Width, expansion and ``(b, h, w)`` of four-path scans: inner widths of 216 and 72, and a small one."""

PUBLISHED = {
    (what, kind, "forward+backward" if train else "forward", side): {"ms": ms, "gib": gib}
    for what, kind, train, side, ms, gib in (
        ("dim 144", "bf16", False, 720, 394, 9.4),
        ("dim 144", "fp32", False, 720, 513, 13.4),
        ("dim 144", "bf16", False, 256, 71, None),
        ("dim 144", "fp32", False, 256, 77, None),
        ("dim 144", "bf16", True, 256, 469, 35.7),
        ("dim 144", "fp32", True, 256, 569, 67.0),
        ("dim 72", "bf16", False, 720, 212, 4.8),
        ("dim 72", "fp32", False, 720, 251, 6.9),
        ("dim 72", "bf16", True, 256, 273, 18.1),
        ("dim 72", "fp32", True, 256, 291, 33.9),
        ("nafnet_w64", "bf16", False, 736, 59, 2.6),
        ("nafnet_w64", "bf16", True, 256, 144, 4.9),
        ("restormer", "bf16", False, 736, 226, 4.7),
        ("restormer", "bf16", True, 256, 297, 24.4),
        ("mambair_unet", "bf16", False, 736, 858, 12.7),
        ("mambair_unet", "bf16", True, 256, 798, 42.6),
    )
}
"""Time and memory of the published implementations with PyTorch 2.11 on one H100, by what, dtype, pass and height of
the input, whose other sizes are those of ``NETWORK_GPU``; with causal-conv1d where they have it."""


def published(row: dict[str, Any]) -> dict[str, float | None]:
    """What is known of the implementation that a row of ``benchmarks/network.py`` stands beside, or nothing."""
    shape = row.get("shape") or [0, 0, 0, 0]
    return PUBLISHED.get((row["what"], row["dtype"], row.get("pass", ""), shape[2]), {})
