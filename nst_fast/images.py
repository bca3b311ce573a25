"""Pictures in and out: PIL and numpy only. A picture is uint8 RGB (H, W, 3) in sRGB."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from nst_fast.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB in sRGB: EXIF orientation applied, profile converted, alpha laid over white."""
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # Pillow clips 16 bits to 8 instead of scaling them.
        return Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one for another mode: the numbers are the best guess there is
    return image.convert("RGB")


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
        raise UserError(f"{path} cannot be read as a picture: {error}") from error


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


def keep_colors(stylized: Image.Image, photograph: Image.Image) -> Image.Image:
    """Return a picture with the luminance of one and the chroma (BT.601) of another of the same size."""
    luminance = stylized.convert("YCbCr").getchannel(0)
    _, blue, red = photograph.convert("YCbCr").split()
    return Image.merge("YCbCr", (luminance, blue, red)).convert("RGB")


def save_image(image: Image.Image, path: str | Path, quality: int = 95) -> None:
    """Write a picture in one step, so that no half file is ever seen; JPEG without chroma subsampling.

    Raises UserError where the place cannot be written or the format is unknown.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"cannot write {path}: {path.suffix or 'no suffix'} is no picture format; use .png or .jpg")
    encoded = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    try:
        image.save(encoded, format=Image.registered_extensions()[path.suffix.lower()], **options)
    except Exception as error:  # formats that Pillow only reads, sizes that a format cannot hold
        raise UserError(f"cannot write {path}: {str(error) or type(error).__name__}") from error
    write_atomically(path, encoded.getvalue())


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes beside the target, then rename; raises UserError where that is not allowed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def find_pictures(folder: str | Path) -> list[Path]:
    """Return every file below a folder that is named like a picture, sorted.

    Raises UserError where the folder is missing or holds none.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no folder at {folder}")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"no pictures in {folder}; it needs files ending in {', '.join(sorted(SUFFIXES))}")
    return found
