"""MambaIR: four-path scans and channel attention, at one resolution or in a U-Net."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from slicescan.checkpoint import Shapes
from slicescan.layers import LayerNorm2d, ShuffleDownsample, ShuffleUpsample, VSSBlock
from slicescan.layers.memory_order import channels_last
from slicescan.layers.vss import ResidualGroup
from slicescan.models.base import Detected, ModelRecord, Reconstruction, Restorer, WeightSource

Upsampler = Literal["none", "pixelshuffle", "pixelshuffledirect"]
Convs = Literal["1conv", "3conv"]

MEAN = (0.4488, 0.4371, 0.4040)
"""Of the colours in DIV2K, taken off the image and given back at the end."""

RECORD = ModelRecord(
    supports=frozenset({"fp16", "bf16", "channels_last", "compile", "export"}),
    tiling="approximate",
    tiling_reason="every scan passes through the whole image; the authors' own results are from overlapping tiles",
    paper="https://arxiv.org/abs/2402.15648",
)


def _published(name: str) -> WeightSource:
    return WeightSource(f"{name}.pth", "https://github.com/csguoh/MambaIR", "Apache-2.0")


class MambaIR(Restorer):
    """Restore or enlarge an image by residual groups of scan blocks that all work at its own resolution.

    ::

        shallow = conv_first(x - mean)
        deep = conv_after_body(norm(groups(norm(shallow)))) + shallow
        y = x + conv_last(deep)                          or
        y = mean + conv_last(upsample(deep))

    Args:
        dim: Channels.
        depths: Blocks of each group.
        state: Size of the state of each scanned channel.
        expand: Inner channels of a scan relative to ``dim``; ``mlp_ratio`` in the authors' configurations.
        upsampler: ``"none"`` restores; ``"pixelshuffle"`` enlarges through 64 channels; ``"pixelshuffledirect"`` by a
            single convolution, and the blocks' channel attention is the light one.
        scale: Output size over input size: 1 without an upsampler; a power of 2, or 3, for ``"pixelshuffle"``.
        convs: What ends a group: ``"1conv"``, or ``"3conv"`` through a quarter of the channels.
        drop_path: How often the last block's scan is left out for an image while training; earlier blocks' less.
        in_chans: Channels of the image and of the result.

    Source:
        Guo et al. 2024 (MambaIR), Figure 2. Differs, as the released networks do: the mean of DIV2K is taken off
        colour images.

    Example:
        >>> MambaIR(8, depths=(1,), upsampler="pixelshuffledirect", scale=2)(torch.rand(1, 3, 6, 9)).shape
        torch.Size([1, 3, 12, 18])
    """

    variants = {
        "mambair_denoise": {"expand": 1.2},
        "mambair_car": {"expand": 1.2, "in_chans": 1},
        **{f"mambair_sr_x{scale}": {"upsampler": "pixelshuffle", "scale": scale} for scale in (2, 3, 4)},
        **{
            f"mambair_light_sr_x{scale}": {
                "dim": 60, "depths": (6, 6, 6, 6), "state": 10, "expand": 1.2,
                "upsampler": "pixelshuffledirect", "scale": scale,
            }
            for scale in (2, 3, 4)
        },
    }  # fmt: skip
    costs = {
        "mambair_denoise": (15_777_507, 986_983_247_808),
        "mambair_car": (15_771_025, 986_558_574_528),
        "mambair_sr_x2": (20_421_863, 1_266_194_132_928),
        "mambair_sr_x3": (20_606_503, 1_278_839_959_488),
        "mambair_sr_x4": (20_569_575, 1_306_207_793_088),
        "mambair_light_sr_x2": (905_016, 52_171_118_208),
        "mambair_light_sr_x3": (913_131, 52_701_959_808),
        "mambair_light_sr_x4": (924_492, 53_445_138_048),
    }
    record = replace(RECORD, supports=RECORD.supports | {"onnx"})
    details = {
        "mambair_denoise": {"task": "denoising"},
        "mambair_car": {"task": "JPEG artefact removal"},
        **{
            f"mambair_{kind}_x{scale}": {"task": "super-resolution"}
            for kind in ("sr", "light_sr")
            for scale in (2, 3, 4)
        },
    }
    published = {
        "mambair_denoise": _published("MambaIR_guassian25"),
        "mambair_car": _published("MambaIR_JPEG40"),
        **{f"mambair_sr_x{scale}": _published(f"MambaIR_SR{scale}") for scale in (2, 3, 4)},
        **{f"mambair_light_sr_x{scale}": _published(f"MambaIR_light{scale}") for scale in (2, 3, 4)},
    }
    undecayed = frozenset({"*.A_logs", "*.Ds"})

    mean: Tensor

    def __init__(
        self,
        dim: int = 180,
        *,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        state: int = 16,
        expand: float = 2.0,
        upsampler: Upsampler = "none",
        scale: int = 1,
        convs: Convs = "1conv",
        drop_path: float = 0.1,
        in_chans: int = 3,
    ):
        super().__init__()
        if not depths or min(depths) < 1:
            raise ValueError(f"depths has a positive number for each group, got {tuple(depths)}")
        if upsampler not in get_args(Upsampler):
            raise ValueError(f"upsampler is one of {', '.join(map(repr, get_args(Upsampler)))}, got {upsampler!r}")
        self.in_chans, self.scale, self.upsampler = in_chans, scale, upsampler
        self.register_buffer("mean", torch.tensor(MEAN if in_chans == 3 else 0.0).view(-1, 1, 1), persistent=False)
        block = partial(VSSBlock, dim, state=state, expand=expand, light=upsampler == "pixelshuffledirect")
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())

        # Modules in the order of the published file.
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=LayerNorm2d(dim)))
        self.layers = nn.ModuleList(
            ResidualGroup(dim, [block(drop_path=next(rates)) for _ in range(depth)], convs=convs) for depth in depths
        )
        self.norm = LayerNorm2d(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self._add_head(dim, in_chans)
        self.apply(_draw_linear)

    def _add_head(self, dim: int, out_chans: int) -> None:
        if self.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, 64, 3, padding=1), nn.LeakyReLU(0.01))
            self.upsample = nn.Sequential(*_enlarging(self.scale, 64))
            self.conv_last = nn.Conv2d(64, out_chans, 3, padding=1)
        elif self.upsampler == "pixelshuffledirect":
            conv = nn.Conv2d(dim, out_chans * self.scale**2, 3, padding=1)
            self.upsample = nn.Sequential(conv, nn.PixelShuffle(self.scale))
        elif self.scale != 1:
            raise ValueError(f"scale must be 1 without an upsampler, got {self.scale}")
        else:
            self.conv_last = nn.Conv2d(dim, out_chans, 3, padding=1)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The one map that the head makes its image from, ``(b, dim, h, w)``."""
        shallow = self.conv_first(channels_last(x - self.mean))
        deep = self.patch_embed(shallow)
        for group in self.layers:
            deep = group(deep, self.run_blocks)
        return [self.conv_after_body(self.norm(deep)) + shallow]

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Add a residual to the image, or make a larger one."""
        if self.upsampler == "none":
            residual = self.conv_last(levels[0])
            return Reconstruction([x + residual], residual)
        if self.upsampler == "pixelshuffledirect":
            return Reconstruction([self.upsample(levels[0]) + self.mean])
        return Reconstruction([self.conv_last(self.upsample(self.conv_before_upsample(levels[0]))) + self.mean])

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's."""
        shapes = Shapes(state_dict)
        if not shapes.fit("layers.*.residual_group.blocks.*.self_attention.*"):
            return None
        first = shapes.get("conv_first.weight", ())
        in_chans = first[1] if len(first) == 4 else 3
        upsampler, scale = "none", 1
        if shapes.fit("conv_before_upsample.*"):
            upsampler, grown = "pixelshuffle", shapes.size(("upsample.0.weight", 0), ("upsample.0.bias", 0))
            scale = 3 if grown == 9 * 64 else 2 ** ((shapes.count("upsample") + 1) // 2)
        elif shapes.fit("upsample.0.*"):
            upsampler, grown = "pixelshuffledirect", shapes.size(("upsample.0.bias", 0), ("upsample.0.weight", 0))
            scale = max(1, math.isqrt(grown // in_chans))
        groups = range(shapes.count("layers"))
        arguments = {
            "dim": shapes.size(("layers.*.skip_scale*", 0), ("layers.*.ln_1.*", 0)),
            "depths": [shapes.count(f"layers.{i}.residual_group.blocks") for i in groups],
            "state": shapes.size(("*.A_logs", 1)),
            "expand": _expand(shapes, "layers"),
            "upsampler": upsampler,
            "scale": scale,
            "convs": "3conv" if shapes.fit("layers.*.conv.?.*") else "1conv",
            "in_chans": in_chans,
        }
        return Detected(arguments, ("drop_path",))


class MambaIRUNet(Restorer):
    """Remove real noise by adding a residual that a four-level U-Net of scan blocks predicts.

    ::

        e1, e2, e3, e4 = encoder(x)                      widths dim to 8 dim at 1, 1/2, 1/4, 1/8 of the size
        d3 = decode(up(e4), e3),  d2 = decode(up(d3), e2),  d1 = refine(decode(up(d2), e1))
        y = x + output(d1)

    Args:
        dim: Channels of the finest level, even.
        blocks: Blocks of each level, finest first, in the encoder and, but for the last, again in the decoder.
        refinement: Blocks at full size after the decoder.
        state: Size of the state of each scanned channel.
        expand: Inner channels of a scan relative to those of its level.
        dual_pixel: Whether the image is the two halves of a dual-pixel photograph; the result is then not the image
            plus a residual, and has half of its channels.
        in_chans: Channels of the image.

    Source:
        Guo et al. 2024 (MambaIR), the network for real noise; Zamir et al. 2022 (Restormer), Figure 2, its frame.

    Example:
        >>> MambaIRUNet(8, blocks=(1, 1, 1, 1), refinement=1)(torch.rand(1, 3, 6, 9)).shape
        torch.Size([1, 3, 6, 9])
    """

    variants = {"mambair_unet": {}}
    costs = {"mambair_unet": (26_779_480, 145_955_601_024)}
    record = RECORD
    details = {"mambair_unet": {"task": "denoising"}}
    published = {"mambair_unet": _published("MambaIR_realDN")}
    size_multiple = 8
    undecayed = frozenset({"*.A_logs", "*.Ds"})
    input_layers = ("patch_embed.proj",)
    output_layers = ("output",)

    def __init__(
        self,
        dim: int = 48,
        *,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        state: int = 16,
        expand: float = 1.5,
        dual_pixel: bool = False,
        in_chans: int = 3,
    ):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even, got {dim}")
        if len(blocks) != 4 or min(blocks) < 1:
            raise ValueError(f"blocks has one positive number for each of four levels, got {tuple(blocks)}")
        if dual_pixel and in_chans % 2:
            raise ValueError(f"in_chans must be even with dual_pixel, half for each view, got {in_chans}")
        self.in_chans, self.dual_pixel = in_chans, dual_pixel
        out_chans = in_chans // 2 if dual_pixel else in_chans

        def stage(width: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*(VSSBlock(width, state=state, expand=expand) for _ in range(depth)))

        # Modules in the order of the published file.
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)))
        self.encoder_level1 = stage(dim, blocks[0])
        self.down1_2 = ShuffleDownsample(dim)
        self.encoder_level2 = stage(2 * dim, blocks[1])
        self.down2_3 = ShuffleDownsample(2 * dim)
        self.encoder_level3 = stage(4 * dim, blocks[2])
        self.down3_4 = ShuffleDownsample(4 * dim)
        self.latent = stage(8 * dim, blocks[3])
        self.up4_3 = ShuffleUpsample(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=False)
        self.decoder_level3 = stage(4 * dim, blocks[2])
        self.up3_2 = ShuffleUpsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=False)
        self.decoder_level2 = stage(2 * dim, blocks[1])
        self.up2_1 = ShuffleUpsample(2 * dim)
        self.decoder_level1 = stage(2 * dim, blocks[0])
        self.refinement = stage(2 * dim, refinement)
        if dual_pixel:
            self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.output = nn.Conv2d(2 * dim, out_chans, 3, padding=1, bias=False)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Encode and decode ``(b, in_chans, h, w)``; the decoder's maps at 1, 1/2, 1/4 and 1/8 of the size."""
        e1 = self.run_blocks(self.encoder_level1, self.patch_embed(channels_last(x)))
        e2 = self.run_blocks(self.encoder_level2, self.down1_2(e1))
        e3 = self.run_blocks(self.encoder_level3, self.down2_3(e2))
        e4 = self.run_blocks(self.latent, self.down3_4(e3))
        d3 = self.reduce_chan_level3(torch.cat([self.up4_3(e4), e3], 1))
        d3 = self.run_blocks(self.decoder_level3, d3)
        d2 = self.reduce_chan_level2(torch.cat([self.up3_2(d3), e2], 1))
        d2 = self.run_blocks(self.decoder_level2, d2)
        d1 = self.run_blocks(self.decoder_level1, torch.cat([self.up2_1(d2), e1], 1))
        d1 = self.run_blocks(self.refinement, d1)
        return [d1, d2, d3, e4]

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Add the residual, made from the finest map, to the image."""
        if self.dual_pixel:
            return Reconstruction([self.output(levels[0] + self.skip_conv(self.patch_embed(x)))])
        residual = self.output(levels[0])
        return Reconstruction([residual + x], residual)

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's."""
        shapes = Shapes(state_dict)
        if not all(shapes.fit(f"{stage}.*.self_attention.*") for stage in ("encoder_level1", "latent")):
            return None
        first, last = shapes.get("patch_embed.proj.weight", ()), shapes.get("output.weight", ())
        dual_pixel = bool(shapes.fit("skip_conv.*")) or first[1:2] == tuple(2 * out for out in last[:1])
        in_chans = first[1] if len(first) == 4 else (2 if dual_pixel else 1) * (last[0] if len(last) == 4 else 3)
        arguments = {
            "dim": shapes.size(("encoder_level1.*.skip_scale*", 0), ("encoder_level1.*.ln_1.*", 0)),
            "blocks": [shapes.count(f"encoder_level{level}") for level in (1, 2, 3)] + [shapes.count("latent")],
            "refinement": shapes.count("refinement"),
            "state": shapes.size(("*.A_logs", 1)),
            "expand": _expand(shapes, "encoder_level1", "encoder_level2", "encoder_level3", "latent"),
            "dual_pixel": dual_pixel,
            "in_chans": in_chans,
        }
        return Detected(arguments, ())


def _expand(shapes: Shapes, *stages: str) -> float:
    """The inner width of the scans of some stages relative to their own."""
    scan, widths = "*.self_attention.", Shapes({})
    for stage in stages:
        inner = [
            (f"{stage}{scan}{name}", axis) for name, axis in (("out_norm.*", 0), ("conv2d.*", 0), ("out_proj.*", 1))
        ]
        widths[stage] = shapes.size(*inner), shapes.size((f"{stage}.*.ln_?.*", 0), (f"{stage}.*.skip_scale*", 0))
    return widths.factor("*", 0, 1)


def _enlarging(scale: int, dim: int) -> list[nn.Module]:
    """Convolutions and shuffles that enlarge a map, by 3 at once or by 2 as often as needed."""
    if scale != 3 and (scale < 2 or scale & (scale - 1)):
        raise ValueError(f"scale must be a power of 2, or 3, for 'pixelshuffle', got {scale}")
    steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    return [layer for step in steps for layer in (nn.Conv2d(dim, step**2 * dim, 3, padding=1), nn.PixelShuffle(step))]


def _draw_linear(module: nn.Module) -> None:
    """Initialise linear layers as the released network does; everything else keeps its own start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
