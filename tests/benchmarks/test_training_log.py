"""What is kept of the logs of training runs, and the table made of it."""

import json

from benchmarks import tables, training_log


def test_a_run_in_pieces_is_kept_in_short_and_shown(tmp_path, monkeypatch):
    steps = [{"step": step, "loss": step / 1e4, "seconds_per_step": 0.05} for step in (100, 200, 300, 400, 500)]
    lines = [
        *steps[:3],
        {"step": 310, "of": 900, "wall_seconds": 60.02},
        {"step": 400, "gain_db": 1.25, "psnr_db": 22.0},
    ]
    lines += [*steps[3:], {"step": 500, "of": 500, "wall_seconds": 20.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["--run", "nafnet_tiny", str(tmp_path / "log.jsonl"), "random weights", "--device", "A card"]
    assert training_log.main([*command, "--torch", "2.0", "--json", str(tmp_path / "training_net.json")]) == 0
    found = json.loads((tmp_path / "training_net.json").read_text())
    (run,) = found["runs"]
    assert found["device"] == "A card" and run["steps"] == 500 and run["seconds"] == 80.0 and run["batch"] == 32
    assert [(point["step"], point["loss"]) for point in run["points"]] == [(200, 0.015), (400, 0.035), (500, 0.05)]
    assert run["measured"] == [{"step": 400, "gain_db": 1.25}]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (row,) = tables.training().splitlines()[2:]
    cells = ["`nafnet_tiny`", "random weights", "500", "80 s", "50.0 ms", "0.0333 → 0.0333", "+1.25 dB (400)"]
    assert row == f"| {' | '.join(cells)} |"
