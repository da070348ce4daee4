import csv
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from slicescan.engine.evaluate import evaluate
from slicescan.engine.metrics import niqe, psnr, quantize, ssim, volume_ssim
from slicescan.engine.results import read_results
from tests.engine.metrics.pictures import blurred, texture

COUNT, H, W = 5, 36, 45


def write(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)


@pytest.fixture(scope="module")
def pairs():
    sharp = [texture(H, W, seed) for seed in range(COUNT)]
    return [(blurred(image, 3), image) for image in sharp]


@pytest.fixture
def data(tmp_path, pairs):
    for i, (blur, sharp) in enumerate(pairs):
        write(tmp_path / f"data/test/blur/scene/{i}.png", blur)
        write(tmp_path / f"data/test/sharp/scene/{i}.png", sharp)
    return tmp_path / "data"


class Sharpen(nn.Module):
    """A network that is simple enough to be restated: 1.5 x - 0.25, times a weight; keeps the sizes it sees."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.gain * (1.5 * x - 0.25)


def by_hand(blur):
    return quantize(1.5 * (blur.float() / 255) - 0.25)


@pytest.mark.parametrize(("protocol", "similarity"), [("gopro", volume_ssim), ("hide", volume_ssim), ("plain", ssim)])
def test_figures_are_those_of_the_images_as_they_are_saved(data, pairs, tmp_path, protocol, similarity):
    found = evaluate(Sharpen(), data, protocol, out=tmp_path / "run")
    for row, (i, (blur, sharp)) in zip(found.rows, enumerate(pairs), strict=True):
        assert (row.index, row.name, row.error) == (i, f"test/blur/scene/{i}.png", "")
        assert row.figures == {"psnr": psnr(by_hand(blur), sharp), "ssim": similarity(by_hand(blur), sharp)}
        assert row.seconds > 0
    assert found.mean["psnr"] == pytest.approx(np.mean([row.figures["psnr"] for row in found.rows]), rel=1e-12)
    with (tmp_path / "run/images.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [float(line["psnr"]) for line in table] == [row.figures["psnr"] for row in found.rows]


def test_the_summary_says_how_the_figures_came_about(data, tmp_path):
    model = Sharpen()
    evaluate(model, data, "gopro", out=tmp_path / "run", facts={"checkpoint": "net.pth"})
    about = json.loads((tmp_path / "run/summary.json").read_text())
    assert (about["protocol"], about["model"], about["checkpoint"]) == ("gopro", "Sharpen", "net.pth")
    assert about["versions"]["torch"] == torch.__version__ and about["device"].startswith("cpu")
    assert about["settings"]["mode"] == "whole" and about["split"] == "test" and about["images"] == COUNT
    nn.init.constant_(model.gain, 0.9)
    evaluate(model, data, "gopro", out=tmp_path / "other")
    other = json.loads((tmp_path / "other/summary.json").read_text())
    assert other["weights_sha256"] != about["weights_sha256"] and other["names"] == about["names"]


def test_a_folder_of_the_images_that_a_network_saved_scores_like_the_network(data, tmp_path):
    first = evaluate(Sharpen(), data, "plain", out=tmp_path / "run", save=True)
    second = evaluate(tmp_path / "run/images", data, "plain", out=tmp_path / "again")
    assert [row.figures for row in first.rows] == [row.figures for row in second.rows]
    assert all(row.seconds is None for row in second.rows)


def test_realblur_pads_to_eight_and_crops_back(data, pairs, tmp_path):
    model = Sharpen()
    found = evaluate(model, data, "realblur", out=tmp_path / "run", save=True)
    assert set(model.seen) == {(1, 3, 40, 48)}
    assert set(found.mean) == {"psnr", "ssim"} and found.mean["psnr"] > 15
    saved = np.array(Image.open(tmp_path / "run/images/test/blur/scene/0.png"))
    assert np.array_equal(saved, by_hand(pairs[0][0]).permute(1, 2, 0).numpy())


def test_shards_make_the_results_of_one_run(data, tmp_path):
    whole = evaluate(Sharpen(), data, "plain", out=tmp_path / "whole")
    for i in (1, 0):
        part = evaluate(Sharpen(), data, "plain", out=tmp_path / "parts", shard=(i, 2))
        assert (tmp_path / "parts/summary.json").exists() == (i == 0)
    assert [row.figures for row in part.rows] == [row.figures for row in whole.rows]
    joined = read_results(tmp_path / "parts")
    assert joined.rows == part.rows
    differing = {key for key in joined.about if joined.about[key] != whole.about[key]}
    assert differing <= {"seconds"} and joined.about.keys() == whole.about.keys()


def test_shards_of_two_networks_are_refused(data, tmp_path):
    model = Sharpen()
    evaluate(model, data, "plain", out=tmp_path / "parts", shard=(0, 2))
    nn.init.constant_(model.gain, 0.9)
    with pytest.raises(ValueError, match="differ in weights_sha256"):
        evaluate(model, data, "plain", out=tmp_path / "parts", shard=(1, 2))


def test_a_metric_that_cannot_be_had_does_not_stop_the_others(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    found = evaluate(Sharpen(), data, "plain", out=tmp_path / "run", metrics=["fid", "lpips", "psnr"])
    assert set(found.mean) == {"psnr"} and found.about["metrics"] == ["psnr", "lpips", "fid"]
    assert [line.split(" needs")[0] for line in found.errors] == ["lpips", "fid"]
    assert all("pip install" in line for line in found.errors)


def test_sets_are_measured_from_the_saved_images_once_all_are_there(data, tmp_path, monkeypatch):
    def measure(restored, sharp, names, **settings):
        calls.append((names, [str(x) for x in restored], [str(y) for y in sharp], settings["patch"]))
        return {"fid": 3.25}

    calls = []
    monkeypatch.setattr("slicescan.engine.evaluate.measure_sets", measure)
    for i in range(2):
        settings = {"metrics": ["fid", "psnr"], "shard": (i, 2), "patch": (16, 16)}
        found = evaluate(Sharpen(), data, "plain", out=tmp_path / "run", **settings)
    assert found.mean["fid"] == 3.25 == read_results(tmp_path / "run").mean["fid"]
    ((names, restored, sharp, patch),) = calls
    assert names == ["fid"] and patch == (16, 16)
    assert restored == [str(tmp_path / f"run/images/test/blur/scene/{i}.png") for i in range(COUNT)]
    assert sharp == [str(data / f"test/sharp/scene/{i}.png") for i in range(COUNT)]


def test_images_that_fail_are_told_and_left_out_of_the_means(data, tmp_path):
    whole = evaluate(Sharpen(), data, "plain", out=tmp_path / "run")
    (data / "test/blur/scene/1.png").write_bytes(b"no image")
    write(data / "test/sharp/scene/3.png", texture(H, W + 1))
    found = evaluate(Sharpen(), data, "plain", out=tmp_path / "run")
    kept = [row.figures["psnr"] for row in whole.rows if row.index not in (1, 3)]
    assert found.mean["psnr"] == pytest.approx(sum(kept) / len(kept), rel=1e-12)
    assert "not an image" in found.rows[1].error and found.rows[3].error == "restored is 45x36, its reference 46x36"
    assert json.loads((tmp_path / "run/summary.json").read_text())["failed"] == 2


REFUSED = "the result of Sharpen has values that are not finite"


def test_a_network_that_gives_nan_has_no_figures(data, tmp_path):
    model = Sharpen()
    nn.init.constant_(model.gain, float("nan"))
    found = evaluate(model, data, "plain", out=tmp_path / "run")
    assert not found.mean and {row.error for row in found.rows} == {REFUSED}


def test_pictures_without_references_have_niqe(tmp_path):
    image = texture(100, 200)
    write(tmp_path / "data/a.png", image)
    found = evaluate(Sharpen(), tmp_path / "data", "rwbi", out=tmp_path / "run", save=True)
    with Image.open(tmp_path / "run/images/a.png") as picture:
        saved = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(saved, by_hand(image))
    assert found.rows[0].figures == {"niqe": niqe(saved)}
    with pytest.raises(ValueError, match="psnr needs sharp references, and the protocol rwbi has none"):
        evaluate(Sharpen(), tmp_path / "data", "rwbi", out=tmp_path / "run", metrics=["psnr"])


def test_perceptual_distances_are_measured_on_each_pair(data, pairs, tmp_path, monkeypatch):
    class Network(nn.Module):
        def forward(self, x, y):
            return (x - y).abs().mean()

    library = types.ModuleType("stlpips_pytorch.stlpips")
    library.LPIPS = lambda **_: Network()
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", types.ModuleType("stlpips_pytorch"))
    monkeypatch.setitem(sys.modules, "stlpips_pytorch.stlpips", library)
    found = evaluate(Sharpen(), data, "plain", out=tmp_path / "run", metrics=["stlpips"])
    for row, (blur, sharp) in zip(found.rows, pairs, strict=True):
        expected = (by_hand(blur).float() - sharp.float()).abs().mean().item() / 127.5
        assert row.figures == {"stlpips": pytest.approx(expected, rel=1e-5)}


def test_unknown_metrics_and_absent_data_are_errors(data, tmp_path):
    with pytest.raises(ValueError, match="there is no metric 'pnsr'; there are psnr, ssim, niqe"):
        evaluate(Sharpen(), data, out=tmp_path / "run", metrics=["pnsr"])
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        evaluate(Sharpen(), tmp_path / "nowhere", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
