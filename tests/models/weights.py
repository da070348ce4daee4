"""Weights that make mistakes visible, and how far two results are apart."""

import math

import torch
from torch import Tensor, nn


def far_from_default(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of order 1/sqrt(fan-in), norms, decay rates and skips well away from their initial values, float64."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
        if key.endswith(("A_log", "A_logs")):
            state[key] = value.double() + 0.3 * noise
        elif key.endswith((".D", ".Ds", "body.weight", "norm.weight")):
            state[key] = 1 + 0.3 * noise
        elif key.endswith(("dt_proj.bias", "dt_projs_bias")):
            state[key] = noise - 2
        else:
            state[key] = noise if value.ndim < 2 else noise / math.sqrt(value[0].numel())
    return state


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error, Euclidean."""
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()
