"""Photographs that come with scikit-image, and pictures made of them: windows, other colours, dead leaves."""

from __future__ import annotations

import functools
import math

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from nst_fast.stylizing.images import resize_short_side


@functools.cache
def bundled_photographs(held_out: bool = False) -> tuple[np.ndarray, ...]:
    """Return scikit-image's colour photographs (public domain or CC0), or the two held out for validation.

    uint8 RGB (H, W, 3), read once and not to be written to: astronaut, rocket, motorcycle and deep field; held out are
    the cat and the cup of coffee.
    """
    if held_out:
        photographs = [skimage.data.chelsea(), skimage.data.coffee()]
    else:
        left, _, _ = skimage.data.stereo_motorcycle()
        photographs = [skimage.data.astronaut(), skimage.data.rocket(), left, skimage.data.hubble_deep_field()]
    for photograph in photographs:
        photograph.flags.writeable = False
    return tuple(photographs)


def random_window(photograph: np.ndarray, size: int, smallest: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random square window of at least ``smallest`` pixels, resized to ``size``, mirrored half of the time."""
    short = min(photograph.shape[:2])
    side = round(math.exp(rng.uniform(math.log(min(smallest, short)), math.log(short))))
    top, left = rng.integers(photograph.shape[0] - side + 1), rng.integers(photograph.shape[1] - side + 1)
    window = np.ascontiguousarray(photograph[top : top + side, left : left + side])
    if side != size:
        window = np.asarray(Image.fromarray(window).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0))
    return window[:, ::-1] if rng.random() < 0.5 else window


def recolour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture with its channels permuted, inverted, mixed, scaled and shifted at random, uint8."""
    x = pixels.astype(np.float32) / 255
    if rng.random() < 0.4:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.1:
        x = 1 - x
    saturation = rng.uniform(0, 1.4)
    x = x.mean(2, keepdims=True) * (1 - saturation) + x * saturation
    x = x.clip(0, 1) ** math.exp(rng.normal(0, 0.35))
    x = (x - 0.5) * rng.uniform(0.6, 1.3, 3) + 0.5 + rng.normal(0, 0.1, 3)
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def leaf(centre: np.ndarray, radius: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return the outline of a random ellipse, polygon or bar around a centre."""
    corners = int(rng.choice([3, 4, 4, 5, 24]))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 24 else np.linspace(0, 2 * np.pi, corners)
    points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.15, 1)], 1) * radius
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) + centre
    return [(float(x), float(y)) for x, y in points]


def dead_leaves(size: int, photographs: tuple[np.ndarray, ...], rng: np.random.Generator) -> np.ndarray:
    """Return overlapping leaves of power-law sizes (Lee, Mumford & Huang 2001), uint8 (size, size, 3).

    A leaf is a gradient, a grain or a piece of a photograph, in natural colours: edges, flats, textures at all scales.
    """
    count = int(rng.integers(20, 260))
    smallest = rng.uniform(0.01, 0.05)
    # radii with density r^-3 between smallest and 0.6 of the picture: scale invariant
    u = rng.random(count)
    radii = np.sort(size / np.sqrt(u / smallest**2 + (1 - u) / 0.6**2))[::-1]
    canvas = Image.new("I", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    for label, radius in enumerate(radii, start=1):
        draw.polygon(leaf(rng.uniform(0, size, 2), float(radius), rng), fill=label)
    labels = np.asarray(canvas)

    photograph = photographs[rng.integers(len(photographs))]
    rows, columns = (rng.integers(side, size=count + 1) for side in photograph.shape[:2])
    palette = photograph[rows, columns]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    slopes = rng.normal(0, 0.4, (2, count + 1, 1)).astype(np.float32)
    pixels = palette.astype(np.float32)[labels] / 255
    pixels += slopes[0][labels] * x[..., None] + slopes[1][labels] * y[..., None]
    grain = rng.normal(0, 1, (size, size, 1)).astype(np.float32)
    pixels += grain * (rng.random(count + 1) ** 4 * 0.25).astype(np.float32)[labels][..., None]
    pieces = rng.random(count + 1)[labels] < rng.choice([0.0, 0.3])
    filling = random_window(photographs[int(rng.integers(len(photographs)))], size, size // 2, rng)
    pixels[pieces] = filling[pieces].astype(np.float32) / 255
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.choice([0.6, 0.6, 1.0, 2.0])))))


def centre_crop(photograph: Image.Image, size: int) -> Tensor:
    """Return the centre square of a photograph, resized to (3, size, size) uint8."""
    image = resize_short_side(photograph, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
