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
KEPT_CHUNKS = (b"cICP", b"iCCP", b"eXIf", b"sRGB", b"gAMA", b"cHRM", b"pHYs")
GREY_WITH_ALPHA = 4
KINDS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF")
ORIENTATION = 0x0112
EXPOSURE, PLACE = 34665, 34853
DESCRIBING_TAGS = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, EXPOSURE, PLACE)
"""TIFF tags that tell about the photograph, not about the layout of the file."""


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

    Palettes and CMYK become RGB; grey stays grey; 16 bits stay 16 bits and need the ``io`` extra. Of a JPEG that
    carries further pictures (MPO: previews, depth maps), the first is read.

    Raises:
        FileNotFoundError: There is no such file.
        PhotoError: The file is no image, is damaged, or has a form that cannot be kept.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        if _is_deep_png(path):
            return _read_deep(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_form(path, image)
                image.load()
                return _split(ImageOps.exif_transpose(image), _exif(image))
    except UnidentifiedImageError:
        raise PhotoError(f"{path}: not an image, or of a kind that is not known ({_first_bytes(path)})") from None
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{path}: {error}") from None
    except PhotoError:
        raise
    except PermissionError as error:
        raise PhotoError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise PhotoError(f"{path}: damaged or cut short ({error})") from None


def write_photo(path: str | Path, photo: Photo, pixels: np.ndarray) -> None:
    """Write ``pixels`` with all that belongs to ``photo``; the file appears under its name only when it is complete.

    The suffix names the format. JPEG is written at quality 95 without chroma subsampling, everything else losslessly.
    BMP holds neither EXIF nor a colour profile.

    Raises:
        PhotoError: The format cannot hold the image, or the place cannot be written.
    """
    path = Path(path)
    photo = replace(photo, pixels=pixels)
    check_format(path, photo)
    if photo.alpha is not None and photo.alpha.shape != pixels.shape[:2]:
        raise PhotoError(f"{path}: an image with transparency cannot change its size")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if photo.pixels.dtype == np.uint16:
            temporary.write_bytes(_encode_deep(path, photo))
        else:
            _save(path, temporary, photo)
        os.replace(temporary, path)
    except PhotoError:
        raise
    except (OSError, ValueError) as error:
        raise PhotoError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder itself is not there
            pass


def check_format(path: str | Path, photo: Photo) -> None:
    """Refuse a file name whose format cannot hold the photograph, before any work is done.

    Raises:
        PhotoError: The suffix is unknown, or its format lacks transparency or 16 bits a channel.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise PhotoError(f"{path}: the suffix names the format, one of {', '.join(SUFFIXES)}")
    if photo.pixels.dtype == np.uint16:
        if suffix != ".png":
            raise PhotoError(f"{path}: 16 bits a channel are written as PNG; name the output .png")
        _opencv(Path(path))
    if photo.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        raise PhotoError(f"{path}: {'BMP' if suffix == '.bmp' else 'JPEG'} has no transparency; write a PNG instead")


def _check_form(path: Path, image: Any) -> None:
    if image.format not in KINDS:
        raise PhotoError(f"{path}: {image.format} files are not read, only {', '.join(KINDS)}; convert it to PNG")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise PhotoError(f"{path}: holds {image.n_frames} pictures; restore them one by one")
    deep = image.format == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8
    if deep or image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise PhotoError(
            f"{path}: more than 8 bits a channel in {image.format} ({image.mode}); convert it to a 16-bit PNG"
        )
    if image.mode in ("LAB", "HSV"):
        raise PhotoError(f"{path}: colours are stored as {image.mode}; convert it to RGB")


def _exif(image: Any) -> bytes | None:
    tags = image.getexif()
    for tag in list(tags):
        if tag == ORIENTATION or (image.format == "TIFF" and tag not in DESCRIBING_TAGS):
            del tags[tag]
    return tags.tobytes() if len(tags) else None


def _split(image: Any, exif: bytes | None) -> Photo:
    about: dict[str, Any] = {"exif": exif, "icc": image.info.get("icc_profile")}
    see_through = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("CMYK", "YCbCr"):
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
    elif suffix == ".webp":
        options |= {"lossless": True, "exact": True}
    elif suffix in (".tif", ".tiff"):
        options |= {} if _has_directories(photo.exif) else {"compression": "tiff_adobe_deflate"}
    elif suffix == ".bmp":
        options = {}
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    Image.fromarray(pixels).save(temporary, **options)


def _has_directories(exif: bytes | None) -> bool:
    """Whether EXIF has tables of its own, of the exposure or the place, which Pillow writes to plain TIFF alone."""
    from PIL import Image

    tags = Image.Exif()
    tags.load(exif or b"")
    return bool({EXPOSURE, PLACE} & set(tags))


def _is_deep_png(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == PNG and len(head) == 26 and head[24] == 16


def _read_deep(path: Path) -> Photo:
    cv2 = _opencv(path)
    data = path.read_bytes()
    found = _chunks(data)
    if b"acTL" in dict(found):
        raise PhotoError(f"{path}: holds several pictures; restore them one by one")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16 or found[-1][0] != b"IEND":
        raise PhotoError(f"{path}: damaged or cut short (16-bit PNG)")
    alpha = pixels[..., 3] if pixels.ndim == 3 and pixels.shape[2] == 4 else None
    if pixels.ndim == 2 and b"tRNS" in dict(found):  # one grey level is transparent
        alpha = np.where(pixels == int.from_bytes(dict(found)[b"tRNS"], "big"), 0, 65535).astype(np.uint16)
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if data[25] == GREY_WITH_ALPHA else pixels[..., 2::-1]
    kept = {kind: body for kind, body in found if kind in KEPT_CHUNKS}
    turn = _take_orientation(kept)
    return Photo(_turned(pixels, turn), None if alpha is None else _turned(alpha, turn), chunks=tuple(kept.items()))


def _take_orientation(chunks: dict[bytes, bytes]) -> int:
    from PIL import Image

    tags = Image.Exif()
    tags.load(b"Exif\0\0" + chunks.get(b"eXIf", b""))
    turn = tags.pop(ORIENTATION, 1)
    if turn != 1:
        del chunks[b"eXIf"]
        if len(tags):
            chunks[b"eXIf"] = tags.tobytes().removeprefix(b"Exif\0\0")
    return turn


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels that EXIF says to show turned or mirrored, upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _encode_deep(path: Path, photo: Photo) -> bytes:
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
        if not (kind == b"iCCP" and photo.pixels.ndim == 2 and photo.alpha is not None)  # grey's, of what is now RGBA
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
