"""The command `train`, as a user types it: what it leaves behind, and one line for every mistake."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
import yaml
from conftest import Result, run_main
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import nst_fast
from nst_fast.assets import shipped_models
from nst_fast.commands import export
from nst_fast.commands import train as train_command
from nst_fast.commands.configuration import load_config
from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_sizes
from nst_fast.loss.painting_size import best_painting_size, style_distances
from nst_fast.loss.tensors import to_tensor
from nst_fast.stylizing import quantization
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.checkpoints import read_checkpoint
from nst_fast.training.networks import FastNetwork
from nst_fast.training.onnx_export import import_network
from nst_fast.training.recolouring import colour_map

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SMALL = ["data.size=64", "data.batch_size=2", "data.num_workers=0", "style.size=64", "trainer.accelerator=cpu"]
SMOKE = ["trainer=smoke", *SMALL]
NARROW = [*SMOKE, "network.width=8", "network.blocks=1"]  # most of a short run is the export, block by block
CUSTOM = ["style=custom", "style.image=pic.jpg"]
AWKWARD_NAMES = ["my pic (1).jpg", "été.jpg", "a,b.jpg", "a=b.jpg", "a${b}.jpg", """it's "x".jpg""", "[a]{b}.jpg"]


def draw_picture(path: Path, seed: int = 0, side: int = 10) -> Path:
    """Write a picture of 9 by 12 coloured blocks of a side in pixels."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.repeat(side, 0).repeat(side, 1)).save(path)
    return path


def shell(command: str | list[str], folder: Path, **environment: str) -> Result:
    """Run a command in a process of its own; a string as it stands, by the shell."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def network_weights(run: Path) -> dict[str, torch.Tensor]:
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {k: v for k, v in weights.items() if k.startswith("network.")}


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = network_weights(first), network_weights(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


class Run(NamedTuple):
    """A finished run in a folder of its own."""

    cwd: Path
    folder: Path
    result: Result
    day: date
    seconds: float


def run_in_process(cwd: Path, *arguments: str, **environment: str) -> Run:
    """Run `train` to its end in this process, in a folder in which it is the first."""
    day, start = datetime.now(timezone.utc).date(), time.monotonic()
    result = run_main(train_command.main, "train", *arguments, folder=cwd, **environment)
    assert result.code == 0, result.err
    (folder,) = (cwd / "runs" / "train").glob("*/*")
    return Run(cwd, folder, result, day, time.monotonic() - start)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One smoke run, typed in a folder that holds pic.jpg and photo.jpg."""
    cwd = tmp_path_factory.mktemp("finished")
    draw_picture(cwd / "pic.jpg", side=32)
    Image.fromarray(skimage.data.chelsea()).save(cwd / "photo.jpg")
    return run_in_process(cwd, *CUSTOM, *SMOKE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a small network, which is soon exported and quantised."""
    cwd = tmp_path_factory.mktemp("small")
    draw_picture(cwd / "pic.jpg")
    return run_in_process(cwd, *CUSTOM, *NARROW).folder


def test_a_run_leaves_exactly_the_files_that_are_documented(finished):
    assert {p.name for p in finished.folder.iterdir()} == {
        "config.yaml",
        "checkpoints",
        "tensorboard",
        "samples",
        "pic.onnx",
        "summary.json",
    }
    assert {p.name for p in (finished.folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert {p.name for p in finished.cwd.iterdir()} == {"pic.jpg", "photo.jpg", "runs"}


def test_samples_show_the_photographs_above_their_stylized_ones(finished):
    samples = sorted((finished.folder / "samples").iterdir())
    assert [p.name for p in samples] == ["step_000002.png", "step_000004.png"]
    for sample in samples:
        with Image.open(sample) as strip:
            assert strip.size == (2 * 64, 2 * 64)
            top = np.asarray(strip)[:64, :64].astype(float)
        cat = Image.fromarray(skimage.data.chelsea())
        left = (cat.width - cat.height) // 2
        cat = cat.crop((left, 0, left + cat.height, cat.height)).resize((64, 64), Image.Resampling.LANCZOS)
        assert np.abs(top - np.asarray(cat)).mean() < 4


def test_the_last_two_lines_are_the_model_and_a_command_that_works_as_it_stands(finished):
    model, command = finished.result.out.splitlines()[-2:]
    assert (finished.cwd / model).samefile(finished.folder / "pic.onnx")
    done = shell(command, finished.cwd)
    assert done.code == 0, done.err
    output = finished.cwd / done.out.splitlines()[-1]
    with Image.open(output) as stylized, Image.open(finished.cwd / "photo.jpg") as photo:
        assert stylized.size == photo.size
        assert np.abs(np.asarray(stylized, float) - np.asarray(photo, float)).mean() > 1
    output.unlink()


def test_config_yaml_holds_every_value_as_it_was_used(finished):
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert config["style"]["image"] == str((finished.cwd / "pic.jpg").resolve())
    assert (config["style"]["name"], config["style"]["size"]) == ("pic", 64)
    assert (config["trainer"]["max_steps"], config["trainer"]["accelerator"]) == (4, "cpu")
    assert config["loss_network"]["name"] == "vgg16_slim"
    assert "auto" not in (config["trainer"]["precision"], config["loss_network"]["name"])
    checkpoint = torch.load(finished.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert config == checkpoint["nst_fast"]["config"]


@pytest.fixture(scope="module")
def events(finished: Run) -> EventAccumulator:
    accumulator = EventAccumulator(str(finished.folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_the_training_losses_even_of_a_short_run(events):
    for name in ("content", "style", "tv", "grid", "weave", "total"):
        assert f"train/{name}_loss" in events.Tags()["scalars"]
        assert all(np.isfinite(e.value) for e in events.Scalars(f"train/{name}_loss"))


def test_tensorboard_has_the_validation_losses_of_the_summary(finished, events):
    losses = json.loads((finished.folder / "summary.json").read_text())["validation_losses"]
    assert losses.keys() == {f"val/{name}_loss" for name in ("content", "style", "tv", "grid", "weave", "total")}
    for name, value in losses.items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-5)


def test_tensorboard_has_the_painting_size_of_the_samples(finished, events):
    logged = {name: events.Scalars(f"val/{name}") for name in ("painting_size", "relative_painting_size", "total_loss")}
    assert len({tuple(event.step for event in found) for found in logged.values()}) == 1
    cfg = OmegaConf.create(yaml.safe_load((finished.folder / "config.yaml").read_text()))
    loss = create_perceptual_loss(cfg)
    with Image.open(finished.folder / "samples" / "step_000004.png") as strip:
        pictures = to_tensor(strip.crop((0, 64, 128, 128)))
    distances = style_distances(loss, torch.cat(pictures.chunk(2, 3)), find_sizes(cfg, loss))
    assert list(distances) == [91, 128, 181, 256]  # the painting has 288 px
    last = {name: found[-1].value for name, found in logged.items()}
    assert last["painting_size"] == pytest.approx(best_painting_size(distances), rel=0.05)  # the strip is of 8 bits
    assert last["relative_painting_size"] == pytest.approx(last["painting_size"] / 64, rel=1e-5)


def test_tensorboard_has_the_strip_of_the_samples(finished, events):
    encoded = events.Images("val/strip")[-1]
    assert (encoded.width, encoded.height) == (128, 128)
    assert encoded.encoded_image_string.startswith(b"\x89PNG")


def test_the_total_loss_is_the_weighted_sum_of_the_terms(finished):
    losses = json.loads((finished.folder / "summary.json").read_text())["validation_losses"]
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    weights = {name: config["loss"][f"{name}_weight"] for name in ("content", "style", "tv")}
    weights |= {name: config["trainer"][f"{name}_weight"] for name in ("grid", "weave")}
    expected = sum(weight * losses[f"val/{name}_loss"] for name, weight in weights.items())
    assert losses["val/total_loss"] == pytest.approx(expected, rel=1e-3)


def test_summary_says_how_the_run_went(finished):
    summary = json.loads((finished.folder / "summary.json").read_text())
    slim = ROOT / "nst_fast" / "assets" / "vgg16_slim.safetensors"
    assert (summary["style"], summary["steps"], summary["skipped_steps"]) == ("pic", 4, 0)
    assert summary["skipped_pictures"] == []
    assert 0 < summary["seconds"] < finished.seconds
    assert summary["images_per_second"] > 4 * 2 / finished.seconds
    assert summary["device"].startswith("CPU")
    assert summary["loss_network"] == f"vgg16_slim@{hashlib.sha256(slim.read_bytes()).hexdigest()}"
    assert summary["versions"] == {
        "nst_fast": nst_fast.__version__,
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def metadata_of(model: Path) -> dict[str, str]:
    return {p.key.removeprefix("nst_fast."): p.value for p in onnx.load(model).metadata_props}


def test_the_model_says_what_it_is_and_how_it_was_made(finished):
    metadata = metadata_of(finished.folder / "pic.onnx")
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert metadata["image_sha256"] == hashlib.sha256((finished.cwd / "pic.jpg").read_bytes()).hexdigest()
    assert metadata["loss_network"] == summary["loss_network"]
    assert metadata["network"] == "fast, width 48, blocks 4"
    assert metadata["version"] == nst_fast.__version__
    assert float(metadata["val_total_loss"]) == pytest.approx(summary["validation_losses"]["val/total_loss"], rel=1e-4)
    assert finished.day <= date.fromisoformat(metadata["date"]) <= datetime.now(timezone.utc).date()
    assert int(metadata["min_size"]) > 0
    expected = {"style": "pic", "title": "pic", "artist": "unknown", "licence": "unknown", "steps": "4"}
    expected["underpainting"] = "0.25"
    assert {key: metadata[key] for key in expected} == expected


def test_the_model_names_the_commit_of_the_clone(finished):
    commit = metadata_of(finished.folder / "pic.onnx")["commit"]
    if not (ROOT / ".git").exists():
        assert commit == "unknown"
        return
    kind = subprocess.run(["git", "-C", ROOT, "cat-file", "-t", commit], capture_output=True, text=True, check=True)
    assert kind.stdout.strip() == "commit"


def test_the_model_gives_what_the_checkpoints_network_gives(finished):
    model = onnxruntime.InferenceSession(finished.folder / "pic.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    (got,) = model.run(None, {"image": picture})
    network = FastNetwork(48, 4, margin=24).eval()
    network.load_state_dict({k.removeprefix("network."): v for k, v in network_weights(finished.folder).items()})
    state = read_checkpoint(finished.folder / "checkpoints" / "last.ckpt")["state_dict"]
    matrix, offset = (
        part.float() for part in colour_map(*(state[f"style_{kind}_colours"][0] for kind in ("target", "mean")))
    )
    with torch.no_grad():
        painted = network(torch.from_numpy(picture).permute(0, 3, 1, 2) / 255)
        expected = (torch.einsum("ij,njhw->nihw", matrix, painted) + offset[:, None, None]).clamp(0, 1) * 255
    assert np.abs(got - expected.permute(0, 2, 3, 1).numpy()).max() <= 1


def test_nst_export_of_the_checkpoint_gives_an_equal_model(small, tmp_path, monkeypatch, capsys):
    checkpoint = small / "checkpoints" / "last.ckpt"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nst-export", str(checkpoint), "-o", "again.onnx"])
    with pytest.raises(SystemExit) as end:
        export.main()
    assert end.value.code == 0
    assert capsys.readouterr().out == "again.onnx\n"
    picture = np.random.default_rng(0).integers(0, 256, (2, 61, 83, 3), dtype=np.uint8)
    sessions = [onnxruntime.InferenceSession(p) for p in ("again.onnx", small / "pic.onnx")]
    first, second = (session.run(None, {"image": picture})[0] for session in sessions)
    assert np.array_equal(first, second)
    again, original = metadata_of(Path("again.onnx")), metadata_of(small / "pic.onnx")
    for metadata in (again, original):
        del metadata["date"], metadata["commit"]
    assert again == original


def nst_export(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Return the exit code of `nst-export` and what it printed, less the line on how near 8-bit integers come."""
    monkeypatch.setattr(sys, "argv", ["nst-export", *arguments])
    with pytest.raises(SystemExit) as end:
        export.main()
    printed = capsys.readouterr()
    near = re.fullmatch(r"PSNR to the model in floating point: \d+\.\d dB or more on two photographs\n", printed.err)
    assert ("--int8" in arguments and not end.value.code) == (near is not None)
    return end.value.code or 0, printed.out + ("" if near else printed.err)


@pytest.fixture
def few_pixels(monkeypatch):
    """Lay 8 bits over photographs of a seventh of the pixels that models are released with."""
    monkeypatch.setattr(quantization, "SHORT_SIDE", 192)


@pytest.mark.usefixtures("few_pixels")
def test_nst_export_takes_a_run_and_puts_a_float_model_beside_the_other(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for more, name in (([], "pic.onnx"), (["--float-nchw"], "pic.float.onnx"), (["--int8"], "pic.int8.onnx")):
        assert nst_export(monkeypatch, capsys, str(small), *more) == (0, f"{name}\n")
    assert float(metadata_of(Path("pic.int8.onnx"))["int8_psnr"]) > 30
    code, told = nst_export(monkeypatch, capsys, str(small))
    assert (code, told.count("\n"), "pic.onnx exists already; --overwrite" in told) == (1, 1, True)
    assert nst_export(monkeypatch, capsys, str(small), "--overwrite") == (0, "pic.onnx\n")
    inputs = [onnxruntime.InferenceSession(name).get_inputs()[0].type for name in ("pic.onnx", "pic.float.onnx")]
    assert inputs == ["tensor(uint8)", "tensor(float)"]


@pytest.mark.usefixtures("few_pixels")
def test_nst_export_quantises_a_model_too(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(small / "pic.onnx", "mine.onnx")
    assert nst_export(monkeypatch, capsys, "--int8", "mine.onnx") == (0, "mine.int8.onnx\n")
    assert nst_export(monkeypatch, capsys, "--int8", "starry_night", "-o", "s.onnx") == (0, "s.onnx\n")
    code, told = nst_export(monkeypatch, capsys, "--int8", "mine.int8.onnx")
    assert (code != 0, told.count("\n")) == (True, 1)
    assert "in 8-bit integers already" in told
    code, told = nst_export(monkeypatch, capsys, "--int8", "the_scram.onnx")
    assert code != 0
    assert "no model at 'the_scram.onnx'" in told
    assert nst_export(monkeypatch, capsys, "--int8", "--float-nchw", "mine.onnx")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.int8.onnx", "mine.onnx", "s.onnx"]


def test_two_runs_with_one_seed_have_identical_weights_for_any_number_of_workers(small, train):
    draw_picture(Path("pic.jpg"))
    assert OmegaConf.load(small / "config.yaml").data.num_workers == 0
    assert train(*CUSTOM, *NARROW, "data.num_workers=1", "output=w1").code == 0
    assert_same_weights(Path("w1"), small)


@pytest.mark.parametrize(
    ("precision", "contrast"),
    [
        ("32-true", "false"),
        pytest.param("bf16-mixed", "false", marks=pytest.mark.slow),  # slow on processors without bf16
        pytest.param("bf16-mixed", "true", marks=pytest.mark.slow),
    ],
)
def test_two_runs_with_one_seed_have_identical_weights(precision, contrast, train):
    options = [*NARROW, f"network.contrast={contrast}", f"trainer.precision={precision}"]
    for name in ("first", "second"):
        assert train("style=starry_night", *options, "style.size=512", f"output={name}").code == 0
    assert_same_weights(Path("first"), Path("second"))


def test_another_seed_has_other_weights(small, train):
    draw_picture(Path("pic.jpg"))
    assert OmegaConf.load(small / "config.yaml").seed == 0
    assert train(*CUSTOM, *NARROW, "seed=1", "output=seed 1").code == 0
    first, second = network_weights(small), network_weights(Path("seed 1"))
    for name in first:
        if first[name].ndim == 4:
            both = torch.stack([first[name].flatten(), second[name].flatten()])
            assert both.corrcoef()[0, 1].abs() < 0.5


@pytest.mark.parametrize("other", ["network=tiny", "init_from=null"])
def test_another_network_or_null_starts_from_nothing(other, train):
    draw_picture(Path("pic.jpg"))
    assert train(*CUSTOM, *SMOKE, "trainer.max_steps=1", other, "output=run").code == 0
    assert OmegaConf.load("run/config.yaml").init_from is None


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_a_picture_of_any_name_reaches_the_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config("train", ["style=custom", f"style.image={name}"])
    assert cfg.style.image == str(tmp_path / name)
    assert OmegaConf.to_container(cfg, resolve=True)["style"]["image"] == str(tmp_path / name)


@pytest.mark.parametrize("key", ["style.image", "style.targets", "data.validation", "output", "resume"])
def test_home_is_expanded_in_every_path(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cfg = load_config("train", ["style=custom", f"{key}=~/x (1).jpg"])
    assert OmegaConf.select(cfg, key) == str(tmp_path / "home" / "x (1).jpg")


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a picture and a folder of photographs in a home folder, all with awkward names, two of them broken."""
    home, cwd = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("awkward")
    draw_picture(home / """it's "é,=[1].jpg""")
    for i in range(3):
        draw_picture(home / "my photos" / "deep er" / f"{i} [x].png", seed=i)
    (home / "my photos" / "[bold] empty.jpg").touch()
    (home / "my photos" / "text.png").write_text("no picture")
    Image.fromarray(skimage.data.chelsea()).save(cwd / "photo.jpg")
    arguments = ["style=custom", """style.image=~/it's "é,=[1].jpg""", "data=folder", "data.root=~/my photos", *NARROW]
    return run_in_process(cwd, *arguments, HOME=str(home))


def test_awkward_names_train_and_give_a_command_that_works_as_it_stands(awkward):
    model, command = awkward.result.out.splitlines()[-2:]
    assert Path(model).name == """it's "é,=[1].onnx"""
    done = shell(command, awkward.cwd)
    assert done.code == 0, done.err
    assert (awkward.cwd / done.out.splitlines()[-1]).is_file()


def test_pictures_that_cannot_be_read_are_named_at_the_end(awkward):
    lines = awkward.result.err.splitlines()
    assert "2 pictures" in lines[-3]
    assert "[bold] empty.jpg" in lines[-2]
    assert "text.png" in lines[-1]
    summary = json.loads((awkward.folder / "summary.json").read_text())
    assert sorted(Path(p).name for p in summary["skipped_pictures"]) == ["[bold] empty.jpg", "text.png"]


def test_a_picture_called_like_an_interpolation_trains_under_its_own_name(train):
    picture = draw_picture(Path("a${b}.jpg").resolve())
    assert train("style=custom", f"style.image={picture}", *NARROW, "output=run ${c}").code == 0
    assert metadata_of(Path("run ${c}", "a${b}.onnx"))["title"] == "a${b}"
    assert yaml.safe_load(Path("run ${c}", "config.yaml").read_text())["style"]["image"] == str(picture)


def test_a_style_may_be_called_by_a_number(train):
    draw_picture(Path("pic.jpg"))
    assert train(*CUSTOM, *NARROW, "style.name=1984").code == 0
    (model,) = Path("runs", "train", "1984").glob("*/1984.onnx")
    assert metadata_of(model)["style"] == "1984"


def test_resuming_a_finished_run_changes_nothing(small, train):
    draw_picture(Path("pic.jpg"))
    checkpoint = small / "checkpoints" / "last.ckpt"
    assert train(*CUSTOM, *NARROW, "output=more", f"resume={checkpoint}").code == 0
    assert_same_weights(Path("more"), small)


def test_a_run_lies_where_it_is_told_whatever_the_shell_would_make_of_the_name(train, tmp_path):
    draw_picture(Path("$HOME.jpg"))
    done = train("style=custom", "style.image=$HOME.jpg", *NARROW, "output=run $USER ~")
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {"$HOME.jpg", "run $USER ~"}
    assert list((tmp_path / "run $USER ~" / "tensorboard").glob("events*"))


def test_another_picture_under_a_styles_name_is_said(train):
    draw_picture(Path("pic.jpg"))
    done = train("style=starry_night", "style.image=pic.jpg", *NARROW)
    assert done.code == 0
    assert "not the one of style=starry_night" in done.err


def test_a_warm_start_is_the_other_network(small, train):
    checkpoint = small / "checkpoints" / "last.ckpt"
    draw_picture(Path("pic.jpg"), seed=1)
    still = ["trainer.max_steps=1", "trainer.learning_rate=0"]
    assert train(*CUSTOM, *NARROW, *still, "output=warm", f"init_from={checkpoint}").code == 0
    assert_same_weights(Path("warm"), small)
    assert train(*CUSTOM, *NARROW, *still, "output=cold").code == 0
    with pytest.raises(AssertionError):
        assert_same_weights(Path("cold"), small)


def test_a_warm_start_from_a_model_is_the_network_that_it_was_exported_from(small, train):
    draw_picture(Path("pic.jpg"), seed=1)
    still = ["trainer.max_steps=1", "trainer.learning_rate=0"]
    (model,) = small.glob("*.onnx")
    assert train(*CUSTOM, *NARROW, *still, "output=warm", f"init_from={model}").code == 0
    weights, expected = network_weights(Path("warm")), network_weights(small)
    state = read_checkpoint(small / "checkpoints" / "last.ckpt")["state_dict"]
    matrix, offset = (
        part.float() for part in colour_map(*(state[f"style_{kind}_colours"][0] for kind in ("target", "mean")))
    )
    (last,) = (
        name.removesuffix(".weight") for name, tensor in expected.items() if len(tensor) == 3 and tensor.ndim == 4
    )
    expected[f"{last}.weight"] = (matrix @ expected[f"{last}.weight"].flatten(1)).view_as(expected[f"{last}.weight"])
    expected[f"{last}.bias"] = matrix @ expected[f"{last}.bias"] + offset
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "said"), [("gallery", []), ("great_wave", ["init_from=great_wave"])])
def test_a_network_starts_from_the_gallerys_mean_or_the_shipped_model_that_is_named(name, said, train):
    """Its very picture, but for rounding to bytes: one step that learns nothing changes nothing."""
    draw_picture(Path("pic.jpg"))
    still = ["trainer.max_steps=1", "trainer.learning_rate=0", "data.size=64", "data.batch_size=1"]
    still.append("loss.sliced_layers={}")  # colours are not compared, so the network is not recoloured
    assert train(*CUSTOM, *still, "output=warm", *said).code == 0
    pixels = np.random.default_rng(0).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    network = import_network(shipped_models()[name]).eval()
    mean = network.as_learned().mean(0, keepdim=True)
    with torch.no_grad():
        start = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, mean)
    expected = (start.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(Stylizer("warm/pic.onnx").run_once(pixels).astype(int) - expected).max() <= 1


def test_a_model_carries_its_underpainting(train):
    draw_picture(Path("pic.jpg"))
    assert train(*CUSTOM, *NARROW, "trainer.max_steps=1", "style.underpainting=0.3", "output=layered").code == 0
    assert Stylizer("layered/pic.onnx").underpainting == 0.3


def test_a_warm_start_needs_its_file_no_more_once_there_is_a_checkpoint(small, train):
    draw_picture(Path("pic.jpg"))
    shutil.copy(small / "checkpoints" / "last.ckpt", "other.ckpt")
    assert train(*CUSTOM, *NARROW, "output=warm", "init_from=other.ckpt").code == 0
    Path("other.ckpt").unlink()
    (Path("warm") / "summary.json").unlink()
    assert train(*CUSTOM, *NARROW, "output=warm", "resume=last").code == 0


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run of the console script in a process group of its own that has written its first checkpoint."""
    draw_picture(tmp_path / "pic.jpg")
    options = [*NARROW, "data.num_workers=1", "trainer.max_steps=1000000", "output=endless"]
    command, pipes = [BIN / "train", *CUSTOM, *options], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, start_new_session=True, **pipes) as process:
        while process.poll() is None and not (tmp_path / "endless" / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.1)
        yield process
        process.kill()


@pytest.mark.skipif(os.name == "nt", reason="a signal to a process is POSIX")
@pytest.mark.parametrize(
    ("send", "number"),
    [
        ("kill", signal.SIGTERM),  # by a supervisor
        pytest.param("killpg", signal.SIGINT, marks=pytest.mark.slow),  # by Ctrl-C in a terminal
        pytest.param("killpg", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("kill", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_a_checkpoint_and_says_how_to_go_on(send, number, endless, tmp_path):
    getattr(os, send)(endless.pid, number)
    out, err = endless.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):  # the worker, too, has ended
        os.killpg(endless.pid, 0)
    assert (endless.returncode, out) == (1, "")
    started, *progress, stopped = err.splitlines()
    assert started.startswith("style pic at 64 px")
    assert all(line.startswith("training: step ") for line in progress), err  # on a busy machine
    (path,) = re.findall(r"resume=(\S+)", stopped)
    ours = torch.load(tmp_path / shlex.split(path)[0], weights_only=True)["nst_fast"]
    assert stopped.startswith(f"train: stopped at step {ours['step']};")
    assert ours["step"] == ours["batches_seen"] >= 2


def assert_one_line(result: Result, *words: str) -> None:
    """Check that a command failed as documented: one line on stderr with these words, and nothing else."""
    assert result.code != 0
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("train: ")
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0]


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown style": (["style=stary_night"], ["stary_night", "did you mean starry_night?"]),
    "no style": ([], ["style is missing", "starry_night", "custom"]),
    "custom without picture": (["style=custom"], ["style.image=FILE"]),
    "missing picture": (["style=custom", "style.image=no where.jpg"], ["no picture", "no where.jpg"]),
    "broken picture": (["style=custom", "style.image=broken.jpg"], ["broken.jpg", "cannot be read"]),
    "empty folder": ([*CUSTOM, "data=folder", "data.root=empty"], ["no pictures", "empty"]),
    "missing folder": ([*CUSTOM, "data=folder", "data.root=nowhere"], ["no folder", "nowhere"]),
    "folder not given": ([*CUSTOM, "data=folder"], ["data.root is missing"]),
    "folder of broken pictures": ([*CUSTOM, "data=folder", "data.root=all broken"], ["none of the 1", "all broken"]),
    "missing validation folder": ([*CUSTOM, "data.validation=nowhere"], ["no folder", "nowhere"]),
    "text for weights": ([*CUSTOM, "loss_network=vgg19", "loss_network.weights=text.pth"], ["text.pth"]),
    "nothing for weights": ([*CUSTOM, "loss_network=vgg19", "loss_network.weights=empty.pth"], ["empty.pth"]),
    "weights of wrong shapes": (
        [*CUSTOM, "loss_network=vgg19", "loss_network.weights=shapes.pth"],
        ["shapes.pth", "(2, 2)", "(64, 3, 3, 3)"],
    ),
    "missing weights": (
        [*CUSTOM, "loss_network=vgg16_slim", "loss_network.weights=none.safetensors"],
        ["none.safetensors"],
    ),
    "teachers not given": ([*CUSTOM, "loss_network=teachers"], ["loss_network.deep is missing"]),
    "negative steps": ([*CUSTOM, "trainer.max_steps=-5"], ["trainer.max_steps", "-5"]),
    "steps in words": ([*CUSTOM, "trainer.max_steps=abc"], ["trainer.max_steps", "abc"]),
    "half a step": ([*CUSTOM, "trainer.max_steps=2.5"], ["trainer.max_steps", "2.5"]),
    "odd margin": ([*CUSTOM, "network.margin=6"], ["network.margin is 6", "a multiple of 4 from 0 to 24"]),
    "style of no size": ([*CUSTOM, "style.size=0"], ["style.size", "0"]),
    "underpainting of more than all": ([*CUSTOM, "style.underpainting=2"], ["style.underpainting", "2"]),
    "empty batches": ([*CUSTOM, "data.batch_size=0"], ["data.batch_size", "0"]),
    "weight that is no number": ([*CUSTOM, "loss.style_weight=nan"], ["loss.style_weight", "nan"]),
    "share in words": ([*CUSTOM, "data.dead_leaves=abc"], ["data.dead_leaves", "abc"]),
    "layers in words": ([*CUSTOM, "loss.style_layers=abc"], ["loss.style_layers", "abc"]),
    "no such sliced layer": ([*CUSTOM, "loss.sliced_layers={rbg: 1}"], ["no layer 'rbg'", "rgb"]),
    "unknown option": ([*CUSTOM, "trainer.max_stepz=3"], ["trainer.max_stepz", "did you mean trainer.max_steps?"]),
    "another command's experiment": ([*CUSTOM, "experiment=gatys2016"], ["gatys2016", "start"]),
    "unknown path option": ([*CUSTOM, "style.imag=pic.jpg"], ["style.imag", "did you mean style.image?"]),
    "unknown network": ([*CUSTOM, "network.name=johnsen"], ["johnsen", "did you mean johnson?"]),
    "unknown loss": ([*CUSTOM, "loss.name=gaty"], ["gaty", "gatys"]),
    "unknown data": ([*CUSTOM, "data.name=bundle"], ["bundle", "bundled"]),
    "unknown precision": ([*CUSTOM, "trainer.precision=foo"], ["trainer.precision", "foo"]),
    "unknown strategy": ([*CUSTOM, "trainer.strategy=foo"], ["foo"]),
    "unknown accelerator": ([*CUSTOM, "trainer.accelerator=foo"], ["trainer.accelerator", "foo"]),
    "layer that is a number": ([*CUSTOM, "loss.content_layers={1: 1}"], ["loss.content_layers", "1"]),
    "gradients cut to nothing": ([*CUSTOM, "trainer.gradient_clip=0"], ["trainer.gradient_clip is 0"]),
    "style called like a folder": ([*CUSTOM, "style.name=.."], ["style.name", "without slashes"]),
    "style of endless name": ([*CUSTOM, f"style.name={'x' * 250}"], ["style.name", "200 bytes"]),
    "devices in words": ([*CUSTOM, "trainer.devices=abc"], ["devices"]),
    "seed too large": ([*CUSTOM, f"seed={2**70}"], ["seed", str(2**70)]),
    "no loss network": ([*CUSTOM, "loss_network=null"], ["loss_network"]),
    "no data": ([*CUSTOM, "data=null"], ["data"]),
    "argument without =": (["starry_night"], ["'starry_night'", "key=value"]),
    "option with dashes": ([*CUSTOM, "--steps=3"], ["--steps"]),
    "value that Hydra cannot read": ([*CUSTOM, "loss.style_layers={relu1_1"], ["loss.style_layers"]),
    "place below a file": ([*CUSTOM, "output=pic.jpg/run"], ["cannot write", "output=FOLDER"]),
    "layer that the loss network lacks": (
        [*CUSTOM, "loss.content_layers={relu5_4: 1}", "loss_network=vgg16_slim"],
        ["vgg16_slim has no layer", "relu5_4"],
    ),
    "missing checkpoint": ([*CUSTOM, "resume=none.ckpt"], ["no checkpoint", "none.ckpt"]),
    "text for a checkpoint": ([*CUSTOM, "resume=text.pth"], ["text.pth"]),
    "no network to start from": ([*CUSTOM, "init_from=none.ckpt"], ["no checkpoint", "none.ckpt"]),
    "no model to start from": ([*CUSTOM, "init_from=none.onnx"], ["no model", "none.onnx"]),
    "text for a model to start from": ([*CUSTOM, "init_from=text.onnx"], ["text.onnx"]),
    "another network's model to start from": (
        [*CUSTOM, "network=johnson", "init_from=starry_night"],
        ["init_from=starry_night", "fast, width 48", "must agree"],
    ),
    "misspelt content distance": (
        [*CUSTOM, "loss=balanced", "style.content_distance=mediun"],
        ["style.content_distance", "did you mean medium?", "strong", "subtle"],
    ),
    "unknown grain": ([*CUSTOM, "network.grain=noise"], ["network.grain is 'noise'", "True"]),
    "network without grain to start from": (
        [*CUSTOM, "network.grain=true", "init_from=finished.ckpt"],
        ["init_from=", "blocks 4;", "must agree"],
    ),
    "network of another size to start from": (
        [*CUSTOM, "network.width=8", "init_from=finished.ckpt"],
        ["init_from=", "width 48", "must agree"],
    ),
    "checkpoint of another project": ([*CUSTOM, "resume=other.ckpt"], ["other.ckpt", "another project"]),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("option", ["trainer.accelerator=gpu", "trainer.accelerator=mps", "trainer.precision=16-mixed"])
def test_what_needs_a_gpu_is_refused_without_one(option, train):
    draw_picture(Path("pic.jpg"))
    done = train(*CUSTOM, *SMOKE, option)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "GPU" in done.err
    assert not Path("runs").exists()


def test_processes_of_a_run_take_the_loss_network_that_the_first_one_chose(monkeypatch):
    """The first may reach VGG-19, and a later one not."""
    answers = iter([("vgg19", ""), ("vgg16_slim", "")])
    choose = "nst_fast.commands.perceptual_loss.choose_loss_network"
    monkeypatch.setattr(choose, lambda name, on_gpu, reference: next(answers) if name == "auto" else (name, ""))
    monkeypatch.setattr(train_command, "choose_engine", lambda cfg: True)
    monkeypatch.delenv(train_command.CHOSEN, raising=False)
    names = []
    for rank, processes in ((0, 2), (1, 2), (0, 1)):
        monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
        cfg = load_config("train", ["style=starry_night", f"trainer.devices={processes}"])
        train_command.resolve(cfg, Console(quiet=True))
        names.append(cfg.loss_network.name)
    os.environ.pop(train_command.CHOSEN)
    assert names == ["vgg19", "vgg19", "vgg16_slim"]


def test_a_run_may_lie_where_a_path_looks_like_an_address_and_have_any_number_of_steps(train):
    """Lightning takes a::b for an address, and torch cannot divide one cycle of ten steps."""
    draw_picture(Path("pic.jpg"))
    done = train(*CUSTOM, *NARROW, "output=a::b", "trainer.max_steps=9", "trainer.validate_every=9")
    assert done.code == 0, done.err
    assert Path("a::b", "pic.onnx").is_file()
    again = train(*CUSTOM, "resume=last", "output=a::b")
    assert (again.code, "is finished" in again.err) == (0, True)


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_run(arguments, words, train, finished):
    draw_picture(Path("pic.jpg"))
    shutil.copy(finished.folder / "checkpoints" / "last.ckpt", "finished.ckpt")
    Path("broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    Path("text.pth").write_text("hello\n")
    Path("text.onnx").write_text("hello\n")
    Path("empty.pth").touch()
    torch.save({"features.0.weight": torch.zeros(2, 2)}, "shapes.pth")
    torch.save({"state_dict": {}, "epoch": 3}, "other.ckpt")
    Path("empty").mkdir()
    Path("all broken").mkdir()
    Path("all broken", "text.png").write_text("no picture")
    before = files_below(Path())
    assert_one_line(train(*SMOKE, *arguments), *words)
    assert files_below(Path()) == before


@pytest.mark.parametrize("change", [["network.width=8"], ["network=johnson"], ["trainer.max_steps=8"]], ids=str)
def test_a_checkpoint_of_a_run_with_other_options_is_refused_in_one_line(change, finished, train):
    draw_picture(Path("pic.jpg"))
    checkpoint = finished.folder / "checkpoints" / "last.ckpt"
    result = train(*CUSTOM, *SMOKE, f"resume={checkpoint}", "output=more", *change)
    assert_one_line(result, change[0].partition("=")[0])
    assert not Path("more").exists()


def test_the_console_script_fails_in_one_line_too(tmp_path):
    """Before it loads Lightning."""
    arguments, words = MISTAKES["unknown option"]
    assert_one_line(shell([str(BIN / "train"), *SMOKE, *arguments], tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_console_script_fails_in_one_line_once_lightning_is_loaded(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    arguments, words = MISTAKES["broken picture"]
    assert_one_line(shell([str(BIN / "train"), *SMOKE, *arguments], tmp_path), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.jpg"]


def test_cfg_prints_the_config_and_trains_nothing(train, tmp_path):
    result = train("style=great_wave", "--cfg", "trainer.max_steps=7")
    config: dict[str, Any] = yaml.safe_load(result.out)
    assert (result.code, result.err) == (0, "")
    assert (config["style"]["artist"], config["trainer"]["max_steps"]) == ("Katsushika Hokusai", 7)
    assert files_below(tmp_path) == []


def test_help_names_only_options_that_exist_and_examples_that_can_be_read(train):
    usage = train("--help").out
    cfg = load_config("train", ["style=gallery", "style.images=x", "data=folder", "data.root=x"])
    options = re.findall(r"^  ([a-z_.]+)=", usage, re.MULTILINE)
    assert len(options) > 10
    for option in options:
        group, _, key = option.rpartition(".")
        assert key in (OmegaConf.select(cfg, group) if group else cfg) or (ROOT / "configs" / option).is_dir()
    examples = [line.removeprefix("  train ") for line in usage.splitlines() if line.startswith("  train ")]
    assert len(examples) == 4
    for example in examples:
        load_config("train", shlex.split(example))
