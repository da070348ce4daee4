import json

import pytest
from PIL import Image

import benchmarks.study.__main__ as study_main
from benchmarks.study.__main__ import main
from benchmarks.study.measure import costs, costs_beside
from benchmarks.study.tables import agreement, costs_table, fields_table, table
from benchmarks.study.train import ended, folder
from benchmarks.study.variants import VARIANTS, Budget, recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    made = tmp_path_factory.mktemp("photos")
    pattern = Image.effect_noise((64, 64), 80).resize((400, 420), Image.Resampling.BICUBIC)
    Image.merge("RGB", [pattern, pattern.rotate(90), pattern.rotate(180)]).save(made / "one.png")
    return made


def study(*words):
    return main([str(word) for word in words])


def test_variants_share_everything_but_their_modules():
    hybrid = recipe("hybrid", 3)
    for name, arguments in VARIANTS.items():
        other = recipe(name, 3)
        assert other.model.arguments == arguments
        assert (other.data, other.blur, other.loss, other.optimizer, other.iterations, other.seed) == (
            hybrid.data,
            hybrid.blur,
            hybrid.loss,
            hybrid.optimizer,
            hybrid.iterations,
            3,
        )


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="both: no such variant; there are hybrid"):
        recipe("both", 0)


def test_the_study_trains_goes_on_measures_and_prints(photos, tmp_path, capsys, monkeypatch):
    out, stored = tmp_path / "runs", tmp_path / "study.json"
    small = ["--iterations", 1, "--batch", 1, "--dim", 4, "--device", "cpu"]
    shared = ["--photos", photos, "--out", out, "--seeds", 0, *small]
    assert study("measure", *shared, "--json", stored) == 1
    assert "run 'train' first" in capsys.readouterr().err and not stored.exists()
    assert study("train", *shared, "--only", "skip", "--max-seconds", 0) == 0
    assert "not ended yet: skip_0" in capsys.readouterr().out
    assert study("train", *shared, "--only", "skip") == 0
    assert ended(folder(out, "skip", 0), 1) and not ended(folder(out, "skip", 0), 2)
    monkeypatch.setattr(study_main, "costs_beside", lambda *_: {})
    patch = ["--patch", 16, "--size", "16x24"]
    assert study("costs", *small, *patch, "--only", "skip", "aff", "--json", stored) == 0
    assert study("measure", *shared, "--json", stored) == 0
    assert study("tables", "--json", stored) == 0 and "| aff |" not in capsys.readouterr().out
    result = json.loads(stored.read_text())
    (run,) = result["variants"]["skip"]["runs"]
    assert result["variants"]["skip"]["costs"]["infer_ms"] > 0 and "runs" not in result["variants"]["aff"]
    assert run["psnr"] > 10 and run["niqe"] > 0 and result["photographs"] == 1
    assert study("tables", "--json", stored) == 0
    assert f"| skip | {result['variants']['skip']['params']:,} | {run['psnr']:.2f} dB |" in capsys.readouterr().out


def test_costs_are_those_of_a_step_and_of_an_image():
    found = costs("aff", "cpu", Budget(batch=1, dim=4, patch=16), (16, 24))
    assert found.keys() == {"train_ms", "infer_ms", "train_bytes", "infer_bytes"}
    assert found["train_ms"] > 0 and found["infer_ms"] > 0


def variant(*psnr):
    return {
        "params": 10,
        "runs": [{"psnr": value, "lpips": None, "niqe": 3.0} for value in psnr],
        "receptive_field": {},
    }


def test_the_order_is_the_papers_or_reversed_or_within_the_spread():
    result = {"variants": {"inter": variant(30.0, 30.2), "intra": variant(31.0, 31.0), "hybrid": variant(30.9, 31.3)}}
    psnr = [line for line in agreement(result) if line.startswith("PSNR")]
    assert psnr == [
        "PSNR, inter against intra: as in the paper",
        "PSNR, inter against hybrid: as in the paper",
        "PSNR, intra against hybrid: within the spread",
    ]
    result["variants"]["hybrid"] = variant(29.0, 29.0)
    assert "PSNR, inter against hybrid: reversed" in agreement(result)


def test_a_table_shows_the_spread_of_the_seeds_and_a_dash_for_what_is_missing():
    text = table({"variants": {"inter": variant(30.0, 30.2)}}, ["inter", "intra"], ["psnr", "lpips"])
    assert text.splitlines()[2:] == ["| inter | 10 | 30.10 dB ± 0.1 | – |"]


def test_costs_stand_beside_those_of_the_conventional_composition():
    found = costs_beside("inter", "cpu", Budget(batch=1, dim=4, patch=8), (8, 12))
    assert found["error"] < 1e-4 and found["peer"] == "plain scan in PyTorch"
    assert all(found[way]["train_ms"] > 0 < found[way]["infer_bytes"] for way in ("ours", "conventional"))
    lines = costs_table({"variants": {"inter": {"costs_dim48": found}, "intra": {}}}).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| inter | ") and lines[2].count("×") == 4


def test_receptive_fields_are_a_table():
    field = {"radius_50": 0.0, "radius_90": 2.25, "radius_99": 4.0, "share_within": {"4": 0.99}, "cross": 0.5}
    lines = fields_table({"variants": {"intra": {"receptive_field": {"change": field}}, "skip": {}}}).splitlines()
    assert lines[2:] == ["| intra | 0.0 px | 2.2 px | 4.0 px | 1.00 % | 50.0 % |"]
    assert fields_table({"variants": {"skip": {}}}) == ""
