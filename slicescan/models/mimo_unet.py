"""MIMO-UNet: one U-Net that takes three sizes of the image and gives three sizes of the result."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.checkpoint import Shapes
from slicescan.layers import AFF
from slicescan.models.base import Detected, ModelRecord, Reconstruction, Restorer, WeightSource

PAGE = "https://github.com/chosj95/MIMO-UNet"
TERMS = "none stated: the release has no licence file"


class MIMOUNet(Restorer):
    """Deblur from coarse to fine inside one network: it sees the image at three sizes and restores all three.

    ::

        e1 = encode(feat(x)),  e2 = encode(fam(down(e1), scm(x/2))),  e3 = encode(fam(down(e2), scm(x/4)))
        f1, f2 = aff(e1, e2, e3), aff(e1, e2, e3)               widths dim, 2 dim, 4 dim at 1, 1/2, 1/4 of the size
        d3 = decode(e3),  d2 = decode(up(d3), f2),  d1 = decode(up(d2), f1)
        y, y/2, y/4 = x + out(d1),  x/2 + out(d2),  x/4 + out(d3)

    Args:
        dim: Channels of the finest level.
        num_res: Residual blocks of each level, in the encoder and again in the decoder.
        dropout: Share of the channels of ``f1`` and ``f2`` that training drops.
        in_chans: Channels of the image.

    Raises:
        ValueError: ``dim`` is less than 2, or ``num_res`` less than 1.

    Source:
        Cho et al. 2021 (arXiv 2108.05054), Figure 2.

    Example:
        >>> model = MIMOUNet(8, num_res=1)
        >>> [tuple(output.shape) for output in model.forward_outputs(torch.rand(1, 3, 6, 9))["outputs"]]
        [(1, 3, 6, 9), (1, 3, 3, 5), (1, 3, 2, 3)]
    """

    variants = {"mimo_unet": {"num_res": 8}, "mimo_unet_plus": {"num_res": 20, "dropout": 0.1}}
    costs = {"mimo_unet": (6_807_171, 63_732_842_496), "mimo_unet_plus": (16_107_651, 150_705_930_240)}
    record = ModelRecord(
        task="motion deblurring",
        supports=frozenset({"fp16", "bf16", "channels_last", "compile", "export", "onnx"}),
        tiling="approximate",
        tiling_reason="convolutions only: a pixel sees 17 pixels around it and 28 more for each block of a level, "
        "in all 241, or 577 in mimo_unet_plus",
        paper="https://arxiv.org/abs/2108.05054",
    )
    published = {
        "mimo_unet": WeightSource("MIMO-UNet.pkl", PAGE, TERMS),
        "mimo_unet_plus": WeightSource("MIMO-UNetPlus.pkl", PAGE, TERMS),
    }
    size_multiple = 4
    input_layers = ("feat_extract.0.main.0", *(f"SCM{i}.{part}.main.0" for i in (1, 2) for part in ("main.0", "conv")))
    output_layers = ("feat_extract.5.main.0", "ConvsOut.0.main.0", "ConvsOut.1.main.0")

    def __init__(self, dim: int = 32, *, num_res: int = 8, dropout: float = 0.0, in_chans: int = 3):
        super().__init__()
        for name, number, least in (("dim", dim, 2), ("num_res", num_res, 1)):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        self.in_chans, self.dropout = in_chans, dropout
        dims = (dim, 2 * dim, 4 * dim)

        # Modules in the order of the published file.
        self.Encoder = nn.ModuleList([_stage(width, num_res) for width in dims])
        self.feat_extract = nn.ModuleList(
            [
                _conv(in_chans, dims[0], 3),
                _conv(dims[0], dims[1], 3, stride=2),
                _conv(dims[1], dims[2], 3, stride=2),
                _main(nn.ConvTranspose2d(dims[2], dims[1], 4, stride=2, padding=1), nn.ReLU()),
                _main(nn.ConvTranspose2d(dims[1], dims[0], 4, stride=2, padding=1), nn.ReLU()),
                _conv(dims[0], in_chans, 3, relu=False),
            ]
        )
        self.Decoder = nn.ModuleList([_stage(width, num_res) for width in reversed(dims)])
        self.Convs = nn.ModuleList([_conv(dims[2], dims[1], 1), _conv(dims[1], dims[0], 1)])
        self.ConvsOut = nn.ModuleList([_conv(width, in_chans, 3, relu=False) for width in (dims[2], dims[1])])
        self.AFFs = nn.ModuleList([AFF(dims, dims[0], level=0), AFF(dims, dims[1], level=1)])
        self.FAM1 = FeatureAttention(dims[2])
        self.SCM1 = ShallowConvolutions(dims[2], in_chans)
        self.FAM2 = FeatureAttention(dims[1])
        self.SCM2 = ShallowConvolutions(dims[1], in_chans)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Encode, fuse, decode ``(b, in_chans, h, w)``; the decoder's maps at 1, 1/2 and 1/4 of the size."""
        half, quarter = _halves(x)
        e1 = self._stage(self.Encoder[0], self.feat_extract[0](x))
        e2 = self.FAM2(self.feat_extract[1](e1), self.SCM2(half))
        e2 = self._stage(self.Encoder[1], e2)
        e3 = self.FAM1(self.feat_extract[2](e2), self.SCM1(quarter))
        e3 = self._stage(self.Encoder[2], e3)
        f1, f2 = (F.dropout2d(fuse([e1, e2, e3]), self.dropout, self.training) for fuse in self.AFFs)
        d3 = self._stage(self.Decoder[0], e3)
        d2 = self.Convs[0](torch.cat([self.feat_extract[3](d3), f2], 1))
        d2 = self._stage(self.Decoder[1], d2)
        d1 = self.Convs[1](torch.cat([self.feat_extract[4](d2), f1], 1))
        return [self._stage(self.Decoder[2], d1), d2, d3]

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Add to each size of the image a residual made from the map of that size."""
        images = [x, *_halves(x)]
        layers = [self.feat_extract[5], self.ConvsOut[1], self.ConvsOut[0]]
        residuals = [layer(level) for layer, level in zip(layers, levels, strict=True)]
        return Reconstruction([a + b for a, b in zip(residuals, images, strict=True)], residuals[0])

    def _stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        return self.run_blocks(stage.get_submodule("layers"), x)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters by depth: published names are in another order."""
        block = "" if coarse else r"layers\.(\d+)\."
        encoder = [r"feat_extract\.0\.", rf"Encoder\.0\.{block}"]
        encoder += [r"(?:feat_extract\.1|SCM2|FAM2)\.", rf"Encoder\.1\.{block}"]
        encoder += [r"(?:feat_extract\.2|SCM1|FAM1)\.", rf"Encoder\.2\.{block}"]
        decoder = [r"AFFs\.", rf"Decoder\.0\.{block}", r"(?:feat_extract\.3|Convs\.0)\.", rf"Decoder\.1\.{block}"]
        decoder += [r"(?:feat_extract\.4|Convs\.1)\.", rf"Decoder\.2\.{block}", r"(?:feat_extract\.5|ConvsOut\.\d)\."]
        return {pattern: f"^{pattern}" for pattern in encoder + decoder}

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's.

        Dropout leaves no trace; that of the registered network of this depth is assumed.
        """
        shapes = Shapes(state_dict)
        if not (shapes.fit("SCM?.*.main.0.*") and shapes.fit("AFFs.?.conv.*")):
            return None
        num_res = max(shapes.count(f"{coder}.{i}.layers") for coder in ("Encoder", "Decoder") for i in range(3))
        arguments = {
            "dim": shapes.size(("Encoder.0.layers.*", 0), ("feat_extract.0.*", 0)),
            "num_res": num_res,
            "in_chans": shapes.size(("feat_extract.5.*", 0), ("ConvsOut.*", 0), ("feat_extract.0.*.weight", 1)),
        }
        for registered in cls.variants.values():
            if registered["num_res"] == num_res and "dropout" in registered:
                arguments["dropout"] = registered["dropout"]
        return Detected(arguments, ("dropout",))


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, both convolutions 3x3."""

    def __init__(self, dim: int):
        super().__init__()
        self.main = nn.Sequential(_conv(dim, dim, 3), _conv(dim, dim, 3, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(b, dim, h, w)``."""
        return x + self.main(x)


class ShallowConvolutions(nn.Module):
    """Features of a reduced image, from few convolutions, with the image itself beside them: SCM of the paper."""

    def __init__(self, dim: int, in_chans: int):
        super().__init__()
        self.main = nn.Sequential(
            _conv(in_chans, dim // 4, 3),
            _conv(dim // 4, dim // 2, 1),
            _conv(dim // 2, dim // 2, 3),
            _conv(dim // 2, dim - 3, 1),
        )
        self.conv = _conv(dim - 3 + in_chans, dim, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, in_chans, h, w)`` to ``(b, dim, h, w)``."""
        return self.conv(torch.cat([x, self.main(x)], 1))


class FeatureAttention(nn.Module):
    """``a + conv3x3(a * b)``: let the features of a reduced image stress or suppress those from above: FAM."""

    def __init__(self, dim: int):
        super().__init__()
        self.merge = _conv(dim, dim, 3, relu=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two maps ``(b, dim, h, w)`` to one."""
        return a + self.merge(a * b)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` at 1/2 and 1/4 of its size, by nearest neighbour: the upper left one of each square of pixels."""
    return x[:, :, ::2, ::2], x[:, :, ::4, ::4]


def _stage(dim: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*[ResidualBlock(dim) for _ in range(blocks)])))


def _conv(dim: int, out_dim: int, size: int, *, stride: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(dim, out_dim, size, stride=stride, padding=size // 2)
    return _main(conv, nn.ReLU()) if relu else _main(conv)


def _main(*modules: nn.Module) -> nn.Sequential:
    """Modules under the name that the published network gives them."""
    return nn.Sequential(OrderedDict(main=nn.Sequential(*modules)))
