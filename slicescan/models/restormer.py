"""Restormer: a U-Net of attention between channels."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slicescan.checkpoint import Shapes
from slicescan.layers import MDTA, GatedDconvFFN, LayerNorm2d, ShuffleDownsample, ShuffleUpsample, with_body
from slicescan.layers.norm import BiasFreeNorm2d
from slicescan.models.base import Detected, ModelRecord, Reconstruction, Restorer, WeightSource

Norm = Literal["layer", "bias_free"]
Layer = Callable[[int], nn.Module]


class TransformerBlock(nn.Module):
    """``y = x + attn(norm1(x))``, ``z = y + ffn(norm2(y))``.

    Args:
        dim: Channels.
        attention: Makes an attention layer of a given width.
        ffn: Makes a feed-forward layer of a given width.
        norm: Makes a norm of a given width.
    """

    def __init__(self, dim: int, *, attention: Layer, ffn: Layer, norm: Layer):
        super().__init__()
        self.norm1 = with_body(norm(dim))
        self.attn = attention(dim)
        self.norm2 = with_body(norm(dim))
        self.ffn = ffn(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(b, dim, h, w)``."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Restormer(Restorer):
    """Restore by adding a residual that a four-level U-Net of transformer blocks predicts.

    ::

        e1, e2, e3, e4 = encoder(x)                     widths dim, 2 dim, 4 dim, 8 dim at 1, 1/2, 1/4, 1/8 of the size
        d3 = decode(reduce(up(e4), e3)),  d2 = decode(reduce(up(d3), e2))
        d1 = refine(decode(up(d2), e1))                 width 2 dim
        y = x + output(d1)

    Args:
        dim: Channels of the finest level, even.
        blocks: Blocks of each level, finest first; the last number is that of the coarsest level, which the encoder and
            the decoder share.
        refinement: Blocks after the decoder.
        heads: Heads of the attention of each level, finest first.
        ffn_expand: Inner width of feed-forward layers relative to the level's.
        bias: Whether convolutions have a bias, but for the embedding and the resampling, which have none.
        norm: ``"layer"`` as for deblurring, or ``"bias_free"`` as for denoising: no shift, and the mean stays in.
        in_chans: Channels of the image.

    Raises:
        ValueError: An argument makes no network; the message names it.

    Source:
        Zamir et al. 2022 (arXiv 2111.09881), Figure 2.

    Example:
        >>> model = Restormer(8, blocks=(1, 1, 1, 1), refinement=1)
        >>> model(torch.rand(1, 3, 6, 9)).shape
        torch.Size([1, 3, 6, 9])
    """

    variants = {"restormer": {}}
    costs = {"restormer": (26_126_644, 154_882_031_616)}
    record = ModelRecord(
        task="motion deblurring",
        supports=frozenset({"fp16", "bf16", "channels_last", "compile", "export"}),
        tiling="discouraged",
        tiling_reason="channels are compared over the whole image",
        paper="https://arxiv.org/abs/2111.09881",
    )
    published = {
        "restormer": WeightSource(
            "motion_deblurring.pth",
            "https://github.com/swz30/Restormer",
            "Academic Public License: non-commercial, share-alike",
        )
    }
    size_multiple = 8
    input_layers = ("patch_embed.proj",)
    output_layers = ("output",)

    def __init__(
        self,
        dim: int = 48,
        *,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expand: float = 2.66,
        bias: bool = False,
        norm: Norm = "layer",
        in_chans: int = 3,
    ):
        super().__init__()
        _check(dim, blocks, refinement, heads, norm)
        self.in_chans = in_chans
        normed: Layer = LayerNorm2d if norm == "layer" else BiasFreeNorm2d
        ffn = partial(GatedDconvFFN, expand=ffn_expand, bias=bias, activation=F.gelu)

        def stage(width: int, level: int, count: int) -> nn.Sequential:
            attention = partial(MDTA, heads=heads[level], bias=bias)
            made = [TransformerBlock(width, attention=attention, ffn=ffn, norm=normed) for _ in range(count)]
            return nn.Sequential(*made)

        # Modules in the order of the published file.
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)))
        self.encoder_level1 = stage(dim, 0, blocks[0])
        self.down1_2 = ShuffleDownsample(dim)
        self.encoder_level2 = stage(2 * dim, 1, blocks[1])
        self.down2_3 = ShuffleDownsample(2 * dim)
        self.encoder_level3 = stage(4 * dim, 2, blocks[2])
        self.down3_4 = ShuffleDownsample(4 * dim)
        self.latent = stage(8 * dim, 3, blocks[3])
        self.up4_3 = ShuffleUpsample(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = stage(4 * dim, 2, blocks[2])
        self.up3_2 = ShuffleUpsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = stage(2 * dim, 1, blocks[1])
        self.up2_1 = ShuffleUpsample(2 * dim)
        self.decoder_level1 = stage(2 * dim, 0, blocks[0])
        self.refinement = stage(2 * dim, 0, refinement)
        self.output = nn.Conv2d(2 * dim, in_chans, 3, padding=1, bias=bias)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Embed, encode, decode ``(b, in_chans, h, w)``; the decoder's maps at 1, 1/2, 1/4 and 1/8 of the size."""
        e1 = self.run_blocks(self.encoder_level1, self.patch_embed(x))
        e2 = self.run_blocks(self.encoder_level2, self.down1_2(e1))
        e3 = self.run_blocks(self.encoder_level3, self.down2_3(e2))
        d4 = self.run_blocks(self.latent, self.down3_4(e3))
        d3 = self.reduce_chan_level3(torch.cat([self.up4_3(d4), e3], 1))
        d3 = self.run_blocks(self.decoder_level3, d3)
        d2 = self.reduce_chan_level2(torch.cat([self.up3_2(d3), e2], 1))
        d2 = self.run_blocks(self.decoder_level2, d2)
        d1 = self.run_blocks(self.decoder_level1, torch.cat([self.up2_1(d2), e1], 1))
        return [self.run_blocks(self.refinement, d1), d2, d3, d4]

    def reconstruct(self, levels: list[Tensor], x: Tensor) -> Reconstruction:
        """Add the residual, made from the finest map, to the image."""
        residual = self.output(levels[0])
        return Reconstruction([residual + x], residual)

    @classmethod
    def detect(cls, state_dict: Mapping[str, Tensor]) -> Detected | None:
        """Read constructor arguments off published names and shapes; None if they are not this network's.

        They leave nothing open.
        """
        shapes = Shapes(state_dict)
        if not shapes.fit("*coder_level1.*.attn.temperature"):
            return None
        stages = [*((f"encoder_level{level}", f"decoder_level{level}") for level in (1, 2, 3)), ("latent",)]
        arguments = {
            "dim": shapes.size(("encoder_level1.*.body.*", 0), ("patch_embed.proj.weight", 0)),
            "blocks": [max(shapes.count(name) for name in names) for names in stages],
            "refinement": shapes.count("refinement"),
            "heads": [shapes.size(*((f"{name}.*.attn.temperature", -3) for name in names)) or 1 for names in stages],
            "ffn_expand": shapes.factor("*.ffn.project_out.weight", -3, -4),
            "bias": shapes.most("*.ffn.*.weight", "*.ffn.*.bias"),
            "norm": "layer" if shapes.most("*.norm?.body.weight", "*.norm?.body.bias") else "bias_free",
            "in_chans": shapes.size(("output.*", 0), ("patch_embed.proj.weight", 1)),
        }
        return Detected(arguments, ())


def _check(dim: int, blocks: Sequence[int], refinement: int, heads: Sequence[int], norm: str) -> None:
    """Name the argument that makes no network."""
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even, got {dim}")
    for name, numbers in (("blocks", blocks), ("heads", heads)):
        if len(numbers) != 4 or min(numbers) < 1:
            raise ValueError(f"{name} has one positive number for each of four levels, got {tuple(numbers)}")
    if refinement < 1:
        raise ValueError(f"refinement must be positive, got {refinement}")
    if norm not in get_args(Norm):
        raise ValueError(f"norm is one of {', '.join(map(repr, get_args(Norm)))}, got {norm!r}")
