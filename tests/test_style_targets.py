"""Style targets: files of Gram matrices, where they come from and what they refuse."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from nst_fast.assets import ASSETS, VGG19_SLIM, shipped
from nst_fast.downloads import file_hash
from nst_fast.errors import UserError
from nst_fast.loss import style_targets as module
from nst_fast.loss.loss_network import VGG, create_loss_network
from nst_fast.loss.losses import gram_matrix
from nst_fast.loss.style_targets import StyleTargets, fetch_painting, make_style_targets, style_statistics

SHARED = Path(__file__).resolve().parents[2] / "shared"
LAYERS = ("relu1_1", "relu2_1")
SHIPPED_TARGETS = sorted((ASSETS / "style_targets").glob("*.safetensors"))
NO_STYLE = "no style of this name ships"  # so that style_statistics finds no shipped targets


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VGG(((4,), (6,)), identity="small@1").requires_grad_(False)


@pytest.fixture
def painting(tmp_path):
    """A picture file of 60×45 pixels without a colour profile."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    path = tmp_path / "painting.png"
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def targets_file(painting, network, tmp_path):
    path = tmp_path / "targets.safetensors"
    make_style_targets(painting, network, (16, 32), LAYERS).save(path)
    return path


def grams_by_hand(path, network, layers, short_side):
    """Return {layer: F Fᵀ / M} of a picture resized with Pillow, in float64, between metrics where there are any."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    ratio = short_side / min(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
    pixels = torch.tensor(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        features = network(pixels, layers)
    flat = {layer: f[0].flatten(1).double() for layer, f in features.items()}
    grams = {layer: f @ f.T / f.shape[1] for layer, f in flat.items()}
    metrics = {layer: m.double() for layer in layers if (m := network.metric(layer)) is not None}
    return {k: metrics[k] @ gram @ metrics[k] if k in metrics else gram for k, gram in grams.items()}


def one_line(caught):
    message = str(caught.value)
    return len(message) > 0 and "\n" not in message


# Files


def test_saving_and_loading_keeps_every_number(tmp_path):
    grams = {}
    for size in (256, 512):
        roots = {"relu1_1": torch.randn(1, 1), "relu2_1": torch.randn(7, 7), "relu4_2": torch.randn(513, 513)}
        grams[size] = {layer: (r + r.T) / 2 for layer, r in roots.items()}
    saved = StyleTargets("net@123", "abc", grams)
    saved.save(tmp_path / "targets.safetensors")
    loaded = StyleTargets.load(tmp_path / "targets.safetensors")
    assert (loaded.loss_network, loaded.image_sha256) == ("net@123", "abc")
    assert set(loaded.grams) == {256, 512}
    for size, layers in grams.items():
        assert set(loaded.grams[size]) == set(layers)
        for layer, gram in layers.items():
            assert loaded.grams[size][layer].dtype == torch.float32
            assert torch.equal(loaded.grams[size][layer], gram)
            assert torch.equal(loaded.grams[size][layer], loaded.grams[size][layer].T)


def test_file_holds_only_half_of_each_matrix(tmp_path):
    StyleTargets("net", "abc", {64: {"relu1_1": torch.eye(100)}}).save(tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == 100 * 101 / 2  # noqa: SIM118


def test_saving_where_it_cannot_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        StyleTargets("net", "abc", {64: {"relu1_1": torch.eye(3)}}).save(tmp_path / "file" / "t.safetensors")
    assert one_line(caught)


def test_grams_at_the_paintings_own_size_are_those_of_gram_matrix(painting, network):
    made = make_style_targets(painting, network, [45], ["relu2_1"])  # 45 px: nothing is resampled
    with Image.open(painting) as image:
        pixels = torch.tensor(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    expected = gram_matrix(network(pixels, ["relu2_1"])["relu2_1"])[0]
    torch.testing.assert_close(made.grams[45]["relu2_1"], expected)


@pytest.mark.parametrize("size", [16, 31, 64])
def test_grams_are_those_of_the_resized_painting(painting, network, size):
    made = make_style_targets(painting, network, [size])
    assert set(made.grams[size]) == set(network.layers)
    assert made.loss_network == "small@1"
    assert made.image_sha256 == hashlib.sha256(painting.read_bytes()).hexdigest()
    for layer, expected in grams_by_hand(painting, network, network.layers, size).items():
        torch.testing.assert_close(made.grams[size][layer].double(), expected, rtol=1e-5, atol=1e-6)


def test_size_is_the_short_side_of_either_orientation(tmp_path, painting, network):
    with Image.open(painting) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "upright.png")
    made = make_style_targets(tmp_path / "upright.png", network, [20], ["relu1_1"])
    expected = grams_by_hand(tmp_path / "upright.png", network, ["relu1_1"], 20)["relu1_1"]
    torch.testing.assert_close(made.grams[20]["relu1_1"].double(), expected, rtol=1e-5, atol=1e-6)


# Refusals


def test_targets_of_another_loss_network_are_refused(targets_file):
    with pytest.raises(UserError, match="small@2") as caught:
        StyleTargets.load(targets_file).at(16, "small@2")
    assert "small@1" in str(caught.value)
    assert one_line(caught)


def test_targets_of_another_picture_are_refused(targets_file, painting):
    made = StyleTargets.load(targets_file)
    with pytest.raises(UserError, match="0" * 64) as caught:
        made.at(16, "small@1", "0" * 64)
    assert one_line(caught)
    assert set(made.at(16, "small@1", file_hash(painting))) == set(LAYERS)
    assert set(made.at(16, "small@1")) == set(LAYERS)


def test_size_that_the_targets_lack_is_refused_with_those_they_have(targets_file):
    with pytest.raises(UserError, match="16, 32") as caught:
        StyleTargets.load(targets_file).at(24, "small@1")
    assert "24" in str(caught.value)
    assert one_line(caught)


@pytest.mark.parametrize("metadata", [None, {"format": "another\nformat"}])
def test_file_of_another_format_is_refused(tmp_path, metadata):
    save_file({"16.relu1_1": torch.zeros(10)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(UserError, match="other") as caught:
        StyleTargets.load(tmp_path / "other.safetensors")
    assert one_line(caught)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_refused(targets_file, keep):
    targets_file.write_bytes(targets_file.read_bytes()[:keep])
    with pytest.raises(UserError, match="targets") as caught:
        StyleTargets.load(targets_file)
    assert one_line(caught)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="absent") as caught:
        StyleTargets.load(tmp_path / "absent.safetensors")
    assert one_line(caught)


# Where a training run takes them from


def test_style_statistics_from_a_picture(painting, network):
    grams, sha256 = style_statistics(network, LAYERS, name=NO_STYLE, size=24, image=painting)
    assert sha256 == hashlib.sha256(painting.read_bytes()).hexdigest()
    assert set(grams) == set(LAYERS)
    for layer, expected in grams_by_hand(painting, network, LAYERS, 24).items():
        torch.testing.assert_close(grams[layer].double(), expected, rtol=1e-5, atol=1e-6)


def test_style_statistics_from_a_targets_file_are_those_of_the_picture(painting, targets_file, network):
    painting_sha256 = file_hash(painting)
    expected = grams_by_hand(painting, network, LAYERS, 32)
    painting.unlink()
    grams, sha256 = style_statistics(network, LAYERS, name=NO_STYLE, size=32, targets=targets_file)
    assert sha256 == painting_sha256
    for layer in LAYERS:
        torch.testing.assert_close(grams[layer].double(), expected[layer], rtol=1e-5, atol=1e-6)


def test_picture_goes_before_a_targets_file(tmp_path, targets_file, network):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    _, sha256 = style_statistics(
        network, LAYERS, name=NO_STYLE, size=16, image=tmp_path / "red.png", targets=targets_file, sha256="0" * 64
    )
    assert sha256 == file_hash(tmp_path / "red.png")


def test_targets_file_that_does_not_fit_the_run_is_refused(targets_file, network):
    with pytest.raises(UserError, match="16, 32"):
        style_statistics(network, LAYERS, name=NO_STYLE, size=48, targets=targets_file)
    with pytest.raises(UserError, match="sha256"):
        style_statistics(network, LAYERS, name=NO_STYLE, size=16, targets=targets_file, sha256="0" * 64)
    network.identity = "small@2"
    with pytest.raises(UserError, match="small@2"):
        style_statistics(network, LAYERS, name=NO_STYLE, size=16, targets=targets_file)


def test_missing_picture_is_a_user_error(tmp_path, network):
    with pytest.raises(UserError, match=r"style\.image") as caught:
        style_statistics(network, LAYERS, name=NO_STYLE, size=16)
    assert one_line(caught)
    with pytest.raises(UserError, match="absent") as caught:
        style_statistics(network, LAYERS, name=NO_STYLE, size=16, image=tmp_path / "absent.png")
    assert one_line(caught)


def test_a_painting_like_a_thread_is_refused(network, tmp_path):
    Image.new("RGB", (400, 4), "red").save(tmp_path / "thread.png")
    with pytest.raises(UserError, match="400×4 px"):
        style_statistics(network, LAYERS, name=NO_STYLE, size=16, image=tmp_path / "thread.png")


def test_style_statistics_of_a_layer_that_the_network_lacks_is_a_user_error(painting, network):
    with pytest.raises(UserError, match="relu5_1"):
        style_statistics(network, ["relu5_1"], name=NO_STYLE, size=16, image=painting)


@pytest.fixture
def shipped_targets(tmp_path, targets_file, monkeypatch):
    """Let the targets file ship under the name small; the picture itself is nowhere."""
    (tmp_path / "style_targets").mkdir()
    targets_file.rename(tmp_path / "style_targets" / "small.safetensors")
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    monkeypatch.setenv("NST_FAST_STYLES", str(tmp_path / "nowhere"))


def test_shipped_targets_spare_the_picture(shipped_targets, painting, network):
    picture = {"url": "https://127.0.0.1/painting.png", "sha256": file_hash(painting)}
    grams, sha256 = style_statistics(network, LAYERS, name="small", size=32, **picture)
    assert sha256 == picture["sha256"]
    for layer, expected in grams_by_hand(painting, network, LAYERS, 32).items():
        torch.testing.assert_close(grams[layer].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("misfit", ["size", "layer", "loss network", "picture"])
def test_picture_is_needed_where_the_shipped_targets_do_not_fit(
    shipped_targets, painting, network, monkeypatch, misfit
):
    size, layers, sha256 = 32, LAYERS, file_hash(painting)
    if misfit == "size":
        size = 40
    elif misfit == "layer":
        layers = ("conv1_1",)
    elif misfit == "loss network":
        network.identity = "small@2"
    else:
        with Image.open(painting) as image:
            image.rotate(180).save(painting)
        sha256 = file_hash(painting)
    picture = {"url": "https://127.0.0.1/painting.png", "sha256": sha256}
    with pytest.raises(UserError, match=r"painting\.png") as caught:
        style_statistics(network, layers, name="small", size=size, **picture)
    assert one_line(caught)
    monkeypatch.setenv("NST_FAST_STYLES", str(painting.parent))
    grams, recorded = style_statistics(network, layers, name="small", size=size, **picture)
    assert recorded == sha256
    for layer, expected in grams_by_hand(painting, network, layers, size).items():
        torch.testing.assert_close(grams[layer].double(), expected, rtol=1e-5, atol=1e-6)


# Paintings at an address

ADDRESS = "https://127.0.0.1/styles/painting.png"


def test_painting_is_found_in_the_folder_of_ones_own(painting, network, monkeypatch):
    monkeypatch.setenv("NST_FAST_STYLES", str(painting.parent))
    sha256 = file_hash(painting)
    assert fetch_painting(ADDRESS, sha256) == painting
    grams, recorded = style_statistics(network, LAYERS, name=NO_STYLE, size=16, url=ADDRESS, sha256=sha256)
    assert recorded == sha256
    expected = grams_by_hand(painting, network, LAYERS, 16)["relu2_1"]
    torch.testing.assert_close(grams["relu2_1"].double(), expected, rtol=1e-5, atol=1e-6)


def test_another_picture_of_that_name_is_refused(painting, monkeypatch):
    monkeypatch.setenv("NST_FAST_STYLES", str(painting.parent))
    with pytest.raises(UserError, match="f" * 64) as caught:
        fetch_painting(ADDRESS, "f" * 64)
    assert file_hash(painting) in str(caught.value)
    assert one_line(caught)


def test_folder_without_the_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_STYLES", str(tmp_path))
    with pytest.raises(UserError, match=r"painting\.png") as caught:
        fetch_painting(ADDRESS, "0" * 64)
    assert "NST_FAST_STYLES" in str(caught.value)
    assert one_line(caught)


def test_address_that_does_not_answer_is_a_user_error_with_advice(tmp_path, monkeypatch):
    monkeypatch.delenv("NST_FAST_STYLES", raising=False)
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match="NST_FAST_STYLES") as caught:
        fetch_painting("https://127.0.0.1:1/painting.png", "0" * 64)
    assert one_line(caught)


def test_painting_in_the_cache_is_not_fetched_again(tmp_path, painting, monkeypatch):
    monkeypatch.delenv("NST_FAST_STYLES", raising=False)
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path))
    (tmp_path / "styles").mkdir()
    cached = tmp_path / "styles" / "painting.png"
    cached.write_bytes(painting.read_bytes())
    assert fetch_painting("https://127.0.0.1:1/painting.png", file_hash(painting)) == cached


# What ships


@pytest.fixture(scope="module")
def slim():
    return create_loss_network("vgg19_slim")


def style_config(name):
    return yaml.safe_load((shipped("configs") / "style" / f"{name}.yaml").read_text())


@pytest.mark.skipif(not SHIPPED_TARGETS, reason="style targets are not made yet")
def test_every_style_with_an_address_ships_its_targets():
    configs = [yaml.safe_load(path.read_text()) for path in (shipped("configs") / "style").glob("*.yaml")]
    assert {path.stem for path in SHIPPED_TARGETS} == {config["name"] for config in configs if config["url"]}


@pytest.mark.skipif(not VGG19_SLIM.exists(), reason="vgg19_slim is not distilled yet")
@pytest.mark.parametrize("path", SHIPPED_TARGETS, ids=lambda path: path.stem)
def test_shipped_targets_fit_the_shipped_network_and_the_configured_picture(path, slim):
    made, config = StyleTargets.load(path), style_config(path.stem)
    assert made.loss_network == slim.identity == f"vgg19_slim@{hashlib.sha256(VGG19_SLIM.read_bytes()).hexdigest()}"
    assert made.image_sha256 == config["sha256"]
    assert set(made.grams) == {256, 384, 512}
    assert config["size"] in made.grams
    for grams in made.grams.values():
        assert set(grams) == set(slim.layers)
    # A run with the configured size takes them without the picture.
    grams, sha256 = style_statistics(slim, slim.layers, name=path.stem, size=config["size"], sha256=config["sha256"])
    assert sha256 == config["sha256"]
    assert torch.equal(grams["relu3_1"], made.grams[config["size"]]["relu3_1"])


@pytest.mark.skipif(not SHARED.exists(), reason="the paintings are not here")
@pytest.mark.skipif(not VGG19_SLIM.exists(), reason="vgg19_slim is not distilled yet")
@pytest.mark.parametrize("path", SHIPPED_TARGETS, ids=lambda path: path.stem)
def test_shipped_targets_are_those_of_the_painting(path, slim):
    config = style_config(path.stem)
    picture = SHARED / "styles" / config["url"].rsplit("/", 1)[1]
    assert file_hash(picture) == config["sha256"]
    expected = grams_by_hand(picture, slim, slim.layers, 256)
    for layer, gram in StyleTargets.load(path).grams[256].items():
        difference = torch.linalg.norm(gram.double() - expected[layer]) / torch.linalg.norm(expected[layer])
        assert difference < 1e-3, layer
        assert math.isclose(gram.trace().item(), expected[layer].trace().item(), rel_tol=1e-3)


def test_quantiles_are_no_style_targets(tmp_path):
    targets = StyleTargets("net", "abc", {64: {"relu1_1": torch.eye(3), "sliced:rgb": torch.rand(256, 256)}})
    with pytest.raises(UserError, match="not sliced:rgb"):
        targets.save(tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())
