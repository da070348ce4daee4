"""Two ways to let the input in: the exact hold and the Euler step that Mamba's code takes."""

import torch
import torch.nn.functional as F
from card import BLUE, GREY, RED, card

import slicescan
from slicescan.layers import Mamba


def shares() -> torch.Tensor:
    """Step times decay rate of every state of the shipped network, as its biases set them."""
    model = slicescan.create_model("xyscannet_tiny", pretrained=True)
    mambas = [module for module in model.modules() if isinstance(module, Mamba)]
    products = [F.softplus(m.dt_proj.bias)[:, None] * m.A_log.exp() for m in mambas]
    return torch.cat([product.detach().flatten() for product in products])


def draw():
    """What one unit of input adds to the state, and where the shipped network works."""
    x = torch.logspace(-4, 1, 200, dtype=torch.float64)
    hold = -torch.expm1(-x)
    low, middle, high = shares().quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    figure, ((panel,),) = card(1, 1, 3.4)
    panel.axvspan(low, high, color=GREY, alpha=0.18, lw=0, label=f"90 % of the shipped states: {low:.1g} to {high:.1g}")
    panel.axvline(middle, color=GREY, lw=1)
    panel.plot(x.numpy(), x.numpy(), "--", color=RED, label="Euler: step")
    panel.plot(x.numpy(), hold.numpy(), color=BLUE, label="exact hold: (1 - exp(-step rate)) / rate")
    panel.set(xscale="log", yscale="log", xlabel="step times decay rate", ylabel="added, times decay rate")
    panel.legend(frameon=False, loc="lower right", fontsize=8)
    return figure
