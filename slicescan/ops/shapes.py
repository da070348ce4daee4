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

    def bind(self, name: str, tensor: Tensor, letters: str, *, order: str = "") -> None:
        """Check one argument, and remember the sizes of letters not met before.

        Args:
            name: The argument, for the message.
            tensor: Its value.
            letters: One letter for each axis.
            order: How the axes are written in the message, if not as ``letters``.
        """
        shape = tuple(tensor.shape)
        expected = tuple(self.sizes.get(letter) for letter in letters)
        fits = len(shape) == len(letters) and all(
            want is None or want == got for want, got in zip(expected, shape, strict=True)
        )
        if not fits:
            comma = "," if len(letters) == 1 else ""
            sizes = ", ".join(
                letter if want is None else str(want) for letter, want in zip(letters, expected, strict=True)
            )
            raise ValueError(f"{self.op}: {name} must be ({', '.join(letters)}{comma}) = ({sizes}{comma}), got {shape}")
        self.sizes.update(zip(letters, shape, strict=True))
