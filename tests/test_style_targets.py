"""Style targets: files of what paintings are compared by, where they come from and what they refuse."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from nst_fast.assets import ASSETS, VGG16_SLIM, shipped
from nst_fast.commands.configuration import load_config
from nst_fast.downloads import file_hash
from nst_fast.errors import UserError
from nst_fast.loss import style_targets as module
from nst_fast.loss.loss_networks import VGG
from nst_fast.loss.perceptual_loss import LOSSES
from nst_fast.loss.pretrained import create_loss_network
from nst_fast.loss.style_targets import FORMAT, StyleTargets, fetch_painting, find_style_targets, make_style_targets
from nst_fast.loss.terms import QUANTILES, SLICES, gram_matrix

SHARED = Path(__file__).resolve().parents[2] / "shared"
LAYERS = ("relu1_1", "relu2_1")
NAMES = (*LAYERS, "energy:relu2_1", "sliced:rgb")
SHIPPED_TARGETS = sorted((ASSETS / "style_targets").glob("*.safetensors"))
NO_STYLE = "no style of this name ships"  # so that find_style_targets finds no shipped targets


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
    make_style_targets(painting, network, (16, 32), NAMES).save(path)
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


@pytest.fixture
def made(tmp_path):
    """Targets of two sizes as `style_target` has them, saved to targets.safetensors."""
    rng, sizes = np.random.default_rng(0), {}
    for size in (256, 512):
        sizes[size] = {"energy:relu4_2": torch.tensor([7.3e4 / size]), "energy:rgb@2": torch.tensor([0.31])}
        for layer, channels, scale in (("relu1_1", 1, 1.0), ("relu2_1@4", 7, 3e5), ("relu4_1", 513, 1e-3)):
            root = scale * rng.standard_normal((channels, channels))
            sizes[size][layer] = torch.from_numpy(root + root.T).float()[None]
        quantiles = np.sort(rng.standard_normal((1, SLICES, QUANTILES)))
        sizes[size]["sliced:rgb@2"] = torch.from_numpy(quantiles).float()
    made = StyleTargets("net@123", "abc", sizes)
    made.save(tmp_path / "targets.safetensors")
    return made


def test_saving_and_loading_keeps_every_target_to_the_rounding_of_float16(made, tmp_path):
    loaded = StyleTargets.load(tmp_path / "targets.safetensors")
    assert (loaded.loss_network, loaded.image_sha256) == ("net@123", "abc")
    assert set(loaded.sizes) == {256, 512}
    for size, targets in made.sizes.items():
        assert set(loaded.sizes[size]) == set(targets)
        for name, target in targets.items():
            got = loaded.sizes[size][name]
            assert got.dtype == torch.float32
            assert got.shape == target.shape
            # A root is off by 2⁻¹¹ of itself, so its square by twice that; quantiles are kept as they are.
            relative = 2**-11 if name.startswith("sliced:") else 2 * 2**-11 * (1 + 2**-11)
            assert relative < 1e-3
            np.testing.assert_allclose(got.numpy(), target.numpy(), rtol=relative + 1e-6, atol=1e-7)
            if not name.startswith(("energy:", "sliced:")):
                assert torch.equal(got, got.mT)


def test_a_file_that_is_loaded_and_saved_again_is_the_same(made, tmp_path):
    StyleTargets.load(tmp_path / "targets.safetensors").save(tmp_path / "again.safetensors")
    first, again = (load_file(tmp_path / f"{name}.safetensors") for name in ("targets", "again"))
    assert set(first) == set(again)
    for name, values in first.items():
        np.testing.assert_allclose(again[name], values, rtol=2**-10, atol=0)


def test_file_holds_signed_roots_of_upper_triangles_in_half_precision(made, tmp_path):
    tensors = load_file(tmp_path / "targets.safetensors")
    assert set(tensors) == {f"{size}.{name}" for size, targets in made.sizes.items() for name in targets}
    for key, got in tensors.items():
        size, _, name = key.partition(".")
        target = made.sizes[int(size)][name].numpy()
        if name.startswith("sliced:"):
            expected = target[0]
        elif name.startswith("energy:"):
            expected = np.sqrt(target)
        else:
            entries = [target[0, i, j] for i in range(target.shape[1]) for j in range(i, target.shape[1])]
            expected = np.array([math.copysign(math.sqrt(abs(entry)), entry) for entry in entries])
        assert got.dtype == np.float16
        assert got.shape == expected.shape
        np.testing.assert_allclose(got.astype(float), expected, rtol=2**-11 + 1e-6, atol=3e-8)


@pytest.mark.parametrize("name", ["relu1_1", "energy:relu1_1", "sliced:relu1_1"])
@pytest.mark.parametrize("value", [1e15, float("inf"), float("nan")])
def test_a_target_past_float16_is_refused_at_save(tmp_path, name, value):
    target = {"r": torch.eye(3)[None], "e": torch.ones(1), "s": torch.zeros(1, SLICES, QUANTILES)}[name[0]].clone()
    target[(0,) * target.ndim] = value
    with pytest.raises(UserError, match=rf"64\.{name} .*style\.image=FILE") as caught:
        StyleTargets("net", "abc", {64: {"relu2_1": torch.eye(4)[None], name: target}}).save(tmp_path / "t.safetensors")
    assert one_line(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "most"), [("relu1_1", 4.29e9), ("energy:relu1_1", 4.29e9), ("sliced:rgb", 65504.0)])
def test_a_target_that_float16_just_holds_is_kept(tmp_path, name, most):
    target = {"r": torch.eye(3)[None], "e": torch.ones(1), "s": torch.ones(1, SLICES, QUANTILES)}[name[0]] * most
    StyleTargets("net", "abc", {64: {name: target}}).save(tmp_path / "t.safetensors")
    torch.testing.assert_close(StyleTargets.load(tmp_path / "t.safetensors").sizes[64][name], target, rtol=1e-3, atol=0)


def test_saving_where_it_cannot_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        StyleTargets("net", "abc", {64: {"relu1_1": torch.eye(3)[None]}}).save(tmp_path / "file" / "t.safetensors")
    assert one_line(caught)


def test_grams_at_the_paintings_own_size_are_those_of_gram_matrix(painting, network):
    made = make_style_targets(painting, network, [45], ["relu2_1"])  # 45 px: nothing is resampled
    with Image.open(painting) as image:
        pixels = torch.tensor(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    expected = gram_matrix(network(pixels, ["relu2_1"])["relu2_1"])
    torch.testing.assert_close(made.sizes[45]["relu2_1"], expected)


@pytest.mark.parametrize("size", [16, 31, 64])
def test_grams_are_those_of_the_resized_painting(painting, network, size):
    made = make_style_targets(painting, network, [size], network.layers)
    assert set(made.sizes[size]) == set(network.layers)
    assert made.loss_network == "small@1"
    assert made.image_sha256 == hashlib.sha256(painting.read_bytes()).hexdigest()
    for layer, expected in grams_by_hand(painting, network, network.layers, size).items():
        torch.testing.assert_close(made.sizes[size][layer][0].double(), expected, rtol=1e-5, atol=1e-6)


def test_energies_and_quantiles_are_those_of_the_painting(painting, network):
    names = ["energy:relu2_1", "energy:conv1_1", "sliced:rgb"]
    targets = make_style_targets(painting, network, [45], names).sizes[45]
    assert set(targets) == set(names)
    with Image.open(painting) as image:
        pixels = np.asarray(image).transpose(2, 0, 1) / 255
    features = network(torch.from_numpy(pixels)[None].float(), ["relu2_1", "conv1_1"])
    for layer, seen in features.items():
        np.testing.assert_allclose(targets["energy:" + layer].numpy(), [np.mean(seen.numpy() ** 2)], rtol=1e-5)
    directions = np.random.default_rng(0).standard_normal((SLICES, 3))
    directions /= np.sqrt((directions**2).sum(1, keepdims=True))
    assert targets["sliced:rgb"].shape == (1, SLICES, QUANTILES)
    positions = 60 * 45
    for number in (0, 1, 100, 255):
        ordered = sorted(directions[number] @ pixels.reshape(3, -1))
        for part in (0, 17, QUANTILES - 1):
            first, last = math.floor(part * positions / QUANTILES), math.ceil((part + 1) * positions / QUANTILES)
            expected = sum(ordered[first:last]) / (last - first)
            assert targets["sliced:rgb"][0, number, part].item() == pytest.approx(expected, abs=1e-5)


def test_size_is_the_short_side_of_either_orientation(tmp_path, painting, network):
    with Image.open(painting) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "upright.png")
    made = make_style_targets(tmp_path / "upright.png", network, [20], ["relu1_1"])
    expected = grams_by_hand(tmp_path / "upright.png", network, ["relu1_1"], 20)["relu1_1"]
    torch.testing.assert_close(made.sizes[20]["relu1_1"][0].double(), expected, rtol=1e-5, atol=1e-6)


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
    assert set(made.at(16, "small@1", file_hash(painting))) == set(NAMES)
    assert set(made.at(16, "small@1")) == set(NAMES)


def test_size_that_the_targets_lack_is_refused_with_those_they_have(targets_file):
    with pytest.raises(UserError, match="16, 32") as caught:
        StyleTargets.load(targets_file).at(24, "small@1")
    assert "24" in str(caught.value)
    assert one_line(caught)


OLD = "nst_fast style targets 1"  # of whole numbers of Gram matrices, in float32


@pytest.mark.parametrize("metadata", [None, {"format": "another\nformat"}, {"format": OLD}, {"format": FORMAT + " "}])
def test_file_of_another_format_is_refused(tmp_path, metadata):
    save_file({"16.relu1_1": torch.zeros(10)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(UserError, match=r"other.*nst_fast style targets 2.*style\.image=FILE") as caught:
        StyleTargets.load(tmp_path / "other.safetensors")
    assert one_line(caught)


def hostile(change, name, shape=None):
    """Return what a file holds where one tensor's values or shape were changed."""
    values = torch.ones(10 if shape is None else shape)
    if change is not None:
        values.view(-1)[0] = change
    return {name: values}


@pytest.mark.parametrize(
    "tensors",
    [
        hostile(None, "16.relu1_1", (11,)),  # 10 and 15 are triangles
        hostile(None, "16.relu1_1", (4, 4)),
        hostile(None, "16.relu1_1", (1, 10)),
        hostile(None, "16.relu1_1", ()),
        hostile(None, "16.energy:relu1_1", (2,)),
        hostile(None, "16.energy:relu1_1", (3,)),
        hostile(None, "16.energy:relu1_1", (0,)),
        hostile(None, "16.energy:relu1_1", ()),
        hostile(None, "16.energy:relu1_1", (1, 1)),
        hostile(None, "16.sliced:rgb", (SLICES, QUANTILES - 1)),
        hostile(None, "16.sliced:rgb", (SLICES - 1, QUANTILES)),
        hostile(None, "16.sliced:rgb", (QUANTILES, SLICES)),
        hostile(None, "16.sliced:rgb", (1, SLICES, QUANTILES)),
        hostile(None, "16.sliced:rgb", (SLICES * QUANTILES,)),
        *(hostile(bad, "16.relu1_1") for bad in (float("nan"), float("inf"), -float("inf"))),
        *(hostile(bad, "16.energy:relu1_1", (1,)) for bad in (float("nan"), float("inf"))),
        *(hostile(bad, "16.sliced:rgb", (SLICES, QUANTILES)) for bad in (float("nan"), float("inf"))),
        hostile(None, "16.colours", (3, 4)),
        hostile(None, "16.colours", (1, 4, 3)),
        *(hostile(bad, "16.colours", (4, 3)) for bad in (float("nan"), 1.5, -0.5)),
        hostile(None, "relu1_1"),
        hostile(None, ".relu1_1"),
        hostile(None, "-16.relu1_1"),
        hostile(None, "1e3.relu1_1"),
        hostile(None, "9999999999.relu1_1"),
        hostile(None, "six\nteen.relu1_1"),
    ],
    ids=lambda tensors: ", ".join(f"{k!a} {tuple(v.shape)} {v.view(-1)[:1].tolist()}" for k, v in tensors.items()),
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_hostile_file_is_refused(tmp_path, tensors, dtype):
    good = {"16.relu2_1": torch.ones(10, dtype=dtype)}
    metadata = {"format": FORMAT, "loss_network": "small@1", "image_sha256": "abc"}
    save_file(good, tmp_path / "hostile.safetensors", metadata)
    assert set(StyleTargets.load(tmp_path / "hostile.safetensors").sizes[16]) == {"relu2_1"}
    save_file(good | {k: v.to(dtype) for k, v in tensors.items()}, tmp_path / "hostile.safetensors", metadata)
    with pytest.raises(UserError, match=r"hostile\.safetensors holds no style targets") as caught:
        StyleTargets.load(tmp_path / "hostile.safetensors")
    assert one_line(caught)


@pytest.mark.parametrize(
    ("name", "values"),
    [("relu1_1", [1e30, 0.0, 1.0]), ("energy:relu1_1", [1e30]), ("energy:relu1_1", [-1.0]), ("relu1_1", [])],
    ids=["square past float32", "energy past float32", "energy below 0", "no channels"],
)
def test_hostile_numbers_are_refused(tmp_path, name, values):
    metadata = {"format": FORMAT, "loss_network": "small@1", "image_sha256": "abc"}
    save_file({f"16.{name}": torch.tensor(values)}, tmp_path / "hostile.safetensors", metadata)
    with pytest.raises(UserError, match=r"hostile\.safetensors holds no style targets") as caught:
        StyleTargets.load(tmp_path / "hostile.safetensors")
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


def test_style_targets_from_a_picture(painting, network):
    grams, sha256 = find_style_targets(network, LAYERS, name=NO_STYLE, size=24, image=painting)
    assert sha256 == hashlib.sha256(painting.read_bytes()).hexdigest()
    assert set(grams) == set(LAYERS)
    for layer, expected in grams_by_hand(painting, network, LAYERS, 24).items():
        torch.testing.assert_close(grams[layer][0].double(), expected, rtol=1e-5, atol=1e-6)


def test_style_targets_from_a_targets_file_are_those_of_the_picture(painting, targets_file, network):
    painting_sha256 = file_hash(painting)
    expected = grams_by_hand(painting, network, LAYERS, 32)
    painting.unlink()
    grams, sha256 = find_style_targets(network, LAYERS, name=NO_STYLE, size=32, targets=targets_file)
    assert sha256 == painting_sha256
    for layer in LAYERS:
        torch.testing.assert_close(grams[layer][0].double(), expected[layer], rtol=1e-3, atol=1e-9)


def test_picture_goes_before_a_targets_file(tmp_path, targets_file, network):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    _, sha256 = find_style_targets(
        network, LAYERS, name=NO_STYLE, size=16, image=tmp_path / "red.png", targets=targets_file, sha256="0" * 64
    )
    assert sha256 == file_hash(tmp_path / "red.png")


def test_targets_file_that_does_not_fit_the_run_is_refused(targets_file, network):
    with pytest.raises(UserError, match="16, 32"):
        find_style_targets(network, LAYERS, name=NO_STYLE, size=48, targets=targets_file)
    with pytest.raises(UserError, match="sha256"):
        find_style_targets(network, LAYERS, name=NO_STYLE, size=16, targets=targets_file, sha256="0" * 64)
    network.identity = "small@2"
    with pytest.raises(UserError, match="small@2"):
        find_style_targets(network, LAYERS, name=NO_STYLE, size=16, targets=targets_file)


def test_missing_picture_is_a_user_error(tmp_path, network):
    with pytest.raises(UserError, match=r"style\.image") as caught:
        find_style_targets(network, LAYERS, name=NO_STYLE, size=16)
    assert one_line(caught)
    with pytest.raises(UserError, match="absent") as caught:
        find_style_targets(network, LAYERS, name=NO_STYLE, size=16, image=tmp_path / "absent.png")
    assert one_line(caught)


def test_a_painting_like_a_thread_is_refused(network, tmp_path):
    Image.new("RGB", (400, 4), "red").save(tmp_path / "thread.png")
    with pytest.raises(UserError, match="400×4 px"):
        find_style_targets(network, LAYERS, name=NO_STYLE, size=16, image=tmp_path / "thread.png")


def test_style_targets_of_a_layer_that_the_network_lacks_is_a_user_error(painting, network):
    with pytest.raises(UserError, match="relu5_1"):
        find_style_targets(network, ["relu5_1"], name=NO_STYLE, size=16, image=painting)


@pytest.fixture
def shipped_targets(tmp_path, targets_file, monkeypatch):
    """Let the targets file ship under the name small; the picture itself is nowhere."""
    (tmp_path / "style_targets").mkdir()
    targets_file.rename(tmp_path / "style_targets" / "small.safetensors")
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    monkeypatch.setenv("NST_FAST_STYLES", str(tmp_path / "nowhere"))


def test_shipped_targets_spare_the_picture(shipped_targets, painting, network):
    picture = {"url": "https://127.0.0.1/painting.png", "sha256": file_hash(painting)}
    grams, sha256 = find_style_targets(network, LAYERS, name="small", size=32, **picture)
    assert sha256 == picture["sha256"]
    for layer, expected in grams_by_hand(painting, network, LAYERS, 32).items():
        torch.testing.assert_close(grams[layer][0].double(), expected, rtol=1e-3, atol=1e-9)


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
        find_style_targets(network, layers, name="small", size=size, **picture)
    assert one_line(caught)
    monkeypatch.setenv("NST_FAST_STYLES", str(painting.parent))
    grams, recorded = find_style_targets(network, layers, name="small", size=size, **picture)
    assert recorded == sha256
    for layer, expected in grams_by_hand(painting, network, layers, size).items():
        torch.testing.assert_close(grams[layer][0].double(), expected, rtol=1e-5, atol=1e-6)


# Paintings at an address

ADDRESS = "https://127.0.0.1/styles/painting.png"


def test_painting_is_found_in_the_folder_of_ones_own(painting, network, monkeypatch):
    monkeypatch.setenv("NST_FAST_STYLES", str(painting.parent))
    sha256 = file_hash(painting)
    assert fetch_painting(ADDRESS, sha256) == painting
    grams, recorded = find_style_targets(network, LAYERS, name=NO_STYLE, size=16, url=ADDRESS, sha256=sha256)
    assert recorded == sha256
    expected = grams_by_hand(painting, network, LAYERS, 16)["relu2_1"]
    torch.testing.assert_close(grams["relu2_1"][0].double(), expected, rtol=1e-5, atol=1e-6)


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
    return create_loss_network("vgg16_slim")


def style_config(name):
    return yaml.safe_load((shipped("configs") / "style" / f"{name}.yaml").read_text())


@pytest.mark.skipif(not SHIPPED_TARGETS, reason="style targets are not made yet")
def test_every_style_with_an_address_ships_its_targets():
    configs = [yaml.safe_load(path.read_text()) for path in (shipped("configs") / "style").glob("*.yaml")]
    assert {path.stem for path in SHIPPED_TARGETS} == {config["name"] for config in configs if config["url"]}


@pytest.mark.skipif(not VGG16_SLIM.exists(), reason="vgg16_slim is not distilled yet")
@pytest.mark.parametrize("path", SHIPPED_TARGETS, ids=lambda path: path.stem)
def test_shipped_targets_fit_the_shipped_network_and_the_configured_picture(path, slim):
    made, config = StyleTargets.load(path), style_config(path.stem)
    assert made.loss_network == slim.identity == f"vgg16_slim@{hashlib.sha256(VGG16_SLIM.read_bytes()).hexdigest()}"
    assert made.image_sha256 == config["sha256"]
    assert set(made.sizes) == {181, config["size"], 512}
    # A run with the configured size takes them without the picture.
    options = load_config("train", ["style=starry_night"]).loss
    layers = (options.content_layers, options.style_layers)
    loss = LOSSES[options.name](slim, *layers, 1.0, 1.0, 1.0, sliced_layers=options.sliced_layers)
    for size, targets in made.sizes.items():
        loss.check(targets)
        expected = {"url": None, "size": size, "sha256": config["sha256"]}
        found, sha256 = find_style_targets(slim, loss.style_target_names, name=path.stem, **expected)
        assert sha256 == config["sha256"]
        assert torch.equal(found["relu3_3"], targets["relu3_3"])


@pytest.mark.parametrize("path", SHIPPED_TARGETS, ids=lambda path: path.stem)
def test_shipped_targets_are_small(path):
    assert path.stat().st_size <= 250_000


def test_four_paintings_ship():
    assert len(SHIPPED_TARGETS) == 4


@pytest.mark.skipif(not SHARED.exists(), reason="the paintings are not here")
@pytest.mark.skipif(not VGG16_SLIM.exists(), reason="vgg16_slim is not distilled yet")
@pytest.mark.parametrize("path", SHIPPED_TARGETS, ids=lambda path: path.stem)
def test_shipped_targets_are_those_of_the_painting(path, slim):
    config = style_config(path.stem)
    picture = SHARED / "styles" / config["url"].rsplit("/", 1)[1]
    assert file_hash(picture) == config["sha256"]
    expected = grams_by_hand(picture, slim, slim.layers, config["size"])
    targets = StyleTargets.load(path).sizes[config["size"]]
    grams = {"relu1_2", "relu2_2", "relu3_3"}
    assert set(targets) == {*grams, "sliced:rgb@4", "colours", *(f"energy:{layer}" for layer in slim.layers)}
    with Image.open(picture) as image:
        scale = min(512 / min(image.size), 1)
        small = image.convert("RGB").resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    pixels = np.asarray(small).reshape(-1, 3) / 255
    by_hand = np.vstack([pixels.mean(0), np.cov(pixels.T, bias=True) + np.outer(pixels.mean(0), pixels.mean(0))])
    np.testing.assert_allclose(targets["colours"][0], by_hand, atol=1e-3)
    for name, target in targets.items():
        if name.startswith("sliced:") or name == "colours":
            continue
        by_hand = expected[name.removeprefix("energy:")]
        if name.startswith("energy:"):
            assert target.item() == pytest.approx((by_hand.trace() / len(by_hand)).item(), rel=1e-3)
            continue
        (gram,) = target.double()
        assert torch.linalg.norm(gram - by_hand) < 1e-3 * torch.linalg.norm(by_hand), name
        assert math.isclose(gram.trace().item(), by_hand.trace().item(), rel_tol=1e-3)
