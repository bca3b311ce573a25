"""Quantise an exported model: its convolutions in 8-bit integers, which processors multiply several times faster.

Static quantisation of weights and activations (Jacob et al. 2018, 1712.05877), as QuantizeLinear and DequantizeLinear
around Conv, which onnxruntime joins. Instance norm makes more of the 8 bits than usual: what comes out of a convolution
before it may have a range of its own in every channel, and is given back its scale, not its offset. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from nst_fast.errors import UserError, one_line
from nst_fast.files import write_atomically
from nst_fast.stylizing.images import resize_short_side
from nst_fast.stylizing.receptive_field import attributes, reached
from nst_fast.stylizing.stylizer import METADATA_PREFIX, Style, Stylizer

LEVELS = 255
# Of 127: two products with 255 then fit the 16 bits in which processors without VNNI add them, and saturate.
LARGEST_WEIGHT = 64
LARGEST_BIAS = 2**30  # of 32 bits, which sums of products are added to
SHORT_SIDE = 512  # px of the photographs that ranges are measured on: training has 160, users have more
LEAST_PSNR = 30.0  # dB from the model in floating point, in one run of each; released ones have 30.1 and more
# Percent of the values of a photograph that are within the range, from either end. With more the gallery's starry_night
# is coarse, with fewer its woggle_bug is clipped.
KEPT = 99.985
ALIGNED = 16  # output channels that onnxruntime's fast integer convolution takes a multiple of
# What leaves values as they are and can be done to integers; ConvTranspose is the exporter's `PhasePixels`.
CARRYING = frozenset({"Pad", "Resize", "ConvTranspose"})
APART = 5  # rows and columns from one window of 3×3 that is looked at to the next; of larger ones more
DAMPING = 0.001  # of the mean variance, added to every variance
ROUNDING = 1e-8  # of the mean square, likewise: variances are differences
# What may follow the last convolution; Conv is the map of colours.
AFTER_LAST = frozenset({"ConvTranspose", "Slice", "Conv", "Clip", "Mul", "Round", "Cast", "Transpose"})
SPATIAL_NHWC = {2: 1, 3: 2}  # axes of (N, C, H, W) in (N, H, W, C)


class Step(NamedTuple):
    """The scale and the zero point of 8-bit values, by the names of their initializers; and the scale."""

    scale: str
    zero: str
    size: float


@dataclass(frozen=True)
class Windows:
    """What some windows of a map hold, D values each: their number, sum (D,) and sum of products (D, D)."""

    count: float
    values: NDArray[np.float64]
    products: NDArray[np.float64]

    def __add__(self, other: Windows) -> Windows:
        return Windows(self.count + other.count, self.values + other.values, self.products + other.products)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of the values, (D,)."""
        return self.values / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Of the values, (D, D)."""
        mean = self.mean
        return self.products / self.count - mean[:, None] * mean


@dataclass(frozen=True)
class Range:
    """What the values of a map (N, C, H, W) lie between: the ends of every channel (2, C), and of all (2,)."""

    channels: np.ndarray
    whole: np.ndarray


class Graph:
    """A graph that is read, and the one that is written from it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

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

    def constant(self, name: str, value: Any, kind: type) -> str:
        """Add an initializer and return its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **given: Any) -> str:
        """Add a node and return its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **given))
        return output

    def add_again(self, node: onnx.NodeProto, inputs: Sequence[str], output: str) -> str:
        """Add a node that does what another does, to other inputs, and return its output."""
        return self.add(node.op_type, inputs, output, **attributes(node))

    def step(self, name: str, lowest: float, highest: float) -> Step:
        """Return what lays 256 values over a range, 0 exactly one of them."""
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        size = float(np.float32((highest - lowest) / LEVELS or 1))
        scale = self.constant(f"{name}/scale", size, np.float32)
        return Step(scale, self.constant(f"{name}/zero", round(-lowest / size), np.uint8), size)

    def dequantized(self, name: str, value: np.ndarray, scale: np.ndarray, kind: type) -> str:
        """Add integers of a scale for every output channel, and return what they stand for."""
        names = (self.constant(name, value, kind), self.constant(f"{name}/scale", scale, np.float32))
        return self.add("DequantizeLinear", names, f"{name}/float", axis=0)


def smaller(photograph: np.ndarray) -> np.ndarray:
    """Return a photograph (H, W, 3) of SHORT_SIDE, as a batch of one."""
    return np.asarray(resize_short_side(Image.fromarray(photograph), SHORT_SIDE))[None]


def run(
    stylizer: Stylizer, model: onnx.ModelProto, names: list[str], pictures: np.ndarray, styles: Sequence[Style | None]
) -> Iterator[list[np.ndarray]]:
    """Yield tensors of a model for pictures (N, H, W, 3) in each of some styles.

    Raises UserError, which names the stylizer's model, where it fails.
    """
    with stylizer.running(*pictures.shape[2:0:-1]):
        session = stylizer.create_session(model.SerializeToString())
        for style in styles:
            yield session.run(names, {stylizer.input_name: pictures, **stylizer.feeds(style)})


def every_style(stylizer: Stylizer) -> list[Style | None]:
    """Return the styles of a model that its 8 bits have to be good for: each painting, and two blends."""
    names = list(stylizer.paintings)
    blends = [dict.fromkeys(names, 1.0), {name: float(number % 3 == 0) for number, name in enumerate(names)}]
    return [*names, *blends] if names else [None]


def windows_of(values: np.ndarray, kernel: Sequence[int]) -> Windows:
    """Return what windows of a kernel's rows and columns hold of a map (1, C, H, W)."""
    apart = APART * kernel[0] // 3
    found = sliding_window_view(values[0], kernel, (1, 2))[:, ::apart, ::apart]
    flat = found.transpose(1, 2, 0, 3, 4).reshape(-1, len(found) * kernel[0] * kernel[1]).astype(np.float64)
    return Windows(len(flat), flat.sum(0), flat.T @ flat)


def measure(
    stylizer: Stylizer,
    model: onnx.ModelProto,
    names: list[str],
    kernels: Mapping[str, Sequence[int]],
    photographs: Sequence[np.ndarray],
) -> tuple[dict[str, Range], dict[str, Windows]]:
    """Return the ranges of maps of a model over photographs, by name, and the windows of the maps in ``kernels``."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    wanted = [*dict.fromkeys([*names, *kernels])]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    ends, found, windows = (100 - KEPT, KEPT), dict[str, Range](), dict[str, Windows]()
    styles = every_style(stylizer)
    values_of_all = (of_all for p in photographs for of_all in run(stylizer, tapped, wanted, smaller(p), styles))
    for of_all in values_of_all:
        given = dict(zip(wanted, of_all, strict=True))
        for name, kernel in kernels.items():
            newest = windows_of(given[name], kernel)
            windows[name] = windows[name] + newest if name in windows else newest
        for name in names:
            values = given[name]
            new = Range(np.percentile(values, ends, (0, 2, 3)), np.percentile(values, ends))
            old = found.get(name, new)
            pairs = ((old.channels, new.channels), (old.whole, new.whole))
            found[name] = Range(*(np.stack([np.minimum(a, b)[0], np.maximum(a, b)[1]]) for a, b in pairs))
    return found, windows


def rounded(weight: NDArray[np.float64], windows: Windows) -> NDArray[np.float64]:
    """Return weights (O, D) as whole numbers of at most LARGEST_WEIGHT, so that what they give differs least.

    One after the other is rounded. Those that are left make up for what it changes, as far as the values of windows go
    together (Frantar et al. 2023, "GPTQ", section 4). Departures: the weight of the largest variance comes first, and
    covariances stand for products, as norms and biases take care of means.

    Raises ValueError where the values are not finite.
    """
    covariance = windows.covariance
    if not np.isfinite(covariance).all():
        raise ValueError("a map that is not finite")
    variances, squares = np.diag(covariance), np.diag(windows.products) / windows.count
    order = np.argsort(-variances)
    left, whole, covariance = weight[:, order], np.empty_like(weight), covariance[order][:, order]
    covariance[np.diag_indices_from(covariance)] += DAMPING * variances.mean() + ROUNDING * squares.mean() + 1e-12
    # Row i of the factor, from i on, is what makes up for weight i.
    factor = np.linalg.cholesky(np.linalg.inv(covariance)).T
    for number, row in enumerate(factor):
        whole[:, number] = left[:, number].round().clip(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        error = (left[:, number] - whole[:, number]) / row[number]
        left[:, number:] -= error[:, None] * row[number:]
    return whole[:, np.argsort(order)]


def phase_order(graph: Graph, conv: onnx.NodeProto) -> np.ndarray:
    """Return the order of a convolution's channels that puts phases first, or leaves them, where there are none."""
    after = [n for n in graph.followers(conv) if n.op_type not in ("InstanceNormalization", "Relu")]
    if not has_phases(after[:1]):
        return np.arange(len(graph.values[conv.input[1]]))
    weight = graph.values[after[0].input[1]]  # channel in, channel out, row, column
    chosen = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    order = chosen.argmax(1)
    if not np.array_equal(chosen[:, order], np.eye(len(weight))):
        raise ValueError("a transposed convolution that is no rearrangement")
    return order


def has_phases(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Return whether one of some nodes makes phases pixels."""
    return any(node.op_type == "ConvTranspose" for node in nodes)


def add_phase_pixels(graph: Graph, phases: str, name: str, channels: int) -> str:
    """Lay phases (N, H, W, C), the channels of each beside each other, out as pixels (N, 2 H, 2 W, C / 4)."""
    split = graph.constant(f"{name}/split", [0, 0, 0, 2, channels // 2], np.int64)
    apart = graph.add("Reshape", [phases, split], f"{name}/apart")
    rows = graph.add("Transpose", [apart], f"{name}/rows", perm=[0, 1, 3, 2, 4])  # moves channels as they lie: fast
    doubled = graph.constant(f"{name}/doubled", [1, 2, 2, 0], np.int64)
    last = graph.constant(f"{name}/last", [0, 0, 0, channels // 4], np.int64)
    shape = graph.add("Mul", [graph.add("Shape", [phases], f"{name}/small"), doubled], f"{name}/large")
    return graph.add("Reshape", [rows, graph.add("Add", [shape, last], f"{name}/shape")], f"{name}/pixels")


def add_input(graph: Graph, conv: onnx.NodeProto, ranges: dict[str, Range]) -> tuple[str, Step]:
    """Add the 8-bit map that a convolution reads, carried to it, and return it with its step."""
    source, carried = graph.source(conv)
    name = f"{conv.output[0]}/x"
    step = graph.step(name, *ranges[source].whole)
    if graph.producer[source].op_type == "Relu":  # 8 bits that begin at 0 rectify
        source = graph.producer[source].input[0]
    x = graph.add("QuantizeLinear", [source, step.scale, step.zero], f"{name}/8")
    for number, node in enumerate(carried):
        if node.op_type == "ConvTranspose":
            x = graph.add("Transpose", [x], f"{name}/phases", perm=[0, 2, 3, 1])
            x = add_phase_pixels(graph, x, name, len(graph.values[node.input[1]]))
            x = graph.add("Transpose", [x], f"{name}/nchw", perm=[0, 3, 1, 2])
        else:
            x = graph.add_again(node, [x, *node.input[1:]], f"{name}/{number}")
    return x, step


def add_conv(
    graph: Graph,
    conv: onnx.NodeProto,
    weight: np.ndarray,
    bias: np.ndarray,
    ranges: dict[str, Range],
    windows: dict[str, Windows],
    out: Step,
) -> str:
    """Add a convolution of 8-bit maps, and return its output (N, O, H, W)."""
    name = conv.output[0]
    x, step = add_input(graph, conv, ranges)
    scale = np.maximum(np.abs(weight).max((1, 2, 3)) / LARGEST_WEIGHT, np.abs(bias) / step.size / LARGEST_BIAS)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    flat, read = weight.reshape(len(weight), -1), windows[conv.input[0]]
    whole = rounded(flat / scale[:, None], read)
    bias = bias + (flat - whole * scale[:, None]) @ read.mean
    inputs = [
        graph.add("DequantizeLinear", [x, step.scale, step.zero], f"{name}/x/float"),
        graph.dequantized(f"{name}/weight", whole.reshape(weight.shape), scale, np.int8),
        graph.dequantized(f"{name}/bias", (bias / (step.size * scale)).round(), step.size * scale, np.int32),
    ]
    y = graph.add_again(conv, inputs, f"{name}/y")
    return graph.add("QuantizeLinear", [y, out.scale, out.zero], f"{name}/y/8")


def add_inner_conv(graph: Graph, conv: onnx.NodeProto, ranges: dict[str, Range], windows: dict[str, Windows]) -> None:
    """Add a convolution and the norm that follows it, its channels in `phase_order`.

    Every channel fills 8 bits: it is scaled and moved for them. The scale is undone after them, so that the norm's
    epsilon weighs what it did, but no further than to where it weighs as much as a step of the 8 bits: what varies by
    less is rounding, of which the norm would make a pattern where a picture has one colour. The norm undoes the offset.
    """
    name, norm, order = conv.output[0], graph.followers(conv)[0], phase_order(graph, conv)
    weight, bias = (graph.values[n].astype(np.float64)[order] for n in conv.input[1:3])
    lowest, highest = ranges[name].channels[:, order].astype(np.float64)
    radius = (highest - lowest) / 2
    radius[radius == 0] = 1
    out = graph.step(f"{name}/y", -1, 1)
    y = add_conv(
        graph,
        conv,
        weight / radius[:, None, None, None],
        (bias - (highest + lowest) / 2) / radius,
        ranges,
        windows,
        out,
    )
    step = np.minimum(out.size * radius, attributes(norm).get("epsilon", 1e-5) ** 0.5)
    scales = graph.constant(f"{name}/y/scales", step, np.float32)
    zeros = graph.constant(f"{name}/y/zeros", [round(1 / out.size)] * len(order), np.uint8)
    y = graph.add("DequantizeLinear", [y, scales, zeros], f"{name}/y/float", axis=1)
    parameters = [add_ordered(graph, parameter, order, f"{name}/norm/{parameter}") for parameter in norm.input[1:]]
    graph.add_again(norm, [y, *parameters], norm.output[0])


def add_ordered(graph: Graph, parameter: str, order: np.ndarray, name: str) -> str:
    """Add a norm's parameter in another order of channels, and return its name; of a style, it is computed."""
    if parameter in graph.values:
        return graph.constant(name, graph.values[parameter][order], np.float32)
    return graph.add("Gather", [parameter, graph.constant(f"{name}/order", order, np.int64)], name)


def add_picture(
    graph: Graph, conv: onnx.NodeProto, ranges: dict[str, Range], windows: dict[str, Windows], picture: str
) -> None:
    """Add the last convolution, whose 8 bits are the picture's: they clip and round as the exported graph does.

    Where a style maps the colours after it, its 8 bits are laid over what it gives, and the graph goes on as exported.
    """
    name, order, after = conv.output[0], phase_order(graph, conv), graph.followers(conv)
    if unknown := sorted({node.op_type for node in after} - AFTER_LAST):
        raise ValueError(f"{unknown[0]} after the last convolution")
    mapped = any(node.op_type == "Conv" for node in after)
    step = graph.step(f"{name}/y", *(ranges[name].whole if mapped else (0, 1)))
    weight, bias = (graph.values[n].astype(np.float64)[order] for n in conv.input[1:3])
    extra = -len(order) % ALIGNED
    weight, bias = np.pad(weight, ((0, extra), (0, 0), (0, 0), (0, 0))), np.pad(bias, (0, extra))
    x = add_conv(graph, conv, weight, bias, ranges, windows, step)
    x = graph.add("Transpose", [x], f"{name}/nhwc", perm=[0, 2, 3, 1])
    bounds = [graph.constant(f"{name}/{n}", [v], np.int64) for n, v in (("from", 0), ("to", len(order)), ("of", 3))]
    x = graph.add("Slice", [x, *bounds], f"{name}/channels")
    if has_phases(after):
        x = add_phase_pixels(graph, x, name, len(order))
    if mapped:
        x = graph.add("Transpose", [x], f"{name}/nchw", perm=[0, 3, 1, 2])
        x = graph.add("DequantizeLinear", [x, step.scale, step.zero], f"{name}/float")
    for node in after:
        if mapped:
            same = node.op_type == "ConvTranspose"  # laid out already
            x = x if same else graph.add_again(node, [x, *node.input[1:]], f"{node.output[0]}/8")
        elif node.op_type == "Slice":  # cuts the margin off
            axes = [SPATIAL_NHWC[int(axis)] for axis in graph.values[node.input[3]]]
            moved = graph.constant(f"{node.output[0]}/axes", axes, np.int64)
            x = graph.add_again(node, [x, *node.input[1:3], moved, *node.input[4:]], f"{node.output[0]}/8")
    graph.add("Identity", [x], picture)


def needed(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes that an output follows from, in their order."""
    wanted, kept = {output}, list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.insert(0, node)
    return kept


def rewritten(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """Return a model with what its output follows from in the graph that was written; raises onnx's errors."""
    nodes = needed(graph.nodes, model.graph.output[0].name)
    used = {name for node in nodes for name in node.input}
    written = onnx.ModelProto()
    written.CopyFrom(model)
    del written.graph.node[:], written.graph.initializer[:]
    written.graph.node.extend(nodes)
    written.graph.initializer.extend(t for t in (*model.graph.initializer, *graph.initializers) if t.name in used)
    onnx.checker.check_model(written, full_check=True)
    return written


def quantize(path: str | Path, photographs: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Return an exported model with its convolutions in 8 bits, all but the first.

    Args:
        path: a file that `export` wrote, uint8 (N, H, W, 3) RGB in and out.
        photographs: uint8 RGB (H, W, 3), whose values in the model the 8 bits are laid over.

    Raises UserError where the file is no such model.
    """
    stylizer = Stylizer(path, device="cpu", pixel_range=1)
    if stylizer.foreign or stylizer.floating or stylizer.fixed_size is not None:
        raise UserError(f"{path} cannot be quantised: a model that `train` wrote, uint8 in and out, is needed")
    if "int8_psnr" in stylizer.metadata:
        raise UserError(f"{path} is in 8-bit integers already")
    model = onnx.load_from_string(Path(path).read_bytes())
    picture = model.graph.output[0].name
    graph = Graph(model.graph)
    try:
        if not all(np.isfinite(value).all() for value in graph.values.values()):
            raise ValueError("a weight is not finite")
        every = [node for node in model.graph.node if node.op_type == "Conv"]
        convs = [node for node in every if node.input[1] in graph.values][1:]
        inner = {conv.output[0]: graph.followers(conv) for conv in convs[:-1]}
        if not convs or any(not after or after[0].op_type != "InstanceNormalization" for after in inner.values()):
            raise ValueError("a convolution without a norm")
        maps = [node for node in every if node.input[1] not in graph.values]  # of colours, by a style
        if len(maps) > 1 or any(node not in graph.followers(convs[-1]) for node in maps):
            raise ValueError("a convolution of weights that are computed")
        names = sorted({graph.source(conv)[0] for conv in convs} | set(inner) | {convs[-1].output[0] for _ in maps})
        kernels = {conv.input[0]: graph.values[conv.input[1]].shape[2:] for conv in convs}
        ranges, windows = measure(stylizer, model, names, kernels, photographs)
        replaced = {after[0].output[0] for after in inner.values()}
        replaced |= {node.output[0] for node in (convs[-1], *graph.followers(convs[-1]))}
        seen = reached(list(model.graph.node), stylizer.input_name)
        for node in sorted(model.graph.node, key=lambda node: node.output[0] in seen):  # norms' parameters come first
            if node.output[0] in inner:
                add_inner_conv(graph, node, ranges, windows)
            elif node.output[0] not in replaced:
                graph.nodes.append(node)
        add_picture(graph, convs[-1], ranges, windows, picture)
        quantized = rewritten(model, graph)
    except (LookupError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = f"there is no {error}" if isinstance(error, LookupError) else one_line(error)
        raise UserError(f"{path} is not as `train` exported it and cannot be quantised: {reason}") from error
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
    if output.exists() and output.samefile(path):
        raise UserError(f"{output} is the model itself, which training can go on from; name another")
    model = quantize(path, photographs)
    before = Stylizer(path, device="cpu")
    pictures = [smaller(photograph) for photograph in held_out]
    output_name, styles = [model.graph.output[0].name], every_style(before)
    least = min(
        psnr(before.run_once(x, style), after)
        for x in pictures
        for style, (after,) in zip(styles, run(before, model, output_name, x, styles), strict=True)
    )
    if least < LEAST_PSNR:
        raise UserError(
            f"in 8 bits the model is too different, {least:.1f} dB on photographs; {LEAST_PSNR:g} dB are needed: use "
            "it as it is"
        )
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_PREFIX + "int8_psnr", f"{least:.1f}"
    write_atomically(output, model.SerializeToString())
    return output
