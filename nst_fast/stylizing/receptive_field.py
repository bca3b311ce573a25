"""Where each tensor of an ONNX graph looks: which pixels of the picture a pixel of it follows from.

The graph runs once for a small picture, which gives every tensor's size; from operation to operation, steps and reaches
then add up as exact fractions. Instance norm counts as pointwise: its statistics are another matter.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper

from nst_fast.errors import UserError

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
SAMPLED_REACH = {b"nearest": 1, b"linear": 1, b"cubic": 2}  # of Resize, in pixels of the map that it samples
# The exporter's name of `Grain`'s map, which tells places of the picture apart: a tile needs its own part of it.
GRAIN = "network.grain.grain"

CreateSession = Callable[[bytes], Any]
Arrays = dict[str, np.ndarray]
Step = tuple[Fraction | int, Fraction | int, Fraction | int]  # what `Window.after` takes


class CannotTile(UserError):
    """A model may see the whole picture at once, or more of it than its graph tells."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model cannot be tiled: {reason}")


class SeesAll(CannotTile):
    """An operation may see the whole picture."""

    def __init__(self, node: onnx.NodeProto) -> None:
        super().__init__(f"{node.op_type} may see the whole picture at once")


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
    kind, shape, axes = node.op_type, values[node.output[0]].shape, source.axes
    if kind in REARRANGING:
        return rearrange(node, source, shape)
    if source.places is not None or len(shape) != 4:
        raise SeesAll(node)
    sizes = [(source.shape[a], shape[a]) for a in axes]
    if kind in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
        steps = slide(node, values)
    elif kind in ("Pad", "Slice"):
        steps = shift(node, source, values)
    elif kind == "Resize":
        steps = resample(node, sizes)
    elif kind in ("DepthToSpace", "SpaceToDepth"):
        steps = [(every, min(every - 1, Fraction(0)), max(every - 1, Fraction(0))) for every in ratios(sizes)]
    elif stays(node, axes, sizes, values):
        return replace(source, shape=shape)
    else:
        raise SeesAll(node)
    windows = [window.after(*step) for window, step in zip(source.windows, steps, strict=True)]
    return Map(shape, axes, (windows[0], windows[1]))


def ratios(sizes: Sequence[tuple[int, int]]) -> list[Fraction]:
    """Return how far apart in the old map indices of the new one are, from the (old, new) sizes of rows and columns."""
    return [Fraction(old, new) for old, new in sizes]


def slide(node: onnx.NodeProto, values: Arrays) -> list[Step]:
    """Return how rows and columns step for a convolution or pooling."""
    given = attributes(node)
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or "output_shape" in given:
        raise SeesAll(node)
    kernel = given.get("kernel_shape") or values[node.input[1]].shape[2:]
    pads, strides = given.get("pads", [0] * 4), given.get("strides", [1, 1])
    steps: list[Step] = []
    for i, dilation in enumerate(given.get("dilations", [1, 1])):
        reach = dilation * (kernel[i] - 1)
        if node.op_type == "ConvTranspose":
            every = Fraction(1, strides[i])
            steps.append((every, (pads[i] - reach) * every, pads[i] * every))
        else:
            steps.append((strides[i], -pads[i], reach - pads[i]))
    return steps


def shift(node: onnx.NodeProto, source: Map, values: Arrays) -> list[Step]:
    """Return how rows and columns step for a Pad or a Slice."""
    given = attributes(node)

    def integers(index: int) -> list[int]:
        name = node.input[index] if index < len(node.input) else ""
        return [int(value) for value in values[name]] if name else []

    starts = given["pads"] if "pads" in given else integers(1)
    over = [axis % 4 for axis in integers(3)] or list(range(4))
    every = (integers(4) if node.op_type == "Slice" else []) or [1] * 4
    if given.get("mode") == b"wrap" or min(every) < 1:
        raise SeesAll(node)
    steps: list[Step] = []
    for axis in source.axes:
        start, step = 0, 1
        if axis in over:
            start, step = starts[over.index(axis)], every[over.index(axis)]
            if node.op_type == "Pad":
                start = -start
            elif start < 0:
                start += source.shape[axis]
        steps.append((step, start, start))
    return steps


def resample(node: onnx.NodeProto, sizes: Sequence[tuple[int, int]]) -> list[Step]:
    """Return how rows and columns step for a Resize between (old, new) sizes."""
    given = attributes(node)
    mapping = given.get("coordinate_transformation_mode", b"half_pixel")
    reach = SAMPLED_REACH[given.get("mode", b"nearest")]
    if mapping not in (b"half_pixel", b"pytorch_half_pixel", b"asymmetric") or given.get("antialias"):
        raise SeesAll(node)
    steps: list[Step] = []
    for every in ratios(sizes):
        shift = (every - 1) / 2  # of half pixels; opset 10 knows none
        steps.append((every, min(shift, Fraction(0)) - reach, max(shift, Fraction(0)) + reach))
    return steps


def stays(node: onnx.NodeProto, axes: tuple[int, int], sizes: Sequence[tuple[int, int]], values: Arrays) -> bool:
    """Return whether each pixel of what a node makes is of the same pixel of its input, but for a norm's statistics."""
    if node.op_type == "Concat":
        return attributes(node)["axis"] % 4 not in axes
    if node.op_type == "InstanceNormalization":
        return axes == (2, 3) and values[node.output[0]].dtype == np.float32
    return node.op_type in POINTWISE and all(old == new for old, new in sizes)


def reached(nodes: list[onnx.NodeProto], *sources: str, but_for: str = "") -> set[str]:
    """Return the tensors that follow from some of them, but for what follows from an operation alone."""
    found = set(sources)
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


@dataclass(frozen=True)
class Trace:
    """Where a graph from one picture to another of its size looks.

    Attributes:
        image: the name of its input.
        result: the name of its output.
        dependent: the tensors that depend on the picture, if only on its size.
        maps: those that hold a picture.
        grained: those of the maps that the grain goes into.
        values: the tensors that depend on the picture, for the first probe.
        parameters: what nodes compute of weights alone for operations that are read here.
    """

    image: str
    result: str
    dependent: set[str]
    maps: dict[str, Map]
    grained: list[Map]
    values: Arrays
    parameters: Arrays


def trace(model: onnx.ModelProto, weights: Arrays, create: CreateSession) -> Trace:
    """Return where a graph looks.

    Args:
        model: one picture in, one out, every size free.
        weights: its initializers, by name.
        create: makes an onnxruntime session of a file's bytes.

    Raises CannotTile where an operation may see the whole picture at once, or the output is not of the input's size.
    """
    nodes = list(model.graph.node)
    image, result = next(i for i in model.graph.input if i.name not in weights), model.graph.output[0].name
    dependent = reached(nodes, image.name)
    grain = reached(nodes, GRAIN, but_for="Shape") - reached(nodes, image.name, but_for="Shape")
    computed = {name for node in nodes for name in node.output if name}
    # Parameters may come from a node: an exporter that finds two alike writes one and an Identity.
    read = ("Pad", "Slice", "InstanceNormalization", "Conv", "ConvTranspose")
    parameters = {name for node in nodes if node.op_type in read for name in node.input}
    probes = probe(model, image, sorted(computed & (dependent | parameters)), create)
    maps, *others = (read_maps(nodes, image.name, dependent - grain, weights | found) for found in probes)
    if any((m.axes, m.windows) != (maps[name].axes, maps[name].windows) for o in others for name, m in o.items()):
        raise CannotTile("where it looks depends on the picture's size")
    if result not in maps or not is_picture(maps[result]):
        raise CannotTile("its output is not a picture of its input's size")
    grained = [maps[node.output[0]] for node in nodes if grain & set(node.input) and node.output[0] in maps]
    if GRAIN in weights and (len(grained) != 1 or weights[GRAIN].ndim != 2):
        raise CannotTile(f"{GRAIN} is not used as the exporter does")
    constants = {name: value for name, value in probes[0].items() if name in parameters - dependent}
    return Trace(image.name, result, dependent, maps, grained, probes[0], constants)


def is_picture(result: Map) -> bool:
    """Return whether a map for the first probe has its size."""
    return all(
        window.step == 1 and result.shape[axis] >= size
        for window, axis, size in zip(result.windows, result.axes, PROBES[0], strict=True)
    )
