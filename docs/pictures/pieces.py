"""A photograph restored whole, in strips and in tiles: where the results differ."""

from card import card, photo, shown
from matplotlib.colors import LogNorm

import slicescan


def draw():
    """The result of the whole, and the difference that strips and tiles make."""
    image = photo("berlin_cathedral", 60, 250, 160, 208)
    model = slicescan.create_model("xyscannet_tiny", pretrained=True)
    whole = slicescan.restore(model, image, mode="whole")
    made = {
        "strips (mode='stream')": slicescan.restore(model, image, mode="stream"),
        "tiles of 96, overlap 32": slicescan.restore(model, image, mode="tile", tile=96, overlap=32),
    }
    figure, axes = card(3, 1, 8.4)
    axes[0, 0].imshow(shown(whole))
    axes[0, 0].set_title("restored whole")
    for (panel,), (name, result) in zip(axes[1:], made.items(), strict=True):
        difference = (result - whole).abs().amax((0, 1))
        drawn = panel.imshow(difference.clamp(min=1e-8).numpy(), cmap="cividis", norm=LogNorm(1e-8, 1))
        panel.set_title(f"{name}: differs by {difference.max():.1g} at most")
    for (panel,) in axes:
        panel.set(xlabel="column", ylabel="row")
    figure.colorbar(drawn, ax=axes[1:], location="bottom", shrink=0.9, aspect=40, label="difference, image in [0, 1]")
    return figure
