"""XYScanNet as one would compose it today: planes, permutes to sequences and back, and the Mamba block of mamba-ssm.

Its parameters have the names of ours, so that both networks load one state dict. Written from the paper and the facts
that a published checkpoint fixes; what is not the scan are ordinary modules of PyTorch. The scan is mamba-ssm's where
that runs, else :func:`benchmarks.peers.materialised`, the recurrence as tensors say it.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import compiled_scan, materialised

Block = Callable[[int], nn.Module]
STATE, TAPS = 16, 4


def mamba_of(device: str) -> tuple[str, Block]:
    """What is called the Mamba block on a device, and how to make one of a given width."""
    scan = compiled_scan() if device == "cuda" else None
    if scan is None:
        return "plain scan in PyTorch", partial(PlainMamba, scan=materialised)
    try:
        from mamba_ssm.modules.mamba_simple import Mamba
    except ImportError as error:  # the kernel is there, another part of the package is not
        print(f"mamba-ssm's block is left out: {error}")
        return "mamba-ssm's scan", partial(PlainMamba, scan=partial(scan, delta_softplus=True))
    return "mamba-ssm's block", partial(Mamba, d_state=STATE, d_conv=TAPS, expand=2)


class PlainMamba(nn.Module):
    """The Mamba block on ``(s, l, dim)`` around a ``scan`` of sequences ``(s, d, l)``."""

    def __init__(self, dim: int, *, scan: Callable[..., Tensor]):
        super().__init__()
        self.scan, self.inner, self.rank = scan, 2 * dim, math.ceil(dim / 16)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, STATE + 1)).repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, TAPS, padding=TAPS - 1, groups=self.inner)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).transpose(1, 2).contiguous().chunk(2, 1)
        u = F.silu(self.conv1d(u)[..., : x.shape[1]])
        step, B, C = self.x_proj(u.transpose(1, 2)).split([self.rank, STATE, STATE], -1)
        delta = (step @ self.dt_proj.weight.t()).transpose(1, 2).contiguous()
        B, C = (mix.transpose(1, 2).contiguous() for mix in (B, C))
        A = -torch.exp(_wide(self.A_log))
        y = self.scan(u, delta, A, B, C, _wide(self.D), z.contiguous(), _wide(self.dt_proj.bias))
        return self.out_proj(y.to(x.dtype).transpose(1, 2))


class Norm(nn.Module):
    """Layer norm over the channels, on pixels as rows, in elementary operations."""

    def __init__(self, dim: int):
        super().__init__()
        self.body = nn.ParameterDict({"weight": torch.ones(dim), "bias": torch.zeros(dim)})

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2).contiguous()
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True, unbiased=False)
        y = (pixels - mean) / torch.sqrt(variance + 1e-5) * self.body["weight"] + self.body["bias"]
        return y.transpose(1, 2).reshape(x.shape).contiguous()


class FeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.project_in = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.silu(a) * b)


class Shell(nn.Module):
    """The gated shell of both scanners; ``scan`` is theirs."""

    def __init__(self, dim: int, mamba: Block):
        super().__init__()
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.proj_out, self.conv_input, self.fuse_out = (nn.Conv2d(dim, dim, 1, bias=False) for _ in range(3))
        self.mamba = mamba(dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        f, gate = self.dwconv(self.proj_in(x)).chunk(2, 1)
        y = self.fuse_out(torch.cat(self.scan(*self.conv_input(f).chunk(2, 1)), 1))
        return self.proj_out(F.silu(gate) * y)

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def mixed(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both sets of sequences ``(s, l, m)`` through the Mamba, together where they are equally long."""
        if first.shape[1] == second.shape[1]:
            both = self.mamba(torch.cat([first, second]))
            return both[: len(first)], both[len(first) :]
        return self.mamba(first), self.mamba(second)


class Intra(Shell):
    """Every row of one half of the channels is a sequence, and every column of the other."""

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        b, m, h, w = first.shape
        rows = first.permute(0, 2, 3, 1).reshape(b * h, w, m).contiguous()
        columns = second.permute(0, 3, 2, 1).reshape(b * w, h, m).contiguous()
        rows, columns = self.mixed(rows, columns)
        rows, columns = rows.reshape(b, h, w, m).permute(0, 3, 1, 2), columns.reshape(b, w, h, m).permute(0, 3, 2, 1)
        return rows.contiguous(), columns.contiguous()


class Inter(Shell):
    """The means of the rows of one half of the channels are a sequence, and those of the columns of the other."""

    def scan(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        h, w = first.shape[2:]
        rows = F.adaptive_avg_pool2d(first, (h, 1)).squeeze(3).transpose(1, 2)
        columns = F.adaptive_avg_pool2d(second, (1, w)).squeeze(2).transpose(1, 2)
        rows, columns = (torch.sigmoid(y).transpose(1, 2) for y in self.mixed(rows.contiguous(), columns.contiguous()))
        return first * rows[..., None], second * columns[:, :, None]


class Encoder(nn.Module):
    """Two feed-forward layers."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1_ffn, self.norm2_ffn = Norm(dim), Norm(dim)
        self.ffn1, self.ffn2 = FeedForward(dim), FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ffn1(self.norm1_ffn(x))
        return x + self.ffn2(self.norm2_ffn(x))


class Decoder(Encoder):
    """Scanners and feed-forward layers in turn."""

    def __init__(self, dim: int, intra: Block, inter: Block):
        super().__init__(dim)
        self.norm1_ssm, self.norm2_ssm = Norm(dim), Norm(dim)
        self.intra, self.inter = intra(dim), inter(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.intra(self.norm1_ssm(x))
        x = x + self.ffn1(self.norm1_ffn(x))
        x = x + self.inter(self.norm2_ssm(x))
        return x + self.ffn2(self.norm2_ffn(x))


class Resample(nn.Module):
    """Bilinear resize, then a 3x3 convolution."""

    def __init__(self, dim: int, out_dim: int, factor: float):
        super().__init__()
        resize = nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)
        self.body = nn.Sequential(resize, nn.Conv2d(dim, out_dim, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Fusion(nn.Module):
    """KLFF with one gate for the whole batch, as published."""

    def __init__(self, dim: int, others: Sequence[int]):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.conv_n1, self.conv_n2 = (nn.Conv2d(other, dim, 1, bias=False) for other in others)
        self.fuse_out1 = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: Tensor, others: Sequence[Tensor]) -> Tensor:
        x, p, q = self.conv(x), self.conv_n1(others[0]), self.conv_n2(others[1])
        target = F.logsigmoid(_wide(x))
        gates = [torch.sigmoid((target.exp() * (target - F.logsigmoid(_wide(n)))).mean()).to(x.dtype) for n in (p, q)]
        return self.fuse_out1(torch.cat([x, gates[0] * p + gates[1] * q], 1))


class Concatenation(nn.Module):
    """AFF of MIMO-UNet: convolutions of all levels, finest first, at the size of ``x``."""

    def __init__(self, dim: int, others: Sequence[int]):
        super().__init__()
        self.finest = dim < min(others)
        layers = nn.Conv2d(dim + sum(others), dim, 1), nn.Conv2d(dim, dim, 3, padding=1)
        self.conv = nn.Sequential(*(nn.Sequential(OrderedDict(main=nn.Sequential(layer))) for layer in layers))

    def forward(self, x: Tensor, others: Sequence[Tensor]) -> Tensor:
        levels = [x, *others] if self.finest else [others[0], x, others[1]]
        return self.conv[1](F.relu(self.conv[0](torch.cat(levels, 1))))


class Skip(nn.Module):
    """The level as it is."""

    def __init__(self, dim: int, others: Sequence[int]):
        super().__init__()

    def forward(self, x: Tensor, others: Sequence[Tensor]) -> Tensor:
        return x


FUSIONS: Mapping[str, Callable[[int, Sequence[int]], nn.Module]] = {"klff": Fusion, "aff": Concatenation, "skip": Skip}


class Network(nn.Module):
    """The whole network on images in [0, 1] whose sides are multiples of 4.

    ``scanners`` and ``fusion`` are those of :class:`slicescan.models.xyscannet.XYScanNet`; ``scan`` is what ``ss2d``
    scans with.
    """

    def __init__(
        self,
        dim: int,
        mamba: Block,
        blocks: Sequence[int] = (3, 3, 6),
        scanners: Sequence[str] = ("intra", "inter"),
        fusion: str = "klff",
        scan: Callable[..., Tensor] = materialised,
    ):
        super().__init__()
        widths = (dim, 2 * dim, 4 * dim)
        makers: dict[str, Block] = {
            "intra": partial(Intra, mamba=mamba),
            "inter": partial(Inter, mamba=mamba),
            "ss2d": partial(StackedSS2D, expand=1.5, scan=scan),
        }
        fuse = FUSIONS[fusion]

        def stage(made: Block, level: int) -> nn.Sequential:
            return nn.Sequential(*(made(widths[level]) for _ in range(blocks[level])))

        decoder = partial(Decoder, intra=makers[scanners[0]], inter=makers[scanners[1]])
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, dim, 3, padding=1, bias=False)))
        self.encoder_level1, self.encoder_level2, self.encoder_level3 = (stage(Encoder, level) for level in range(3))
        self.down1_2, self.down2_3 = Resample(dim, 2 * dim, 0.5), Resample(2 * dim, 4 * dim, 0.5)
        self.decoder_level1, self.decoder_level2, self.decoder_level3 = (stage(decoder, level) for level in range(3))
        self.up3_2, self.up2_1 = Resample(4 * dim, 2 * dim, 2), Resample(2 * dim, dim, 2)
        self.clff_level1 = fuse(dim, (2 * dim, 4 * dim))
        self.clff_level2 = fuse(2 * dim, (dim, 4 * dim))
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=False)
        self.reduce_chan_level1 = nn.Conv2d(2 * dim, dim, 1, bias=False)
        self.output = nn.Conv2d(dim, 3, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x = image - 0.5
        e1 = self.encoder_level1(self.patch_embed(x))
        e2 = self.encoder_level2(self.down1_2(e1))
        e3 = self.encoder_level3(self.down2_3(e2))
        e1_down, e2_up, e3_up = _resized(e1, 0.5), _resized(e2, 2), _resized(e3, 2)
        f1 = self.clff_level1(e1, [e2_up, _resized(e3_up, 2)])
        f2 = self.clff_level2(e2, [e1_down, e3_up])
        d3 = self.decoder_level3(e3)
        d2 = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(d3), f2], 1)))
        d1 = self.decoder_level1(self.reduce_chan_level1(torch.cat([self.up2_1(d2), f1], 1)))
        return self.output(d1) + x + 0.5


class StackedSS2D(nn.Module):
    """The four-path scan of VMamba and MambaIR as it is usually run: four sequences stacked, flipped, scanned at once.

    Takes ``(b, dim, h, w)`` and loads the state dict of :class:`slicescan.layers.SS2D`.
    """

    def __init__(self, dim: int, expand: float, scan: Callable[..., Tensor]):
        super().__init__()
        inner, rank = int(expand * dim), math.ceil(dim / 16)
        self.scan, self.inner, self.rank = scan, inner, rank
        self.x_proj_weight = nn.Parameter(torch.randn(4, rank + 2 * STATE, inner))
        self.dt_projs_weight = nn.Parameter(torch.randn(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.randn(4, inner))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1.0, STATE + 1)).repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x.permute(0, 2, 3, 1)).chunk(2, -1)
        u = F.silu(self.conv2d(u.permute(0, 3, 1, 2).contiguous()))
        b, d, h, w = u.shape
        there = torch.stack([u.flatten(2), u.transpose(2, 3).flatten(2)], 1)
        paths = torch.cat([there, there.flip(-1)], 1)  # b 4 d l
        mixed = torch.einsum("bkdl,kcd->bkcl", paths, self.x_proj_weight)
        step, B, C = mixed.split([self.rank, STATE, STATE], 2)
        delta = torch.einsum("bkrl,kdr->bkdl", step, self.dt_projs_weight)
        y = self.scan(
            _wide(paths).flatten(1, 2), _wide(delta).flatten(1, 2).contiguous(), -torch.exp(_wide(self.A_logs)),
            _wide(B).contiguous(), _wide(C).contiguous(), _wide(self.Ds), None, _wide(self.dt_projs_bias).flatten(),
        ).unflatten(1, (4, d))  # fmt: skip
        y = y[:, :2] + y[:, 2:].flip(-1)
        y = y[:, 0] + y[:, 1].unflatten(-1, (w, h)).transpose(2, 3).flatten(2)
        y = self.out_norm(y.transpose(1, 2).unflatten(1, (h, w))).to(x.dtype)
        return self.out_proj(y * F.silu(z)).permute(0, 3, 1, 2)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _resized(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="nearest")
