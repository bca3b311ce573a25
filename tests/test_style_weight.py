"""The style weight that gives a content distance: on a loop whose answer is known, and in training."""

import json
import math

import pytest
import torch
from PIL import Image

from nst_fast.loss.style_weight import DISTANCES, StyleWeightControl, content_distance
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.checkpoints import read_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

SMALL = ["network.width=8", "network.blocks=1", "data.size=32", "data.batch_size=2", "data.num_workers=0"]
MACHINE = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.validate_every=1000"]


@pytest.mark.parametrize("painting", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("target", DISTANCES.values())
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


def test_each_painting_has_a_weight_of_its_own():
    control, alone = StyleWeightControl(0.5, 7.0, 0.1, paintings=3), [StyleWeightControl(0.5, 7.0, 0.1) for _ in "abc"]
    for distances in ([0.3, math.nan, 0.9], [0.4, 0.6, math.nan]):
        control.update(torch.tensor(distances))
        for single, distance in zip(alone, distances, strict=True):
            single.update(torch.tensor(distance))
    assert control.style_weight.tolist() == [float(single.style_weight) for single in alone]
    assert control.style_weight[0] > 7 > control.style_weight[2]


def test_a_content_distance_is_what_its_loss_network_shows_of_it():
    assert content_distance("medium", "vgg19@abc") == 1.2
    assert (
        content_distance("medium", "vgg16_slim") == content_distance("medium", "vgg16_slim@abc") == pytest.approx(1.104)
    )
    assert content_distance(0.5, "vgg16_slim") == pytest.approx(0.46)


@pytest.mark.parametrize("distance", [0.0, 1e30])
def test_a_distance_that_no_weight_gives_leaves_a_finite_one(distance):
    control = StyleWeightControl(0.45, 7.0, rate=0.1)
    for _ in range(3000):
        control.update(torch.tensor(distance))
    assert 0 < float(control.style_weight) < float("inf")


@pytest.mark.parametrize(("start", "least", "most"), [(0.0, 0, 1), (1e30, 1e3, 1e6)])
def test_a_start_that_is_no_weight_is_brought_within_bounds(start, least, most):
    assert least < float(StyleWeightControl(0.45, start, rate=0.1).style_weight) < most


def test_training_with_a_content_distance_records_the_weight_it_found(train, tmp_path):
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "mine.png")
    options = ["style=custom", "style.image=mine.png", "style.size=64", *SMALL, *MACHINE, "trainer.max_steps=12"]
    weights = {}
    for distance in (0.05, 9):
        result = train(*options, f"style.content_distance={distance}", f"output={distance}")
        assert result.code == 0, result.err
        weights[distance] = json.loads((tmp_path / str(distance) / "summary.json").read_text())["style_weight"]
        assert f"content_distance={distance}: a style weight of {weights[distance]:.3g} gives" in result.err
        assert f"{distance:.3g} is wanted; more steps come nearer" in result.err
        metadata = Stylizer(tmp_path / str(distance) / "mine.onnx").metadata
        assert float(metadata["style_weight"]) == pytest.approx(weights[distance], rel=1e-4)
        assert metadata["content_distance"] == str(distance)
        stored = read_checkpoint(tmp_path / str(distance) / "checkpoints" / "last.ckpt")["nst_fast"]
        assert stored["style_weight"] == weights[distance]
    assert weights[0.05] < 3 < weights[9]  # 3 is the default, from where both start


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("style.content_distance=huge", "style.content_distance is 'huge'"),
        ("style.content_distance=0", "style.content_distance is 0"),
        ("style.content_distance=nan", "style.content_distance is nan"),
        ("style.content_distance=[1]", "style.content_distance is [1]"),
    ],
)
def test_a_content_distance_that_is_none_is_one_line(train, option, words):
    result = train("style=starry_night", option, *SMALL)
    assert result.code == 1
    assert words in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("chosen", ["loss=johnson", "loss=gatys", "experiment=johnson2016"])
def test_a_content_distance_of_another_loss_is_one_line(train, chosen):
    result = train("style=starry_night", "style.content_distance=medium", chosen, *SMALL)
    assert result.code == 1
    assert "loss=balanced" in result.err
