import contextlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from slicescan.engine import training_state
from slicescan.engine.training_state import read_state, write_state


def tensors(seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=draw) for shape in [(3, 4), (), (5,), (2, 2, 2)]]


def blank():
    return [torch.zeros_like(tensor) for tensor in tensors(0)]


def read(folder):
    filled = blank()
    return read_state(folder, filled), filled


def holds(folder, seed, step):
    found, filled = read(folder)
    return found == step and all(torch.equal(a, b) for a, b in zip(filled, tensors(seed), strict=True))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of step 10."""
    write_state(tmp_path / "checkpoint", tensors(1), 10)
    return tmp_path / "checkpoint"


class Stopped(Exception):
    """Stands for the end of the process."""


def test_what_is_written_reads_back_with_the_same_bits(folder):
    assert holds(folder, 1, 10)
    write_state(folder, tensors(2), 20)
    assert holds(folder, 2, 20)
    assert sorted(file.name for file in folder.parent.iterdir()) == ["checkpoint"]


def test_without_a_checkpoint_nothing_is_filled(tmp_path):
    step, filled = read(tmp_path / "checkpoint")
    assert step == 0 and not any(tensor.any() for tensor in filled)


def test_parts_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "PART", 50)
    write_state(tmp_path / "checkpoint", tensors(3), 1)
    parts = sorted((tmp_path / "checkpoint").glob("part-*.safetensors"))
    assert [sum(t.nbytes for t in load_file(part).values()) for part in parts] == [48, 24, 32]
    assert holds(tmp_path / "checkpoint", 3, 1)


def test_strided_tensors_are_filled_in_place(tmp_path):
    wide = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    write_state(tmp_path / "c", [wide], 1)
    target = torch.zeros_like(wide)
    address = target.data_ptr()
    assert read_state(tmp_path / "c", [target]) == 1
    assert torch.equal(target, wide) and target.data_ptr() == address and target.stride() == wide.stride()


def test_a_failed_write_keeps_the_old_checkpoint(folder, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(training_state, "save_file", full)
        write_state(folder, tensors(2), 20)
    assert holds(folder, 1, 10)
    write_state(folder, tensors(2), 20)
    assert holds(folder, 2, 20)


@pytest.mark.parametrize("nth", range(8))
def test_a_stop_before_any_change_of_the_disk_leaves_a_whole_checkpoint(folder, monkeypatch, nth):
    """Stop before the nth rename or removal, twice, then look."""

    def stopping(patch):
        calls = iter(range(100))

        def wrapped(function):
            def call(*arguments, **settings):
                if next(calls) == nth:
                    raise Stopped
                return function(*arguments, **settings)

            return call

        patch.setattr(os, "replace", wrapped(os.replace))
        patch.setattr(shutil, "rmtree", wrapped(shutil.rmtree))

    step = 10
    for attempt in (2, 3):
        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            stopping(patch)
            write_state(folder, tensors(attempt), attempt * 10)
        found, _ = read(folder)
        assert found >= step
        assert holds(folder, found // 10, found)
        step = found
    write_state(folder, tensors(4), 40)
    assert holds(folder, 4, 40)


def test_a_stop_between_the_two_renames_still_reads(folder):
    os.replace(folder, folder.with_name("checkpoint.old"))
    assert holds(folder, 1, 10)


def test_another_write_after_such_a_stop_never_leaves_nothing(folder, monkeypatch):
    os.replace(folder, folder.with_name("checkpoint.old"))

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(os, "replace", stop)
        write_state(folder, tensors(2), 20)
    assert holds(folder, 1, 10)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "part-0.safetensors").unlink(),
        lambda folder: (folder / "part-0.safetensors").write_bytes(b"\0" * 100),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "state.json").write_text(json.dumps({"tensors": 4, "parts": 1})),
        lambda folder: (folder / "state.json").write_text(json.dumps({"step": 10, "tensors": 4, "parts": 0})),
    ],
    ids=["part gone", "part overwritten", "half a json", "other json", "no text", "no step", "fewer parts"],
)
def test_a_damaged_checkpoint_is_named_and_fills_nothing(folder, damage):
    damage(folder)
    filled = blank()
    with pytest.raises(ValueError, match=r"checkpoint: a damaged checkpoint .* remove it to start again"):
        read_state(folder, filled)
    assert not any(tensor.any() for tensor in filled)


def test_a_checkpoint_of_another_network_is_named_and_fills_nothing(folder):
    with pytest.raises(ValueError, match="checkpoint: holds 4 tensors, this recipe has 3"):
        read_state(folder, blank()[:3])
    filled = blank()[:3] + [torch.zeros(9)]
    with pytest.raises(ValueError, match=r"checkpoint: tensor 3 is \(2, 2, 2\), not \(9,\)"):
        read_state(folder, filled)
    assert not any(tensor.any() for tensor in filled)
