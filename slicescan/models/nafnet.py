"""NAFNet: a U-Net of blocks without activation functions."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.checkpoint import Shapes
from slicescan.layers import NAFBlock
from slicescan.models.base import Detected, ModelRecord, Reconstruction, Restorer, WeightSource

PAGE = "https://github.com/megvii-research/NAFNet"
SIDD = {"enc_blocks": (2, 2, 4, 8), "middle_blocks": 12, "dec_blocks": (2, 2, 2, 2)}


class NAFNet(Restorer):
    """Restore by adding a residual that a U-Net of gated convolutions predicts.

    ::

        e1 = encode(intro(x)),  e2 = encode(down(e1)),  …       widths width, 2 width, … at 1, 1/2, … of the size
        m = middle(down(e4))
        d4 = decode(up(m) + e4),  d3 = decode(up(d4) + e3),  …
        y = x + ending(d1)

    Args:
        width: Channels of the finest level.
        enc_blocks: Blocks of each level of the encoder, finest first; there are as many levels as numbers.
        middle_blocks: Blocks below the coarsest level.
        dec_blocks: Blocks of each level of the decoder, coarsest first.
        tlc: Average over windows of one and a half times the size of the crops that the network was trained with,
            instead of over the whole image. The published deblurring results need it; for images up to that size it
            changes nothing.
        tlc_crop: Side of those crops, in pixels.
        in_chans: Channels of the image.

    Raises:
        ValueError: Encoder and decoder differ in their number of levels, or an argument is not positive.

    Source:
        Chen et al. 2022 (arXiv 2204.04676), Figures 2c and 3c; Chu et al. 2022 (arXiv 2112.04491) for ``tlc``. Pads
        with zeros, as the published network does.

    Example:
        >>> import torch
        >>> model = NAFNet(8, enc_blocks=(1, 1), middle_blocks=1, dec_blocks=(1, 1))
        >>> model(torch.rand(1, 3, 6, 9)).shape
        torch.Size([1, 3, 6, 9])
    """

    variants = {
        "nafnet_w32": {"width": 32},
        "nafnet_w64": {"width": 64},
        "nafnet_sidd_w32": {"width": 32, **SIDD},
        "nafnet_sidd_w64": {"width": 64, **SIDD},
    }
    record = ModelRecord(
        task="motion deblurring",
        supports=frozenset({"fp16", "bf16", "channels_last", "compile", "export", "onnx"}),
        tiling="discouraged",
        tiling_reason="every block averages over the whole image; with tlc=True over windows one and a half times as "
        "wide as a training crop, which large tiles approximate",
        paper="https://arxiv.org/abs/2204.04676",
    )
    costs = {
        "nafnet_w32": (17_111_907, 15_956_027_392),
        "nafnet_w64": (67_888_835, 63_054_979_072),
        "nafnet_sidd_w32": (29_159_715, 16_045_035_520),
        "nafnet_sidd_w64": (115_982_915, 63_236_423_680),
    }
    details = {name: {"task": "denoising"} for name in ("nafnet_sidd_w32", "nafnet_sidd_w64")}
    published = {
        f"nafnet_{kind}w{width}": WeightSource(f"NAFNet-{data}-width{width}.pth", PAGE, "MIT")
        for kind, data in (("", "GoPro"), ("sidd_", "SIDD"))
        for width in (32, 64)
    }
    size_multiple = 16
    input_layers = ("intro",)
    output_layers = ("ending",)

    def __init__(
        self,
        width: int = 32,
        *,
        enc_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        dec_blocks: Sequence[int] = (1, 1, 1, 1),
        tlc: bool = False,
        tlc_crop: int = 256,
        in_chans: int = 3,
    ):
        super().__init__()
        if len(enc_blocks) != len(dec_blocks) or not enc_blocks:
            raise ValueError(
                f"enc_blocks and dec_blocks have one number for each level, got {tuple(enc_blocks)} and "
                f"{tuple(dec_blocks)}"
            )
        numbers = {"width": width, "enc_blocks": min(enc_blocks), "middle_blocks": middle_blocks}
        for name, number in {**numbers, "dec_blocks": min(dec_blocks), "tlc_crop": tlc_crop}.items():
            if number < 1:
                raise ValueError(f"{name} must be positive, got {number}")
        levels = len(enc_blocks)
        self.in_chans, self.size_multiple = in_chans, 2**levels
        padded_crop = tlc_crop + -tlc_crop % self.size_multiple

        def stage(level: int, blocks: int) -> nn.Sequential:
            side = padded_crop >> level  # of a map of this level in training
            window = side * int(1.5 * tlc_crop) // tlc_crop if tlc else None
            return nn.Sequential(*[NAFBlock(width << level, window=window) for _ in range(blocks)])

        # Modules in the order of the published file.
        self.intro = nn.Conv2d(in_chans, width, 3, padding=1)
        self.ending = nn.Conv2d(width, in_chans, 3, padding=1)
        self.encoders = nn.ModuleList([stage(level, blocks) for level, blocks in enumerate(enc_blocks)])
        self.decoders = nn.ModuleList([stage(levels - 1 - i, blocks) for i, blocks in enumerate(dec_blocks)])
        self.middle_blks = stage(levels, middle_blocks)
        self.ups = nn.ModuleList([_up(width << level) for level in range(levels, 0, -1)])
        self.downs = nn.ModuleList([nn.Conv2d(width << i, width << i + 1, 2, stride=2) for i in range(levels)])

    def levels(self, x: Tensor) -> list[Tensor]:
        """Encode and decode ``(b, in_chans, h, w)``; the decoder's maps, finest first, and last the map below them."""
        x = self.intro(x)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(self.run_blocks(encoder, x))
            x = down(skips[-1])
        maps = [self.run_blocks(self.middle_blks, x)]
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            maps.insert(0, self.run_blocks(decoder, up(maps[0]) + skip))
        return maps

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Add the residual, made from the finest map, to the image."""
        residual = self.ending(levels[0])
        return Reconstruction([residual + x], residual)

    def pad(self, x: Tensor) -> Tensor:
        """Extend right and bottom with zeros to ``size_multiple``."""
        h, w = x.shape[2:]
        return F.pad(x, (0, -w % self.size_multiple, 0, -h % self.size_multiple))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that sort parameters by depth: published names are in another order."""
        block = "" if coarse else r"(\d+)\."
        groups = {"intro": r"^intro\."}
        for i in range(len(self.encoders)):
            groups |= {f"encoders.{i}": rf"^encoders\.{i}\.{block}", f"downs.{i}": rf"^downs\.{i}\."}
        groups["middle_blks"] = rf"^middle_blks\.{block}"
        for i in range(len(self.decoders)):
            groups |= {f"ups.{i}": rf"^ups\.{i}\.", f"decoders.{i}": rf"^decoders\.{i}\.{block}"}
        return groups | {"ending": r"^ending\."}

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's.

        Windowed means leave no trace: ``tlc`` is assumed.
        """
        shapes = Shapes(state_dict)
        if not (shapes.fit("middle_blks.*.sca.1.weight") and shapes.fit("ups.*.0.weight")):
            return None
        finest = max(shapes.count("decoders") - 1, 0)
        arguments = {
            "width": shapes.size(("intro.*", 0), ("ending.weight", 1), ("encoders.0.*.norm?.*", 0)),
            "enc_blocks": [shapes.count(f"encoders.{i}") for i in range(shapes.count("encoders"))],
            "middle_blocks": shapes.count("middle_blks"),
            "dec_blocks": [shapes.count(f"decoders.{i}") for i in range(finest + 1)],
            "in_chans": shapes.size(("ending.*", 0), ("intro.weight", 1)),
        }
        return Detected(arguments, ("tlc",))


def _up(dim: int) -> nn.Sequential:
    """Half the width at twice the size: four values for each new channel, one for each new pixel."""
    return nn.Sequential(nn.Conv2d(dim, 2 * dim, 1, bias=False), nn.PixelShuffle(2))
