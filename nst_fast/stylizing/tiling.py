"""Pictures of any size in bounded memory: an ONNX style model run tile by tile, as if it saw the whole picture.

Instance norm looks at the whole picture. The graph is therefore cut at every InstanceNormalization into stages, and all
tiles go through a stage before any goes on to the next: the statistics of the whole picture are gathered from the tiles
on the way. A tile carries a halo as wide as the receptive field, so what is kept of it never sees the tile's edge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from nst_fast.stylizing.receptive_field import (
    GRAIN,
    PROBES,
    Arrays,
    CannotTile,
    CreateSession,
    Trace,
    Window,
    attributes,
    reached,
    trace,
)

TILE = 1024  # px, side of what is kept of a tile
KEPT_BYTES = 2**31  # of intermediate maps, from which statistics are gathered: about 40 megapixels of ours
# Larger pictures, which need memory themselves, are sampled: the more places the better, even at halos' cost.
SAMPLED_BYTES = 2**29
SAMPLED_TILE = 64  # px
STYLE = ("style_weights", "style_vector")  # a gallery's optional inputs
OLDEST_OPSET = 10  # Slice takes its bounds as inputs
# Tensors that cutting adds, for norm number {}
START, END, SPATIAL = "tiling/start", "tiling/end", "tiling/spatial"
FACTOR, OFFSET = "tiling/{}/factor", "tiling/{}/offset"
MEAN, VARIANCE, SHAPE = "tiling/{}/mean", "tiling/{}/variance", "tiling/{}/shape"

Box = tuple[int, int, int, int]  # left, top, right, bottom, px


def reductions(number: int, tensor: str) -> list[onnx.NodeProto]:
    """Return nodes that take mean and variance of every channel over the core of the input of a norm (1, C, H, W)."""
    core, centred, squared = (f"tiling/{number}/{name}" for name in ("core", "centred", "squared"))
    mean, variance, shape = (name.format(number) for name in (MEAN, VARIANCE, SHAPE))
    return [
        helper.make_node("Slice", [tensor, START, END, SPATIAL], [core]),
        helper.make_node("Shape", [core], [shape]),
        helper.make_node("GlobalAveragePool", [core], [mean]),
        helper.make_node("Sub", [core, mean], [centred]),
        helper.make_node("Mul", [centred, centred], [squared]),
        helper.make_node("GlobalAveragePool", [squared], [variance]),
    ]


def open_norms(model: onnx.ModelProto, values: Arrays) -> onnx.ModelProto:
    """Return a graph whose instance norms are factors and offsets from outside, and whose statistics can be asked for.

    FACTOR, OFFSET, MEAN, VARIANCE and SHAPE are the names; statistics are taken over the indices from START to END.
    The tensors in ``values`` are declared, their sizes free.
    """
    nodes: list[onnx.NodeProto] = []
    declared = [helper.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in (START, END)]
    for name, value in values.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        declared.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    number = 0
    for node in model.graph.node:
        if node.op_type != "InstanceNormalization":
            nodes.append(node)
            continue
        factor, offset, mean, variance = (name.format(number) for name in (FACTOR, OFFSET, MEAN, VARIANCE))
        scaled = f"tiling/{number}/scaled"
        nodes += reductions(number, node.input[0])
        nodes.append(helper.make_node("Mul", [node.input[0], factor], [scaled]))
        nodes.append(helper.make_node("Add", [scaled, offset], list(node.output)))
        for name in (factor, offset, mean, variance):
            declared.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, 1, 1]))
        declared.append(helper.make_tensor_value_info(SHAPE.format(number), TensorProto.INT64, [4]))
        number += 1
    weights = {weight.name for weight in model.graph.initializer}
    declared += [given for given in model.graph.input if given.name in weights]  # of a style
    for weight in model.graph.initializer:
        if weight.name == GRAIN:  # comes with the tile
            declared.append(helper.make_tensor_value_info(GRAIN, weight.data_type, weight.dims))
    initializers = [w for w in model.graph.initializer if w.name != GRAIN]
    initializers += [numpy_helper.from_array(np.array([2, 3]), SPATIAL)]
    graph = helper.make_graph(nodes, "opened", [], [], initializers, value_info=declared)
    # Before version 4, initializers had to be inputs.
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))


@dataclass(frozen=True)
class Tile:
    """A part of a picture.

    Attributes:
        core: what is kept of it.
        seen: what is looked at for it.
        last: whether it ends at the picture's right edge, and at its bottom.
    """

    core: Box
    seen: Box
    last: tuple[bool, bool]

    @property
    def seen_size(self) -> tuple[int, int]:
        """Width and height of what is looked at, px."""
        return self.seen[2] - self.seen[0], self.seen[3] - self.seen[1]

    @property
    def kept(self) -> Box:
        """The core within what is seen."""
        left, top = self.seen[:2]
        return self.core[0] - left, self.core[1] - top, self.core[2] - left, self.core[3] - top


@dataclass(frozen=True)
class Stage:
    """The graph from one norm, which it applies, to the next one's input, which it takes the statistics of."""

    session: Any
    inputs: list[str]
    outputs: list[str]
    lives: frozenset[str]  # tensors that later stages need
    norm: onnx.NodeProto | None  # the one that comes next; None: the last stage
    windows: tuple[Window, Window] | None  # of that norm's input


class TiledModel:
    """A style model cut into stages at its instance norms.

    Args:
        content: the ONNX file's bytes; one picture in, one out, every size free.
        create_session: makes an onnxruntime session of such bytes.
        tile: side of what is kept of a tile, px.
        at_once: how many tiles run at the same time: a model's serial operations leave cores idle.

    Attributes:
        halo: pixels around it that are looked at.
        stride: what the origins of tiles are multiples of.

    Raises UserError where an operation of the graph may see the whole picture at once.
    """

    def __init__(self, content: bytes, create_session: CreateSession, tile: int = TILE, at_once: int = 1) -> None:
        model = onnx.load_from_string(content)
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        if opset < OLDEST_OPSET:
            raise CannotTile(f"it is of opset {opset}, {OLDEST_OPSET} is needed")
        if any(a.type in (a.GRAPH, a.GRAPHS) for node in model.graph.node for a in node.attribute):
            raise CannotTile("it has branches or loops")
        self.weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        graph = trace(model, self.weights, create_session)
        self.weights |= graph.parameters
        self.image, self.result = graph.image, graph.result
        self.grain_steps = [int(window.step) for grained in graph.grained for window in grained.windows]
        self.axes, windows = graph.maps[self.result].axes, graph.maps[self.result].windows
        self.stride = math.lcm(*(window.step.numerator for found in graph.maps.values() for window in found.windows))
        reach = max(max(-window.first, window.last) for window in windows)
        self.halo = math.ceil(reach / self.stride) * self.stride
        self.tile, self.at_once = tile, at_once
        # Not weights, which old exporters list as inputs, too.
        self.optional = [i.name for i in model.graph.input if i.name in STYLE]
        style = reached(list(model.graph.node), *self.optional)
        self.stages = self.cut(model, graph, style, create_session)
        # Scales and biases of norms that follow from a style.
        norms = {n for node in model.graph.node if node.op_type == "InstanceNormalization" for n in node.input}
        self.computed = sorted(graph.parameters.keys() & style & norms)
        if self.computed:
            computing = onnx.ModelProto()
            computing.CopyFrom(model)
            computing.graph.value_info.extend(onnx.ValueInfoProto(name=name) for name in self.computed)
            computing = Extractor(computing).extract_model(self.optional, self.computed)
            computing.graph.initializer.extend(w for w in model.graph.initializer if w.name in self.optional)
            self.style = create_session(computing.SerializeToString())
        kept = [{self.image}, *(stage.lives for stage in self.stages[:-2])]
        self.bytes_per_pixel = max(sum(graph.values[n].nbytes for n in names) for names in kept) / math.prod(PROBES[0])

    def cut(self, model: onnx.ModelProto, graph: Trace, style: set[str], create_session: CreateSession) -> list[Stage]:
        """Return the graph's stages: the nodes between two norms, in the order of the file.

        One whose maps depend on a ``style``, the tensors that follow from it, takes the model's optional inputs, too.
        """
        nodes, extractor = list(model.graph.node), Extractor(open_norms(model, graph.values))
        cuts = [i for i, node in enumerate(nodes) if node.op_type == "InstanceNormalization"]
        lives, made, stages = frozenset({self.image}), {self.image}, []
        for number, (start, end) in enumerate(pairwise([0, *cuts, len(nodes)])):
            norm = nodes[end] if end < len(nodes) else None
            made |= {name for node in nodes[start:end] for name in node.output}
            later = {name for node in nodes[end:] for name in node.input} if norm else {self.result}
            kept = frozenset(made & graph.dependent & later)
            on_maps = [node for node in nodes[start:end] if graph.dependent & set(node.output)]
            others = [node for node in on_maps if node.op_type != "InstanceNormalization"]
            styled = any((style - graph.dependent) & set(node.input) for node in others)
            inputs, outputs = sorted(lives) + styled * self.optional, sorted(kept - lives)
            if number:
                inputs += [FACTOR.format(number - 1), OFFSET.format(number - 1)]
            if any(GRAIN in node.input for node in nodes[start:end]):
                inputs.append(GRAIN)
            if norm:
                inputs += [START, END]
                outputs += [name.format(number) for name in (MEAN, VARIANCE, SHAPE)]
            session = create_session(extractor.extract_model(inputs, outputs).SerializeToString())
            windows = graph.maps[norm.input[0]].windows if norm else None
            stages.append(Stage(session, inputs, outputs, kept, norm, windows))
            lives = kept
        return stages

    def tiles(self, width: int, height: int, tile: int | None = None) -> list[Tile]:
        """Return tiles that cover a picture, row by row, all of about the same size."""
        side = max(2, (tile or self.tile) // self.stride) * self.stride

        def edges(length: int) -> list[int]:
            count = math.ceil(length / side)
            return [round(i * length / count / self.stride) * self.stride for i in range(count)] + [length]

        return [
            Tile(
                (left, top, right, bottom),
                (
                    max(0, left - self.halo),
                    max(0, top - self.halo),
                    min(width, right + self.halo),
                    min(height, bottom + self.halo),
                ),
                (right == width, bottom == height),
            )
            for top, bottom in pairwise(edges(height))
            for left, right in pairwise(edges(width))
        ]

    def sample(self, width: int, height: int) -> list[Tile]:
        """Return small tiles from all over a picture, as many as SAMPLED_BYTES allow."""
        tiles = self.tiles(width, height, SAMPLED_TILE)
        most = SAMPLED_BYTES / self.bytes_per_pixel / (SAMPLED_TILE + 2 * self.halo) ** 2
        # Multiples of the golden ratio spread evenly, however many tiles there are in a row.
        order = sorted(range(len(tiles)), key=lambda i: i * 0.6180339887 % 1)
        return [tiles[i] for i in order[: max(1, int(most))]]

    def advance(self, number: int, state: Arrays, given: Arrays, tile: Tile) -> tuple[Arrays, Arrays]:
        """Take a tile through a stage: its new state, and the statistics of the next norm's input over its core."""
        stage = self.stages[number]
        feeds = {**state, **given}
        if stage.windows:
            left, top, right, bottom = tile.kept
            rows = stage.windows[0].indices(top, None if tile.last[1] else bottom)
            columns = stage.windows[1].indices(left, None if tile.last[0] else right)
            feeds |= {START: np.array([rows[0], columns[0]]), END: np.array([rows[1], columns[1]])}
        if GRAIN in stage.inputs:
            origin = [-start // step for start, step in zip(tile.seen[1::-1], self.grain_steps, strict=True)]
            feeds[GRAIN] = np.roll(self.weights[GRAIN], origin, (0, 1))
        answers = stage.session.run(stage.outputs, {name: feeds[name] for name in stage.inputs})
        found = dict(zip(stage.outputs, answers, strict=True))
        return {name: found[name] if name in found else state[name] for name in stage.lives}, found

    def weights_of(self, style: Arrays) -> Arrays:
        """Return the model's weights for values of its optional inputs."""
        if not self.computed:
            return self.weights
        return self.weights | dict(zip(self.computed, self.style.run(self.computed, style), strict=True))

    def merge(self, number: int, counted: list[Arrays], weights: Arrays) -> Arrays:
        """Return factor and offset of the norm after a stage, from the statistics of tiles."""
        norm = self.stages[number].norm
        assert norm is not None
        pixels, means, variances = (
            np.stack([found[name] for found in counted]).astype(float) for name in (SHAPE, MEAN, VARIANCE)
        )
        share = pixels[:, 2:].prod(1) / pixels[:, 2:].prod(1).sum()
        mean = np.tensordot(share, means, 1)
        variance = np.tensordot(share, variances + (means - mean) ** 2, 1)
        scale, bias = (weights[name].astype(float).reshape(-1, 1, 1) for name in norm.input[1:])
        factor = scale / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
        made = {FACTOR: factor, OFFSET: bias - mean * factor}
        return {name.format(number): value.astype(np.float32) for name, value in made.items()}

    def run(
        self,
        size: tuple[int, int],
        read: Callable[[Box], np.ndarray],
        write: Callable[[Box, np.ndarray], None],
        style: Arrays | None = None,
    ) -> None:
        """Stylize a picture of a size (width, height), px, tile by tile.

        Args:
            size: of the picture.
            read: returns a box of the picture, as the model takes it.
            write: takes a box and the stylized pixels in it, as the model gives them.
            style: values of the model's optional inputs; None: what the model has.
        """
        weights = self.weights_of(style or {})
        tiles = self.tiles(*size)
        kept = self.bytes_per_pixel * sum(math.prod(tile.seen_size) for tile in tiles) <= KEPT_BYTES
        gathered = tiles if kept else self.sample(*size)
        states = [{self.image: read(tile.seen)} for tile in gathered]
        given = {name: self.weights[name] for name in self.optional} | (style or {})  # and the norms, one by one
        # The last norm's input has the size of the picture and is the largest: it is made twice rather than kept.
        last = len(self.stages) - 2

        def count(number: int, i: int) -> Arrays:
            state, found = self.advance(number, states[i], given, gathered[i])
            if number < last:
                states[i] = state
            return {name: found[name.format(number)] for name in (SHAPE, MEAN, VARIANCE)}

        def finish(i: int) -> np.ndarray:
            state = states[i] if kept else {self.image: read(tiles[i].seen)}
            if kept:
                states[i] = {}
            for number in range(max(last, 0) if kept else 0, len(self.stages)):
                state, _ = self.advance(number, state, given, tiles[i])
            left, top, right, bottom = tiles[i].kept
            keep: list[slice] = [slice(None)] * 4
            keep[self.axes[0]], keep[self.axes[1]] = slice(top, bottom), slice(left, right)
            return state[self.result][tuple(keep)]

        with ThreadPoolExecutor(self.at_once if kept else 1) as pool:  # huge pictures need the memory themselves
            for number in range(last + 1):
                counted = list(pool.map(functools.partial(count, number), range(len(gathered))))
                given.update(self.merge(number, counted, weights))
            if not kept:
                states.clear()  # the memory goes to the result
            for tile, output in zip(tiles, pool.map(finish, range(len(tiles))), strict=True):
                write(tile.core, output)
