"""Measure one restored image: by its protocol, and by every other metric that was asked for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.data import Pair
from slicescan.engine.data.pictures import DataError
from slicescan.engine.metrics import Protocol, niqe
from slicescan.engine.metrics.catalogue import METRICS
from slicescan.engine.metrics.perceptual import Distance, MetricUnavailable, open_distance
from slicescan.engine.results import Row

FAILURES = (ValueError, OSError, MemoryError, RuntimeError, ImportError)
"""What may happen to one image without stopping the others."""


def open_distances(
    names: Sequence[str], device: torch.device, weights: str | Path | None
) -> tuple[dict[str, Distance], dict[str, str]]:
    """Perceptual distances that can be measured here, and why the others cannot."""
    distances: dict[str, Distance] = {}
    unavailable: dict[str, str] = {}
    for name in names:
        if METRICS[name].kind == "pair":
            try:
                distances[name] = open_distance(name, device, weights)
            except MetricUnavailable as error:
                unavailable[name] = " ".join(str(error).split())
    return distances, unavailable


def measure(
    index: int,
    pair: Pair,
    restored: Tensor,
    seconds: float | None,
    rules: Protocol,
    names: Sequence[str],
    distances: Mapping[str, Distance],
) -> Row:
    """Figures of one restored image, uint8 ``(3, h, w)``; what cannot be measured is told in the row."""
    figures: dict[str, float] = {}
    problems: list[str] = []

    def collect(measure: Callable[[], dict[str, float]]) -> None:
        try:
            figures.update(measure())
        except FAILURES as error:
            problems.extend([reason(error)] if reason(error) not in problems else [])

    try:
        sharp = as_bytes(pair.sharp.read(), str(pair.sharp)) if pair.sharp is not None else None
    except FAILURES as error:
        return Row(index, pair.name, {}, seconds, reason(error))
    if sharp is not None and sharp.shape != restored.shape:
        return Row(index, pair.name, {}, seconds, f"restored is {_size(restored)}, its reference {_size(sharp)}")
    asked = [name for name in names if METRICS[name].kind == "protocol"]
    if asked and rules.compare is not None and sharp is not None:
        compare = rules.compare
        collect(lambda: {name: value for name, value in compare(restored, sharp).items() if name in asked})
    if "niqe" in names:
        collect(lambda: {"niqe": niqe(restored)})
    for name, distance in distances.items():
        collect(lambda name=name, distance=distance: {name: distance(restored, sharp)})  # type: ignore[misc]
    return Row(index, pair.name, figures, seconds, "; ".join(problems))


def as_bytes(pixels: np.ndarray, name: str) -> Tensor:
    """Pixels ``(h, w, 3)`` as a tensor ``(3, h, w)``; protocols are about 8 bits.

    Raises:
        DataError: More than 8 bits.
    """
    if pixels.dtype != np.uint8:
        raise DataError(f"{name}: {pixels.dtype}; the protocols measure images of 8 bits a channel")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def reason(error: BaseException) -> str:
    """An error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
