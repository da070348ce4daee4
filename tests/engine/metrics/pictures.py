"""Pictures for the tests of metrics, drawn from a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def texture(h: int, w: int, seed: int = 0, coarsest: int = 4) -> Tensor:
    """A colour texture with detail at every scale, as photographs have: uint8 ``(3, h, w)``, nowhere flat."""
    draw = torch.Generator().manual_seed(seed)
    total, side = torch.zeros(1, 3, h, w, dtype=torch.float64), coarsest
    while side < max(h, w):
        grid = torch.randn(1, 3, side, side, generator=draw, dtype=torch.float64)
        total += F.interpolate(grid, (h, w), mode="bicubic", align_corners=False) / side**0.8
        side *= 2
    total = total[0] + 0.02 * torch.randn(3, h, w, generator=draw, dtype=torch.float64)
    low, high = total.amin(), total.amax()
    return ((total - low) / (high - low) * 235 + 10).round().to(torch.uint8)


def blurred(image: Tensor, width: int) -> Tensor:
    """The mean over squares of an odd width; borders are mirrored."""
    padded = F.pad(image[None].double(), (width // 2,) * 4, mode="reflect")
    return F.avg_pool2d(padded, width, 1)[0].round().to(torch.uint8)


def noisy(image: Tensor, deviation: float, seed: int = 0) -> Tensor:
    """The image with Gaussian noise, in grey levels."""
    draw = torch.Generator().manual_seed(seed)
    grain = deviation * torch.randn(image.shape, generator=draw, dtype=torch.float64)
    return (image + grain).round().clamp(0, 255).to(torch.uint8)
