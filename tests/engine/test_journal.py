"""Evaluations that are stopped, and go on."""

import time

import pytest
import torch
from torch import nn

from slicescan.engine import evaluate as module
from slicescan.engine.evaluate import evaluate
from slicescan.engine.journal import Journal
from slicescan.engine.results import Row
from tests.engine.test_evaluate import COUNT, Sharpen, data, pairs  # noqa: F401

ABOUT = {"protocol": "gopro", "device": "cpu", "unavailable": {}}
ROWS = [Row(i, f"{i}.png", {"psnr": 30.0 + i / 3}, 0.5) for i in range(3)]


class StoppedError(Exception):
    pass


def stop_after(count):
    seen = []

    def progress(row):
        seen.append(row)
        if len(seen) == count:
            raise StoppedError

    return progress


def stopped(folder, *rows, **more):
    with pytest.raises(StoppedError), Journal(folder, ABOUT | more) as journal:
        for row in rows:
            journal.add(row)
        raise StoppedError


def test_a_stopped_evaluation_goes_on_and_ends_like_one_that_was_not(data, tmp_path):  # noqa: F811
    whole = evaluate(Sharpen(), data, "plain", out=tmp_path / "whole")
    with pytest.raises(StoppedError):
        evaluate(Sharpen(), data, "plain", out=tmp_path / "run", progress=stop_after(2))
    model = Sharpen()
    found = evaluate(model, data, "plain", out=tmp_path / "run")
    assert len(model.seen) == COUNT - 2
    assert [(row.name, row.figures) for row in found.rows] == [(row.name, row.figures) for row in whole.rows]
    assert found.about.keys() == whole.about.keys()
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["images.csv", "summary.json"]


def test_another_network_begins_anew(data, tmp_path):  # noqa: F811
    model = Sharpen()
    with pytest.raises(StoppedError):
        evaluate(model, data, "plain", out=tmp_path / "run", progress=stop_after(2))
    nn.init.constant_(model.gain, 0.9)
    model.seen.clear()
    evaluate(model, data, "plain", out=tmp_path / "run")
    assert len(model.seen) == COUNT


def test_rows_come_back_to_the_last_bit(tmp_path):
    stopped(tmp_path, *ROWS)
    with Journal(tmp_path, ABOUT | {"device": "cuda"}) as journal:  # goes on elsewhere
        assert list(journal.rows.values()) == ROWS
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [{"protocol": "hide"}, {"unavailable": {"lpips": "x"}}, {"shard": "0/2"}])
def test_rows_of_another_evaluation_are_dropped(tmp_path, other):
    stopped(tmp_path, *ROWS)
    with Journal(tmp_path, ABOUT | other) as journal:
        assert not journal.rows


def test_failed_images_and_half_written_lines_are_done_again(tmp_path):
    stopped(tmp_path, ROWS[0], Row(1, "1.png", {}, None, "out of memory"), ROWS[2])
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    stopped(tmp_path, ROWS[1])
    with Journal(tmp_path, ABOUT) as journal:
        assert list(journal.rows.values()) == ROWS[:2]


def test_threads_that_measure_keep_the_order(data, tmp_path, monkeypatch):  # noqa: F811
    def measure(index, pair, restored, seconds, *_):
        time.sleep(0.02 * (COUNT - index))
        return Row(index, pair.name, {"psnr": float(restored[0, 0, 0])}, seconds)

    monkeypatch.setattr(module, "measure", measure)
    seen = []
    found = evaluate(data / "test/blur", data, "plain", out=tmp_path / "run", progress=seen.append)
    assert [row.index for row in seen] == list(range(COUNT)) and tuple(seen) == found.rows
    assert torch.tensor([row.figures["psnr"] for row in seen]).unique().numel() > 1
