import pytest

from slicescan.engine.restored import find_restored


def touch(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


NAMES = ["test/GOPR0384/blur/000001.png", "test/GOPR0385/blur/000001.png", "test/GOPR0385/blur/000002.png"]


@pytest.mark.parametrize("pattern", ["{0}/{1}.png", "test/{0}/blur/{1}.jpg", "GoPro/results/{0}/{1}.PNG"])
def test_files_are_found_by_sequence_and_stem(tmp_path, pattern):
    expected = {}
    for name in NAMES:
        _, sequence, _, file = name.split("/")
        expected[name] = tmp_path / pattern.format(sequence, file.removesuffix(".png"))
        touch(tmp_path, pattern.format(sequence, file.removesuffix(".png")))
    touch(tmp_path, "000002.txt")
    assert find_restored(tmp_path, NAMES) == expected


def test_stems_may_have_dots(tmp_path):
    touch(tmp_path, "a.b.png", "a.c.png")
    assert find_restored(tmp_path, ["blur/a.b.jpg", "blur/a.c"]) == {
        "blur/a.b.jpg": tmp_path / "a.b.png",
        "blur/a.c": tmp_path / "a.c.png",
    }


def test_a_missing_image_is_named(tmp_path):
    touch(tmp_path, "GOPR0384/000001.png", "GOPR0385/000001.png")
    with pytest.raises(FileNotFoundError, match=r"no restored image for test/GOPR0385/blur/000002.png \(looked for"):
        find_restored(tmp_path, NAMES)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of restored images"):
        find_restored(tmp_path / "nowhere", NAMES)


def test_ambiguous_names_are_refused(tmp_path):
    touch(tmp_path, "one/x.png", "two/x.png")
    with pytest.raises(ValueError, match="fit blur/x.png"):
        find_restored(tmp_path, ["blur/x.png"])
    touch(tmp_path / "flat", "000001.png", "000002.png")
    with pytest.raises(ValueError, match="fits both test/GOPR0384/blur/000001.png and test/GOPR0385/blur/000001.png"):
        find_restored(tmp_path / "flat", NAMES)
