"""Pictures in and out: PIL and numpy only. A picture is uint8 RGB (H, W, 3) in sRGB."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from nst_fast.errors import UserError
from nst_fast.files import write_atomically

with contextlib.suppress(ImportError):  # an extra of its own: its wheels hold an encoder under the GPL
    from pillow_heif import register_heif_opener

    register_heif_opener()

HEIC = frozenset({".heic", ".heif"})  # what telephones write, and few programs read
SUFFIXES = HEIC | {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}

ORIENTATION, GPS_POSITION = 0x0112, 0x8825  # EXIF tags
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

    EXIF orientation is applied, an ICC profile converted, 16 bits scaled to 8.
    """
    image.load()
    image = upright(image)
    profile, alpha = image.info.get("icc_profile"), None
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
    if image.mode == "P":
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one for another mode: the numbers are the best guess there is
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


def why_unreadable(path: str | Path, error: Exception) -> str:
    """Return what a user may be told about a picture that cannot be decoded."""
    if isinstance(error, UnidentifiedImageError) and Path(path).suffix.lower() in HEIC and not reads_heic():
        return "HEIC is read where pillow-heif is installed: pip install pillow-heif"
    if isinstance(error, UnidentifiedImageError):
        return "it is in no format that is known here"
    return str(error) or type(error).__name__


def load_image(path: str | Path) -> Image.Image:
    """Read a picture as 8-bit sRGB.

    Raises UserError where it is missing or cannot be decoded.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file this never raises, whatever the name
        raise UserError(f"no picture at {path}")
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large to be opened safely: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they please
        raise UserError(f"{path} cannot be read as a picture: {why_unreadable(path, error)}") from error


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Return the picture with its short side at the given length in pixels, its proportions kept."""
    ratio = short_side / min(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


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


def find_format(suffix: str) -> str:
    """Return Pillow's name of the format of a suffix; raises UserError where there is none."""
    kind = Image.registered_extensions().get(suffix.lower())
    if kind is None:
        raise UserError(f"{suffix or 'no suffix'} is no picture format; use .png or .jpg")
    return kind


def written_as(suffix: str) -> str:
    """Return the suffix of a result, given that of its photograph.

    Few programs read HEIC, so it becomes JPEG; what says nothing of a format becomes PNG.
    """
    if suffix.lower() in HEIC:
        return ".jpg"
    return suffix if suffix.lower() in Image.registered_extensions() else ".png"


def encode_image(image: Image.Image, suffix: str, quality: int = 95, **options: Any) -> bytes:
    """Return a picture in the format of a suffix; JPEG without chroma subsampling. ``options`` are Pillow's.

    Raises UserError where the format is unknown or cannot hold the picture.
    """
    kind = find_format(suffix)
    if kind in ("JPEG", "MPO"):
        options |= {"quality": quality, "subsampling": 0}
    elif kind == "WEBP":
        options |= {"quality": quality}
    encoded = io.BytesIO()
    try:
        image.save(encoded, format=kind, **options)
    except Exception as error:  # formats that Pillow only reads, sizes that a format cannot hold
        raise UserError(f"{suffix} cannot hold the picture: {str(error) or type(error).__name__}") from error
    return encoded.getvalue()


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


def find_pictures(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Return every file in a folder, and below it unless told, that is named like a picture, sorted.

    Raises UserError where the folder is missing or holds none.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no folder at {folder}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder} cannot be read: permission denied")
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or (seen and not recursive):
            folders.clear()  # a link back up would go round for ever
            continue
        seen.add(real)
        found += (Path(place, f) for f in files if Path(f).suffix.lower() in SUFFIXES)
    found = sorted(path for path in found if os.path.isfile(path))
    if not found:
        raise UserError(f"no pictures in {folder}; it needs files ending in {', '.join(sorted(SUFFIXES))}")
    return found
