import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slicescan.engine.run import Run
from slicescan.engine.training_state import read_state
from tests.engine import killed
from tests.engine.data.sets import picture, write


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start a run in an instant")
def test_runs_killed_twenty_times_at_random_end_with_the_bits_of_an_undisturbed_one(tmp_path):
    for index in range(3):
        (
            write(tmp_path, f"set/blur/{index}.png", picture(index)),
            write(tmp_path, f"set/sharp/{index}.png", picture(9 + index)),
        )
    environment = os.environ | {"SLICESCAN_BACKEND": "torch", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, killed.__file__, str(tmp_path / "set"), str(tmp_path)]
    root = Path(killed.__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    kills = [tuple(kill) for kill in json.loads(done.stdout)]
    assert len(kills) == killed.KILLS and kills == sorted(kills)
    assert len({step for _, step in kills if 0 < step < killed.STEPS}) >= 5
    expected = state(tmp_path / "undisturbed")
    for folder in tmp_path.glob("killed-*"):
        assert all(torch.equal(a, b) for a, b in zip(state(folder), expected, strict=True))
        log = (folder / "log.jsonl").read_text().splitlines()
        losses = [line["step"] for line in map(json.loads, log) if "loss" in line]
        assert losses == list(range(1, killed.STEPS + 1))


def state(folder):
    """What a whole run has in its checkpoint and in its file of weights."""
    run = Run(killed.RECIPE, torch.device("cpu"))
    assert read_state(folder / "checkpoint", run.state()) == killed.STEPS
    return [*run.state(), *load_file(folder / "nafnet_w32.safetensors").values()]
