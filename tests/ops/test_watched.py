"""Who is to see the operations that a network is defined by."""

import pytest
import torch
from torch import nn

from slicescan.ops.library import side_by_side, watched


class Asks(nn.Module):
    """Adds one where it is watched."""

    def forward(self, x):
        return x + 1 if watched() else x - 1


def test_compilation_is_not_watched():
    torch._dynamo.reset()
    assert torch.compile(Asks(), backend="eager", fullgraph=True)(torch.zeros(2)).tolist() == [-1, -1]


@pytest.mark.parametrize("strict", [True, False])
def test_export_is_watched(strict):
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this PyTorch does not tell export from compilation")
    program = torch.export.export(Asks(), (torch.zeros(2),), strict=strict)
    assert program.module()(torch.zeros(2)).tolist() == [1, 1]


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dynamic", [True, False])
def test_compilation_knows_the_order_of_a_convolved_map(order, dynamic):
    conv = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=order)
    found = []

    def look(x):
        y = conv(x)
        found.append(side_by_side(y))
        return y

    torch._dynamo.reset()
    x = torch.rand(1, 4, 5, 6).contiguous(memory_format=order)
    torch.compile(look, backend="eager", dynamic=dynamic)(x)
    assert found == [order == torch.channels_last]
    assert side_by_side(conv(x)) == found[0]
