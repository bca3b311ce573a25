"""Strokes of the size that is asked for: any model sees the picture made smaller, and edges come from the full picture.

A model lays strokes of one size in pixels, so they come out larger on a picture that was made smaller before and
enlarged after. What the photograph lost on the way is put back, times the slope of the stylized picture over the
photograph around each pixel: a fast guided filter (He and Sun 2015, arXiv:1505.00996) that leaves strokes as they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

Stroke: TypeAlias = float | Literal["auto"]

AUTO_SIDE = 512  # px, short side of the picture on which strokes of "auto" are of the size that the model has learned
RADIUS = 3  # px of the small picture, of the window that a slope is of
FLOOR = 1e-3  # of the photograph's variance there: what is flat has no slope
SLOPES = (-1.0, 3.0)  # steeper ones are of a window with hardly an edge
STRIP = 1 << 20  # pixels that are put together at a time
REACH = 2  # px to each side that bicubic interpolation looks at
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601


def stroke_size(stroke: Stroke, size: tuple[int, int], side: int = AUTO_SIDE) -> float:
    """Return the stroke of a picture of a size, (width, height) px; 1 is the size that the model has learned.

    "auto" keeps strokes the same part of pictures from a short side of so many pixels upwards; below it is 1.
    """
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


def restore_edges(photograph: Image.Image, small: Image.Image, coarse: Image.Image, strip: int = STRIP) -> Image.Image:
    """Return a coarse stylized picture at the size of the photograph, with the photograph's edges.

    Every channel is ``up(coarse) + up(slope) · (luminance − up(luminance of small))``, by bicubic interpolation.

    Args:
        photograph: RGB.
        small: the same, made smaller.
        coarse: the stylized picture of ``small``, of its size.
        strip: pixels that are put together at a time, in rows as long as the photograph's.
    """
    (width, height), (columns, rows) = photograph.size, small.size
    painted, lines = Image.new("RGB", photograph.size), max(1, strip // width)
    for top in range(0, height, lines):
        bottom = min(top + lines, height)
        first, last = top * rows / height, bottom * rows / height
        above, below = max(0, math.floor(first) - RADIUS - REACH), min(rows, math.ceil(last) + RADIUS + REACH)
        box = (0, first - above, columns, min(last - above, below - above))
        up = functools.partial(enlarge, size=(width, bottom - top), box=box)
        seen, stylized = (to_array(picture.crop((0, above, columns, below))) for picture in (small, coarse))
        guide = seen @ LUMINANCE
        lost = to_array(photograph.crop((0, top, width, bottom))) @ LUMINANCE - up(guide)
        edges = up(slope(guide, stylized @ LUMINANCE)) * lost
        values = np.stack([up(stylized[..., channel]) + edges for channel in range(3)], -1)
        painted.paste(Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8)), (0, top))
    return painted


def slope(guide: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return how steeply values (H, W) rise with a guide (H, W) in the window around each pixel.

    Their covariance over the guide's variance, as of a guided filter (He, Sun and Tang 2013, equation 5).
    """
    mean = window_mean(guide)
    covariance = window_mean(guide * values) - mean * window_mean(values)
    return (covariance / (window_mean(guide * guide) - mean * mean + FLOOR)).clip(*SLOPES).astype(np.float32)


def window_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of values (H, W) in the window of `RADIUS` around each pixel, as much of it as there is."""
    for _ in range(2):  # columns, then rows
        length = len(values)
        padded = np.pad(values, ((RADIUS, RADIUS), (0, 0)))
        sums = sum(padded[first : first + length] for first in range(2 * RADIUS + 1))
        rows = np.arange(length)
        counts = np.minimum(rows, RADIUS) + np.minimum(rows[::-1], RADIUS) + 1
        values = (sums / counts[:, None].astype(np.float32)).T
    return values


def enlarge(values: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """Return a part of values (H, W) at a size (width, height); pixels around the part are looked at, too."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.BICUBIC, box))


def to_array(picture: Image.Image) -> np.ndarray:
    """Return an RGB picture as float32 (H, W, 3) in [0, 1]."""
    return np.asarray(picture, np.float32) / 255
