"""What JPEG compression leaves of an image, in batches on any device; nothing is written."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation steps of the standard's Annex K for quality 50; row and column are vertical and horizontal frequency."""

CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)

TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress without chroma subsampling.

    Args:
        image: RGB ``(b, 3, h, w)`` in [0, 1], any size.
        quality: ``(b,)``, 1 to 100, as libjpeg counts it.

    Returns:
        ``(b, 3, h, w)`` in [0, 1].

    Source:
        ITU-T T.81, Annexes A and K; colour of JFIF; quality scale of libjpeg.

    Example:
        >>> image = torch.full((1, 3, 8, 8), 0.5)
        >>> (jpeg(image, torch.tensor([95.0])) - image).abs().max().item() < 0.01
        True
    """
    h, w = image.shape[2:]
    to_ycc, to_rgb, dct, tables = _constants(image.device, image.dtype)
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, image * 255)
    ycc[:, 0] -= 128
    ycc = F.pad(ycc, (0, -w % 8, 0, -h % 8), mode="replicate")
    blocks = ycc.unfold(2, 8, 8).unfold(3, 8, 8)  # b 3 rows columns 8 8
    steps = _steps(tables, quality)[:, :, None, None]
    coefficients = torch.round(dct @ blocks @ dct.T / steps) * steps
    blocks = dct.T @ coefficients @ dct
    ycc = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :h, :w].clone()
    ycc[:, 0] += 128
    return torch.einsum("ij,bjhw->bihw", to_rgb, ycc).div(255).clamp(0, 1)


@cache
def _constants(device: torch.device, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours there and back, cosine transform and quantisation steps, made once: copies make a GPU wait."""
    to_ycc = torch.tensor(TO_YCC, dtype=torch.float64)
    tables = torch.tensor([LUMINANCE, CHROMINANCE, CHROMINANCE])
    made = (to_ycc, torch.linalg.inv(to_ycc), _dct(), tables)
    return tuple(one.to(device, kind) for one in made)  # type: ignore[return-value]


def _dct() -> Tensor:
    """The orthonormal cosine transform of eight values; rows are frequencies."""
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    return dct


def _steps(tables: Tensor, quality: Tensor) -> Tensor:
    """Steps of a quality, ``(b, 3, 8, 8)``, from those of quality 50, ``(3, 8, 8)``."""
    percent = torch.where(quality < 50, (5000 / quality.clamp(min=1)).floor(), 200 - 2 * quality).view(-1, 1, 1, 1)
    return torch.floor((tables * percent + 50) / 100).clamp(1, 255)
