"""Many square cuts of photographs as one batch: brought to one side, turned and mirrored.

An operation on a GPU takes its host longer than the GPU, so that all but the copies of the cuts are done for the whole
batch at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def crops(cuts: Sequence[Tensor], side: int, turns: Tensor, device: torch.device) -> Tensor:
    """Cuts as a batch of one size.

    Args:
        cuts: uint8 squares ``(3, s, s)`` with sides of ``side`` or more.
        side: Of the crops.
        turns: Booleans ``(b, 3)``: transpose a crop, mirror it, turn it upside down; together all eight ways.
        device: Of the crops.

    Returns:
        ``(b, 3, side, side)``, float32 in [0, 1].

    Example:
        >>> cuts = [torch.full((3, size, size), 255, dtype=torch.uint8) for size in (8, 10)]
        >>> crops(cuts, 8, torch.zeros(2, 3, dtype=torch.bool), torch.device("cpu")).shape
        torch.Size([2, 3, 8, 8])
    """
    sides = torch.tensor([cut.shape[1] for cut in cuts])
    most = int(sides.max())
    held = torch.zeros(len(cuts), 3, most, most, dtype=torch.uint8, device=device)
    for place, cut in enumerate(cuts):
        held[place, :, : cut.shape[1], : cut.shape[2]] = cut
    x = held.float() / 255
    if most > side:
        weights = _weights(sides.to(device), side, most)[:, None].to(x)
        x = weights @ x @ weights.mT
    transposed, mirrored, upside_down = turns.to(device).view(-1, 3, 1, 1, 1).unbind(1)
    x = torch.where(transposed, x.mT, x)
    x = torch.where(mirrored, x.flip(3), x)
    return torch.where(upside_down, x.flip(2), x)


def _weights(sides: Tensor, side: int, most: int) -> Tensor:
    """What every pixel of a shrunk line takes from the long one, ``(b, side, most)``: a triangle of one pixel's width.

    Bilinear interpolation with antialiasing; of a line that is not too long the pixels themselves.
    """
    scale = (sides / side).view(-1, 1, 1)
    centres = (torch.arange(side, device=sides.device) + 0.5).view(1, -1, 1) * scale
    places = torch.arange(most, device=sides.device) + 0.5
    triangle = (1 - ((places - centres) / scale).abs()).clamp(min=0) * (places < sides.view(-1, 1, 1))
    return triangle / triangle.sum(2, keepdim=True)
