"""XYScanNet: a U-Net whose decoder scans the image slice by slice."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from slicescan.checkpoint import Shapes
from slicescan.layers import AFF, KLFF, SS2D, Downsample, GatedDconvFFN, InterVSSM, IntraVSSM, LayerNorm2d, Upsample
from slicescan.layers.block import FeedForwardBlock, ScanBlock
from slicescan.layers.memory_order import channels_last
from slicescan.layers.norm import BiasFreeNorm2d
from slicescan.layers.pointwise import PointwiseConv2d
from slicescan.layers.strips import Strip, Strips
from slicescan.models.base import Detected, ModelRecord, Reconstruction, Restorer, WeightSource

Scanner = Literal["intra", "inter", "ss2d"]
Fusion = Literal["klff", "aff", "skip"]
Norm = Literal["layer", "bias_free"]
Layer = Callable[[int], nn.Module]

PUBLISHED = WeightSource(
    file="best_XYScanNet_stage2.pth",
    page="https://github.com/HanzhouLiu/XYScanNet",
    license="MIT wording restricted to non-commercial use",
)


class XYScanNet(Restorer):
    """Deblur by adding a residual that a three-level U-Net predicts.

    Encoder blocks are feed-forward; decoder blocks scan inside the slices and across them; between the two, each of the
    finer levels takes from the others what it lacks. ::

        e1, e2, e3 = encoder(x)                         widths dim, 2 dim, 4 dim at 1, 1/2, 1/4 of the size
        f1, f2 = fuse(e1; e2, e3), fuse(e2; e1, e3)
        d3 = decode(e3),  d2 = decode(up(d3), f2),  d1 = decode(up(d2), f1)
        y = x + output(d1)

    Args:
        dim: Channels of the finest level, even.
        blocks: Blocks of each level, finest first, in the encoder and again in the decoder.
        state: Size of the state of each scanned channel.
        vssm_expand: Inner width of ``intra`` and ``inter`` scanners relative to the level's.
        ffn_expand: Inner width of feed-forward layers relative to the level's.
        bias: Whether convolutions have a bias, but for the embedding and the resampling, which have none.
        norm: ``"layer"``, or ``"bias_free"``: no shift, and the mean stays in.
        scanners: What the slots ``intra`` and ``inter`` of a decoder block hold: ``"intra"`` and ``"inter"`` as in the
            paper, or ``"ss2d"``, the four-path scan of MambaIR with inner width 1.5.
        fusion: ``"klff"`` as in the paper, ``"aff"`` of MIMO-UNet, or ``"skip"``: the encoder's map as it is.
        fusion_gate: What KLFF's gate is shared by, see :class:`~slicescan.layers.KLFF`. The network was trained with
            ``"tensor"``; ``"sample"`` equals it for single images and does not let images of a batch mix.
        in_chans: Channels of the image.
        out_chans: Channels of the result; they equal ``in_chans``, which is the default.

    Source:
        XYScanNet (arXiv 2412.10338), Figure 2. Differs, as the released network does: see the layers. Works on
        [-0.5, 0.5] inside.

    Example:
        >>> model = XYScanNet(8, blocks=(1, 1, 1))
        >>> model(torch.rand(1, 3, 6, 9)).shape
        torch.Size([1, 3, 6, 9])
    """

    variants = {
        "xyscannet": {"dim": 72},
        "xyscannet_tiny": {"dim": 24},
        "xyscannet_small": {"dim": 48},
        "xyscannet_plus": {"dim": 144},
        "xyscannet_small_intra": {"dim": 48, "scanners": ("intra", "intra")},
        "xyscannet_small_inter": {"dim": 48, "scanners": ("inter", "inter")},
        "xyscannet_small_mambair": {"dim": 48, "scanners": ("ss2d", "ss2d")},
        "xyscannet_small_aff": {"dim": 48, "fusion": "aff"},
        "xyscannet_small_skip": {"dim": 48, "fusion": "skip"},
    }
    costs = {
        "xyscannet": (16_155_072, 129_570_528_960),
        "xyscannet_tiny": (1_917_504, 15_593_712_192),
        "xyscannet_small": (7_301_952, 58_774_377_600),
        "xyscannet_plus": (63_514_368, 507_367_013_760),
        "xyscannet_small_intra": (7_301_952, 65_746_501_632),
        "xyscannet_small_inter": (7_301_952, 51_802_253_568),
        "xyscannet_small_mambair": (7_406_496, 59_643_002_880),
        "xyscannet_small_aff": (7_382_880, 60_888_306_816),
        "xyscannet_small_skip": (7_230_528, 56_584_950_912),
    }
    record = ModelRecord(
        task="motion deblurring",
        supports=frozenset({"fp16", "bf16", "channels_last", "compile", "export", "onnx"}),
        tiling="discouraged",
        tiling_reason="rows and columns are scanned and averaged over their whole length, and so is the fusion gate",
        paper="https://arxiv.org/abs/2412.10338",
    )
    published = {"xyscannet_plus": PUBLISHED}
    size_multiple = 4
    offset = -0.5
    undecayed = frozenset({"*.A_log", "*.D", "*.A_logs", "*.Ds"})
    input_layers = ("patch_embed.proj",)
    output_layers = ("output",)

    def __init__(
        self,
        dim: int = 72,
        *,
        blocks: Sequence[int] = (3, 3, 6),
        state: int = 16,
        vssm_expand: float = 1.0,
        ffn_expand: float = 1.0,
        bias: bool = False,
        norm: Norm = "layer",
        scanners: Sequence[Scanner] = ("intra", "inter"),
        fusion: Fusion = "klff",
        fusion_gate: Literal["sample", "tensor", "pixel"] = "sample",
        in_chans: int = 3,
        out_chans: int | None = None,
    ):
        super().__init__()
        out_chans = in_chans if out_chans is None else out_chans
        _check(dim, blocks, norm, scanners, fusion, in_chans, out_chans)
        self.in_chans, self.fusion = in_chans, fusion
        dims = (dim, 2 * dim, 4 * dim)
        normed: Layer = LayerNorm2d if norm == "layer" else BiasFreeNorm2d
        ffn = partial(GatedDconvFFN, expand=ffn_expand, bias=bias)
        makers: dict[Scanner, Layer] = {
            "intra": partial(IntraVSSM, expand=vssm_expand, state=state, bias=bias),
            "inter": partial(InterVSSM, expand=vssm_expand, state=state, bias=bias),
            "ss2d": partial(SS2D, expand=1.5, state=state),
        }
        intra, inter = (makers[scanner] for scanner in scanners)

        def encode(level: int) -> nn.Sequential:
            made = [FeedForwardBlock(dims[level], ffn=ffn, norm=normed) for _ in range(blocks[level])]
            return nn.Sequential(*made)

        def decode(level: int) -> nn.Sequential:
            made = [
                ScanBlock(dims[level], intra=intra, inter=inter, ffn=ffn, norm=normed) for _ in range(blocks[level])
            ]
            return nn.Sequential(*made)

        def fuse(level: int) -> nn.Module:
            if fusion == "klff":
                others = [other for other in dims if other != dims[level]]
                return KLFF(dims[level], others, gate=fusion_gate, bias=bias)
            return AFF(dims, dims[level]) if fusion == "aff" else nn.Identity()

        # Modules in the order of the published file, which is also the order of the random draws.
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)))
        self.encoder_level1 = encode(0)
        self.down1_2 = Downsample(dims[0])
        self.encoder_level2 = encode(1)
        self.down2_3 = Downsample(dims[1])
        self.encoder_level3 = encode(2)
        self.decoder_level3 = decode(2)
        self.up3_2 = Upsample(dims[2])
        self.clff_level2 = fuse(1)
        self.reduce_chan_level2 = PointwiseConv2d(2 * dims[1], dims[1], bias=bias)
        self.decoder_level2 = decode(1)
        self.up2_1 = Upsample(dims[1])
        self.clff_level1 = fuse(0)
        self.reduce_chan_level1 = PointwiseConv2d(2 * dims[0], dims[0], bias=bias)
        self.decoder_level1 = decode(0)
        self.output = nn.Conv2d(dims[0], out_chans, 3, padding=1, bias=bias)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Embed, encode, fuse, decode ``(b, in_chans, h, w)``; the decoder's maps at 1, 1/2 and 1/4 of the size."""
        deeper: list[Tensor] = []
        finest = self._finest(x, deeper)
        return [finest, *reversed(deeper)]

    def needed_levels(self, x: Tensor) -> list[Tensor]:
        """The decoder's map at the size of ``x``."""
        return [self._finest(x)]

    def _finest(self, x: Tensor, deeper: list[Tensor] | None = None) -> Tensor:
        """The decoder's last map; the others are put into a list if there is one, coarsest first."""
        x = channels_last(x)  # what the scans want; convolutions follow
        e1 = self.run_blocks(self.encoder_level1, self.patch_embed(x))
        e2 = self.run_blocks(self.encoder_level2, self.down1_2(e1))
        e3 = self.run_blocks(self.encoder_level3, self.down2_3(e2))
        fused = [*self._fuse(e1, e2, e3)]
        del e1, e2  # what is not needed again makes room
        d = self.run_blocks(self.decoder_level3, e3)
        del e3
        for up, reduce, decoder in (
            (self.up3_2, self.reduce_chan_level2, self.decoder_level2),
            (self.up2_1, self.reduce_chan_level1, self.decoder_level1),
        ):
            if deeper is not None:
                deeper.append(d)
            merged = [reduce(torch.cat([up(d), fused.pop()], 1))]
            del d
            d = self.run_blocks(decoder, merged)
        return d

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Add the residual, made from the finest map, to the image."""
        residual = self.output(levels[0])
        return Reconstruction([residual + x], residual)

    def _fuse(self, e1: Tensor, e2: Tensor, e3: Tensor) -> tuple[Tensor, Tensor]:
        if self.fusion == "klff":
            return self.clff_level1(e1, [e2, e3]), self.clff_level2(e2, [e1, e3])
        if self.fusion == "aff":
            return self.clff_level1([e1, e2, e3]), self.clff_level2([e1, e2, e3])
        return e1, e2

    @classmethod
    def why_not_stream(cls, arguments: Mapping[str, Any]) -> str | None:
        """The scans of SS2D run through the whole image from both ends; everything else can be streamed."""
        if "ss2d" in arguments.get("scanners", ()):
            return "the scans of ss2d run through the whole image from both ends"
        return None

    @property
    def stream_channels(self) -> float:
        """Maps of all levels, and a second one of the middle level while levels are fused."""
        dim = self.output.in_channels
        return dim * (1 + 1 / 2 + 1 / 4 + (0 if self.fusion == "skip" else 1 / 2))

    def stream_output(self, x: Tensor, rows: int) -> Tensor:
        """What ``levels`` and ``reconstruct`` do, strip by strip; maps that are not needed again are overwritten."""
        by, x, h = Strips(rows), channels_last(x), x.shape[2]
        e1 = by.refine(self.encoder_level1, by.run(self.patch_embed, x, h, reach=1))
        e2 = by.refine(self.encoder_level2, by.run(self.down1_2, e1, h // 2, reach=1))
        e3 = by.refine(self.encoder_level3, by.run(self.down2_3, e2, h // 4, reach=1))
        f1, f2 = self._stream_fuse(by, [e1, e2, e3])
        del e1, e2
        d3 = by.refine(self.decoder_level3, e3)
        d2 = by.refine(self.decoder_level2, by.merge(self.up3_2, d3, f2, self.reduce_chan_level2))
        del d3, e3
        d1 = by.refine(self.decoder_level1, by.merge(self.up2_1, d2, f1, self.reduce_chan_level1))
        del d2, f2

        def add(strip: Strip) -> Tensor:
            return strip.inner(self.reconstruct([strip.of(d1)], strip.of(x)).outputs[0])

        return by.make(h, 1, add)

    def _stream_fuse(self, by: Strips, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if self.fusion == "skip":
            return levels[0], levels[1]
        f2 = by.fuse(self.clff_level2, levels, 1, keep=True)
        return by.fuse(self.clff_level1, levels, 0), f2

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's.

        Which of the two own scanners a slot holds leaves no trace, nor does the gate of KLFF: both are assumed.
        """
        shapes = Shapes(state_dict)
        scanners = []
        for slot in ("intra", "inter"):
            own, foreign = (shapes.fit(f"decoder_level?.*.{slot}.{part}") for part in ("mamba.*", "A_logs"))
            if not own and not foreign:
                return None
            scanners.append(slot if own else "ss2d")
        aff, klff = shapes.fit("clff_level?.conv.?.main.0.*"), shapes.fit("clff_level?.conv_n?.*")
        fusion = "aff" if aff else "klff" if klff else "skip"
        arguments = {
            "dim": shapes.size(
                ("encoder_level1.*.body.weight", 0), ("patch_embed.proj.weight", 0), ("output.weight", 1)
            ),
            "blocks": [shapes.count(f"encoder_level{level}") for level in (1, 2, 3)],
            "state": shapes.size(*((f"decoder_level*.{mark}", 1) for mark in ("*.A_log", "*.A_logs"))),
            "vssm_expand": shapes.factor("decoder_level*.int*.proj_out.weight", -3, -4),
            "ffn_expand": shapes.factor("encoder_level*.ffn*.project_out.weight", -3, -4),
            "bias": shapes.most("*.ffn?.*.weight", "*.ffn?.*.bias"),
            "norm": "layer" if shapes.most("*.norm?_ffn.body.weight", "*.norm?_ffn.body.bias") else "bias_free",
            "scanners": scanners,
            "fusion": fusion,
            "in_chans": shapes.size(("patch_embed.proj.weight", 1), ("output.*", 0)),
        }
        assumed = ("scanners",) * (scanners != ["ss2d", "ss2d"]) + ("fusion_gate",) * (fusion == "klff")
        return Detected(arguments, assumed)


def _check(dim, blocks, norm, scanners, fusion, in_chans, out_chans) -> None:
    """Name the argument that makes no network."""
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    if len(blocks) != 3 or min(blocks) < 1:
        raise ValueError(f"blocks has one positive number for each of three levels, got {tuple(blocks)}")
    if len(scanners) != 2:
        raise ValueError(f"scanners has two entries, one for each slot, got {tuple(scanners)}")
    choices = [
        ("norm", norm, Norm),
        ("fusion", fusion, Fusion),
        *(("scanners", scanner, Scanner) for scanner in scanners),
    ]
    for name, value, allowed in choices:
        if value not in get_args(allowed):
            raise ValueError(f"{name} is one of {', '.join(map(repr, get_args(allowed)))}, got {value!r}")
    if in_chans != out_chans:
        raise ValueError(
            f"out_chans must equal in_chans, because the result is the image plus a residual: {out_chans}, {in_chans}"
        )
