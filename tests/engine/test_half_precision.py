"""Steps in half the bits: the loss in float16 is scaled, so that small gradients do not vanish."""

import math
from dataclasses import replace

import pytest
import torch

from slicescan.engine import run as module
from slicescan.engine.config import DataSection, ModelSection, OptimizerSection, Recipe
from slicescan.engine.run import FIRST_SCALE, PRECISIONS, Run
from slicescan.engine.training_state import read_state, write_state

RECIPE = Recipe(
    ModelSection("xyscannet_tiny", {"dim": 4, "blocks": [1, 1, 1], "state": 2}),
    DataSection(patch=16, batch=2),
    optimizer=OptimizerSection(rate=2e-3, warmup=0),
    iterations=20,
    amp="fp16",
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _plain_scan(monkeypatch):
    monkeypatch.setenv("SLICESCAN_BACKEND", "torch")


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    sharp = torch.rand(2, 3, 16, 16, generator=draw)
    return (sharp + 0.1 * torch.randn(sharp.shape, generator=draw)).clamp(0, 1), sharp


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_gradients_in_half_precision_point_where_those_in_single_precision_do(amp):
    """Off by a few roundings of the difference between two batches."""
    whole, half = Run(replace(RECIPE, amp="none"), CPU), Run(replace(RECIPE, amp=amp), CPU)
    expected, other = (flat(whole._gradients(*batch(seed))[1]) for seed in (0, 1))
    found = flat(half._gradients(*batch(0))[1])
    rounding = torch.finfo(PRECISIONS[amp]).eps
    assert (found - expected).norm() < 40 * rounding * (other - expected).norm()
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters)


def test_a_scale_that_is_too_large_skips_the_step_and_halves(monkeypatch):
    run = Run(RECIPE, CPU)
    before = [parameter.detach().clone() for parameter in run.parameters]
    run.scale.fill_(2.0**120)
    run.update(*batch())
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert run.scale == 2.0**119
    found = run.report()
    assert found["skipped"] == 1 and found["scale"] == 2.0**119 and math.isnan(found["loss"])


def test_after_many_good_steps_the_scale_doubles(monkeypatch):
    monkeypatch.setattr(module, "GROWS_AFTER", 2)
    run = Run(RECIPE, CPU)
    run.scale.fill_(8.0)
    scales = []
    for step in range(4):
        run.step = step
        run.update(*batch(step))
        scales.append(run.scale.item())
    assert scales == [8.0, 16.0, 16.0, 32.0]


def test_the_scale_is_part_of_the_state_in_float16_alone(tmp_path):
    run, other, whole = Run(RECIPE, CPU), Run(RECIPE, CPU), Run(replace(RECIPE, amp="bf16"), CPU)
    assert len(run.state()) == len(whole.state()) + 2
    run.scale.fill_(4.0), run.good_steps.fill_(7.0)
    write_state(tmp_path / "checkpoint", run.state(), 3)
    read_state(tmp_path / "checkpoint", other.state())
    assert (other.scale, other.good_steps) == (4.0, 7.0) and whole.scale == FIRST_SCALE
