"""Bind axis letters to sizes, and name the argument that disagrees."""

from torch import Tensor


class Axes:
    """Sizes of axis letters, bound by the first argument that has them.

    Example:
        >>> import torch
        >>> axes = Axes("slice_scan")
        >>> axes.bind("u", torch.ones(2, 3), "bd")
        >>> axes.bind("D", torch.ones(4), "d")
        Traceback (most recent call last):
        ValueError: slice_scan: D must be (d,) = (3,), got (4,)
    """

    def __init__(self, op: str):
        self.op = op
        self.sizes: dict[str, int] = {}

    def bind(self, name: str, tensor: Tensor, letters: str) -> None:
        """Check one argument, and remember the sizes of letters not met before.

        Args:
            name: The argument, for the message.
            tensor: Its value.
            letters: One letter for each axis.
        """
        shape, sizes = tensor.shape, self.sizes
        fits = len(shape) == len(letters)
        new = {}
        if fits:
            for letter, size in zip(letters, shape, strict=True):
                if letter not in sizes:
                    new[letter] = size
                elif sizes[letter] != size:
                    fits = False
        if not fits:
            comma = "," if len(letters) == 1 else ""
            expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            raise ValueError(
                f"{self.op}: {name} must be ({', '.join(letters)}{comma}) = ({expected}{comma}), got {tuple(shape)}"
            )
        sizes.update(new)
