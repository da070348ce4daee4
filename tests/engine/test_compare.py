import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from slicescan.engine.compare import compare, table
from slicescan.engine.compare_pictures import CROP, draw_figures, worst_place
from slicescan.engine.evaluate import evaluate
from slicescan.engine.metrics.catalogue import METRICS
from slicescan.engine.results import Results, Row, write_results
from tests.engine.metrics.pictures import blurred, noisy, texture

ABOUT = {"protocol": "gopro", "measured": "PSNR", "split": "test", "variant": "", "names": "a", "device": "cpu"}


def results(psnrs, lpips=None, **more):
    rows = []
    for i, value in enumerate(psnrs):
        figures = {} if value is None else {"psnr": value} | ({"lpips": lpips[i]} if lpips else {})
        rows.append(Row(i, f"{i}.png", figures, None if value is None else 0.5))
    return Results(ABOUT | {"model": "net", "unavailable": {}} | more, tuple(rows))


def cells(text, run):
    line = next(line for line in text.splitlines() if line.startswith(f"| {run} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_best_of_a_column_is_bold_whichever_way_is_better():
    text = table({"one": results([30.0, 32.0], [0.1, 0.2]), "two": results([31.0, 33.0], [0.2, 0.2])})
    assert text.splitlines()[0] == "| run | model | PSNR dB ↑ | LPIPS ↓ | s/image |"
    assert cells(text, "one") == ["one", "net", "31.00", "**0.1500**", "0.50"]
    assert cells(text, "two") == ["two", "net", "**32.00**", "0.2000", "0.50"]


def test_means_are_over_the_images_that_all_runs_have():
    text = table({"one": results([30.0, 10.0, 32.0]), "two": results([31.0, None, 33.0])})
    assert cells(text, "one")[2] == "31.00" and "2 images that all runs have" in text


def test_a_metric_that_one_run_has_is_shown_without_a_winner():
    text = table({"one": results([30.0], sets={"fid": 5.0}), "two": results([31.0])})
    assert cells(text, "one")[3] == "5.00" and cells(text, "two")[3] == "–"


def test_runs_are_compared_image_by_image(tmp_path):
    write_results(tmp_path / "one", results([30.0, 31.0, 29.0]))
    write_results(tmp_path / "two", results([30.5, 31.7, 28.9]))
    text = compare([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    gaps = np.array([0.5, 0.7, -0.1])
    error = gaps.std(ddof=1) / math.sqrt(3)
    assert f"two against one: PSNR dB {gaps.mean():+.2f} ± {error:.2f}, better on 67 % of 3 images." in text
    assert "No worst cases: one, two kept no restored images" in text
    assert (tmp_path / "out/table.md").read_text().rstrip() == text
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["figures.png", "table.md"]


def test_only_like_is_compared(tmp_path):
    write_results(tmp_path / "one", results([30.0]))
    write_results(tmp_path / "two", results([30.0], protocol="plain"))
    write_results(tmp_path / "three", results([30.0], names="b"))
    with pytest.raises(ValueError, match="one and two cannot be compared: they differ in protocol: gopro and plain"):
        compare([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    with pytest.raises(ValueError, match="differ in the images that were measured"):
        compare([tmp_path / "one", tmp_path / "three"], tmp_path / "out")
    with pytest.raises(ValueError, match="one: named twice"):
        compare([tmp_path / "one"] * 3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_worst_cases_of_the_first_run_are_shown_where_they_are_worst(tmp_path):
    sharp = [texture(230, 300, seed) for seed in range(3)]
    for i, image in enumerate(sharp):
        for side, picture in (("blur", blurred(image, 5)), ("sharp", image), ("one", noisy(image, 9 - 3 * i))):
            file = tmp_path / "data/test" / side / f"{i}.png"
            file = tmp_path / f"restored/{i}.png" if side == "one" else file
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    evaluate(tmp_path / "restored", tmp_path / "data", out=tmp_path / "runs/one")
    evaluate(tmp_path / "data/test/blur", tmp_path / "data", out=tmp_path / "runs/two")
    compare([tmp_path / "runs/one", tmp_path / "runs/two"], tmp_path / "out", worst=2)
    with Image.open(tmp_path / "out/worst.png") as picture:
        sheet = np.array(picture)
    step = CROP + 6
    for row, i in enumerate((0, 1)):  # most noise first
        noise, top = noisy(sharp[i], 9 - 3 * i), 24 + row * (CROP + 36)
        y, x = worst_place(noise, sharp[i])
        for column, image in enumerate((blurred(sharp[i], 5), noise, blurred(sharp[i], 5), sharp[i])):
            expected = image[:, y : y + CROP, x : x + CROP].permute(1, 2, 0).numpy()
            left = 6 + column * step
            assert np.array_equal(sheet[top : top + CROP, left : left + CROP], expected)
    (tmp_path / "restored/0.png").unlink()
    text = compare([tmp_path / "runs/one", tmp_path / "runs/two"], tmp_path / "out", worst=2)
    assert "No worst cases: " in text and "no restored image for test/blur/0.png" in text


def test_the_crop_has_the_largest_error():
    sharp = torch.zeros(3, 500, 400, dtype=torch.uint8)
    restored = sharp.clone()
    restored[:, 300:340, 150:190] = 90
    top, left = worst_place(restored, sharp)
    assert top <= 300 and top + CROP >= 340 and left <= 150 and left + CROP >= 190
    assert worst_place(sharp[:, :50, :60], sharp[:, :50, :60]) == (0, 0)


@pytest.mark.parametrize("values", [[30.0, 31.5, 29.2], [30.0], [math.inf, 30.0], [math.inf], [5.0, 5.0]])
def test_curves_are_drawn_for_any_figures(values):
    picture = np.array(draw_figures({"one": values, "two": values[::-1]}, METRICS["psnr"]))
    assert (picture.reshape(-1, 3) == (31, 119, 180)).all(1).any()


def test_tables_come_from_summaries_alone(tmp_path):
    write_results(tmp_path / "one", results([30.0, math.inf]))
    assert json.loads((tmp_path / "one/summary.json").read_text())["mean"]["psnr"] == "inf"
    assert "inf" in compare([tmp_path / "one"], tmp_path / "out")
