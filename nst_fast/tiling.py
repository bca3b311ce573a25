"""Pictures of any size in bounded memory: an ONNX style model run tile by tile, as if it saw the whole picture.

Instance norm looks at the whole picture. The graph is therefore cut at every InstanceNormalization into stages, and all
tiles go through a stage before any goes on to the next: the statistics of the whole picture are gathered from the tiles
on the way. A tile carries a halo as wide as the receptive field, so what is kept of it never sees the tile's edge.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nst_fast.errors import UserError

TILE = 1024  # px, side of what is kept of a tile
KEPT_BYTES = 2**30  # of intermediate maps, from which statistics are gathered; larger pictures are sampled
OLDEST_OPSET = 10  # Slice takes its bounds as inputs
PROBE = (160, 192)  # px, height and width of the picture that a graph's geometry is read from
# fmt: off
POINTWISE = frozenset({
    "Add", "BatchNormalization", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "InstanceNormalization", "LeakyRelu", "Max", "Min", "Mul", "PRelu", "Pow", "Relu", "Round", "Selu",
    "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
})
# fmt: on

Box = tuple[int, int, int, int]  # left, top, right, bottom, px
CreateSession = Callable[[bytes], Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Window:
    """Where an axis of a map looks: its index i sees pixels from i · step + first to i · step + last."""

    step: Fraction = Fraction(1)
    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)

    def after(self, every: Fraction, first: Fraction | int, last: Fraction | int) -> Window:
        """Return the window of an operation whose index i sees this map from i · every + first to i · every + last."""
        return Window(self.step * every, self.first + first * self.step, self.last + last * self.step)

    def __or__(self, other: Window) -> Window:
        """Return what either sees, at one step."""
        return Window(self.step, min(self.first, other.first), max(self.last, other.last))

    def indices(self, start: int, end: int | None) -> tuple[int, int]:
        """Return the half-open range of indices whose centres lie in the pixels [start, end), None being the edge."""
        centre = (self.first + self.last) / 2
        low = 0 if start == 0 else max(0, math.ceil((start - centre) / self.step))
        return low, 2**31 if end is None else math.ceil((end - centre) / self.step)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@dataclass(frozen=True)
class Map:
    """A tensor that holds a picture: its two spatial axes, and where they look."""

    axes: tuple[int, int]
    windows: tuple[Window, Window]
    shape: tuple[int, ...]


def follow(node: onnx.NodeProto, source: Map, values: Arrays) -> Map:
    """Return the map that a node makes of a map; raises UserError for an operation that may see the whole picture."""
    given, kind = attributes(node), node.op_type
    shape, axes = values[node.output[0]].shape, source.axes
    refusal = f"the model cannot be tiled: {kind} may see the whole picture at once"

    def integers(index: int) -> list[int]:
        name = node.input[index] if index < len(node.input) else ""
        return [int(value) for value in values[name]] if name else []

    if len(shape) != 4:  # on the way from or to a shuffle of pixels
        return source
    sizes = [(source.shape[a], shape[a]) for a in axes]
    windows = list(source.windows)
    if kind == "Transpose":
        axes = (list(given["perm"]).index(axes[0]), list(given["perm"]).index(axes[1]))
    elif kind in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise UserError(refusal)
        kernel = given.get("kernel_shape") or values[node.input[1]].shape[2:]
        pads, strides = given.get("pads", [0] * 4), given.get("strides", [1, 1])
        for i, dilation in enumerate(given.get("dilations", [1, 1])):
            reach = dilation * (kernel[i] - 1)
            if kind == "ConvTranspose":
                every = Fraction(1, strides[i])
                windows[i] = windows[i].after(every, (pads[i] - reach) * every, pads[i] * every)
            else:
                windows[i] = windows[i].after(Fraction(strides[i]), -pads[i], reach - pads[i])
    elif kind in ("Pad", "Slice"):
        starts = given["pads"] if "pads" in given else integers(1)
        over = integers(3) or list(range(4))
        steps = integers(4) or [1] * 4
        for i, axis in enumerate(axes):
            if axis in over:
                start, step = starts[over.index(axis)], steps[over.index(axis)] if kind == "Slice" else 1
                start = -start if kind == "Pad" else min(start, source.shape[axis])
                windows[i] = windows[i].after(Fraction(step), start, start)
    elif kind in ("Resize", "Upsample"):
        if given.get("mode", b"nearest") not in (b"nearest", b"linear"):
            raise UserError(refusal)
        for i, (old, new) in enumerate(sizes):  # no pixel further than one away
            every = Fraction(old, new)
            windows[i] = windows[i].after(every, (every - 3) / 2, (every + 1) / 2)
    elif kind in ("Reshape", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"):
        for i, (old, new) in enumerate(sizes):  # blocks of pixels into channels, or back
            every = Fraction(old, new)
            windows[i] = windows[i].after(every, min(every - 1, Fraction(0)), max(every - 1, Fraction(0)))
    elif kind == "Concat":
        if given["axis"] in axes:
            raise UserError(refusal)
    elif kind not in POINTWISE or any(old != new for old, new in sizes):
        raise UserError(refusal)
    return Map(axes, (windows[0], windows[1]), shape)


def probe(
    model: onnx.ModelProto, image: onnx.ValueInfoProto, dependent: set[str], create_session: CreateSession
) -> Arrays:
    """Return every tensor that depends on the picture, for a small black one, and the parameters of some nodes."""
    computed = {name for node in model.graph.node for name in node.output if name}
    # 1-D parameters may come from a node: an exporter that finds two alike writes one and an Identity.
    read = ("Pad", "Slice", "InstanceNormalization")
    parameters = {name for node in model.graph.node if node.op_type in read for name in node.input}
    wanted = sorted(computed & (dependent | parameters))
    probing = onnx.ModelProto()
    probing.CopyFrom(model)
    del probing.graph.output[:]
    probing.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    kind = image.type.tensor_type
    shape = (1, *PROBE, 3) if kind.shape.dim[3].dim_value == 3 else (1, 3, *PROBE)
    picture = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    found = create_session(probing.SerializeToString()).run(wanted, {image.name: picture})
    return {image.name: picture, **dict(zip(wanted, found, strict=True))}


def read_maps(nodes: list[onnx.NodeProto], image: str, values: Arrays) -> dict[str, Map]:
    """Return where every map of a graph looks, from the values of its tensors for a small picture."""
    axes = (1, 2) if values[image].shape[3] == 3 else (2, 3)
    maps = {image: Map(axes, (Window(), Window()), values[image].shape)}
    for node in nodes:
        made = [follow(node, maps[name], values) for name in node.input if name in maps and node.op_type != "Shape"]
        if made:
            if len({(m.axes, *(window.step for window in m.windows)) for m in made}) > 1:
                raise UserError(f"the model cannot be tiled: its {node.op_type} joins maps of different scales")
            windows = [functools.reduce(operator.or_, sides) for sides in zip(*(m.windows for m in made), strict=True)]
            maps[node.output[0]] = Map(made[0].axes, (windows[0], windows[1]), made[0].shape)
    return maps


def reductions(tensor: str) -> list[onnx.NodeProto]:
    """Return nodes that take mean and variance of every channel over the core of a map (1, C, H, W)."""
    return [
        helper.make_node("Slice", [tensor, "start", "end", "spatial"], ["core"]),
        helper.make_node("Shape", ["core"], ["shape"]),
        helper.make_node("GlobalAveragePool", ["core"], ["mean"]),
        helper.make_node("Sub", ["core", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squared"]),
        helper.make_node("GlobalAveragePool", ["squared"], ["variance"]),
    ]


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

    Attributes:
        halo: pixels around it that are looked at.
        stride: what the origins of tiles are multiples of.

    Raises UserError where an operation of the graph may see the whole picture at once.
    """

    def __init__(self, content: bytes, create_session: CreateSession, tile: int = TILE) -> None:
        model = onnx.load_from_string(content)
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        if opset < OLDEST_OPSET:
            raise UserError(f"the model cannot be tiled: it is of opset {opset}, {OLDEST_OPSET} is needed")
        nodes = list(model.graph.node)
        self.values = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        image = next(i for i in model.graph.input if i.name not in self.values)
        self.image, self.result = image.name, model.graph.output[0].name
        dependent = {self.image}  # on the picture
        for node in nodes:
            if dependent & set(node.input):
                dependent |= set(node.output) - {""}
        self.values |= probe(model, image, dependent, create_session)
        maps = read_maps(nodes, self.image, self.values)
        self.axes = maps[self.result].axes
        self.stride = math.lcm(*(window.step.numerator for found in maps.values() for window in found.windows))
        reach = max(max(-window.first, window.last) for window in maps[self.result].windows)
        self.halo = math.ceil(reach / self.stride) * self.stride
        self.side = max(self.stride, tile // self.stride * self.stride)
        self.stages = self.cut(model, image, dependent, maps, create_session)
        most = max(sum(self.values[name].nbytes for name in stage.lives) for stage in self.stages)
        self.kept_pixels = KEPT_BYTES * math.prod(PROBE) // most

    def cut(
        self,
        model: onnx.ModelProto,
        image: onnx.ValueInfoProto,
        dependent: set[str],
        maps: dict[str, Map],
        create_session: CreateSession,
    ) -> list[Stage]:
        """Return the graph's stages: the nodes between two norms, in the order of the file."""

        def declare(name: str) -> onnx.ValueInfoProto:
            kind = helper.np_dtype_to_tensor_dtype(self.values[name].dtype)
            return helper.make_tensor_value_info(name, kind, [None] * self.values[name].ndim)

        def floats(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, 1, 1])

        nodes = list(model.graph.node)
        common = [node for node in nodes if not dependent & set(node.input)]
        cuts = [i for i, node in enumerate(nodes) if node.op_type == "InstanceNormalization"]
        lives, made, stages = frozenset({self.image}), {self.image}, []
        for number, (start, end) in enumerate(pairwise([0, *cuts, len(nodes)])):
            body = [node for node in nodes[start:end] if dependent & set(node.input)]
            inputs = [image if name == self.image else declare(name) for name in sorted(lives)]
            if number:
                factor, offset, scaled = f"factor_{number}", f"offset_{number}", f"scaled_{number}"
                inputs += [floats(factor), floats(offset)]
                body[:1] = [
                    helper.make_node("Mul", [body[0].input[0], factor], [scaled]),
                    helper.make_node("Add", [scaled, offset], list(body[0].output)),
                ]
            made |= {name for node in nodes[start:end] for name in node.output}
            norm = nodes[end] if end < len(nodes) else None
            later = {name for node in nodes[end:] for name in node.input} if norm else {self.result}
            kept = frozenset(made & dependent & later)
            outputs = [declare(name) for name in sorted(kept - lives)]
            initializers = list(model.graph.initializer)
            if norm:
                body += reductions(norm.input[0])
                integers = [helper.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in ("start", "end")]
                inputs += integers
                outputs += [
                    floats("mean"),
                    floats("variance"),
                    helper.make_tensor_value_info("shape", TensorProto.INT64, [4]),
                ]
                initializers.append(numpy_helper.from_array(np.array([2, 3]), "spatial"))
            used = {name for node in (*body, *common) for name in node.input}
            graph = helper.make_graph(
                [*common, *body], "stage", inputs, outputs, [w for w in initializers if w.name in used]
            )
            stage = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
            stages.append(
                Stage(
                    create_session(stage.SerializeToString()),
                    [value.name for value in inputs],
                    [value.name for value in outputs],
                    kept,
                    norm,
                    maps[norm.input[0]].windows if norm else None,
                )
            )
            lives = kept
        return stages

    def tiles(self, width: int, height: int) -> list[Tile]:
        """Return tiles that cover a picture, row by row, all of about the same size."""

        def edges(length: int) -> list[int]:
            count = math.ceil(length / self.side)
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

    def advance(self, number: int, state: Arrays, norms: Arrays, tile: Tile) -> tuple[Arrays, Arrays]:
        """Take a tile through a stage: its new state, and the statistics of the next norm's input over its core."""
        stage = self.stages[number]
        feeds = {**state, **norms}
        if stage.windows:
            left, top, right, bottom = (p - tile.seen[i % 2] for i, p in enumerate(tile.core))
            rows = stage.windows[0].indices(top, None if tile.last[1] else bottom)
            columns = stage.windows[1].indices(left, None if tile.last[0] else right)
            feeds |= {"start": np.array([rows[0], columns[0]]), "end": np.array([rows[1], columns[1]])}
        answers = stage.session.run(stage.outputs, {name: feeds[name] for name in stage.inputs})
        found = dict(zip(stage.outputs, answers, strict=True))
        return {name: found[name] if name in found else state[name] for name in stage.lives}, found

    def merge(self, number: int, counted: list[Arrays]) -> Arrays:
        """Return factor and offset of the norm after a stage, from the statistics of tiles."""
        norm = self.stages[number].norm
        assert norm is not None
        pixels = np.array([np.prod(found["shape"][2:]) for found in counted], float).reshape(-1, 1, 1, 1)
        means = np.concatenate([found["mean"] for found in counted]).astype(float)
        variances = np.concatenate([found["variance"] for found in counted]).astype(float)
        mean = (pixels * means).sum(0) / pixels.sum()
        variance = (pixels * (variances + (means - mean) ** 2)).sum(0) / pixels.sum()
        scale, bias = (self.values[name].astype(float).reshape(-1, 1, 1) for name in norm.input[1:])
        factor = scale / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
        made = {f"factor_{number + 1}": factor, f"offset_{number + 1}": bias - mean * factor}
        return {name: value[None].astype(np.float32) for name, value in made.items()}

    def run(
        self, size: tuple[int, int], read: Callable[[Box], np.ndarray], write: Callable[[Box, np.ndarray], None]
    ) -> None:
        """Stylize a picture of a size (width, height), px, tile by tile.

        Args:
            size: of the picture.
            read: returns a box of the picture, as the model takes it.
            write: takes a box and the stylized pixels in it, as the model gives them.
        """
        tiles = self.tiles(*size)
        most = max(1, self.kept_pixels // (self.side + 2 * self.halo) ** 2)
        # Multiples of the golden ratio spread evenly, however many tiles there are in a row.
        chosen = sorted(range(len(tiles)), key=lambda i: i * 0.6180339887 % 1)[:most]
        states = {i: {self.image: read(tiles[i].seen)} for i in chosen}
        norms: Arrays = {}
        for number in range(len(self.stages) - 1):
            counted = []
            for i in chosen:
                states[i], found = self.advance(number, states[i], norms, tiles[i])
                counted.append({name: found[name] for name in ("shape", "mean", "variance")})
            norms |= self.merge(number, counted)
        if len(chosen) < len(tiles):
            states = {}  # what was gathered is enough: the memory goes to the result
        for i, tile in enumerate(tiles):
            state = states.pop(i, None)
            if state is not None:
                state, _ = self.advance(len(self.stages) - 1, state, norms, tile)
            else:
                state = {self.image: read(tile.seen)}
                for number in range(len(self.stages)):
                    state, _ = self.advance(number, state, norms, tile)
            left, top, right, bottom = (p - tile.seen[i % 2] for i, p in enumerate(tile.core))
            keep: list[slice] = [slice(None)] * 4
            keep[self.axes[0]], keep[self.axes[1]] = slice(top, bottom), slice(left, right)
            write(tile.core, state[self.result][tuple(keep)])
