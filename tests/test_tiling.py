"""Tiles against the same graph in one piece: no seams, no jump, halos as wide as needed and no wider."""

import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from nst_fast.assets import find_model
from nst_fast.commands.stylize import stylize
from nst_fast.errors import UserError
from nst_fast.stylizing import stylizer as stylizer_module
from nst_fast.stylizing import tiling
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.stylizing.tiling import TiledModel
from nst_fast.training.networks import TransformationNetwork, conv, create_network, for_inference
from nst_fast.training.onnx_export import to_onnx
from nst_fast.training.recolouring import recolour

ASTRONAUT = skimage.data.astronaut()
STEP = 1 / 255
SIZES = ((131, 174), (97, 203))  # height, width in pixels: multiples of nothing


def session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


class Frame(nn.Module):
    """A network between norms, so that tiling has something to share; output near [0, 1]."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU(), *body, conv(8, 3, 3), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)[:, :, : image.shape[2], : image.shape[3]]


class Unshuffle(nn.Module):
    """Space to depth by hand, as peers write it: exported as Reshape and Transpose over six axes."""

    def forward(self, image: Tensor) -> Tensor:
        n, c, h, w = image.shape
        blocks = image.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return blocks.reshape(n, c * 4, h // 2, w // 2)


class Shuffle(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        n, c, h, w = image.shape
        return image.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)


class PadToEven(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.pad(image, (0, image.shape[3] % 2, 0, image.shape[2] % 2), mode="replicate")


class Slices(nn.Module):
    """Space to depth by strided slices."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def narrow(channels: int = 32) -> tuple[nn.Module, ...]:
    return conv(channels, channels, 3), norm(channels), nn.ReLU()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: Frame(
        *(conv(8, 8, 3, 2), norm(8), nn.ReLU(), conv(8, 8, 3, 2), norm(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), norm(8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1), norm(8)),
    ),
    "shuffled": lambda: Frame(PadToEven(), nn.PixelUnshuffle(2), *narrow(), nn.PixelShuffle(2)),
    "reshaped": lambda: Frame(PadToEven(), Unshuffle(), *narrow(), Shuffle()),
    "sliced": lambda: Frame(PadToEven(), Slices(), *narrow(), nn.PixelShuffle(2)),
    "average pooled": lambda: Frame(
        nn.AvgPool2d(2, ceil_mode=True), *narrow(8), nn.AvgPool2d(3, 2, 1), norm(8), nn.Upsample(scale_factor=4)
    ),
    "max pooled": lambda: Frame(nn.MaxPool2d(3, 2, 1), *narrow(8), nn.Upsample(scale_factor=2)),
    "bilinear": lambda: Frame(
        *(conv(8, 8, 3, 2), *narrow(8), conv(8, 8, 3, 2), norm(8)),
        *(nn.Upsample(scale_factor=2, mode="bilinear"), *narrow(8), nn.Upsample(scale_factor=2, mode="bilinear")),
    ),
    "bicubic": lambda: Frame(conv(8, 8, 3, 2), *narrow(8), nn.Upsample(scale_factor=2, mode="bicubic")),
    "unpadded": lambda: Frame(nn.ReflectionPad2d(10), nn.Conv2d(8, 8, 5), nn.Conv2d(8, 8, 9, dilation=2), norm(8)),
}


def exported(network: nn.Module, opset: int = 17) -> onnx.ModelProto:
    """A peer's file: float (N, 3, H, W) in [0, 1], no metadata."""
    buffer, axes = io.BytesIO(), {0: "N", 2: "H", 3: "W"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.rand(1, 3, 64, 80),),
            buffer,
            input_names=["picture"],
            output_names=["painted"],
            dynamic_axes={"picture": axes, "painted": axes},
            opset_version=opset,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def seeded(create: Callable[[], nn.Module]) -> nn.Module:
    """A network with its own statistics in every norm: scales and biases that are not 1 and 0."""
    torch.manual_seed(0)
    network = create()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        if hasattr(network, "vectors"):
            network.vectors.add_(0.3 * torch.randn_like(network.vectors))
        if hasattr(network, "margin") or hasattr(network, "stride"):
            list(network.parameters())[-1].add_(0.5)
    return network


def recoloured(network: TransformationNetwork) -> TransformationNetwork:
    """The network with a random map of colours for each painting."""
    recolour(network, torch.eye(3) + 0.2 * torch.randn(3, 3, 3), 0.1 * torch.randn(3, 3))
    return network


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "shipped": lambda: onnx.load(find_model("starry_night")),
    "johnson, opset 11": lambda: exported(for_inference(seeded(lambda: create_network("johnson", 8, 1))), 11),
    "johnson, opset 17": lambda: exported(seeded(lambda: create_network("johnson", 8, 1)), 17),
    "uint8": lambda: to_onnx(seeded(lambda: create_network("fast", 16, 1)), {"min_size": "16"}),
    "gallery": lambda: to_onnx(seeded(lambda: create_network("fast", 16, 1, paintings=3)), {"min_size": "16"}),
    "recoloured": lambda: to_onnx(
        recoloured(seeded(lambda: create_network("fast", 16, 1, paintings=3))), {"min_size": "16"}
    ),
    "a wide margin": lambda: to_onnx(seeded(lambda: create_network("fast", 16, 1, margin=24)), {"min_size": "28"}),
    "contrast": lambda: to_onnx(
        seeded(lambda: create_network("fast", 16, 1, grain=False, contrast=True)), {"min_size": "16"}
    ),
    "johnson, contrast": lambda: exported(seeded(lambda: create_network("johnson", 8, 1, contrast=True))),
    **{name: lambda create=create: exported(seeded(create)) for name, create in NETWORKS.items()},
}


@pytest.fixture(scope="module")
def model():
    """A function from a name to a model, each made once."""
    made: dict[str, onnx.ModelProto] = {}
    return lambda name: made.setdefault(name, None) or made.update({name: MODELS[name]()}) or made[name]


def photograph(height: int, width: int) -> np.ndarray:
    return ASTRONAUT[60 : 60 + height, 130 : 130 + width]


def to_input(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    if model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8:
        return picture[None]
    return picture.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)


def to_picture(output: np.ndarray, height: int, width: int) -> np.ndarray:
    """Float (H, W, 3) in [0, 1], from either form."""
    if output.dtype == np.uint8:
        return output[0].astype(float) / 255
    return output[0].transpose(1, 2, 0)[:height, :width].clip(0, 1)


def tiled_run(tiled: TiledModel, model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    painted = np.full((height, width, 3), np.nan)

    def write(box: tiling.Box, output: np.ndarray) -> None:
        left, top, right, bottom = box
        assert np.isnan(painted[top:bottom, left:right]).all()
        part = to_picture(output, *output.shape[1:3] if output.dtype == np.uint8 else output.shape[2:])
        painted[top:bottom, left:right] = part

    tiled.run((width, height), lambda b: to_input(model, picture[b[1] : b[3], b[0] : b[2]]), write)
    return painted


def norms_of(model: onnx.ModelProto, picture: np.ndarray) -> list[np.ndarray]:
    """What comes into each instance norm, for the whole picture."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    names = [node.input[0] for node in model.graph.node if node.op_type == "InstanceNormalization"]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return session(asked.SerializeToString()).run(names, {model.graph.input[0].name: to_input(model, picture)})


def frozen(model: onnx.ModelProto, picture: np.ndarray) -> onnx.ModelProto:
    """The same graph with every instance norm a batch norm of numpy's statistics of the whole picture."""
    still, values = onnx.ModelProto(), norms_of(model, picture)
    still.CopyFrom(model)
    found = iter(values)
    for number, node in enumerate(still.graph.node):
        if node.op_type == "InstanceNormalization":
            value = next(found).astype(float)
            names = [f"frozen_mean_{number}", f"frozen_variance_{number}"]
            for name, statistic in zip(names, (value.mean((0, 2, 3)), value.var((0, 2, 3))), strict=True):
                still.graph.initializer.append(numpy_helper.from_array(statistic.astype(np.float32), name))
            node.op_type = "BatchNormalization"
            node.input.extend(names)
    return still


def run_whole(model: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    (output,) = session(model.SerializeToString()).run(None, {model.graph.input[0].name: to_input(model, picture)})
    return to_picture(output, *picture.shape[:2])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return -10 * np.log10(max(((one - other) ** 2).mean(), 1e-12))


def seams(picture: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference anywhere, in steps of 1/255."""
    assert picture.shape == reference.shape
    return np.abs(picture - reference).max() / STEP


# No seams, no jump


@pytest.mark.parametrize("name", MODELS)
def test_tiles_make_the_picture_of_the_graph_with_frozen_statistics(model, name):
    tiled = TiledModel(model(name).SerializeToString(), session, tile=48)
    for size in SIZES:
        picture = photograph(*size)
        assert len(tiled.tiles(*size[::-1])) >= 6
        painted, expected = tiled_run(tiled, model(name), picture), run_whole(frozen(model(name), picture), picture)
        assert expected.std() > 3 * STEP
        assert seams(painted, expected) <= 1 + 1e-9
        assert psnr(painted, run_whole(model(name), picture)) > 50  # 35 is asked for


@pytest.mark.parametrize("name", ["shipped", "johnson, opset 17", "bilinear"])
def test_one_tile_and_many_make_the_same_picture(model, name):
    content, picture = model(name).SerializeToString(), photograph(150, 141)
    one, many = (TiledModel(content, session, tile=side) for side in (512, 32))
    assert len(one.tiles(141, 150)) == 1
    assert len(many.tiles(141, 150)) == 25
    assert seams(tiled_run(one, model(name), picture), tiled_run(many, model(name), picture)) <= 1 + 1e-9


@pytest.mark.parametrize("kept", [True, False])
def test_tiles_at_once_give_what_they_give_one_by_one(kept, model, monkeypatch):
    content, picture = model("uint8").SerializeToString(), photograph(190, 210)
    if not kept:
        monkeypatch.setattr(tiling, "KEPT_BYTES", 0)
    one, three = (TiledModel(content, session, tile=32, at_once=count) for count in (1, 3))
    np.testing.assert_array_equal(tiled_run(one, model("uint8"), picture), tiled_run(three, model("uint8"), picture))


def test_a_wrong_halo_would_be_seen(model):
    """The tests above can fail: half the halo leaves seams."""
    tiled, picture = TiledModel(model("shipped").SerializeToString(), session, tile=48), photograph(131, 174)
    tiled.halo //= 4
    assert seams(tiled_run(tiled, model("shipped"), picture), run_whole(frozen(model("shipped"), picture), picture)) > 3


def test_sampled_statistics_leave_no_seams_and_nearly_the_same_picture(model, monkeypatch):
    monkeypatch.setattr(tiling, "KEPT_BYTES", 0)
    monkeypatch.setattr(tiling, "SAMPLED_BYTES", 2**25)
    tiled = TiledModel(model("shipped").SerializeToString(), session, tile=256)
    picture = np.asarray(Image.fromarray(ASTRONAUT).resize((701, 602), Image.Resampling.LANCZOS))
    seen = []
    gathered = tiled.merge
    tiled.merge = lambda number, counted, weights: (
        seen.append((number, len(counted), gathered(number, counted, weights))) or seen[-1][2]
    )
    painted = tiled_run(tiled, model("shipped"), picture)
    assert {count for _, count, _ in seen} == {seen[0][1]}
    assert 30 < seen[0][1] < 60  # of 110 that there are
    assert psnr(painted, run_whole(model("shipped"), picture)) > 25

    # Seams: the same factors and offsets in one tile make the same picture.
    whole = TiledModel(model("shipped").SerializeToString(), session, tile=1024)
    answers = iter(norms for _, _, norms in seen)
    whole.merge = lambda number, counted, weights: next(answers)
    assert seams(painted, tiled_run(whole, model("shipped"), picture)) <= 1 + 1e-9


@pytest.mark.parametrize("name", ["shipped", "johnson, opset 11", "transposed", "reshaped", "bilinear", "unpadded"])
def test_pooled_statistics_are_those_of_the_whole_map(model, name):
    picture = photograph(131, 174)
    tiled = TiledModel(model(name).SerializeToString(), session, tile=48)
    norms: list[dict[str, np.ndarray]] = []
    gathered = tiled.merge
    tiled.merge = lambda number, counted, weights: norms.append(gathered(number, counted, weights)) or norms[-1]
    tiled_run(tiled, model(name), picture)
    nodes = [node for node in model(name).graph.node if node.op_type == "InstanceNormalization"]
    weights = {w.name: numpy_helper.to_array(w) for w in model(name).graph.initializer}
    weights |= {  # two alike: one and an Identity
        node.output[0]: weights[node.input[0]] for node in model(name).graph.node if node.op_type == "Identity"
    }
    values = norms_of(model(name), picture)
    assert len(norms) == len(nodes) == len(values)
    for found, node, value in zip(norms, nodes, values, strict=True):
        scale, bias = (weights[parameter].astype(float) for parameter in node.input[1:])
        mean, variance = value.astype(float).mean((0, 2, 3)), value.astype(float).var((0, 2, 3))
        factor = scale / np.sqrt(variance + node.attribute[0].f)
        (got_factor,), (got_offset,) = ([v.ravel() for k, v in found.items() if part in k] for part in ("fac", "off"))
        np.testing.assert_allclose(got_factor, factor, rtol=2e-4)
        np.testing.assert_allclose(got_offset, bias - mean * factor, rtol=0, atol=2e-3)


# Halo and tiles


@pytest.mark.parametrize("name", MODELS)
def test_no_output_pixel_further_away_than_the_halo_sees_an_input_pixel(model, name):
    tiled = TiledModel(model(name).SerializeToString(), session)
    side = 2 * tiled.halo + 40
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (side, side + 8, 3), np.uint8)
    graph = session(frozen(model(name), picture).SerializeToString())
    feed = model(name).graph.input[0].name

    def paint(pixels: np.ndarray) -> np.ndarray:
        return to_picture(graph.run(None, {feed: to_input(model(name), pixels)})[0], *pixels.shape[:2])

    base, furthest = paint(picture), 0
    for row in range(side // 2, side // 2 + max(4, tiled.stride)):
        perturbed = picture.copy()
        perturbed[row, row] = 255 * (picture[row, row] < 128)
        rows, columns, _ = np.nonzero(paint(perturbed) != base)
        furthest = max(furthest, np.abs(rows - row).max(), np.abs(columns - row).max())
    assert furthest <= tiled.halo
    assert furthest >= tiled.halo / 3  # a far pixel's share is often rounded away


def conv_graph(*nodes: onnx.NodeProto, opset: int = 17, **weights: np.ndarray) -> bytes:
    """A float NCHW graph ``a`` → ``z`` of nodes, with the weights by name."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "H", "W"]) for name in "az"]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "hand-made", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def kernel(size: int) -> np.ndarray:
    return np.random.default_rng(size).normal(0, 0.1, (3, 3, size, size)).astype(np.float32)


NODE = helper.make_node


@pytest.mark.parametrize(
    ("nodes", "weights", "stride", "least", "most"),
    [
        ([NODE("Relu", ["a"], ["z"])], {}, 1, 0, 0),
        ([NODE("Conv", ["a", "w"], ["z"], pads=[0] * 4)], {"w": kernel(1)}, 1, 0, 0),
        ([NODE("Conv", ["a", "w"], ["z"], pads=[4] * 4)], {"w": kernel(9)}, 1, 4, 4),
        ([NODE("Conv", ["a", "w"], ["z"], pads=[6] * 4, dilations=[3, 3])], {"w": kernel(5)}, 1, 6, 6),
        (
            [NODE("Conv", ["a", "w"], ["b"], pads=[1] * 4), NODE("Conv", ["b", "w"], ["z"], pads=[1] * 4)],
            {"w": kernel(3)},
            *(1, 2, 2),
        ),
        (  # Index 4 of the halved map sees 7 to 9; the transposed convolution's pixel 7 sees its indices 3 and 4.
            [
                NODE("Conv", ["a", "w"], ["b"], pads=[1] * 4, strides=[2, 2]),
                NODE("ConvTranspose", ["b", "w"], ["z"], pads=[1] * 4, strides=[2, 2], output_padding=[1, 1]),
            ],
            {"w": kernel(3)},
            *(2, 2, 2),
        ),
        (  # A block of 4: its last pixel is seen from its first, 3 away.
            [
                NODE("SpaceToDepth", ["a"], ["b"], blocksize=4),
                NODE("DepthToSpace", ["b"], ["z"], blocksize=4),
            ],
            {},
            *(4, 3, 4),
        ),
        (
            [
                NODE("AveragePool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
                NODE("Resize", ["b", "", "s"], ["z"], mode="nearest"),
            ],
            {"s": np.array([1, 1, 2, 2], np.float32)},
            *(2, 1, 4),  # where Resize rounds to is left open
        ),
    ],
    ids=["pointwise", "conv 1", "conv 9", "dilated", "conv 3 3", "transposed", "blocks", "pooled"],
)
def test_halo_of_a_simple_net_is_that_computed_by_hand(nodes, weights, stride, least, most):
    tiled = TiledModel(conv_graph(*nodes, **weights), session)
    assert tiled.stride == stride
    assert least <= tiled.halo <= most


def test_halo_of_the_johnson_network_is_that_computed_by_hand(model):
    # 9×9, two halvings, 2 convolutions of a residual block at stride 4, 3×3 at strides 2 and 1, 9×9 at stride 1
    by_hand = 4 + 1 + 2 + 2 * 4 + 4 + 2 + 4
    tiled = TiledModel(model("johnson, opset 17").SerializeToString(), session)
    assert tiled.stride == 4
    assert by_hand <= tiled.halo <= by_hand + 15  # a nearest pixel may come from 3, and it is rounded up to 4


@pytest.mark.parametrize("tile", [1, 8, 40, 64])
@pytest.mark.parametrize("name", ["shipped", "max pooled"])
def test_tiles_cover_every_pixel_once_and_start_on_the_stride(model, name, tile):
    tiled = TiledModel(model(name).SerializeToString(), session, tile)
    rng = np.random.default_rng(tile)
    sizes = [(1, 1), (5, 3), (tile, tile), (tile + 1, 2 * tile - 1), *rng.integers(1, 170, (25, 2)).tolist()]
    for width, height in sizes:
        counted = np.zeros((height, width), int)
        for one in tiled.tiles(width, height):
            left, top, right, bottom = one.core
            assert right > left
            assert bottom > top
            assert max(right - left, bottom - top) <= max(tile, 2 * tiled.stride) + tiled.stride
            counted[top:bottom, left:right] += 1
            assert [x % tiled.stride for x in (*one.core[:2], *one.seen[:2])] == [0] * 4
            around = (left - tiled.halo, top - tiled.halo, right + tiled.halo, bottom + tiled.halo)
            assert one.seen == (max(0, around[0]), max(0, around[1]), min(width, around[2]), min(height, around[3]))
            assert one.last == (right == width, bottom == height)
        assert (counted == 1).all()


# Graphs that look at the whole picture


def sandwich(*nodes: onnx.NodeProto, opset: int = 17, **weights: np.ndarray) -> bytes:
    """Nodes from ``b`` to ``c`` between two convolutions, with a norm before."""
    return conv_graph(
        NODE("Conv", ["a", "w"], ["conv"], pads=[1] * 4),
        NODE("InstanceNormalization", ["conv", "one", "zero"], ["b"]),
        *nodes,
        NODE("Conv", ["c", "w"], ["z"], pads=[1] * 4),
        opset=opset,
        w=kernel(3),
        one=np.ones(3, np.float32),
        zero=np.zeros(3, np.float32),
        **weights,
    )


FLAT = np.array([0, 3, -1], np.int64)
SHAPE = NODE("Shape", ["b"], ["shape"])
WHOLE = {
    "ReduceMean": [NODE("ReduceMean", ["b"], ["m"], axes=[2, 3]), NODE("Sub", ["b", "m"], ["c"])],
    "ReduceMean without its axes": [
        NODE("ReduceMean", ["b"], ["m"], axes=[2, 3], keepdims=0),
        NODE("Reshape", ["m", "four"], ["n"]),
        NODE("Sub", ["b", "n"], ["c"]),
    ],
    "GlobalAveragePool": [NODE("GlobalAveragePool", ["b"], ["m"]), NODE("Mul", ["b", "m"], ["c"])],
    "Softmax over space": [
        *(SHAPE, NODE("Reshape", ["b", "flat"], ["m"]), NODE("Softmax", ["m"], ["n"], axis=2)),
        NODE("Reshape", ["n", "shape"], ["c"]),
    ],
    "attention": [
        *(SHAPE, NODE("Reshape", ["b", "flat"], ["m"]), NODE("Transpose", ["m"], ["t"], perm=[0, 2, 1])),
        *(NODE("MatMul", ["m", "t"], ["n"]), NODE("MatMul", ["n", "m"], ["o"]), NODE("Reshape", ["o", "shape"], ["c"])),
    ],
    "group norm": [
        *(SHAPE, NODE("Reshape", ["b", "flat"], ["m"]), NODE("InstanceNormalization", ["m", "one", "zero"], ["n"])),
        NODE("Reshape", ["n", "shape"], ["c"]),
    ],
    "statistics from elsewhere": [
        *(NODE("GlobalAveragePool", ["b"], ["m"]), NODE("Reshape", ["m", "three"], ["n"])),
        NODE("InstanceNormalization", ["b", "one", "n"], ["c"]),
    ],
    "elements of one place in another": [
        *(SHAPE, NODE("Reshape", ["b", "flat"], ["m"]), NODE("Transpose", ["m"], ["t"], perm=[0, 2, 1])),
        NODE("Reshape", ["t", "shape"], ["c"]),
    ],
    "the size as a number": [
        *(SHAPE, NODE("Cast", ["shape"], ["f"], to=TensorProto.FLOAT), NODE("Slice", ["f", "two", "four1"], ["n"])),
        NODE("Mul", ["b", "n"], ["c"]),
    ],
    "mirrored": [NODE("Slice", ["b", "minus", "far", "axis", "minus"], ["c"])],
    "stretched": [
        *(NODE("MaxPool", ["b"], ["m"], kernel_shape=[2, 2], strides=[2, 2]), SHAPE),
        NODE("Resize", ["m", "", "", "shape"], ["c"], mode="linear"),
    ],
    "corners aligned": [
        NODE("MaxPool", ["b"], ["m"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        NODE("Resize", ["m", "", "twice"], ["c"], mode="linear", coordinate_transformation_mode="align_corners"),
    ],
}
CONSTANTS = {
    "flat": FLAT,
    "four": np.array([0, 3, 1, 1], np.int64),
    "three": np.array([3], np.int64),
    "two": np.array([3], np.int64),
    "four1": np.array([4], np.int64),
    "minus": np.array([-1], np.int64),
    "far": np.array([-(2**31)], np.int64),
    "axis": np.array([3], np.int64),
    "twice": np.array([1, 1, 2, 2], np.float32),
}


def with_constants(nodes: list[onnx.NodeProto], opset: int = 17) -> bytes:
    used = {name for node in nodes for name in node.input}
    return sandwich(*nodes, opset=opset, **{name: value for name, value in CONSTANTS.items() if name in used})


def assert_refused_in_tiles_and_run_in_one_piece(path: Path, monkeypatch) -> str:
    with pytest.raises(UserError) as refusal:
        Stylizer(path, threads=1, pixel_range=1, tile=True)
    assert "\n" not in str(refusal.value)
    assert "cannot be tiled" in str(refusal.value)
    monkeypatch.setattr(stylizer_module, "TILED_ABOVE", 1000)
    picture = photograph(96, 128)
    height, width = picture.shape[:2]
    whole = Stylizer(path, threads=1, pixel_range=1)
    if whole.fixed_size is None:
        expected = run_whole(onnx.load(path), picture)
        assert np.abs(whole(picture) / 255 - expected).max() <= 0.51 * STEP
    assert whole(picture).shape == (height, width, 3)
    return str(refusal.value)


@pytest.mark.parametrize("name", WHOLE)
def test_a_graph_that_looks_at_the_whole_picture_is_refused_and_run_in_one_piece(tmp_path, monkeypatch, name):
    (tmp_path / "model.onnx").write_bytes(with_constants(WHOLE[name]))
    assert_refused_in_tiles_and_run_in_one_piece(tmp_path / "model.onnx", monkeypatch)


def test_the_same_graph_without_it_is_tiled(tmp_path):
    (tmp_path / "model.onnx").write_bytes(sandwich(NODE("Identity", ["b"], ["c"])))
    Stylizer(tmp_path / "model.onnx", threads=1, pixel_range=1, tile=True)


def test_a_graph_of_one_size_is_refused_and_run_in_one_piece(tmp_path, monkeypatch):
    model = onnx.load_from_string(sandwich(NODE("Identity", ["b"], ["c"])))
    for end in (model.graph.input[0], model.graph.output[0]):
        for axis, length in ((2, 96), (3, 130)):
            end.type.tensor_type.shape.dim[axis].dim_value = length
    onnx.save(model, tmp_path / "model.onnx")
    assert "130×96" in assert_refused_in_tiles_and_run_in_one_piece(tmp_path / "model.onnx", monkeypatch)


def test_a_graph_whose_inside_is_of_one_size_is_refused(tmp_path):
    inside = [NODE("Reshape", ["b", "size"], ["c"])]
    (tmp_path / "model.onnx").write_bytes(sandwich(*inside, size=np.array([1, 3, 96, 128], np.int64)))
    with pytest.raises(UserError, match="cannot be tiled"):
        Stylizer(tmp_path / "model.onnx", threads=1, pixel_range=1, tile=True)


def test_a_graph_that_enlarges_is_refused(tmp_path):
    grown = [NODE("Resize", ["b", "", "twice"], ["c"], mode="nearest")]
    (tmp_path / "model.onnx").write_bytes(with_constants(grown))
    with pytest.raises(UserError, match="cannot be tiled"):
        Stylizer(tmp_path / "model.onnx", threads=1, pixel_range=1, tile=True)


def test_a_graph_of_even_sizes_is_tiled_and_odd_ones_are_padded_for_it(tmp_path):
    shuffles = [NODE("SpaceToDepth", ["b"], ["d"], blocksize=4), NODE("DepthToSpace", ["d"], ["c"], blocksize=4)]
    (tmp_path / "model.onnx").write_bytes(sandwich(*shuffles))
    for tile in (False, True):
        stylizer = Stylizer(tmp_path / "model.onnx", threads=1, pixel_range=1, tile=tile)
        assert stylizer(photograph(96, 128)).shape == (96, 128, 3)
        odd = photograph(96, 127)
        whole = stylizer(np.pad(odd, ((0, 0), (0, 1), (0, 0)), mode="edge"))
        np.testing.assert_array_equal(stylizer(odd), whole[:, :127])


def test_an_old_opset_is_refused_and_run_in_one_piece(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(sandwich(NODE("Identity", ["b"], ["c"]), opset=9))
    assert "opset 9" in assert_refused_in_tiles_and_run_in_one_piece(tmp_path / "model.onnx", monkeypatch)


def test_initializers_that_are_inputs_as_well_are_no_pictures():
    model = onnx.load_from_string(sandwich(NODE("Identity", ["b"], ["c"]), opset=10))
    for weight in model.graph.initializer:
        value = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.insert(0, value)
    model.ir_version = 3
    picture = photograph(131, 174)
    tiled = TiledModel(model.SerializeToString(), session, tile=48)
    painted = np.zeros((131, 174, 3))

    def write(box: tiling.Box, output: np.ndarray) -> None:
        painted[box[1] : box[3], box[0] : box[2]] = output[0].transpose(1, 2, 0)

    fed = picture.astype(np.float32).transpose(2, 0, 1)[None] / 255
    tiled.run((174, 131), lambda b: fed[:, :, b[1] : b[3], b[0] : b[2]], write)
    expected = session(model.SerializeToString()).run(None, {"a": fed})[0][0].transpose(1, 2, 0)
    np.testing.assert_allclose(painted, expected, rtol=0, atol=1e-4)


# The command and the session


@pytest.fixture
def folder(tmp_path, monkeypatch, model):
    """The current folder with two models and a threshold that a small picture is above; tiles are small too."""
    onnx.save(model("uint8"), tmp_path / "tiny.onnx")
    onnx.save(model("johnson, opset 11"), tmp_path / "peer.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiling.TiledModel.__init__, "__defaults__", (48, 1))
    return tmp_path


def command(*arguments: str | Path) -> None:
    assert stylize(["--threads", "1", "--overwrite", *map(str, arguments)]) == 0


def load(name: str) -> Image.Image:
    with Image.open(name) as image:
        image.load()
        return image


@pytest.fixture
def boxes(monkeypatch):
    """The boxes of every tile that was run."""
    seen: list[tiling.Box] = []
    tiles = TiledModel.tiles
    monkeypatch.setattr(TiledModel, "tiles", lambda *args: seen.extend(t.core for t in tiles(*args)) or tiles(*args))
    return seen


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "tiny.onnx"],
        ["--model", "peer.onnx", "--pixel-range", "1"],
        ["--model", "peer.onnx", "--pixel-range", "255", "--bgr"],
        ["--model", "tiny.onnx", "--stroke", "1.25"],
        ["--model", "tiny.onnx", "--strength", "0.4"],
        ["--model", "tiny.onnx", "--keep-colours"],
        ["--model", "tiny.onnx", "--max-side", "150"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("alpha", [False, True], ids=["", "alpha"])
def test_above_the_threshold_the_command_takes_tiles_by_itself(folder, monkeypatch, boxes, arguments, alpha):
    picture = Image.fromarray(photograph(131, 174))
    mask = Image.fromarray(np.random.default_rng(1).integers(0, 256, (131, 174), np.uint8))
    if alpha:
        picture.putalpha(mask)
    picture.save("photo.png")
    command("photo.png", "-o", "whole.png", *arguments)
    assert boxes == []
    monkeypatch.setattr(stylizer_module, "TILED_ABOVE", 10_000)
    command("photo.png", "-o", "tiles.png", *arguments)
    assert len(boxes) >= 6
    whole, tiles = load("whole.png"), load("tiles.png")
    assert whole.size == tiles.size == ((150, 113) if "--max-side" in arguments else (174, 131))
    assert whole.mode == tiles.mode == ("RGBA" if alpha else "RGB")
    difference = np.abs(np.asarray(whole).astype(int) - np.asarray(tiles))
    assert difference.max() <= (3 if "--stroke" in arguments else 2)
    if alpha and "--max-side" not in arguments:
        np.testing.assert_array_equal(np.asarray(tiles.getchannel("A")), np.asarray(mask))


def test_tiles_are_taken_when_asked_for_and_not_below_the_models_smallest_size(folder, boxes):
    Image.fromarray(photograph(60, 50)).save("photo.png")
    Image.fromarray(photograph(9, 60)).save("small.png")
    command("photo.png", "-o", "tiles.png", "--model", "tiny.onnx", "--tile")
    assert len(boxes) == 4
    boxes.clear()
    command("small.png", "-o", "tiles.png", "--model", "tiny.onnx", "--tile")
    assert boxes == []
    assert load("tiles.png").size == (60, 9)


def test_a_batch_of_arrays_is_tiled_one_by_one(folder, boxes):
    pictures = np.stack([photograph(70, 90), photograph(70, 90)[::-1]])
    tiles = Stylizer("tiny.onnx", threads=1, tile=True).stylize_array(pictures)
    assert len(boxes) == 2 * 4
    whole = Stylizer("tiny.onnx", threads=1).stylize_array(pictures)
    assert np.abs(tiles.astype(int) - whole).max() <= 2


def test_onnx_is_imported_when_tiles_are_needed_and_torch_never(folder):
    Image.fromarray(photograph(70, 90)).save("photo.png")
    script = """
import sys
import nst_fast.stylizing.stylizer
from nst_fast.commands.stylize import stylize
for flag in ([], ["--tile"]):
    assert stylize(["--model", "tiny.onnx", "photo.png", "--threads", "1", "--overwrite", *flag]) == 0
    print([name for name in ("torch", "onnx", "nst_fast.stylizing.tiling") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1::2] == ["[]", "['onnx', 'nst_fast.stylizing.tiling']"]


def test_a_convolution_may_have_weights_that_a_node_gives_and_no_kernel_shape(model):
    """As other exporters write it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model("uint8"))
    convs = [node for node in changed.graph.node if node.op_type == "Conv"]
    weights = [node.input[1] for node in convs]
    for node in convs:
        node.input[1] = f"computed {node.input[1]}"
        node.attribute.remove(next(a for a in node.attribute if a.name == "kernel_shape"))
    for name in weights:
        changed.graph.node.insert(0, helper.make_node("Identity", [name], [f"computed {name}"]))
    expected = TiledModel(model("uint8").SerializeToString(), session, tile=48)
    assert TiledModel(changed.SerializeToString(), session, tile=48).halo == expected.halo


@pytest.mark.parametrize("weights", [[0, 1, 0], [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("name", ["gallery", "recoloured"])
def test_tiles_of_a_blend_are_the_wholes(name, model, weights):
    picture, style = photograph(131, 174), {"style_weights": np.array(weights, np.float32)}
    tiled = TiledModel(model(name).SerializeToString(), session, tile=48)
    painted = np.zeros_like(picture)

    def write(box: tiling.Box, output: np.ndarray) -> None:
        painted[box[1] : box[3], box[0] : box[2]] = output[0]

    tiled.run((174, 131), lambda b: picture[None, b[1] : b[3], b[0] : b[2]], write, style)
    (whole,) = session(model(name).SerializeToString()).run(None, {"image": picture[None], **style})
    (first,) = session(model(name).SerializeToString()).run(None, {"image": picture[None]})
    assert np.abs(painted.astype(int) - whole[0]).max() <= 1
    assert np.abs(first.astype(int) - whole).max() > 10
