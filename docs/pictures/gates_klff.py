"""The gates of KLFF on a photograph: where two levels of the encoder diverge, and the one number made of it."""

import torch
import torch.nn.functional as F
from card import card, photo, shown
from torch import Tensor

import slicescan


def divergences(model, image: Tensor) -> dict[tuple[int, int], Tensor]:
    """Map of ``sigmoid(X) (log sigmoid(X) - log sigmoid(N))``, mean over channels, by level and the other's level."""
    maps, hooks = {}, []
    for level in (1, 2):
        fuse = getattr(model, f"clff_level{level}")
        for name in ("conv", "conv_n1", "conv_n2"):
            layer = getattr(fuse, name)
            keep = lambda _, inputs, output, key=(level, name): maps.__setitem__(key, output)  # noqa: E731
            hooks.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    found = {}
    for level, others in ((1, (2, 3)), (2, (1, 3))):
        x = maps[level, "conv"]
        for other, name in zip(others, ("conv_n1", "conv_n2"), strict=True):
            n = F.interpolate(maps[level, name], x.shape[2:], mode="nearest")  # coarser levels stay small until here
            found[level, other] = (torch.sigmoid(x) * (F.logsigmoid(x) - F.logsigmoid(n)))[0].mean(0)
    return found


def draw():
    """The photograph, and four maps with the gate that their mean gives."""
    image = photo("berlin_cathedral", 60, 240, 288, 320)
    found = divergences(slicescan.create_model("xyscannet_tiny", pretrained=True), image)
    most = max(values.abs().quantile(0.99).item() for values in found.values())
    figure, axes = card(3, 2, 7.0)
    axes[0, 0].imshow(shown(image), extent=(0, 320, 288, 0))
    axes[0, 0].set_title("the photograph")
    axes[0, 1].set_axis_off()
    for panel, ((level, other), values) in zip(axes[1:].flat, found.items(), strict=True):
        drawn = panel.imshow(values.numpy(), cmap="PuOr", vmin=-most, vmax=most, extent=(0, 320, 288, 0))
        gate = torch.sigmoid(values.mean()).item()
        panel.set_title(f"level {level} takes {gate:.3f}\nof level {other}")
    for panel in axes.flat:
        panel.set(xlabel="column", ylabel="row", xticks=(0, 100, 200, 300), yticks=(0, 100, 200))
    figure.colorbar(drawn, cax=axes[0, 1].inset_axes((0.05, 0.45, 0.9, 0.09)), orientation="horizontal",
                    label="divergence from the level,\nmean over channels")  # fmt: skip
    return figure
