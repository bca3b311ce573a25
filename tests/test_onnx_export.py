"""Exported files: self-contained, of free size, described by their metadata, equal to torch."""

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nst_fast.errors import UserError
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import NETWORKS, FastNetwork, TransformationNetwork, create_network
from nst_fast.training.onnx_export import Uint8Network, check_parity, export, import_network
from nst_fast.training.recolouring import recolour

NAMES = ["night", "wave", "scream"]
METADATA = {"style": "der_schrei", "title": "Der Schrei — 叫び ☺", "artist": "Edvard Munch (1863–1944)", "empty": ""}
SIZES = [(16, 16), (17, 23), (64, 33), (101, 75)]


def random_network(name: str, seed: int = 0, **options: Any) -> TransformationNetwork:
    """A small network whose random output covers the range of colours and passes its ends."""
    torch.manual_seed(seed)
    network = create_network(name, 8, 2, **options)
    with torch.no_grad():
        network.vectors.add_(0.2 * torch.randn_like(network.vectors))
        list(network.parameters())[-2].mul_(1.5)
        list(network.parameters())[-1].add_(0.5)
    if options.get("paintings"):
        recolour(network, torch.eye(3) + 0.2 * torch.randn(3, 3, 3), 0.1 * torch.randn(3, 3))
    return network.eval()


def random_pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def infer(path, pictures: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["stylized"], {"image": pictures})[0]


def paintings_of(network: TransformationNetwork) -> dict[str, str]:
    """The metadata that name a network's paintings, where it has several."""
    return {"paintings": json.dumps([{"name": name} for name in NAMES])} if len(network.vectors) > 1 else {}


@pytest.fixture(scope="module", params=[*NETWORKS, "contrast", "gallery"])
def exported(request, tmp_path_factory):
    special = {"contrast": {"contrast": True}, "gallery": {"paintings": 3}}
    network = random_network("fast" if request.param in special else request.param, **special.get(request.param, {}))
    folder = tmp_path_factory.mktemp("model")
    return network, export(network, folder / "model.onnx", METADATA | paintings_of(network))


def test_export_writes_one_checked_file_without_external_data(exported):
    _, path = exported
    assert list(path.parent.iterdir()) == [path]
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import} == {"": 18}
    assert model.graph.initializer
    assert all(t.data_location == onnx.TensorProto.DEFAULT and not t.external_data for t in model.graph.initializer)


def test_input_and_output_are_uint8_with_free_sizes(exported):
    _, path = exported
    graph = onnx.load(path).graph
    for value, name in zip([graph.input[0], *graph.output], ["image", "stylized"], strict=True):
        tensor = value.type.tensor_type
        assert value.name == name
        assert tensor.elem_type == onnx.TensorProto.UINT8
        assert [d.dim_param or d.dim_value for d in tensor.shape.dim] == ["N", "H", "W", 3]


def test_every_instance_norm_stays_one_node(exported):
    network, path = exported
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("InstanceNormalization") == len(network.norms()) > 0


@pytest.mark.parametrize("size", SIZES)
def test_file_equals_torch_at_any_size_and_batch(exported, size):
    network, path = exported
    pictures = random_pictures(3, *size)
    with torch.no_grad():
        expected = Uint8Network(network)(torch.from_numpy(pictures)).numpy()
    got = infer(path, pictures)
    assert got.dtype == np.uint8
    assert got.shape == pictures.shape
    assert len(np.unique(expected)) > 100  # else the comparison would show little
    np.testing.assert_allclose(got.astype(int), expected, atol=1)


def test_a_batch_equals_its_pictures_one_by_one(exported):
    _, path = exported
    pictures = random_pictures(3, 40, 50)
    alone = np.concatenate([infer(path, picture[None]) for picture in pictures])
    np.testing.assert_allclose(infer(path, pictures).astype(int), alone, atol=1)


def test_output_is_scaled_clipped_and_rounded_by_the_graph(exported):
    network, path = exported
    pictures = random_pictures(2, 37, 53)
    scaled = torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    with torch.no_grad():
        stylized = network(scaled).numpy().transpose(0, 2, 3, 1)
    assert stylized.min() < 0
    assert stylized.max() > 1
    levels = np.clip(stylized, 0, 1) * 255
    got = infer(path, pictures).astype(int)
    np.testing.assert_allclose(got, np.rint(levels), atol=1)
    # Truncation would be half a step too dark on average.
    assert abs((got - levels).mean()) < 0.1


def test_metadata_round_trips_under_one_prefix(exported):
    network, path = exported
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    told = {**METADATA, "min_size": str(network.min_size), **paintings_of(network)}
    if len(network.vectors) > 1:
        told["trunk"] = stored["nst_fast.trunk"]
        assert len(told["trunk"]) == 16
    assert stored == {f"nst_fast.{k}": v for k, v in told.items()}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == stored


def test_float_variant_equals_the_uint8_one_before_rounding(exported, tmp_path):
    network, path = exported
    variant = export(network, tmp_path / "float.onnx", METADATA | paintings_of(network), float_nchw=True)
    graph = onnx.load(variant).graph
    for value in (graph.input[0], *graph.output):
        tensor = value.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        assert [d.dim_param or d.dim_value for d in tensor.shape.dim] == ["N", 3, "H", "W"]
    for size in SIZES:
        pictures = random_pictures(2, *size)
        stylized = infer(variant, pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        assert stylized.dtype == np.float32
        assert 0 <= stylized.min() <= stylized.max() <= 1
        np.testing.assert_allclose(stylized.transpose(0, 2, 3, 1) * 255, infer(path, pictures), atol=0.51)


def test_own_file_passes_the_parity_check_and_another_networks_is_rejected(exported):
    network, path = exported
    name = next(k for k, v in NETWORKS.items() if type(network) is v)
    assert check_parity(network, path) <= 1
    with pytest.raises(RuntimeError, match="differs from torch"):
        check_parity(random_network(name, seed=1), path)


@pytest.mark.parametrize("name", ["model.pt", "model", "model.onnx.txt"])
def test_wrong_suffix_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match=r"\.onnx"):
        export(random_network("fast"), tmp_path / name, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(UserError, match="cannot write"):
        export(random_network("fast"), tmp_path / "file" / "model.onnx", METADATA)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


OPTIONS = [{"name": n, "grain": g, "contrast": c} for n in NETWORKS for g in (False, True) for c in (False, True)]
PLAIN_OR_ALL = [options for options in OPTIONS if options["grain"] == options["contrast"]]


@pytest.mark.parametrize(
    ("options", "float_nchw"), [*((o, False) for o in OPTIONS), *((o, True) for o in PLAIN_OR_ALL)], ids=str
)
def test_a_models_network_comes_back_with_the_weights_that_it_was_trained_with(options, float_nchw, tmp_path):
    config = {**options, "width": 8, "blocks": 1}
    network = create_network(**config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = export(network, tmp_path / "model.onnx", {"config": json.dumps({"network": config})}, float_nchw)
    back = import_network(path)
    assert type(back) is type(network)
    torch.testing.assert_close(dict(back.state_dict()), dict(network.state_dict()), rtol=1e-5, atol=1e-6)
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in back.parameters())


class Restless(FastNetwork):
    """A network whose picture is another one each time that it is asked."""

    calls = 0

    def forward(self, image: torch.Tensor, vectors: torch.Tensor | None = None) -> torch.Tensor:
        Restless.calls += 1
        return super().forward(image, vectors) + 0.1 * (Restless.calls % 7)


@pytest.mark.parametrize("float_nchw", [False, True])
def test_a_file_that_does_not_do_what_the_network_does_is_not_left_behind(float_nchw, tmp_path):
    with pytest.raises(RuntimeError, match="differs from torch"):
        export(Restless(8, 1), tmp_path / "model.onnx", {}, float_nchw)
    assert not list(tmp_path.iterdir())


def blended_by_hand(network: TransformationNetwork, weights: list[float], pictures: np.ndarray) -> np.ndarray:
    """Pictures in a blend of paintings, by a network of one whose vector is the mean."""
    one = create_network("fast", 8, 2).eval()
    mean = sum(weight * vector for weight, vector in zip(weights, network.vectors.detach(), strict=True))
    one.load_state_dict({**network.state_dict(), "vectors": mean[None, : one.of_norms]})
    mapped = mean[one.of_norms :]
    recolour(one, mapped[None, :9].view(1, 3, 3), mapped[None, 9:])
    with torch.no_grad():
        return Uint8Network(one)(torch.from_numpy(pictures)).numpy()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    network = random_network("fast", paintings=3)
    return network, export(
        network, tmp_path_factory.mktemp("gallery") / "gallery.onnx", METADATA | paintings_of(network)
    )


def test_a_gallery_asks_for_pictures_alone_and_paints_its_first_painting(gallery):
    network, path = gallery
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["image"]
    pictures = random_pictures(2, 40, 52)
    assert np.abs(infer(path, pictures).astype(int) - blended_by_hand(network, [1, 0, 0], pictures)).max() <= 1


@pytest.mark.parametrize("weights", [[0, 0, 1], [0.25, 0.75, 0], [0.5, 0.2, 0.3]])
def test_style_weights_blend_the_paintings_vectors_and_a_vector_is_added(gallery, weights):
    network, path = gallery
    session, pictures = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]),
        random_pictures(2, 40, 52),
    )
    expected = blended_by_hand(network, weights, pictures)
    given = {"image": pictures, "style_weights": np.array(weights, np.float32)}
    assert np.abs(session.run(None, given)[0].astype(int) - expected).max() <= 1
    vector = (np.array(weights) @ network.vectors.detach().numpy()).astype(np.float32)
    alone = given | {"style_weights": np.zeros(3, np.float32), "style_vector": vector}
    assert np.abs(session.run(None, alone)[0].astype(int) - expected).max() <= 1


def test_a_style_is_chosen_by_name_or_by_weights_of_any_sum(gallery):
    network, path = gallery
    stylizer, picture = Stylizer(path), random_pictures(40, 52)
    assert list(stylizer.paintings) == NAMES
    for style, weights in (("wave", [0, 1, 0]), ({"scream": 3, "night": 1}, [0.25, 0, 0.75])):
        expected = blended_by_hand(network, weights, picture[None])[0]
        assert np.abs(stylizer(picture, style).astype(int) - expected).max() <= 1
    for wrong in ("waves", {}, {"wave": -1.0, "night": 2.0}, {"wave": float("nan")}, {"wave": 0.0}):
        with pytest.raises(UserError):
            stylizer(picture, wrong)


@pytest.mark.parametrize("recoloured", [False, True])
def test_a_gallerys_network_comes_back(recoloured, tmp_path):
    config = {"name": "fast", "width": 8, "blocks": 1, "paintings": 3}
    network = create_network(**config)
    with torch.no_grad():
        network.vectors.add_(torch.randn_like(network.vectors))
    if recoloured:
        recolour(network, torch.randn(3, 3, 3), torch.randn(3, 3))
    told = {"config": json.dumps({"network": config}), **paintings_of(network)}
    back = import_network(export(network, tmp_path / "gallery.onnx", told))
    torch.testing.assert_close(dict(back.state_dict()), dict(network.state_dict()), rtol=1e-5, atol=1e-6)
