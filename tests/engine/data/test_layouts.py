import os
import re
import time

import pytest

from slicescan.engine.data import DataError, choose, find_sets, pair_folders
from tests.engine.data import sets
from tests.engine.data.sets import write

FOUND = {
    sets.gopro_archive: (
        "GoPro's archive",
        {"test blur": 2, "test blur_gamma": 2, "train blur": 4, "train blur_gamma": 4},
    ),
    sets.gopro_grouped: ("GoPro grouped", {"test": 1, "train": 2}),
    sets.gopro_mixed: ("GoPro grouped", {"test": 1}),
    sets.gopro_flat: ("GoPro flat (input and target)", {"test": 1, "train": 1}),
    sets.gopro_crops: ("GoPro flat", {"train": 3}),
    sets.gopro_stores: ("LMDB stores, GoPro flat", {"test": 1, "train": 2}),
    sets.hide_archive: ("HIDE's archive", {"test": 2, "train": 1}),
    sets.hide_flat: ("paired by testA and testB", {"test": 3}),
    sets.realblur_archive: ("RealBlur's archive", {"test": 2, "train": 4}),
    sets.realblur_scenes: ("RealBlur", {"all": 2}),
    sets.realblur_repack: ("RealBlur", {"test": 1, "train": 2}),
    sets.own: ("paired by blurred and sharp", {"all": 1}),
    sets.beside: ("paired by blur and sharp", {"all": 2}),
}
UNPAIRED = {sets.rwbi: {"all": 2}, sets.rwbi_test: {"test": 1}}


def shape(found):
    return {one.title: len(one.pairs) for one in found}


def alike(pair):
    """Names of two partners without the words that tell them apart."""
    sides = r"blur_gamma|blurred|blur|sharp|gt|input|target|GT|_crops"
    words = rf"(test-[\w-]+|(train|test)[AB]?|{sides}|\.lmdb|\.png|\.bmp|/|:| )"
    return re.sub(words, "", str(pair.blurred)) == re.sub(words, "", str(pair.sharp))


@pytest.mark.parametrize("make", FOUND, ids=lambda make: make.__name__)
def test_a_published_layout_is_found_with_all_its_pairs(make, tmp_path):
    make(tmp_path)
    layout, counts = FOUND[make]
    found = find_sets(tmp_path)
    assert shape(found) == counts
    for one in found:
        assert one.layout.startswith(layout) and not one.problems
        assert all(pair.sharp is not None and alike(pair) for pair in one.pairs)


@pytest.mark.parametrize("make", UNPAIRED, ids=lambda make: make.__name__)
def test_pictures_without_partners_are_a_set_without_references(make, tmp_path):
    make(tmp_path)
    found = find_sets(tmp_path)
    assert shape(found) == UNPAIRED[make]
    assert all(pair.sharp is None for one in found for pair in one.pairs)
    with pytest.raises(DataError, match=r"\.png: this set has no sharp pictures"):
        choose(found, "test")


def test_both_kinds_of_blur_share_the_sharp_pictures(tmp_path):
    sets.gopro_archive(tmp_path)
    found = find_sets(tmp_path)
    plain, gamma = choose(found, "train", "blur"), choose(found, "train", "blur_gamma")
    assert [pair.sharp for pair in plain.pairs] == [pair.sharp for pair in gamma.pairs]
    assert all(f"{os.sep}blur{os.sep}" in str(pair.blurred) for pair in plain.pairs)
    assert all(f"{os.sep}blur_gamma{os.sep}" in str(pair.blurred) for pair in gamma.pairs)


def test_a_set_with_only_the_other_kind_of_blur_is_taken(tmp_path):
    write(tmp_path, "train/GOPR1/blur_gamma/1.png"), write(tmp_path, "train/GOPR1/sharp/1.png")
    assert len(choose(find_sets(tmp_path), "train", "blur").pairs) == 1


def test_the_lists_of_realblur_split_it_also_from_inside(tmp_path):
    sets.realblur_archive(tmp_path)
    inner = tmp_path / "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
    for file in tmp_path.glob("*.txt"):
        file.rename(inner / file.name)
    assert shape(find_sets(inner)) == {"test": 2, "train": 4}


def test_a_picture_that_a_list_names_must_be_there(tmp_path):
    sets.realblur_archive(tmp_path)
    gone = next(tmp_path.rglob("scene002/gt/gt_1.png"))
    gone.unlink()
    with pytest.raises(DataError, match=rf"{re.escape(str(gone))}: named in RealBlur_J_train_list.txt, line 3"):
        choose(find_sets(tmp_path))


@pytest.mark.parametrize(("gone", "message"), [("sharp", "no sharp partner"), ("blur", "no blurred partner")])
def test_a_missing_partner_is_named(gone, message, tmp_path):
    sets.gopro_grouped(tmp_path)
    (tmp_path / "train" / gone / "GOPR0374_11_00" / "000047.png").unlink()
    left = tmp_path / "train" / ({"sharp", "blur"} - {gone}).pop() / "GOPR0374_11_00" / "000047.png"
    with pytest.raises(DataError, match=rf"^{re.escape(str(left))}: {message}$"):
        choose(find_sets(tmp_path))


def test_a_split_whose_blurred_side_is_missing_is_a_problem(tmp_path):
    write(tmp_path, "train/blur/1.png"), write(tmp_path, "train/sharp/1.png"), write(tmp_path, "test/sharp/2.png")
    with pytest.raises(DataError, match=r"2\.png: no blurred partner"):
        choose(find_sets(tmp_path), "test")
    assert len(choose(find_sets(tmp_path), "train").pairs) == 1


def test_two_pictures_of_one_name_are_an_error(tmp_path):
    write(tmp_path, "blur/a.png"), write(tmp_path, "blur/a.bmp"), write(tmp_path, "sharp/a.png")
    with pytest.raises(DataError, match=r"a\.\w+: has the same name as .*a\.\w+"):
        find_sets(tmp_path)


def test_any_two_folders_pair_by_name(tmp_path):
    for name in ("1", "x/2"):
        write(tmp_path, f"shaky/{name}.png"), write(tmp_path, f"tripod/{name}.png")
    found = pair_folders(tmp_path / "shaky", tmp_path / "tripod")
    assert [pair.name for pair in found.pairs] == ["1.png", "x/2.png"] and not found.problems
    write(tmp_path, "shaky/3.png")
    assert pair_folders(tmp_path / "shaky", tmp_path / "tripod").problems == (
        f"{tmp_path / 'shaky' / '3.png'}: no sharp partner",
    )


def test_any_two_stores_pair_by_key(tmp_path):
    for name in ("x.lmdb", "y.lmdb"):
        sets.write_store(tmp_path / name, {"k1": sets.picture(1), "k2": sets.picture(2)})
    assert len(pair_folders(tmp_path / "x.lmdb", tmp_path / "y.lmdb").pairs) == 2


def test_hidden_files_and_other_kinds_are_left_out(tmp_path):
    sets.own(tmp_path)
    for name in ("blurred/._a.png", "blurred/Thumbs.db", "__MACOSX/blurred/b.png", ".cache/blur/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert shape(find_sets(tmp_path)) == {"all": 1} and not find_sets(tmp_path)[0].problems


def test_linked_folders_are_followed_once(tmp_path):
    sets.own(tmp_path / "real")
    (tmp_path / "set").mkdir()
    for side in ("blurred", "sharp"):
        (tmp_path / "set" / side).symlink_to(tmp_path / "real" / side, target_is_directory=True)
    (tmp_path / "real" / "blurred" / "again").symlink_to(tmp_path / "set", target_is_directory=True)
    assert shape(find_sets(tmp_path / "set")) == {"all": 1}


def test_a_split_that_is_not_there_is_an_error_with_those_that_are(tmp_path):
    sets.gopro_archive(tmp_path)
    with pytest.raises(DataError, match=r"no 'val' pairs \(blur\); found: test blur, test blur_gamma, train blur"):
        choose(find_sets(tmp_path), "val")


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_pictures_is_an_error(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((DataError, FileNotFoundError), match=rf"{name}: no "):
        find_sets(tmp_path / name)


def test_only_sharp_pictures_are_an_error(tmp_path):
    write(tmp_path, "gt/1.png")
    with pytest.raises(DataError, match="only sharp pictures"):
        find_sets(tmp_path)


def test_ten_thousand_pairs_are_found_without_opening_one(tmp_path):
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        for number in range(10_000):
            os.close(os.open(tmp_path / side / f"{number:05}.png", os.O_CREAT))  # empty: opening one would fail
    start = time.monotonic()
    assert len(choose(find_sets(tmp_path)).pairs) == 10_000
    assert time.monotonic() - start < 10
