"""XYScanNet once more, from its description alone: a plain state dict, loops over positions, no layer of ours."""

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def restore(state: State, image: Tensor, blocks: tuple[int, int, int], gate: str) -> Tensor:
    """The restored image, for an image in [0, 1] whose sides are multiples of 4."""
    x = image - 0.5
    e1 = encode(state, "encoder_level1", conv3(state["patch_embed.proj.weight"], x), blocks[0])
    e2 = encode(state, "encoder_level2", conv3(state["down1_2.body.1.weight"], half(e1)), blocks[1])
    e3 = encode(state, "encoder_level3", conv3(state["down2_3.body.1.weight"], half(e2)), blocks[2])
    f1 = klff(state, "clff_level1", e1, repeated(e2), repeated(repeated(e3)), gate)
    f2 = klff(state, "clff_level2", e2, e1[:, :, ::2, ::2], repeated(e3), gate)
    d3 = decode(state, "decoder_level3", e3, blocks[2])
    d2 = torch.cat([conv3(state["up3_2.body.1.weight"], twice(d3)), f2], 1)
    d2 = decode(state, "decoder_level2", mix(state["reduce_chan_level2.weight"], d2), blocks[1])
    d1 = torch.cat([conv3(state["up2_1.body.1.weight"], twice(d2)), f1], 1)
    d1 = decode(state, "decoder_level1", mix(state["reduce_chan_level1.weight"], d1), blocks[0])
    return conv3(state["output.weight"], d1) + x + 0.5


def encode(state: State, stage: str, x: Tensor, blocks: int) -> Tensor:
    for i in range(blocks):
        for k in (1, 2):
            x = x + feed_forward(state, f"{stage}.{i}.ffn{k}", norm(state, f"{stage}.{i}.norm{k}_ffn.body", x))
    return x


def decode(state: State, stage: str, x: Tensor, blocks: int) -> Tensor:
    for i in range(blocks):
        for k, slot, scanner in ((1, "intra", intra), (2, "inter", inter)):
            name = f"{stage}.{i}.{slot}"
            u = depthwise(
                state[f"{name}.dwconv.weight"],
                mix(state[f"{name}.proj_in.weight"], norm(state, f"{stage}.{i}.norm{k}_ssm.body", x)),
            )
            half_of_u = u.shape[1] // 2
            f, y = u[:, :half_of_u], u[:, half_of_u:]
            x = x + mix(state[f"{name}.proj_out.weight"], y * torch.sigmoid(y) * scanner(state, name, f))
            x = x + feed_forward(state, f"{stage}.{i}.ffn{k}", norm(state, f"{stage}.{i}.norm{k}_ffn.body", x))
    return x


def intra(state: State, name: str, f: Tensor) -> Tensor:
    g = mix(state[f"{name}.conv_input.weight"], f)
    m = g.shape[1] // 2
    rows = torch.stack(
        [mamba(state, f"{name}.mamba", g[:, :m, y, :].transpose(1, 2)).transpose(1, 2) for y in range(g.shape[2])], 2
    )
    columns = torch.stack(
        [mamba(state, f"{name}.mamba", g[:, m:, :, x].transpose(1, 2)).transpose(1, 2) for x in range(g.shape[3])], 3
    )
    return mix(state[f"{name}.fuse_out.weight"], torch.cat([rows, columns], 1))


def inter(state: State, name: str, f: Tensor) -> Tensor:
    g = mix(state[f"{name}.conv_input.weight"], f)
    m = g.shape[1] // 2
    row_gate = torch.sigmoid(mamba(state, f"{name}.mamba", g[:, :m].mean(3).transpose(1, 2))).transpose(1, 2)
    column_gate = torch.sigmoid(mamba(state, f"{name}.mamba", g[:, m:].mean(2).transpose(1, 2))).transpose(1, 2)
    gated = torch.cat([g[:, :m] * row_gate[:, :, :, None], g[:, m:] * column_gate[:, :, None, :]], 1)
    return mix(state[f"{name}.fuse_out.weight"], gated)


def mamba(state: State, name: str, s: Tensor) -> Tensor:
    """(b, l, m) to the same, one position after the other."""
    e = state[f"{name}.D"].numel()
    r = state[f"{name}.dt_proj.weight"].shape[1]
    n = state[f"{name}.A_log"].shape[1]
    projected = s @ state[f"{name}.in_proj.weight"].T
    before, z = projected[..., :e], projected[..., e:]
    taps = state[f"{name}.conv1d.weight"][:, 0]
    h = s.new_zeros(s.shape[0], e, n)
    out = []
    for t in range(s.shape[1]):
        u = state[f"{name}.conv1d.bias"].expand(s.shape[0], e)
        for j in range(4):
            if t - 3 + j >= 0:
                u = u + taps[:, j] * before[:, t - 3 + j]
        u = u * torch.sigmoid(u)
        found = u @ state[f"{name}.x_proj.weight"].T
        step, b, c = found[:, :r], found[:, r : r + n], found[:, r + n :]
        delta = torch.log1p(torch.exp(step @ state[f"{name}.dt_proj.weight"].T + state[f"{name}.dt_proj.bias"]))
        decay = torch.exp(-delta[:, :, None] * torch.exp(state[f"{name}.A_log"]))
        h = decay * h + (delta * u)[:, :, None] * b[:, None, :]
        y = (h * c[:, None, :]).sum(2) + state[f"{name}.D"] * u
        out.append((y * z[:, t] * torch.sigmoid(z[:, t])) @ state[f"{name}.out_proj.weight"].T)
    return torch.stack(out, 1)


def klff(state: State, name: str, cur: Tensor, n1: Tensor, n2: Tensor, gate: str) -> Tensor:
    x, p, q = (mix(state[f"{name}.{conv}.weight"], y) for conv, y in (("conv", cur), ("conv_n1", n1), ("conv_n2", n2)))

    def gated(n: Tensor) -> Tensor:
        kl = torch.sigmoid(x) * (torch.log(torch.sigmoid(x)) - torch.log(torch.sigmoid(n)))
        if gate == "tensor":
            return n * torch.sigmoid(kl.sum() / kl.numel())
        return torch.stack(
            [one * torch.sigmoid(scalar.sum() / scalar.numel()) for one, scalar in zip(n, kl, strict=True)]
        )

    return mix(state[f"{name}.fuse_out1.weight"], torch.cat([x, gated(p) + gated(q)], 1))


def feed_forward(state: State, name: str, x: Tensor) -> Tensor:
    u = depthwise(state[f"{name}.dwconv.weight"], mix(state[f"{name}.project_in.weight"], x))
    a, b = u[:, : u.shape[1] // 2], u[:, u.shape[1] // 2 :]
    return mix(state[f"{name}.project_out.weight"], a * torch.sigmoid(a) * b)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)
    return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """1x1 convolution."""
    return torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], x)


def conv3(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def depthwise(weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1, groups=x.shape[1])


def half(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def twice(x: Tensor) -> Tensor:
    """Bilinear, half-pixel centres: each new pixel is 3/4 of the nearest and 1/4 of the next, the edge repeated."""
    for axis in (2, 3):
        length = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, length - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, length - 1), x.narrow(axis, length - 1, 1)], axis)
        x = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)
    return x
