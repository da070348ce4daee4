"""The layers once more, written naively from the paper: loops over rows, columns and time, float64.

Each function takes the layer's named parameters and its input, uses no module of the package, and is differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameters = dict[str, Tensor]


def perturb(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Move a layer to float64 and far from its initialisation, where mistakes do not hide behind small numbers."""
    layer.double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            last = name.rpartition(".")[2]
            if last in ("A_log", "A_logs"):
                parameter.add_(0.3 * noise)
            elif last in ("D", "Ds") or (last == "weight" and parameter.dim() == 1):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith(("dt_proj.bias", "dt_projs_bias")):
                parameter.copy_(-1 + 0.5 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            else:
                fan_in = parameter.shape[-1] if last.endswith("_weight") else parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
    return layer


def inside(p: Parameters, prefix: str) -> Parameters:
    """The parameters of a submodule."""
    return {name.removeprefix(prefix + "."): value for name, value in p.items() if name.startswith(prefix + ".")}


def pointwise(weight: Tensor, x: Tensor) -> Tensor:
    """1x1 convolution."""
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)


def depthwise(weight: Tensor, x: Tensor) -> Tensor:
    """Depth-wise 3x3 convolution with zeros around the image."""
    h, w = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    taps = [weight[:, 0, i, j, None, None] * padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return sum(taps[1:], taps[0])


def mamba(p: Parameters, s: Tensor) -> Tensor:
    """(b, l, m): convolution and recurrence one step at a time."""
    e, n = p["A_log"].shape
    r = p["dt_proj.weight"].shape[1]
    projected = s @ p["in_proj.weight"].T
    raw, z = projected[..., :e], projected[..., e:]
    taps = p["conv1d.weight"].shape[-1]
    state = s.new_zeros(s.shape[0], e, n)
    outputs = []
    for t in range(s.shape[1]):
        u = p["conv1d.bias"].expand(s.shape[0], e)
        for j in range(taps):
            if t - taps + 1 + j >= 0:
                u = u + p["conv1d.weight"][:, 0, j] * raw[:, t - taps + 1 + j]
        u = u / (1 + torch.exp(-u))
        low = u @ p["x_proj.weight"].T
        delta = torch.log1p(torch.exp(low[:, :r] @ p["dt_proj.weight"].T + p["dt_proj.bias"]))
        B, C = low[:, r : r + n], low[:, r + n :]
        decay = torch.exp(-delta[:, :, None] * torch.exp(p["A_log"]))
        state = decay * state + (delta * u)[:, :, None] * B[:, None, :]
        y = (state * C[:, None, :]).sum(-1) + p["D"] * u
        outputs.append((y * z[:, t] / (1 + torch.exp(-z[:, t]))) @ p["out_proj.weight"].T)
    return torch.stack(outputs, 1)


def rows(p: Parameters, x: Tensor) -> Tensor:
    """Every row of (b, m, h, w) through ``mamba``."""
    return torch.stack([mamba(p, x[:, :, y].transpose(1, 2)).transpose(1, 2) for y in range(x.shape[2])], 2)


def columns(p: Parameters, x: Tensor) -> Tensor:
    """Every column of (b, m, h, w) through ``mamba``."""
    return torch.stack([mamba(p, x[..., i].transpose(1, 2)).transpose(1, 2) for i in range(x.shape[3])], 3)


def slice_scan(p: Parameters, x: Tensor) -> Tensor:
    """SliceScan2D, whichever of its Mambas it has."""
    g = pointwise(p["conv_input.weight"], x)
    first, second = g.split(g.shape[1] // 2, 1)
    forward = inside(p, "mamba")
    a, b = rows(forward, first), columns(inside(p, "mamba_columns") or forward, second)
    return pointwise(p["fuse_out.weight"], torch.cat([a, b], 1))


def slice_scan_both_ways(p: Parameters, x: Tensor) -> Tensor:
    """SliceScan2D, bidirectional."""
    g = pointwise(p["conv_input.weight"], x)
    first, second = g.split(g.shape[1] // 2, 1)
    forward = inside(p, "mamba")
    a = rows(forward, first) + rows(inside(p, "mamba_back") or forward, first.flip(3)).flip(3)
    down, up = inside(p, "mamba_columns") or forward, inside(p, "mamba_columns_back") or forward
    b = columns(down, second) + columns(up, second.flip(2)).flip(2)
    return pointwise(p["fuse_out.weight"], torch.cat([a, b], 1))


def inter_scan(p: Parameters, x: Tensor, strips_of: tuple[int, int] = (1, 1)) -> Tensor:
    """InterScan; ``strips_of`` gives the number of strips of a row and of a column."""
    g = pointwise(p["conv_input.weight"], x)
    first, second = g.split(g.shape[1] // 2, 1)
    a = _gated_rows(inside(p, "mamba"), first, strips_of[0])
    b = _gated_rows(inside(p, "mamba"), second.transpose(2, 3), strips_of[1]).transpose(2, 3)
    return pointwise(p["fuse_out.weight"], torch.cat([a, b], 1))


def _gated_rows(p: Parameters, x: Tensor, strips: int) -> Tensor:
    width = x.shape[3]
    gated = []
    for s in range(strips):
        strip = x[..., s * width // strips : (s + 1) * width // strips]
        descriptors = strip.sum(3) / strip.shape[3]  # b m h
        gate = 1 / (1 + torch.exp(-mamba(p, descriptors.transpose(1, 2)).transpose(1, 2)))
        gated.append(strip * gate[..., None])
    return torch.cat(gated, 3)


def shell(p: Parameters, x: Tensor, scanner) -> Tensor:
    """A VSSM around ``scanner``, which takes the same parameters."""
    u = depthwise(p["dwconv.weight"], pointwise(p["proj_in.weight"], x))
    f, gate = u.split(u.shape[1] // 2, 1)
    return pointwise(p["proj_out.weight"], gate / (1 + torch.exp(-gate)) * scanner(p, f))


def feed_forward(p: Parameters, x: Tensor) -> Tensor:
    """GatedDconvFFN."""
    u = depthwise(p["dwconv.weight"], pointwise(p["project_in.weight"], x))
    a, b = u.split(u.shape[1] // 2, 1)
    return pointwise(p["project_out.weight"], a / (1 + torch.exp(-a)) * b)


def layer_norm(p: Parameters, x: Tensor) -> Tensor:
    """LayerNorm2d with eps 1e-5."""
    centred = x - x.mean(1, keepdim=True)
    deviation = torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)
    return centred / deviation * p["weight"][:, None, None] + p["bias"][:, None, None]


def bias_free_norm(p: Parameters, x: Tensor) -> Tensor:
    """BiasFreeNorm2d with eps 1e-5."""
    deviation = torch.sqrt(x.var(1, correction=0, keepdim=True) + 1e-5)
    return x / deviation * p["weight"][:, None, None]


def klff(p: Parameters, x: Tensor, n1: Tensor, n2: Tensor, gate: str = "sample") -> Tensor:
    """KLFF; sizes differ by powers of two."""
    h, w = x.shape[2:]
    x = pointwise(p["conv.weight"], x)
    total = torch.zeros_like(x)
    for name, n in (("conv_n1", n1), ("conv_n2", n2)):
        n = pointwise(p[name + ".weight"], _resized(n, h, w))
        p_x, p_n = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(-n))
        kl = p_x * torch.log(p_x / p_n)
        if gate == "tensor":
            kl = kl.sum() / kl.numel()
        elif gate == "sample":
            kl = torch.stack([image.sum() / image.numel() for image in kl])[:, None, None, None]
        total = total + n / (1 + torch.exp(-kl))
    return pointwise(p["fuse_out1.weight"], torch.cat([x, total], 1))


def _resized(x: Tensor, h: int, w: int) -> Tensor:
    while x.shape[2] < h:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    while x.shape[2] > h:
        x = x[:, :, ::2, ::2]
    assert x.shape[2:] == (h, w)
    return x


def cross_scan(
    p: Parameters,
    x: Tensor,
    paths: str = "cross2d",
    gate: str = "silu",
    out_norm: str = "layer",
    out_act: bool = False,
) -> Tensor:
    """SS2D: four flattened sequences, each with its own parameters."""
    e = p["conv2d.weight"].shape[0]
    projected = torch.einsum("oc,bchw->bohw", p["in_proj.weight"], x)
    if "in_proj.bias" in p:
        projected = projected + p["in_proj.bias"][:, None, None]
    u = depthwise(p["conv2d.weight"], projected[:, :e])
    if "conv2d.bias" in p:
        u = u + p["conv2d.bias"][:, None, None]
    u = u / (1 + torch.exp(-u))
    total = _cascade(p, u) if paths == "cascade2d" else _sum_of_paths(p, u, paths)
    total = _after_scan(inside(p, "out_norm"), total, out_norm)
    if out_act:
        total = total * (1 + torch.erf(total / 2**0.5)) / 2
    if gate != "none":
        z = projected[:, e:]
        total = total * (z / (1 + torch.exp(-z)) if gate == "silu" else z)
    y = torch.einsum("oc,bchw->bohw", p["out_proj.weight"], total)
    return y + p["out_proj.bias"][:, None, None] if "out_proj.bias" in p else y


def _sum_of_paths(p: Parameters, u: Tensor, paths: str) -> Tensor:
    b, e, h, w = u.shape
    by_row, by_column = u.reshape(b, e, h * w), u.transpose(2, 3).reshape(b, e, h * w)
    sequences = {
        "cross2d": [by_row, by_column, by_row.flip(2), by_column.flip(2)],
        "unidi": [by_row] * 4,
        "bidi": [by_row, by_row, by_row.flip(2), by_row.flip(2)],
    }[paths]
    total = torch.zeros_like(u)
    for k, sequence in enumerate(sequences):
        y = _one_path(p, k, sequence)
        if k >= 2 and paths != "unidi":
            y = y.flip(2)
        turned = paths == "cross2d" and k % 2
        total = total + (y.reshape(b, e, w, h).transpose(2, 3) if turned else y.reshape(b, e, h, w))
    return total


def _cascade(p: Parameters, u: Tensor) -> Tensor:
    """Every row both ways, then every column both ways."""
    for first in (0, 1):
        centred = u - u.mean(1, keepdim=True)
        u = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)
        u = u.transpose(2, 3) if first else u
        slices = [_one_path(p, first, s) + _one_path(p, first + 2, s.flip(2)).flip(2) for s in u.unbind(2)]
        u = torch.stack(slices, 2)
        u = u.transpose(2, 3) if first else u
    return u


def _after_scan(p: Parameters, y: Tensor, kind: str) -> Tensor:
    if kind == "cnorm":
        return depthwise(p["1.weight"], layer_norm(inside(p, "0"), y))
    if kind == "dwconv3":
        return depthwise(p["weight"], y)
    if kind == "softmax":
        powers = torch.exp(y - y.amax((2, 3), keepdim=True))
        return powers / powers.sum((2, 3), keepdim=True)
    return {"none": lambda: y, "sigmoid": lambda: 1 / (1 + torch.exp(-y)), "layer": lambda: layer_norm(p, y)}[kind]()


def _one_path(p: Parameters, k: int, u: Tensor) -> Tensor:
    e, n, r = p["conv2d.weight"].shape[0], p["A_logs"].shape[1], p["dt_projs_weight"].shape[2]
    A, D = -torch.exp(p["A_logs"][k * e : (k + 1) * e]), p["Ds"][k * e : (k + 1) * e]
    state, outputs = u.new_zeros(u.shape[0], e, n), []
    for t in range(u.shape[2]):
        low = u[:, :, t] @ p["x_proj_weight"][k].T
        delta = torch.log1p(torch.exp(low[:, :r] @ p["dt_projs_weight"][k].T + p["dt_projs_bias"][k]))
        B, C = low[:, r : r + n], low[:, r + n :]
        state = torch.exp(delta[:, :, None] * A) * state + (delta * u[:, :, t])[:, :, None] * B[:, None, :]
        outputs.append((state * C[:, None, :]).sum(-1) + D * u[:, :, t])
    return torch.stack(outputs, 2)


def channel_attention(p: Parameters, x: Tensor) -> Tensor:
    """ChannelAttention: a gate for each channel from the means of all."""
    means = x.mean((2, 3), keepdim=True)
    squeezed = (pointwise(p["attention.1.weight"], means) + p["attention.1.bias"][:, None, None]).clamp(min=0)
    gate = pointwise(p["attention.3.weight"], squeezed) + p["attention.3.bias"][:, None, None]
    return x / (1 + torch.exp(-gate))


def cab(p: Parameters, x: Tensor) -> Tensor:
    """CAB, the light form if its parameters are."""

    def convolve(i: int, x: Tensor, **options) -> Tensor:
        return F.conv2d(x, p[f"cab.{i}.weight"], p[f"cab.{i}.bias"], **options)

    if "cab.5.attention.1.weight" in p:
        x = convolve(0, x)
        x = convolve(1, x, padding=1, groups=x.shape[1])
        x = convolve(3, x * (1 + torch.erf(x / 2**0.5)) / 2)
        return channel_attention(inside(p, "cab.5"), convolve(4, x, padding=2, dilation=2, groups=x.shape[1]))
    x = convolve(0, x, padding=1)
    return channel_attention(inside(p, "cab.3"), convolve(2, x * (1 + torch.erf(x / 2**0.5)) / 2, padding=1))


def vss_block(p: Parameters, x: Tensor) -> Tensor:
    """VSSBlock without dropping."""
    scale, scale2 = p["skip_scale"][:, None, None], p["skip_scale2"][:, None, None]
    x = scale * x + cross_scan(inside(p, "self_attention"), layer_norm(inside(p, "ln_1"), x))
    return scale2 * x + cab(inside(p, "conv_blk"), layer_norm(inside(p, "ln_2"), x))


def bidirectional_mamba(p: Parameters, s: Tensor) -> Tensor:
    """BidirectionalMamba, halved: two Mambas with one first and one last projection."""
    back = {**p, "A_log": p["A_b_log"], "D": p.get("D_b", p["D"])}
    for name in ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"):
        module, _, last = name.partition(".")
        back[name] = p.get(f"{module}_b.{last}", p[name])
    y = (mamba(p, s) + mamba(back, s.flip(1)).flip(1)) / 2
    return y * p["gamma"] if "gamma" in p else y
