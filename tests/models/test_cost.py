"""What records say that a network costs, against counts of its operations; and the profiler against the same counts."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slicescan import create_model, model_entry, profile
from slicescan.models.base import Restorer
from slicescan.ops.library import TENSORS
from tests.models.test_contract import EVERY, FIRST, small


def counted(model: Restorer, size: int) -> int:
    """Multiply-adds for one image, counted on shapes alone."""

    def projection(*shapes, **_) -> int:  # of the steps inside a scan, without the scan
        u, weight = shapes[0], shapes[TENSORS.index("delta_weight")]
        return 0 if weight is None else 2 * math.prod(u) * weight[1]

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.slicescan.slice_scan: projection})
    with torch.no_grad(), counter:
        model(torch.empty(1, model.in_chans, size, size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", EVERY)
def test_the_record_tells_the_true_cost(name, monkeypatch):
    monkeypatch.setattr("slicescan.layers.cross_scan.PIECE", 2**60)  # in bands the same work takes more steps to follow
    record = model_entry(name)
    with torch.device("meta"):
        model = create_model(name)
    assert record.params == sum(parameter.numel() for parameter in model.parameters())
    assert record.macs_256 == counted(model, 256)
    assert (record.scale, record.size_multiple, record.min_size) == (model.scale, model.size_multiple, 1)


@pytest.mark.parametrize("name", FIRST)
def test_the_profiler_counts_the_same(name):
    model = small(name)
    found = profile(model, (model.in_chans, 32, 32))
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    assert found.macs == counted(model.to("meta"), 32)
