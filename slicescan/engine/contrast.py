"""The contrastive term of XYScanNet's loss: closer to the sharp image than to the blurred one, in VGG-19's features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.checkpoint import CheckpointError, read_checkpoint

FILE = "vgg19-dcbb9e9d.pth"
"""What torchvision calls its ImageNet weights of VGG-19."""

LAYERS = (64, 64, "pool", 128, 128, "pool", 256)
"""VGG-19 up to relu3_1, ``features[0]`` to ``features[11]``: widths of 3x3 convolutions, each with a ReLU."""

CHANGED = 0.01
"""Where sharp and blurred differ by more than this, mean over channels, the term looks."""

SMALLEST = 0.25
"""The least sum of a resized mask that is not empty: one of the four pixels that a cell averages."""


class Contrast(nn.Module):
    """Distance of restored and sharp over distance of restored and blurred, where motion changed the image.

    With V the features of VGG-19 at relu3_1 of images shifted to [-0.5, 0.5] (no mean and deviation of ImageNet, as
    published), ``p = mean_c |V(restored) - V(sharp)|``, ``n = mean_c |V(restored) - V(blurred)|``, and M the mask
    ``mean_c |sharp - blurred| > 0.01`` resized to a quarter: ``sum(p / (n + 1e-7) M) / sum(M)`` over the whole batch.
    Gradients flow through ``V(restored)`` in both. The published term is 0/0 = NaN for a batch in which no pixel passes
    the mask; here it is 0, and equal to the published one for every other batch.

    Args:
        state: Weights of VGG-19 under torchvision's names, ``features.0.weight`` and so on; others are left out.

    Raises:
        KeyError: A weight is missing.

    Source:
        Training loss of Stripformer (Tsai et al. 2022) and XYScanNet.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for layer in LAYERS:
            if isinstance(layer, int):
                layers += [nn.Conv2d(width, layer, 3, padding=1), nn.ReLU()]
                width = layer
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.load_state_dict({name: state[name] for name in self.state_dict()})
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def open(cls, path: str | Path = "") -> Self:
        """Read weights from a file, by default from torchvision's cache, ``checkpoints`` of ``torch.hub.get_dir()``.

        Nothing is downloaded, and torchvision need not be there.

        Raises:
            FileNotFoundError: There is no such file; the message says where to put it.
            CheckpointError: The file does not hold VGG-19.
        """
        file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no weights of VGG-19 for the contrastive loss; put torchvision's {FILE} there, "
                "or name a file with vgg = in [loss]"
            )
        state = read_checkpoint(file).state_dict
        try:
            return cls(state)
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file}: not the weights of VGG-19 as torchvision names them ({reason})") from None

    def forward(self, restored: Tensor, sharp: Tensor, blurred: Tensor) -> Tensor:
        """The term for images ``(b, 3, h, w)`` in [0, 1], ``h`` and ``w`` at least 4; a scalar."""
        with torch.no_grad():
            changed = (sharp - blurred).abs().mean(1, keepdim=True) > CHANGED
            mask = F.interpolate(changed.to(sharp), scale_factor=0.25, mode="bilinear", align_corners=False)
            of_sharp, of_blurred = self.features(torch.cat([sharp, blurred]) - 0.5).chunk(2)
        of_restored = self.features(restored - 0.5)
        near = (of_restored - of_sharp).abs().mean(1, keepdim=True)
        far = (of_restored - of_blurred).abs().mean(1, keepdim=True)
        return (near / (far + 1e-7) * mask).sum() / mask.sum().clamp(min=SMALLEST)
