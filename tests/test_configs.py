"""Every file in configs/: it composes, and what it says of styles, losses and recipes holds."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from nst_fast.commands.configuration import load_config
from nst_fast.commands.perceptual_loss import resolve_perceptual_loss
from nst_fast.errors import UserError
from nst_fast.loss.perceptual_loss import LOSSES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHARED = Path(__file__).resolve().parents[2] / "shared"
ROOTS = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
OPTIONS = sorted((p.parent.name, p.stem) for p in CONFIGS.glob("*/*.yaml"))
PAINTINGS = sorted(p.stem for p in (CONFIGS / "style").glob("*.yaml") if p.stem not in ("custom", "gallery"))
REQUIRED = {
    "style.images": "paintings",
    "data.root": "pictures",
    "loss_network.shallow": "a.safetensors",
    "loss_network.deep": "b.safetensors",
}
# Simonyan & Zisserman 2014, configuration E: convolutions in each block.
VGG19_LAYERS = {f"relu{block}_{i}" for block, n in enumerate((2, 2, 4, 4, 4), start=1) for i in range(1, n + 1)}


def read(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())


def missing(group: str, name: str) -> list[str]:
    """Return arguments for the values that an option leaves to the user."""
    return [f"{group}.{key}={REQUIRED[f'{group}.{key}']}" for key, value in read(group, name).items() if value == "???"]


def test_no_file_lies_where_nothing_reads_it():
    assert sorted(p for p in CONFIGS.rglob("*") if p.is_file()) == sorted(
        [CONFIGS / f"{root}.yaml" for root in ROOTS] + [CONFIGS / group / f"{name}.yaml" for group, name in OPTIONS]
    )


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes(root):
    arguments = {"train": ["style=custom"], "preview": ["style=custom"]}.get(root, [])
    arguments = ["style=custom", "content=photo.jpg"] if root == "optimize" else arguments
    cfg = OmegaConf.to_container(load_config(root, arguments), resolve=True, throw_on_missing=True)
    own = yaml.safe_load((CONFIGS / f"{root}.yaml").read_text())
    given = {"defaults", "content", "style"}
    assert {key: cfg[key] for key in own if key not in given} == {k: v for k, v in own.items() if k not in given}
    assert own.get("style", {}).items() <= cfg.get("style", {}).items()  # in place of the style's own


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_with_the_values_of_its_file(group, name):
    arguments = [f"{group}={name}", *missing(group, name)]
    if group != "style":
        arguments.append("style=custom")
    # The paper's figures are presets of the optimiser, everything else is of training.
    root = "optimize" if name.startswith("gatys2016") else "train"
    arguments += ["content=photo.jpg"] if root == "optimize" else []
    cfg = OmegaConf.to_container(load_config(root, arguments), resolve=True, throw_on_missing=True)
    got = cfg if group == "experiment" else cfg[group]
    for key, value in read(group, name).items():
        if value == "???":
            assert Path(got[key]).name == REQUIRED[f"{group}.{key}"]
        elif key != "defaults":
            expected = {**got[key], **value} if isinstance(value, dict) else value
            assert got[key] == expected, key


@pytest.mark.parametrize(
    ("group", "name"), [o for o in OPTIONS if o[0] in ("style", "loss", "network", "loss_network")]
)
def test_an_option_is_called_as_its_file(group, name):
    assert read(group, name)["name"] == (None if name == "custom" else name)


@pytest.mark.parametrize("name", PAINTINGS)
def test_a_painting_says_what_it_is_and_where_exactly_it_comes_from(name):
    style = read("style", name)
    for key in ("title", "artist", "licence"):
        assert isinstance(style[key], str)
        assert len(style[key]) > 3
    assert 1400 < style["year"] < 1930
    assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/\S+\.jpg", style["url"])
    assert re.fullmatch(r"[0-9a-f]{64}", style["sha256"])
    assert (style["image"], style["targets"]) == (None, None)


@pytest.mark.parametrize("name", PAINTINGS)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the paintings are not redistributed with the project")
def test_a_paintings_sha256_is_that_of_its_file(name):
    style = read("style", name)
    file = SHARED / "styles" / style["url"].rsplit("/", 1)[1]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == style["sha256"]


def test_all_styles_have_the_same_options():
    keys = {name: set(read("style", name)) - {"images"} for name in [*PAINTINGS, "custom", "gallery"]}
    assert len({frozenset(k) for k in keys.values()}) == 1, keys


def test_there_is_a_config_for_every_loss():
    assert {name for group, name in OPTIONS if group == "loss"} == set(LOSSES)


@pytest.mark.parametrize("name", [name for group, name in OPTIONS if group == "loss"])
def test_a_loss_measures_layers_of_vgg19_with_positive_weights(name):
    loss = read("loss", name)
    assert loss["name"] in LOSSES
    for layers in (loss["content_layers"], loss["style_layers"], loss["sliced_layers"]):
        assert {layer.partition("@")[0] for layer in layers} <= VGG19_LAYERS | {"rgb"}
        assert all(weight > 0 for weight in layers.values())
    assert loss["content_weight"] > 0
    assert loss["style_weight"] == "auto" if name == "balanced" else loss["style_weight"] > 0
    assert loss["tv_weight"] >= 0


@pytest.mark.parametrize(
    ("loss", "reference", "weight"), [("balanced", False, 3), ("balanced", True, 8), ("gatys", True, 1)]
)
def test_one_picture_alone_has_more_style_than_a_network(loss, reference, weight):
    command, given = ("optimize", ["content=photo.jpg"]) if reference else ("train", [])
    cfg = load_config(command, ["style=starry_night", f"loss={loss}", *given])
    resolve_perceptual_loss(cfg, gpu=False, reference=reference)
    assert cfg.loss.style_weight == weight


@pytest.mark.parametrize("loss", ["gatys", "johnson"])
def test_only_the_balanced_loss_has_an_automatic_style_weight(loss):
    cfg = load_config("train", ["style=starry_night", f"loss={loss}", "loss.style_weight=auto"])
    with pytest.raises(UserError, match=r"loss\.style_weight is 'auto'; a number"):
        resolve_perceptual_loss(cfg, gpu=False)


def test_gatys_layers_are_the_papers():
    loss = read("loss", "gatys")
    assert loss["content_layers"] == {"relu4_2": 1.0}
    assert loss["style_layers"] == {f"relu{block}_1": pytest.approx(1 / 5) for block in range(1, 6)}
    # Not the paper's α/β = 1e-3, which its own equations do not give: the file says why.
    assert loss["content_weight"] / loss["style_weight"] == pytest.approx(1e-6)
    assert (loss["pooling"], loss["normalise"]) == ("auto", True)  # average where it can be


def test_the_johnson_recipe_is_the_fields_standard():
    cfg = load_config("train", ["style=starry_night", "experiment=johnson2016"])
    assert (cfg.network.name, cfg.network.width, cfg.network.blocks) == ("johnson", 32, 5)
    assert (cfg.loss.name, cfg.loss_network.name) == ("johnson", "vgg16")
    # pytorch/examples: content after relu2_2, style after the last rectification of each of the first four blocks of
    # VGG-16.
    assert dict(cfg.loss.content_layers) == {"relu2_2": 1.0}
    assert dict(cfg.loss.style_layers) == dict.fromkeys(("relu1_2", "relu2_2", "relu3_3", "relu4_3"), 1.0)
    assert (cfg.loss.content_weight, cfg.loss.style_weight) == (1e5, 1e10)
    assert (cfg.trainer.max_steps, cfg.trainer.learning_rate, cfg.data.batch_size) == (40_000, 1e-3, 4)
    assert (cfg.trainer.one_cycle, cfg.trainer.gradient_clip) == (False, None)


def test_what_the_user_says_wins_over_the_recipe():
    cfg = load_config("train", ["style=starry_night", "experiment=johnson2016", "trainer.max_steps=10", "network=fast"])
    assert (cfg.trainer.max_steps, cfg.network.name, cfg.loss.name) == (10, "fast", "johnson")
