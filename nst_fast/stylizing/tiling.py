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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from nst_fast.errors import UserError

TILE = 1024  # px, side of what is kept of a tile
KEPT_BYTES = 2**31  # of intermediate maps, from which statistics are gathered: about 40 megapixels of ours
# Larger pictures, which need memory themselves, are sampled: the more places the better, even at halos' cost.
SAMPLED_BYTES = 2**29
SAMPLED_TILE = 64  # px
OLDEST_OPSET = 10  # Slice takes its bounds as inputs
# px, height and width of the pictures that a graph's geometry is read from; it must not depend on their size
PROBES = ((160, 192), (149, 203))
# fmt: off
# ReduceMean is one over channels: over places it would change the size, which is refused.
POINTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "DequantizeLinear", "Div", "Dropout", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mish", "Mul", "Neg",
    "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMean", "Relu", "Round", "Selu", "Sigmoid", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Tanh",
})
# fmt: on
REARRANGING = frozenset({"Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# Tensors that cutting adds, for norm number {}
START, END, SPATIAL = "tiling/start", "tiling/end", "tiling/spatial"
FACTOR, OFFSET = "tiling/{}/factor", "tiling/{}/offset"
MEAN, VARIANCE, SHAPE = "tiling/{}/mean", "tiling/{}/variance", "tiling/{}/shape"
SAMPLED_REACH = {b"nearest": 1, b"linear": 1, b"cubic": 2}  # of Resize, in pixels of the map that it samples

# The exporter's name of `Grain`'s map, which tells places of the picture apart: a tile needs its own part of it.
GRAIN = "network.grain.grain"

Box = tuple[int, int, int, int]  # left, top, right, bottom, px
CreateSession = Callable[[bytes], Any]
Arrays = dict[str, np.ndarray]


class CannotTile(UserError):
    """A model may see the whole picture at once, or more of it than its graph tells."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model cannot be tiled: {reason}")


@dataclass(frozen=True)
class Window:
    """Where an axis of a map looks: its index i sees pixels from i · step + first to i · step + last."""

    step: Fraction = Fraction(1)
    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)

    def after(self, every: Fraction | int, first: Fraction | int, last: Fraction | int) -> Window:
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


@dataclass(frozen=True)
class Map:
    """A tensor that holds a picture.

    Attributes:
        shape: for the probe.
        axes: its rows and its columns.
        windows: where these look.
        places: row and column that every element came from, where the tensor is on the way between two of four axes.
    """

    shape: tuple[int, ...]
    axes: tuple[int, int]
    windows: tuple[Window, Window]
    places: tuple[np.ndarray, ...] | None = None


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def rearrange(node: onnx.NodeProto, source: Map, shape: tuple[int, ...]) -> Map:
    """Return the map that a node makes by putting elements elsewhere; raises CannotTile where they go far away."""
    places = source.places
    if places is None:
        indices = (np.arange(source.shape[a], dtype=np.int32) for a in source.axes)
        places = tuple(
            np.broadcast_to(index.reshape([-1 if a == axis else 1 for a in range(4)]), source.shape)
            for index, axis in zip(indices, source.axes, strict=True)
        )
    if node.op_type == "Transpose":
        order = attributes(node).get("perm")
        places = tuple(place.transpose(order) for place in places)
    else:
        places = tuple(place.reshape(shape) for place in places)
    if len(shape) != 4:
        return replace(source, shape=shape, places=places)
    axes, windows = [], []
    for window, place in zip(source.windows, places, strict=True):
        axis = int(np.argmax([np.ptp(place, a).max() for a in range(4)]))
        others = tuple(a for a in range(4) if a != axis)
        old, new = int(place.max()) + 1, shape[axis]
        ideal = np.arange(new) * old  # all in units of 1 / new
        first = Fraction(int((place.min(others) * new - ideal).min()), new)
        last = Fraction(int((place.max(others) * new - ideal).max()), new)
        every = Fraction(old, new)
        if max(-first, last) >= max(every, Fraction(1)):  # more than a block of pixels into channels, or back
            raise CannotTile(f"{node.op_type} moves pixels across the picture")
        axes.append(axis)
        windows.append(window.after(every, first, last))
    return Map(shape, (axes[0], axes[1]), (windows[0], windows[1]))


def follow(node: onnx.NodeProto, source: Map, values: Arrays) -> Map:
    """Return the map that a node makes of a map; raises CannotTile for an operation that may see the whole picture."""
    given, kind = attributes(node), node.op_type
    shape, axes, windows = values[node.output[0]].shape, source.axes, list(source.windows)
    refusal = CannotTile(f"{kind} may see the whole picture at once")

    def integers(index: int) -> list[int]:
        name = node.input[index] if index < len(node.input) else ""
        return [int(value) for value in values[name]] if name else []

    if kind in REARRANGING:
        return rearrange(node, source, shape)
    if source.places is not None or len(shape) != 4:
        raise refusal
    sizes = [(source.shape[a], shape[a]) for a in axes]
    if kind in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or "output_shape" in given:
            raise refusal
        kernel = given.get("kernel_shape") or values[node.input[1]].shape[2:]
        pads, strides = given.get("pads", [0] * 4), given.get("strides", [1, 1])
        for i, dilation in enumerate(given.get("dilations", [1, 1])):
            reach = dilation * (kernel[i] - 1)
            if kind == "ConvTranspose":
                every = Fraction(1, strides[i])
                windows[i] = windows[i].after(every, (pads[i] - reach) * every, pads[i] * every)
            else:
                windows[i] = windows[i].after(strides[i], -pads[i], reach - pads[i])
    elif kind in ("Pad", "Slice"):
        starts = given["pads"] if "pads" in given else integers(1)
        over = [axis % 4 for axis in integers(3)] or list(range(4))
        steps = (integers(4) if kind == "Slice" else []) or [1] * 4
        if given.get("mode") == b"wrap" or min(steps) < 1:
            raise refusal
        for i, axis in enumerate(axes):
            if axis in over:
                start, step = starts[over.index(axis)], steps[over.index(axis)]
                if kind == "Pad":
                    start = -start
                elif start < 0:
                    start += source.shape[axis]
                windows[i] = windows[i].after(step, start, start)
    elif kind == "Resize":
        mapping = given.get("coordinate_transformation_mode", b"half_pixel")
        reach = SAMPLED_REACH[given.get("mode", b"nearest")]
        if mapping not in (b"half_pixel", b"pytorch_half_pixel", b"asymmetric") or given.get("antialias"):
            raise refusal
        for i, (old, new) in enumerate(sizes):
            every = Fraction(old, new)
            shift = (every - 1) / 2  # of half pixels; opset 10 knows none
            windows[i] = windows[i].after(every, min(shift, Fraction(0)) - reach, max(shift, Fraction(0)) + reach)
    elif kind in ("DepthToSpace", "SpaceToDepth"):
        for i, (old, new) in enumerate(sizes):
            every = Fraction(old, new)
            windows[i] = windows[i].after(every, min(every - 1, Fraction(0)), max(every - 1, Fraction(0)))
    elif kind == "Concat":
        if given["axis"] % 4 in axes:
            raise refusal
    elif kind == "InstanceNormalization":
        if axes != (2, 3) or values[node.output[0]].dtype != np.float32:
            raise refusal
    elif kind not in POINTWISE or any(old != new for old, new in sizes):
        raise refusal
    return Map(shape, axes, (windows[0], windows[1]))


def reached(nodes: list[onnx.NodeProto], source: str, but_for: str = "") -> set[str]:
    """Return the tensors that follow from one of them, but for what follows from an operation alone."""
    found = {source}
    for node in nodes:
        if node.op_type != but_for and found & set(node.input):
            found |= set(node.output) - {""}
    return found


def read_maps(nodes: list[onnx.NodeProto], image: str, dependent: set[str], values: Arrays) -> dict[str, Map]:
    """Return where every map of a graph looks, from the values of its tensors for a probe.

    Raises CannotTile where a tensor that depends on the picture otherwise comes in.
    """
    axes = (1, 2) if values[image].shape[3] == 3 else (2, 3)
    maps = {image: Map(values[image].shape, axes, (Window(), Window()))}
    for node in nodes:
        seen = [name for name in node.input if name in maps]
        if not seen or node.op_type == "Shape":
            continue
        # Shapes and bounds may depend on the picture's size; what is joined must be maps.
        joined = node.input if node.op_type in POINTWISE | {"Concat"} else node.input[:1]
        if any((name in maps) != (name in joined) for name in node.input if name in dependent):
            raise CannotTile(f"what {node.op_type} does depends on the whole picture")
        made = [follow(node, maps[name], values) for name in seen]
        if len({(m.axes, *(window.step for window in m.windows)) for m in made}) > 1:
            raise CannotTile(f"{node.op_type} joins maps of different scales")
        windows = [functools.reduce(operator.or_, sides) for sides in zip(*(m.windows for m in made), strict=True)]
        maps[node.output[0]] = replace(made[0], windows=(windows[0], windows[1]))
    return maps


def probe(model: onnx.ModelProto, image: onnx.ValueInfoProto, names: list[str], create: CreateSession) -> list[Arrays]:
    """Return tensors of a graph for small black pictures of the sizes in PROBES that it takes.

    Raises CannotTile where it does not take the first.
    """
    probing = onnx.ModelProto()
    probing.CopyFrom(model)
    del probing.graph.output[:]
    probing.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = create(probing.SerializeToString())
    kind, found = image.type.tensor_type, list[Arrays]()
    for size in PROBES:
        shape = (1, *size, 3) if kind.shape.dim[3].dim_value == 3 else (1, 3, *size)
        picture = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        try:
            answers = session.run(names, {image.name: picture})
        except Exception as error:  # onnxruntime's exceptions share no base class
            if found:  # it takes even sizes only: then none can mislead
                break
            raise CannotTile(f"it does not take a picture of {size[1]}×{size[0]}") from error
        found.append({image.name: picture, **dict(zip(names, answers, strict=True))})
    return found


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
        nodes = list(model.graph.node)
        if any(a.type in (a.GRAPH, a.GRAPHS) for node in nodes for a in node.attribute):
            raise CannotTile("it has branches or loops")
        self.weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        image = next(i for i in model.graph.input if i.name not in self.weights)
        self.image, self.result = image.name, model.graph.output[0].name
        dependent = reached(nodes, self.image)  # on the picture, if only on its size
        grain = reached(nodes, GRAIN, but_for="Shape") - reached(nodes, self.image, but_for="Shape")
        computed = {name for node in nodes for name in node.output if name}
        # 1-D parameters may come from a node: an exporter that finds two alike writes one and an Identity.
        read = ("Pad", "Slice", "InstanceNormalization")
        parameters = {name for node in nodes if node.op_type in read for name in node.input}
        probes = probe(model, image, sorted(computed & (dependent | parameters)), create_session)
        maps, *others = (read_maps(nodes, self.image, dependent - grain, self.weights | found) for found in probes)
        if any((m.axes, m.windows) != (maps[name].axes, maps[name].windows) for o in others for name, m in o.items()):
            raise CannotTile("where it looks depends on the picture's size")
        self.weights |= {name: value for name, value in probes[0].items() if name in parameters - dependent}
        result = maps.get(self.result)
        if result is None or any(
            window.step != 1 or result.shape[axis] < size
            for window, axis, size in zip(result.windows, result.axes, PROBES[0], strict=True)
        ):
            raise CannotTile("its output is not a picture of its input's size")
        grained = [maps[node.output[0]] for node in nodes if grain & set(node.input) and node.output[0] in maps]
        if GRAIN in self.weights and (len(grained) != 1 or self.weights[GRAIN].ndim != 2):
            raise CannotTile(f"{GRAIN} is not used as the exporter does")
        self.grain_steps = [int(window.step) for found in grained for window in found.windows]
        self.axes = result.axes
        self.stride = math.lcm(*(window.step.numerator for found in maps.values() for window in found.windows))
        reach = max(max(-window.first, window.last) for window in result.windows)
        self.halo = math.ceil(reach / self.stride) * self.stride
        self.tile, self.at_once = tile, at_once
        self.stages = self.cut(model, probes[0], dependent, maps, create_session)
        kept = [{self.image}, *(stage.lives for stage in self.stages[:-2])]
        self.bytes_per_pixel = max(sum(probes[0][n].nbytes for n in names) for names in kept) / math.prod(PROBES[0])

    def cut(
        self,
        model: onnx.ModelProto,
        values: Arrays,
        dependent: set[str],
        maps: dict[str, Map],
        create_session: CreateSession,
    ) -> list[Stage]:
        """Return the graph's stages: the nodes between two norms, in the order of the file."""
        nodes, extractor = list(model.graph.node), Extractor(open_norms(model, values))
        cuts = [i for i, node in enumerate(nodes) if node.op_type == "InstanceNormalization"]
        lives, made, stages = frozenset({self.image}), {self.image}, []
        for number, (start, end) in enumerate(pairwise([0, *cuts, len(nodes)])):
            norm = nodes[end] if end < len(nodes) else None
            made |= {name for node in nodes[start:end] for name in node.output}
            later = {name for node in nodes[end:] for name in node.input} if norm else {self.result}
            kept = frozenset(made & dependent & later)
            inputs, outputs = sorted(lives), sorted(kept - lives)
            if number:
                inputs += [FACTOR.format(number - 1), OFFSET.format(number - 1)]
            if any(GRAIN in node.input for node in nodes[start:end]):
                inputs.append(GRAIN)
            if norm:
                inputs += [START, END]
                outputs += [name.format(number) for name in (MEAN, VARIANCE, SHAPE)]
            session = create_session(extractor.extract_model(inputs, outputs).SerializeToString())
            windows = maps[norm.input[0]].windows if norm else None
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

    def advance(self, number: int, state: Arrays, norms: Arrays, tile: Tile) -> tuple[Arrays, Arrays]:
        """Take a tile through a stage: its new state, and the statistics of the next norm's input over its core."""
        stage = self.stages[number]
        feeds = {**state, **norms}
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

    def merge(self, number: int, counted: list[Arrays]) -> Arrays:
        """Return factor and offset of the norm after a stage, from the statistics of tiles."""
        norm = self.stages[number].norm
        assert norm is not None
        pixels, means, variances = (
            np.stack([found[name] for found in counted]).astype(float) for name in (SHAPE, MEAN, VARIANCE)
        )
        share = pixels[:, 2:].prod(1) / pixels[:, 2:].prod(1).sum()
        mean = np.tensordot(share, means, 1)
        variance = np.tensordot(share, variances + (means - mean) ** 2, 1)
        scale, bias = (self.weights[name].astype(float).reshape(-1, 1, 1) for name in norm.input[1:])
        factor = scale / np.sqrt(variance + attributes(norm).get("epsilon", 1e-5))
        made = {FACTOR: factor, OFFSET: bias - mean * factor}
        return {name.format(number): value.astype(np.float32) for name, value in made.items()}

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
        kept = self.bytes_per_pixel * sum(math.prod(tile.seen_size) for tile in tiles) <= KEPT_BYTES
        gathered = tiles if kept else self.sample(*size)
        states = [{self.image: read(tile.seen)} for tile in gathered]
        norms: Arrays = {}
        # The last norm's input has the size of the picture and is the largest: it is made twice rather than kept.
        last = len(self.stages) - 2

        def count(number: int, i: int) -> Arrays:
            state, found = self.advance(number, states[i], norms, gathered[i])
            if number < last:
                states[i] = state
            return {name: found[name.format(number)] for name in (SHAPE, MEAN, VARIANCE)}

        def finish(i: int) -> np.ndarray:
            state = states[i] if kept else {self.image: read(tiles[i].seen)}
            if kept:
                states[i] = {}
            for number in range(max(last, 0) if kept else 0, len(self.stages)):
                state, _ = self.advance(number, state, norms, tiles[i])
            left, top, right, bottom = tiles[i].kept
            keep: list[slice] = [slice(None)] * 4
            keep[self.axes[0]], keep[self.axes[1]] = slice(top, bottom), slice(left, right)
            return state[self.result][tuple(keep)]

        with ThreadPoolExecutor(self.at_once if kept else 1) as pool:  # huge pictures need the memory themselves
            for number in range(last + 1):
                counted = list(pool.map(functools.partial(count, number), range(len(gathered))))
                norms.update(self.merge(number, counted))
            if not kept:
                states.clear()  # the memory goes to the result
            for tile, output in zip(tiles, pool.map(finish, range(len(tiles))), strict=True):
                write(tile.core, output)
