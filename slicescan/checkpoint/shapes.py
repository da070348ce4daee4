"""What the names and shapes of weights tell about the network they belong to."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes of a state dict by name, and questions to them. One damaged weight is outvoted by its neighbours.

    Axes are counted as Python counts them; a weight without such an axis is passed over.

    Example:
        >>> import torch
        >>> shapes = Shapes({f"body.{i}.fc.weight": torch.ones(12, 8) for i in range(3)})
        >>> shapes.count("body"), shapes.size(("body.*.fc.weight", 1)), shapes.factor("body.*.fc.weight", 0, 1)
        (3, 8, 1.5)
    """

    def __init__(self, state_dict: Mapping[str, Tensor]):
        super().__init__({key: tuple(value.shape) for key, value in state_dict.items()})

    def fit(self, pattern: str) -> list[str]:
        """Names that fit a pattern (:mod:`fnmatch`)."""
        return [key for key in self if key == pattern or fnmatchcase(key, pattern)]

    def size(self, *places: tuple[str, int]) -> int:
        """The commonest length of the given axes of the weights that fit the given patterns; 0 if there are none."""
        votes: Counter[int] = Counter()
        for pattern, axis in places:
            votes.update(self[key][axis] for key in self.fit(pattern) if _has(self[key], axis))
        return votes.most_common(1)[0][0] if votes else 0

    def count(self, stage: str) -> int:
        """How many numbered parts a stage has: 1 + the highest ``n`` of the names ``stage.n.``."""
        found = [int(match[1]) for key in self if (match := re.match(rf"{re.escape(stage)}\.(\d+)\.", key))]
        return max(found, default=-1) + 1

    def most(self, pattern: str, companion: str) -> bool:
        """Whether more than half of the weights that fit ``pattern`` have one that fits ``companion``, by number."""
        return 2 * len(self.fit(companion)) > len(self.fit(pattern))

    def factor(self, pattern: str, inner: int, outer: int) -> float:
        """The shortest decimal number that times axis ``outer``, rounded down, is axis ``inner``, most often.

        1.0 if no weight fits the pattern.
        """
        fitting = [self[key] for key in self.fit(pattern) if _has(self[key], inner) and _has(self[key], outer)]
        votes = Counter((shape[outer], shape[inner]) for shape in fitting)

        def agreement(digits_and_factor: tuple[int, float]) -> tuple[int, int]:
            digits, factor = digits_and_factor
            return sum(n for (width, wide), n in votes.items() if int(width * factor) == wide), -digits

        candidates = [
            (digits, math.ceil(wide / width * 10**digits - 1e-9) / 10**digits)
            for digits in range(8)
            for width, wide in votes
            if width
        ]
        return max(candidates, key=agreement, default=(0, 1.0))[1]


def _has(shape: tuple[int, ...], axis: int) -> bool:
    return -len(shape) <= axis < len(shape)
