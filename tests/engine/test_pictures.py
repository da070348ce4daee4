import re

import numpy as np
import pytest
from PIL import Image

from slicescan.engine import pictures
from slicescan.engine.pictures import PhotoFolder, open_pictures, read_pictures


def write(file, mode="RGB", size=(7, 5)):
    draw = np.random.default_rng(len(file.name))
    image = Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return np.array(image.convert("RGB"))


def test_pictures_are_read_with_subfolders_and_sorted_by_name(tmp_path):
    pixels = {name: write(tmp_path / name) for name in ("c.png", "a.bmp", "b/d.PNG", "b/a.tif")}
    (tmp_path / "notes.txt").write_text("no image")
    found = read_pictures(tmp_path)
    assert [name.replace("\\", "/") for name, _ in found] == ["a.bmp", "b/a.tif", "b/d.PNG", "c.png"]
    for name, image in found:
        assert image.shape == (3, 5, 7) and image.is_contiguous()
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[name.replace("\\", "/")])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_picture_becomes_rgb(tmp_path, mode):
    expected = write(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"), mode)
    ((_, image),) = read_pictures(tmp_path)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("kept", [0, 40])
def test_a_broken_file_is_named(tmp_path, kept):
    write(tmp_path / "good.png")
    write(tmp_path / "broken.png")
    whole = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'broken.png'}: not a readable image")):
        read_pictures(tmp_path)


def test_a_folder_named_like_a_picture_is_searched(tmp_path):
    write(tmp_path / "album.png" / "x.png")
    assert len(read_pictures(tmp_path)) == 1


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_an_empty_or_absent_folder_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no images found \(looked for .jpg"):
        read_pictures(tmp_path / name)


@pytest.mark.parametrize(("many", "memory"), [(2, 4.0), (1000, 1e-6)])
def test_a_large_folder_is_listed_and_not_read(many, memory, tmp_path, monkeypatch):
    expected = [write(tmp_path / f"{name}.png") for name in ("a", "bb")]
    assert isinstance(open_pictures(tmp_path), list)
    (tmp_path / "broken.png").write_bytes(b"")
    monkeypatch.setattr(pictures, "MANY", many)
    found = open_pictures(tmp_path, memory)
    assert isinstance(found, PhotoFolder) and len(found) == 3
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), expected[0])
    assert np.array_equal(found[1:][0].permute(1, 2, 0).numpy(), expected[1])
    with pytest.raises(ValueError, match=r"broken\.png: not a readable image"):
        found[2]
