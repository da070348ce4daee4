import json
import math

import pytest

from slicescan.engine.results import Results, Row, merge, read_results, write_results


def rows(*indices):
    return tuple(Row(i, f"a/{i},x.png", {"psnr": 20.1 + i / 3, "ssim": 0.5 / (i + 1)}, 0.25) for i in indices)


def about(**more):
    return {"protocol": "gopro", "pairs": 5, "seconds": 1.5, "device": "cpu", "backend": None, "unavailable": {}} | more


def test_results_come_back_from_disk_to_the_last_bit(tmp_path):
    odd = Row(3, 'quote " and\nline', {"psnr": math.inf}, None, "no; reference")
    results = Results(about(nested={"a": [1, None]}), (*rows(0, 1, 2), odd))
    write_results(tmp_path, results)
    assert read_results(tmp_path) == results
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.csv", "summary.json"]


def test_the_summary_counts_means_and_failures(tmp_path):
    failed = Row(3, "d", {}, None, "broken")
    write_results(tmp_path, Results(about(sets={"fid": 12.5}), (*rows(0, 1), failed)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["images"], summary["failed"]) == (3, 1)
    assert summary["mean"] == {"psnr": pytest.approx(20.1 + 1 / 6), "ssim": 0.375, "fid": 12.5}


def test_infinite_figures_are_text_in_json_and_infinite_again_when_read(tmp_path):
    write_results(tmp_path, Results(about(), (Row(0, "a", {"psnr": math.inf}),)))
    strict = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert strict["mean"]["psnr"] == "inf"
    assert read_results(tmp_path).mean["psnr"] == math.inf


def test_shards_join_in_any_order_once_all_are_there(tmp_path):
    parts = [rows(0, 3), rows(1, 4), rows(2)]
    for i in (2, 0, 1):
        assert merge(tmp_path, 3) is None
        write_results(tmp_path, Results(about(shard=f"{i}/3", device=f"cpu {i % 2}"), parts[i]))
    joined = merge(tmp_path, 3)
    assert joined.rows == rows(0, 1, 2, 3, 4)
    assert joined.about == about(seconds=4.5, device="cpu 0, cpu 1")
    assert not (tmp_path / "summary.json").exists()


def test_shards_of_different_evaluations_do_not_join(tmp_path):
    for i, protocol in enumerate(["gopro", "hide"]):
        write_results(tmp_path, Results(about(shard=f"{i}/2", protocol=protocol), rows(i)))
    with pytest.raises(ValueError, match="shards 0/2 and 1/2 differ in protocol: gopro and hide"):
        merge(tmp_path, 2)


def test_shards_that_leave_images_out_do_not_join(tmp_path):
    for i in range(2):
        write_results(tmp_path, Results(about(shard=f"{i}/2"), rows(i)))
    with pytest.raises(ValueError, match="have 2 images, not each of 5 once"):
        merge(tmp_path, 2)


def test_a_folder_without_results_or_with_damaged_ones_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results of an evaluation \(images.csv is not there\)"):
        read_results(tmp_path)
    write_results(tmp_path, Results(about(), rows(0, 1)))
    whole = (tmp_path / "images.csv").read_text()
    (tmp_path / "images.csv").write_text(whole[: whole.index("\n", 60) + 1])
    with pytest.raises(ValueError, match=r"damaged results \(1 images of 2\)"):
        read_results(tmp_path)
