"""Photographs of sixteen bits a channel."""

import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from slicescan.engine.photos import Photo, read_photo, write_photo
from tests.engine.test_photos import ICC, MAKER, ORIENTATION, noise, refused, smooth, tags


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(pixels, colour, *extra):
    """A 16-bit PNG, written down here byte by byte."""
    h, w = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("cut", [40, 200, -20, -12])
def test_a_deep_png_cut_short_is_refused(tmp_path, cut):
    path = tmp_path / "x.png"
    path.write_bytes(deep_png(noise(20, 30, 3, dtype=np.uint16), 2)[:cut])
    refused(path, "damaged or cut short")


COLOURS = {0: (5, 7), 2: (5, 7, 3), 4: (5, 7, 2), 6: (5, 7, 4)}


@pytest.mark.parametrize("colour", COLOURS)
def test_sixteen_bits_come_back_equal_to_the_bit(tmp_path, colour):
    path, out = tmp_path / "x.png", tmp_path / "y.png"
    stored = noise(*COLOURS[colour], dtype=np.uint16)
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(ICC))
    path.write_bytes(deep_png(stored, colour, *([profile] if colour in (2, 6) else [])))
    photo = read_photo(path)
    colours = {0: stored, 2: stored, 4: stored[..., 0], 6: stored[..., :3]}[colour]
    assert photo.pixels.dtype == np.uint16 and np.array_equal(photo.pixels, colours)
    assert photo.alpha is None if colour in (0, 2) else np.array_equal(photo.alpha, stored[..., -1])
    write_photo(out, photo, photo.pixels)
    written = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16
    if colour in (2, 6):
        assert np.array_equal(written[..., [2, 1, 0, 3][: written.shape[2]]], stored)
        with Image.open(out) as file:
            assert file.info["icc_profile"] == ICC
    else:
        assert np.array_equal(written if colour == 0 else written[..., [0, 3]], stored)


@pytest.mark.parametrize("colour", [0, 2])
def test_a_transparent_colour_of_sixteen_bits_has_alpha(tmp_path, colour):
    path, stored = tmp_path / "x.png", np.full(COLOURS[colour], 700, np.uint16)
    stored[0, 0] = 300
    key = struct.pack(">H", 300) * (1 if colour == 0 else 3)
    path.write_bytes(deep_png(stored, colour, chunk(b"tRNS", key)))
    photo = read_photo(path)
    assert photo.alpha[0, 0] == 0 and (photo.alpha.ravel()[1:] == 65535).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bits_are_turned_as_eight_are(tmp_path, orientation):
    deep, plain, out = tmp_path / "x.png", tmp_path / "y.png", tmp_path / "z.png"
    pixels = smooth(5, 7)
    Image.fromarray(pixels).save(plain, exif=tags(orientation))
    body = tags(orientation).removeprefix(b"Exif\0\0")
    deep.write_bytes(deep_png(pixels.astype(np.uint16) * 257, 2, chunk(b"eXIf", body)))
    photo = read_photo(deep)
    assert np.array_equal(photo.pixels // 257, read_photo(plain).pixels)
    write_photo(out, photo, photo.pixels)
    with Image.open(out) as file:
        assert file.getexif().get(ORIENTATION, 1) == 1 and file.getexif()[MAKER] == "Maker"


def test_sixteen_bits_without_opencv_name_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(deep_png(noise(5, 7, dtype=np.uint16), 0))
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused(path, "'io' extra", "slicescan[io]")
    refused(tmp_path / "y.png", "'io' extra", call=lambda p: write_photo(p, Photo(noise(2, 2)), np.ones((2, 2), "u2")))


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".bmp"])
def test_sixteen_bits_are_written_as_png_alone(tmp_path, suffix):
    pixels = noise(3, 4, dtype=np.uint16)
    refused(tmp_path / f"x{suffix}", "16 bits", ".png", call=lambda p: write_photo(p, Photo(pixels), pixels))
    assert not any(tmp_path.iterdir())
