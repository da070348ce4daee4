"""A layer against its restatement: the output, and the gradient of every parameter and input, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.layers.restated import perturb

ROUNDING = 1e-9  # relative; float64 leaves 1e-15 an operation, a wrong formula far more than this


def relative(got: Tensor, want: Tensor) -> float:
    """RMS error relative to the RMS of ``want``."""
    return ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300)).item()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 values from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_restates(layer: nn.Module, restated: Callable, *inputs: Tensor) -> None:
    """Judge ``layer(*inputs)`` by ``restated(parameters, *inputs)``, weights far from the initialisation."""
    perturb(layer)
    leaves = [x.clone().requires_grad_() for x in inputs]
    parameters = dict(layer.named_parameters())
    got, want = layer(*leaves), restated(parameters, *leaves)
    assert got.shape == want.shape
    assert relative(got, want) <= ROUNDING
    probe = noise(*want.shape, seed=99)
    names = [f"input {i}" for i in range(len(leaves))] + list(parameters)
    wrt = leaves + list(parameters.values())
    gradients = [torch.autograd.grad((y * probe).sum(), wrt) for y in (got, want)]
    for name, g, w in zip(names, *gradients, strict=True):
        assert relative(g, w) <= ROUNDING, name
