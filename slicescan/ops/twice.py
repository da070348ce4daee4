"""Bilinear enlargement by two."""

import torch
import torch.nn.functional as F
from torch import Tensor

from slicescan.ops import dispatch
from slicescan.ops.library import runs_kernels, traces_kernels

_MOST = 2**31 - 1  # elements that torch's kernels for NVIDIA devices enlarge to


def twice(x: Tensor) -> Tensor:
    """Enlarge ``(b, c, h, w)`` to ``(b, c, 2 h, 2 w)`` by bilinear interpolation with half-pixel centres.

    Example:
        >>> twice(torch.tensor([[[[0.0, 4.0]]]]))[0, 0, 0]
        tensor([0., 1., 3., 4.])
    """
    if traces_kernels(x):
        return dispatch.traced_twice(x)
    if runs_kernels(x):
        return dispatch.load("cuda.twice").run(x)
    if x.is_cuda and not torch.compiler.is_compiling() and 4 * x.numel() > _MOST:
        return _in_parts(x, _MOST)
    return _plain(x)


def _plain(x: Tensor) -> Tensor:
    return F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=False)


def _in_parts(x: Tensor, most: int) -> Tensor:
    """The same by images and groups of channels that are enlarged to ``most`` elements at most."""
    channels = max(1, most // (4 * x[0, 0].numel()))
    images = [torch.cat([_plain(part) for part in image.split(channels, 1)], 1) for image in x.split(1)]
    return torch.cat(images)
