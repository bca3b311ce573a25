"""Quantise an exported model: its convolutions in 8-bit integers, which processors multiply several times faster.

Static quantisation of weights and activations (Jacob et al. 2018, 1712.05877), as QuantizeLinear and DequantizeLinear
around Conv, which onnxruntime joins. Instance norm makes more of the 8 bits than usual: as it undoes scale and offset
of a channel, every channel of a convolution before it is brought to fill the whole range. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image

from nst_fast.errors import UserError
from nst_fast.images import resize_short_side, write_atomically
from nst_fast.stylizer import METADATA_PREFIX, Stylizer

LEVELS = 255
# Of 127: two products with 255 then fit the 16 bits in which processors without VNNI add them, and saturate.
LARGEST_WEIGHT = 64
SHORT_SIDE = 256  # px of the photographs that ranges are measured on, as training sees them
LEAST_PSNR = 30.0  # dB from the model in floating point; released ones have 38 and more
KEPT = 99.999  # percent of the values of a photograph that are within the range, from either end
ALIGNED = 16  # output channels that onnxruntime's fast integer convolution takes a multiple of
# What leaves values as they are and can be done to integers; ConvTranspose is the exporter's `PhasePixels`.
CARRYING = frozenset({"Pad", "Resize", "ConvTranspose"})
SPATIAL_NHWC = {2: 1, 3: 2}  # axes of (N, C, H, W) in (N, H, W, C)


@dataclass
class Graph:
    """A graph that is being written, and what is known of the one that is read."""

    read: onnx.GraphProto
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = {t.name: numpy_helper.to_array(t) for t in self.read.initializer}
        self.producer = {name: node for node in self.read.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.read.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def constant(self, name: str, value: Any, kind: type) -> str:
        """Add an initializer and return its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def source(self, conv: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
        """Return the map that a convolution reads, and what carries it there."""
        name, carried = conv.input[0], list[onnx.NodeProto]()
        while name in self.producer and self.producer[name].op_type in CARRYING:
            carried.insert(0, self.producer[name])
            name = carried[0].input[0]
        return name, carried

    def followers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what follows a node, one after the other, as far as there is one reader each."""
        found = list[onnx.NodeProto]()
        while len(readers := self.consumers.get(node.output[0], [])) == 1:
            node = readers[0]
            found.append(node)
        return found


@dataclass(frozen=True)
class Step:
    """The scale and the zero point of 8-bit values, by the names of their initializers."""

    names: tuple[str, str]
    scale: float

    @classmethod
    def over(cls, graph: Graph, name: str, lowest: float, highest: float) -> Step:
        """Return what lays 256 values over a range, 0 exactly one of them."""
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        scale = np.float32((highest - lowest) / LEVELS or 1)
        zero = graph.constant(f"{name}/zero", round(-lowest / scale), np.uint8)
        return cls((graph.constant(f"{name}/scale", scale, np.float32), zero), float(scale))


def smaller(photograph: np.ndarray) -> np.ndarray:
    """Return a photograph (H, W, 3) of SHORT_SIDE."""
    return np.asarray(resize_short_side(Image.fromarray(photograph), SHORT_SIDE))


def measure(path: Path, model: onnx.ModelProto, names: list[str], photographs: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the lowest and the highest value of every channel, and of all, of tensors (N, C, H, W) of a model."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = Stylizer(path, device="cpu").create_session(tapped.SerializeToString())
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for photograph in photographs:
        for name, values in zip(names, session.run(names, {"image": smaller(photograph)[None]}), strict=True):
            ends = (100 - KEPT, KEPT)
            by_channel = np.percentile(values, ends, (0, 2, 3))
            found[name].append(np.concatenate([by_channel, np.percentile(values, ends)[:, None]], 1))
    return {name: (np.min(ends, 0)[0], np.max(ends, 0)[1]) for name, ends in found.items()}


def phase_order(graph: Graph, conv: onnx.NodeProto) -> np.ndarray | None:
    """Return the order of a convolution's channels that puts phases first, where they become pixels, or None."""
    after = [n for n in graph.followers(conv) if n.op_type not in ("InstanceNormalization", "Relu")]
    if not after or after[0].op_type != "ConvTranspose":
        return None
    weight = graph.values[after[0].input[1]]  # channel in, channel out, row, column
    chosen = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    order = chosen.argmax(1)
    if not np.array_equal(chosen[:, order], np.eye(len(weight))):
        raise ValueError("a transposed convolution that is no rearrangement")
    return order


def add_phase_pixels(graph: Graph, phases: str, name: str, channels: int) -> str:
    """Lay phases (N, H, W, 2 · 2 · C) out as pixels (N, 2 H, 2 W, C): whole rows of channels move, which is fast."""
    split = graph.constant(f"{name}/split", [0, 0, 0, 2, 2 * channels], np.int64)
    apart = graph.add("Reshape", [phases, split], f"{name}/apart")
    rows = graph.add("Transpose", [apart], f"{name}/rows", perm=[0, 1, 3, 2, 4])
    doubled = graph.constant(f"{name}/doubled", [1, 2, 2, 0], np.int64)
    last = graph.constant(f"{name}/last", [0, 0, 0, channels], np.int64)
    shape = graph.add("Mul", [graph.add("Shape", [phases], f"{name}/small"), doubled], f"{name}/large")
    return graph.add("Reshape", [rows, graph.add("Add", [shape, last], f"{name}/shape")], f"{name}/pixels")


def add_input(graph: Graph, conv: onnx.NodeProto, ranges: dict[str, Any]) -> tuple[str, Step]:
    """Add the 8-bit map that a convolution reads, carried to it, and return it with its step."""
    source, carried = graph.source(conv)
    lowest, highest = (float(end[-1]) for end in ranges[source])
    producer = graph.producer[source]
    if producer.op_type == "Relu":  # 8 bits that begin at 0 rectify
        source, lowest = producer.input[0], 0.0
    name = f"{conv.name}/x"
    step = Step.over(graph, name, lowest, highest)
    x = graph.add("QuantizeLinear", [source, *step.names], f"{name}/8")
    for number, node in enumerate(carried):
        if node.op_type == "ConvTranspose":
            x = graph.add("Transpose", [x], f"{name}/phases", perm=[0, 2, 3, 1])
            x = add_phase_pixels(graph, x, name, len(graph.values[node.input[1]]) // 4)
            x = graph.add("Transpose", [x], f"{name}/nchw", perm=[0, 3, 1, 2])
        else:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[0], copy.output[0], copy.name = x, f"{name}/{number}", f"{name}/{number}"
            graph.nodes.append(copy)
            x = copy.output[0]
    return x, step


def add_conv(
    graph: Graph, conv: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray, ranges: dict[str, Any], out: Step
) -> str:
    """Add a convolution of 8-bit maps, and return its output (N, O, H, W)."""
    name = conv.name
    x, step = add_input(graph, conv, ranges)
    scale = np.abs(weight).max((1, 2, 3)) / LARGEST_WEIGHT
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    whole = (weight / scale[:, None, None, None]).round()
    inputs = [graph.add("DequantizeLinear", [x, *step.names], f"{name}/x/float")]
    for part, value, unit, kind in (
        ("weight", whole, scale, np.int8),
        ("bias", (bias / (step.scale * scale)).round(), step.scale * scale, np.int32),
    ):
        names = (
            graph.constant(f"{name}/{part}", value, kind),
            graph.constant(f"{name}/{part}/scale", unit, np.float32),
        )
        inputs.append(graph.add("DequantizeLinear", names, f"{name}/{part}/float", axis=0))
    given = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    y = graph.add("Conv", inputs, f"{name}/y", **given)
    return graph.add("QuantizeLinear", [y, *out.names], f"{name}/y/8")


def add_inner_conv(graph: Graph, conv: onnx.NodeProto, ranges: dict[str, Any]) -> None:
    """Add a convolution and the norm that follows it, its channels in `phase_order`.

    The norm, given every channel scaled and moved as that fills 8 bits best, gives what it gave.
    """
    norm = graph.followers(conv)[0]
    weight, bias = (graph.values[name].astype(np.float64) for name in conv.input[1:3])
    lowest, highest = (end[:-1].astype(np.float64) for end in ranges[conv.output[0]])
    radius = (highest - lowest) / 2
    radius[radius == 0] = 1
    typical = float(np.median(radius))  # so that the norm's epsilon weighs as much as before
    weight *= (typical / radius)[:, None, None, None]
    bias = (bias - (highest + lowest) / 2) * typical / radius
    order = phase_order(graph, conv)
    if order is None:
        order = np.arange(len(weight))
    out = Step.over(graph, f"{conv.name}/y", -typical, typical)
    y = add_conv(graph, conv, weight[order], bias[order], ranges, out)
    y = graph.add("DequantizeLinear", [y, *out.names], f"{conv.name}/y/float")
    given = [graph.constant(f"{norm.name}/{n}", graph.values[n][order], np.float32) for n in norm.input[1:]]
    attributes = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
    graph.add("InstanceNormalization", [y, *given], norm.output[0], **attributes)


def add_picture(graph: Graph, conv: onnx.NodeProto, ranges: dict[str, Any]) -> None:
    """Add the last convolution, whose 8 bits are the picture's: they clip and round as the exported graph does."""
    weight, bias = (graph.values[name].astype(np.float64) for name in conv.input[1:3])
    channels, extra = len(weight), -len(weight) % ALIGNED
    order = phase_order(graph, conv)
    if order is not None:
        weight, bias = weight[order], bias[order]
    weight, bias = np.pad(weight, ((0, extra), (0, 0), (0, 0), (0, 0))), np.pad(bias, (0, extra))
    x = add_conv(graph, conv, weight, bias, ranges, Step.over(graph, f"{conv.name}/y", 0, 1))
    x = graph.add("Transpose", [x], f"{conv.name}/nhwc", perm=[0, 2, 3, 1])
    bounds = [graph.constant(f"{conv.name}/{n}", [v], np.int64) for n, v in (("from", 0), ("to", channels), ("of", 3))]
    x = graph.add("Slice", [x, *bounds], f"{conv.name}/channels")
    if order is not None:
        x = add_phase_pixels(graph, x, conv.name, channels // 4)
    for node in graph.followers(conv):
        if node.op_type == "Slice":  # cuts the margin off
            axes = [SPATIAL_NHWC[int(axis)] for axis in graph.values[node.input[3]]]
            moved = graph.constant(f"{node.name}/axes", axes, np.int64)
            x = graph.add("Slice", [x, *node.input[1:3], moved], f"{node.name}/8")
        elif node.op_type not in ("ConvTranspose", "Clip", "Mul", "Round", "Cast", "Transpose"):
            raise ValueError(f"{node.op_type} after the last convolution")
    graph.add("Identity", [x], graph.read.output[0].name)


def needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that outputs follow from, in their order."""
    kept = []
    for node in reversed(nodes):
        if outputs & set(node.output):
            outputs |= set(node.input)
            kept.append(node)
    return kept[::-1]


def quantize(path: str | Path, photographs: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Return an exported model with its convolutions in 8 bits, all but the first.

    Args:
        path: a file that `export` wrote, uint8 (N, H, W, 3) RGB in and out.
        photographs: uint8 RGB (H, W, 3), whose values in the model the 8 bits are laid over.

    Raises UserError where the file is no such model.
    """
    path = Path(path)
    stylizer = Stylizer(path, device="cpu", pixel_range=1)
    if stylizer.foreign or stylizer.floating:
        raise UserError(f"{path} cannot be quantised: a model that `train` wrote, uint8 in and out, is needed")
    if "int8_psnr" in stylizer.metadata:
        raise UserError(f"{path} is in 8-bit integers already")
    model = onnx.load_from_string(path.read_bytes())
    graph = Graph(model.graph)
    try:
        *inner, last = [node for node in model.graph.node if node.op_type == "Conv"][1:]
        followers = {conv.name: [node.op_type for node in graph.followers(conv)] for conv in inner}
        if any(kinds[:1] != ["InstanceNormalization"] for kinds in followers.values()):
            raise ValueError("a convolution without a norm")
        names = sorted({graph.source(conv)[0] for conv in (*inner, last)} | {conv.output[0] for conv in inner})
        ranges = measure(path, model, names, photographs)
        written = {last.name, *(node.name for node in graph.followers(last))}
        written |= {graph.followers(conv)[0].name for conv in inner}
        for node in model.graph.node:
            if node.name in followers:
                add_inner_conv(graph, node, ranges)
            elif node.name not in written:
                graph.nodes.append(node)
        add_picture(graph, last, ranges)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path} is not as `train` exported it and cannot be quantised: {error}") from error
    nodes = needed(graph.nodes, {model.graph.output[0].name})
    used = {name for node in nodes for name in node.input}
    initializers = [t for t in (*model.graph.initializer, *graph.initializers) if t.name in used]
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    del quantized.graph.node[:], quantized.graph.initializer[:]
    quantized.graph.node.extend(nodes)
    quantized.graph.initializer.extend(initializers)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 arrays, in dB."""
    error = np.square(first.astype(float) - second).mean()
    return float(10 * np.log10(LEVELS**2 / error)) if error else float("inf")


def export_int8(
    path: str | Path, output: str | Path, photographs: Sequence[np.ndarray], held_out: Sequence[np.ndarray]
) -> Path:
    """Write an exported model in 8 bits, after comparing both on photographs held out, and return its path.

    Its metadata are the model's, with ``int8_psnr``, dB, the least of those photographs.

    Raises UserError where the model is none of ours, comes out less than LEAST_PSNR from it, or cannot be written.
    """
    path, output = Path(path), Path(output)
    if output.suffix != ".onnx":
        raise UserError(f"cannot export to {output}: the name must end in .onnx")
    model = quantize(path, photographs)
    before = Stylizer(path, device="cpu")
    session = before.create_session(model.SerializeToString())
    pictures = [smaller(photograph)[None] for photograph in held_out]
    least = min(psnr(before.run(x), session.run(None, {"image": x})[0]) for x in pictures)
    if least < LEAST_PSNR:
        raise UserError(
            f"{path} comes out too different in 8 bits, {least:.1f} dB on photographs; {LEAST_PSNR:g} dB are needed: "
            "use it as it is"
        )
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_PREFIX + "int8_psnr", f"{least:.1f}"
    write_atomically(output, model.SerializeToString())
    return output
