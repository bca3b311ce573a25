"""The command `nst-optimize`: what it leaves behind, what its options do, and one line for every mistake."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
import torchvision
import yaml
from omegaconf import OmegaConf
from PIL import Image, JpegImagePlugin
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nst_fast.assets import ASSETS
from nst_fast.commands import optimize as optimize_command
from nst_fast.commands.configuration import load_config
from nst_fast.commands.optimize import optimize, usual_scales
from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_blend
from nst_fast.errors import UserError
from nst_fast.loss.perceptual_loss import BalancedLoss
from nst_fast.loss.pretrained import create_loss_network, kept_files
from nst_fast.loss.style_targets import StyleTargets
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.reference.comparison import perceptual_losses
from nst_fast.reference.image_optimizer import optimize_image

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TERMS = ("content", "style", "tv", "total")
PHOTO = ["content=photo.png", "style=starry_night", "style.size=512"]  # one of the shipped sizes
SMALL = ["loss_network=vgg16_slim", "device=cpu", "size=48", "iterations=2"]
CUSTOM = ["content=photo.png", "style=custom", "style.image=painting.jpg", "style.size=64"]


def save_pictures(folder: Path) -> None:
    """Write a photograph and something to paint like."""
    Image.fromarray(skimage.data.chelsea()).resize((90, 60)).save(folder / "photo.png")
    blocks = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(folder / "painting.jpg")


def shipped_targets(name: str, size: int) -> dict[str, torch.Tensor]:
    return dict(StyleTargets.load(ASSETS / "style_targets" / f"{name}.safetensors").sizes[size])


def shipped_loss() -> BalancedLoss:
    """Return the loss that configs/loss/balanced.yaml describes, of one picture."""
    styles = {"relu1_2": 0.2, "relu2_2": 0.5, "relu3_3": 0.3}
    weights = (1.0, 8.0, 4.0)
    return BalancedLoss(create_loss_network("vgg16_slim"), {"relu2_2": 1.0}, styles, *weights, {"rgb@4": 0.06})


def photograph_at(width: int, height: int) -> torch.Tensor:
    with Image.open("photo.png") as photo:
        return to_tensor(photo.resize((width, height), Image.Resampling.LANCZOS))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the user is; it holds photo.png and painting.jpg."""
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[Image.Image, list[dict[str, float]], Path]:
    """Optimise and return the picture, the trace and the folder; what comes later in the arguments wins."""
    path = optimize(load_config("optimize", [*SMALL, *arguments]))
    with Image.open(path) as picture:
        picture.load()
    return picture, json.loads((path.parent / "trace.json").read_text())["trace"], path.parent


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return events


# What a run leaves behind


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    picture: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cwd = tmp_path_factory.mktemp("finished")
    save_pictures(cwd)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        picture = optimize(load_config("optimize", [*SMALL, *PHOTO, "iterations=8", "snapshot_every=2", "output=run"]))
    return Run(cwd / "run", picture, json.loads((cwd / "run" / "trace.json").read_text()))


def test_a_run_leaves_exactly_the_files_that_are_documented(finished):
    assert finished.picture == finished.folder / "photo.starry_night.png"
    expected = {"config.yaml", "trace.json", "tensorboard", "snapshots", "photo.starry_night.png"}
    assert {p.name for p in finished.folder.iterdir()} == expected
    snapshots = {f"48px_0000{n}.png" for n in (0, 2, 4, 6, 8)}
    assert {p.name for p in (finished.folder / "snapshots").iterdir()} == snapshots


def test_snapshots_begin_with_the_photograph_and_end_with_the_picture(finished):
    first, last = (Image.open(finished.folder / "snapshots" / f"48px_0000{n}.png") for n in (0, 8))
    with Image.open(finished.folder.parent / "photo.png") as photo:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(photo.resize((48, 32), Image.Resampling.LANCZOS)))
    np.testing.assert_array_equal(np.asarray(last), np.asarray(Image.open(finished.picture)))
    assert np.abs(np.asarray(first, int) - np.asarray(last)).mean() > 3


def test_trace_has_every_iteration_and_falls_from_the_photograph_on(finished):
    trace = finished.report["trace"]
    assert [(row["size"], row["iteration"]) for row in trace] == [(48, n) for n in range(9)]
    assert trace[0]["content"] == pytest.approx(0, abs=1e-9)
    totals = [row["total"] for row in trace]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0] / 2
    for row in trace:
        assert row["total"] == pytest.approx(row["content"] + 8 * row["style"] + 4 * row["tv"], rel=1e-5)


def test_report_says_what_was_optimised(finished):
    style = yaml.safe_load((ROOT / "configs" / "style" / "starry_night.yaml").read_text())
    told = {key: value for key, value in finished.report.items() if key not in ("trace", "loss_network")}
    assert told == {
        "content": "photo.png",
        "style": "starry_night",
        "image_sha256": style["sha256"],
        "stopped_early": False,
    }
    assert finished.report["loss_network"].startswith("vgg16_slim@")


def test_last_losses_are_those_of_the_picture(finished, monkeypatch):
    monkeypatch.chdir(finished.folder.parent)
    with Image.open(finished.picture) as picture:
        losses = perceptual_losses(
            shipped_loss(), shipped_targets("starry_night", 512), to_tensor(picture), photograph_at(48, 32)
        )
    last = finished.report["trace"][-1]
    assert losses == pytest.approx({name: last[name] for name in TERMS}, rel=0.01)  # rounding to 8 bits


def test_config_yaml_holds_every_value_as_it_was_used(finished):
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert config["content"] == str(finished.folder.parent / "photo.png")
    assert config["output"] == str(finished.folder)
    assert (config["loss_network"]["name"], config["device"]) == ("vgg16_slim", "cpu")
    assert (config["size"], config["iterations"], config["style"]["size"]) == (48, 8, 512)


def test_tensorboard_has_the_trace(finished):
    events = read_events(finished.folder)
    assert set(events.Tags()["scalars"]) == {f"optimize/{term}_loss" for term in TERMS}
    for term in TERMS:
        scalars = events.Scalars(f"optimize/{term}_loss")
        assert [e.step for e in scalars] == list(range(9))
        assert [e.value for e in scalars] == pytest.approx([row[term] for row in finished.report["trace"]], rel=1e-6)


def test_default_output_is_a_folder_of_the_style_and_the_time(folder):
    _, _, output = run(*PHOTO, "iterations=1")
    assert output.parent == Path("runs", "optimize", "starry_night")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", output.name)
    assert {p.name for p in folder.iterdir()} == {"photo.png", "painting.jpg", "runs"}


# Options


def test_jpg_is_quality_95_without_chroma_subsampling(folder):
    picture, _, _ = run(*PHOTO, "format=jpg", "output=o", "snapshot_every=2")
    Image.open("photo.png").save("pillow.jpg", quality=95)
    with Image.open("pillow.jpg") as pillows:
        for path in ("o/photo.starry_night.jpg", "o/snapshots/48px_00002.jpg"):
            with Image.open(path) as ours:
                assert (ours.format, JpegImagePlugin.get_sampling(ours)) == ("JPEG", 0)
                assert ours.quantization == pillows.quantization
    assert picture.size == (48, 32)


def test_size_null_keeps_the_photographs_size(folder):
    picture, trace, _ = run(*PHOTO, "size=null", "output=o")
    assert picture.size == (90, 60)
    assert {row["size"] for row in trace} == {90}


def test_the_second_scale_starts_from_the_first(folder):
    picture, trace, output = run(*PHOTO, "size=72", "scales=2", "style.size=362", "iterations=3", "output=o")
    assert [(row["size"], row["iteration"]) for row in trace] == [(s, n) for s in (36, 72) for n in range(4)]
    assert picture.size == (72, 48)
    # The painting shrinks with the picture: 181 px at the first scale, 362 at the second; both are shipped.
    small, targets = photograph_at(36, 24), shipped_targets("starry_night", 181)
    first, _ = optimize_image(small, shipped_loss(), targets, iterations=3)
    enlarged = F.interpolate(first, (48, 72), mode="bicubic", align_corners=False).clamp(0, 1)
    expected = perceptual_losses(
        shipped_loss(), shipped_targets("starry_night", 362), enlarged, photograph_at(72, 48).contiguous()
    )
    assert {name: trace[4][name] for name in TERMS} == pytest.approx(expected, rel=1e-3)
    assert trace[4]["content"] > 0.05  # the photograph itself would have none
    assert [e.step for e in read_events(output).Scalars("optimize/total_loss")] == list(range(8))


def test_noise_belongs_to_its_seed(folder):
    seeds = {"a": 1, "b": 1, "c": 2}
    pictures = {
        name: run(*PHOTO, "start=noise", f"seed={seed}", f"output={name}", "snapshot_every=1")
        for name, seed in seeds.items()
    }
    a, b, c = (np.asarray(picture, int) for picture, _, _ in pictures.values())
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.8
    start = np.asarray(Image.open("a/snapshots/48px_00000.png"), float).ravel()
    photo = np.asarray(Image.open("photo.png").resize((48, 32)), float).ravel()
    assert abs(np.corrcoef(start, photo)[0, 1]) < 0.1


def test_start_image_is_where_it_starts_at_the_photographs_size(folder):
    Image.new("RGB", (200, 31), (10, 120, 230)).save("flat.png")
    _, trace, _ = run(*PHOTO, "start_image=flat.png", "snapshot_every=1", "output=o")
    start = np.asarray(Image.open("o/snapshots/48px_00000.png"))
    np.testing.assert_array_equal(start, np.broadcast_to([10, 120, 230], (32, 48, 3)))
    assert trace[0]["tv"] == pytest.approx(0, abs=1e-12)
    assert trace[0]["content"] > 0.1


def test_adam_moves_the_pixels_by_its_learning_rate(folder):
    run(*PHOTO, "method=adam", "learning_rate=0.04", "snapshot_every=1", "output=o")
    before, after = (np.asarray(Image.open(f"o/snapshots/48px_0000{n}.png"), int) for n in (0, 1))
    inside = (before > 15) & (before < 240)  # where nothing is clipped
    moved = np.abs(after - before)[inside]
    assert moved.max() <= 11
    assert np.median(moved) == 10  # Adam's first step is its rate everywhere: 0.04 · 255


def test_weight_of_the_style_multiplies_that_of_the_loss(folder):
    _, trace, _ = run(*PHOTO, "loss.style_weight=6", "output=o")
    for row in trace:
        assert row["total"] == pytest.approx(row["content"] + 6 * row["style"] + 4 * row["tv"], rel=1e-5)


def test_keep_colours_gives_the_picture_the_photographs_chroma(folder):
    free, trace, _ = run(*PHOTO, "iterations=8", "output=free")
    kept, same_trace, _ = run(*PHOTO, "iterations=8", "keep_colours=true", "snapshot_every=8", "output=kept")
    assert [r["total"] for r in same_trace] == [r["total"] for r in trace]
    free, kept, photo = (np.asarray(p.convert("YCbCr"), float) for p in (free, kept, to_image(photograph_at(48, 32))))
    assert np.abs(kept - photo)[..., 1:].mean() < 2 < np.abs(free - photo)[..., 1:].mean()
    assert np.abs(kept - free)[..., 0].mean() < 2 < np.abs(kept - photo)[..., 0].mean()
    snapshot = np.asarray(Image.open("kept/snapshots/48px_00008.png").convert("YCbCr"), float)
    np.testing.assert_array_equal(snapshot, kept)


# Blends


def mean_targets(weights: dict[str, float]) -> dict[str, torch.Tensor]:
    """Return the weighted mean of shipped targets at 512 px."""
    every = {name: shipped_targets(name, 512) for name in weights}
    layers, total = next(iter(every.values())), sum(weights.values())
    return {k: sum(w * every[name][k] for name, w in weights.items()) / total for k in layers}


def test_find_blend_is_the_weighted_mean_of_the_targets():
    cfg = load_config("optimize", [*PHOTO, "loss_network=vgg16_slim", "loss.pooling=max"])
    loss = create_perceptual_loss(cfg)
    grams, hashes = find_blend(cfg, {"the_scream": 0.5, "great_wave": 2.0}, loss, 512)
    expected = mean_targets({"starry_night": 1.0, "the_scream": 0.5, "great_wave": 2.0})
    torch.testing.assert_close(grams, {k: expected[k] for k in grams})
    assert set(grams) == set(loss.style_target_names)
    assert len(set(hashes.split("+"))) == 3


def test_find_blend_takes_files(folder):
    cfg = load_config("optimize", [*CUSTOM, "loss_network=vgg16_slim", "loss.pooling=max"])
    loss = create_perceptual_loss(cfg)
    alone, _ = find_blend(cfg, {}, loss, 64)
    Image.new("RGB", (80, 80)).save("black.png")
    black, _ = find_blend(load_config("optimize", [*CUSTOM, "style.image=black.png"]), {}, loss, 64)
    mixed, _ = find_blend(cfg, {"black.png": 3.0}, loss, 64)
    torch.testing.assert_close(mixed, {k: alone[k] / 4 + 3 * black[k] / 4 for k in alone})


def test_find_blend_names_a_style_that_it_does_not_know():
    cfg = load_config("optimize", [*PHOTO, "loss_network=vgg16_slim", "loss.pooling=max"])
    with pytest.raises(UserError, match="unknown style 'the_screen': did you mean the_scream") as caught:
        find_blend(cfg, {"the_screen": 1.0}, create_perceptual_loss(cfg), 512)
    assert "\n" not in str(caught.value)


def test_blend_changes_what_the_picture_is_compared_with(folder):
    _, trace, output = run(*PHOTO, "blend={the_scream: 0.5}", "output=o")
    loss, content = shipped_loss(), photograph_at(48, 32)
    targets = mean_targets({"starry_night": 1.0, "the_scream": 0.5})
    expected = perceptual_losses(loss, targets, content, content)
    assert {name: trace[0][name] for name in TERMS} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert json.loads((output / "trace.json").read_text())["image_sha256"].count("+") == 1


def test_blend_takes_the_name_of_a_file(folder):
    _, trace, _ = run(*CUSTOM, "blend={painting.jpg: 2}", "output=same")
    _, alone, _ = run(*CUSTOM, "output=alone")
    assert trace[0]["style"] == pytest.approx(alone[0]["style"], rel=1e-5)


# Layers and presets


@pytest.mark.parametrize(
    ("arguments", "key", "layers"),
    [
        (["loss.style_layers={relu1_1: 1}"], "style_layers", {"relu1_1": 1}),
        (
            ["experiment=gatys2016_figure1_style", "loss.style_layers={relu1_1: 1, relu2_1: 1}"],
            "style_layers",
            {"relu1_1": 1, "relu2_1": 1},
        ),
        (
            ["experiment=gatys2016_figure1_content", "loss.content_layers={relu1_1: 1}"],
            "content_layers",
            {"relu1_1": 1},
        ),
    ],
    ids=["help", "figure 1 style", "figure 1 content"],
)
def test_layers_given_are_all_layers_as_help_and_presets_have_it(arguments, key, layers):
    assert load_config("optimize", [*PHOTO, *arguments]).loss[key] == layers


# α and β of the loss, as the presets' own words have them.
PRESETS = {
    "gatys2016_figure1_content": (1.0, 0.0),
    "gatys2016_figure1_style": (0.0, 1.0),
    "gatys2016": (1e-6, 1.0),
}


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory) -> Iterator[Path]:
    """A file of VGG-16's convolutions, random, as a download leaves it."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = torchvision.models.vgg16().features
    blocks = [f"{block}_{n}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)]
    convolutions = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    tensors = {}
    for name, layer in zip(blocks, convolutions, strict=True):
        spread = (2 / (9 * layer.in_channels)) ** 0.5
        tensors[f"conv{name}.weight"] = (spread * torch.randn(layer.weight.shape)).half()
        tensors[f"conv{name}.bias"] = torch.full(layer.bias.shape, 0.1).half()
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    save_file(tensors, path)
    yield path
    path.unlink()


ON_VGG16 = ["content=photo.png", "style=custom", "style.image=painting.jpg", "style.size=48", "device=cpu"]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [(["size=240"], [120, 240]), (["experiment=gatys2016", "loss.normalise=false", "size=48"], [48])],
)
def test_vgg16_in_the_cache_is_the_reference_with_average_pooling(options, sizes, vgg16, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    kept, _ = kept_files("vgg16")
    kept.parent.mkdir(parents=True)
    kept.symlink_to(vgg16)
    optimize(load_config("optimize", [*ON_VGG16, *options, "iterations=1", "output=o"]))
    report = json.loads(Path("o", "trace.json").read_text())
    assert re.fullmatch("vgg16@[0-9a-f]{64}:average", report["loss_network"])
    assert sorted({row["size"] for row in report["trace"]}) == sizes  # 240 px are 160 px high


@pytest.mark.parametrize(
    ("short_side", "scales"), [(16, 1), (159, 1), (160, 2), (319, 2), (320, 3), (341, 3), (1024, 4), (0.5, 1)]
)
def test_scales_start_where_the_short_side_is_no_less_than_80_px(short_side, scales):
    assert usual_scales(short_side) == scales
    assert scales == 1 or 80 <= short_side / 2 ** (scales - 1) < 160


def test_without_a_real_network_one_line_says_what_takes_its_place(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    _, _, output = run(*PHOTO, "loss_network=auto", "output=o")
    told = [line for line in capsys.readouterr().err.splitlines() if "takes their place" in line]
    assert len(told) == 1
    assert "vgg16_slim" in told[0]
    assert "loss_network=vgg16" in told[0]
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert (config["loss_network"]["name"], config["loss"]["pooling"], config["scales"]) == ("vgg16_slim", "max", 1)


def test_every_preset_of_the_paper_is_tried_here():
    assert {p.stem for p in (ROOT / "configs" / "experiment").glob("gatys2016*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_of_the_paper_runs(name, folder):
    cfg = load_config("optimize", [f"experiment={name}", *CUSTOM])
    assert (cfg.start, cfg.iterations, cfg.method, cfg.loss.name) == ("noise", 500, "lbfgs", "gatys")
    picture, trace, output = run(f"experiment={name}", *CUSTOM, "output=o")
    alpha, beta = PRESETS[name]
    for row in trace:
        assert row["total"] == pytest.approx(alpha * row["content"] + beta * row["style"], rel=1e-4)
    assert trace[0]["content"] > 0  # noise, not the photograph
    assert trace[2]["total"] < trace[1]["total"] < trace[0]["total"]
    assert picture.size == (48, 32)
    network = json.loads((output / "trace.json").read_text())["loss_network"]
    assert network.endswith(":normalised")  # and max pooling, the only one that vgg16_slim imitates


# The command line


@pytest.fixture
def command(folder, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return `nst-optimize` as a function of its arguments, run in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["nst-optimize", *arguments])
        with pytest.raises(SystemExit) as end:
            optimize_command.main()
        return (end.value.code or 0, *capsys.readouterr())

    return call


def assert_one_line(code: int, out: str, err: str, *words: str) -> None:
    assert (code, out) == (1, "")
    assert err.startswith("nst-optimize: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "missing photograph": ([*PHOTO, "content=none.jpg"], ["no picture", "none.jpg"]),
    "no photograph": (["style=starry_night"], ["content is missing"]),
    "broken photograph": ([*PHOTO, "content=text.jpg"], ["text.jpg", "cannot be read"]),
    "missing start image": ([*PHOTO, "start_image=none.jpg"], ["no picture", "none.jpg"]),
    "unknown style": (["content=photo.png", "style=stary_night"], ["did you mean starry_night?"]),
    "no style": (["content=photo.png"], ["style is missing"]),
    "missing painting": ([*CUSTOM, "style.image=none.jpg"], ["no picture", "none.jpg"]),
    "unknown style in a blend": ([*PHOTO, "blend={the_screen: 1}"], ["unknown style", "did you mean the_scream?"]),
    "negative weight in a blend": ([*PHOTO, "blend={the_scream: -1}"], ["the_scream", "-1", "at least 0"]),
    "blend in words": ([*PHOTO, "blend=abc"], ["blend", "abc"]),
    "unknown method": ([*PHOTO, "method=sgd"], ["method is 'sgd'", "adam, lbfgs"]),
    "unknown start": ([*PHOTO, "start=black"], ["start is 'black'", "content, noise"]),
    "unknown format": ([*PHOTO, "format=gif"], ["format is 'gif'", "jpg, png"]),
    "keep_colours in words": ([*PHOTO, "keep_colours=yesterday"], ["keep_colours", "yesterday"]),
    "no iterations": ([*PHOTO, "iterations=0"], ["iterations is 0"]),
    "half an iteration": ([*PHOTO, "iterations=1.5"], ["iterations is 1.5"]),
    "no scales": ([*PHOTO, "scales=0"], ["scales is 0"]),
    "tiny": ([*PHOTO, "size=3"], ["size is 3", "at least 16"]),
    "too low for the loss network": ([*PHOTO, "content=low.png"], []),
    "too low at the least size": ([*CUSTOM, "size=16", "loss.style_layers={relu5_1: 1}"], []),
    "too low for a distribution": ([*CUSTOM, "size=64", "loss.sliced_layers={relu4_1@8: 1}"], ["px a side are needed"]),
    "name that is a number": ([*PHOTO, "blend={3: 0.5}"], ["blend", "3"]),
    "snapshots never": ([*PHOTO, "snapshot_every=0"], ["snapshot_every is 0"]),
    "negative seed": ([*PHOTO, "seed=-1"], ["seed is -1"]),
    "seed too large": ([*PHOTO, "start=noise", f"seed={2**70}"], ["seed", str(2**70)]),
    "rate that is no number": ([*PHOTO, "learning_rate=nan"], ["learning_rate is nan"]),
    "weight that is no number": ([*PHOTO, "loss.content_weight=nan"], ["loss.content_weight", "nan"]),
    "weight without end": ([*PHOTO, "loss.content_weight=inf"], ["inf"]),
    "layer that the loss network lacks": ([*PHOTO, "loss.content_layers={relu9_9: 1}"], ["has no layer", "relu9_9"]),
    "unknown option": ([*PHOTO, "iteration=3"], ["did you mean iterations?"]),
    "misspelt style": (["content=photo.png", "stlye=starry_night"], ["'stlye'", "did you mean style?"]),
    "unknown preset": ([*PHOTO, "experiment=gatys2016_figure9"], ["unknown experiment", "gatys2016_figure"]),
    "place below a file": ([*PHOTO, "output=photo.png/run"], ["cannot write into", "output=FOLDER"]),
    "name with slashes": ([*PHOTO, "style.name=a/b"], ["style.name", "a/b"]),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, words, command, folder):
    Path("text.jpg").write_text("no picture")
    Image.new("RGB", (400, 4)).save("low.png")
    before = sorted(folder.rglob("*"))
    assert_one_line(*command(*SMALL, *arguments), *words)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(command, folder):
    before = sorted(folder.rglob("*"))
    assert_one_line(*command(*SMALL, *PHOTO, "device=cuda"), "device=cuda", "device=cpu")
    assert sorted(folder.rglob("*")) == before


def test_the_picture_is_the_only_line_on_stdout(command):
    code, out, err = command(*SMALL, *PHOTO, "output=my run")
    assert (code, out) == (0, f"{Path('my run', 'photo.starry_night.png').resolve()}\n")
    assert "48 px: step 2 of 2  content" in err


def test_cfg_prints_the_config_and_optimises_nothing(command, folder):
    code, out, err = command(*PHOTO, "--cfg", "iterations=7")
    config = yaml.safe_load(out)
    assert (code, err, config["iterations"], config["style"]["artist"]) == (0, "", 7, "Vincent van Gogh")
    assert len(list(folder.iterdir())) == 2


def test_help_names_only_options_that_exist_and_examples_that_can_be_read(command):
    usage = command("--help")[1]
    cfg = load_config("optimize", ["content=x", "style=custom"])
    options = re.findall(r"^  ([a-z_.]+)=", usage, re.MULTILINE)
    assert len(options) > 15
    for option in options:
        group, _, key = option.rpartition(".")
        assert key in (OmegaConf.select(cfg, group) if group else cfg) or (ROOT / "configs" / option).is_dir()
    examples = [
        line.removeprefix("  nst-optimize ") for line in usage.splitlines() if line.startswith("  nst-optimize ")
    ]
    assert len(examples) == 2
    for example in examples:
        load_config("optimize", shlex.split(example))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """An endless run of the console script, interrupted after some snapshots."""
    cwd = tmp_path_factory.mktemp("interrupted")
    save_pictures(cwd)
    options = ["iterations=1000000", "method=adam", "learning_rate=0.5", "snapshot_every=1", "output=run"]
    process = subprocess.Popen(
        [str(BIN / "nst-optimize"), *SMALL, *PHOTO, *options],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while process.poll() is None and not (cwd / "run" / "snapshots" / "48px_00005.png").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return cwd / "run", process.returncode, out, err


def test_an_interrupted_run_ends_cleanly_and_says_so(interrupted):
    folder, code, out, err = interrupted
    assert (code, out) == (0, f"{folder / 'photo.starry_night.png'}\n")
    assert "Traceback" not in err
    assert "interrupted at 48 px" in err


def test_an_interrupted_run_saves_the_best_picture_so_far(interrupted):
    folder, *_ = interrupted
    report = json.loads((folder / "trace.json").read_text())
    totals = [row["total"] for row in report["trace"]]
    assert report["stopped_early"]
    assert 6 <= len(totals) == len(list((folder / "snapshots").iterdir()))
    best = Image.open(folder / "snapshots" / f"48px_{totals.index(min(totals)):05d}.png")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "photo.starry_night.png")), np.asarray(best))


def test_the_console_script_fails_in_one_line_too(tmp_path):
    done = subprocess.run(
        [str(BIN / "nst-optimize"), "content=x.jpg", "style=stary_night"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert_one_line(done.returncode, done.stdout, done.stderr, "did you mean starry_night?")
    assert list(tmp_path.iterdir()) == []
