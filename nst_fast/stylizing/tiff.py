"""TIFF by its own tags, where Pillow would show a preview, a negative, scrambled or dark pixels, or nothing."""

from __future__ import annotations

import logging
import zlib
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from nst_fast.stylizing.formats import NotSupportedError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MIN_IS_WHITE, GREY, RGB, CMYK, LAB, SENSOR, LINEAR_SENSOR = 0, 1, 2, 5, 8, 32803, 34892
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # SampleFormat
SMALLER = 0b101  # of the kinds of a picture: a preview, or a mask
REDUCED, PREMULTIPLIED, UNPREMULTIPLIED = 1, 1, 2
ORIENTATION, PROFILE, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, DNG_VERSION = 274, 34675, 282, 283, 296, 50706
WHITES = (1, 255, 65535)  # no file says what white is in floating point: 1, or what 8 or 16 bits have
DEFLATE = (8, 32946)
MOST_PAGES, MOST_CHANNELS = 64, 64
MORE_PAGES = "nst_fast.more_pages"  # where an opened picture keeps whether there are any
CAMERAS_RAW = "it is a camera's raw file, which is not developed here; export it as TIFF or JPEG"


logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of damaged files, they are refused with


def is_tiff(file: BinaryIO) -> bool:
    """Return whether a file that is read from its start is a TIFF of any kind."""
    start = file.read(4)
    file.seek(0)
    return start in MAGIC


def read_tiff(file: BinaryIO, trusted: bool = True) -> tuple[Image.Image | None, bool]:
    """Return the full picture of a TIFF that Pillow would not show right, and whether there are other pages behind it.

    None where Pillow does, of whose first picture the second then speaks.

    Args:
        file: at its start.
        trusted: whether Pillow can open it at all.

    Raises NotSupportedError with the reason where it is not to be shown here.
    """
    import tifffile  # here: most pictures are of other formats

    file.seek(8)
    camera = file.read(2) == b"CR"  # Canon's
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            pages = every_page(tiff)
            if camera or any(p.photometric in (SENSOR, LINEAR_SENSOR) or DNG_VERSION in p.tags for p in pages):
                raise NotSupportedError(CAMERAS_RAW)
            page = next((p for p in pages if not p.subfiletype & REDUCED), pages[0])
            others: Any = islice(tiff.pages, MOST_PAGES)
            more = any(p.offset != page.offset and not p.subfiletype & SMALLER for p in others)
            if trusted and page is pages[0] and pillow_is_right(page):
                return None, more
            return to_image(tiff, page), more
    except (NotSupportedError, Image.DecompressionBombError, MemoryError):
        raise
    except Exception as error:  # damaged in whatever way
        if trusted:  # Pillow's own message is the better one
            return None, False
        raise NotSupportedError(f"its TIFF tags are not supported: {str(error) or type(error).__name__}") from error


def every_page(tiff: Any) -> list[Any]:
    """Return the first picture of a TIFF, and where that may be a preview those below and behind it."""
    first = tiff.pages[0]
    below = [] if first.pages is None else list(islice(first.pages, MOST_PAGES))
    behind = islice(tiff.pages, 1, MOST_PAGES) if below or first.subfiletype & REDUCED else ()
    return [first, *below, *behind]


def pillow_is_right(page: Any) -> bool:
    """Return whether Pillow shows a picture of these tags as it is meant."""
    bits, samples, planar = bits_of(page), page.samplesperpixel, page.planarconfig == 2 and page.samplesperpixel > 1
    if page.sampleformat == SIGNED and page.photometric != LAB and (bits, samples) != (32, 1):
        return False
    if page.photometric == MIN_IS_WHITE and bits > 8:
        return False
    if bits in (1, 2, 4):
        return samples == 1
    if bits == 16 and planar and page.compression == 1:
        return False
    return bits == 8 or (bits == 16 and page.sampleformat == UNSIGNED) or one_signed_or_float(page, bits)


def one_signed_or_float(page: Any, bits: int) -> bool:
    """Return whether a picture is of the numbers of 32 bits that Pillow holds; of unsigned ones it makes negative."""
    return bits == 32 and page.samplesperpixel == 1 and page.sampleformat in (SIGNED, FLOAT)


def bits_of(page: Any) -> int:
    """Return the bits a sample has; raises NotSupportedError where they differ."""
    bits = page.bitspersample
    if isinstance(bits, tuple):
        if len(set(bits)) > 1:
            raise NotSupportedError(f"its channels have {', '.join(map(str, bits))} bits; the same for all is needed")
        bits = bits[0]
    return int(bits)


def to_image(tiff: Any, page: Any) -> Image.Image:
    """Return a picture of a TIFF, upright, of mode L, LA, RGB, RGBA or CMYK."""
    width, height = page.imagewidth, page.imagelength
    if not width * height or page.samplesperpixel > MOST_CHANNELS:
        raise NotSupportedError(f"it claims {width}×{height} pixels of {page.samplesperpixel} channels")
    ends = (start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=False))
    if max(ends, default=0) > tiff.filehandle.size or not page.dataoffsets:
        raise NotSupportedError("it is cut short: not all of its pixels are there")
    pixels = width * height * max(1, page.samplesperpixel / 4)  # of the memory that four channels take
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width}×{height} pixels")
    colours = {MIN_IS_WHITE: 1, GREY: 1, RGB: 3, CMYK: 4}.get(page.photometric)
    if colours is None:
        name = getattr(page.photometric, "name", page.photometric)
        raise NotSupportedError(f"TIFF with colours of kind {name} is not supported in this layout")
    values = to_bytes(read_samples(tiff, page), page)
    if values.shape[2] < colours:
        raise NotSupportedError(f"it has {values.shape[2]} channels; {colours} are needed")
    if page.photometric == MIN_IS_WHITE:
        values[..., 0] = 255 - values[..., 0]
    kind = next(iter(page.extrasamples), 0) if colours != 4 else 0
    image = with_extra(values, colours, kind)
    if PROFILE in page.tags:
        image.info["icc_profile"] = bytes(page.tags[PROFILE].value)
    if (dpi := resolution(page)) is not None:
        image.info["dpi"] = dpi
    if ORIENTATION in page.tags:
        image.getexif()[ORIENTATION] = int(page.tags[ORIENTATION].value)
    image.format = "TIFF"
    return image


def with_extra(values: np.ndarray, colours: int, kind: int) -> Image.Image:
    """Return uint8 (H, W, channels) as a picture, with alpha where the first channel behind the colours is that."""
    image = Image.fromarray(np.ascontiguousarray(values[..., 0] if colours == 1 else values[..., : min(colours, 3)]))
    if colours == 4:
        return Image.frombytes("CMYK", image.size, np.ascontiguousarray(values[..., :4]).tobytes())
    if kind not in (PREMULTIPLIED, UNPREMULTIPLIED) or values.shape[2] <= colours:
        return image
    alpha = Image.fromarray(np.ascontiguousarray(values[..., colours]))
    if kind == PREMULTIPLIED:
        whole = np.dstack([np.asarray(image.convert("RGB")), np.asarray(alpha)])
        return Image.frombytes("RGBa", image.size, whole.tobytes()).convert("RGBA")
    image.putalpha(alpha)
    return image


def resolution(page: Any) -> tuple[float, float] | None:
    """Return a picture's dots an inch across and down, or None where it does not say."""
    try:
        across, down = (n / d for n, d in (page.tags[tag].value for tag in (X_RESOLUTION, Y_RESOLUTION)))
        unit = page.tags[RESOLUTION_UNIT].value if RESOLUTION_UNIT in page.tags else 2
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return {2: (across, down), 3: (across * 2.54, down * 2.54)}.get(int(unit))


def read_samples(tiff: Any, page: Any) -> np.ndarray:
    """Return a picture's samples as they are stored, (H, W, channels); raises NotSupportedError."""
    bits = bits_of(page)
    try:
        if bits in (8, 16, 32, 64):
            data = page.asarray().reshape(page.shaped)  # (planes, depth, H, W, channels of a plane)
            if data.shape[1] != 1:
                raise NotSupportedError("it is a volume, not a picture")
            planes, height, width, channels = data[:, 0].shape
            return data[:, 0].transpose(1, 2, 3, 0).reshape(height, width, channels * planes)
        return unpack(tiff, page, bits)
    except ImportError as error:
        raise NotSupportedError(f"TIFF with compression {page.compression} is not supported in this layout") from error
    except (ValueError, KeyError) as error:
        if "imagecodecs" in str(error):
            name = getattr(page.compression, "name", page.compression)
            raise NotSupportedError(f"{name}-compressed TIFF of {bits} bits is not supported in this layout") from error
        raise


def unpack(tiff: Any, page: Any, bits: int) -> np.ndarray:
    """Return samples of other than 8, 16 or 32 bits, whose rows start at whole bytes."""
    if page.is_tiled or page.compression not in (1, *DEFLATE) or page.predictor != 1 or not 1 < bits < 32:
        raise NotSupportedError(
            f"TIFF of {bits} bits a sample is supported without tiles and without compression alone"
        )
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    a_row = page.imagewidth * (page.samplesperpixel // planes)
    row_bytes = -(-a_row * bits // 8)
    strips = []
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        tiff.filehandle.seek(start)
        strip = tiff.filehandle.read(length)
        whole = planes * page.imagelength * row_bytes
        strips.append(zlib.decompressobj().decompress(strip, whole) if page.compression in DEFLATE else strip)
    packed = np.frombuffer(b"".join(strips), np.uint8)
    if len(packed) < planes * page.imagelength * row_bytes:
        raise NotSupportedError("it is cut short: not all of its pixels are there")
    packed = packed[: planes * page.imagelength * row_bytes].reshape(planes * page.imagelength, row_bytes)
    digits = np.unpackbits(packed, axis=1)[:, : a_row * bits].reshape(len(packed), a_row, bits)
    values = np.zeros(digits.shape[:2], np.uint32)
    for number in range(bits):
        values = values << np.uint32(1) | digits[..., number]
    shaped = values.reshape(planes, page.imagelength, page.imagewidth, -1)
    return shaped.transpose(1, 2, 3, 0).reshape(page.imagelength, page.imagewidth, page.samplesperpixel)


def to_bytes(values: np.ndarray, page: Any) -> np.ndarray:
    """Return samples as uint8 whose white is 255; raises NotSupportedError for numbers that are no light."""
    if page.sampleformat == UNSIGNED:
        white = float(2 ** bits_of(page) - 1)
        if white > WHITES[-1] >= values.max(initial=0):  # 16 bits in more of them
            white = WHITES[-1]
        return np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8)
    if page.sampleformat == FLOAT:
        finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
        white = next((w for w in WHITES if finite.max(initial=0) <= w), finite.max(initial=0))
        return np.rint(finite / white * 255).clip(0, 255).astype(np.uint8)
    raise NotSupportedError("its samples are signed or complex numbers; a picture of unsigned ones is needed")
