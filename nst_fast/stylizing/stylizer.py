"""Stylize pictures with an exported model, on onnxruntime: no torch is imported."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime
from PIL import Image

from nst_fast.assets import ASSETS, find_model, nearest
from nst_fast.errors import UserError, one_line
from nst_fast.stylizing.images import check_strength, load_image, to_rgb
from nst_fast.stylizing.peers import FLOATS, MULTIPLES, NEEDED, TYPES, channels_first, run_at_size, same_layout, trial
from nst_fast.stylizing.stroke import STRIP, Stroke, paint, stroke_size, underpainted
from nst_fast.stylizing.style_file import SUFFIX, StyleFile

if TYPE_CHECKING:
    from nst_fast.stylizing.tiling import Box, TiledModel

Arrays = dict[str, np.ndarray]
Style = str | Mapping[str, float]  # the name of a painting or a .style file, or weights of several

logger = logging.getLogger(__name__)
onnxruntime.disable_telemetry_events()  # on Windows; elsewhere `nst_fast` has turned them off before it was imported

METADATA_PREFIX = "nst_fast."
# A model's serial operations leave cores idle that other pictures or tiles can use.
RUNS_AT_ONCE = 3
TILED_ABOVE = 4_000_000  # pixels, about 2 GB of memory in one piece
BYTES_PER_PIXEL = 500  # of that memory
LARGEST_MIN_SIZE = 1024  # px: smaller pictures are padded to what a model says it needs
LARGEST_FIXED_SIZE = 1 << 28  # pixels of the one size that some models take
# The protobuf field 1, "location", in any encoding: every tensor that lies in another file has it. Old onnxruntimes
# read from wherever it says.
EXTERNAL_DATA = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
# What people call a device, as onnxruntime's provider with its options. Of GPUs auto takes cuda alone: with free sizes
# CoreML takes 6 to 8 times as long as the processor.
DEVICES: dict[str, tuple[str, dict[str, str]] | None] = {
    "auto": None,
    # The default search tries every algorithm at every new size of picture, and the default pool doubles as it grows.
    "cuda": (
        "CUDAExecutionProvider",
        {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
    ),
    "coreml": ("CoreMLExecutionProvider", {}),
    "directml": ("DmlExecutionProvider", {}),
    "cpu": ("CPUExecutionProvider", {}),
}


class Painter(Protocol):
    """What stylizes pictures: a model, or paintings."""

    threads: int
    runs_at_once: int

    @property
    def device(self) -> str:
        """The name of what computes."""

    @property
    def name(self) -> str:
        """What results are called after."""

    def stylize(
        self, picture: Image.Image, style: Style | None = None, stroke: Stroke = 1, strength: float = 1.0
    ) -> Image.Image:
        """Return the stylized picture of an RGB picture, of exactly its size, with strokes of a size and a strength."""

    @property
    def several(self) -> Painter:
        """One like it whose runs, `runs_at_once` at a time, share the threads."""


class Stylizer:
    """A reusable inference session: picture in, stylized picture of the same size out.

    Args:
        model: the name of a shipped model, or an ONNX file: one that `nst-export` or `train` wrote, uint8 (N, H, W, 3)
            RGB → the same; or another's, uint8 or, where ``pixel_range`` is given, float, channels first or last.
        threads: for the session; 0 takes every core.
        device: `DEVICES` has the names; ``auto`` takes cuda where onnxruntime can start it, else the processor.
        pixel_range: 1 or 255, what a foreign model calls white.
        bgr: whether a foreign model's channels are blue, green, red.
        tile: run even small pictures in tiles; large ones are anyway, where the model allows it.
        underpainting: how much of a first layer, painted in large strokes, lies under what the model paints, 0 to 1;
            None: what the model says of itself.

    Attributes:
        device: the name of what computes.
        metadata: what the model says of itself.
        paintings: what a model of several says of each, by name; of one, nothing.
        min_size: the least height and width that it takes, px.

    Raises UserError where the file is missing, is no ONNX model or is not one of ours and nothing says how to feed it.
    """

    def __init__(
        self,
        model: str | Path,
        threads: int = 0,
        *,
        device: str = "auto",
        pixel_range: int | None = None,
        bgr: bool = False,
        tile: bool = False,
        underpainting: float | None = None,
    ) -> None:
        self.path = path = find_model(str(model))
        if underpainting is not None and not 0 <= underpainting <= 1:
            raise UserError(f"underpainting is {underpainting}; it must be from 0 to 1")
        if not isinstance(threads, int) or threads < 0:
            raise UserError(f"threads is {threads!r}; it must be a whole number, 0 for every core")
        self.providers, self.threads, self.content = choose_providers(device), threads, read_model(path)
        self.session = self.start(self.content, device)
        # One run of a session at a time is all that DirectML allows.
        self.runs_at_once = 1 if self.device == "directml" else min(RUNS_AT_ONCE, threads or os.cpu_count() or 1)
        metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {
            key.removeprefix(METADATA_PREFIX): value
            for key, value in metadata.items()
            if key.startswith(METADATA_PREFIX)
        }
        self.foreign = "min_size" not in self.metadata
        self.paintings = self.read_paintings()
        shape = self.read_input(pixel_range)
        self.min_size, told = self.read_min_size(), self.read_underpainting()
        self.underpainting = told if underpainting is None else underpainting
        self.pixel_range = (pixel_range or (1 if self.floating else 255)) if self.foreign else 1
        self.bgr = bgr and self.foreign
        self.fixed_size = self.read_fixed_size(shape)
        self.multiple = 1  # px that sides have to be of, as far as is known of a foreign model
        self.tile = tile
        if tile:
            if self.fixed_size is not None:
                width, height = self.fixed_size
                raise UserError(f"{path} takes pictures of {width}×{height} only: it cannot be tiled")
            _ = self.tiled

    def read_input(self, pixel_range: int | None) -> list[Any]:
        """Set what the model's input is called and whether it is float, and return its shape.

        Raises UserError where it takes no pictures, or nothing says how to feed it.
        """
        inputs = self.session.get_inputs()
        try:
            self.channels_first = channels_first(inputs)
        except ValueError as error:
            raise UserError(f"{self.path} is no style model: {error}; {NEEDED}") from error
        (one,) = inputs
        self.input_name, self.input_type = one.name, TYPES[one.type]
        self.floating = one.type in FLOATS
        if self.foreign and self.floating and pixel_range is None:
            raise UserError(
                f"{self.path} does not say how its float input is scaled: give --pixel-range 1 or 255 (and --bgr)"
            )
        if not self.foreign and self.floating != self.channels_first:
            raise UserError(f"{self.path} is not as it was exported: its input is {one.type} of {one.shape}")
        return list(one.shape)

    def read_paintings(self) -> dict[str, dict[str, str]]:
        """Return what the model says of each of its paintings, by name; raises UserError where it does so wrongly."""
        sizes = {i.name: i.shape for i in self.session.get_overridable_initializers()}
        try:
            told = json.loads(self.metadata.get("paintings", "[]"))
            found = {painting["name"]: {key: str(value) for key, value in painting.items()} for painting in told}
            if len(found) != len(told) or (found and sizes.get("style_weights") != [len(found)]):
                raise ValueError("not as many as it has")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.path} is not as it was exported: what it says of its paintings: {error}") from error
        return found

    def feeds(self, style: Style | None) -> dict[str, np.ndarray]:
        """Return the values of the model's optional inputs for a style; none for None, which is its first painting.

        Raises UserError where the model has no such painting, a file is no style of its, or a weight is none.
        """
        if style is None:
            return {}
        weights = {style: 1.0} if isinstance(style, str) else dict(style)
        if not self.paintings:
            raise UserError(f"{self.path} has one style; a model of many, such as gallery, is needed to choose one")
        files = [name for name in weights if name.endswith(SUFFIX) and name not in self.paintings]
        if unknown := [name for name in weights if name not in self.paintings and name not in files]:
            raise UserError(f"no style {unknown[0]!r} in {self.name}: {nearest(unknown[0], self.paintings)}")
        numbers = all(isinstance(weight, Real) and weight >= 0 for weight in weights.values())
        total = sum(weights.values()) if numbers else 0
        if not 0 < total < math.inf:
            raise UserError(f"the weights of styles are {weights}; they must be at least 0, and one above it")
        sizes = {i.name: i.shape for i in self.session.get_overridable_initializers()}
        vector = np.zeros(sizes["style_vector"], np.float32)
        for name in files:
            found = StyleFile.load(os.path.expanduser(name), self.metadata.get("trunk", ""), len(vector))
            vector += np.float32(weights[name] / total) * np.array(found.vector, np.float32)
        shares = np.array([weights.get(name, 0) / total for name in self.paintings], np.float32)
        return {"style_weights": shares, "style_vector": vector}

    @functools.cached_property
    def photograph_feeds(self) -> Arrays:
        """The values with which the gallery gives photographs back; none for a model that has learned none."""
        known = {path.stem: path for path in (ASSETS / "photograph").glob(f"*{SUFFIX}")}
        path = known.get(self.metadata.get("trunk", "")) if self.paintings else None
        return self.feeds(None if path is None else str(path))

    def read_min_size(self) -> int:
        """Return the least height and width that the model takes, px; raises UserError where it says no such number."""
        least = self.metadata.get("min_size", "1")
        if not least.isdecimal() or len(least) > 9 or not 1 <= int(least) <= LARGEST_MIN_SIZE:
            raise UserError(f"{self.path} is not as it was exported: {METADATA_PREFIX}min_size is {least!r}")
        return int(least)

    def read_underpainting(self) -> float:
        """Return the share of the underpainting; raises UserError where the model says no such number."""
        told = self.metadata.get("underpainting", "0")
        if not re.fullmatch(r"0(\.\d{1,9})?|1", told, re.ASCII):
            raise UserError(f"{self.path} is not as it was exported: {METADATA_PREFIX}underpainting is {told!r}")
        return float(told)

    def read_fixed_size(self, shape: list[Any]) -> tuple[int, int] | None:
        """Return the one size (width, height), px, that a peer's model may be exported for: pictures are resized to it.

        Raises UserError where no picture has that size.
        """
        height, width = shape[2:] if self.channels_first else shape[1:3]
        if not isinstance(height, int) or not isinstance(width, int):
            return None
        if not 0 < width * height <= LARGEST_FIXED_SIZE:
            raise UserError(f"{self.path} takes pictures of {width}×{height} px alone, which is no sensible size")
        return width, height

    @property
    def device(self) -> str:
        """The name of what computes."""
        return device_name(self.providers)

    @property
    def name(self) -> str:
        """What results are called after."""
        return self.path.stem

    def start(self, content: bytes, wanted: str) -> Any:
        """Return a session on the first of the providers, or for ``auto`` on the processor where it does not start.

        Raises UserError where the model cannot be loaded, or the device that was wanted does not start.
        """
        device, reason = self.device, "its libraries are missing"
        try:
            session = self.create_session(content)
            if self.providers[0][0] in session.get_providers():
                if len(self.providers) > 1 and (feeds := trial(session.get_inputs())) is not None:
                    session.run(None, feeds)  # cuDNN, or code for this very GPU, may be found missing only now
                return session
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = one_line(error)
            if len(self.providers) == 1:
                raise UserError(f"{self.path} is no ONNX model that onnxruntime can load: {reason}") from error
        self.providers = self.providers[1:]
        session = self.start(content, wanted)  # which tells whether it is the model's fault
        if wanted != "auto":
            raise UserError(f"onnxruntime cannot start {device} ({reason}); install them, or leave --device out")
        logger.warning("onnxruntime cannot start %s (%s): the processor does the work; --device cpu", device, reason)
        return session

    @functools.cached_property
    def several(self) -> Stylizer:
        """One like it whose runs, `runs_at_once` at a time, share the threads. Its tiles take them all."""
        several = copy.copy(self)
        several.session = create_session(self.content, self.providers, threads_beside(self.threads, self.runs_at_once))
        return several

    @functools.cached_property
    def tiled_above(self) -> float:
        """Pixels of the largest picture that is run in one piece: as many as all runs at once find memory for."""
        memory = free_gpu_memory() if self.device == "cuda" else None
        return TILED_ABOVE if memory is None else 0.75 * memory / BYTES_PER_PIXEL / self.runs_at_once

    def create_session(self, content: bytes, pool: bool = True) -> Any:
        """Return an onnxruntime session of a model on this stylizer's device and threads."""
        return create_session(content, self.providers, self.threads, pool)

    @functools.cached_property
    def tiled(self) -> TiledModel:
        """The model cut into stages; raises UserError where it cannot be."""
        from nst_fast.stylizing.tiling import TiledModel  # here: most pictures need no tiles and no second library

        create = functools.partial(self.create_session, pool=False)
        return TiledModel(self.content, create, at_once=self.runs_at_once)

    @functools.cached_property
    def can_tile(self) -> bool:
        """Whether no operation of the model looks at the whole picture at once; a peer's may."""
        try:
            return self.tiled is not None
        except UserError:
            return False

    def needs_tiles(self, width: int, height: int) -> bool:
        """Return whether a picture is run in tiles."""
        if self.fixed_size is not None or min(width, height) < self.min_size:
            return False
        if self.foreign and self.floating != self.channels_first:  # tiles are laid out as ours and most peers' are
            return False
        return (self.tile or width * height > self.tiled_above) and self.can_tile

    def to_input(self, pictures: np.ndarray) -> np.ndarray:
        """Return pictures, uint8 RGB (N, H, W, 3), as the model takes them."""
        ordered = pictures[..., ::-1] if self.bgr else pictures
        if self.channels_first:
            ordered = ordered.transpose(0, 3, 1, 2)
        if not self.floating:
            return np.ascontiguousarray(ordered)
        return np.ascontiguousarray(ordered, self.input_type) * self.input_type(self.pixel_range / 255)

    def to_pictures(self, output: np.ndarray) -> np.ndarray:
        """Return the model's output as uint8 RGB (N, H, W, 3)."""
        pictures = same_layout(output, self.channels_first)
        if pictures.dtype != np.uint8:
            values = pictures.astype(np.float32, copy=False) * np.float32(255 / self.pixel_range)
            if np.isnan(values).any():  # what overflows is clipped below, this would be black
                raise UserError(f"{self.path} makes no numbers (NaN) of this picture")
            pictures = values.clip(0, 255).round().astype(np.uint8)
        return pictures[..., ::-1] if self.bgr else pictures

    @contextlib.contextmanager
    def running(self, width: int, height: int) -> Iterator[None]:
        """Report a failure of onnxruntime as a UserError: too little memory, a size that a peer's model cannot take."""
        try:
            yield
        except Exception as error:  # they share no base class
            raise UserError(f"{self.path} cannot stylize a picture of {width}×{height}: {one_line(error)}") from error

    def infer(self, values: np.ndarray, feeds: Arrays) -> np.ndarray:
        """Return the session's output for its input; UserError where it fails, or ours gives another shape or type."""
        height, width = values.shape[2:] if self.channels_first else values.shape[1:3]
        with self.running(width, height):
            output = self.session.run(None, {self.input_name: values, **feeds})[0]
        if not self.foreign and (np.shape(output) != values.shape or output.dtype != values.dtype):
            raise UserError(f"{self.path} is no style model: its output is not of the shape and type of its input")
        return output

    def run(self, pictures: np.ndarray, feeds: Arrays) -> np.ndarray:
        """Return the model's output, uint8 (N, H, W, 3), for pictures of a size that it takes."""
        if not self.floating and not self.foreign:
            return self.infer(pictures, feeds)
        # Models that are frozen to one picture a batch take them one by one.
        return np.concatenate([self.run_one(picture[None], feeds) for picture in pictures])

    def run_one(self, pictures: np.ndarray, feeds: Arrays) -> np.ndarray:
        """Return the output of a float or foreign model for one picture, uint8 (1, H, W, 3), at its size."""

        def at_any_size(given: np.ndarray) -> np.ndarray:
            output = self.infer(self.to_input(given), feeds)
            try:
                return self.to_pictures(output[:1] if np.ndim(output) == 4 else output)
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(f"{self.path} is no style model: {error}") from error

        # A model of one size gives what it gives: the caller resizes it.
        other_sizes = self.foreign and self.fixed_size is None
        return self.at_its_size(pictures, at_any_size) if other_sizes else at_any_size(pictures)

    def run_tiled(self, picture: Image.Image, feeds: Arrays) -> Image.Image:
        """Return the stylized picture of an RGB picture of any size, run tile by tile."""
        stylized = Image.new("RGB", picture.size)

        def read(box: Box) -> np.ndarray:
            return self.to_input(np.asarray(picture.crop(box))[None])

        def write(box: Box, output: np.ndarray) -> None:
            stylized.paste(Image.fromarray(np.ascontiguousarray(self.to_pictures(output)[0])), box)

        with self.running(*picture.size):
            self.tiled.run(picture.size, read, write, feeds)
        return stylized

    def run_tiles(self, pictures: np.ndarray, feeds: Arrays) -> np.ndarray:
        """Return the stylized picture of one of any size, uint8 (1, H, W, 3), run tile by tile."""

        def tiled(given: np.ndarray) -> np.ndarray:
            return np.asarray(self.run_tiled(Image.fromarray(given[0]), feeds))[None]

        return self.at_its_size(pictures, tiled) if self.foreign else tiled(pictures)

    def at_its_size(self, pictures: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return a foreign model's output at the size of pictures, and remember what sizes it needs."""
        stylized, needed = run_at_size(pictures, run, MULTIPLES[MULTIPLES.index(self.multiple) :])
        if min(pictures.shape[1:3]) > 2 * MULTIPLES[-1]:  # a smaller one may just have been too small
            self.multiple = needed
        return stylized

    def stylize_array(
        self, pictures: np.ndarray, style: Style | None = None, stroke: Stroke = 1, strength: float = 1.0
    ) -> np.ndarray:
        """Return stylized uint8 RGB (N, H, W, 3) of pictures of the same shape and type."""
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape:
            raise ValueError(f"got {pictures.dtype} {pictures.shape}; uint8 (N, H, W, 3), none of them 0, is needed")
        if stroke != 1 or strength != 1 or self.underpainting:
            images = (Image.fromarray(one) for one in pictures)
            return np.stack([np.asarray(self.stylize(image, style, stroke, strength)) for image in images])
        return self.run_once(pictures, style)

    def run_once(self, pictures: np.ndarray, style: Style | None = None) -> np.ndarray:
        """Return the stylized pictures of pictures that the model sees as they are, uint8 (N, H, W, 3)."""
        return self.run_fed(pictures, self.feeds(style))

    def run_fed(self, pictures: np.ndarray, feeds: Arrays) -> np.ndarray:
        """Return what `run_once` does, for values of the optional inputs."""
        height, width = pictures.shape[1:3]
        if self.needs_tiles(width, height):
            return np.concatenate([self.run_tiles(picture[None], feeds) for picture in pictures])
        if self.fixed_size is not None:
            resized = self.run(np.stack([resize(picture, self.fixed_size) for picture in pictures]), feeds)
            return np.stack([resize(picture, (width, height)) for picture in resized])
        rows, columns = max(0, self.min_size - height), max(0, self.min_size - width)
        if rows or columns:
            before = (rows // 2, columns // 2)
            around = ((0, 0), (before[0], rows - before[0]), (before[1], columns - before[1]), (0, 0))
            padded = self.run(np.pad(pictures, around, mode="edge"), feeds)
            return padded[:, before[0] : before[0] + height, before[1] : before[1] + width]
        return self.run(pictures, feeds)

    def stylize(
        self, picture: Image.Image, style: Style | None = None, stroke: Stroke = 1, strength: float = 1.0
    ) -> Image.Image:
        """Return the stylized picture of an RGB picture, of exactly its size, with strokes of a size and a strength.

        Between 0, the photograph, and 1 the gallery paints with a blend of two vectors, the style's and the one that
        gives photographs back. What that one loses of this photograph is added by its share: P(s style + (1 − s) own)
        + (1 − s) (photograph − P(own)). Other models' pictures are blended with the photograph.

        Raises UserError where the strength is out of its range, or the model takes pictures of one size alone, and its
        strokes are asked for in another.
        """
        check_strength(strength)
        feeds = self.feeds(style)
        if not 0 < strength < 1 or not (own := self.photograph_feeds):
            stylized = self.painted(picture, feeds, stroke)
            return stylized if strength == 1 else Image.blend(picture, stylized, strength)
        chosen = feeds or self.feeds(next(iter(self.paintings)))
        mixed = {name: np.float32(strength) * chosen[name] + np.float32(1 - strength) * own[name] for name in own}
        given_back = self.painted(picture, own, stroke)
        return add_lost(self.painted(picture, mixed, stroke), picture, given_back, 1 - strength)

    def painted(self, picture: Image.Image, feeds: Arrays, stroke: Stroke) -> Image.Image:
        """Return the stylized picture of an RGB picture, of exactly its size, for values of the optional inputs."""
        if self.fixed_size is None:
            smaller = stroke_size(stroke, picture.size)
        elif stroke in (1, "auto"):
            smaller = stroke_size(stroke, picture.size, min(self.fixed_size))
        else:
            got = "×".join(map(str, self.fixed_size))
            raise UserError(f"{self.path} sees every picture at {got}: strokes are of one size; leave stroke out")

        def run(seen: Image.Image) -> Image.Image:
            if self.needs_tiles(*seen.size) and not self.foreign:
                return self.run_tiled(seen, feeds)  # which takes no second copy of it
            return Image.fromarray(np.ascontiguousarray(self.run_fed(np.asarray(seen)[None], feeds)[0]))

        def layered(seen: Image.Image) -> Image.Image:
            return run(underpainted(run, seen, self.underpainting) if self.underpainting else seen)

        return paint(layered, picture, smaller)

    def __call__(
        self,
        image: Image.Image | np.ndarray | str | Path | bytes,
        style: Style | None = None,
        strength: float = 1.0,
        stroke: Stroke = 1,
    ) -> Any:
        """Return the stylized picture, of exactly the picture's size after its EXIF orientation is applied.

        A PIL image, a file or its bytes give an RGB PIL image, what is transparent over white; a uint8 array (H, W, 3)
        gives such an array. Raises UserError where a file is no picture, or an argument is out of its range.

        Args:
            image: the picture.
            style: of a model of many paintings, one's name or {name: weight} of several; None is the first.
            strength: 0 gives the photograph back, 1 the stylized picture.
            stroke: how many times as large strokes are as the model has learned them; above 1 edges come from the full
                picture. "auto": the same part of any picture.
        """
        if isinstance(image, np.ndarray):
            return self.stylize_array(image[None], style, stroke, strength)[0]
        photograph = to_rgb(image) if isinstance(image, Image.Image) else load_image(image)
        return self.stylize(photograph, style, stroke, strength)


def add_lost(
    painted: Image.Image, photograph: Image.Image, given_back: Image.Image, share: float, strip: int = STRIP
) -> Image.Image:
    """Add a share of what another picture lost of a photograph to a painted one, in place, and return it; all RGB."""
    rows = max(1, strip // painted.width)
    for top in range(0, painted.height, rows):
        box = (0, top, painted.width, min(top + rows, painted.height))
        values, whole, back = (np.asarray(p.crop(box), np.float32) for p in (painted, photograph, given_back))
        values = values + np.float32(share) * (whole - back)
        painted.paste(Image.fromarray(values.clip(0, 255).round().astype(np.uint8)), box)
    return painted


def read_model(path: Path) -> bytes:
    """Return a model file's bytes; raises UserError where it cannot be read or points to other files."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if b"location" in content and EXTERNAL_DATA.search(content):
        raise UserError(f"{path} keeps data in other files, which may be anyone's; a model in one file is needed")
    return content


def choose_providers(device: str) -> list[tuple[str, dict[str, str]]]:
    """Return onnxruntime's providers for a device, the processor last; UserError where it is not to be had."""
    if device not in DEVICES:
        raise UserError(f"unknown device {device!r}; there are {', '.join(DEVICES)}")
    known = {name: provider for name, provider in DEVICES.items() if provider is not None}
    offered = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if known["cuda"][0] in offered else "cpu"
    if known[device][0] not in offered:
        have = ", ".join(name for name, (provider, _) in known.items() if provider in offered)
        raise UserError(f"this onnxruntime cannot use {device}, only {have}; leave --device out, or install another")
    return list(dict([known[device], known["cpu"]]).items())


def device_name(providers: list[tuple[str, dict[str, str]]]) -> str:
    """Return what people call the device of the first provider."""
    return next(name for name, known in DEVICES.items() if known and known[0] == providers[0][0])


def among(painter: Painter, pixels: float) -> Painter:
    """Return what stylizes pictures of so many pixels while others of their size are under way.

    On a processor a run leaves part of a second thread idle, so that several with fewer threads end sooner; a large
    picture, which memory holds one of, takes all.
    """
    shared = painter.device == "cpu" and painter.runs_at_once > 1 and 2 * pixels <= TILED_ABOVE
    return painter.several if shared else painter


def threads_beside(threads: int, runs: int) -> int:
    """Return the threads, of so many in all, 0 for every core, of a session that several runs at once share.

    Its own are one fewer, and each run brings the one that it is called from.
    """
    return max(1, (threads or os.cpu_count() or 1) - runs + 1)


def create_session(
    content: bytes, providers: list[tuple[str, dict[str, str]]], threads: int = 0, pool: bool = True
) -> Any:
    """Return an onnxruntime session of a model on the first of the providers that starts, and so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = pool  # which keeps what a session once had: too much where there are many
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others use the cores meanwhile
    options.log_severity_level = 4  # its errors are raised, too
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if device_name(providers) == "directml":
        options.enable_mem_pattern = False  # which it cannot do
    # Its fallback prints on standard output and tries the same again.
    return onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)


def free_gpu_memory() -> int | None:
    """Return the free bytes of the NVIDIA GPU that has least, None where the driver does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return min(int(mebibytes) for mebibytes in told.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a uint8 picture (H, W, 3) at a size (width, height)."""
    if picture.shape[1::-1] == size:
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS))
