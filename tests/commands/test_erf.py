import json

import numpy as np
import pytest
from PIL import Image

from slicescan import create_model, effective_receptive_field, load
from slicescan.checkpoint import write_checkpoint
from slicescan.cli import main
from tests.engine.metrics.pictures import texture


@pytest.fixture
def weights(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for file, scanners in zip(files, (("intra", "intra"), ("inter", "inter")), strict=True):
        write_checkpoint(file, create_model("xyscannet_tiny", dim=8, blocks=(1, 1, 1), scanners=scanners))
    return files


def run(*words):
    return main(["erf", *map(str, words)])


def test_fields_of_several_networks_are_drawn_and_written(weights, tmp_path, capsys):
    options = ["--size", "16x24", "--images", 1, "--device", "cpu", "-o", tmp_path / "seen.png"]
    assert run(*weights, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one: 50 % within ") and lines[1].startswith("two: 50 % within ")
    figures = json.loads((tmp_path / "seen.json").read_text())
    expected = effective_receptive_field(load(weights[0]), (16, 24), images=1)
    assert figures["one"] == json.loads(json.dumps(expected.summary())) and figures["one"] != figures["two"]
    assert np.array(Image.open(tmp_path / "seen.png")).ndim == 3


def test_photographs_may_be_the_inputs(weights, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(texture(20, 30).permute(1, 2, 0).numpy()).save(tmp_path / "photos/a.png")
    options = ["--photos", tmp_path / "photos", "--device", "cpu", "-o", tmp_path / "seen.png"]
    assert run(weights[0], "--size", "16", *options) == 0
    images = texture(20, 30)[None, :, 2:18, 7:23].float() / 255
    expected = effective_receptive_field(load(weights[0]), images=images)
    assert json.loads((tmp_path / "seen.json").read_text())["one"] == json.loads(json.dumps(expected.summary()))
    assert run(weights[0], "--size", "32", *options) == 1


@pytest.mark.parametrize(
    ("words", "told"), [(["x.pth"], "no such file"), (["xyscannet_tiny", "-o", "seen.jpg"], "name it .png")]
)
def test_mistakes_are_one_line(words, told, capsys):
    assert run(*words) == 1
    assert told in capsys.readouterr().err
