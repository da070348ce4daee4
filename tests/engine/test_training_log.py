import json
import sys

import numpy as np
import pytest

from slicescan.engine.training_log import TrainingLog


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def curve(folder, tag):
    return [(point.step, point.value) for point in events(folder / "tensorboard").Scalars(tag)]


def test_figures_become_curves_and_sheets_pictures(tmp_path):
    with TrainingLog(tmp_path, 0) as log:
        assert not log.missing
        log.write({"step": 2, "loss": 0.5, "off": "a word"})
        log.write({"step": 2, "gain_db": 1.25, "psnr_db": 30.0})
        log.show(np.zeros((4, 5, 3), np.uint8), 2)
    assert curve(tmp_path, "train/loss") == [(2, 0.5)]
    assert curve(tmp_path, "validation/gain_db") == [(2, 1.25)]
    tags = events(tmp_path / "tensorboard").Tags()
    assert tags["images"] == ["validation/samples"]
    assert sorted(tags["scalars"]) == ["train/loss", "validation/gain_db", "validation/psnr_db"]


def test_what_came_after_the_checkpoint_is_dropped(tmp_path):
    with TrainingLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    with TrainingLog(tmp_path, 1) as log:
        log.write({"step": 2, "loss": 8.0})
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1.0, 8.0]
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 8.0)]


def test_without_tensorboard_the_log_is_written_and_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TrainingLog(tmp_path, 0) as log:
        log.write({"step": 1, "loss": 0.5})
        assert "pip install 'slicescan[train]'" in log.missing
    assert {file.name for file in tmp_path.iterdir()} == {"log.jsonl"}
    with TrainingLog(tmp_path, 1, tensorboard=False) as log:
        assert not log.missing


def test_a_process_that_does_not_write_leaves_nothing(tmp_path):
    with TrainingLog(tmp_path, 0, on=False) as log:
        log.write({"step": 1, "loss": 0.5}), log.show(np.zeros((4, 5, 3), np.uint8), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(95, "1 min 35 s"), (7265, "2 h 1 min"), (59.6, "1 min 0 s")])
def test_the_time_left_is_that_of_the_steps_to_come_at_the_mean_speed(monkeypatch, seconds, text, capsys):
    from slicescan.engine import progress

    clock = iter([100.0, 100.0 + seconds, 100.0 + seconds])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = progress.Progress(10, 30)
    monkeypatch.setattr(shown, "plain", True)
    shown.show(20, 0.5)
    assert capsys.readouterr().err == f"step 20/30, loss 0.5000, {text} left\n"
