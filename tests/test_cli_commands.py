"""The commands around `restore`."""

import json
import re
from pathlib import Path

import pytest
import torch

import slicescan
from slicescan import registry
from slicescan.checkpoint import read_checkpoint
from slicescan.models.xyscannet import XYScanNet
from slicescan.ops import dispatch
from tests.command_line import Caller, everything, one_error, small_network, small_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def call(capsys, weights):
    return Caller(capsys, weights)


@pytest.fixture(scope="module")
def model():
    return small_network()


def test_models_are_listed_and_filtered(call):
    code, out, _ = call("models")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert code == 0 and names == slicescan.list_models()
    row = next(line for line in out.splitlines() if line.startswith("xyscannet_plus "))
    assert "63,514,368" in row and "507.4" in row and "best_XYScanNet_stage2.pth" in row
    for arguments, expected in (
        (["*small_i*"], slicescan.list_models("*small_i*")),
        (["small_i"], slicescan.list_models("*small_i*")),
        (["--pretrained"], slicescan.list_pretrained()),
        (["xyscannet", "--supports", "bf16", "--supports", "compile"], slicescan.list_models("*xyscannet*")),
    ):
        code, out, _ = call("models", *arguments)
        assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == expected, arguments


def test_a_filter_that_nothing_fits_is_an_error(call):
    for arguments, words in ((["nothing"], "'nothing'"), (["--supports", "magic"], "--supports magic")):
        code, out, err = call("models", *arguments)
        assert (code, out) == (1, "") and one_error(err, f"no model fits {words}")


def test_info_tells_the_record_of_a_name(call):
    code, out, _ = call("info", "xyscannet_tiny")
    assert code == 0
    facts = ["params: 1,917,504", "macs_256: 15,593,712,192", "task: motion deblurring", "tiling: discouraged"]
    for words in (*facts, "xyscannet_tiny.safetensors"):
        assert words in out
    assert all(line.count("frozenset") == 0 for line in out.splitlines())


def test_info_tells_what_a_file_holds(call, weights, model):
    code, out, _ = call("info", weights)
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert code == 0 and lines["architecture"] == model.architecture
    assert json.loads(lines["arguments"]) == model.arguments
    assert lines["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"


@pytest.mark.parametrize("command", ["info", "profile"])
def test_a_name_that_is_neither_model_nor_file_is_answered_with_the_nearest(call, command):
    code, _, err = call(command, "xyscannet_tyni")
    assert code == 1 and one_error(err, "unknown model 'xyscannet_tyni'", "xyscannet_tiny")
    code, _, err = call(command, "nowhere/x.pth")
    assert code == 1 and one_error(err, "nowhere/x.pth: no such file")


def test_profile_counts_what_the_library_counts(call, weights, model):
    expected = slicescan.profile(model, (3, 20, 12))
    code, out, _ = call("profile", weights, "--size", "20x12", "--json")
    assert code == 0 and json.loads(out) == {**vars(expected), "size": [3, 20, 12]}
    code, out, _ = call("profile", weights, "--size", "20x12")
    assert code == 0 and f"{expected.params:,}" in out and "20x12" in out and str(expected.backend) in out


@pytest.mark.parametrize("size", ["256", "0x4", "axb", "1x2x3", "-1x4"])
def test_a_size_that_is_none_is_explained(call, weights, size):
    code, _, err = call("profile", weights, f"--size={size}")
    assert code == 1 and one_error(err, "--size is HEIGHTxWIDTH in pixels", repr(size))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
@pytest.mark.parametrize("names", ["slicescan", "published"])
def test_weights_come_through_conversion_unchanged(call, weights, model, tmp_path, suffix, names):
    target = tmp_path / f"new.{suffix}"
    code, out, err = call("convert", weights, target, "--to", names)
    assert (code, out, err) == (0, f"{weights} -> {target}\n", "")
    found = read_checkpoint(target)
    assert found.architecture == (None if names == "published" else model.architecture)
    assert all(torch.equal(found.state_dict[key], value) for key, value in model.state_dict().items())
    assert everything(tmp_path) == [f"new.{suffix}"]


def test_published_names_are_those_of_the_paper(call, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(XYScanNet, "renames", (("output", "last"),))
    assert call("convert", weights, tmp_path / "new.pth", "--to", "published")[0] == 0
    keys = set(torch.load(tmp_path / "new.pth", weights_only=True))
    assert "last.weight" in keys and "output.weight" not in keys


def test_half_the_bits_are_stored_if_one_asks(call, weights, model, tmp_path):
    assert call("convert", weights, tmp_path / "new.safetensors", "--half")[0] == 0
    assert {value.dtype for value in read_checkpoint(tmp_path / "new.safetensors").state_dict.values()} == {
        torch.float16
    }
    loaded = slicescan.load(tmp_path / "new.safetensors")
    assert torch.equal(loaded.output.weight, model.output.weight.half().float())


def test_conversion_does_not_overwrite_its_input(call, weights, model, tmp_path):
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "link.safetensors").symlink_to(weights)
    for source, target in (
        (weights, weights),
        (weights, tmp_path / "link.safetensors"),
        (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"),
    ):
        before = Path(target).read_bytes()
        code, _, err = call("convert", source, target)
        assert code == 1 and one_error(err, target, "would overwrite its input")
        assert Path(target).read_bytes() == before


@pytest.mark.parametrize(
    ("target", "cause"), [("new.bin", ".safetensors, .pth or .pt"), ("no/new.pth", "does not exist")]
)
def test_a_target_that_cannot_be_is_one_line(call, weights, tmp_path, target, cause):
    code, _, err = call("convert", weights, tmp_path / target)
    assert code == 1 and one_error(err, tmp_path / target, cause) and everything(tmp_path) == []


def test_a_conversion_that_fails_leaves_the_file_that_was_there(call, weights, tmp_path, monkeypatch):
    (tmp_path / "new.pth").write_bytes(b"before")

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, _, err = call("convert", weights, tmp_path / "new.pth")
    assert code == 1 and one_error(err, "No space left on device")
    assert (tmp_path / "new.pth").read_bytes() == b"before" and everything(tmp_path) == ["new.pth"]


def test_training_by_a_recipe_that_is_not_there_is_one_line(call, tmp_path):
    code, _, err = call("train", tmp_path / "no.toml", "--out", tmp_path / "run")
    assert code == 1 and one_error(err, tmp_path / "no.toml") and not (tmp_path / "run").exists()


def test_the_doctor_lists_every_backend_with_its_reason(call):
    code, out, _ = call("doctor")
    assert code == 0 and out.startswith(f"slicescan {slicescan.__version__}, Python ")
    for name, reason in dispatch.report("cpu"):
        assert re.search(rf"^  [*+-] {name}: {re.escape(reason or 'can run')}$", out, re.MULTILINE)
    assert {name for name, _ in dispatch.report("cpu")} == set(dispatch.ALL)
    assert f"Weights in this package: {', '.join(registry.list_pretrained())}" in out
