"""The torch backend's own matters: blocks of slices, chunks of steps, and memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slicescan.ops import slice_scan
from slicescan.ops.backends import torch as backend
from slicescan.ops.call import ScanCall
from tests.parity import judge
from tests.strategies import Scan


@pytest.mark.parametrize("block", [1, 50, 100, 10**6])
@pytest.mark.parametrize("chunk", [1, 4, 16])
@pytest.mark.parametrize(
    "scan",
    [
        Scan(b=3, h=5, w=9, axis="w", groups=3),
        Scan(b=3, h=9, w=5, axis="h", reverse=True, layout="planes"),
        Scan(b=3, h=3, w=3, axis="h", carry=True, reverse=True, without=("z", "D")),
    ],
    ids=["rows", "columns", "carried"],
)
def test_blocks_and_chunks_of_any_size_are_exact(scan, block, chunk, monkeypatch):
    monkeypatch.setattr(backend, "BLOCK", {"cpu": block})
    monkeypatch.setattr(backend, "CHUNK", chunk)
    judge(scan.arguments(), "torch")


def test_blocks_change_no_bit_of_the_output(monkeypatch):
    arguments = Scan(b=2, h=4, w=20, d=8, n=4).arguments()
    whole = slice_scan(**arguments, backend="torch")
    monkeypatch.setattr(backend, "BLOCK", {"cpu": 64})
    assert torch.equal(slice_scan(**arguments, backend="torch"), whole)


def test_what_is_saved_has_the_form_that_is_declared():
    for scan in (Scan(w=33), Scan(w=33, carry=True, groups=2), Scan(h=0), Scan(b=0, axis="h")):
        arguments = scan.arguments()
        mixes = {name: arguments[name] if scan.groups else arguments[name].unsqueeze(3) for name in ("B", "C")}
        if scan.carry:
            mixes["initial_state"] = arguments["initial_state"].unsqueeze(1)
        call = ScanCall(**(arguments | mixes))
        saved = backend.forward(call, save=True)[2]
        assert (saved.shape, saved.dtype) == backend.saved_spec(call)
        assert backend.forward(call, save=False)[2].numel() == 0


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))])
        return made


@pytest.mark.parametrize("carry", [False, True])
def test_no_tensor_is_larger_than_a_map(carry, monkeypatch):
    """Nor are the states that are saved, a sixteenth of all."""
    monkeypatch.setattr(backend, "BLOCK", {"cpu": 2**9})
    arguments = Scan(b=2, h=32, w=48, d=16, n=16, groups=1, axis="h", carry=carry, layout="planes").arguments()
    call = ScanCall(**(arguments | {"initial_state": None}))
    with Largest() as largest:
        y, last, saved = backend.forward(call, save=True)
        backend.backward(call, saved, y, last)
    assert largest.numbers == call.u.numel()
