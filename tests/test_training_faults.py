"""What may go wrong while training: full disks, bad pictures, steps without gradients."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

from nst_fast.training.checkpoints import read_checkpoint
from nst_fast.training.onnx_export import import_network
from nst_fast.training.style_transfer import MOST_SKIPPED_IN_A_ROW, StyleTransfer

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

STYLE = "style=starry_night"
SMALL = ["network.width=8", "network.blocks=1", "data.size=32", "data.batch_size=2", "data.num_workers=0"]
MACHINE = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
STEPS = 6
FIRST = [*SMALL, *MACHINE, f"trainer.max_steps={STEPS}", "trainer.validate_every=2"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `train` in a process of its own, without coverage: a disk that is full is full for its file too."""
    command = [sys.executable, "-m", "nst_fast.commands.train", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_one_line(result: Result, *words: str) -> None:
    """Check that a command failed in one line with these words, and nothing else."""
    assert result.code != 0
    assert result.out == ""
    (line,) = [line for line in result.err.splitlines() if line.startswith("train: ")]
    assert "Traceback" not in result.err
    for word in words:
        assert word in line


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_a_full_disk_ends_a_run_in_one_line_and_leaves_the_last_checkpoint_whole(tmp_path):
    """A limit on the size of files stands for the disk: what is written past it fails half-way."""
    import resource  # not on Windows

    options = [*FIRST, "trainer.max_steps=100000", "output=run"]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with start(tmp_path, STYLE, *options) as process:
        while process.poll() is None and not last.exists():
            time.sleep(0.05)
        log = next((tmp_path / "run" / "tensorboard").glob("events*"))
        assert log.stat().st_size < last.stat().st_size
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (last.stat().st_size // 2,) * 2)
        out, err = process.communicate(timeout=120)
    assert_one_line(Result(process.returncode, out, err), "cannot write")
    assert read_checkpoint(last)["nst_fast"]["step"] > 0
    assert not [p for p in last.parent.iterdir() if p.suffix != ".ckpt"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder where even root cannot write is Linux's")
def test_a_place_that_cannot_be_written_is_one_line(train):
    assert_one_line(train(STYLE, *FIRST, "output=/proc/nst_fast/run"), "cannot write", "output=FOLDER")


def make_pictures(folder: Path, count: int) -> set[str]:
    """Write a folder of photographs, a tenth of them bad, and return the names of those that nobody can read."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for number in range(count):
        noise.rotate(number).save(folder / f"{number:03}.jpg")
    whole = (folder / "000.jpg").read_bytes()
    unreadable = set()
    for number in range(0, count, 10):
        path, kind = folder / f"{number:03}.jpg", number // 10 % 9
        path.unlink()
        if kind in (0, 1, 2, 3):
            path.write_bytes({0: whole[: len(whole) // 2], 1: b"", 2: b"no picture\n", 3: whole[:20]}[kind])
            unreadable.add(path.name)
        elif kind == 4:
            Image.new("1", (20_000, 10_000)).save(path.with_suffix(".png"))  # more pixels than Pillow opens
            unreadable.add(path.with_suffix(".png").name)
        elif kind == 5:
            Image.new("RGB", (1, 1), "red").save(path.with_suffix(".png"))
        elif kind == 6:
            Image.new("CMYK", (50, 40), (10, 200, 30, 0)).save(path)
        elif kind == 7:
            Image.fromarray(rng.integers(0, 2**16, (40, 50), dtype=np.uint16)).save(path.with_suffix(".png"))
        else:
            frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "green", "blue")]
            frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:])
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return unreadable


def test_bad_pictures_are_counted_and_named_and_the_run_ends(train, tmp_path):
    unreadable = make_pictures(tmp_path / "pictures", 100)
    result = train(STYLE, *FIRST, "data=folder", "data.root=pictures", "data.num_workers=0", "output=run")
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert f"{len(unreadable)} pictures cannot be read" in result.err
    skipped = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_pictures"]
    assert {Path(p).name for p in skipped} == unreadable
    for name in unreadable:
        assert name in result.err


def test_pictures_that_vanish_while_training_change_nothing_and_skipped_ones_are_remembered(train, tmp_path):
    unreadable = make_pictures(tmp_path / "pictures", 40)
    whole_step = StyleTransfer.training_step

    def vanishing(self: StyleTransfer, batch: Any, index: int) -> None:
        whole_step(self, batch, index)
        if self.batches_seen == 3:
            (tmp_path / "pictures").rename(tmp_path / "moved")
            os.kill(os.getpid(), signal.SIGINT)

    options = [STYLE, *FIRST, "data=folder", "data.root=pictures", "data.num_workers=0", "output=run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StyleTransfer, "training_step", vanishing)
        assert_one_line(train(*options), "stopped at step 3")
    content = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    assert_one_line(train(STYLE, "resume=last", "output=run"), "no folder", "pictures")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == content
    for name in unreadable:  # by now somebody has tidied up
        (tmp_path / "moved" / name).unlink()
    assert train(STYLE, "resume=last", "output=run", "data.root=moved").code == 0
    skipped = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_pictures"]
    assert {Path(p).name for p in skipped} == unreadable


def inject(patch: pytest.MonkeyPatch, batches: range) -> None:
    """Make the loss of these batches NaN."""
    whole = StyleTransfer.losses

    def losses(self: StyleTransfer, *given: Any) -> dict[str, Any]:
        terms = whole(self, *given)
        if self.training and self.batches_seen in batches:
            terms["total"] = terms["total"] * float("nan")
        return terms

    patch.setattr(StyleTransfer, "losses", losses)


def test_a_loss_that_is_not_finite_is_skipped_counted_and_told(train, tmp_path, monkeypatch):
    inject(monkeypatch, range(3, 5))
    result = train(STYLE, *FIRST, "output=run")
    assert result.code == 0
    assert "2 steps had no finite gradient and were skipped" in result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["skipped_steps"]) == (STEPS, 2)


def test_skipped_steps_are_counted_over_all_sessions(train, tmp_path, monkeypatch):
    inject(monkeypatch, range(1, 2))
    whole_step = StyleTransfer.training_step

    def interrupted(self: StyleTransfer, batch: Any, index: int) -> None:
        whole_step(self, batch, index)
        if self.batches_seen == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StyleTransfer, "training_step", interrupted)
        assert_one_line(train(STYLE, *FIRST, "output=run"), "stopped at step 3")
    assert "1 steps" in train(STYLE, "resume=last", "output=run").err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_steps"] == 1


def test_an_interrupt_after_the_last_step_says_how_to_go_on(train, tmp_path):
    whole_step = StyleTransfer.validation_step

    def interrupted(self: StyleTransfer, *given: Any) -> None:
        whole_step(self, *given)
        os.kill(os.getpid(), signal.SIGINT)

    options = [STYLE, *FIRST, "trainer.validate_every=1000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StyleTransfer, "validation_step", interrupted)
        assert_one_line(
            train(*options, "output=run"), f"stopped at step {STEPS}; go on with resume=", "run/checkpoints"
        )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert train("resume=run/checkpoints/last.ckpt").code == 0
    assert train(*options, "output=whole").code == 0
    again, whole = (import_network(tmp_path / run / "starry_night.onnx").state_dict() for run in ("run", "whole"))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_too_many_in_a_row_stop_the_run_with_the_cause(train, tmp_path, monkeypatch):
    inject(monkeypatch, range(3, 1000))
    result = train(STYLE, *FIRST, "trainer.max_steps=1000", "output=run")
    stopped = 2 * -(-(3 + MOST_SKIPPED_IN_A_ROW) // 2)  # the log looks at every second step, for it validates as often
    assert_one_line(result, f"{stopped - 3} steps in a row", f"at step {stopped}", "trainer.learning_rate")
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["nst_fast"]["step"] == stopped - 2
    assert all(torch.isfinite(weight).all() for weight in last["state_dict"].values())
