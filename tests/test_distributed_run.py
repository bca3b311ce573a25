"""`train` in two processes, as a user types it: one set of files, one output, one stop, going on."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch

COMMAND = [sys.executable, "-m", "nst_fast.commands.train", "style=starry_night"]
SMALL = ["network.width=8", "network.blocks=1", "data.size=32", "data.batch_size=2", "data.num_workers=0"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"]
STEPS = 160


def assert_one_reports(progress):
    """Check that lines, which there are only on a busy machine, are of one process's progress."""
    matches = [re.match(rf"training: step (\d+) of {STEPS} .* minutes left$", line) for line in progress]
    assert all(matches), progress
    steps = [int(match[1]) for match in matches]
    assert steps == sorted(set(steps))


@pytest.mark.slow  # test_many_processes.py has what they compute
def test_two_processes_stop_together_go_on_and_leave_one_set_of_files(tmp_path):
    run, pipes = tmp_path / "run", {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = [*SMALL, *TWO, f"trainer.max_steps={STEPS}", "trainer.validate_every=20", "output=run"]
    with subprocess.Popen([*COMMAND, *options], cwd=tmp_path, **pipes) as process:
        while process.poll() is None and not (run / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.02)
        process.terminate()  # the first process alone hears of it
        out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "")
    started, *progress, stopped = err.splitlines()
    assert f"{STEPS} steps of 4 on cpu" in started
    assert_one_reports(progress)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["nst_fast"]
    assert 20 <= checkpoint["step"] == checkpoint["batches_seen"] < STEPS
    assert stopped.startswith(f"train: stopped at step {checkpoint['step']};")

    done = subprocess.run([*COMMAND, "resume=last", "output=run"], cwd=tmp_path, timeout=300, **pipes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(run / "starry_night.onnx")
    assert len(done.stdout.splitlines()) == 2
    started, *progress = done.stderr.splitlines()
    assert f"{STEPS} steps of 4 on cpu" in started
    assert_one_reports(progress)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["processes"]) == (STEPS, 2)
    samples = {int(p.stem.removeprefix("step_")) for p in (run / "samples").iterdir()}
    assert samples == set(range(20, STEPS + 1, 20)) | {checkpoint["step"]}
