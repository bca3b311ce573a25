"""What ships with the package: the loss network, its style targets and the model starry_night."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from nst_fast.assets import ASSETS, VGG19_SLIM, shipped_models
from nst_fast.images import resize_short_side
from nst_fast.loss_network import create_loss_network, file_identity
from nst_fast.losses import gram_matrix
from nst_fast.style_targets import StyleTargets, to_tensor
from nst_fast.stylizer import Stylizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(__file__).with_name("vgg19_slim_features.json")


def procedural_picture() -> torch.Tensor:
    """Gratings of three directions and wavelengths, one a channel, under a slow gradient: exact on any machine."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    waves = [torch.sin(x / 3), torch.sin((x + 2 * y) / 7), torch.sin((x - y) / 19)]
    return (0.5 + 0.3 * torch.stack(waves) + 0.2 * (y / 96 - 0.5))[None].clamp(0, 1)


def feature_summary() -> dict[str, list[float]]:
    """Mean, root mean square and one position of every layer."""
    network = create_loss_network("vgg19_slim")
    features = network(procedural_picture(), network.layers)
    return {k: [float(f.mean()), float(f.square().mean().sqrt()), float(f[0, 3, 2, 4])] for k, f in features.items()}


def test_the_shipped_loss_network_gives_the_features_that_it_was_released_with():
    """A changed file, loader or compression changes every target and every figure: remake them together."""
    golden = json.loads(GOLDEN.read_text())
    for layer, (mean, rms, one) in feature_summary().items():
        scale = golden[layer][1]
        assert mean == pytest.approx(golden[layer][0], abs=1e-3 * scale)
        assert rms == pytest.approx(scale, rel=1e-3)
        assert one == pytest.approx(golden[layer][2], abs=2e-3 * scale)


def test_the_shipped_model_was_trained_on_the_shipped_loss_network():
    metadata = Stylizer(shipped_models()["starry_night"]).metadata
    assert metadata["loss_network"] == file_identity("vgg19_slim", VGG19_SLIM)
    assert metadata["title"] == "The Starry Night"
    assert shipped_models()["starry_night"].stat().st_size <= 2_000_000


def test_the_shipped_model_brings_photographs_to_the_style_targets():
    """On photographs never trained on, the Gram distance to the painting falls to less than a third."""
    network = create_loss_network("vgg19_slim")
    targets = StyleTargets.load(ASSETS / "style_targets" / "starry_night.safetensors").grams[384]
    stylize = Stylizer(shipped_models()["starry_night"])

    def distance(picture: Image.Image) -> float:
        features = network(to_tensor(picture), ["relu1_1", "relu2_1", "relu3_1", "relu4_1"])
        errors = [
            ((gram_matrix(f)[0] - targets[k]).square().sum() / targets[k].square().sum()) for k, f in features.items()
        ]
        return float(torch.stack(errors).mean())

    for array in (skimage.data.chelsea(), skimage.data.coffee()):
        photograph = resize_short_side(Image.fromarray(array), 256)
        assert distance(stylize(photograph)) < distance(photograph) / 3


def test_the_shipped_model_leaves_no_pixel_grid_in_flat_areas():
    """In a smooth sky, the energy at the sampling frequencies (periods 2 and 4) is not above its surroundings."""
    ramp = np.linspace(90, 150, 256)[:, None, None] + np.linspace(0, 40, 256)[None, :, None] * np.array([0.2, 0.5, 1.0])
    stylized = np.asarray(Stylizer(shipped_models()["starry_night"])(Image.fromarray(ramp.round().astype(np.uint8))))
    grey = stylized[32:224, 32:224].astype(float).mean(2)
    spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * np.hanning(192)[:, None] * np.hanning(192)[None])) ** 2
    profiles = (spectrum.sum(0), spectrum.sum(1))
    for profile in profiles:
        for bin_ in (48, 96):  # periods 4 and 2 px of 192
            peak = profile[bin_ - 1 : bin_ + 2].mean()
            around = np.median(np.r_[profile[bin_ - 12 : bin_ - 3], profile[bin_ + 4 : bin_ + 13]])
            assert peak < 10 * around


@pytest.mark.skipif(not SHARED.exists(), reason="the judge and its photographs are in ../shared")
def test_the_judge_finds_the_shipped_model_within_its_bounds():
    command = [sys.executable, SHARED / "judge.py", "--model", shipped_models()["starry_night"], "--limit", "12"]
    done = subprocess.run(
        [*command, "--style", SHARED / "styles" / "starry_night.jpg"], capture_output=True, check=True
    )
    figures = json.loads(done.stdout)
    assert figures["style_vgg19"] <= 0.20
    assert figures["content"] <= 0.70
