"""Loss networks against torchvision, hand-written convolutions and the formulas they promise."""

import copy
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms.functional import normalize

from nst_fast.assets import VGG16_SLIM
from nst_fast.downloads import reachable
from nst_fast.errors import UserError
from nst_fast.loss import pretrained as module
from nst_fast.loss.loss_networks import VGG, MergedLossNetwork, NormalisedLossNetwork, SlimVGG, freeze
from nst_fast.loss.pretrained import (
    VGG_WIDTHS,
    choose_loss_network,
    create_loss_network,
    fetch_weights,
    kept_files,
    load_converted_vgg,
    load_slim_vgg,
    load_torchvision,
    save_slim_vgg,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
REAL_PREFIX = SHARED / "teachers" / "vgg19_normalised_to_conv3_1.safetensors"
SMALL_WIDTHS = ((4, 5), (6, 6), (8,))
# Index in torchvision's `features` of the module whose output is that layer.
TORCHVISION_INDEX = {
    "conv1_1": 0,
    "relu1_1": 1,
    "relu2_1": 6,
    "conv3_3": 14,
    "relu3_3": 15,
    "relu4_2": 22,
    "conv5_1": 28,
    "relu5_4": 35,
}


VGG16_NAMES = [f"conv{block}_{n}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)]
KINDS = ("weight", "bias")


@pytest.fixture(scope="module")
def torchvision_features():
    """Torchvision's own layers of VGG-19 with He weights, so that deep features depend on the picture."""
    torch.manual_seed(0)
    features = make_layers(cfgs["E"], batch_norm=False)
    for layer in features:
        if isinstance(layer, torch.nn.Conv2d):
            std = (2 / (9 * layer.in_channels)) ** 0.5
            torch.nn.init.normal_(layer.weight, std=std)
            torch.nn.init.uniform_(layer.bias, -0.1, 0.1)
            round_to_float16(layer)
    return features.eval()


@torch.no_grad()
def round_to_float16(layer):
    """Round a layer's parameters as loading does."""
    for parameter in layer.parameters():
        parameter.copy_(parameter.half())


@pytest.fixture(scope="module")
def vgg19_files(torchvision_features, tmp_path_factory):
    """The same weights as a PyTorch checkpoint and as safetensors; 80 MB each, so removed afterwards."""
    folder = tmp_path_factory.mktemp("vgg19")
    state = {f"features.{k}": v for k, v in torchvision_features.state_dict().items()}
    files = {".pth": folder / "vgg19.pth", ".safetensors": folder / "vgg19.safetensors"}
    torch.save(state, files[".pth"])
    save_file(state, files[".safetensors"])
    yield files
    for file in files.values():
        file.unlink()


def picture(height=40, width=48, seed=0, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def small_vgg(seed=0, pooling="max", widths=SMALL_WIDTHS, identity="small"):
    """Return a VGG with positive biases, so that no filter is dead."""
    torch.manual_seed(seed)
    network = VGG(widths, pooling, identity)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(parameter, 0.05, 0.3)
    return network.requires_grad_(False)


def write_converted(network, path):
    """Write a VGG in the teachers' format."""
    state = {k.replace("convolutions.", "conv"): v.contiguous() for k, v in network.state_dict().items()}
    save_file(state, path)
    return path


def write_slim(path, heads, seed=0):
    """Write a random SlimVGG with random factors and return the factors."""
    torch.manual_seed(seed)
    network = SlimVGG(SMALL_WIDTHS, heads)
    factors = {layer: torch.rand(channels) + 0.5 for layer, channels in heads.items()}
    save_slim_vgg(network, path, {"widths": SMALL_WIDTHS}, factors)
    return factors


# VGG-19 in torchvision's format


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_vgg19_taps_equal_torchvision(torchvision_features, vgg19_files, suffix):
    image = picture()
    expected, x = {}, normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for index, layer in enumerate(torchvision_features):
        x = layer(x.clone())  # torchvision rectifies in place
        expected |= {name: x for name, at in TORCHVISION_INDEX.items() if at == index}
    network = load_torchvision("vgg19", vgg19_files[suffix])
    taps = network(image, list(TORCHVISION_INDEX))
    assert set(taps) == set(TORCHVISION_INDEX)
    for name, features in expected.items():
        torch.testing.assert_close(taps[name], features, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    # Otherwise the comparison of deep layers would say nothing about the picture.
    other = network(picture(seed=1), ["relu5_4"])["relu5_4"]
    assert (other - taps["relu5_4"]).abs().mean() > 0.05 * taps["relu5_4"].abs().mean()


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """{name: (torchvision's own layers with random weights, their file in its format and in the teachers', names)}."""
    folder, made = tmp_path_factory.mktemp("others"), {}
    for name, create in (("vgg16", torchvision.models.vgg16), ("alexnet", torchvision.models.alexnet)):
        torch.manual_seed(1)
        with torch.device("meta"):
            features = create(weights=None).features
        features = features.to_empty(device="cpu").eval()
        for layer in features:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                torch.nn.init.uniform_(layer.bias, -0.1, 0.1)
        state = features.state_dict()
        torch.save({f"features.{k}": v for k, v in state.items()}, folder / f"{name}.pth")
        names = VGG16_NAMES if name == "vgg16" else [f"conv{n}" for n in range(1, 6)]
        positions = [n for n, layer in enumerate(features) if isinstance(layer, torch.nn.Conv2d)]
        renamed = {f"{n}.{k}": state[f"{p}.{k}"].half() for n, p in zip(names, positions, strict=True) for k in KINDS}
        save_file(renamed, folder / f"{name}.safetensors")
        for layer in features:
            round_to_float16(layer)
        made[name] = (features, folder / f"{name}.pth", folder / f"{name}.safetensors", names)
    yield made
    for _, *files, _ in made.values():
        for file in files:
            file.unlink()


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
@torch.no_grad()
def test_every_tap_of_vgg16_and_alexnet_is_torchvisions(others, name):
    features, pth, safetensors, names = others[name]
    image, expected = picture(80, 96), {}
    x = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    convolutions = iter(names)
    for layer in features:
        x = layer(x.clone())
        if isinstance(layer, torch.nn.Conv2d):
            convolution = next(convolutions)
            expected[convolution] = x
        elif isinstance(layer, torch.nn.ReLU):
            expected["relu" + convolution[4:]] = x
    networks = [create_loss_network(name, weights=file) for file in (pth, safetensors)]
    assert networks[0].identity == networks[1].identity
    assert networks[0].identity.startswith(f"{name}@")
    for network in networks:
        assert set(network.layers) == set(expected)
        taps = network(image, list(expected))
        for layer, wanted in expected.items():
            torch.testing.assert_close(taps[layer], wanted, rtol=1e-4, atol=1e-4, msg=lambda m, n=layer: f"{n}: {m}")
            assert network.filters[layer] == wanted.shape[1]


@torch.no_grad()
def test_other_weights_are_another_network(others, tmp_path):
    _, _, file, _ = others["alexnet"]
    tensors = load_file(file)
    tensors["conv5.bias"][0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    one, other = (create_loss_network("alexnet", weights=f) for f in (file, tmp_path / "other.safetensors"))
    assert one.identity != other.identity


@pytest.mark.parametrize(("layer", "least"), [("relu1", 7), ("relu2", 15), ("conv3", 31), ("relu5", 31)])
@torch.no_grad()
def test_alexnet_says_how_large_a_picture_it_needs(others, layer, least):
    network = create_loss_network("alexnet", weights=others["alexnet"][1])
    assert min(network(picture(least, least), [layer])[layer].shape) == 1
    with pytest.raises(UserError, match=f"{least} px a side are needed"):
        network(picture(least - 1, least), [layer])


def test_weights_past_float16_are_refused(others, tmp_path):
    state = torch.load(others["alexnet"][1], weights_only=True)
    state["features.0.bias"][0] = 1e6
    torch.save(state, tmp_path / "large.pth")
    with pytest.raises(UserError, match="past float16"):
        create_loss_network("alexnet", weights=tmp_path / "large.pth")


@torch.no_grad()
def test_conv_tap_is_taken_before_the_rectification():
    taps = small_vgg()(picture(), ["conv1_1", "relu1_1"])
    assert (taps["conv1_1"] < 0).any()
    assert (taps["relu1_1"] >= 0).all()
    assert torch.equal(taps["conv1_1"].clamp(min=0), taps["relu1_1"])


def test_layers_are_all_of_vgg19():
    counts = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4}  # Simonyan and Zisserman, configuration E
    names = {f"{kind}{b}_{i}" for b, n in counts.items() for i in range(1, n + 1) for kind in ("conv", "relu")}
    with torch.device("meta"):
        assert set(VGG(VGG_WIDTHS["vgg19"]).layers) == names


# Pooling, depth, missing layers


@pytest.mark.parametrize("pooling", ["max", "average"])
@torch.no_grad()
def test_pooling_between_blocks_equals_a_hand_loop(pooling):
    network = small_vgg(pooling=pooling)
    taps = network(picture(9, 11), ["relu1_2", "conv2_1"])
    before = taps["relu1_2"]
    pooled = torch.zeros(1, 5, 4, 5)  # an odd last row and column fall away
    for row in range(4):
        for column in range(5):
            window = before[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            pooled[0, :, row, column] = window.amax(1) if pooling == "max" else window.sum(1) / 4
    convolution = network.convolutions["2_1"]
    expected = F.conv2d(pooled, convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(taps["conv2_1"], expected, rtol=1e-5, atol=1e-6)


def test_unknown_pooling_is_a_user_error():
    with pytest.raises(UserError, match="stochastic"):
        VGG(SMALL_WIDTHS, "stochastic")


@pytest.mark.parametrize(
    ("wanted", "ran"),
    [
        (["conv1_1"], ["1_1"]),
        (["relu2_1", "relu1_1"], ["1_1", "1_2", "2_1"]),
        (["relu3_1"], ["1_1", "1_2", "2_1", "2_2", "3_1"]),
    ],
)
def test_no_convolution_runs_beyond_the_deepest_tap(wanted, ran):
    network, called = small_vgg(), []
    for name, convolution in network.convolutions.items():
        convolution.register_forward_hook(lambda *_, name=name: called.append(name))
    assert set(network(picture(), wanted)) == set(wanted)
    assert called == ran


def test_missing_layer_is_a_user_error_that_names_those_there_are():
    network = small_vgg()
    with pytest.raises(UserError) as caught:
        network(picture(), ["relu1_1", "relu4_2"])
    message = str(caught.value)
    assert "relu4_2" in message
    assert all(layer in message for layer in ("conv1_1", "relu1_2", "relu3_1"))
    assert "\n" not in message


@pytest.mark.parametrize("times", [2, 4, 8])
@torch.no_grad()
def test_an_octave_is_the_layer_of_a_picture_averaged_over_squares(times):
    network, image = small_vgg(), picture(67, 45)
    rows, columns = 67 // times, 45 // times
    smaller = torch.zeros(1, 3, rows, columns)  # odd last rows and columns fall away
    for row in range(rows):
        for column in range(columns):
            square = image[..., times * row : times * (row + 1), times * column : times * (column + 1)]
            smaller[..., row, column] = square.sum((2, 3)) / times**2
    taps = network(image, ["relu2_1", f"relu2_1@{times}", f"conv3_1@{times}"])
    assert list(taps) == ["relu2_1", f"relu2_1@{times}", f"conv3_1@{times}"]
    for layer, features in network(smaller, ["relu2_1", "conv3_1"]).items():
        torch.testing.assert_close(taps[f"{layer}@{times}"], features, rtol=1e-5, atol=1e-6)


def test_the_picture_itself_is_a_layer_of_every_network():
    image = picture(16, 20)
    for network in (
        small_vgg(),
        SlimVGG(((4,), (6,)), {"relu1_1": 8}),
        MergedLossNetwork([(small_vgg(), ["relu1_1"])]),
    ):
        taps = network(image, ["rgb@4", "relu1_1", "rgb"])
        assert set(taps) == {"rgb@4", "relu1_1", "rgb"}
        assert torch.equal(taps["rgb"], image)
        torch.testing.assert_close(taps["rgb@4"], image.reshape(1, 3, 4, 4, 5, 4).mean((3, 5)))
        assert network.metric("rgb@4") is None
        with pytest.raises(UserError, match="rgb, "):
            network.check_layers(["rbg"])
    with pytest.raises(UserError, match="20×3 px is too small for rgb@4; 4 px a side"):
        small_vgg()(picture(3, 20), ["rgb@4"])


@pytest.mark.parametrize("layer", ["relu2_1@", "relu2_1@3", "relu2_1@1", "relu2_1@02", "relu2_1@16", "relu2_1@2@2"])
def test_an_unknown_octave_is_a_user_error_that_names_those_there_are(layer):
    with pytest.raises(UserError) as caught:
        small_vgg().check_layers([layer])
    assert repr(layer) in str(caught.value)
    assert "relu2_1@2, @4 or @8" in str(caught.value)


def test_a_picture_too_small_for_an_octave_is_a_user_error_that_says_how_large():
    network = small_vgg()
    assert network(picture(16, 20), ["relu3_1@4"])["relu3_1@4"].shape == (1, 8, 1, 1)
    with pytest.raises(UserError, match="20×15 px is too small for relu1_1, relu3_1@4; 16 px a side"):
        network(picture(15, 20), ["relu1_1", "relu3_1@4"])


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (37, 21)])
def test_gradient_of_a_frozen_network_is_autograds_own(size):
    network, image = small_vgg().double(), picture(*size).double()
    gradients = []
    with torch.enable_grad():
        for one in (network, freeze(copy.deepcopy(network))):
            image = image.detach().requires_grad_()
            features = one(image, ["relu1_1", "relu2_1", "relu3_1"]).values()
            sum((f * torch.linspace(-1, 2, f.numel()).view_as(f)).sum() for f in features).backward()
            gradients.append(image.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


# The teachers' format


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
@torch.no_grad()
def test_real_prefix_equals_a_forward_written_by_hand():
    weights, image = load_file(REAL_PREFIX), picture()
    expected = {}
    x = torch.einsum("oi,nihw->nohw", weights["preprocess.weight"][:, :, 0, 0], image)
    x = x + weights["preprocess.bias"][:, None, None]
    for name in ("1_1", "1_2", "2_1", "2_2", "3_1"):
        if name in ("2_1", "3_1"):
            x = F.max_pool2d(x, 2, 2)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), weights[f"conv{name}.weight"], weights[f"conv{name}.bias"])
        expected["conv" + name] = x
        x = expected["relu" + name] = x.clamp(min=0)
    network = load_converted_vgg(REAL_PREFIX)
    assert set(network.layers) == set(expected)
    for name, features in network(image, network.layers).items():
        torch.testing.assert_close(features, expected[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_converted_file_gives_back_the_network_it_was_written_from(tmp_path):
    network = small_vgg()
    loaded = load_converted_vgg(write_converted(network, tmp_path / "small.safetensors"))
    expected = network(picture(), network.layers)
    for layer, features in loaded(picture(), network.layers).items():
        assert torch.equal(features, expected[layer])


# The slim network


def gram(x, y):
    """Return Σ_p x_p y_pᵀ / M in float64."""
    return x.double().flatten(2)[0] @ y.double().flatten(2)[0].T / x[0, 0].numel()


@pytest.mark.parametrize("normalise", [False, True])
@torch.no_grad()
def test_taps_and_metric_have_the_distances_of_the_wide_estimates(tmp_path, normalise):
    heads = {"relu1_1": 16, "relu2_1": 3, "conv2_2": 20, "relu3_1": 64}  # 3: a head narrower than its features
    write_slim(tmp_path / "slim.safetensors", heads)
    network = load_slim_vgg(tmp_path / "slim.safetensors", normalise=normalise)
    one, two = picture(seed=1), picture(seed=2) ** 3
    wide_one, wide_two = network.estimates(one, network.layers), network.estimates(two, network.layers)
    narrow_one, narrow_two = network(one, network.layers), network(two, network.layers)
    for layer, channels in heads.items():
        trunk_channels = {"relu1_1": 4, "relu2_1": 6, "conv2_2": 6, "relu3_1": 8}[layer]
        assert wide_one[layer].shape[1] == channels
        assert narrow_one[layer].shape[1] == trunk_channels
        metric = network.metric(layer)
        torch.testing.assert_close(metric, metric.T)
        content = (wide_one[layer] - wide_two[layer]).double().square().sum()
        difference = (narrow_one[layer] - narrow_two[layer]).double()
        measured = torch.einsum("dc,nchw->ndhw", metric.double(), difference).square().sum()
        torch.testing.assert_close(measured, content, rtol=1e-4, atol=0)
        style = gram(wide_one[layer], wide_one[layer]) - gram(wide_two[layer], wide_two[layer])
        narrow = gram(narrow_one[layer], narrow_one[layer]) - gram(narrow_two[layer], narrow_two[layer])
        measured = metric.double() @ narrow @ metric.double()
        torch.testing.assert_close(measured.square().sum(), style.square().sum(), rtol=1e-4, atol=0)


@torch.no_grad()
def test_slim_estimates_are_linear_in_the_trunk_and_normalising_divides_them(tmp_path):
    write_slim(tmp_path / "slim.safetensors", {"relu2_1": 7})
    tensors = {k: v.float() for k, v in load_file(tmp_path / "slim.safetensors").items()}
    plain = load_slim_vgg(tmp_path / "slim.safetensors")
    normalised = load_slim_vgg(tmp_path / "slim.safetensors", normalise=True)
    image = picture()
    s = plain.trunk(image, ["relu2_1"])["relu2_1"]
    expected = torch.einsum("tc,nchw->nthw", tensors["head_relu2_1.weight"][:, :, 0, 0], s)
    torch.testing.assert_close(plain.estimates(image, ["relu2_1"])["relu2_1"], expected, rtol=1e-5, atol=1e-6)
    divided = expected / tensors["mean_activation.relu2_1"][:, None, None]
    torch.testing.assert_close(normalised.estimates(image, ["relu2_1"])["relu2_1"], divided, rtol=1e-5, atol=1e-6)
    assert plain.identity != normalised.identity


def test_slim_file_is_half_precision_and_loads_what_was_saved(tmp_path):
    torch.manual_seed(0)
    network = SlimVGG(SMALL_WIDTHS, {"relu3_1": 9})
    save_slim_vgg(network, tmp_path / "slim.safetensors", {"note": "text"}, {"relu3_1": torch.ones(9)})
    assert {t.dtype for t in load_file(tmp_path / "slim.safetensors").values()} == {torch.float16}
    loaded = load_slim_vgg(tmp_path / "slim.safetensors").state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded[name], tensor.half().float()), name


# Merging and normalising


@torch.no_grad()
def test_merged_network_takes_each_layer_from_its_part():
    shallow, deep = small_vgg(0, identity="a"), small_vgg(1, identity="b")
    merged = MergedLossNetwork([(shallow, ["relu1_1", "relu2_1"]), (deep, ["conv2_2", "relu3_1"])])
    image = picture()
    taps = merged(image, ["relu3_1", "relu1_1", "conv2_2"])
    assert set(taps) == {"relu3_1", "relu1_1", "conv2_2"}
    assert torch.equal(taps["relu1_1"], shallow(image, ["relu1_1"])["relu1_1"])
    assert torch.equal(taps["conv2_2"], deep(image, ["conv2_2"])["conv2_2"])
    assert torch.equal(taps["relu3_1"], deep(image, ["relu3_1"])["relu3_1"])
    assert "a" in merged.identity
    assert "b" in merged.identity
    with pytest.raises(UserError, match="relu1_2"):
        merged(image, ["relu1_2"])


@torch.no_grad()
def test_merged_network_takes_a_layer_that_both_offer_from_the_first():
    first, second = small_vgg(0), small_vgg(1)
    merged = MergedLossNetwork([(first, ["relu1_1"]), (second, ["relu1_1", "relu2_1"])])
    image = picture()
    assert torch.equal(merged(image, ["relu1_1"])["relu1_1"], first(image, ["relu1_1"])["relu1_1"])


def test_merged_network_refuses_a_layer_that_its_part_lacks():
    with pytest.raises(UserError, match="relu5_1"):
        MergedLossNetwork([(small_vgg(), ["relu5_1"])])


def mean_activation(network, photographs, layer):
    """Return each filter's mean over all positions of all photographs, by a loop in float64."""
    total, positions = 0, 0
    for photograph in photographs:
        features = network(photograph, [layer])[layer][0].double().clamp(min=0)
        total = total + features.sum(dim=(1, 2))
        positions += features.shape[1] * features.shape[2]
    return total / positions


@pytest.mark.parametrize("pooling", ["max", "average"])
@torch.no_grad()
def test_normalised_filters_have_mean_activation_one(pooling):
    network = small_vgg(pooling=pooling)
    photographs = [picture(24, 32, 1), picture(40, 16, 2), picture(20, 20, 3)]
    relus = [layer for layer in network.layers if layer.startswith("relu")]
    normalised = NormalisedLossNetwork(network, network.mean_activations(photographs, relus))
    for layer in relus:
        before = mean_activation(network, photographs, layer)
        assert (before - 1).abs().max() > 0.1
        after, rare = mean_activation(normalised, photographs, layer), before < 0.1 * before.mean()
        assert rare.sum() < 0.4 * len(rare)
        torch.testing.assert_close(after[~rare], torch.ones_like(after[~rare]), rtol=1e-4, atol=0)
        torch.testing.assert_close(after[rare], before[rare] / (0.1 * before.mean()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("pooling", ["max", "average"])
@torch.no_grad()
def test_normalised_features_are_those_of_rescaled_weights(pooling):
    network, rescaled = small_vgg(pooling=pooling), small_vgg(pooling=pooling)
    relus = [layer for layer in network.layers if layer.startswith("relu")]
    factors = network.mean_activations([picture(seed=4)], relus)
    incoming = torch.ones(3)
    for name, convolution in rescaled.convolutions.items():  # Gatys et al. 2016, section 2: weights, not features
        outgoing = factors["relu" + name].clamp_min(0.1 * factors["relu" + name].mean())
        convolution.weight.mul_(incoming[None, :, None, None] / outgoing[:, None, None, None])
        convolution.bias.div_(outgoing)
        incoming = outgoing
    normalised = NormalisedLossNetwork(network, factors)
    assert normalised.layers == network.layers
    expected = rescaled(picture(seed=5), network.layers)
    for layer, features in normalised(picture(seed=5), network.layers).items():
        torch.testing.assert_close(features, expected[layer], rtol=1e-4, atol=1e-5)


def test_mean_activation_is_taken_after_the_rectification():
    network = small_vgg()
    means = network.mean_activations([picture()], ["conv2_1", "relu2_1"])
    assert (network(picture(), ["conv2_1"])["conv2_1"] < 0).any()
    assert torch.equal(means["conv2_1"], means["relu2_1"])
    torch.testing.assert_close(means["relu2_1"].double(), mean_activation(network, [picture()], "relu2_1"))


def test_normalising_changes_the_identity():
    network = small_vgg()
    factors = network.mean_activations([picture()], ["relu1_1"])
    assert NormalisedLossNetwork(network, factors).identity != network.identity


# create_loss_network


def test_unknown_name_is_a_user_error_with_the_names_there_are():
    with pytest.raises(UserError, match="vgg19_slmi") as caught:
        create_loss_network("vgg19_slmi")
    assert "did you mean vgg16_slim?" in str(caught.value)
    assert "teachers" in str(caught.value)


def test_teachers_need_both_files(tmp_path):
    one = write_converted(small_vgg(), tmp_path / "one.safetensors")
    for files in ({}, {"shallow": one}, {"deep": one}):
        with pytest.raises(UserError, match="FILE"):
            create_loss_network("teachers", **files)


@torch.no_grad()
def test_teachers_take_shared_layers_from_the_shallow_one(tmp_path):
    shallow, deep = small_vgg(0, widths=((4, 4), (6,))), small_vgg(1)
    network = create_loss_network(
        "teachers",
        shallow=write_converted(shallow, tmp_path / "shallow.safetensors"),
        deep=write_converted(deep, tmp_path / "deep.safetensors"),
    )
    assert set(network.layers) == set(deep.layers)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    taps, image = network(picture(), ["relu2_1", "relu2_2"]), picture()
    torch.testing.assert_close(taps["relu2_1"], shallow(image, ["relu2_1"])["relu2_1"])
    torch.testing.assert_close(taps["relu2_2"], deep(image, ["relu2_2"])["relu2_2"])


@pytest.mark.parametrize("name", ["vgg19", "teachers"])
@torch.no_grad()
def test_the_pooling_asked_for_is_that_of_every_part(name, tmp_path, vgg19_files):
    parts = [write_converted(small_vgg(seed), tmp_path / f"{seed}.safetensors") for seed in range(2)]
    files = {"weights": vgg19_files[".pth"]} if name == "vgg19" else dict(zip(("shallow", "deep"), parts, strict=True))
    network = create_loss_network(name, **files, pooling="average")
    pools = {module.pooling for module in network.modules() if isinstance(module, VGG)}
    assert pools == {"average"}
    assert network.identity.count("average") == sum(isinstance(module, VGG) for module in network.modules())


@torch.no_grad()
def test_a_filter_that_hardly_answers_is_divided_by_a_tenth_of_the_mean_of_all():
    network = VGG([[4]]).eval()
    network.convolutions["1_1"].weight.zero_()
    network.convolutions["1_1"].bias.copy_(torch.tensor([1.0, 2.0, -1.0, 0.05]))
    found = network.mean_activations([torch.rand(1, 3, 8, 8)], ["relu1_1"])["relu1_1"]
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 0.0, 0.05]))
    other, least = torch.rand(1, 3, 8, 8), 0.1 * 3.05 / 4
    expected = torch.tensor([1.0, 2.0, least, least])
    normalised = NormalisedLossNetwork(network, {"relu1_1": found})(other, ["conv1_1"])["conv1_1"]
    torch.testing.assert_close(normalised, network(other, ["conv1_1"])["conv1_1"] / expected[:, None, None])


@torch.no_grad()
def test_created_normalised_network_has_mean_activation_one_at_either_pooling(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    files = {
        "shallow": write_converted(small_vgg(0, widths=((4,),)), tmp_path / "shallow.safetensors"),
        "deep": write_converted(small_vgg(1), tmp_path / "deep.safetensors"),
    }
    photographs = [picture(24, 32, 1), picture(40, 16, 2)]
    for pooling in ("max", "average", "max"):  # the third time from the cache
        network = create_loss_network("teachers", **files, pooling=pooling, normalise=True, photographs=photographs)
        for layer in ("relu1_1", "relu2_1", "relu3_1"):
            mean = mean_activation(network, photographs, layer)
            often = mean > 0.999  # a filter below a tenth of its layer's mean stays below
            assert often.sum() > 0.6 * len(mean)
            torch.testing.assert_close(
                mean[often],
                torch.ones_like(mean[often]),
                rtol=1e-4,
                atol=0,
                msg=lambda m, p=pooling, n=layer: f"{p} {n}: {m}",
            )


def test_normalising_without_photographs_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    file = write_converted(small_vgg(), tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="photographs"):
        create_loss_network("teachers", shallow=file, deep=file, normalise=True)


def test_pooling_is_part_of_the_identity(tmp_path):
    """Style targets made with max pooling do not fit a network with average pooling."""
    file = write_converted(small_vgg(), tmp_path / "small.safetensors")
    made = {
        pooling: create_loss_network("teachers", shallow=file, deep=file, pooling=pooling)
        for pooling in ("max", "average")
    }
    taps = {pooling: network(picture(), ["relu2_1"])["relu2_1"] for pooling, network in made.items()}
    assert not torch.allclose(taps["max"], taps["average"])
    assert made["max"].identity != made["average"].identity


@pytest.mark.parametrize("normalise", [False, True])
def test_the_slim_network_refuses_average_pooling(tmp_path, normalise):
    """It has learned what VGG-19 with max pooling sees, and nothing else."""
    write_slim(tmp_path / "slim.safetensors", {"relu2_1": 7})
    for weights in (tmp_path / "slim.safetensors", None):
        with pytest.raises(UserError, match=r"loss\.pooling is average.*vgg16_slim") as caught:
            create_loss_network("vgg16_slim", weights=weights, pooling="average", normalise=normalise)
        assert "loss_network=vgg19 " in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="pooling is stochastic"):
        create_loss_network("vgg16_slim", weights=tmp_path / "slim.safetensors", pooling="stochastic")


@torch.no_grad()
def test_the_slim_network_pools_the_largest(tmp_path):
    write_slim(tmp_path / "slim.safetensors", {"relu2_1": 7})
    network, image = create_loss_network("vgg16_slim", weights=tmp_path / "slim.safetensors"), picture()
    assert network.trunk.pooling == "max"
    before = network.trunk(image, ["relu1_2"])["relu1_2"]
    pooled = before.reshape(1, 5, 20, 2, 24, 2).numpy().max((3, 5))
    convolution = network.trunk.convolutions["2_1"]
    expected = F.conv2d(torch.from_numpy(pooled), convolution.weight, convolution.bias, padding=1).relu()
    torch.testing.assert_close(network(image, ["relu2_1"])["relu2_1"], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_filter_that_the_slim_networks_photographs_left_dead_is_divided_by_a_tenth_of_the_mean(tmp_path):
    torch.manual_seed(0)
    means = torch.tensor([0.5, 0.0, 1.0, 2.5])
    save_slim_vgg(SlimVGG(SMALL_WIDTHS, {"relu2_1": 4}), tmp_path / "slim.safetensors", {}, {"relu2_1": means})
    plain, normalised = (load_slim_vgg(tmp_path / "slim.safetensors", normalise) for normalise in (False, True))
    ratio = plain.heads["relu2_1"].weight / normalised.heads["relu2_1"].weight
    expected = torch.tensor([0.5, 0.1, 1.0, 2.5])[:, None, None, None]  # the mean is 1
    torch.testing.assert_close(ratio, expected.expand_as(ratio), rtol=1e-5, atol=0)


def write_text(path):
    path.write_text("not weights\n")


def write_nothing(path):
    path.write_bytes(b"")


def write_empty_pickle(path):
    path.write_bytes(pickle.dumps({}, protocol=2)[:-1])  # without the stop


def write_wrong_shapes(path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 5, 5), "features.0.bias": torch.zeros(64)}, path)


def write_missing_keys(path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, path)


def write_tensor(path):
    torch.save(torch.zeros(3), path)


def write_nested(path):
    torch.save({"state_dict": {"features.0.weight": torch.zeros(64, 3, 3, 3)}}, path)


BROKEN = [
    write_text,
    write_nothing,
    write_empty_pickle,
    write_wrong_shapes,
    write_missing_keys,
    write_tensor,
    write_nested,
]


@pytest.mark.parametrize("write", BROKEN, ids=lambda write: write.__name__)
def test_wrong_vgg19_checkpoint_is_a_user_error_of_one_line(tmp_path, write):
    path = tmp_path / "vgg19.pth"
    write(path)
    with pytest.raises(UserError, match=r"vgg19\.pth") as caught:
        create_loss_network("vgg19", weights=path)
    assert "\n" not in str(caught.value)


def test_misfit_names_the_tensor_and_both_shapes(tmp_path):
    write_wrong_shapes(tmp_path / "vgg19.pth")
    with pytest.raises(UserError, match=r"1_1\.weight") as caught:
        create_loss_network("vgg19", weights=tmp_path / "vgg19.pth")
    assert "(64, 3, 5, 5)" in str(caught.value)
    assert "(64, 3, 3, 3)" in str(caught.value)


@pytest.mark.parametrize("name", ["vgg19", "vgg16_slim"])
def test_broken_safetensors_is_a_user_error_of_one_line(tmp_path, name):
    whole = tmp_path / "whole.safetensors"
    write_slim(whole, {"relu1_1": 5})
    for content in (b"", b"not weights", whole.read_bytes()[:-10]):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match="broken") as caught:
            create_loss_network(name, weights=path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vgg19", "vgg16_slim"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_file_is_a_user_error(tmp_path, name, suffix):
    path = tmp_path / f"absent{suffix}"
    with pytest.raises(UserError, match="absent"):
        create_loss_network(name, weights=path)
    with pytest.raises(UserError, match="absent"):
        create_loss_network("teachers", shallow=path, deep=path)


def test_slim_network_refuses_another_networks_weights(tmp_path):
    path = write_converted(small_vgg(), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="plain"):
        create_loss_network("vgg16_slim", weights=path)


@pytest.mark.parametrize("lost", ["head_relu2_1.weight", "mean_activation.relu2_1", "conv1_1.weight", "conv2_1.bias"])
def test_slim_file_that_lacks_a_tensor_is_a_user_error(tmp_path, lost):
    write_slim(tmp_path / "slim.safetensors", {"relu2_1": 7})
    tensors = load_file(tmp_path / "slim.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "slim.safetensors")
    with pytest.raises(UserError, match="slim"):
        create_loss_network("vgg16_slim", weights=tmp_path / "slim.safetensors", normalise=True)


def test_slim_file_with_a_head_of_the_wrong_width_is_a_user_error(tmp_path):
    write_slim(tmp_path / "slim.safetensors", {"relu2_1": 7})
    tensors = load_file(tmp_path / "slim.safetensors")
    tensors["head_relu2_1.weight"] = torch.zeros(7, 99, 1, 1)
    save_file(tensors, tmp_path / "slim.safetensors")
    with pytest.raises(UserError, match="slim"):
        create_loss_network("vgg16_slim", weights=tmp_path / "slim.safetensors")


class CreatesFile:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_malicious_checkpoint_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "proof"
    payload = {"features.0.weight": CreatesFile(proof)}
    pickle.loads(pickle.dumps(payload))
    assert proof.exists()  # so the payload works where pickles are trusted
    proof.rmdir()
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps(payload, protocol=2))
    torch.save(payload, tmp_path / "zip.pth")
    for name in ("legacy.pth", "zip.pth"):
        with pytest.raises(UserError, match=name) as caught:
            create_loss_network("vgg19", weights=tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not proof.exists()


# Choosing and fetching

REFUSED = "https://127.0.0.1/vgg19-dcbb9e9d.pth"


@pytest.fixture
def no_service_here():
    """Skip where something on this machine does listen on port 443."""
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex(("127.0.0.1", 443)) == 0:
            pytest.skip("a service listens on port 443 of this machine")


def test_auto_on_a_cpu_is_the_slim_network():
    assert choose_loss_network("auto", on_gpu=False) == ("vgg16_slim", "")


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "teachers", "vgg16_slim", "nonsense"])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_other_names_stand_for_themselves(name, on_gpu):
    assert choose_loss_network(name, on_gpu) == (name, "")


def test_auto_on_a_gpu_is_vgg19_where_it_is_cached(tmp_path, monkeypatch, no_service_here):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(module.TORCHVISION, "vgg19", (REFUSED, "sha256:"))
    cached = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert choose_loss_network("auto", on_gpu=True) == ("vgg19", "")
    assert fetch_weights("vgg19") == cached


def test_auto_on_a_gpu_without_cache_or_network_is_the_slim_one_and_says_so(tmp_path, monkeypatch, no_service_here):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(module.TORCHVISION, "vgg19", (REFUSED, "sha256:"))
    name, warning = choose_loss_network("auto", on_gpu=True)
    assert name == "vgg16_slim"
    assert "vgg16_slim" in warning
    with pytest.raises(UserError, match="cannot be reached") as caught:
        fetch_weights("vgg19")
    assert "vgg16_slim" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(
    ("kept", "chosen"), [({"vgg19"}, "vgg19"), ({"vgg16"}, "vgg16"), ({"vgg16", "vgg19"}, "vgg19"), ({"alexnet"}, None)]
)
def test_a_reference_is_a_real_network_where_one_is_kept(kept, chosen, on_gpu, tmp_path, monkeypatch, no_service_here):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(module.TORCHVISION, "vgg19", (REFUSED, "sha256:"))
    for name in kept:
        path, _ = kept_files(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    name, warning = choose_loss_network("auto", on_gpu, reference=True)
    assert name == (chosen or "vgg16_slim")
    assert ("loss_network=vgg16" in warning) == (chosen is None)
    assert "\n" not in warning


def test_refused_address_is_not_reachable(no_service_here):
    assert reachable("https://127.0.0.1/x", seconds=3) is False


# What ships


@pytest.mark.skipif(not VGG16_SLIM.exists(), reason="vgg16_slim is not distilled yet")
@torch.no_grad()
def test_shipped_slim_network_is_small_and_has_the_layers_of_johnson_and_of_gatys():
    assert VGG16_SLIM.stat().st_size <= 6_000_000
    network = create_loss_network("vgg16_slim")
    johnson, gatys = (1.2, 2.2, 3.3, 4.3), (1.1, 2.1, 3.1, 4.1, 4.2, 5.1)
    layers = [f"relu{layer}".replace(".", "_") for layer in sorted(johnson + gatys)]
    assert list(network.layers) == layers
    taps = network(picture(64, 96), layers)
    for layer in layers:
        scale = 2 ** (int(layer[4]) - 1)
        assert taps[layer].shape[2:] == (64 // scale, 96 // scale)
        assert taps[layer].isfinite().all()
        assert taps[layer].std() > 0
