import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from slicescan.engine.photos import Photo, PhotoError, read_photo, write_photo

MAKER, ORIENTATION, EXIF_IFD, TAKEN = 0x010F, 0x0112, 0x8769, 0x9003
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(sum(shape)).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def smooth(h, w):
    return np.stack([np.add.outer(np.arange(h) * 2, np.arange(w) * k) % 256 for k in (1, 2, 3)], -1).astype(np.uint8)


def tags(orientation=None):
    exif = Image.Exif()
    exif[MAKER] = "Maker"
    exif.get_ifd(EXIF_IFD)[TAKEN] = "2020:01:02 03:04:05"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    return exif.tobytes()


def refused(path, *words, call=read_photo, error=PhotoError):
    with pytest.raises(error) as caught:
        call(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    for word in words:
        assert word in line
    return line


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "no.png", "no such file", error=FileNotFoundError)


def test_a_folder_is_not_a_photograph(tmp_path):
    refused(tmp_path, "a folder", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"hello, I am no photograph\n", "text"),
        (b"\0\1\2\3" * 9, "begins with"),
        (b"\x89PNG\r\n\x1a\n", "begins with"),
    ],
)
def test_what_is_no_image_is_described(tmp_path, content, cause):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    refused(path, "not an image", cause)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_file_cut_short_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"x{suffix}"
    Image.fromarray(noise(40, 50, 3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


def test_a_damaged_png_is_refused(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(noise(40, 50, 3)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    refused(path, "damaged")


@pytest.mark.parametrize("kind", ["ppm", "jp2", "tga"])
def test_kinds_whose_depth_could_be_cut_in_silence_are_refused(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    Image.fromarray(noise(8, 9, 3)).save(path)
    refused(path, "convert it to PNG")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1), (1, 50, 3), (7, 5)])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_lossless_files_come_back_equal(tmp_path, shape, suffix):
    path, pixels = tmp_path / f"x{suffix}", noise(*shape)
    write_photo(path, Photo(pixels), pixels)
    found = read_photo(path).pixels
    assert found.dtype == np.uint8
    if suffix == ".webp" and len(shape) == 2:  # WebP has no grey
        pixels = np.dstack([pixels] * 3)
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("shape", [(6, 7, 3), (6, 7)])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_comes_back_equal_and_keeps_hidden_colours(tmp_path, shape, suffix):
    path, pixels, alpha = tmp_path / f"x{suffix}", noise(*shape), noise(6, 7)
    alpha[:3] = 0
    write_photo(path, Photo(pixels, alpha), pixels)
    found = read_photo(path)
    assert np.array_equal(found.alpha, alpha)
    if suffix == ".webp" and len(shape) == 2:
        pixels = np.dstack([pixels] * 3)
    assert np.array_equal(found.pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_not_dropped_in_silence(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    photo = Photo(noise(4, 4, 3), noise(4, 4))
    refused(path, "no transparency", call=lambda p: write_photo(p, photo, photo.pixels))
    assert not any(tmp_path.iterdir())


def test_alpha_of_another_size_is_refused(tmp_path):
    photo = Photo(noise(4, 4, 3), noise(4, 4))
    refused(tmp_path / "x.png", "size", call=lambda p: write_photo(p, photo, noise(8, 8, 3)))


@pytest.mark.parametrize(
    ("mode", "shape", "has_alpha"),
    [
        ("1", (5, 6), False),
        ("L", (5, 6), False),
        ("LA", (5, 6), True),
        ("RGB", (5, 6, 3), False),
        ("RGBA", (5, 6, 3), True),
        ("P", (5, 6, 3), False),
    ],
)
def test_modes_become_grey_or_rgb_with_or_without_alpha(tmp_path, mode, shape, has_alpha):
    path = tmp_path / "x.png"
    image = Image.fromarray(noise(5, 6, 4)).convert("RGB" if mode == "P" else "RGBA").convert(mode)
    image.save(path)
    found = read_photo(path)
    assert found.pixels.shape == shape and (found.alpha is not None) == has_alpha
    assert np.array_equal(found.pixels, np.array(image.convert("L" if len(shape) == 2 else "RGB")))


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 100])])
def test_palettes_with_transparency_have_alpha(tmp_path, transparency):
    path = tmp_path / "x.png"
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None).convert("L")
    image = Image.frombytes("P", (3, 1), image.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path, transparency=transparency)
    found = read_photo(path)
    assert found.pixels.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert found.alpha.tolist() == [[255, 0, 255 if transparency == 1 else 100]]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_has_alpha(tmp_path, mode):
    path = tmp_path / "x.png"
    Image.new(mode, (3, 2), 5 if mode == "L" else (5, 5, 5)).save(path, transparency=5 if mode == "L" else (5, 5, 5))
    found = read_photo(path)
    assert not found.alpha.any() and (found.pixels == 5).all() and found.pixels.ndim == (2 if mode == "L" else 3)


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("CMYK", (6, 5), (0, 255, 255, 0)).save(path, icc_profile=ICC, quality=95)
    found = read_photo(path)
    assert found.icc is None and found.pixels.shape == (5, 6, 3)
    assert (found.pixels[..., 0] > 250).all() and (found.pixels[..., 1:] < 5).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright_and_keep_the_rest_of_exif(tmp_path, suffix, orientation):
    path, out = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(smooth(24, 40))
    stored.save(path, exif=tags(orientation), **({"lossless": True} if suffix == ".webp" else {}))
    tagged = Image.fromarray(np.array(stored))
    tagged.info["exif"] = exif.tobytes()
    if suffix == ".jpg":
        with Image.open(path) as file:
            expected = np.array(ImageOps.exif_transpose(file))
    else:
        expected = np.array(ImageOps.exif_transpose(tagged))
    photo = read_photo(path)
    assert photo.pixels.shape[:2] == ((40, 24) if orientation > 4 else (24, 40))
    assert np.array_equal(photo.pixels, expected)
    write_photo(out, photo, photo.pixels)
    with Image.open(out) as file:
        found = file.getexif()
        assert found.get(ORIENTATION, 1) == 1 and found[MAKER] == "Maker"
        assert found.get_ifd(EXIF_IFD)[TAKEN] == "2020:01:02 03:04:05"
        assert file.size == (photo.pixels.shape[1], photo.pixels.shape[0])
    assert np.array_equal(read_photo(out).pixels.shape, photo.pixels.shape)


@pytest.mark.parametrize("target", [".jpg", ".png", ".webp"])
def test_tags_of_a_tiff_file_reach_other_formats_without_its_layout(tmp_path, target):
    path, out = tmp_path / "x.tif", tmp_path / f"y{target}"
    Image.fromarray(smooth(8, 9)).save(path, exif=tags())
    photo = read_photo(path)
    write_photo(out, photo, photo.pixels)
    with Image.open(out) as file:
        assert file.getexif()[MAKER] == "Maker" and set(file.getexif()) <= {MAKER, EXIF_IFD, 282, 283, 296}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_colour_profiles_are_kept(tmp_path, suffix):
    path, out = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    Image.fromarray(smooth(8, 9)).save(path, icc_profile=ICC)
    photo = read_photo(path)
    write_photo(out, photo, photo.pixels)
    with Image.open(out) as file:
        assert file.info["icc_profile"] == ICC


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_photographs_without_metadata_get_none(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_photo(path, Photo(smooth(8, 9)), smooth(8, 9))
    photo = read_photo(path)
    assert photo.icc is None and photo.alpha is None
    assert photo.exif is None or suffix == ".tif"  # TIFF demands a resolution


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
def test_tiff_of_sixteen_bits_is_refused(tmp_path, shape):
    path = tmp_path / "x.tif"
    assert cv2.imwrite(str(path), noise(*shape, dtype=np.uint16))
    refused(path, "16-bit PNG")


def test_tiff_of_floating_point_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.ones((4, 5), np.float32)).save(path)
    refused(path, "16-bit PNG")


def test_colours_that_cannot_be_converted_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.frombytes("LAB", (4, 5), bytes(60)).save(path)
    refused(path, "LAB")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif", ".png"])
def test_several_pictures_in_one_file_are_refused(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    first, *rest = (Image.fromarray(noise(8, 9 + 0 * k, 3) // (k + 1)) for k in range(3))
    first.save(path, save_all=True, append_images=rest)
    refused(path, "3 pictures", "one by one")


def test_a_jpeg_with_a_preview_behind_it_is_read(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(smooth(8, 9)).save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert read_photo(path).pixels.shape == (8, 9, 3)


def test_jpeg_is_written_at_quality_95_with_all_its_chroma(tmp_path):
    path, pixels = tmp_path / "x.jpg", smooth(32, 48)
    write_photo(path, Photo(pixels), pixels)
    expected = io.BytesIO()
    Image.fromarray(pixels).save(expected, "JPEG", quality=95)
    with Image.open(path) as found, Image.open(expected) as other:
        assert JpegImagePlugin.get_sampling(found) == 0
        assert found.quantization == other.quantization


def test_grey_jpeg_stays_grey(tmp_path):
    path, pixels = tmp_path / "x.jpg", smooth(32, 48)[..., 0].copy()
    write_photo(path, Photo(pixels), pixels)
    assert read_photo(path).pixels.shape == (32, 48)


@pytest.mark.parametrize("name", ["x.gif", "x", "x.txt", "x.jpg.bak"])
def test_a_suffix_that_names_no_format_is_refused(tmp_path, name):
    refused(tmp_path / name, "suffix", call=lambda p: write_photo(p, Photo(noise(2, 2)), noise(2, 2)))


def test_folders_of_the_output_are_made(tmp_path):
    write_photo(tmp_path / "a" / "b" / "x.png", Photo(noise(2, 2)), noise(2, 2))
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["x.png"]


@pytest.mark.parametrize("below", ["x.png", "deeper/x.png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, below, dtype):
    (tmp_path / "file").write_text("I am no folder")
    refused(
        tmp_path / "file" / below,
        "cannot be written",
        call=lambda p: write_photo(p, Photo(noise(2, 2)), noise(2, 2, dtype=dtype)),
    )
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_place_of_the_output_stays(tmp_path):
    (tmp_path / "x.png").mkdir()
    refused(tmp_path / "x.png", "cannot be written", call=lambda p: write_photo(p, Photo(noise(2, 2)), noise(2, 2)))
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("x.webp", Photo(np.zeros((1, 16400, 3), np.uint8))),
        ("x.jpg", Photo(np.zeros((1, 66000, 3), np.uint8))),
        ("x.jpg", Photo(np.zeros((4, 4, 3), np.uint8), exif=b"Exif\0\0" + bytes(70000))),
    ],
)
def test_a_failed_encoding_leaves_the_file_that_was_there(tmp_path, name, photo):
    path = tmp_path / name
    path.write_bytes(b"before")
    refused(path, "cannot be written", call=lambda p: write_photo(p, photo, photo.pixels))
    assert path.read_bytes() == b"before" and [file.name for file in tmp_path.iterdir()] == [name]


def test_an_output_that_is_there_is_replaced(tmp_path):
    path, pixels = tmp_path / "x.png", noise(5, 6, 3)
    path.write_bytes(b"before")
    write_photo(path, Photo(pixels), pixels)
    assert np.array_equal(read_photo(path).pixels, pixels) and [file.name for file in tmp_path.iterdir()] == ["x.png"]
