"""What the command line says when something is wrong: one line, and nothing is half-written."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slicescan.cli import main
from slicescan.models.xyscannet import XYScanNet
from tests.command_line import Caller, everything, one_error, photo, small_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def call(capsys, weights):
    return Caller(capsys, weights)


# Files


def bad_files(folder):
    """Files that cannot be restored, and what the error says."""
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    whole = photo(folder / "whole.jpg", size=(60, 50)).read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    photo(folder / "deep.tif", "L").unlink()
    Image.fromarray(np.ones((4, 5), np.float32)).save(folder / "deep.tif")
    return {"text.jpg": "text", "empty.png": "empty", "cut.jpg": "cut short", "deep.tif": "16-bit PNG"}


def test_bad_files_are_listed_at_the_end_and_the_others_done(call, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    photo(folder / "a.png"), photo(folder / "z.png")
    causes = bad_files(folder)
    code, said, err = call.restore(folder, tmp_path / "missing.png", "-o", out)
    causes["../missing.png"] = "no such file"
    assert code == 1 and len(said.splitlines()) == 2 and everything(out) == ["a.png", "z.png"]
    lines = err.splitlines()
    assert len(lines) == len(causes)
    for name, cause in causes.items():
        path = (folder / name).resolve()
        assert any(line.startswith(f"slicescan: error: {path}: ") and cause in line for line in lines), name


def test_an_output_that_cannot_be_written_is_one_line(call, tmp_path):
    path = photo(tmp_path / "a.png")
    (tmp_path / "file").write_text("no folder")
    code, _, err = call.restore(path, "-o", tmp_path / "file" / "out.png")
    assert code == 1 and one_error(err, path, tmp_path / "file" / "out.png", "cannot be written")
    assert everything(tmp_path) == ["a.png", "file"]


def test_a_folder_without_permission_is_one_line(call, tmp_path, monkeypatch):
    path = photo(tmp_path / "a.png")
    monkeypatch.setattr(os, "access", lambda place, how: how != os.W_OK)
    code, _, err = call.restore(path, "-o", tmp_path / "locked")
    assert code == 1 and one_error(err, path, "cannot be written (no permission)")


def test_a_full_disk_is_one_line_and_leaves_nothing(call, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = photo(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = call.restore(path)
    assert code == 1 and one_error(err, path, "cannot be written (No space left on device)")
    assert everything(tmp_path) == ["a.png"]


def test_an_image_that_does_not_fit_into_memory_is_one_line(call, tmp_path, monkeypatch):
    def full(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    path = photo(tmp_path / "a.png")
    monkeypatch.setattr(XYScanNet, "forward", full)
    code, _, err = call.restore(path, "--mode", "tile")
    assert code == 1 and one_error(err, path, "does not fit into the memory of cpu")


# Plans, weights, options


@pytest.mark.parametrize(
    ("inputs", "output", "cause"),
    [
        (["a.png"], "a.png", "would overwrite its input"),
        (["a.png", "sub/a.png"], "out", "would both be written to"),
        (["no*.png"], "out", "no image fits this pattern"),
        (["empty"], "out", "no images in this folder"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_as_a_whole(call, tmp_path, inputs, output, cause):
    photo(tmp_path / "a.png"), photo(tmp_path / "sub" / "a.png"), (tmp_path / "empty").mkdir()
    before = (tmp_path / "a.png").read_bytes()
    code, out, err = call.restore(*(tmp_path / one for one in inputs), "-o", tmp_path / output)
    assert (code, out) == (1, "") and one_error(err, cause)
    assert (tmp_path / "a.png").read_bytes() == before and not (tmp_path / "out").exists()


class Hostile:
    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture
def bad_weights(tmp_path, weights):
    hostile = Hostile()
    hostile.place = str(tmp_path / "harm")
    contents = {"hostile.pth": pickle.dumps(hostile), "text.pth": b"no weights", "empty.safetensors": b""}
    contents["cut.safetensors"] = Path(weights).read_bytes()[:999]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "foreign.pth")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("absent.pth", "no such file"),
        ("text.pth", "a text file, not a checkpoint"),
        ("empty.safetensors", "an empty file"),
        ("cut.safetensors", "cut short"),
        ("foreign.pth", "belong to no known model"),
        ("hostile.pth", "could run code; nothing was run"),
    ],
)
@pytest.mark.parametrize("command", ["restore", "info", "profile", "convert"])
def test_bad_weights_are_one_line_in_every_command(call, bad_weights, name, cause, command):
    path, target = photo(bad_weights / "a.png"), bad_weights / "new.pth"
    arguments = {"restore": [path, "--device", "cpu", "--checkpoint"], "convert": []}.get(command, [])
    code, out, err = call(command, *arguments, bad_weights / name, *([target] if command == "convert" else []))
    assert (code, out) == (1, "") and one_error(err, bad_weights / name, cause)
    assert not (bad_weights / "harm").exists() and not target.exists() and not (bad_weights / "a_restored.png").exists()


def test_weights_of_another_architecture_are_refused(call, weights, tmp_path):
    path = photo(tmp_path / "a.png")
    code, _, err = call.restore(path, "--model", "xyscannet_tiny")
    assert code == 1 and one_error(err, weights, "xyscannet_tiny") and everything(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "xyscanet"], ["unknown model 'xyscanet'", "xyscannet"]),
        (["--model", "xyscannet_plus"], ["best_XYScanNet_stage2.pth", "github.com", "--checkpoint"]),
        (["--device", "cuda:99"], ["--device cuda:99: cannot be used"]),
        (["--device", "toaster"], ["--device toaster: cannot be used"]),
    ],
)
def test_a_model_or_device_that_is_not_there_is_one_line(call, tmp_path, options, words):
    path = photo(tmp_path / "a.png")
    code, out, err = call("restore", path, *options)
    assert (code, out) == (1, "") and one_error(err, *words) and everything(tmp_path) == ["a.png"]


def test_a_file_given_as_the_name_of_a_model_is_explained(call, weights, tmp_path):
    code, _, err = call("restore", photo(tmp_path / "a.png"), "--model", weights)
    assert code == 1 and one_error(err, weights, "by --checkpoint")


def test_a_network_that_cannot_stream_says_so_once(call, tmp_path, monkeypatch):
    from slicescan.engine import restore as module

    def no_stream(model, mode):
        raise ValueError(f"{type(model).__name__} cannot stream; use mode='auto', 'whole' or 'tile'")

    monkeypatch.setattr(module, "check_mode", no_stream)
    code, _, err = call.restore(photo(tmp_path / "a.png"), photo(tmp_path / "b.png"), "--mode", "stream")
    assert code == 1 and one_error(err, "XYScanNet cannot stream; use mode='auto', 'whole' or 'tile'")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["restore"],
        ["restore", "a.png", "--mode", "fast"],
        ["restore", "a.png", "--tile", "0"],
        ["restore", "a.png", "--tile", "-3"],
        ["restore", "a.png", "--overlap", "-1"],
        ["restore", "a.png", "--overlap", "x"],
        ["restore", "a.png", "--amp", "fp8"],
        ["restore", "a.png", "--shard", "2/2"],
        ["restore", "a.png", "--shard", "1"],
        ["restore", "a.png", "--shard", "-1/2"],
        ["restore", "a.png", "--unheard-of"],
        ["convert", "a.pth"],
        ["train", "xyscannet_tiny"],
    ],
)
def test_a_wrong_command_is_explained_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and "error: " in err.splitlines()[-1]


def test_debug_shows_the_traceback(call, tmp_path):
    with pytest.raises(FileNotFoundError):
        call("--debug", "info", tmp_path / "absent.pth")
