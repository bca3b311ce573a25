"""What ships with the package: the loss network, its style targets and the released models."""

import json
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps

from nst_fast.assets import ASSETS, shipped_models
from nst_fast.commands.configuration import load_config
from nst_fast.commands.perceptual_loss import resolve_perceptual_loss
from nst_fast.downloads import file_hash
from nst_fast.loss.pretrained import create_loss_network
from nst_fast.loss.style_targets import StyleTargets
from nst_fast.loss.tensors import to_tensor
from nst_fast.loss.terms import layer_gram_matrix, pixel_weave
from nst_fast.stylizing.images import resize_short_side
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.checkpoints import upgraded
from nst_fast.training.onnx_export import trunk

SHARED = Path(__file__).resolve().parents[2] / "shared"
STYLES = ("starry_night", "the_scream", "great_wave", "composition_vii")  # that `train` knows, with style targets
SINGLES = (*STYLES, "movement", "isles_of_shoals")
GOLDEN = Path(__file__).with_name("vgg16_slim_features.json")


def procedural_picture() -> torch.Tensor:
    """Gratings of three directions and wavelengths, one a channel, under a slow gradient: exact on any machine."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    waves = [torch.sin(x / 3), torch.sin((x + 2 * y) / 7), torch.sin((x - y) / 19)]
    return (0.5 + 0.3 * torch.stack(waves) + 0.2 * (y / 96 - 0.5))[None].clamp(0, 1)


def feature_summary() -> dict[str, list[float]]:
    """Mean, root mean square and one position of every layer."""
    network = create_loss_network("vgg16_slim")
    features = network.estimates(procedural_picture(), network.layers)
    return {k: [float(f.mean()), float(f.square().mean().sqrt()), float(f[0, 3, 2, 4])] for k, f in features.items()}


def test_the_shipped_loss_network_gives_the_features_that_it_was_released_with():
    """A changed file, loader or compression changes every target and every figure: remake them together."""
    golden = json.loads(GOLDEN.read_text())
    for layer, (mean, rms, one) in feature_summary().items():
        scale = golden[layer][1]
        assert mean == pytest.approx(golden[layer][0], abs=1e-3 * scale)
        assert rms == pytest.approx(scale, rel=1e-3)
        assert one == pytest.approx(golden[layer][2], abs=2e-3 * scale)


def test_every_released_model_is_tried_here():
    assert set(shipped_models()) == {"gallery", *SINGLES}


@pytest.mark.parametrize("name", SINGLES)
def test_a_released_model_says_what_it_is(name):
    model = shipped_models()[name]
    metadata = Stylizer(model).metadata
    painting = Stylizer("gallery").paintings[name]
    assert metadata["image_sha256"] == painting["sha256"]
    assert [metadata[key] for key in ("title", "artist", "licence")] == [
        painting[key] for key in ("title", "artist", "licence")
    ]
    assert model.stat().st_size <= 2_000_000
    card = (model.parent / "README.md").read_text().partition(f"## {name}\n")[2].partition("\n## ")[0]
    url = json.loads(metadata["config"])["style"]["url"]
    for told in (file_hash(model), metadata["loss_network"], metadata["commit"], url, painting["year"]):
        assert told in card
    if name in STYLES:
        style = load_config("train", [f"style={name}"]).style
        told = ("sha256", "title", "artist", "licence")
        assert [style[key] for key in told] == [painting[key] for key in told]


@pytest.mark.parametrize("name", SINGLES)
def test_a_released_model_has_learned_for_long(name):
    assert int(Stylizer(shipped_models()[name]).metadata["steps"]) >= 700


def test_the_command_on_a_card_composes_the_config_that_the_model_was_trained_with():
    for name in SINGLES:
        card = (shipped_models()[name].parent / "README.md").read_text().partition(f"## {name}\n")[2]
        command = card.partition("| made by | `train ")[2].partition("`")[0]
        config = load_config("train", shlex.split(command))
        resolve_perceptual_loss(config, gpu=False)
        composed = OmegaConf.to_container(config, resolve=True)
        for group in ("style", "loss", "network", "data"):
            for key, value in upgraded(json.loads(Stylizer(shipped_models()[name]).metadata["config"]))[group].items():
                if key == "num_workers":  # the device's choice, which changes nothing
                    continue
                # Paths are handed on as names alone.
                assert composed[group][key] == value or str(composed[group][key]).endswith(f"/{value}"), (name, key)


def gram_distance(name: str, size: int) -> tuple[list[Image.Image], Callable[[list[Image.Image]], float]]:
    """Two photographs of 512 px, and how far pictures' mean Gram matrices are from a painting's at a size."""
    network = create_loss_network("vgg16_slim")
    targets = StyleTargets.load(ASSETS / "style_targets" / f"{name}.safetensors").sizes[size]

    def distance(pictures: list[Image.Image]) -> float:
        features = [network(to_tensor(picture), ["relu1_2", "relu2_2", "relu3_3"]) for picture in pictures]
        errors = []
        for layer in features[0]:
            gram = torch.stack([layer_gram_matrix(network, layer, f[layer]) for f in features]).mean(0)
            errors.append((gram - targets[layer]).square().sum() / targets[layer].square().sum())
        return float(torch.stack(errors).mean())

    photographs = (skimage.data.chelsea(), skimage.data.coffee())
    return [resize_short_side(Image.fromarray(photograph), 512) for photograph in photographs], distance


@pytest.mark.parametrize("name", STYLES)
def test_a_released_model_brings_photographs_to_the_style_targets(name):
    """The mean Gram matrices of pictures of photographs never trained on are four times as near to the painting's."""
    stylize = Stylizer(shipped_models()[name])
    photographs, distance = gram_distance(name, int(stylize.metadata["style_size"]))
    assert distance([stylize(photograph) for photograph in photographs]) < distance(photographs) / 4


@pytest.mark.parametrize("name", SINGLES)
def test_a_released_model_leaves_no_pixel_grid_in_flat_areas(name):
    """In a smooth sky, the energy at the sampling frequencies (periods 2 and 4) is not above its surroundings."""
    ramp = np.linspace(90, 150, 256)[:, None, None] + np.linspace(0, 40, 256)[None, :, None] * np.array([0.2, 0.5, 1.0])
    stylized = np.asarray(Stylizer(shipped_models()[name])(Image.fromarray(ramp.round().astype(np.uint8))))
    grey = stylized[32:224, 32:224].astype(float).mean(2)
    spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * np.hanning(192)[:, None] * np.hanning(192)[None])) ** 2
    profiles = (spectrum.sum(0), spectrum.sum(1))
    for profile in profiles:
        for bin_ in (48, 96):  # periods 4 and 2 px of 192
            peak = profile[bin_ - 1 : bin_ + 2].mean()
            around = np.median(np.r_[profile[bin_ - 12 : bin_ - 3], profile[bin_ + 4 : bin_ + 13]])
            assert peak < 10 * around


@pytest.mark.parametrize("name", SINGLES)
def test_a_released_model_paints_no_weave(name):
    """Detail that is one wave all over: photographs have some 1e-3 of it, a network that wove in every sky had 2e-2."""
    for array in (skimage.data.chelsea(), skimage.data.coffee()):
        photograph = resize_short_side(Image.fromarray(array), 256)
        assert pixel_weave(to_tensor(Stylizer(shipped_models()[name])(photograph))).item() < 4e-3


@pytest.mark.parametrize("name", ["gallery", "gallery.int8"])
def test_the_gallery_takes_vectors_that_were_learned_with_it(name):
    shipped = shipped_models() | shipped_models(int8=True)
    assert Stylizer(shipped[name]).metadata["trunk"] == trunk(onnx.load(shipped["gallery"]))


def test_the_gallery_names_its_paintings_and_brings_photographs_to_those_that_ship():
    """Of pictures of photographs never trained on the mean Gram matrices are four times as near to the painting's."""
    stylize = Stylizer("gallery")
    card = (
        (shipped_models()["gallery"].parent / "README.md")
        .read_text()
        .partition("## gallery\n")[2]
        .partition("\n## ")[0]
    )
    assert len(stylize.paintings) >= 16
    for name, painting in stylize.paintings.items():
        assert all(painting[key] for key in ("title", "artist", "year", "licence", "source", "sha256"))
        assert f"| `{name}` | {painting['title']}, {painting['artist']}" in card
    assert shipped_models()["gallery"].stat().st_size <= 1_500_000
    assert shipped_models(int8=True)["gallery.int8"].stat().st_size <= 700_000
    for name in STYLES:
        assert stylize.paintings[name]["sha256"] == load_config("train", [f"style={name}"]).style.sha256
        photographs, distance = gram_distance(name, int(stylize.metadata["style_size"]))
        assert distance([stylize(photograph, name) for photograph in photographs]) < distance(photographs) / 4


MISSES = {
    "great_wave": pytest.mark.xfail(reason="style_vgg16 0.264", strict=True),
    "isles_of_shoals": pytest.mark.xfail(reason="style_vgg16 0.252", strict=True),
}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the judge and its photographs are in ../shared")
@pytest.mark.parametrize("name", [pytest.param(n, marks=MISSES.get(n, ())) for n in SINGLES])
def test_the_judge_finds_a_released_model_within_its_bounds(name, monkeypatch):
    """At 720 px: near enough to the painting by the whole VGG-16, and its colours (docs/research/recipe.md)."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    from judging import Judge, painting_of

    stylize = Stylizer(shipped_models()[name])
    painting = painting_of(json.loads(stylize.metadata["config"])["style"])
    judge = Judge(painting, (181, 256, 362))  # px; at other sizes it can only be nearer
    made = []
    for file in sorted((SHARED / "content" / "val").glob("*.jpg"))[:3]:
        photograph = Image.open(file).convert("RGB")
        made.append(stylize(ImageOps.fit(photograph, (720, 720), Image.Resampling.LANCZOS)))
    assert min(judge.style(map(judge.grams, made)).values()) <= 0.24
    assert statistics.fmean(map(judge.palette, made)) <= 0.06
