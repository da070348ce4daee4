"""Time of the scan on this machine, for every backend that can run it: ``poe bench``."""

import pytest
import torch

from benchmarks.cases import CPU, Case
from slicescan.ops import slice_scan
from slicescan.ops.dispatch import report

BACKENDS = [status.name for status in report("cpu") if status.reason is None and status.name != "reference"]


@pytest.mark.parametrize("axis", ["w", "h"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CPU, ids=lambda case: case.name)
def test_scan(benchmark, case: Case, backend: str, axis: str):
    benchmark.group = f"slice_scan {case.name}, axis {axis}"
    arguments = case.arguments()

    @torch.inference_mode()
    def scan():
        return slice_scan(**arguments, axis=axis, delta_softplus=True, backend=backend)

    benchmark.pedantic(scan, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CPU[:2], ids=lambda case: case.name)
def test_scan_and_gradients(benchmark, case: Case, backend: str):
    benchmark.group = f"slice_scan with gradients {case.name}"
    arguments = {name: tensor.requires_grad_() for name, tensor in case.arguments().items()}

    def scan():
        slice_scan(**arguments, axis="w", delta_softplus=True, backend=backend).sum().backward()

    benchmark.pedantic(scan, rounds=3, warmup_rounds=1)
