"""A scan along one row of a photograph: short memory, long memory, and a memory that chooses."""

import torch
from card import BLUE, GREEN, GREY, ORANGE, card, photo
from torch import Tensor

from slicescan.ops import selective_scan


def scanned(u: Tensor, steps: Tensor) -> Tensor:
    """One channel with one state that decays at rate 1: a running mean whose reach is one over the step."""
    one = torch.ones(1, len(u), 1)
    return selective_scan(u.view(1, -1, 1), steps.view(1, -1, 1), -torch.ones(1, 1), one, one).flatten()


def draw():
    """The row, two fixed steps, and a step that grows where the row changes."""
    row = photo("red_panda", 190, 200, 1, 400)[0].mean(0)[0]
    u = row - row.mean()
    edges = (u[1:] - u[:-1]).abs()
    edges = torch.nn.functional.max_pool1d(edges.view(1, 1, -1), 5, 1, 2).flatten()
    chosen = 0.02 + 200 * torch.cat([edges[:1], edges]).square()
    figure, axes = card(3, 1, 5.0, sharex=True)
    (top,), (middle,), (bottom,) = axes
    top.plot(u.numpy(), color=GREY, lw=1)
    top.set(ylabel="input u", title="one row of a photograph, its mean taken off")
    for step, colour, dash in ((0.3, ORANGE, "-"), (0.02, BLUE, "--")):
        y = scanned(u, torch.full_like(u, step))
        middle.plot(y.numpy(), dash, color=colour, label=f"step {step}: reach {1 / step:.0f} pixels")
    middle.plot(scanned(u, chosen).numpy(), "-.", color=GREEN, label="step chosen by the input")
    middle.set(ylabel="output y", ylim=(-0.4, 0.85))
    middle.legend(frameon=False, loc="upper left", ncols=2)
    bottom.plot(chosen.numpy(), color=GREEN, lw=1)
    bottom.set(xlabel="column", ylabel="chosen step", yscale="log")
    return figure
