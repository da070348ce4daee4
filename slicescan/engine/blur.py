"""Synthetic motion blur: sharp photographs in, batches of blurred and sharp patches out, on any device."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.engine.config import BlurSection, DataSection
from slicescan.engine.crops import crops
from slicescan.engine.jpeg import jpeg
from slicescan.engine.pictures import PhotoFolder
from slicescan.engine.processes import WHOLE, Part, share
from slicescan.engine.words import words

GAMMA = 2.2
"""Light is the displayed value to this power."""

MARGIN = 16
"""Pixels around a patch that the camera may sweep over."""


class SyntheticMotionBlur:
    """Cut patches from photographs and expose them along the path of a shaking camera.

    The camera follows a damped random walk or a straight line and turns a little, or it turns about a point of the
    patch; the exposure is the mean of the light at ``positions`` places of the path. The sharp patch is the one at the
    centre of the path, so that a network has no shift to learn. Noise, highlights that saturate, JPEG and 8-bit
    rounding follow. The same seed and step give the same batch on one kind of device.

    Args:
        photos: uint8 images ``(3, h, w)``, at least ``patch + 32`` pixels high and wide, drawn as often as they have
            pixels; or a :class:`~slicescan.engine.pictures.PhotoFolder`, each of which is drawn as often as another.
        data: Patches.
        blur: Motion and what follows it.
        seed: Draws of all batches.
        device: Where batches are made; photographs are moved there, those of a folder when they are drawn.

    Raises:
        ValueError: A photograph is too small, or there is none.

    Example:
        >>> photo = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8)
        >>> source = SyntheticMotionBlur([photo], DataSection(patch=32, batch=2), BlurSection())
        >>> blurred, sharp = source.batch(step=0)
        >>> blurred.shape, sharp.shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 32, 32]))
    """

    def __init__(
        self,
        photos: Sequence[Tensor],
        data: DataSection,
        blur: BlurSection,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.data, self.blur, self.seed, self.device = data, blur, seed, torch.device(device)
        if not photos:
            raise ValueError("there are no photographs to blur")
        self.photos: Sequence[Tensor] = photos
        self.threads = ThreadPoolExecutor(data.threads(), "photographs")
        if isinstance(photos, PhotoFolder):
            return
        side = max([data.patch, *(stage.patch for stage in data.progressive)]) + 2 * MARGIN
        for photo in photos:
            _check_size("a photograph", photo, side)
        self.photos = [photo.to(self.device) for photo in photos]
        self.sizes = torch.tensor([photo.shape[1] * photo.shape[2] for photo in photos], dtype=torch.float64)

    def batch(self, step: int, part: Part = WHOLE) -> tuple[Tensor, Tensor]:
        """Pairs of one step: blurred and sharp, ``(batch, 3, patch, patch)`` each, float32 in [0, 1] as 8 bits.

        Args:
            step: Number of the step.
            part: Of several processes, which one asks: it gets its share of the batch.
        """
        seed = (self.seed * 1_000_003 + step) % 2**63
        draw = torch.Generator().manual_seed(seed)
        grain = torch.Generator(self.device).manual_seed(seed)
        patch, count = self.data.size_at(step)
        chosen = share(count, part)
        mine = slice(chosen.start, chosen.stop)  # everything is drawn for the whole batch, so that shares fit together
        seeds = torch.randint(2**62, (count,), generator=draw).tolist()[mine]
        indices = self._indices(draw, count)[mine]
        if isinstance(self.photos, PhotoFolder):
            list(self.threads.map(self.photos.__getitem__, set(indices)))  # read side by side
        photographed = self._crops(indices, patch + 2 * MARGIN, _uniform(draw, count, 8)[mine], seeds)
        light = self._highlights(photographed.pow(GAMMA), draw, count, mine)
        paths, angles = (drawn[mine].to(self.device) for drawn in self._motions(draw, patch, count))
        exposed = expose(light, paths, angles)
        blurred = exposed.clamp(0, 1).pow(1 / GAMMA)
        sharp = light.clamp(0, 1).pow(1 / GAMMA)
        blurred, sharp = (x[..., MARGIN:-MARGIN, MARGIN:-MARGIN] for x in (blurred, sharp))
        return self._record(blurred, draw, grain, count, mine), to_8_bits(sharp)

    def size(self, step: int) -> int:
        """Patches in the whole batch of a step."""
        return self.data.size_at(step)[1]

    def _indices(self, draw: torch.Generator, count: int) -> list[int]:
        """The photographs of a batch."""
        if isinstance(self.photos, PhotoFolder):
            return torch.randint(len(self.photos), (count,), generator=draw).tolist()
        return torch.multinomial(self.sizes, count, replacement=True, generator=draw).tolist()

    def _crops(self, indices: list[int], whole: int, drawn: Tensor, seeds: list[int]) -> Tensor:
        """Crops of side ``whole``, shrunk, turned and mirrored at random, some with words on them.

        Args:
            indices: The photograph of each.
            whole: Their side.
            drawn: Eight draws for each, from [0, 1).
            seeds: What the words on each depend on.
        """
        cuts = []
        for index, (smaller, by, down, across) in zip(indices, drawn[:, :4].tolist(), strict=True):
            photo = self.photos[index]
            if isinstance(self.photos, PhotoFolder):
                _check_size(f"{self.photos.files[index]}:", photo, whole)
            h, w = photo.shape[1:]
            most = max(1.0, min(self.data.shrink, min(h, w) / whole))
            side = int(whole * (1 + (most - 1) * by)) if smaller < 0.5 else whole
            top, left = int(down * (h - side + 1)), int(across * (w - side + 1))
            cuts.append(photo[:, top : top + side, left : left + side])
        made = crops(cuts, whole, drawn[:, 4:7] < 0.5, self.device)
        for place in (drawn[:, 7] < self.data.words).nonzero()[:, 0].tolist():
            keep, paint = words(whole, torch.Generator().manual_seed(seeds[place]))
            made[place] = made[place] * keep.to(self.device) + paint.to(self.device)
        return made

    def _highlights(self, light: Tensor, draw: torch.Generator, count: int, mine: slice) -> Tensor:
        """Make the brightest parts of some patches up to four times brighter, so that their traces saturate."""
        gains = 1 + 3 * _uniform(draw, count) * (_uniform(draw, count) < self.blur.highlights)
        bright = light.amax(1, keepdim=True).sub(0.7).div(0.3).clamp(0, 1)
        return light * (1 + (gains[mine].to(light).view(-1, 1, 1, 1) - 1) * bright)

    def _motions(self, draw: torch.Generator, patch: int, count: int) -> tuple[Tensor, Tensor]:
        settings = self.blur
        paths = walk(torch.randn(count, settings.positions, 2, generator=draw))
        direction = 2 * math.pi * _uniform(draw, count)
        line = torch.linspace(-0.5, 0.5, settings.positions)[None, :, None]
        straight = line * torch.stack([direction.cos(), direction.sin()], -1)[:, None]
        paths = torch.where((_uniform(draw, count) < settings.straight).view(-1, 1, 1), straight, paths)
        low, high = settings.extent
        extent = low + (high - low) * _uniform(draw, count)
        extent = torch.where(_uniform(draw, count) < settings.still, _uniform(draw, count), extent)
        turn = settings.rotation * (2 * _uniform(draw, count) - 1)
        turn = turn * (_uniform(draw, count) >= settings.uniform) * (extent / high).clamp(max=1)
        angles = turn[:, None] * torch.linspace(-1, 1, settings.positions)
        paths = scaled(paths, extent)
        if settings.turning:
            chosen = _uniform(draw, count) < settings.turning
            turned, by = turning(patch * (_uniform(draw, count, 2) - 0.5), extent, patch, settings.positions)
            paths = torch.where(chosen.view(-1, 1, 1), turned, paths)
            angles = torch.where(chosen.view(-1, 1), by, angles)
        return paths, angles

    def _record(self, image: Tensor, draw: torch.Generator, grain: torch.Generator, count: int, mine: slice) -> Tensor:
        """What a camera adds: noise, sometimes JPEG, always 8 bits."""
        sigma = self.blur.noise * _uniform(draw, count)[mine].to(image).view(-1, 1, 1, 1)
        noise = torch.randn((count, *image.shape[1:]), generator=grain, device=image.device)[mine]
        image = (image + sigma * noise).clamp(0, 1)
        low, high = self.blur.jpeg_quality
        quality = (low + (high - low) * _uniform(draw, count))[mine]
        chosen = (_uniform(draw, count)[mine] < self.blur.jpeg).nonzero()[:, 0]
        if len(chosen):
            where = chosen.to(image.device)
            image = image.index_copy(0, where, jpeg(to_8_bits(image[where]), quality[chosen].to(image)))
        return to_8_bits(image)


def shake(positions: int, draw: torch.Generator) -> Tensor:
    """A damped random walk, ``(positions, 2)`` as x and y: ``v <- 0.9 v + N(0, 0.35^2)`` at every step."""
    return walk(torch.randn(1, positions, 2, generator=draw))[0]


def walk(kicks: Tensor) -> Tensor:
    """Damped walks of many cameras at once, from what kicks them, both ``(b, positions, 2)``."""
    velocity, place, path = torch.zeros_like(kicks[:, 0]), torch.zeros_like(kicks[:, 0]), []
    for kick in (0.35 * kicks).unbind(1):
        velocity = 0.9 * velocity + kick
        place = place + velocity
        path.append(place)
    return torch.stack(path, 1)


def scaled(paths: Tensor, extent: Tensor) -> Tensor:
    """Centre paths ``(b, t, 2)`` on their means; scale the larger side of each bounding box to ``extent``, ``(b,)``."""
    paths = paths - paths.mean(1, keepdim=True)
    size = (paths.amax(1) - paths.amin(1)).amax(1).clamp(min=1e-6)
    return paths * (extent / size).view(-1, 1, 1)


def turning(centres: Tensor, extent: Tensor, patch: int, positions: int) -> tuple[Tensor, Tensor]:
    """Paths and angles of a camera that turns evenly about a point, to both sides of where it is sharp.

    Args:
        centres: The points, from the middle of the patch in pixels, ``(b, 2)`` as x and y.
        extent: Length of the longest trace in a patch, ``(b,)``.
        patch: Side of the patches.
        positions: Camera positions.

    Returns:
        Paths ``(b, positions, 2)`` and angles ``(b, positions)``, for :func:`expose`.
    """
    radius = (centres.abs() + patch / 2).square().sum(1).sqrt()  # to the farthest corner
    angles = (extent / radius / 2)[:, None] * torch.linspace(-1, 1, positions)
    cos, sin = angles.cos(), angles.sin()
    x, y = centres[:, :1], centres[:, 1:]
    return torch.stack([x - cos * x + sin * y, y - sin * x - cos * y], -1), angles


def expose(light: Tensor, paths: Tensor, angles: Tensor, *, together: int | None = None) -> Tensor:
    """Mean of the light seen from every position of a path, by bilinear interpolation; edges are repeated.

    Args:
        light: ``(b, c, h, w)``, linear.
        paths: Shifts in pixels, ``(b, t, 2)`` as x and y.
        angles: Rotations about the centre in radians, ``(b, t)``.
        together: Positions in one operation; by default 1 on a CPU, whose caches hold little, and all on a GPU, whose
            host takes longer to start an operation than the GPU to do it.

    Returns:
        ``(b, c, h, w)``.
    """
    (b, c, h, w), positions = light.shape, paths.shape[1]
    y = (torch.arange(h, device=light.device) - (h - 1) / 2)[:, None]
    x = torch.arange(w, device=light.device) - (w - 1) / 2
    total = torch.zeros_like(light)
    together = together or (1 if light.is_cpu else positions)
    for shift, angle in zip(paths.split(together, 1), angles.split(together, 1), strict=True):
        cos, sin = (f(angle)[..., None, None] for f in (torch.cos, torch.sin))
        across = (cos * x - sin * y).add_(shift[..., 0, None, None]).div_(max(w - 1, 1) / 2)
        down = (sin * x + cos * y).add_(shift[..., 1, None, None]).div_(max(h - 1, 1) / 2)
        grid = torch.stack([across, down], -1).to(light)  # b t h w 2
        seen = F.grid_sample(light, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=True)
        total += seen.view(b, c, -1, h, w).sum(2)
    return total / positions


def to_8_bits(image: Tensor) -> Tensor:
    """Round [0, 1] to the 256 values of an 8-bit file."""
    return image.clamp(0, 1).mul(255).round().div(255)


def _check_size(what: str, photo: Tensor, side: int) -> None:
    if min(photo.shape[1:]) < side:
        raise ValueError(f"{what} of {tuple(photo.shape[1:])} is too small for crops of {side}")


def _uniform(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=draw)
