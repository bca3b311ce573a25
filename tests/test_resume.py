"""Going on with a run: which one, from which checkpoint, with which config, to the same end."""

import json
import os
import random
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Result
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nst_fast.commands import train as train_command
from nst_fast.commands.resume import resume_run, take_over_edits
from nst_fast.errors import UserError
from nst_fast.loss.loss_networks import VGG
from nst_fast.training.checkpoints import read_checkpoint
from nst_fast.training.style_transfer import StyleTransfer
from nst_fast.weights import read_torch

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

STYLE = "style=starry_night"
SMALL = ["network.width=8", "network.blocks=1", "data.size=32", "data.batch_size=2", "data.num_workers=0"]
MACHINE = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
STEPS = 6
FIRST = [*SMALL, *MACHINE, "style.content_distance=medium", f"trainer.max_steps={STEPS}", "trainer.validate_every=2"]


def assert_one_line(result: Result, *words: str) -> None:
    """Check that a command failed in one line with these words, and nothing else."""
    assert result.code != 0
    assert result.out == ""
    (line,) = [line for line in result.err.splitlines() if line.startswith("train: ")]
    assert "Traceback" not in result.err
    for word in words:
        assert word in line


@contextmanager
def stopped_by_sigterm(batch: int) -> Iterator[None]:
    """Let training send itself SIGTERM after a batch."""
    whole_step = StyleTransfer.training_step

    def interrupted(self: StyleTransfer, batch_of_images: Any, index: int) -> None:
        whole_step(self, batch_of_images, index)
        if self.batches_seen == batch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StyleTransfer, "training_step", interrupted)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that went through, two stopped half-way and one killed before its first checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train", STYLE, *FIRST, "output=through"])
        with pytest.raises(SystemExit) as end:
            train_command.main()
        assert not end.value.code

        for name, stop in (("half", 5), ("half, validated", 4)):
            with stopped_by_sigterm(stop):
                patch.setattr(sys, "argv", ["train", STYLE, *FIRST, f"output={name}"])
                with pytest.raises(SystemExit) as end:
                    train_command.main()
            assert end.value.code == 1
    (folder / "early").mkdir()
    shutil.copy(folder / "half" / "config.yaml", folder / "early")
    return folder


def copy_run(runs: Path, name: str, target: Path) -> Path:
    shutil.copytree(runs / name, target)
    return target


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_as_if_untouched(run: Path, runs: Path) -> None:
    """Check that a run ended as the one that went through: weights, losses, log."""
    first, second = weights(run), weights(runs / "through")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, runs / "through")]
    for key in ("steps", "validation_losses", "skipped_steps"):
        assert summaries[0][key] == summaries[1][key]


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_sigterm_leaves_a_checkpoint_of_its_step_and_the_one_before(runs):
    steps = []
    for name in ("last", "previous"):
        ours = read_checkpoint(runs / "half" / "checkpoints" / f"{name}.ckpt")["nst_fast"]
        assert ours["step"] == ours["batches_seen"]
        steps.append(ours["step"])
    assert steps == [5, 4]
    assert not (runs / "half" / "summary.json").exists()


def test_resume_last_goes_on_in_the_same_folder_with_the_recorded_config(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "runs" / "train" / "starry_night" / "one")
    config = yaml.safe_load((run / "config.yaml").read_text())
    result = train(STYLE, "resume=last")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == str(Path("runs", "train", "starry_night", "one", "starry_night.onnx"))
    assert_as_if_untouched(run, runs)
    again = yaml.safe_load((run / "config.yaml").read_text())
    assert {**again, "output": None} == {**config, "output": None}


@pytest.mark.parametrize("name", ["half", "half, validated"])
def test_the_log_and_the_seconds_of_a_resumed_run_are_of_all_its_sessions(name, runs, train, tmp_path):
    run = copy_run(runs, name, tmp_path / "run")
    before = read_checkpoint(run / "checkpoints" / "last.ckpt")["nst_fast"]["seconds"]
    assert train(STYLE, "resume=last", "output=run").code == 0
    assert json.loads((run / "summary.json").read_text())["seconds"] > before > 0
    log, untouched = logged(run), logged(runs / "through")
    for tag in set(untouched) - {"images_per_second"}:
        steps = [step for step, _ in log[tag]]
        assert steps == sorted(set(steps))
        assert set(untouched[tag]) <= set(log[tag])


def test_the_newest_run_is_the_one_started_or_resumed_last(runs, train, tmp_path):
    root = tmp_path / "runs" / "train" / "starry_night"
    for age, name in enumerate(("b", "c", "a")):
        copy_run(runs, "through" if name == "c" else "half", root / name)
        os.utime(root / name / "config.yaml", (1e9 - age, 1e9 - age))
    os.utime(root / "c" / "config.yaml")
    result = train(STYLE, "resume=last")
    assert (result.code, Path(result.out.splitlines()[0]).parent.name) == (0, "c")


def test_a_finished_run_says_so_and_names_its_model(runs, train, tmp_path):
    run = copy_run(runs, "through", tmp_path / "run")
    files = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for resume in ("last", str(run / "checkpoints" / "last.ckpt")):
        result = train(STYLE, f"resume={resume}", *(["output=run"] if resume == "last" else []))
        assert result.code == 0
        assert result.out.splitlines()[0] == str(run / "starry_night.onnx")
        assert "is finished" in result.err
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == files


def test_a_run_killed_before_its_first_checkpoint_starts_over_with_its_config(runs, train, tmp_path):
    run = copy_run(runs, "early", tmp_path / "runs" / "train" / "starry_night" / "early")
    result = train(STYLE, "resume=last")
    assert result.code == 0
    assert "starting over" in result.err.splitlines()[0]
    assert_as_if_untouched(run, runs)


@pytest.mark.parametrize("content", ["{", "- 1\n- 2\n", "style: 3\n", "\0"])
def test_a_damaged_config_of_a_run_without_checkpoint_is_one_line(content, train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(content)
    assert_one_line(train(STYLE, "resume=last", "output=run"), "run")


@pytest.mark.parametrize("place", ["checkpoints/last.ckpt", "."])
def test_a_checkpoint_or_run_by_its_path_needs_no_other_option(place, runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "elsewhere")
    assert train(f"resume={run / place}").code == 0
    assert_as_if_untouched(run, runs)


def test_a_checkpoint_resumed_into_another_folder_leaves_its_own_run_alone(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "half")
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert train(f"resume={run / 'checkpoints' / 'last.ckpt'}", "output=fork").code == 0
    assert_as_if_untouched(tmp_path / "fork", runs)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_run_of_a_gpu_that_has_no_checkpoint_yet_starts_over_on_the_cpu_where_told(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("accelerator: cpu", "accelerator: gpu"))
    assert_one_line(train(STYLE, "resume=last", "output=run"), "finds no GPU")
    assert train(STYLE, "resume=last", "output=run", "trainer.accelerator=cpu", *MACHINE).code == 0
    assert_as_if_untouched(run, runs)


def test_what_is_where_may_change_and_is_said(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    result = train(STYLE, "resume=last", "output=run", "data.num_workers=1", *MACHINE)
    assert result.code == 0
    assert result.err.splitlines()[0] == "data.num_workers was 0 and is now 1"
    assert_as_if_untouched(run, runs)


def edit(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert text.count(old) == 1
    (run / "config.yaml").write_text(text.replace(old, new))


def test_an_edited_config_is_heeded_where_it_may_change_and_refused_elsewhere(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    whole = (run / "config.yaml").read_text()
    for old, new, words in (
        ("max_steps: 6", "max_steps: 12", "trainer.max_steps is 12, the run has 6"),
        ("style_weight: ", "style_weight: 1", "loss.style_weight is 1"),
        ("name: starry_night", "name: [", "cannot be read"),
    ):
        edit(run, old, new)
        edited = (run / "config.yaml").read_text()
        for again in (["resume=last", "output=run"], ["resume=run"]):
            assert_one_line(train(STYLE, *again), "config.yaml", words)
        assert (run / "config.yaml").read_text() == edited
        (run / "config.yaml").write_text(whole)
    edit(run, "num_workers: 0", "num_workers: 1")
    result = train(STYLE, "resume=last", "output=run")
    assert result.code == 0
    assert "data.num_workers was 0 and is now 1" in result.err.splitlines()[0]
    assert "num_workers: 1" in (run / "config.yaml").read_text()
    assert_as_if_untouched(run, runs)


def test_an_option_that_came_after_the_checkpoint_is_no_edit(tmp_path):
    """A run of an earlier version, resumed and killed before its next checkpoint, has it in config.yaml alone."""
    path, recorded = tmp_path / "config.yaml", {"trainer": {"max_steps": 3}, "loss": {"style_layers": {"relu1_1": 1.0}}}
    path.write_text(yaml.safe_dump({**recorded, "trainer": {"max_steps": 3, "one_cycle": True}}))
    assert take_over_edits(OmegaConf.create(recorded), path) == []
    path.write_text(yaml.safe_dump({**recorded, "loss": {"style_layers": {"relu1_1": 2.0}}}))
    with pytest.raises(UserError, match=r"has been edited: loss\.style_layers"):
        take_over_edits(OmegaConf.create(recorded), path)


CONTRADICTIONS = {
    "another length": (["trainer.max_steps=9"], ["trainer.max_steps=6", "9"]),
    "a default typed": (["data.size=256"], ["data.size=32", "256"]),
    "a choice": (["network=johnson"], ["network."]),
    "a preset": (["trainer=smoke"], ["trainer.max_steps=6", "4"]),
    "another loss": (["loss=johnson"], ["loss."]),
    "other layers": (["loss.style_layers={relu1_1: 1}"], ["loss.style_layers"]),
    "another style": (["style=the_scream"], ["style."]),
    "another start": (["init_from=the_scream"], ["init_from=None", "the_scream"]),
}


@pytest.mark.parametrize(("arguments", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_an_option_that_contradicts_the_run_is_refused_in_one_line(arguments, words, runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    style = [] if arguments[0].startswith("style=") else [STYLE]
    assert_one_line(train(*style, "resume=last", "output=run", *arguments), *words)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files


def test_nothing_to_resume_is_one_line(train, tmp_path):
    assert_one_line(train(STYLE, "resume=last"), "no run in", "starry_night")
    assert_one_line(train(STYLE, "resume=last", "output=nowhere"), "no run in", "nowhere")
    assert_one_line(train("resume=last"), "style=NAME")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_started_over_another(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert_one_line(train(STYLE, *FIRST, "output=run"), "holds a run already", "resume=last")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
    checkpoint = runs / "half, validated" / "checkpoints" / "last.ckpt"
    assert_one_line(train(f"resume={checkpoint}", "output=run"), "holds a run already")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
    for name in ("config.yaml", "starry_night.onnx"):  # of a run that was killed early, and anybody's
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")
        assert_one_line(train(STYLE, *FIRST, f"output={name}"), "holds a run already")
        assert [p.read_text() for p in (tmp_path / name).iterdir()] == ["mine"]


def test_another_painting_under_the_same_name_is_refused(train, tmp_path):
    for seed in (0, 1):
        blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save("pic.jpg")
        if seed == 0:
            options = ["style=custom", "style.image=pic.jpg", "style.size=64", *FIRST, "output=run"]
            assert train(*options).code == 0
            (tmp_path / "run" / "summary.json").unlink()
    assert_one_line(train("resume=last", "output=run"), "image_sha256")


def test_photographs_that_are_not_those_of_the_beginning_are_said(train, tmp_path):
    (tmp_path / "photographs").mkdir()
    for side in (90, 120):
        Image.new("RGB", (side, 80), (side, 0, 0)).save(f"photographs/{side}.png")
    with stopped_by_sigterm(3):
        assert train(STYLE, "data=folder", "data.root=photographs", *FIRST, "output=run").code == 1
    (tmp_path / "photographs").rename("moved")
    shutil.copytree("run", "other")
    for run, changed in (("run", False), ("other", True)):
        if changed:
            (tmp_path / "moved" / "90.png").unlink()
        result = train("resume=last", f"output={run}", "data.root=moved")
        assert result.code == 0, result.err
        assert ("not those that the run began with" in result.err) == changed


def test_a_run_whose_choices_need_files_goes_on_without_naming_them(train, tmp_path):
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,)))
    tensors = {k.replace("convolutions.", "conv"): v for k, v in network.state_dict().items()}
    for file in ("shallow", "deep"):
        save_file(tensors, tmp_path / f"{file}.safetensors")
    (tmp_path / "photographs").mkdir()
    for seed in range(3):
        blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(f"photographs/{seed}.png")
    teachers = [
        "loss_network=teachers",
        "loss_network.shallow=shallow.safetensors",
        "loss_network.deep=deep.safetensors",
    ]
    layers = ["loss.content_layers={relu2_1: 1}", "loss.style_layers={relu1_1: 1, relu2_1@2: 1}", "loss=balanced"]
    layers.append("loss.sliced_layers={rgb@2: 0.5, relu2_1: 0.5}")
    painting = [
        "style=custom",
        "style.image=photographs/0.png",
        "style.size=64",
        "data=folder",
        "data.root=photographs",
    ]
    options = [*painting, *teachers, *layers, *SMALL, *MACHINE, f"trainer.max_steps={STEPS}"]
    assert train(*options, "output=through").code == 0
    with stopped_by_sigterm(3):
        assert train(*options, "output=half").code == 1
    shutil.copytree("half", "other")
    whole = weights(tmp_path / "through")
    for folder, again in (("half", ["resume=last", "output=half"]), ("other", ["resume=other/checkpoints/last.ckpt"])):
        result = train(*again)
        assert result.code == 0, result.err
        gone_on = weights(tmp_path / folder)
        assert all(torch.equal(gone_on[k], whole[k]) for k in whole)


def damaged(content: bytes, kind: str) -> bytes:
    if kind == "one bit":
        position = len(content) // 2
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
    return {"truncated": content[: len(content) // 3], "empty": b"", "text": b"hello\n"}[kind]


@pytest.mark.parametrize("kind", ["one bit", "truncated", "empty", "text", "missing"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(kind, runs, tmp_path, monkeypatch, caplog):
    run = copy_run(runs, "half", tmp_path / "run")
    last, previous = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    if kind == "missing":
        last.unlink()
    else:
        last.write_bytes(damaged(last.read_bytes(), kind))
    monkeypatch.chdir(tmp_path)
    assert resume_run([STYLE, "resume=last", "output=run"]).resume == str(previous)
    (told,) = caplog.messages
    assert str(last) in told
    assert str(previous) in told


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_end(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(damaged(last.read_bytes(), "one bit"))
    result = train(STYLE, "resume=last", "output=run")
    assert result.code == 0, result.err
    assert str(last) in result.err.splitlines()[0]
    assert_as_if_untouched(run, runs)
    read_checkpoint(run / "checkpoints" / "previous.ckpt")


def test_two_damaged_checkpoints_are_refused_in_one_line(runs, train, tmp_path):
    run = copy_run(runs, "half", tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(damaged(path.read_bytes(), "truncated"))
    assert_one_line(train(STYLE, "resume=last", "output=run"), "previous.ckpt", "damaged")


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(runs, tmp_path):
    """torch itself does not read the checksums that it writes."""
    path, rng = tmp_path / "flipped.ckpt", random.Random(0)
    content = (runs / "half" / "checkpoints" / "last.ckpt").read_bytes()
    expected = read_checkpoint(runs / "half" / "checkpoints" / "last.ckpt")["state_dict"]
    noticed = 0
    for _ in range(200):
        flipped, position = bytearray(content), rng.randrange(len(content))
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            got = read_checkpoint(path)["state_dict"]
        except UserError as error:
            noticed += "\n" not in str(error)
        else:  # in the padding between two tensors
            assert all(torch.equal(got[k], v) for k, v in expected.items())
    assert noticed > 150


def test_no_flipped_bit_of_an_archives_directory_changes_what_is_read(tmp_path):
    """Every bit of it, in a small file: torch reads whatever was in memory where one marks a tensor as a folder."""
    path, saved = tmp_path / "flipped.ckpt", {"a": torch.rand(3, 5), "b": torch.rand(2, 4)}
    torch.save(saved, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    noticed = 0
    for position in range(directory, len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                got = read_torch(path)
            except UserError:
                noticed += 1
            else:
                assert all(torch.equal(got[name], tensor) for name, tensor in saved.items()), (position, bit)
    assert noticed > 1000
