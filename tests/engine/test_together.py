"""Several processes that train one network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import slicescan
from slicescan.engine.processes import Processes, share, weight
from slicescan.engine.training_state import step_of
from tests.engine import together
from tests.engine.data.sets import picture, write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of runs with one process and with two, and what the process said that lost its partner."""
    root = tmp_path_factory.mktemp("together")
    for index in range(4):
        write(root, f"set/blur/{index}.png", picture(index)), write(root, f"set/sharp/{index}.png", picture(9 + index))
        write(root, f"photos/{index}.png", picture(index, 44, 50))
    environment = os.environ | {"SLICESCAN_BACKEND": "torch", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, together.__file__, str(root)]
    place = Path(together.__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=600, check=False)
    said = "".join(file.read_text() for file in root.glob("*.txt"))
    assert done.returncode == 0, done.stderr + said
    return root, *json.loads(done.stdout)


def state(folder):
    """Everything that the checkpoint of a run holds."""
    return load_file(folder / "checkpoint" / "part-0.safetensors")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start a run in an instant")


@needs_fork
@pytest.mark.parametrize("pictures", ["pairs", "photos"])
def test_two_processes_equal_one_with_the_same_batch_to_rounding(runs, pictures):
    """In float64; a batch of 3 and, of four pairs, one of 1, for which a process has nothing."""
    one, two = (state(runs[0] / f"{pictures}-{count}") for count in (1, 2))
    assert one["0"].dtype == torch.float64
    torch.testing.assert_close(two, one)
    recipe = {"pairs": together.RECIPE, "photos": together.BLURRED}[pictures]
    assert step_of(runs[0] / f"{pictures}-2" / "checkpoint") == recipe.iterations


@needs_fork
def test_two_processes_report_and_measure_what_one_does(runs):
    logs = []
    for count in (1, 2):
        lines = map(json.loads, (runs[0] / f"pairs-{count}" / "log.jsonl").read_text().splitlines())
        logs.append([{key: v for key, v in line.items() if "seconds" not in key} for line in lines])
    assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one)
    assert (runs[0] / "pairs-2" / "samples" / "step-00000004.png").is_file()


@needs_fork
def test_two_processes_that_were_stopped_end_with_the_bits_of_an_undisturbed_run(runs):
    whole, stopped = (state(runs[0] / f"pairs-{name}") for name in ("2", "stopped"))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[key], stopped[key]) for key in whole)


@needs_fork
def test_a_process_that_loses_another_says_so_and_the_checkpoint_stays(runs):
    root, status, said = runs
    assert os.waitstatus_to_exitcode(status) == 1
    step = step_of(root / "pairs-lost" / "checkpoint")
    assert "RuntimeError: process 0 of 2 lost the others (" in said
    assert f"The checkpoint of step {step} is whole; the same command goes on from it" in said
    assert all(value.isfinite().all() for value in state(root / "pairs-lost").values())
    slicescan.load(root / "pairs-lost" / "xyscannet_tiny.safetensors")


@pytest.mark.parametrize("items", [1, 2, 5, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_hold_every_item_once_and_their_weighted_mean_is_that_of_the_batch(items, count):
    parts = [(index, count) for index in range(count)]
    held = [place for part in parts if weight(items, part) for place in share(items, part)]
    assert held == list(range(items)) and all(len(share(items, part)) for part in parts)
    values = [place**2 for place in range(items)]
    means = [sum(values[place] for place in share(items, part)) / len(share(items, part)) for part in parts]
    weighted = sum(mean * weight(items, part) for mean, part in zip(means, parts, strict=True)) / count
    assert weighted == pytest.approx(sum(values) / items)


def test_several_processes_need_accelerate_and_one_does_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert Processes("cpu").alone and Processes("cpu").first
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImportError, match=r"needs the 'train' extra: pip install 'slicescan\[train\]'"):
        Processes("cpu")
    with pytest.raises(ValueError, match="device cuda:1: of several processes each takes the GPU of its number"):
        Processes("cuda:1")
