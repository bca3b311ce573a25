"""Properties that hold for any input, tried on inputs that hypothesis makes up, the same ones every time."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nst_fast.commands.configuration import literal, load_config, stored
from nst_fast.loss.style_targets import StyleTargets
from nst_fast.loss.terms import gram_matrix
from nst_fast.stylizing.stylizer import METADATA_PREFIX, Stylizer
from nst_fast.training.networks import NETWORKS, create_network
from nst_fast.training.onnx_export import export
from nst_fast.weights import read_safetensors

same = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
few, many = settings(same, max_examples=25), settings(same, max_examples=100)

counts, lengths = st.integers(1, 3), st.integers(1, 80)
seeds = st.integers(0, 2**32 - 1)
# What protobuf and JSON can hold: any text but lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def random_pictures(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    made = create_network(request.param, 8, 1).eval()
    with torch.no_grad():
        list(made.parameters())[-1].add_(0.5)
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["uint8", "float"])
def stylizer(request, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mine.onnx"
    return Stylizer(export(network, path, {}, float_nchw=request.param), threads=1)


@few
@given(counts, st.integers(16, 80), st.integers(16, 80), seeds)
@torch.no_grad()
def test_a_network_keeps_any_shape_and_treats_each_picture_alone(network, n, height, width, seed):
    pictures = torch.from_numpy(random_pictures(n, 3, height, width, seed=seed)) / 255
    stylized = network(pictures)
    assert stylized.shape == pictures.shape
    assert stylized.isfinite().all()
    alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(stylized, alone, rtol=1e-4, atol=1e-4)


@few
@given(counts, lengths, lengths, seeds)
def test_a_model_keeps_any_shape_and_treats_each_picture_alone(stylizer, n, height, width, seed):
    pictures = random_pictures(n, height, width, 3, seed=seed)
    stylized = stylizer.stylize_array(pictures)
    assert (stylized.shape, stylized.dtype) == (pictures.shape, np.uint8)
    alone = np.concatenate([stylizer.stylize_array(picture[None]) for picture in pictures])
    assert np.abs(stylized.astype(int) - alone).max() <= 1


@few
@given(st.integers(16, 80), st.integers(16, 80), seeds)
def test_a_model_is_its_network(network, tmp_path_factory, height, width, seed):
    if not hasattr(network, "exported"):
        path = export(network, tmp_path_factory.mktemp("model") / "mine.onnx", {})
        object.__setattr__(network, "exported", Stylizer(path, threads=1))
    pictures = random_pictures(1, height, width, 3, seed=seed)
    with torch.no_grad():
        expected = network(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255).clamp(0, 1) * 255
    got = network.exported.stylize_array(pictures)
    assert np.abs(got - expected.permute(0, 2, 3, 1).numpy()).max() <= 0.5 + 1e-2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(create_network("fast", 8, 1), tmp_path_factory.mktemp("model") / "mine.onnx", {})


@few
@given(st.dictionaries(texts.filter(lambda key: key != "min_size"), texts, max_size=5))
def test_metadata_round_trips_through_a_model(exported, tmp_path_factory, metadata):
    """By protobuf as the exporter writes it, and by onnxruntime as `stylize` reads it."""
    model = onnx.load(exported)
    for key, value in metadata.items():
        model.metadata_props.add(key=METADATA_PREFIX + key, value=value)
    path = tmp_path_factory.mktemp("model") / "mine.onnx"
    path.write_bytes(model.SerializeToString())
    assert Stylizer(path, threads=1).metadata == {**metadata, "min_size": "16"}


def test_the_exporter_keeps_any_metadata(tmp_path):
    metadata = {"title": "\0\n\t☺", "config": json.dumps({"a": "\x1b", "b": "${c}"}), "": "", " ": "x" * 10_000}
    path = export(create_network("fast", 8, 1), tmp_path / "mine.onnx", metadata)
    assert Stylizer(path, threads=1).metadata == {**metadata, "min_size": "16"}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
lookups = st.sampled_from(["${a}", "\\${a}", "\\\\${a}", "${oc.env:HOME}", "a\\", "${", "}", "$", "\\", "{"])


@many
@given(st.dictionaries(texts, plain, max_size=4))
def test_a_stored_config_is_read_as_it_was(config):
    assert OmegaConf.to_container(stored(config), resolve=True) == config


@many
@given(st.lists(lookups | texts, max_size=5).map("".join).filter(lambda text: text != "???"))
def test_any_text_can_be_put_into_a_config(text):
    assert OmegaConf.create({"key": literal(text)}).key == text
    assert OmegaConf.to_container(stored({"key": text}), resolve=True) == {"key": text}


names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=30)


@few
@given(names)
def test_a_picture_of_any_name_reaches_the_config(name):
    path = Path.cwd() / name
    cfg = load_config("train", ["style=custom", f"style.image={path}"])
    assert OmegaConf.to_container(cfg, resolve=True)["style"]["image"] == str(Path(path).absolute())


@few
@given(
    st.dictionaries(
        st.integers(1, 4096),
        st.dictionaries(st.sampled_from(["relu1_1", "relu4_2", "conv5_1"]), st.integers(1, 40), min_size=1),
        min_size=1,
        max_size=3,
    ),
    seeds,
)
def test_style_targets_round_trip(tmp_path_factory, sizes, seed):
    torch.manual_seed(seed)
    grams = {
        size: {layer: gram_matrix(torch.randn(1, c, 3, 3)) for layer, c in layers.items()}
        for size, layers in sizes.items()
    }
    path = tmp_path_factory.mktemp("targets") / "mine.safetensors"
    StyleTargets("net@0", "abc", grams).save(path)
    loaded = StyleTargets.load(path)
    assert (loaded.loss_network, loaded.image_sha256, set(loaded.sizes)) == ("net@0", "abc", set(grams))
    for size, layers in grams.items():
        assert set(loaded.sizes[size]) == set(layers)
        for layer, gram in layers.items():
            # float16 keeps 11 bits of a root.
            torch.testing.assert_close(loaded.sizes[size][layer], gram, rtol=2**-10, atol=1e-7)
    assert read_safetensors(path)[1]["format"] == "nst_fast style targets 2"
