"""Stylize pictures after any painting, without training: features whitened and colored level by level, coarse to fine.

Li et al. 2017, Universal style transfer via feature transforms. The encoder and the decoders, one small graph each,
ship with the package; docs/any_painting.md says what they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_fast.assets import ASSETS
from nst_fast.errors import UserError, one_line
from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.stylizing.stroke import Stroke, paint, stroke_size
from nst_fast.stylizing.stylizer import RUNS_AT_ONCE, Style, choose_providers, create_session, device_name
from nst_fast.stylizing.whitening import Affine, Moments, Statistics, mixed, whitening_coloring

FOLDER = ASSETS / "any_painting"
PAINTING_SIZE = 512  # px, short side at which a painting is seen
LONGEST_PAINTING = 16  # of a painting; at its short side a thread would be endless
TILE = 1024  # px, side of what is kept of a tile
STRIDE = 8  # px that a position of the coarsest level stands for
BORDER = 16  # px that a picture is continued by: convolutions that see its end give features that no picture has
Features = NDArray[np.float32]
Transform = Callable[[Statistics, Statistics], Affine]


class Stage(NamedTuple):
    """A graph from some levels to others.

    Levels are counted from fine to coarse: 0 is the picture; a position of level n stands for 2ⁿ px both ways.

    Attributes:
        name: of its file.
        gives: the levels that its outputs are.
        halo: px around what is kept of its outputs that it looks at.
    """

    name: str
    gives: tuple[int, ...]
    halo: int


ENCODER = Stage("encoder", (0, 1, 2, 3), 48)
DECODERS = (Stage("decoder_3", (2,), 32), Stage("decoder_2", (1,), 16), Stage("decoder_1", (0,), 8))


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

    def of(self, features: NDArray[Any], level: int, origin: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """Return the view of a level's features (C, H, W), which begin at an origin in px, in this box."""
        top, left, bottom, right = (edge >> level for edge in self)
        row, column = (edge >> level for edge in origin)
        return features[:, top - row : bottom - row, left - column : right - column]


class Level(NamedTuple):
    """Features (C, H, W) of a whole picture at a level, and how they are changed when they are read."""

    features: NDArray[Any]
    number: int
    change: Affine | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture, px."""
        return self.features.shape[1] << self.number, self.features.shape[2] << self.number


def changed(features: Features, change: Affine | None) -> Features:
    """Return features (C, H, W) through a map."""
    if change is None:
        return features
    flat = change.matrix.astype(np.float32) @ features.reshape(len(features), -1)
    flat += change.offset.astype(np.float32)[:, None]
    return flat.reshape(features.shape)


def boxes(height: int, width: int, side: int) -> list[Box]:
    """Return boxes of about the same size that cover a picture, row by row."""

    def edges(length: int) -> list[int]:
        count = -(-length // side)
        return [round(i * length / count / STRIDE) * STRIDE for i in range(count)] + [length]

    return [
        Box(top, left, bottom, right)
        for top, bottom in pairwise(edges(height))
        for left, right in pairwise(edges(width))
    ]


class AnyPainting:
    """Paintings for a style: picture in, stylized picture of the same size out.

    Args:
        paintings: files, each with its weight; the weights are divided by their sum.
        threads: for the sessions; 0 takes every core.
        device: as a `Stylizer` has it.
        strength: α, from 0, the photograph, to 1; features are blended, not pictures.
        transform: `whitening_coloring`, or its diagonal case `adain`.
        tile: px, side of what is run in one piece.

    Raises UserError where a painting cannot be read, is longer than `LONGEST_PAINTING` times its short side, or the
    weights come to nothing.
    """

    def __init__(
        self,
        paintings: Mapping[Path, float],
        threads: int = 0,
        *,
        device: str = "auto",
        strength: float = 1.0,
        transform: Transform = whitening_coloring,
        tile: int = TILE,
    ) -> None:
        self.threads, self.strength, self.transform, self.tile = threads, strength, transform, tile
        self.providers = choose_providers(device)
        self.name, self.device = "+".join(path.stem for path in paintings), device_name(self.providers)
        self.runs_at_once = 1 if self.device == "directml" else min(RUNS_AT_ONCE, threads or os.cpu_count() or 1)
        total = sum(paintings.values())
        self.weights = [weight / total for weight in paintings.values()]
        self.sessions = {
            stage: create_session((FOLDER / f"{stage.name}.onnx").read_bytes(), self.providers, threads, pool=False)
            for stage in (ENCODER, *DECODERS)
        }
        self.styles = [self.statistics(path) for path in paintings]

    def run(self, stage: Stage, given: NDArray[Any]) -> list[Features]:
        """Return the outputs (C, H, W) of a graph for an input of the same kind."""
        return [output[0] for output in self.sessions[stage].run(None, {"input": np.ascontiguousarray(given)[None]})]

    def statistics(self, path: Path) -> list[Statistics]:
        """Return the statistics of a painting's features, fine to coarse."""
        painting = load_image(path)
        if max(painting.size) > LONGEST_PAINTING * min(painting.size):
            got = "×".join(map(str, painting.size))
            raise UserError(f"{path} is {got} px; one side may be {LONGEST_PAINTING} times the other: crop it")
        made = []
        for features in self.run(ENCODER, padded(resize_short_side(painting, PAINTING_SIZE))):
            moments = Moments(len(features))
            moments.add(features)
            made.append(moments.statistics())
        return made

    def change(self, content: Statistics, own: Sequence[Statistics], level: int, strength: float) -> Affine:
        """Return what gives features the paintings' statistics at a level, mixed with the photograph's own there."""
        maps = [self.transform(content, style[level]) for style in (*self.styles, own)]
        return mixed(maps, [*(strength * weight for weight in self.weights), 1 - strength])

    def advance(self, stage: Stage, given: Level) -> tuple[Level, list[Statistics]]:
        """Return the coarsest level that a graph makes of one, tile by tile, and the statistics of all of them."""
        height, width = given.size
        moments: dict[int, Moments] = {}
        coarsest, made = stage.gives[-1], None
        for tile in boxes(height, width, self.tile):
            for level, features in zip(stage.gives, self.pass_through(stage, given, tile), strict=True):
                moments.setdefault(level, Moments(len(features))).add(features)
            if made is None:
                made = np.empty((len(features), height >> coarsest, width >> coarsest), np.float32)
            tile.of(made, coarsest)[:] = features
        assert made is not None
        return Level(made, coarsest), [moments[level].statistics() for level in stage.gives]

    def pass_through(self, stage: Stage, given: Level, area: Box) -> list[Features]:
        """Return what a graph makes of a level, in an area."""
        seen = area.grown(stage.halo, *given.size)
        outputs = self.run(stage, changed(seen.of(given.features, given.number), given.change))
        return [area.of(output, level, seen[:2]) for output, level in zip(outputs, stage.gives, strict=True)]

    def decode(self, pixels: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
        """Return the picture (3, H, W) that the decoders make of another's features, changed on the way."""
        made, own = self.advance(ENCODER, Level(pixels, 0))
        made = made._replace(change=self.change(own[made.number], own, made.number, strength))
        for stage in DECODERS:
            made, (content,) = self.advance(stage, made)
            made = made._replace(change=self.change(content, own, made.number, strength))
        result = np.empty_like(pixels)
        for tile in boxes(*made.size, self.tile):
            picture = changed(tile.of(made.features, 0), made.change)
            tile.of(result, 0)[:] = (127.5 + 63.75 * picture).clip(0, 255).round()
        return result

    def stylize(self, picture: Image.Image, style: Style | None = None, stroke: Stroke = 1) -> Image.Image:
        """Return the stylized picture of an RGB picture, of exactly its size, with strokes of a size.

        Raises ValueError for a style: the paintings are given once and for all.
        """
        if style is not None:
            raise ValueError(f"got the style {style}; paintings are all that there is")
        if stroke != 1:
            return paint(self.stylize, picture, stroke_size(stroke, picture.size))
        pixels = padded(picture)
        try:
            stylized = self.decode(pixels, self.strength)
            if self.strength < 1:
                # What the decoders lose of the photograph comes back in the measure in which it is one.
                lost = pixels.astype(np.float32) - self.decode(pixels, 0.0)
                stylized = (stylized + (1 - self.strength) * lost).clip(0, 255).round().astype(np.uint8)
        except Exception as error:  # onnxruntime's share no base class
            size = f"{picture.width}×{picture.height}"
            raise UserError(f"{self.name} cannot stylize a picture of {size}: {one_line(error)}") from error
        kept = stylized[:, BORDER : BORDER + picture.height, BORDER : BORDER + picture.width]
        return Image.fromarray(np.ascontiguousarray(kept.transpose(1, 2, 0)))


def padded(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (3, H, W) of an RGB picture, mirrored around it, by `BORDER` px or more to whole strides."""
    sides = [(BORDER, BORDER + -length % STRIDE) for length in (picture.height, picture.width)]
    return np.pad(np.asarray(picture).transpose(2, 0, 1), [(0, 0), *sides], mode="symmetric")
