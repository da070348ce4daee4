"""The quality check: photographs blurred by a fixed recipe, restored, and measured."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slicescan.engine.blur import GAMMA, expose, scaled, shake, to_8_bits
from slicescan.engine.data.patches import size_mismatch
from slicescan.engine.data.pictures import DataError, Pair
from slicescan.engine.metrics import psnr

SIDE, MARGIN = 384, 32
POSITIONS, EXTENT, ROTATION, NOISE = 25, (7.0, 14.0), 0.004, 0.004


class HeldOut(NamedTuple):
    """A picture to measure on: blurred and sharp, uint8 ``(3, h, w)``."""

    name: str
    blurred: Tensor
    sharp: Tensor


@dataclass(frozen=True)
class Measured:
    """PSNR in dB of one blurred crop, and of what was made of it."""

    name: str
    psnr_in: float
    psnr_out: float

    @property
    def gain(self) -> float:
        """How much better the restored crop is, in dB."""
        return self.psnr_out - self.psnr_in


def camera(seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """Path ``(1, 25, 2)`` in pixels and angles ``(1, 25)`` of a case, and the generator that draws its noise."""
    draw = torch.Generator().manual_seed(seed)
    path = shake(POSITIONS, draw)[None]
    extent = EXTENT[0] + (EXTENT[1] - EXTENT[0]) * torch.rand(1, generator=draw)
    turn = ROTATION * (2 * torch.rand(1, generator=draw) - 1)
    return scaled(path, extent), turn[:, None] * torch.linspace(-1, 1, POSITIONS), draw


def blurred_crop(photo: Tensor, seed: int, *, uniform: bool = False) -> tuple[Tensor, Tensor]:
    """The blurred and the sharp centre crop of a photograph, ``(3, 384, 384)`` uint8, the same for a seed everywhere.

    25 positions of a damped random walk of 7 to 14 pixels, a rotation growing linearly to 0.004 radians to either side,
    averaged in linear light (power 2.2), Gaussian noise of standard deviation 0.004, 8 bits.

    Args:
        photo: uint8 ``(3, h, w)``, at least 384 pixels high and wide; edges are repeated where the margin is missing.
        seed: Draws of motion and noise.
        uniform: Leave the rotation out, so that every pixel is blurred alike: the spatially uniform case.
    """
    path, angles, draw = camera(seed)
    whole = SIDE + 2 * MARGIN
    crop = photo.float() / 255
    missing = [max(0, whole - size) for size in crop.shape[1:]]
    if any(missing):
        pad = (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
        crop = torch.nn.functional.pad(crop[None], pad, mode="replicate")[0]
    top, left = ((size - whole) // 2 for size in crop.shape[1:])
    crop = crop[:, top : top + whole, left : left + whole]
    exposed = expose(crop[None].pow(GAMMA), path, torch.zeros_like(angles) if uniform else angles)[0]
    blurred, sharp = (x[:, MARGIN:-MARGIN, MARGIN:-MARGIN] for x in (exposed.clamp(0, 1).pow(1 / GAMMA), crop))
    blurred = to_8_bits(blurred + NOISE * torch.randn(blurred.shape, generator=draw))
    return _bytes(blurred), _bytes(sharp)


class BlurredCrops(Sequence[HeldOut]):
    """Photographs blurred by :func:`blurred_crop`, each with its number as seed; made at first use and kept.

    Args:
        photos: Names and uint8 images ``(3, h, w)``.
    """

    def __init__(self, photos: Sequence[tuple[str, Tensor]]):
        self.photos = photos
        self.made: dict[int, HeldOut] = {}

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: Any) -> Any:
        if index not in self.made:
            name, photo = self.photos[index]
            self.made[index] = HeldOut(name, *blurred_crop(photo, index))
        return self.made[index]


class HeldOutPairs(Sequence[HeldOut]):
    """Pairs as they are, whole, with 8 bits, RGB.

    Args:
        pairs: All with a sharp picture.

    Raises:
        ValueError: When one is taken that cannot be read, or differs in size from its partner; the message names it.
    """

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        pair = self.pairs[index]
        assert pair.sharp is not None
        blurred, sharp = (_eight_bits(picture.read()) for picture in (pair.blurred, pair.sharp))
        if blurred.shape != sharp.shape:
            raise DataError(size_mismatch(pair, blurred.shape[1:], sharp.shape[1:]))
        return HeldOut(pair.name, blurred, sharp)


def measure(
    restore: Callable[[Tensor], Tensor],
    held_out: Iterable[HeldOut],
    seen: Callable[[HeldOut, Tensor], object] | None = None,
) -> list[Measured]:
    """Restore what is held out, and measure it against what is sharp.

    Args:
        restore: Takes and returns uint8 ``(3, h, w)``.
        held_out: Blurred and sharp pictures.
        seen: Called with each of them and what was made of it.
    """
    found = []
    for one in held_out:
        restored = restore(one.blurred)
        found.append(Measured(one.name, psnr(one.blurred, one.sharp), psnr(restored, one.sharp)))
        if seen:
            seen(one, restored)
    return found


def mean_gain(measured: Sequence[Measured]) -> float:
    """Mean gain in dB; NaN for nothing."""
    return sum(one.gain for one in measured) / len(measured) if measured else math.nan


def mean_psnr(measured: Sequence[Measured]) -> float:
    """Mean PSNR of what was restored, in dB; NaN for nothing."""
    return sum(one.psnr_out for one in measured) / len(measured) if measured else math.nan


def _eight_bits(pixels: np.ndarray) -> Tensor:
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _bytes(image: Tensor) -> Tensor:
    return image.mul(255).round().to(torch.uint8)
