"""Strokes of the size that is asked for, and underpaintings: a model sees pictures smaller, edges stay those in full.

A model lays strokes of one size in pixels, so they come out larger on a picture that was made smaller. What the model
changed there is enlarged and laid over the full photograph, whose fine detail thus stays. As an underpainting, which
the model then paints over, large strokes guide small ones, coarse to fine as the slow optimiser works.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from nst_fast.errors import UserError

Stroke: TypeAlias = float | Literal["auto"]

GRAIN = 2.0  # of 255, deviation of the grain that an underpainting has
WAVES = 64  # of which grain is made
GOLDEN = math.pi * (3 - math.sqrt(5))  # radians from the direction of one wave to that of the next
SHORTEST, LONGEST = 8, 64  # px, of waves
PERIOD = 256  # px, after which grain repeats
COARSE = 2  # times smaller is a picture when its underpainting is made
AUTO_SIDE = 512  # px, short side of the picture on which strokes of "auto" are of the size that the model has learned
STRIP = 1 << 20  # pixels that are put together at a time
REACH = 2  # px to each side that bicubic interpolation looks at
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601


def stroke_size(stroke: Stroke, size: tuple[int, int], side: int = AUTO_SIDE) -> float:
    """Return the stroke of a picture of a size, (width, height) px; 1 is the size that the model has learned.

    "auto" keeps strokes the same part of pictures from a short side of so many pixels upwards; below it is 1. Raises
    UserError where the stroke is not above 0.
    """
    if stroke != "auto" and (isinstance(stroke, str) or not 0 < stroke < math.inf):
        raise UserError(f"the stroke is {stroke}; it must be above 0: 2 is twice as large as learned")
    return max(1.0, min(size) / side) if stroke == "auto" else float(stroke)


def paint(run: Callable[[Image.Image], Image.Image], photograph: Image.Image, stroke: float) -> Image.Image:
    """Return an RGB photograph's stylized picture, of its size, with strokes so many times as large.

    Args:
        run: the model, from RGB picture to RGB picture of the same size.
        photograph: RGB.
        stroke: above 0.
    """
    if stroke == 1:
        return run(photograph)
    small = photograph.resize(
        (max(1, round(photograph.width / stroke)), max(1, round(photograph.height / stroke))), Image.Resampling.LANCZOS
    )
    coarse = run(small)
    if stroke < 1:  # "small" is larger, and has lost nothing
        return coarse.resize(photograph.size, Image.Resampling.LANCZOS)
    return restore_edges(photograph, small, coarse)


def underpainted(run: Callable[[Image.Image], Image.Image], photograph: Image.Image, share: float) -> Image.Image:
    """Return an RGB photograph blended with its stylized picture in large strokes, for the model to paint over.

    Both have a faint grain, from which strokes grow where the photograph is flat: a network paints nothing on white.

    Args:
        run: the model, from RGB picture to RGB picture of the same size.
        photograph: RGB.
        share: of the stylized picture, from 0, the photograph, to 1.
    """
    small = photograph.reduce(COARSE)
    add_grain(small)
    under = restore_edges(photograph, small, run(small), share)
    add_grain(under)
    return under


@functools.cache
def grain() -> np.ndarray:
    """Return a tile of grain that fits itself on all sides, int16 (PERIOD, PERIOD, 1), deviation GRAIN of 255.

    Waves of all directions, as many in every octave; formulas instead of random numbers, so that the page has the same.
    """
    k = np.arange(WAVES)
    length, angle, phase = SHORTEST * (LONGEST / SHORTEST) ** (k / WAVES), GOLDEN * k, GOLDEN * k * k
    across, down = (np.round(PERIOD / length * f(angle)) for f in (np.cos, np.sin))
    places = 2 * np.pi / PERIOD * np.arange(PERIOD)
    waves = np.cos(places[:, None, None] * down + places[:, None] * across + phase).sum(2, keepdims=True)
    return (GRAIN * waves / math.sqrt(WAVES / 2)).round().astype(np.int16)


def add_grain(picture: Image.Image, strip: int = STRIP) -> None:
    """Add grain to an RGB picture, in place."""
    rows = max(PERIOD, strip // picture.width // PERIOD * PERIOD)
    tiled = np.tile(grain(), (1, -(-picture.width // PERIOD), 1))[:, : picture.width]
    for top in range(0, picture.height, rows):
        part = np.asarray(picture.crop((0, top, picture.width, min(top + rows, picture.height)))).astype(np.int16)
        part += np.resize(tiled, (len(part), *tiled.shape[1:]))
        picture.paste(Image.fromarray(part.clip(0, 255).astype(np.uint8)), (0, top))


def restore_edges(
    photograph: Image.Image, small: Image.Image, coarse: Image.Image, share: float = 1, strip: int = STRIP
) -> Image.Image:
    """Return a coarse stylized picture at the size of the photograph, with the photograph's edges.

    Every channel is ``luminance of photograph + up(coarse − luminance of small)``, by bicubic interpolation, and of
    that a share, the rest the photograph's.

    Args:
        photograph: RGB.
        small: the same, made smaller.
        coarse: the stylized picture of ``small``, of its size.
        share: from 0, the photograph, to 1.
        strip: pixels that are put together at a time, in rows as long as the photograph's.
    """
    (width, height), (columns, rows) = photograph.size, small.size
    painted, lines = Image.new("RGB", photograph.size), max(1, strip // width)
    for top in range(0, height, lines):
        bottom = min(top + lines, height)
        first, last = top * rows / height, bottom * rows / height
        above, below = max(0, math.floor(first) - REACH), min(rows, math.ceil(last) + REACH)
        box, cut = (0, first - above, columns, min(last - above, below - above)), (0, above, columns, below)
        seen, stylized = (np.asarray(picture.crop(cut), np.float32) for picture in (small, coarse))
        changed = stylized - (seen @ LUMINANCE)[..., None]
        values = np.empty((bottom - top, width, 3), np.float32)
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(changed[..., channel]))
            values[..., channel] = np.asarray(plane.resize((width, bottom - top), Image.Resampling.BICUBIC, box))
        full = np.asarray(photograph.crop((0, top, width, bottom)), np.float32)
        values += (full @ LUMINANCE)[..., None]
        if share != 1:
            values = full + np.float32(share) * (values.clip(0, 255) - full)
        painted.paste(Image.fromarray(values.clip(0, 255).round().astype(np.uint8)), (0, top))
    return painted
