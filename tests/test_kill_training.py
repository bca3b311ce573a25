"""The short form of benchmarks/kill_training.py: two kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).resolve().parents[1] / "benchmarks" / "kill_training.py"


@pytest.mark.slow  # test_resume.py has the same of one stop in this process
@pytest.mark.skipif(not HARNESS.exists(), reason="the harness is not in the source distribution")
def test_a_run_killed_twice_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    command = [sys.executable, HARNESS, "--kills", "2", "--steps", "40"]
    done = subprocess.run([*command, "--output", tmp_path / "report.json"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["resumed exactly"] == report["kills"] == 2
    assert report["tracebacks"] == 0
