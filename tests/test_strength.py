"""The style weight that gives a content distance: on a loop whose answer is known, and in training."""

import json
import math

import pytest
import torch
from PIL import Image

from nst_fast.commands.configuration import load_config
from nst_fast.loss.strength import STRENGTHS, StyleWeightControl, content_distance
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.style_transfer import read_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

SMALL = ["network.width=8", "network.blocks=1", "data.size=32", "data.batch_size=2", "data.num_workers=0"]
MACHINE = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.validate_every=1000"]


@pytest.mark.parametrize("painting", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("target", STRENGTHS.values())
def test_the_weight_settles_where_the_distance_is_the_target(painting, target):
    """A painting whose distance is p·√w, which training approaches by a thirtieth a step, with noise of 20 %."""
    rng = torch.Generator().manual_seed(0)
    control, distance = StyleWeightControl(target, 7.0, rate=0.03), 1.0
    for _ in range(1500):
        distance += (painting * math.sqrt(control.style_weight) - distance) / 30
        control.update(torch.tensor(distance) * (1 + 0.2 * torch.randn((), generator=rng)))
    assert float(control.style_weight) == pytest.approx((target / painting) ** 2, rel=0.25)
    assert distance == pytest.approx(target, rel=0.1)


def test_one_step_of_the_weight_by_hand():
    control = StyleWeightControl(0.5, 7.0, rate=0.1)
    control.update(torch.tensor(1.0))  # the running mean goes a tenth of the way: 0.55
    assert float(control.log_weight) == pytest.approx(math.log(7) + 0.1 * math.log(0.5 / 0.55), abs=1e-6)
    control = StyleWeightControl(0.5, 7.0, rate=0.1)
    control.update(torch.tensor(1e6))  # counts as off by a factor of √e
    assert float(control.log_weight) == pytest.approx(math.log(7) - 0.1 * 0.5, abs=1e-6)


def test_a_strength_is_the_distance_that_its_loss_network_shows():
    assert content_distance("medium", "vgg19@abc") == 0.45
    assert (
        content_distance("medium", "vgg19_slim") == content_distance("medium", "vgg19_slim@abc") == pytest.approx(0.36)
    )
    assert content_distance(0.5, "vgg19_slim") == pytest.approx(0.4)


@pytest.mark.parametrize("distance", [0.0, 1e30])
def test_a_distance_that_no_weight_gives_leaves_a_finite_one(distance):
    control = StyleWeightControl(0.45, 7.0, rate=0.1)
    for _ in range(3000):
        control.update(torch.tensor(distance))
    assert 0 < float(control.style_weight) < float("inf")


@pytest.mark.parametrize(("start", "least", "most"), [(0.0, 0, 1), (1e30, 1e3, 1e6)])
def test_a_start_that_is_no_weight_is_brought_within_bounds(start, least, most):
    assert least < float(StyleWeightControl(0.45, start, rate=0.1).style_weight) < most


def test_training_with_a_strength_records_the_weight_it_found(train, tmp_path):
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "mine.png")
    options = ["style=custom", "style.image=mine.png", "style.size=64", *SMALL, *MACHINE, "trainer.max_steps=30"]
    weights = {}
    for strength in (0.05, 5):
        result = train(*options, f"style.strength={strength}", f"output={strength}")
        assert result.code == 0, result.err
        weights[strength] = json.loads((tmp_path / str(strength) / "summary.json").read_text())["style_weight"]
        assert f"strength {strength}: style weight {weights[strength]:.3g}" in result.err
        metadata = Stylizer(tmp_path / str(strength) / "mine.onnx").metadata
        assert float(metadata["style_weight"]) == pytest.approx(weights[strength], rel=1e-4)
        assert metadata["strength"] == str(strength)
        stored = read_checkpoint(tmp_path / str(strength) / "checkpoints" / "last.ckpt")["nst_fast"]
        assert stored["style_weight"] == weights[strength]
    assert weights[0.05] < 7 < weights[5]  # 7 is the default, from where both start


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("style.strength=huge", "style.strength is 'huge'"),
        ("style.strength=0", "style.strength is 0"),
        ("style.strength=nan", "style.strength is nan"),
        ("style.strength=[1]", "style.strength is [1]"),
    ],
)
def test_a_strength_that_is_none_is_one_line(train, option, words):
    result = train("style=starry_night", option, *SMALL)
    assert result.code == 1
    assert words in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("chosen", ["loss=johnson", "loss=structure", "experiment=johnson2016"])
def test_a_strength_of_another_loss_is_one_line(train, chosen):
    result = train("style=starry_night", "style.strength=medium", chosen, *SMALL)
    assert result.code == 1
    assert "loss=balanced" in result.err


def test_a_strength_comes_with_the_loss_whose_distance_it_is():
    chosen = {
        strength: load_config("train", ["style=starry_night", f"style.strength={strength}"]).loss
        for strength in ("medium", "0.4", "null")
    }
    assert [loss.name for loss in chosen.values()] == ["balanced", "balanced", "structure"]
    assert dict(chosen["medium"].content_layers) == {"relu4_2": 1.0}
