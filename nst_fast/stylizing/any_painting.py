"""Stylize pictures after any painting, without training: features whitened and colored level by level, coarse to fine.

Li et al. 2017, Universal style transfer via feature transforms. The encoder and the decoders, one small graph each,
ship with the package; docs/any_painting.md says what they are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nst_fast.assets import ASSETS
from nst_fast.errors import UserError
from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.stylizing.stylizer import RUNS_AT_ONCE, choose_providers, create_session, device_name
from nst_fast.stylizing.whitening import Affine, Moments, Statistics, mixed, whitening_coloring

FOLDER = ASSETS / "any_painting"
PAINTING_SIZE = 512  # px, short side at which a painting is seen
LONGEST_PAINTING = 16  # of a painting; at its short side a thread would be endless
TILE = 1024  # px, side of what is kept of a tile
STRIDE = 8  # px that a position of the coarsest level stands for
Features = NDArray[np.float32]
Transform = Callable[[Statistics, Statistics], Affine]


class Stage(NamedTuple):
    """A graph from some levels of features to others.

    Attributes:
        name: of its file.
        steps: px that a position of each output stands for.
        channels: of each output.
        halo: px around what is kept of its outputs that it looks at.
    """

    name: str
    steps: tuple[int, ...]
    channels: tuple[int, ...]
    halo: int


# Levels are counted from fine to coarse.
FINE = Stage("encoder_1_2", (1, 2), (16, 32), 8)
COARSE = Stage("encoder_3_4", (4, 8), (48, 48), 32)
DECODERS = (
    Stage("decoder_4", (4,), (48,), 40),
    Stage("decoder_3", (2,), (32,), 24),
    Stage("decoder_2", (1,), (16,), 8),
)
LAST = Stage("decoder_1", (1,), (3,), 8)


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

    def of(self, features: NDArray[Any], step: int, origin: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """Return the view of features (C, H, W), one position every ``step`` px from an origin on, in this box."""
        top, left, bottom, right = (edge // step for edge in self)
        row, column = (edge // step for edge in origin)
        return features[:, top - row : bottom - row, left - column : right - column]


class Level(NamedTuple):
    """Features (C, H, W) of a whole picture, one position every ``step`` px, and how they are changed when read."""

    features: NDArray[Any]
    step: int
    change: Affine | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture, px."""
        return self.features.shape[1] * self.step, self.features.shape[2] * self.step


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
        strength: α, from 0, the photograph, to 1: features are blended, not pictures.
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
        self.styles = [self.statistics(path) for path in paintings]

    @functools.cache  # noqa: B019
    def session(self, name: str) -> Any:
        """Return the session of a graph."""
        return create_session((FOLDER / f"{name}.onnx").read_bytes(), self.providers, self.threads, pool=False)

    def run(self, stage: Stage, inputs: Sequence[NDArray[Any]]) -> list[Features]:
        """Return the outputs (C, H, W) of a graph for inputs of the same kind."""
        session = self.session(stage.name)
        names = [given.name for given in session.get_inputs()]
        feeds = {name: np.ascontiguousarray(given)[None] for name, given in zip(names, inputs, strict=True)}
        outputs: list[Features] = session.run(None, feeds)
        return [output[0] for output in outputs]

    def statistics(self, path: Path) -> list[Statistics]:
        """Return the statistics of a painting's features, fine to coarse."""
        painting = load_image(path)
        if max(painting.size) > LONGEST_PAINTING * min(painting.size):
            got = "×".join(map(str, painting.size))
            raise UserError(f"{path} is {got} px; one side may be {LONGEST_PAINTING} times the other: crop it")
        pixels = padded(resize_short_side(painting, PAINTING_SIZE))
        made = []
        for stage in (FINE, COARSE):
            for features in self.run(stage, [pixels]):
                moments = Moments(len(features))
                moments.add(features)
                made.append(moments.statistics())
        return made

    def change(self, moments: Moments, level: int, strength: float) -> Affine:
        """Return what is done to features of a level, given their moments over the whole picture."""
        content = moments.statistics()
        maps = [self.transform(content, style[level]) for style in self.styles]
        return mixed(maps, [strength * weight for weight in self.weights])

    def advance(self, stage: Stage, levels: Sequence[Level], wanted: Sequence[int], strength: float) -> list[Level]:
        """Return the levels that a graph makes of others, tile by tile, and how they are to be changed."""
        height, width = levels[0].size
        made = [
            np.empty((count, height // step, width // step), np.float32)
            for count, step in zip(stage.channels, stage.steps, strict=True)
        ]
        moments = self.moments(stage, levels, made)
        changes = [self.change(m, level, strength) for m, level in zip(moments, wanted, strict=True)]
        return [Level(*level) for level in zip(made, stage.steps, changes, strict=True)]

    def moments(
        self, stage: Stage, levels: Sequence[Level], made: Sequence[Features] | None = None
    ) -> list[Moments]:
        """Return the moments of what a graph makes of levels, over the whole picture, and keep that in arrays if given."""
        moments = [Moments(count) for count in stage.channels]
        for tile in boxes(*levels[0].size, self.tile):
            for i, features in enumerate(self.pass_through(stage, levels, tile)):
                moments[i].add(features)
                if made is not None:
                    tile.of(made[i], stage.steps[i])[:] = features
        return moments

    def pass_through(self, stage: Stage, levels: Sequence[Level], area: Box) -> list[Features]:
        """Return what a graph makes of levels, in an area."""
        seen = area.grown(stage.halo, *levels[0].size)
        outputs = self.run(stage, [changed(seen.of(e.features, e.step), e.change) for e in levels])
        return [area.of(output, step, seen[:2]) for output, step in zip(outputs, stage.steps, strict=True)]

    def decode(self, pixels: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
        """Return the picture (3, H, W) that the decoders make of another's features, changed on the way."""
        fine, coarse = self.advance(COARSE, [Level(pixels, 1, None)], (2, 3), strength)
        levels = self.advance(DECODERS[0], [coarse, fine], (2,), strength)
        del fine, coarse
        levels = self.advance(DECODERS[1], levels, (1,), strength)
        size, result = levels[0].size, np.empty_like(pixels)
        # The finest level is the largest: where there are several tiles it is made twice rather than kept.
        if len(tiles := boxes(*size, self.tile)) == 1:
            levels = self.advance(DECODERS[2], levels, (0,), strength)
            return to_pixels(self.pass_through(LAST, levels, tiles[0])[0])
        change = self.change(self.moments(DECODERS[2], levels)[0], 0, strength)
        for tile in tiles:
            seen = tile.grown(LAST.halo, *size)
            finest = changed(self.pass_through(DECODERS[2], levels, seen)[0], change)
            (picture,) = self.run(LAST, [finest])
            tile.of(result, 1)[:] = to_pixels(tile.of(picture, 1, seen[:2]))
        return result

    def stylize(self, picture: Image.Image) -> Image.Image:
        """Return the stylized picture of an RGB picture, of exactly its size."""
        pixels = padded(picture)
        stylized = self.decode(pixels, self.strength)
        if self.strength < 1:
            # What the decoders lose of the photograph comes back in the measure in which it is one.
            lost = pixels.astype(np.float32) - self.decode(pixels, 0.0)
            stylized = (stylized + (1 - self.strength) * lost).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(stylized.transpose(1, 2, 0)[: picture.height, : picture.width]))


def padded(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (3, H, W) of an RGB picture, repeated at the right and below to sides of whole strides."""
    pixels = np.asarray(picture).transpose(2, 0, 1)
    return np.pad(pixels, ((0, 0), (0, -picture.height % STRIDE), (0, -picture.width % STRIDE)), mode="edge")


def to_pixels(picture: Features) -> NDArray[np.uint8]:
    """Return RGB in [0, 1] as uint8, clipped, then rounded."""
    return (picture * 255).clip(0, 255).round().astype(np.uint8)
