"""Models in 8-bit integers: what they do, against the same in floating point and against ONNX's own evaluator."""

import functools
import itertools
import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import skimage.data
import torch
from onnx import TensorProto, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator
from PIL import Image

from nst_fast.assets import ASSETS, find_model, shipped_models
from nst_fast.errors import UserError
from nst_fast.loss.pretrained import create_loss_network
from nst_fast.loss.style_targets import StyleTargets
from nst_fast.loss.tensors import to_tensor
from nst_fast.loss.terms import layer_gram_matrix
from nst_fast.stylizing import quantization
from nst_fast.stylizing.images import resize_short_side
from nst_fast.stylizing.quantization import export_int8, quantize
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import NETWORKS, create_network
from nst_fast.training.onnx_export import export, import_network
from nst_fast.training.recolouring import recolour

STYLES = ("starry_night", "the_scream", "great_wave", "composition_vii")  # whose style targets ship
LATER = ("movement", "isles_of_shoals")
QUICK = ("starry_night", "composition_vii")


def released_ones(names, misses):
    """Return models for a test: but for two of them slow, and marked where they miss it."""
    slow = {name: pytest.mark.slow for name in names if name not in QUICK}
    return [pytest.param(name, marks=[m[name] for m in (slow, misses) if name in m]) for name in names]


SINGLES = released_ones((*STYLES, *LATER), {})
METADATA = {"style": "s", "title": "Ťiny"}
SEEN = [skimage.data.rocket(), skimage.data.astronaut()]
HELD_OUT = [skimage.data.coffee(), skimage.data.chelsea()]


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio, dB."""
    error = ((np.asarray(first, float) - np.asarray(second, float)) ** 2).mean()
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def photograph(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(skimage.data.chelsea()).resize((width, height)))


def paintings_of(network) -> dict[str, str]:
    """The metadata that name a network's paintings, where it has several."""
    names = [{"name": f"painting {number}"} for number in range(len(network.vectors))]
    return {"paintings": json.dumps(names)} if len(names) > 1 else {}


@pytest.fixture(scope="module", autouse=True)
def _few_pixels():
    """Lay 8 bits over photographs of a seventh of the pixels that models are released with, in as much of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "SHORT_SIDE", 192)
        yield


@pytest.fixture(scope="module", params=[*NETWORKS, "contrast", "gallery", "recoloured"])
def pair(request, tmp_path_factory):
    """A random network's model in floating point and in 8 bits."""
    torch.manual_seed(0)
    special = {"contrast": {"contrast": True}, "gallery": {"paintings": 3}, "recoloured": {"paintings": 3}}
    name, options = ("fast", special[request.param]) if request.param in special else (request.param, {})
    network = create_network(name, 8, 2, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # no two alike, as after training
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter)).add_(0.02 * torch.randn_like(parameter))
        for norm in network.norms():
            own = network.vectors[:, norm.first : norm.first + 2 * norm.channels].unflatten(1, (2, norm.channels))
            own[:, 0] = torch.linspace(0.3, 2, norm.channels)
            own[:, 1] = torch.linspace(-1, 1, norm.channels)
        network.vectors.mul_(1 + 0.1 * torch.randn_like(network.vectors))
        list(network.parameters())[-2].mul_(0.2)  # or most of the picture is black or white
        list(network.parameters())[-1].add_(0.5)
    if request.param == "recoloured":
        recolour(network, torch.eye(3) + 0.2 * torch.randn(3, 3, 3), 0.1 * torch.randn(3, 3))
    folder = tmp_path_factory.mktemp("pair")
    model = export(network, folder / "model.onnx", METADATA | paintings_of(network))
    return model, export_int8(model, folder / "model.int8.onnx", SEEN, HELD_OUT)


def torch_pair(network, folder):
    """A network's model in floating point and in 8 bits."""
    path = export(network.eval(), folder / "model.onnx", METADATA)
    return path, export_int8(path, folder / "int8.onnx", SEEN, HELD_OUT)


def operations(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_every_convolution_but_the_first_is_of_integers_and_every_norm_is_kept(pair):
    before, after = map(operations, pair)
    assert after["Conv"] == before["Conv"]
    assert after["InstanceNormalization"] == before["InstanceNormalization"]
    graph = onnx.load(pair[1]).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    first, *others = (node for node in graph.node if node.op_type == "Conv")
    assert [kinds[name] for name in first.input[1:]] == [TensorProto.FLOAT] * 2
    exported = onnx.load(pair[0]).graph
    weights = {t.name for t in exported.initializer}
    maps = sum(node.op_type == "Conv" and node.input[1] not in weights for node in exported.node)  # of colours
    for conv in others[: len(others) - maps]:
        weight, bias = (made[name] for name in conv.input[1:])
        assert made[conv.input[0]].op_type == weight.op_type == bias.op_type == "DequantizeLinear"
        assert (kinds[weight.input[0]], kinds[bias.input[0]]) == (TensorProto.INT8, TensorProto.INT32)


def test_two_products_fit_the_16_bits_that_old_processors_add_them_in(pair):
    weights = [
        numpy_helper.to_array(t) for t in onnx.load(pair[1]).graph.initializer if t.data_type == TensorProto.INT8
    ]
    assert weights
    for weight in weights:
        assert 2 * 255 * np.abs(weight.astype(int)).max() < 2**15
        assert np.abs(weight.astype(int)).max((1, 2, 3)).max() == 64


@pytest.mark.parametrize("size", [(64, 64), (101, 75), (96, 130)])
def test_pictures_come_out_nearly_as_in_floating_point(pair, size):
    floating, integer = map(Stylizer, pair)
    picture = photograph(*size)
    assert integer(picture).shape == picture.shape
    before, after = floating(picture), integer(picture)
    assert psnr(before, after) > 33
    assert abs((after.astype(int) - before).mean()) < 0.5  # no darker, no lighter


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (18, 40)])
def test_the_smallest_pictures_keep_their_size(pair, size):
    integer = Stylizer(pair[1])
    assert integer(photograph(*size)).shape == (*size, 3)


def test_a_batch_gives_what_its_pictures_give_alone(pair):
    integer = Stylizer(pair[1])
    pictures = np.stack([photograph(48, 61), photograph(48, 61)[::-1], 255 - photograph(48, 61)])
    alone = [integer.stylize_array(picture[None])[0] for picture in pictures]
    assert np.array_equal(integer.stylize_array(pictures), np.stack(alone))


def test_onnxs_own_evaluator_agrees(pair):
    picture = photograph(40, 52)
    model = version_converter.convert_version(onnx.load(pair[1]), 21)  # it has no older DequantizeLinear
    (expected,) = ReferenceEvaluator(model).run(None, {"image": picture[None]})
    assert psnr(expected[0], Stylizer(pair[1])(picture)) > 38


def test_tiles_give_what_the_whole_gives(pair):
    picture = photograph(150, 210)
    tiled = Stylizer(pair[1], tile=True)
    whole = Stylizer(pair[1])(picture)
    for side in (64, 96):
        tiled.tiled.tile = side
        assert len(tiled.tiled.tiles(210, 150)) > 3
        assert psnr(whole, tiled(picture)) > 38


def test_the_metadata_are_the_models_and_say_how_near_it_comes(pair):
    before, after = (Stylizer(path).metadata for path in pair)
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {"int8_psnr"}
    near, names = [], list(Stylizer(pair[0]).paintings)
    blends = [dict.fromkeys(names, 1), dict.fromkeys(names[::3], 1)]
    for picture, style in itertools.product(HELD_OUT, [*names, *blends] if names else [None]):
        small = np.asarray(resize_short_side(Image.fromarray(picture), quantization.SHORT_SIDE))
        near.append(psnr(*(Stylizer(path)(small, style) for path in pair)))
    assert float(after["int8_psnr"]) == pytest.approx(min(near), abs=0.06)


@pytest.mark.parametrize("factor", [0, 1e-4, 1e-2, 100])
def test_a_channel_that_hardly_changes_or_changes_much_does_no_harm(factor, tmp_path):
    torch.manual_seed(0)
    network = create_network("fast", 8, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        list(network.parameters())[-2].mul_(0.3)
        list(network.parameters())[-1].add_(0.5)
        network.body[0].body[0].weight[3] *= factor
        network.body[1].weight[1] *= factor
    before, after = torch_pair(network, tmp_path)
    assert psnr(Stylizer(before)(photograph(96, 96)), Stylizer(after)(photograph(96, 96))) > 33


def test_ranges_are_those_of_all_photographs_together(pair):
    """A picture of little contrast and colour would leave most of 8 bits unused, or clip what others have."""
    model = Stylizer(pair[0])
    black = np.zeros((64, 64, 3), np.uint8)
    for photographs in ([*SEEN, black], [black, *SEEN]):
        quantized = quantize(pair[0], photographs)
        session = model.create_session(quantized.SerializeToString())
        picture = photograph(128, 128)
        assert psnr(model(picture), session.run(None, {"image": picture[None]})[0][0]) > 34.5


def test_what_comes_out_too_different_is_refused_and_not_written(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("nst_fast.stylizing.quantization.LEAST_PSNR", 99.0)
    with pytest.raises(UserError, match=r"too different, \d\d\.\d dB .* 99 dB are needed"):
        export_int8(pair[0], tmp_path / "out.onnx", SEEN, HELD_OUT)
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_as_exported_are_refused(pair, tmp_path):
    photographs = [skimage.data.astronaut()]
    with pytest.raises(UserError, match="in 8-bit integers already"):
        quantize(pair[1], photographs)
    floating = export(create_network("tiny", 8, 1), tmp_path / "float.onnx", METADATA, float_nchw=True)
    with pytest.raises(UserError, match="uint8 in and out, is needed"):
        quantize(floating, photographs)
    model = onnx.load(pair[0])
    norm = next(node for node in reversed(model.graph.node) if node.op_type == "InstanceNormalization")
    norm.op_type = "Identity"
    del norm.input[1:], norm.attribute[:]
    altered = tmp_path / "altered.onnx"
    onnx.save(model, altered)
    with pytest.raises(UserError, match=r"altered\.onnx is not as .* a convolution without a norm"):
        quantize(altered, photographs)
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        export_int8(pair[0], tmp_path / "out.bin", photographs, photographs)


def changed(path, folder, change):
    """Return a copy of a model with its graph changed."""
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def replace(graph, name, function):
    """Replace an initializer by a function of it."""
    tensor = next(t for t in graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(function(numpy_helper.to_array(tensor).copy()), name))


def last_conv(graph):
    weights = {t.name for t in graph.initializer}  # which the map of colours of a style has not
    return [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights][-1]


def with_nan(values):
    values.flat[0] = np.nan
    return values


def fix_size(graph):
    for dim in graph.input[0].type.tensor_type.shape.dim[1:3]:
        dim.dim_value = 64


CHANGES = {
    "weight that is no number": (lambda g: replace(g, last_conv(g).input[1], with_nan), "a weight is not finite"),
    "bias that is no number": (lambda g: replace(g, last_conv(g).input[2], with_nan), "a weight is not finite"),
    "weight of another shape": (lambda g: replace(g, last_conv(g).input[1], lambda w: w[:, :-1]), "cannot"),
    "one size alone": (fix_size, "uint8 in and out, is needed"),
    "two outputs": (lambda g: g.output.add(name=last_conv(g).output[0]), "cannot"),
    "no convolutions": (lambda g: [setattr(n, "op_type", "ConvX") for n in g.node if n.op_type == "Conv"], "no ONNX"),
}


@pytest.mark.parametrize(("change", "told"), CHANGES.values(), ids=CHANGES)
def test_an_altered_model_is_refused_in_one_line(change, told, pair, tmp_path, recwarn):
    with pytest.raises(UserError, match=told) as caught:
        export_int8(changed(pair[0], tmp_path, change), tmp_path / "out.onnx", SEEN, HELD_OUT)
    assert "changed.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not recwarn.list
    assert not (tmp_path / "out.onnx").exists()


def test_a_norms_epsilon_is_kept(pair, tmp_path):
    def enlarge(graph):
        for node in graph.node:
            if node.op_type == "InstanceNormalization":
                node.attribute[0].f = 1e-2

    model = changed(pair[0], tmp_path, enlarge)
    integer = export_int8(model, tmp_path / "int8.onnx", SEEN, HELD_OUT)
    norms = [n for n in onnx.load(integer).graph.node if n.op_type == "InstanceNormalization"]
    assert {(a.name, a.f) for n in norms for a in n.attribute} == {("epsilon", np.float32(1e-2))}


def test_nodes_without_names_and_an_input_of_another_name_are_fine(pair, tmp_path):
    def rename(graph):
        graph.input[0].name = "photograph"
        for node in graph.node:
            node.name = ""
            for number, name in enumerate(node.input):
                if name == "image":
                    node.input[number] = "photograph"

    model = changed(pair[0], tmp_path, rename)
    integer = export_int8(model, tmp_path / "int8.onnx", SEEN, HELD_OUT)
    assert np.array_equal(Stylizer(integer)(photograph(64, 80)), Stylizer(pair[1])(photograph(64, 80)))


def test_a_bias_that_32_bits_cannot_hold_in_small_steps_takes_larger_ones(pair, tmp_path):
    """Weights of next to nothing would have such steps, and a bias in them would be past the largest number."""

    def shrink(values):
        values[1] *= 1e-12
        return values

    model = changed(pair[0], tmp_path, lambda g: replace(g, last_conv(g).input[1], shrink))
    integer = export_int8(model, tmp_path / "int8.onnx", SEEN, HELD_OUT)
    before, after = (Stylizer(path)(photograph(96, 96)).astype(int) for path in (model, integer))
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 1.5


def test_the_model_itself_is_not_replaced(pair, tmp_path):
    model = tmp_path / "model.onnx"
    shutil.copy(pair[0], model)
    (tmp_path / "link.onnx").symlink_to(model)
    for output in (model, tmp_path / "link.onnx"):
        with pytest.raises(UserError, match="is the model itself"):
            export_int8(model, output, SEEN, HELD_OUT)
    assert model.read_bytes() == pair[0].read_bytes()


@pytest.mark.parametrize(
    ("number", "told"), [(1, "a convolution of weights that are computed"), (None, "Relu after the last convolution")]
)
def test_what_is_not_understood_is_refused(number, told, tmp_path):
    model = onnx.load(export(create_network("fast", 8, 1), tmp_path / "model.onnx", METADATA))
    nodes = list(model.graph.node)
    if number is None:
        clip = next(node for node in nodes if node.op_type == "Clip")
        nodes.insert(nodes.index(clip), onnx.helper.make_node("Relu", [clip.input[0]], ["rectified"]))
        clip.input[0] = "rectified"
    else:
        conv = [node for node in nodes if node.op_type == "Conv"][number]
        nodes.insert(0, onnx.helper.make_node("Identity", [conv.input[1]], ["computed"]))
        conv.input[1] = "computed"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=told):
        quantize(tmp_path / "model.onnx", SEEN[:1])


def test_a_transposed_convolution_that_computes_is_refused(tmp_path):
    model = onnx.load(export(create_network("fast", 8, 1), tmp_path / "model.onnx", METADATA))
    name = next(node.input[1] for node in model.graph.node if node.op_type == "ConvTranspose")
    weight = next(t for t in model.graph.initializer if t.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.5), name))
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(UserError, match="no rearrangement"):
        quantize(tmp_path / "altered.onnx", [skimage.data.astronaut()])


def test_training_cannot_go_on_from_integers(pair):
    with pytest.raises(UserError, match="training cannot start from"):
        import_network(pair[1])


@functools.cache
def released(name: str) -> tuple[Stylizer, Stylizer]:
    """A released model in floating point and in 8 bits."""
    return Stylizer(shipped_models()[name]), Stylizer(find_model(f"{name}.int8"))


@pytest.mark.parametrize("name", [*STYLES, *LATER])
def test_a_released_model_ships_in_8_bits_too(name):
    model, integer = shipped_models()[name], find_model(f"{name}.int8")
    assert shipped_models(int8=True)[f"{name}.int8"] == integer
    assert integer.stat().st_size < model.stat().st_size / 2
    before, after = released(name)
    assert {key: after.metadata[key] for key in before.metadata} == before.metadata
    assert json.loads(after.metadata["config"])["style"]["name"] == name


PICTURES = [
    skimage.data.retina()[300:812, 300:812],
    skimage.data.retina()[300:812, 300:812] // 16,
    skimage.data.coffee(),
    np.ascontiguousarray(skimage.data.astronaut()[:, ::-1]),
]


@functools.cache
def painted(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """What a released model makes of one of the pictures, in floating point and in 8 bits."""
    before, after = released(name)
    return before(PICTURES[number]), after(PICTURES[number])


@pytest.mark.xfail(reason="29.6 to 36 dB: strokes are bold, and what 8 bits change in the first run grows", strict=True)
@pytest.mark.parametrize("name", SINGLES)
def test_a_released_model_paints_in_8_bits_what_it_paints_in_floating_point(name):
    for number in range(len(PICTURES)):
        assert psnr(*painted(name, number)) > 36


LOUD = {
    "starry_night": pytest.mark.xfail(
        reason="32.6 dB on one picture: recoloured, with 1.3 times the contrast", strict=True
    ),
}


@pytest.mark.parametrize("name", released_ones((*STYLES, *LATER), LOUD))
def test_a_released_model_is_near_in_8_bits(name):
    before, after = released(name)
    for seen in PICTURES:
        assert psnr(before.run_once(seen[None]), after.run_once(seen[None])) > 33


@pytest.mark.parametrize("style", ["starry_night", "port_en_bessin", "woggle_bug"])  # the farthest
def test_the_gallery_is_near_in_8_bits(style):
    before, after = Stylizer("gallery"), Stylizer("gallery.int8")
    for seen in PICTURES[:2]:
        assert psnr(before.run_once(seen[None], style), after.run_once(seen[None], style)) > 29


FURTHER = {"the_scream": pytest.mark.xfail(reason="15 % further on one picture", strict=True)}


@pytest.mark.parametrize("name", released_ones(STYLES, FURTHER))
def test_a_released_model_comes_as_near_to_the_painting_in_8_bits(name):
    before, _ = released(name)
    network = create_loss_network("vgg16_slim")
    targets = StyleTargets.load(ASSETS / "style_targets" / f"{name}.safetensors")
    grams = targets.sizes[int(before.metadata["style_size"])]

    def distance(picture: np.ndarray) -> float:
        features = network(to_tensor(Image.fromarray(picture)), ["relu1_2", "relu2_2", "relu3_3"])
        made = {layer: layer_gram_matrix(network, layer, found) for layer, found in features.items()}
        return sum(float((gram - grams[k]).square().sum() / grams[k].square().sum()) for k, gram in made.items())

    for number in range(len(PICTURES)):
        floating, integer = painted(name, number)
        assert distance(integer) < 1.05 * distance(floating)


@pytest.mark.parametrize("name", SINGLES)
def test_a_flat_picture_gives_the_strokes_that_it_gives_in_floating_point(name):
    """What there is in it is grain, if there is any; 8 bits neither drown it nor make a pattern of their own."""
    before, after = released(name)
    for value in (0, 120, 255):
        flat = np.full((240, 320, 3), value, np.uint8)
        assert psnr(before(flat), after(flat)) > 25


def test_the_scales_undo_what_the_norm_undoes(tmp_path):
    """A convolution of one channel and its integers: the same up to scale and offset of every channel of its output."""
    torch.manual_seed(1)
    network = create_network("johnson", 8, 1).eval()
    path = export(network, tmp_path / "model.onnx", METADATA)
    before, after = onnx.load(path).graph, quantize(path, SEEN).graph
    conv = [node for node in before.node if node.op_type == "Conv"][1]
    weight = next(numpy_helper.to_array(t) for t in before.initializer if t.name == conv.input[1])
    held = {t.name: numpy_helper.to_array(t) for t in after.initializer}
    step = held[f"{conv.output[0]}/weight"] * held[f"{conv.output[0]}/weight/scale"][:, None, None, None]
    ratio = (step * weight).sum((1, 2, 3)) / (weight**2).sum((1, 2, 3))
    assert (ratio > 0).all()
    error = np.abs(step / ratio[:, None, None, None] - weight)
    size = np.abs(weight).max((1, 2, 3)) / 64
    assert (error.mean((1, 2, 3)) < 0.4 * size + 1e-6).all()
    assert (error.max((1, 2, 3)) < 2 * size + 1e-6).all()  # of those that make up for others


def test_weights_are_rounded_so_that_what_they_give_differs_least():
    """On windows whose values go together; where none do, each weight is rounded by itself."""
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((4000, 4)) @ rng.standard_normal((4, 12)) + 0.1 * rng.standard_normal((4000, 12)) + 3
    weight = 15 * rng.standard_normal((40, 12))
    got = quantization.rounded(weight, quantization.Windows(len(windows), windows.sum(0), windows.T @ windows))
    assert np.array_equal(got, got.round())

    def lost(whole):
        return np.var((whole - weight) @ windows.T, axis=1).mean()

    assert lost(got) < 0.5 * lost(weight.round())
    alone = quantization.Windows(1, np.zeros(12), np.diag(rng.uniform(1, 2, 12)))
    assert np.array_equal(quantization.rounded(weight, alone), weight.round())
    assert np.abs(quantization.rounded(100 * weight, alone)).max() == quantization.LARGEST_WEIGHT


def test_a_map_of_one_value_rounds_each_weight_by_itself_and_one_that_is_not_finite_is_refused():
    flat = np.full((50, 12), 1234.567)
    weight = 15 * np.random.default_rng(0).standard_normal((4, 12))
    windows = quantization.Windows(50, flat.sum(0), flat.T @ flat)
    assert np.abs(quantization.rounded(weight, windows) - weight).max() <= 1
    with pytest.raises(ValueError, match="not finite"):
        quantization.rounded(weight, quantization.Windows(50, np.full(12, np.inf), flat.T @ flat))


def test_windows_are_those_of_a_convolution():
    """Of every fifth row and column: what they give is the convolution's there."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 3, 24, 31)), rng.standard_normal((2, 3, 3, 3))
    seen = quantization.windows_of(x, (3, 3))
    given = torch.nn.functional.conv2d(*(torch.from_numpy(a) for a in (x, weight)), stride=5)[0].flatten(1).numpy()
    flat = weight.reshape(2, -1)
    assert seen.count == given.shape[1]
    np.testing.assert_allclose(flat @ seen.values / seen.count, given.mean(1))
    np.testing.assert_allclose(flat @ seen.covariance @ flat.T, np.cov(given, bias=True))
