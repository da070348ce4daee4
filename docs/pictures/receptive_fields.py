"""What whole networks look at: effective receptive fields of XYScanNet with four kinds of scanners."""

import torch
from card import BLUE, GREEN, GREY, ORANGE, RED, card, photo
from matplotlib.colors import LogNorm
from torch import nn

import slicescan
from slicescan.engine.erf import ReceptiveField

SIDE, SEEDS = 64, (0, 1)
VARIANTS = {
    "intra and inter": ("xyscannet_small", BLUE, "-"),
    "intra alone": ("xyscannet_small_intra", ORANGE, "--"),
    "inter alone": ("xyscannet_small_inter", GREEN, "-."),
    "SS2D": ("xyscannet_small_mambair", RED, ":"),
}


def field_of(*models: nn.Module) -> ReceptiveField:
    """Mean over models, each on a photograph, of what the output minus the input depends on; each counts the same."""
    places = [photo("red_panda", 150, 350, SIDE, SIDE), photo("berlin_cathedral", 200, 300, SIDE, SIDE)]
    pairs = zip(models, places, strict=True)
    energies = [slicescan.effective_receptive_field(model, images=x).change.energy for model, x in pairs]
    return ReceptiveField(sum(energy / energy.sum() for energy in energies) / len(energies), (SIDE // 2, SIDE // 2))


def untrained(name: str, seed: int) -> nn.Module:
    """A variant of width 16, all its blocks as they are drawn."""
    torch.manual_seed(seed)
    return slicescan.create_model(name, dim=16)


def draw():
    """Four untrained networks, the shipped one, and all five as curves."""
    fields = {
        f"{label}, untrained": (field_of(*(untrained(name, seed) for seed in SEEDS)), colour, dash)
        for label, (name, colour, dash) in VARIANTS.items()
    }
    shipped = slicescan.create_model("xyscannet_tiny", pretrained=True)
    fields["intra and inter, trained"] = (field_of(shipped, shipped), GREY, "-")

    figure, axes = card(3, 2, 8.4)
    for panel, (label, (field, colour, dash)) in zip(axes.flat, fields.items(), strict=False):
        size = (field.energy / field.energy.max()).sqrt()
        half = SIDE // 2
        extent = (-half - 0.5, half - 0.5, half - 0.5, -half - 0.5)
        image = panel.imshow(size.numpy(), cmap="magma", norm=LogNorm(1e-4, 1), extent=extent)
        panel.set_title(f"{label}\n50 % within {field.radius(0.5):.1f} px\n90 % within {field.radius(0.9):.1f} px")
        panel.set(xlabel="pixels to the right", ylabel="pixels down", xticks=(-20, 0, 20), yticks=(-20, 0, 20))
        radii = torch.arange(0, half + 0.5, 0.5).tolist()
        shares = [100 * field.share(radius) for radius in radii]
        axes[2, 1].plot(radii, shares, dash, color=colour, label=label.replace(", untrained", ""), lw=1.8)
    axes[2, 1].set(xlabel="radius in pixels", ylabel="% of the energy", title="energy within a radius", ylim=(0, 100))
    axes[2, 1].legend(loc="upper center", bbox_to_anchor=(0.45, -0.28), frameon=False, ncols=2, fontsize=7,
                      handlelength=2.2, columnspacing=0.8)  # fmt: skip
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=40, label="gradient, largest = 1 (log)")
    return figure
