import cv2
import numpy as np
import pytest

from slicescan.engine.data import DataError
from slicescan.engine.data.stores import stored
from tests.engine.data.sets import picture, write_store


@pytest.mark.parametrize("meta", [True, False])
def test_what_was_stored_reads_back_with_its_size(meta, tmp_path):
    images = {"a": picture(1), "GOPR0372/000047": picture(2, 9, 7)}
    write_store(tmp_path / "x.lmdb", images, meta)
    found = {entry.key: entry for entry in stored(tmp_path / "x.lmdb")}
    assert found.keys() == images.keys()
    for key, pixels in images.items():
        assert np.array_equal(found[key].read(), pixels)
        assert found[key].size() == pixels.shape[:2]


def test_sizes_come_from_the_list_without_reading(tmp_path):
    write_store(tmp_path / "x.lmdb", {"a": picture(1)})
    (tmp_path / "x.lmdb" / "meta_info.txt").write_text("a.b.png (720,1280,3) 1\n\nc.png (3, 4)\n")
    assert [(entry.key, entry.size()) for entry in stored(tmp_path / "x.lmdb")] == [("a.b", (720, 1280)), ("c", (3, 4))]


def test_sixteen_bits_stay(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (5, 6, 3), dtype=np.uint16)

    def encode(_):
        return cv2.imencode(".png", deep[..., ::-1])[1].tobytes()

    write_store(tmp_path / "x.lmdb", {"a": picture(1)}, encode=encode)
    assert np.array_equal(next(stored(tmp_path / "x.lmdb")).read(), deep)


def test_an_entry_that_is_missing_or_no_image_is_named(tmp_path):
    write_store(tmp_path / "x.lmdb", {"a": picture(1)}, encode=lambda _: b"no image")
    with pytest.raises(DataError, match=r"x\.lmdb: a: not a readable image"):
        next(stored(tmp_path / "x.lmdb")).read()
    (tmp_path / "x.lmdb" / "meta_info.txt").write_text("b.png (5,6,3) 1")
    with pytest.raises(DataError, match=r"x\.lmdb: b: named in meta_info\.txt, but not in the store"):
        next(stored(tmp_path / "x.lmdb")).read()


def test_a_line_of_the_list_that_cannot_be_understood_is_named(tmp_path):
    write_store(tmp_path / "x.lmdb", {"a": picture(1)})
    (tmp_path / "x.lmdb" / "meta_info.txt").write_text("a.png (5,6,3) 1\nb.png\n")
    with pytest.raises(
        DataError, match=r"meta_info\.txt, line 2: expected 'name\.png \(height,width,channels\) level'"
    ):
        list(stored(tmp_path / "x.lmdb"))


def test_a_damaged_store_is_named(tmp_path):
    (tmp_path / "x.lmdb").mkdir()
    (tmp_path / "x.lmdb" / "data.mdb").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.lmdb: not a readable LMDB"):
        list(stored(tmp_path / "x.lmdb"))
