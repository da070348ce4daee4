"""Weights that have the shapes of VGG-19's."""

import torch

WIDTHS = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)}
"""Convolutions of VGG-19 up to relu3_1: index in torchvision's ``features``, widths out and in."""


def random_weights():
    """Weights of the convolutions up to relu3_1 under torchvision's names, float64."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for index, (out, width) in WIDTHS.items():
        scale = (2 / (9 * width)) ** 0.5
        state[f"features.{index}.weight"] = scale * torch.randn(out, width, 3, 3, generator=draw, dtype=torch.float64)
        state[f"features.{index}.bias"] = 0.1 * torch.randn(out, generator=draw, dtype=torch.float64)
    return state


def whole_file(weights):
    """What torchvision's file holds: float32, and layers behind relu3_1."""
    return {name: value.float() for name, value in weights.items()} | {
        "features.12.weight": torch.zeros(1),
        "classifier.0.weight": torch.zeros(1),
    }
