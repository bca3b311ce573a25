"""Pictures in and out: PIL and numpy only. A picture is uint8 RGB (H, W, 3) in sRGB."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.stylizing.colour import CODE_POINTS, to_srgb
from nst_fast.stylizing.containers import code_points, without_damage
from nst_fast.stylizing.exif import CARRIED_INFO, ORIENTATION, into_tiff, is_adobe_rgb, read_directory
from nst_fast.stylizing.formats import HEIC, READ, NotSupportedError, format_of
from nst_fast.stylizing.tiff import CAMERAS_RAW, MORE_PAGES, is_tiff, read_tiff

with contextlib.suppress(ImportError):  # an extra of its own: its wheels hold an encoder under the GPL
    from pillow_heif import register_heif_opener

    register_heif_opener()

logger = logging.getLogger(__name__)
# From 89 megapixels on Pillow warns on standard error, from 179 on it refuses: here it does the latter alone.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

METADATA = ("exif", "dpi")  # Pillow's options
LARGEST_ICO = 256  # px, of a side
LONGEST_PAINTING = 16  # times its short side; at a painting's short side a thread would be endless
# What files begin with that are called like pictures, or are pictures of kinds that are not read.
STARTS = {
    b"%PDF": "it is a PDF document",
    b"%!PS": "it is a PostScript document",
    b"\x00\x05\x16\x07": "it is what a Mac keeps beside a file, not the picture",
    b"\xff\x0a": "it is a JPEG XL picture, which is not read here",
    b"\0\0\0\x0cJXL ": "it is a JPEG XL picture, which is not read here",
    b"FUJIFILM": CAMERAS_RAW,
    b"\0MRM": CAMERAS_RAW,
    b"FOVb": CAMERAS_RAW,
    b"IIRO": CAMERAS_RAW,
    b"IIU\0": CAMERAS_RAW,
    b"<svg": "it is an SVG drawing, which is not read here",
    b"<?xml": "it is an XML document",
    b"<!DOCTYPE": "it is a web page, not the picture that it shows",
    b"<html": "it is a web page, not the picture that it shows",
    b"PK\x03\x04": "it is a ZIP archive",
    b"\x1f\x8b": "it is compressed by gzip",
    b"7z\xbc\xaf": "it is a 7z archive",
    b"Rar!": "it is a RAR archive",
    b"RIFF": "it is a video or a sound, not a picture",
    b"\x1a\x45\xdf\xa3": "it is a video, not a picture",
    b"v/1\x01": "it is an OpenEXR picture, which is not read here",
    b"#?RADIANCE": "it is a Radiance HDR picture, which is not read here",
    b"P7\n": "it is a PAM picture, which is not read here",
    b"gimp xcf": "it is a file of GIMP's, which is not read here; export it as PNG",
    b"BPG\xfb": "it is a BPG picture, which is not read here",
    b"AT&TFORM": "it is a DjVu document",
    b"\xd7\xcd\xc6\x9a": "it is a drawing of Windows' (WMF), which is not read here",
    b"L\0\0\0\x01\x14\x02\0": "it is a shortcut of Windows', not the picture that it points to",
    b"version https://git-lfs": "it is what Git LFS leaves in place of the picture: git lfs pull fetches it",
}
# Brands of the files that begin with a box called ftyp.
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"heim", b"heis"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "it is an AVIF picture, which this Pillow does not read"),
    b"crx ": CAMERAS_RAW,
}
ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # what Pillow reads an orientation from
TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_readable(path: str | Path) -> bool:
    """Return whether there is a file or a pipe of a name; unlike pathlib's tests this never raises."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def open_image(source: str | Path | io.BytesIO) -> Image.Image:
    """Return a picture as it is stored, from a file, a pipe or memory, yet to be decoded where Pillow does that.

    A TIFF is read by its own tags where Pillow would not show what it holds. Raises whatever decoders raise.
    """
    if isinstance(source, str | Path) and stat.S_ISFIFO(os.stat(source).st_mode):  # noqa: PTH116
        source = io.BytesIO(Path(source).read_bytes())
    with contextlib.nullcontext(source) if isinstance(source, io.BytesIO) else Path(source).open("rb") as file:
        if is_tiff(file):
            return open_tiff(file, source)
        sound, code = without_damage(file) or source, code_points(file)
        file.seek(0)
    Image.init()
    opened = Image.open(sound, formats=[name for name in Image.ID if name in READ])  # its order: some accept anything
    opened.info[CODE_POINTS] = code
    return opened


def open_tiff(file: BinaryIO, source: str | Path | io.BytesIO) -> Image.Image:
    """Return the full picture of a TIFF, with its EXIF data as it is stored."""
    try:
        opened = Image.open(source, formats=("TIFF",))
    except UnidentifiedImageError:
        opened = None
    try:
        file.seek(0)
        image, more = read_tiff(file, trusted=opened is not None)
    except BaseException:
        if opened is not None:
            opened.close()
        raise
    if image is not None and opened is not None:
        opened.close()
    found = image or opened
    if found is None:
        raise NotSupportedError("its TIFF tags are not supported")
    found.info[MORE_PAGES] = more
    with contextlib.suppress(ValueError, struct.error, OSError):
        file.seek(0)
        found.info[CARRIED_INFO] = read_directory(file)
    file.seek(0)
    return found


def upright(image: Image.Image) -> Image.Image:
    """Return a picture with its EXIF orientation applied; unlike Pillow's, whatever else is damaged in the EXIF."""
    try:
        method = TO_UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to refuse a picture
        method = None
    if method is None:
        return image
    turned = image.transpose(method)
    for name in ORIENTED:  # or it would be turned once more
        turned.info.pop(name, None)
    return turned


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a picture as 8-bit RGB in sRGB and its alpha channel (mode L) or None.

    EXIF orientation is applied, colours converted that a profile or the metadata describe, 16 bits scaled to 8.
    """
    image.load()
    kind, adobe, image = image.format, is_adobe_rgb(image), upright(image)
    info, alpha = image.info, None
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        # Pillow clips 16 bits to 8 instead of scaling them.
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        # No format says what white is in floating point: 1, or what 8 or 16 bits have. Nor does one with 32 bits.
        whites = (1, 255, 65535) if image.mode == "F" else (65535,)
        white = next((w for w in whites if values.max() <= w), values.max())
        if isinstance(hidden := image.info.get("transparency"), int):
            alpha = Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))
        image = Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))
    elif image.mode in ("LA", "La"):  # whose profile is of grey
        grey_alpha = image.convert("LA") if image.mode == "La" else image
        image, alpha = grey_alpha.getchannel("L"), grey_alpha.getchannel("A")
    elif image.mode in ("RGBA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha, image = rgba.getchannel("A"), rgba.convert("RGB")
    if alpha is not None and kind == "TGA" and not alpha.getextrema()[1]:
        alpha = None  # a pixel has 32 bits, of which the last 8 are not used
    if image.mode == "P":
        image = image.convert("RGB")
    image = to_srgb(image, info, adobe)
    # A picture may be gigabytes: no copy where none is needed.
    return image if image.mode == "RGB" else image.convert("RGB"), alpha


def fill_hidden(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Return an RGB picture with the pixels that its alpha channel hides filled from the visible ones around them.

    Programs leave anything there, and a network sees it. Halved until nothing is hidden any more, and back (push-pull:
    Gortler et al. 1996). A picture of which nothing is visible is returned as it is.
    """
    low, high = alpha.getextrema()
    if low or not high:
        return image
    finer = image.copy()
    finer.putalpha(alpha.point(lambda a: 255 * (a > 0)))
    if not finer.getchannel("A").getextrema()[0] and max(finer.size) > 1:
        coarser = finer.convert("RGBa").reduce(2).convert("RGBA")
        coarse = fill_hidden(coarser.convert("RGB"), coarser.getchannel("A"))
        around = coarse.resize(image.size, Image.Resampling.BILINEAR)
        return Image.composite(image, around, finer.getchannel("A"))
    return image


def over_white(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Return an RGB picture laid over white where its alpha channel says so."""
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB in sRGB: EXIF orientation applied, profile converted, alpha laid over white."""
    return over_white(*split_alpha(image))


def reads_heic() -> bool:
    """Return whether the library is there that decodes HEIC."""
    return "HEIF" in Image.OPEN


def why_unreadable(path: str | Path | io.BytesIO, error: Exception) -> str:
    """Return what a user may be told about a picture that cannot be decoded."""
    if not isinstance(error, UnidentifiedImageError):
        told = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        return told or type(error).__name__
    start = b""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(path, io.BytesIO) or os.path.isfile(path):
            with contextlib.nullcontext(path) if isinstance(path, io.BytesIO) else Path(path).open("rb") as file:
                file.seek(0)
                start = file.read(32)
            if not start:
                return "it is empty"
    if not start.strip(b"\0") and start:
        return "it holds nothing but zeros, as after a broken copy"
    heic = BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
    if not reads_heic() and (heic == "HEIC" or (not start and Path(str(path)).suffix.lower() in HEIC)):
        return "HEIC is read where pillow-heif is installed: pip install pillow-heif"
    if start[4:8] == b"ftyp" and heic != "HEIC":
        return heic or "it is a video, not a picture"
    if (kind := accepted_as(start)) is not None:
        return f"it is {kind}, damaged or of a kind that is not read here"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if (reason := next((r for begin, r in STARTS.items() if text.startswith(begin.lower())), None)) is not None:
        return reason
    if (
        (letters := "".join(text.decode(errors="replace")[:-1].split()))
        and letters.isprintable()
        and "\ufffd" not in letters
    ):
        return "it is text, not a picture"
    return "it is in no format that is known here"


def accepted_as(start: bytes) -> str | None:
    """Return the format that a file of such a start is of, as far as Pillow can tell; None where it cannot."""
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        with contextlib.suppress(Exception):  # they expect a longer one
            if name in READ and accept is not None and accept(start[:16]) is True:
                return name
    return None


def load_image(source: str | Path | bytes | io.BytesIO) -> Image.Image:
    """Read a picture as 8-bit sRGB, from a file or from memory.

    Raises UserError where it is missing or cannot be decoded.
    """
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    name = "the picture" if isinstance(source, io.BytesIO) else str(source)
    if not isinstance(source, io.BytesIO) and not is_readable(source):
        raise UserError(f"no picture at {name}")
    try:
        with open_image(source) as image:
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large to be opened safely: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they please
        raise UserError(f"{name} cannot be read as a picture: {why_unreadable(source, error)}") from error


def check_strength(strength: float) -> None:
    """Raise UserError for a strength that is not from 0 to 1."""
    if not 0 <= strength <= 1:
        raise UserError(f"the strength is {strength}; it must be from 0, the photograph, to 1, the stylized picture")


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Return the picture with its short side at the given length in pixels, its proportions kept."""
    ratio = short_side / min(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


def resize_painting(painting: Image.Image, short_side: int, name: str = "the painting") -> Image.Image:
    """Return a painting with its short side at the given length in pixels.

    Raises UserError where it is longer than `LONGEST_PAINTING` times its short side.
    """
    if max(painting.size) > LONGEST_PAINTING * min(painting.size):
        got = "×".join(map(str, painting.size))
        raise UserError(f"{name} is {got} px; one side may be {LONGEST_PAINTING} times the other: crop it")
    return resize_short_side(painting, short_side)


def resize_long_side(image: Image.Image, long_side: int) -> Image.Image:
    """Return the picture with its long side at the given length in pixels, its proportions kept."""
    ratio = long_side / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


def keep_colours(stylized: Image.Image, photograph: Image.Image) -> Image.Image:
    """Return a picture with the luminance of one and the chroma of another of the same size, by BT.601.

    Chroma is R − Y and B − Y, so the difference in luminance is added to every channel of the photograph.
    """
    photo = np.asarray(photograph, np.float32)
    difference = (np.asarray(stylized, np.float32) - photo) @ np.array([0.299, 0.587, 0.114], np.float32)
    return Image.fromarray((photo + difference[..., None]).clip(0, 255).round().astype(np.uint8))


def encode_image(image: Image.Image, suffix: str, quality: int = 95, **options: Any) -> bytes:
    """Return a picture in the format of a suffix; JPEG without chroma subsampling. ``options`` are Pillow's.

    Raises UserError where the format is unknown or cannot hold the picture.
    """
    kind = format_of(suffix).name
    if kind in ("JPEG", "MPO"):
        options |= {"quality": quality, "subsampling": 0}
    elif kind in ("WEBP", "AVIF"):
        options |= {"quality": quality}
    elif kind == "ICO":
        if max(image.size) > LARGEST_ICO:
            raise UserError(f"{suffix} cannot hold a picture of {image.width}×{image.height}: 256×256 is its largest")
        options |= {"sizes": [image.size]}
    elif kind == "JPEG2000":
        options |= {"no_jp2": suffix.lower() in (".j2k", ".jpc", ".j2c")}
    try:
        return saved(image, kind, options)
    except Exception as error:  # sizes that a format cannot hold
        reason = str(error) or type(error).__name__
    try:  # metadata cost no picture
        content = saved(image, kind, {name: value for name, value in options.items() if name not in METADATA})
    except Exception as error:
        raise UserError(f"{suffix} cannot hold the picture: {reason}") from error
    logger.warning("a picture is written without its metadata, which %s cannot hold: %s", suffix, reason)
    return content


def saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    """Return a picture as Pillow saves it; EXIF data of a TIFF are written as they are, not in its words."""
    exif = options.get("exif", b"") if kind == "TIFF" else b""
    encoded = io.BytesIO()
    image.save(encoded, format=kind, **{k: v for k, v in options.items() if not (exif and k == "exif")})
    return into_tiff(encoded.getvalue(), exif) if exif else encoded.getvalue()


def save_image(image: Image.Image, path: str | Path, quality: int = 95) -> None:
    """Write a picture in one step, so that no half file is ever seen; JPEG without chroma subsampling.

    Raises UserError where the place cannot be written or the format is unknown.
    """
    path = Path(path)
    try:
        content = encode_image(image, path.suffix, quality)
    except UserError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    write_atomically(path, content)
