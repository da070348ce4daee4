"""Let spandrel, and so chaiNNer and ComfyUI, open checkpoints of networks that it lacks."""

import logging
from typing import Any

import spandrel
from torch import Tensor, nn

from slicescan.checkpoint import rename
from slicescan.models.base import Detected, Restorer
from slicescan.registry import FAMILIES, model_entry

_log = logging.getLogger("slicescan")

PREFIX = "slicescan-"
"""Before the name of a family, the identifier of its architecture in spandrel's registries."""

_TILING = {
    "exact": spandrel.ModelTiling.SUPPORTED,
    "approximate": spandrel.ModelTiling.SUPPORTED,
    "discouraged": spandrel.ModelTiling.DISCOURAGED,
}


class RestorerArchitecture(spandrel.Architecture[nn.Module]):
    """One family of networks as spandrel sees it: arguments are read off names and shapes of the weights.

    Spandrel hands over the weights alone, not what a file says of them. Arguments that these leave open, such as
    the order of XYScanNet's scanners, take their defaults; one line of the log ``slicescan`` names them.

    Args:
        family: The class of the networks.
    """

    def __init__(self, family: type[Restorer]):
        super().__init__(id=f"{PREFIX}{family.__name__}", name=family.__name__, detect=self._fits)
        self.family = family

    def _arguments(self, state_dict: dict[str, Tensor]) -> Detected | None:
        return self.family.detect(rename(state_dict, self.family.renames))

    def _fits(self, state_dict: dict[str, Tensor]) -> bool:
        return self._arguments(state_dict) is not None

    def load(self, state_dict: dict[str, Tensor]) -> spandrel.ImageModelDescriptor[Any]:
        """Build the network of a state dict and fill it.

        Raises:
            ValueError: The state dict is another network's.
        """
        detected = self._arguments(state_dict)
        if detected is None:
            raise ValueError(f"these weights are not those of a {self.name}")
        if detected.assumed:
            _log.warning("%s: the weights leave open %s: default taken", self.name, ", ".join(detected.assumed))
        model = self.family(**detected.arguments)
        state = rename(state_dict, self.family.renames)
        record = model_entry(model.architecture)
        return spandrel.ImageModelDescriptor(
            model.eval(),
            state,
            architecture=self,
            purpose="Restoration" if model.scale == 1 else "SR",
            tags=[f"{key}={value}" for key, value in detected.arguments.items() if isinstance(value, int | str)][:3],
            supports_half="fp16" in record.supports,
            supports_bfloat16="bf16" in record.supports,
            scale=model.scale,
            input_channels=model.in_chans,
            output_channels=model.in_chans,
            size_requirements=spandrel.SizeRequirements(minimum=record.min_size),
            tiling=_TILING[record.tiling or "approximate"],
        )


def architectures(*, besides: spandrel.ArchRegistry = spandrel.MAIN_REGISTRY) -> list[spandrel.ArchSupport]:
    """The families of this package that a registry does not already have under their own name.

    They are asked before the registry's own, whose tests are looser: ours ask for all names and shapes.
    """
    taken = {str(support.architecture.id) for support in besides}
    own = {name for name in taken if not name.startswith(PREFIX)}
    lacking = [family for family in FAMILIES if family.__name__.lower() not in {name.lower() for name in own}]
    before = tuple(support.architecture.id for support in besides if str(support.architecture.id) in own)
    return [spandrel.ArchSupport.from_architecture(RestorerArchitecture(family), before) for family in lacking]


def install(registry: spandrel.ArchRegistry = spandrel.MAIN_REGISTRY) -> list[str]:
    """Add the families that a registry lacks; calling it again changes nothing.

    Args:
        registry: Where to add them; the one that :class:`spandrel.ModelLoader` uses by default.

    Returns:
        Identifiers of those that were added.

    Example:
        >>> install(spandrel.ArchRegistry())[0]
        'slicescan-XYScanNet'
    """
    added = registry.add(*architectures(besides=registry), ignore_duplicates=True)
    return [str(support.architecture.id) for support in added]
