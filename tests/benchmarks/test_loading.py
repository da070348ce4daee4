"""In small: what the benchmark of loading writes."""

import json

import pytest
import torch

from benchmarks import loading
from slicescan.engine.data import File


def test_steps_and_starts_are_measured_and_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICESCAN_BACKEND", "torch")
    small = '{"dim": 4, "blocks": [1, 1, 1], "state": 2}'
    command = ["--size", "20x24", "--pairs", "3", "--arguments", small, "--patch", "8", "--batch", "2", "--steps", "2"]
    assert loading.main([*command, "--start", "12", "--device", "cpu", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    (step,) = found["step_ms"]
    assert found["device"] and step["png"] == "24x20" and step["workers"] == 8 and step["steps"] == 6
    assert step["ratio"] == pytest.approx(step["loaded_mean"] / step["cached_mean"]) and step["cached"] > 0
    assert [start["of"] for start in found["start_seconds"]] == ["photos", "pairs"]
    assert all(start["pictures"] == 12 and start["s"] > 0 for start in found["start_seconds"])


def test_pictures_are_decoded_at_every_step(tmp_path, monkeypatch):
    """Otherwise the second round would measure nothing."""
    monkeypatch.setenv("SLICESCAN_BACKEND", "torch")
    loading.write_pairs(tmp_path / "pngs", 2, 12, 16)
    read, decode = [], File.read
    monkeypatch.setattr(File, "read", lambda self: read.append(self.path.name) or decode(self))
    data = loading.DataSection(pairs=str(tmp_path / "pngs"), patch=8, batch=2, memory=0.0)
    model = loading.ModelSection("xyscannet", {"dim": 4, "blocks": [1, 1, 1], "state": 2})
    loading.step_times(loading.Recipe(model, data), torch.device("cpu"), steps=1, rounds=2)
    assert len(read) >= 2 * 2 * (2 + 2 * 2)  # two pictures of two pairs: two lying batches, then two a round
