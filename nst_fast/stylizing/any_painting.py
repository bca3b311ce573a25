"""Stylize pictures after any painting, without training: features whitened and colored level by level, coarse to fine.

Li et al. 2017, Universal style transfer via feature transforms. The encoder and the decoders, one small graph each,
ship with the package; docs/research/any_painting.md says what they are.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_fast.assets import ASSETS
from nst_fast.errors import UserError, one_line
from nst_fast.stylizing.images import check_strength, load_image, resize_painting
from nst_fast.stylizing.stroke import Stroke, paint, stroke_size
from nst_fast.stylizing.stylizer import (
    RUNS_AT_ONCE,
    Style,
    choose_providers,
    create_session,
    device_name,
    threads_beside,
)
from nst_fast.stylizing.whitening import Affine, Moments, Statistics, adain, mixed, whitening_coloring

FOLDER = ASSETS / "any_painting"
LEVELS = (1, 2)  # of features, fine to coarse; a position of level n stands for 2ⁿ px both ways. Level 0 is the picture
PAINTING_SIZE = 512  # px, short side at which a painting is seen
TILE = 1024  # px, side of what is kept of a tile
STRIDE = 4  # px that a position of the coarsest level stands for
HALO = 32  # px around what is kept of a tile that encoder and decoders look at
UNIT = np.float32(63.75)  # of 255, in which the picture itself is level 0: an average one has a variance of about 1
BORDER = 16  # px that a picture is continued by: convolutions that see its end give features that no picture has
Features = NDArray[np.float32]
# What gives features the painting's statistics. Colours are whitened and colored whatever the method.
METHODS: dict[str, Callable[[Statistics, Statistics], Affine]] = {"adain": adain, "wct": whitening_coloring}


class Box(NamedTuple):
    """Rows and columns, px, from a first to before a last."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, by: int, height: int, width: int) -> Box:
        """Return a box so many px larger each way, within a picture."""
        top, left = max(0, self.top - by), max(0, self.left - by)
        return Box(top, left, min(height, self.bottom + by), min(width, self.right + by))

    def of(self, features: NDArray[Any], level: int = 0, origin: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """Return the view of a level's features (C, H, W), which begin at an origin in px, in this box."""
        top, left, bottom, right = (edge >> level for edge in self)
        row, column = (edge >> level for edge in origin)
        return features[:, top - row : bottom - row, left - column : right - column]


def colours(pixels: Features) -> Features:
    """Return level 0 of pixels (3, H, W), 0 to 255."""
    return pixels / UNIT


def changed(features: NDArray[Any], change: Affine) -> Features:
    """Return features (C, H, W) through a map."""
    flat = change.matrix.astype(np.float32) @ features.reshape(len(features), -1)
    flat += change.offset.astype(np.float32)[:, None]
    return flat.reshape(features.shape)


def boxes(pixels: Features, side: int) -> Iterator[Box]:
    """Yield boxes of about the same size that cover pixels (3, H, W), row by row."""

    def edges(length: int) -> list[int]:
        count = -(-length // side)
        return [round(i * length / count / STRIDE) * STRIDE for i in range(count)] + [length]

    for top, bottom in pairwise(edges(pixels.shape[1])):
        for left, right in pairwise(edges(pixels.shape[2])):
            yield Box(top, left, bottom, right)


class AnyPainting:
    """Paintings for a style: picture in, stylized picture of the same size out.

    Args:
        paintings: files, each with its weight; the weights are divided by their sum.
        threads: for the sessions; 0 takes every core.
        device: as a `Stylizer` has it.
        method: of `METHODS`.
        tile: px, side of what is run in one piece.

    Raises UserError where a painting cannot be read, is longer than 16 times its short side, or the
    weights come to nothing.
    """

    def __init__(
        self,
        paintings: Mapping[Path, float],
        threads: int = 0,
        *,
        device: str = "auto",
        method: str = "adain",
        tile: int = TILE,
    ) -> None:
        self.threads, self.transform, self.tile = threads, METHODS[method], tile
        self.providers = choose_providers(device)
        self.name, self.device = "+".join(path.stem for path in paintings), device_name(self.providers)
        self.runs_at_once = 1 if self.device == "directml" else min(RUNS_AT_ONCE, threads or os.cpu_count() or 1)
        total = sum(paintings.values())
        self.weights = [weight / total for weight in paintings.values()]
        self.encoder, *self.decoders = self.sessions(threads)
        self.styles = [self.read(path) for path in paintings]

    def sessions(self, threads: int) -> Iterator[Any]:
        """Yield the encoder and the decoders, each of so many threads."""
        for name in ("encoder", *(f"decoder_{level}" for level in LEVELS)):
            yield create_session((FOLDER / f"{name}.onnx").read_bytes(), self.providers, threads, pool=False)

    @functools.cached_property
    def several(self) -> AnyPainting:
        """One like it whose runs, `runs_at_once` at a time, share the threads."""
        several = copy.copy(self)
        several.encoder, *several.decoders = self.sessions(threads_beside(self.threads, self.runs_at_once))
        return several

    def read(self, path: Path) -> list[Statistics]:
        """Return the statistics of a painting's levels, the picture's own first."""
        return self.statistics(padded(resize_painting(load_image(path), PAINTING_SIZE, str(path))))

    def encode(self, pixels: Features, levels: Sequence[int]) -> Iterator[tuple[Box, list[Features]]]:
        """Yield tiles of pixels (3, H, W) and the features of some levels in each."""
        for tile in boxes(pixels, self.tile):
            seen = tile.grown(HALO, *pixels.shape[1:])
            given = np.ascontiguousarray(seen.of(pixels))[None]
            found = self.encoder.run([f"level_{level}" for level in levels], {"input": given})
            yield tile, [tile.of(f[0], level, seen[:2]) for f, level in zip(found, levels, strict=True)]

    def statistics(self, pixels: Features) -> list[Statistics]:
        """Return the statistics of the levels of pixels (3, H, W), the picture's own first."""
        moments = [Moments(3), *(Moments(shape.shape[1]) for shape in self.encoder.get_outputs())]
        for tile, features in self.encode(pixels, LEVELS):
            for level, found in zip(moments, [colours(tile.of(pixels)), *features], strict=True):
                level.add(found)
        return [level.statistics() for level in moments]

    def change(self, level: int, found: Statistics, own: Sequence[Statistics], strength: float) -> Affine:
        """Return what gives features the paintings' statistics at a level, mixed with the photograph's own there."""
        wanted = [style[level] for style in (*self.styles, own)]
        transform = self.transform if level else whitening_coloring
        return mixed([transform(found, one) for one in wanted], [*(strength * w for w in self.weights), 1 - strength])

    def decode(self, pixels: Features, own: Sequence[Statistics], strength: float) -> Features:
        """Return the picture (3, H, W) that the decoders make of another's features, changed on the way.

        ``own`` are the other's statistics, which at a strength of 1 count for nothing.
        """
        for level in reversed(LEVELS):
            pixels = self.repaint(pixels, level, own, strength)
        moments = Moments(3)
        for tile in boxes(pixels, self.tile):
            moments.add(colours(tile.of(pixels)))
        change, result = self.change(0, moments.statistics(), own, strength), np.empty_like(pixels)
        for tile in boxes(pixels, self.tile):
            tile.of(result)[:] = (UNIT * changed(colours(tile.of(pixels)), change)).clip(0, 255)
        return result

    def repaint(self, pixels: Features, level: int, own: Sequence[Statistics], strength: float) -> Features:
        """Return pixels (3, H, W) encoded at a level, changed there, and decoded."""
        channels, (height, width) = len(self.styles[0][level].mean), (side >> level for side in pixels.shape[1:])
        features, moments = np.empty((channels, height, width), np.float32), Moments(channels)
        for tile, (found,) in self.encode(pixels, [level]):
            moments.add(found)
            tile.of(features, level)[:] = found
        change, result = self.change(level, moments.statistics(), own, strength), np.empty_like(pixels)
        for tile in boxes(pixels, self.tile):
            seen = tile.grown(HALO, *pixels.shape[1:])
            (picture,) = self.decoders[level - 1].run(None, {"input": changed(seen.of(features, level), change)[None]})
            tile.of(result)[:] = (255 * tile.of(picture[0], origin=seen[:2])).clip(0, 255)
        return result

    def stylize(
        self, picture: Image.Image, style: Style | None = None, stroke: Stroke = 1, strength: float = 1.0
    ) -> Image.Image:
        """Return the stylized picture of an RGB picture, of exactly its size, with strokes of a size.

        The strength α is from 0, the photograph, to 1; features are blended, not pictures. UserError outside.

        Raises ValueError for a style: the paintings are given once and for all.
        """
        if style is not None:
            raise ValueError(f"got the style {style}; paintings are all that there is")
        check_strength(strength)
        if stroke != 1:
            run = functools.partial(self.stylize, strength=strength)
            return paint(run, picture, stroke_size(stroke, picture.size))
        pixels = padded(picture)
        try:
            if strength == 1:
                stylized = self.decode(pixels, self.styles[0], 1.0)
            else:
                own = self.statistics(pixels)
                lost = pixels - self.decode(pixels, own, 0.0)  # by the decoders, of the photograph
                stylized = self.decode(pixels, own, strength) + (1 - strength) * lost
        except Exception as error:  # onnxruntime's share no base class
            size = f"{picture.width}×{picture.height}"
            raise UserError(f"{self.name} cannot stylize a picture of {size}: {one_line(error)}") from error
        kept = stylized[:, BORDER : BORDER + picture.height, BORDER : BORDER + picture.width]
        return Image.fromarray(np.ascontiguousarray(kept.transpose(1, 2, 0).clip(0, 255).round().astype(np.uint8)))


def padded(picture: Image.Image) -> Features:
    """Return pixels (3, H, W), 0 to 255, of an RGB picture, mirrored by `BORDER` px or more to whole strides."""
    sides = [(BORDER, BORDER + -length % STRIDE) for length in (picture.height, picture.width)]
    return np.pad(np.asarray(picture, np.float32).transpose(2, 0, 1), [(0, 0), *sides], mode="symmetric")
