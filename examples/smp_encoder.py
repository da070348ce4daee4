"""XYScanNet's decoder on an encoder of segmentation-models: ``python examples/smp_encoder.py [NAME]``.

``pip install segmentation-models-pytorch``. Any of its encoders will do that has maps at 1/2 and 1/4 of the size. The
network learns to sharpen one photograph, from random weights; with ``weights="imagenet"`` in ``get_encoder`` that
package fetches trained ones for the encoder.
"""

import sys
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor

from slicescan.layers import KLFF, ScanBlock, Upsample

PHOTO = Path(__file__).parent / "photos" / "red_panda.jpg"


class ScanUNet(nn.Module):
    """Restore an image: maps of an encoder at 1, 1/2 and 1/4 of the size, fused by KLFF, decoded by scanning blocks."""

    def __init__(self, encoder: nn.Module, dim: int = 16):
        super().__init__()
        self.encoder, dims = encoder, (dim, 2 * dim, 4 * dim)
        self.project = nn.ModuleList(map(lambda width, d: nn.Conv2d(width, d, 1), encoder.out_channels, dims))
        self.fuse = nn.ModuleList([KLFF(dims[0], dims[1:]), KLFF(dims[1], (dims[0], dims[2]))])
        self.up = nn.ModuleList([Upsample(dims[1]), Upsample(dims[2])])
        self.join = nn.ModuleList(nn.Conv2d(2 * d, d, 1) for d in dims[:2])
        self.blocks = nn.ModuleList(map(ScanBlock, dims))
        self.output = nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add a residual to ``(b, 3, h, w)``, of any height and width."""
        h, w = x.shape[2:]
        padded = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
        e1, e2, e3 = (project(level) for project, level in zip(self.project, self.encoder(padded), strict=True))
        skips = [self.fuse[0](e1, [e2, e3]), self.fuse[1](e2, [e1, e3])]
        y = self.blocks[2](e3)
        for level in (1, 0):
            y = self.blocks[level](self.join[level](torch.cat([self.up[level](y), skips[level]], 1)))
        return x + self.output(y)[:, :, :h, :w]


def main(name: str = "resnet18", steps: int = 30) -> None:
    """Build one, and train it on a crop of a photograph."""
    torch.manual_seed(0)
    model = ScanUNet(smp.encoders.get_encoder(name, depth=2, weights=None))
    with Image.open(PHOTO) as image:
        sharp = pil_to_tensor(image)[None, :, 200:261, 200:294] / 255
    blurred = gaussian_blur(sharp, 9)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 2e-3), []
    for _ in range(steps):
        loss = F.l1_loss(model(blurred), sharp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{name} and a scanning decoder on {tuple(sharp.shape)}: mean error {losses[0]:.4f}, then {losses[-1]:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
