"""Photographs on disk: pixels with all that belongs to them, read with clear errors, written whole or not at all."""

import os
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""Suffixes that make a name that of an image."""

PNG = b"\x89PNG\r\n\x1a\n"
KEPT_CHUNKS = (b"iCCP", b"eXIf", b"sRGB", b"gAMA", b"cHRM", b"pHYs")


class PhotoError(ValueError):
    """A file cannot be read or written as a photograph; the message names it and says why."""


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Attributes:
        pixels: ``(h, w, 3)``, or ``(h, w)`` for grey, uint8 or uint16, upright.
        alpha: ``(h, w)`` in the dtype of ``pixels``, or None.
        exif: EXIF block without orientation, or None.
        icc: Colour profile, or None.
        chunks: Chunks of a 16-bit PNG file that are copied as they are.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes | None = None
    icc: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()


def read_photo(path: str | Path) -> Photo:
    """Read a photograph, turned upright.

    Palettes and CMYK become RGB; grey stays grey; 16 bits stay 16 bits and need the ``io`` extra.

    Raises:
        FileNotFoundError: There is no such file.
        PhotoError: The file is no image, is damaged, or has a form that cannot be kept.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if _is_deep_png(path):
        return _read_deep(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_form(path, image)
                image.load()
                upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise PhotoError(f"{path}: not an image, or of a kind that is not known ({_first_bytes(path)})") from None
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        if isinstance(error, PhotoError):
            raise
        raise PhotoError(f"{path}: damaged or cut short ({error})") from None
    return _split(upright)


def write_photo(path: str | Path, photo: Photo, pixels: np.ndarray) -> None:
    """Write ``pixels`` with all that belongs to ``photo``; the file appears under its name only when it is complete.

    The suffix names the format. JPEG is written at quality 95 without chroma subsampling, everything else losslessly.

    Raises:
        PhotoError: The format cannot hold the image, or the place cannot be written.
    """
    path = Path(path)
    photo = replace(photo, pixels=pixels)
    if path.suffix.lower() not in SUFFIXES:
        raise PhotoError(f"{path}: the suffix names the format, one of {', '.join(SUFFIXES)}")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if photo.pixels.dtype == np.uint16:
            temporary.write_bytes(_encode_deep(path, photo))
        else:
            _save(path, temporary, photo)
        os.replace(temporary, path)
    except OSError as error:
        raise PhotoError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder itself is not there
            pass


def _check_form(path: Path, image: Any) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise PhotoError(f"{path}: holds {image.n_frames} pictures; restore them one by one")
    deep = image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8
    if deep or image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise PhotoError(
            f"{path}: more than 8 bits a channel in {image.format} ({image.mode}); convert it to a 16-bit PNG"
        )


def _split(image: Any) -> Photo:
    exif = image.getexif()
    exif.pop(0x0112, None)
    about: dict[str, Any] = {"exif": exif.tobytes() if len(exif) else None, "icc": image.info.get("icc_profile")}
    see_through = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        about["icc"] = None  # it describes another colour space
    if not see_through:
        return Photo(np.array(image.convert("L" if grey else "RGB")), **about)
    pixels = np.array(image.convert("LA" if grey and image.mode != "1" else "RGBA"))
    colours = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return Photo(np.ascontiguousarray(colours), pixels[..., -1].copy(), **about)


def _save(path: Path, temporary: Path, photo: Photo) -> None:
    from PIL import Image

    pixels, suffix = photo.pixels, path.suffix.lower()
    options: dict[str, Any] = {"icc_profile": photo.icc}
    if photo.exif:
        options["exif"] = photo.exif
    if suffix in (".jpg", ".jpeg"):
        options |= {"quality": 95, "subsampling": 0} if pixels.ndim == 3 else {"quality": 95}
        if photo.alpha is not None:
            raise PhotoError(f"{path}: JPEG has no transparency; write a PNG instead")
    elif suffix == ".webp":
        options |= {"lossless": True, "exact": True}
    elif suffix in (".tif", ".tiff"):
        options["compression"] = "tiff_adobe_deflate"
    elif suffix == ".bmp":
        options = {}
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    Image.fromarray(pixels).save(temporary, **options)


def _is_deep_png(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == PNG and len(head) == 26 and head[24] == 16


def _read_deep(path: Path) -> Photo:
    cv2 = _opencv(path)
    data = path.read_bytes()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        chunks = tuple((kind, body) for kind, body in _chunks(data) if kind in KEPT_CHUNKS)
    except (cv2.error, struct.error):
        pixels = None
    if pixels is None or pixels.dtype != np.uint16:
        raise PhotoError(f"{path}: damaged or cut short (16-bit PNG)")
    if pixels.ndim == 2:
        return Photo(pixels, chunks=chunks)
    colours = np.ascontiguousarray(pixels[..., 2::-1])
    return Photo(colours, pixels[..., 3].copy() if pixels.shape[2] == 4 else None, chunks=chunks)


def _encode_deep(path: Path, photo: Photo) -> bytes:
    if path.suffix.lower() != ".png":
        raise PhotoError(f"{path}: 16 bits a channel are written as PNG; name the output .png")
    cv2 = _opencv(path)
    pixels = photo.pixels if photo.pixels.ndim == 2 else photo.pixels[..., ::-1]
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha] if pixels.ndim == 3 else [pixels, pixels, pixels, photo.alpha])
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not done:
        raise PhotoError(f"{path}: cannot be encoded as a 16-bit PNG")
    data = encoded.tobytes()
    extra = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in photo.chunks
    )
    return data[:33] + extra + data[33:]  # behind the signature and IHDR


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], len(PNG)
    while place + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        found.append((kind, data[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def _opencv(path: Path) -> Any:
    try:
        import cv2
    except ImportError:
        raise PhotoError(
            f"{path}: 16 bits a channel need the 'io' extra, and would be cut to 8 without it: "
            f"pip install 'slicescan[io]'"
        ) from None
    return cv2


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "the file is empty"
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return "it looks like text" if text else f"it begins with {head[:8]!r}"
