"""A picture in, a stylized picture out: what happens around the model, and what of the photograph is carried over."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from nst_fast.errors import UserError
from nst_fast.stylizing.exif import LONGEST_IN_JPEG, carried, exif_bytes, fit
from nst_fast.stylizing.formats import OF_NAME, format_of
from nst_fast.stylizing.images import (
    fill_hidden,
    keep_colours,
    over_white,
    resize_long_side,
    split_alpha,
    to_rgb,
    why_unreadable,
)
from nst_fast.stylizing.stroke import Stroke, stroke_size
from nst_fast.stylizing.stylizer import Painter, Style
from nst_fast.stylizing.tiff import MORE_PAGES

logger = logging.getLogger(__name__)

LARGEST_DPI = 65_535  # that a JPEG has place for
WHOLE = (0.0, math.inf)
FULL_SIZE = 1 / 8  # of the memory that a model takes for a pixel, whatever else a pixel takes


@dataclass(frozen=True)
class Looks:
    """What happens around the model, in the user's units.

    Attributes:
        strength: 0 is the photograph, 1 the stylized picture.
        keep_colours: whether the result has the luminance of the stylized picture and the photograph's colours.
        max_side: px; larger photographs are made smaller first. None: as they are.
        stroke: how many times as large strokes are as the model has learned them; "auto": the same part of any picture.
        style: of a model of many paintings, one's name or {name: weight} of several; None: its first.
        mask: of any size: where it is white the picture is painted, where it is black it is not.
        outside: the style that it is painted in there; None: the photograph stays.
        steady: how far frames of a video are tied to the ones before, 0 to 1.
        to_style: the style that a video ends in, where ``style`` is that in which it begins; None: the same.

    Raises UserError where ``max_side`` is below 1.
    """

    strength: float = 1.0
    keep_colours: bool = False
    max_side: int | None = None
    stroke: Stroke = 1.0
    style: Style | None = None
    mask: Image.Image | None = None
    outside: Style | None = None
    steady: float = 0.0
    to_style: Style | None = None

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise UserError(f"max_side is {self.max_side}; 1 or more is needed")

    def at(self, share: float) -> Looks:
        """Return the looks of a video's frame after a share of its length, 0 to 1."""
        if self.style is None or self.to_style is None:
            return self
        mixed: dict[str, float] = {}
        for style, part in ((self.style, 1 - share), (self.to_style, share)):
            weights = {style: 1.0} if isinstance(style, str) else style
            for name, weight in weights.items():
                mixed[name] = mixed.get(name, 0.0) + part * weight / sum(weights.values())
        return replace(self, style=mixed)

    def pixels(self, width: int, height: int) -> float:
        """Return of how many pixels the model sees a photograph, or as many as take that memory at full size."""
        return width * height * max(1 / stroke_size(self.stroke, (width, height)) ** 2, FULL_SIZE)

    def apply(self, stylizer: Painter, photograph: Image.Image) -> Image.Image:
        """Return a stylized RGB picture of the photograph upright, once that is no larger than ``max_side``."""
        photograph = to_rgb(photograph)
        if self.max_side is not None and max(photograph.size) > self.max_side:
            photograph = resize_long_side(photograph, self.max_side)
        stylized = self.paint(stylizer, photograph, self.style)
        if self.mask is None:
            return stylized
        mask = self.mask.convert("L").resize(photograph.size, Image.Resampling.BICUBIC)
        around = photograph if self.outside is None else self.paint(stylizer, photograph, self.outside)
        return Image.composite(stylized, around, mask)

    def paint(self, stylizer: Painter, photograph: Image.Image, style: Style | None) -> Image.Image:
        """Return a whole RGB picture in a style, of the photograph's size."""
        stylized = stylizer.stylize(photograph, style, self.stroke, self.strength)
        return keep_colours(stylized, photograph) if self.keep_colours else stylized


@dataclass(frozen=True)
class Saving:
    """How results are written.

    Attributes:
        suffix: of the format, such as ".jpg"; None: what the name of the result says.
        quality: of JPEG, WebP, AVIF and videos, 1 to 100.
        keep_gps: whether the position stays in the metadata.
        overwrite: whether a result replaces a file that is there when it is written.
        span: first and last second of a video that are written.
    """

    suffix: str | None = None
    quality: int = 95
    keep_gps: bool = False
    overwrite: bool = False
    span: tuple[float, float] = WHOLE


@contextlib.contextmanager
def reading(name: str, source: Path | io.BytesIO | None = None) -> Iterator[None]:
    """Report whatever decoders raise as a UserError that names the picture; ``source`` is where its bytes are."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} claims a huge size, perhaps a bomb; --huge opens it: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they please
        raise UserError(f"{name} cannot be read as a picture: {why_unreadable(source or name, error)}") from error


def carried_metadata(
    name: str, image: Image.Image, size: tuple[int, int], suffix: str, keep_gps: bool
) -> dict[str, Any]:
    """Return what of a photograph's metadata its result of a size, (width, height) px, is saved with: EXIF and dpi."""
    options: dict[str, Any] = {}
    kind = format_of(suffix).name
    order, entries = carried(image, size, keep_gps)
    if kind in ("JPEG", "MPO"):
        entries = fit(entries, LONGEST_IN_JPEG, name)
    if entries:
        options["exif"] = exif_bytes(order, entries)
    with contextlib.suppress(TypeError, ValueError):
        dpi = tuple(float(number) for number in image.info.get("dpi", ()))
        if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit"):
            dpi = ()  # what Pillow makes of EXIF data, which are carried themselves
        if len(dpi) == 2 and all(1 <= number <= LARGEST_DPI for number in dpi):
            options["dpi"] = dpi
    return options


def read_frames(name: str, image: Image.Image, every: bool) -> Iterator[tuple[Image.Image, Image.Image | None, float]]:
    """Yield every frame, or the first alone, as RGB, alpha and milliseconds; raises UserError for a damaged one."""
    with reading(name):
        for frame in ImageSequence.Iterator(image) if every else [image]:
            photograph, alpha = split_alpha(frame)
            shown = photograph if alpha is None else fill_hidden(photograph, alpha)
            yield shown, alpha, frame.info.get("duration", 100)


def with_alpha(stylized: Image.Image, alpha: Image.Image, suffix: str) -> Image.Image:
    """Return an RGB picture with an alpha channel, or over white where its format has no place for one."""
    small = alpha if alpha.size == stylized.size else alpha.resize(stylized.size)
    if not format_of(suffix).alpha:
        return over_white(stylized, small)
    stylized.putalpha(small)
    return stylized


def animation(image: Image.Image, frames: list[Image.Image], suffix: str) -> dict[str, Any]:
    """Return Pillow's options for saving frames as the animation that a picture is."""
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    whole = format_of(suffix).name == "AVIF"  # takes no parts of milliseconds
    options["duration"] = [round(d) if whole else d for d in (frame.info["duration"] for frame in frames)]
    # A GIF that says nothing plays once.
    options["loop"] = image.info.get("loop", None if suffix == ".gif" else 1)
    if suffix == ".gif" and any(frame.mode == "RGBA" for frame in frames):
        options["disposal"] = 2  # what is transparent shows nothing of the frame before
    return options


def stylize_picture(
    name: str, image: Image.Image, stylizer: Painter, looks: Looks, suffix: str, keep_gps: bool = False
) -> tuple[Image.Image, dict[str, Any]]:
    """Return the result of a picture and Pillow's options for saving it.

    It has every frame where both formats are animated, and alpha where that has a place.

    Args:
        name: what messages call the picture.
        image: opened, in any mode, of one frame or several.
        stylizer: the model.
        looks: what happens around it.
        suffix: of the format that the result is for, in small letters.
        keep_gps: whether the position stays in the EXIF data.

    Raises UserError where a frame cannot be read.
    """
    with reading(name):
        image.load()
    source, frames = OF_NAME.get(image.format or ""), []
    # The pictures of a TIFF or an MPO are pages and previews.
    with reading(name):
        frames_in = source is not None and source.animated and getattr(image, "n_frames", 1) > 1
    moving = frames_in and format_of(suffix).animated
    if image.info.get(MORE_PAGES) or (frames_in and not moving):
        logger.warning("%s holds several pictures; the first alone is stylized", name)
    for photograph, alpha, duration in read_frames(name, image, moving):
        stylized = looks.apply(stylizer, photograph)
        if alpha is not None:
            stylized = with_alpha(stylized, alpha, suffix)
        stylized.info["duration"] = duration
        frames.append(stylized)
    options = carried_metadata(name, image, frames[0].size, suffix, keep_gps)
    return frames[0], options | (animation(image, frames, suffix) if len(frames) > 1 else {})
