"""A U-Net whose encoder is any of timm's networks and whose decoder scans: ``python examples/timm_encoder.py [NAME]``.

The weights are random; with ``pretrained=True`` in ``create_model`` timm fetches trained ones for the encoder.
"""

import sys

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.layers import ScanBlock


class ScanDecoder(nn.Module):
    """Restore an image: maps of an encoder, coarsest first, enlarged, added to the next finer one, scanned."""

    def __init__(self, encoder: nn.Module, dim: int = 32):
        super().__init__()
        self.encoder = encoder
        widths = encoder.feature_info.channels()
        self.narrow = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)
        self.blocks = nn.ModuleList(ScanBlock(dim) for _ in widths)
        self.output = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add a residual to ``(b, 3, h, w)``."""
        y = None
        for level, narrow, block in list(zip(self.encoder(x), self.narrow, self.blocks, strict=True))[::-1]:
            skip = narrow(level)
            y = block(skip if y is None else skip + F.interpolate(y, skip.shape[2:], mode="bilinear"))
        return x + F.interpolate(self.output(y), x.shape[2:], mode="bilinear")


def main(name: str = "resnet18") -> None:
    """Build, run and differentiate one."""
    torch.manual_seed(0)
    model = ScanDecoder(timm.create_model(name, features_only=True, pretrained=False, out_indices=(0, 1, 2)))
    blurred, sharp = torch.rand(2, 1, 3, 61, 94)
    restored = model(blurred)
    F.l1_loss(restored, sharp).backward()
    counted = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name} and a scanning decoder: {counted:,} parameters, {tuple(blurred.shape)} -> {tuple(restored.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
