"""The effective receptive field: how much each pixel of the input moves the centre of the output."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RADII = (1, 2, 4, 8, 16, 32, 64, 128)
"""Radii in pixels that reports list."""


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Squared gradient of the centre of the output with respect to every pixel of the input.

    Attributes:
        energy: ``(h, w)``, float64: summed over the channels of the input, mean over the images.
        centre: Row and column of the input that lies under the pixel of the output.
        change: The field of output minus input, without the path that hands a pixel on as it is; None where the
            network changes the size or the channels.
    """

    energy: Tensor
    centre: tuple[int, int]
    change: "ReceptiveField | None" = None

    def share(self, radius: float) -> float:
        """Share of the energy that lies within ``radius`` pixels of the centre; NaN if there is none."""
        total = self.energy.sum().item()
        inside = self.energy[self._distance() <= radius].sum().item()
        return inside / total if total else math.nan

    def radius(self, share: float) -> float:
        """Smallest distance in pixels within which a share of the energy lies; NaN if there is none.

        Raises:
            ValueError: ``share`` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        distance, order = self._distance().flatten().sort()
        collected = self.energy.flatten()[order].cumsum(0)
        if not collected[-1]:
            return math.nan
        reached = collected >= share * collected[-1] * (1 - 1e-12)
        return distance[int(reached.double().argmax())].item()

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the rectangle that holds everything that is not zero."""
        rows, columns = self.energy.sum(1).nonzero(), self.energy.sum(0).nonzero()
        if not len(rows):
            return 0, 0
        return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1

    @property
    def cross(self) -> float:
        """Share of the energy in the row and the column of the centre; 1 for a scan along both, small for a disk."""
        y, x = self.centre
        total = self.energy.sum()
        return ((self.energy[y].sum() + self.energy[:, x].sum() - self.energy[y, x]) / total).item()

    def summary(self) -> dict[str, Any]:
        """Figures for reports and JSON."""
        h, w = self.energy.shape
        about: dict[str, Any] = {
            "size": [h, w],
            "radius_50": self.radius(0.5),
            "radius_90": self.radius(0.9),
            "radius_99": self.radius(0.99),
            "share_within": {str(r): self.share(r) for r in RADII if r < math.hypot(h, w) / 2},
            "cross": self.cross,
            "extent": list(self.extent),
        }
        return about | ({"change": self.change.summary()} if self.change is not None else {})

    def _distance(self) -> Tensor:
        h, w = self.energy.shape
        y = torch.arange(h, dtype=torch.float64)[:, None] - self.centre[0]
        x = torch.arange(w, dtype=torch.float64)[None] - self.centre[1]
        return (y.square() + x.square()).sqrt()


def effective_receptive_field(
    model: nn.Module,
    size: int | Sequence[int] = 256,
    *,
    images: Tensor | int = 4,
    seed: int = 0,
) -> ReceptiveField:
    """Differentiate the centre pixel of the output, summed over its channels, by the input, and average over images.

    Every image passes alone. Restoration networks add their input to their output, and that one pixel outweighs the
    rest: look at ``.change`` for what the network itself sees.

    Args:
        model: Any differentiable network on ``(b, c, h, w)``; it is measured in evaluation mode, on its device, and
            left as it was.
        size: Side of the input in pixels, or height and width.
        images: Inputs ``(b, c, h, w)`` in [0, 1], which set the size; or how many random ones to draw. Drawn ones have
            the spectrum of photographs, 1/f.
        seed: Of the random inputs.

    Raises:
        ValueError: The output is not an image batch, or does not depend on the input.

    Source:
        Luo et al. 2016, section 3. Energy is the squared gradient, so that shares of it add up.

    Example:
        >>> field = effective_receptive_field(nn.Conv2d(3, 3, 3, padding=1), size=16)
        >>> field.extent, round(field.share(1.5), 6), field.radius(1.0) <= 2**0.5
        ((3, 3), 1.0, True)
    """
    if isinstance(images, int):
        h, w = (size, size) if isinstance(size, int) else size
        images = draw_images(images, getattr(model, "in_chans", 3), h, w, seed)
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"expected images (b, c, h, w), got {tuple(images.shape)}")
    weight = next(model.parameters(), torch.empty(0))
    h, w = images.shape[2:]
    energy, change = (torch.zeros(h, w, dtype=torch.float64) for _ in range(2))
    centre, comparable = (h // 2, w // 2), True
    with _still(model), torch.enable_grad():
        for image in images:
            x = image[None].to(weight.device, weight.dtype).requires_grad_()
            y = model(x)
            if not isinstance(y, Tensor) or y.ndim != 4 or not y.requires_grad:
                raise ValueError(
                    f"{type(model).__name__}: expected an image batch that depends on the input, "
                    f"got {tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__}"
                )
            place = (y.shape[2] // 2, y.shape[3] // 2)
            centre = (place[0] * h // y.shape[2], place[1] * w // y.shape[3])
            (gradient,) = torch.autograd.grad(y[0, :, place[0], place[1]].sum(), x)
            gradient = gradient[0].double().cpu()
            energy += gradient.square().sum(0)
            comparable = y.shape == x.shape
            gradient[:, centre[0], centre[1]] -= 1
            change += gradient.square().sum(0)
    without = ReceptiveField(change / len(images), centre) if comparable else None
    return ReceptiveField(energy / len(images), centre, without)


def draw_images(count: int, channels: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Random images with the spectrum of photographs: amplitude 1/f, mean 0.5, standard deviation 0.2, in [0, 1].

    Example:
        >>> draw_images(2, 3, 8, 10).shape
        torch.Size([2, 3, 8, 10])
    """
    noise = torch.randn(count, channels, h, w, generator=torch.Generator().manual_seed(seed))
    fy, fx = torch.fft.fftfreq(h)[:, None] * h, torch.fft.rfftfreq(w)[None] * w
    amplitude = 1 / (fy.square() + fx.square()).sqrt().clamp(min=1)
    amplitude[0, 0] = 0
    shaped = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(h, w))
    deviation = shaped.std((2, 3), keepdim=True, correction=0).clamp(min=1e-12)
    return (0.5 + 0.2 * shaped / deviation).clamp(0, 1)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of the weights, and back."""
    training = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, was in training:
            module.training = was
