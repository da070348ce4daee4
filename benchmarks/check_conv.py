"""The causal convolution on a GPU: ``python benchmarks/check_cuda.py conv``."""

import functools
import itertools

import torch
import torch.nn.functional as F

from benchmarks.check_cuda import DTYPES, SQUARE, error, median
from slicescan.ops import causal_conv
from slicescan.ops.backends.cuda import conv


def main() -> None:
    """The causal convolution with SiLU against torch's, right and timed."""

    def plain(x, weight, bias, axis):
        y = causal_conv(x.cpu(), weight.cpu(), bias.cpu(), axis=axis, silu=True)
        return y.to(x.device)

    for shape, t in itertools.product(((2, 40, 37, 24), *SQUARE[:2]), ("bf16", "fp32")):
        d, cells = shape[3], []
        gen = torch.Generator("cuda").manual_seed(0)
        x, grad_y = (torch.randn(shape, device="cuda", generator=gen).to(DTYPES[t]) for _ in range(2))
        weight, bias = torch.randn(d, 4, device="cuda", generator=gen), torch.randn(d, device="cuda", generator=gen)
        for axis in "wh":
            if shape[1] == 40:
                exact = [v.double().requires_grad_() for v in (x, weight, bias)]
                y = plain(*exact, axis)
                truth = [y.detach(), *torch.autograd.grad(y, exact, grad_y.double())]
                found = [conv.forward(x, weight, bias, axis, True), *conv.backward(x, weight, bias, grad_y, axis, True)]
                cells.append(f"{axis} " + " ".join(f"{error(f, e):.1e}" for f, e in zip(found, truth, strict=True)))
                continue
            leaves = [v.requires_grad_() for v in (x.clone(), weight.to(x.dtype), bias.to(x.dtype))]
            theirs = torch_conv(*leaves, axis)
            runs = [functools.partial(conv.forward, x, weight, bias, axis, True),
                    functools.partial(conv.backward, x, weight, bias, grad_y, axis, True),
                    functools.partial(torch_conv, *leaves, axis),
                    functools.partial(torch.autograd.grad, theirs, leaves, grad_y, retain_graph=True)]  # fmt: skip
            cells.append(
                f"{axis} {median(runs[0]):.3f} {median(runs[1]):.3f}, torch {median(runs[2]):.3f} {median(runs[3]):.3f}"
            )
        print(f"conv {shape} {t} |", " | ".join(cells), flush=True)


def torch_conv(x, weight, bias, axis):
    image, d = x.permute(0, 3, 1, 2), x.shape[3]
    if axis == "w":
        y = F.conv2d(image, weight[:, None, None, :], bias, padding=(0, 3), groups=d)[..., : x.shape[2]]
    else:
        y = F.conv2d(image, weight[:, None, :, None], bias, padding=(3, 0), groups=d)[..., : x.shape[1], :]
    return F.silu(y.permute(0, 2, 3, 1))
