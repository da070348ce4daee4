import hashlib
import json

import pytest
from PIL import Image

from slicescan import create_model
from slicescan.checkpoint import write_checkpoint
from slicescan.cli import main
from slicescan.engine.evaluate import evaluate
from slicescan.engine.results import read_results
from tests.engine.metrics.pictures import blurred, texture


@pytest.fixture
def data(tmp_path):
    for i in range(3):
        for side, picture in (("input", blurred(texture(30, 42, i), 3)), ("target", texture(30, 42, i))):
            file = tmp_path / f"data/{side}/{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "net.safetensors"
    write_checkpoint(file, create_model("xyscannet_tiny", dim=8, blocks=(1, 1, 1)))
    return file


def run(*words):
    return main(["evaluate", *map(str, words)])


def test_a_file_of_weights_is_measured_and_named(data, weights, tmp_path, capsys):
    assert run(weights, "--data", data, "--protocol", "gopro", "--out", tmp_path / "run", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    found = read_results(tmp_path / "run")
    assert len(lines) == 4 and lines[0].startswith("input/0.png  PSNR dB ")
    assert lines[-1].startswith(f"mean of 3 images, protocol gopro: PSNR dB {found.mean['psnr']:.2f}  SSIM 0.")
    assert found.about["checkpoint"] == "net.safetensors"
    assert found.about["checkpoint_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found.about["arguments"]["dim"] == 8


def test_shards_join_and_the_joined_run_can_be_compared(data, weights, tmp_path, capsys):
    out = tmp_path / "net"
    for i in range(3):
        options = ["--shard", f"{i}/3", "--device", "cpu", "--save"]
        assert run(weights, "--data", data, "--out", out, *options) == 0
    assert run(data / "input", "--data", data, "--out", tmp_path / "blurred") == 0
    capsys.readouterr()
    assert run(out, tmp_path / "blurred", "--compare", "--out", tmp_path / "both") == 0
    text = capsys.readouterr().out
    assert "blurred against net: PSNR dB" in text and text == (tmp_path / "both/table.md").read_text()
    made = sorted(file.name for file in (tmp_path / "both").iterdir())
    assert made == ["figures.png", "table.md", "worst.png"]


def test_json_lines_are_strict_and_end_with_the_means(data, tmp_path, capsys):
    assert run(data / "target", "--data", data, "--out", tmp_path / "run", "--json") == 0
    lines = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"name": "input/0.png", "psnr": "inf", "ssim": 1.0, "seconds": None, "error": None}
    assert lines[-1] == {"images": 3, "failed": 0, "mean": {"psnr": "inf", "ssim": 1.0}}


def test_a_failure_is_told_at_the_end_and_in_the_exit_code(data, tmp_path, capsys):
    (data / "input/1.png").write_bytes(b"text")
    assert run(data / "target", "--data", data, "--out", tmp_path / "run", "--metrics", "psnr,niqe") == 1
    told = capsys.readouterr().err
    assert "slicescan: error: input/0.png: niqe needs two patches of 96x96 pixels, got 30x42" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "b", "--data", "x"], "one WHAT at a time"),
        (["a"], "--data: name the folder"),
        (["a", "--data", "x", "--protocol", "gpro"], "did you mean 'gopro'"),
        (["a", "--data", "x", "--metrics", "pnsr"], "no metric 'pnsr'"),
        (["xyscannet_tinny", "--data", "x"], "xyscannet_tiny"),
        (["nowhere/net.pth", "--data", "x"], "nowhere/net.pth: no such file"),
    ],
)
def test_mistakes_are_one_line(words, told, tmp_path, capsys):
    assert run(*words, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert told in error and error.startswith("slicescan: error: ") and error.count("\n") == 1


def test_the_command_and_the_function_agree(data, weights, tmp_path):
    assert run(weights, "--data", data, "--out", tmp_path / "command", "--device", "cpu") == 0
    from slicescan import load

    called = evaluate(load(weights), data, "plain", out=tmp_path / "function")
    assert [row.figures for row in called.rows] == [row.figures for row in read_results(tmp_path / "command").rows]
