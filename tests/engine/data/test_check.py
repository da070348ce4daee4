import json
import re

import pytest

from slicescan.cli import main
from slicescan.engine.data.check import check, report
from tests.engine.data import sets
from tests.engine.data.sets import picture, write

MAKERS = [
    sets.gopro_archive,
    sets.gopro_grouped,
    sets.gopro_flat,
    sets.gopro_stores,
    sets.hide_archive,
    sets.hide_flat,
    sets.realblur_archive,
    sets.realblur_repack,
    sets.rwbi,
    sets.own,
]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_whole_set_has_no_mismatch_and_every_size_is_counted(make, tmp_path):
    make(tmp_path)
    for one in check(tmp_path):
        assert not one.mismatches and one.sizes == {"16x12": one.pairs} and one.pairs
        assert one.references == (make is not sets.rwbi)


def test_the_report_names_layout_counts_and_sizes(tmp_path):
    sets.realblur_repack(tmp_path)
    write(tmp_path, "train/trainA/scene002_blur_1.png", picture(1, 10, 14))
    write(tmp_path, "train/trainB/scene002_gt_1.png", picture(2, 10, 14))
    assert report(check(tmp_path)).splitlines() == [
        "layout: RealBlur (testA|trainA and testB|trainB)",
        "  test: 1 pairs, 16x12",
        "  train: 3 pairs, 2 of 16x12, 1 of 14x10",
    ]


def test_many_sizes_are_summed_up(tmp_path):
    for number in range(5):
        for side in ("blur", "sharp"):
            write(tmp_path, f"{side}/{number}.png", picture(0, 10 + number, 10))
    assert report(check(tmp_path)).endswith("1 of 10x10, 1 of 10x11, 1 of 10x12 and 2 other sizes")


def test_partners_of_different_sizes_and_unreadable_pictures_are_mismatches(tmp_path):
    sets.gopro_grouped(tmp_path)
    blurred = write(tmp_path, "train/blur/GOPR0372_07_00/000047.png", picture(0, 12, 15))
    broken = tmp_path / "test" / "testB" / "GOPR0384_11_00" / "000001.png"
    broken.write_bytes(b"")
    test, train = check(tmp_path)
    assert [line.split(":")[0] for line in (*test.mismatches, *train.mismatches)] == [str(broken), str(blurred)]
    assert "15x12 pixels, its sharp partner" in train.mismatches[0]
    assert re.search(r"mismatches: 2; the first: .*000001.png: not a readable image", report([test, train]))


def test_a_picture_turned_by_its_exif_has_the_size_it_is_read_with(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        Image.fromarray(picture(0)).save(tmp_path / side / "1.jpg", exif=exif)
    ((found,),) = [check(tmp_path)]
    assert found.sizes == {"12x16": 1}


def test_the_command_succeeds_only_for_a_whole_set(tmp_path, capsys):
    sets.gopro_grouped(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    assert (
        "layout: GoPro grouped (blur|testA/SEQUENCE/FRAME and sharp|testB/SEQUENCE/FRAME)\n" in capsys.readouterr().out
    )
    gone = tmp_path / "train" / "sharp" / "GOPR0374_11_00" / "000047.png"
    gone.unlink()
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "  train: 1 pairs, 16x12\n" in out
    assert f"mismatches: 1; the first: {tmp_path / 'train' / 'blur' / 'GOPR0374_11_00' / '000047.png'}: no sharp" in out


def test_json_has_an_object_for_each_set_and_a_last_one_for_all(tmp_path, capsys):
    sets.gopro_archive(tmp_path)
    write(tmp_path, "test/GOPR0384_11_00/sharp/000048.png", picture(0, 4, 4))
    assert main(["data", "check", "--json", str(tmp_path)]) == 1
    *found, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(one["split"], one["variant"], one["pairs"]) for one in found] == [
        ("test", "blur", 2), ("test", "blur_gamma", 2), ("train", "blur", 4), ("train", "blur_gamma", 4),
    ]  # fmt: skip
    assert found[2]["sizes"] == {"16x12": 4}
    assert last["pairs"] == 12 and last["mismatches"] == 2 and last["first"] == found[0]["mismatches"][0]


def test_two_folders_are_checked_against_each_other(tmp_path, capsys):
    write(tmp_path, "shaky/1.png"), write(tmp_path, "tripod/1.png")
    assert main(["data", "check", str(tmp_path / "shaky"), "--sharp", str(tmp_path / "tripod")]) == 0
    assert "  all: 1 pairs, 16x12" in capsys.readouterr().out


def test_a_folder_that_is_not_there_fails_in_one_line(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err == f"slicescan: error: {tmp_path / 'absent'}: no such folder\n"
