"""What ends a run from outside: a full disk, a picture that cannot be read. The last checkpoint stays."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

import slicescan
from slicescan.checkpoint import write
from slicescan.cli import main
from slicescan.engine import training_state
from slicescan.engine.config import DataSection, ModelSection, OptimizerSection, Recipe
from slicescan.engine.failures import left
from slicescan.engine.train import train
from slicescan.engine.training_log import TrainingLog
from slicescan.engine.training_state import step_of
from tests.engine.data.sets import picture
from tests.engine.data.sets import write as write_picture

RECIPE = Recipe(
    ModelSection("xyscannet_tiny", {"dim": 4, "blocks": [1, 1, 1], "state": 2}),
    DataSection(patch=8, batch=1, memory=0.0),
    optimizer=OptimizerSection(rate=2e-3, warmup=0),
    iterations=3,
    log_every=1,
    save_every=1,
    tensorboard=False,
)


@pytest.fixture(autouse=True, scope="module")
def _plain_scan():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICESCAN_BACKEND", "torch")
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for index in range(3):
        for side, seed in (("blur", index), ("sharp", 9 + index)):
            write_picture(root, f"{side}/{index}.png", picture(seed))
    return root


@pytest.fixture(scope="module")
def undisturbed(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(RECIPE, out=out, pairs=pairs, device="cpu")
    return out


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_as_safetensors_says_it(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def from_second_call(function, failing):
    """The function, whose second and later calls fail."""
    calls = iter(range(100))
    return lambda *given, **named: failing() if next(calls) else function(*given, **named)


@pytest.mark.parametrize(
    ("place", "name", "failing"),
    [
        (training_state, "save_file", full_as_safetensors_says_it),
        (write, "save_file", full_as_safetensors_says_it),
        (TrainingLog, "write", full),
    ],
    ids=["checkpoint", "weights", "log"],
)
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    pairs, undisturbed, tmp_path, monkeypatch, place, name, failing
):
    with monkeypatch.context() as patch:
        patch.setattr(place, name, from_second_call(getattr(place, name), failing))
        with pytest.raises(
            OSError, match="out: no space left on the disk; make room. The checkpoint of step 1 is whole"
        ):
            train(RECIPE, out=tmp_path / "out", pairs=pairs, device="cpu")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"checkpoint", "log.jsonl", "xyscannet_tiny.safetensors", "xyscannet_tiny.pth"}
    train(RECIPE, out=tmp_path / "out", pairs=pairs, device="cpu")
    found, expected = (slicescan.load(out / "xyscannet_tiny.pth") for out in (tmp_path / "out", undisturbed))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_another_error_of_the_disk_is_left_as_it_is(pairs, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(training_state, "save_file", denied)
    with pytest.raises(PermissionError, match="Permission denied"):
        train(RECIPE, out=tmp_path / "out", pairs=pairs, device="cpu")


@pytest.mark.parametrize("source", ["pairs", "photos"])
def test_a_picture_that_is_cut_short_is_named_and_the_last_checkpoint_stays(tmp_path, source, capsys):
    sides = {"pairs": ("blur", "sharp"), "photos": ("photos",)}[source]
    for index in range(4):
        for seed, side in enumerate(sides):
            write_picture(tmp_path, f"set/{side}/{index}.png", picture(9 * seed + index, 44, 48))
    bad = tmp_path / "set" / sides[-1] / "1.png"
    bad.write_bytes(bad.read_bytes()[:300])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "save_every = 1\niterations = 40\ntensorboard = false\n[data]\npatch = 8\nbatch = 1\nmemory = 0.0\n[model]\n"
        'name = "xyscannet_tiny"\narguments = { dim = 4, blocks = [1, 1, 1], state = 2 }\n'
    )
    given = ["--out", str(tmp_path / "out"), "--device", "cpu", f"--{source}", str(tmp_path / "set"), "--seed", "2"]
    assert main(["train", str(recipe), *given]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"slicescan: error: {bad}: ")
    step = step_of(tmp_path / "out" / "checkpoint")
    assert step and error.endswith(f". The checkpoint of step {step} is whole; the same command goes on from it")


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    assert left(tmp_path) == "There is no checkpoint yet; the same command begins again"


def test_the_seed_of_the_caller_replaces_that_of_the_recipe(pairs, tmp_path):
    other = replace(RECIPE, seed=5, iterations=1)
    train(other, out=tmp_path / "a", pairs=pairs, device="cpu")
    train(RECIPE, out=tmp_path / "b", pairs=pairs, device="cpu", iterations=1, seed=5)
    train(RECIPE, out=tmp_path / "c", pairs=pairs, device="cpu", iterations=1)
    a, b, c = (json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"] for name in "abc")
    assert a == b != c
