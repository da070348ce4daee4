"""What is compared: the variants of XYScanNet, and the recipe that all of them share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slicescan.engine.config import Recipe, find_recipe, read_recipe

MODEL = "xyscannet_tiny"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "hybrid": {},
    "inter": {"scanners": ("inter", "inter")},
    "intra": {"scanners": ("intra", "intra")},
    "mambair": {"scanners": ("ss2d", "ss2d")},
    "skip": {"fusion": "skip"},
    "aff": {"fusion": "aff"},
}
"""Constructor arguments of each; ``hybrid`` is the network of the paper."""

ITERATIONS = 4000


@dataclass(frozen=True)
class Budget:
    """What every variant is given.

    Attributes:
        iterations: Steps.
        batch: Patches in a batch; None for the recipe's.
        dim: Width; None for the model's.
        patch: Side of a patch, in pixels.
    """

    iterations: int = ITERATIONS
    batch: int | None = None
    dim: int | None = None
    patch: int = 128

    def arguments(self, variant: str) -> dict[str, Any]:
        """Constructor arguments of a variant.

        Raises:
            ValueError: There is no such variant.
        """
        if variant not in VARIANTS:
            raise ValueError(f"{variant}: no such variant; there are {', '.join(VARIANTS)}")
        return {**VARIANTS[variant], **({"dim": self.dim} if self.dim else {})}


WIDE = Budget(batch=4, dim=48, patch=256)
"""The width of the paper's ablations, at which costs are measured too."""


def recipe(variant: str, seed: int, budget: Budget = Budget()) -> Recipe:
    """The recipe of the shipped weights, for one variant and seed.

    Raises:
        ValueError: There is no such variant.
    """
    shared = read_recipe(find_recipe(MODEL))
    return replace(
        shared,
        model=replace(shared.model, arguments=budget.arguments(variant)),
        data=replace(shared.data, patch=budget.patch, batch=budget.batch or shared.data.batch),
        iterations=budget.iterations,
        seed=seed,
        log_every=100,
        validate_every=1000,
        save_every=1000,
    )
