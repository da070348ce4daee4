"""Losses between a restored and a sharp image, both ``(b, c, h, w)`` in [0, 1]."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.engine.config import LossSection


def charbonnier(restored: Tensor, sharp: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean of ``sqrt((restored - sharp)^2 + eps^2)``: an L1 distance that is smooth at zero.

    Example:
        >>> charbonnier(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), eps=0.0).item()
        1.0
    """
    return torch.sqrt((restored - sharp).square() + eps**2).mean()


def edge(restored: Tensor, sharp: Tensor) -> Tensor:
    """Charbonnier distance of Laplacian details: what a 5x5 blur, decimation and a second blur take away.

    Source:
        Training loss of Stripformer and XYScanNet. Linear, so that it needs one Laplacian, of the difference.
    """
    details = _laplacian(restored - sharp)
    return charbonnier(details, torch.zeros_like(details))


def frequency(restored: Tensor, sharp: Tensor) -> Tensor:
    """Mean absolute difference of real and imaginary parts of the two-dimensional Fourier transforms.

    Source:
        Cho et al. 2021 (MIMO-UNet), Eq. 8.
    """
    return torch.view_as_real(torch.fft.fft2(restored - sharp)).abs().mean()


def psnr(restored: Tensor, sharp: Tensor, eps: float = 1e-8) -> Tensor:
    """Negative peak signal-to-noise ratio in dB, mean over the images of a batch; ``eps`` bounds it for equal images.

    Source:
        Chen et al. 2022 (NAFNet), training loss.

    Example:
        >>> round(psnr(torch.full((1, 3, 2, 2), 0.1), torch.zeros(1, 3, 2, 2)).item(), 3)
        -20.0
    """
    error = (restored - sharp).square().mean((1, 2, 3))
    return 10 * torch.log10(error + eps).mean()


def total(
    restored: Tensor,
    sharp: Tensor,
    weights: LossSection,
    *,
    blurred: Tensor | None = None,
    contrast: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Weighted sum of the terms of a recipe.

    Args:
        restored: ``(b, c, h, w)``, what the network made.
        sharp: Its target.
        weights: Weights of the terms; one without weight is not computed.
        blurred: What the network saw, for the contrastive term.
        contrast: That term, see :class:`slicescan.engine.contrast.Contrast`; None leaves it out.
    """
    loss = restored.new_zeros(())
    if weights.contrast and contrast is not None:
        assert blurred is not None
        loss = loss + weights.contrast * contrast(restored, sharp, blurred)
    for term in (charbonnier, edge, frequency, psnr):
        weight = getattr(weights, term.__name__)
        if weight:
            loss = loss + weight * term(restored, sharp)
    return loss


def total_of_scales(outputs: Sequence[Tensor], sharp: Tensor, weights: LossSection) -> Tensor:
    """Sum of :func:`total` over outputs of several sizes, each against the sharp image shrunk to its size.

    Source:
        Cho et al. 2021 (MIMO-UNet), Eq. 7 and 9: bilinear halves of the sharp image.
    """
    loss = sharp.new_zeros(())
    for output in outputs:
        target = sharp
        if output.shape[2:] != sharp.shape[2:]:
            target = F.interpolate(sharp, output.shape[2:], mode="bilinear", align_corners=False)
        loss = loss + total(output, target, weights)
    return loss


def _laplacian(x: Tensor) -> Tensor:
    blurred = _gauss(x)
    kept = torch.zeros_like(blurred)
    kept[..., ::2, ::2] = 4 * blurred[..., ::2, ::2]
    return x - _gauss(kept)


def _gauss(x: Tensor) -> Tensor:
    """Blur every channel by the binomial-like kernel ``k k^T``, edges repeated."""
    k, c = _kernel(x.device, x.dtype), x.shape[1]
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, k.view(1, 1, 1, 5).expand(c, 1, 1, 5), groups=c)
    return F.conv2d(x, k.view(1, 1, 5, 1).expand(c, 1, 5, 1), groups=c)


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once, because a captured CUDA graph cannot copy from the host."""
    return torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05], device=device, dtype=dtype)
