import json
from functools import partial

from benchmarks import compiled
from slicescan.models.xyscannet import XYScanNet


def test_both_ways_have_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "XYScanNet", partial(XYScanNet, blocks=(1, 1, 1)))
    path = tmp_path / "figures.json"
    words = ["--dim", "4", "--size", "8x12", "--device", "cpu", "--backend", "eager", "--json", str(path)]
    assert compiled.main(words) == 0
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert found["device"] and row["shape"] == [1, 3, 8, 12] and row["compile_s"] > 0
    assert 0 < row["compiled_error"] < 2 * row["eager_error"]
    assert min(row["eager_ms"], row["compiled_ms"], row["eager_kernels_ms"], row["compiled_kernels_ms"]) > 0
    assert "compiled_ms" in capsys.readouterr().out
