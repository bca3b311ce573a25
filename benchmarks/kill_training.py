"""Kill `train` at seeded random moments and go on with resume=last: python benchmarks/kill_training.py

SIGKILL, SIGTERM and SIGINT, while it starts, while it trains and while it writes a checkpoint, with and without data
workers. Each run is killed up to three times, then left to finish. Its weights, Adam's memory, its validation losses
and its logged losses must equal those of a run that nobody touched, bit for bit. Exit code 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nst_fast.training.onnx_export import source_commit

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells what it purges

COMMAND = [sys.executable, "-m", "nst_fast.commands.train", "style=starry_night"]
NETWORK = ["network.width=8", "network.blocks=1", "data.size=64", "data.batch_size=2"]
MACHINE = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("starting", "training", "writing")
KILLS_A_RUN = 3
UNFINISHED = Path("checkpoints", ".last.ckpt.unfinished")


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """Start `train` in a session of its own, as a terminal does."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, arguments: list[str]) -> None:
    """Run `train` to its end."""
    process = start(folder, arguments)
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"train {' '.join(arguments)} failed:\n{err}")


def run_folder(folder: Path) -> Path | None:
    """Return the folder of the one run in a working folder, once its config is recorded."""
    return next((path.parent for path in folder.glob("runs/train/starry_night/*/config.yaml")), None)


def changed(path: Path | None) -> int:
    """Return when a file was written, 0 where there is none."""
    try:
        return path.stat().st_mtime_ns if path else 0
    except OSError:
        return 0


def wait_until_training(folder: Path, process: subprocess.Popen[str], before: int) -> None:
    """Return when the config has been recorded anew, the last thing before training, or the process has ended."""
    while process.poll() is None:
        run = run_folder(folder)
        if run and changed(run / "config.yaml") != before:
            return
        time.sleep(0.01)


def kill(folder: Path, arguments: list[str], number: signal.Signals, moment: str, share: float, times: Any) -> Any:
    """Start `train`, send it a signal at a moment, and return what came of it; None where it finished before."""
    run = run_folder(folder)
    before, left = (changed(run / name) if run else 0 for name in ("config.yaml", UNFINISHED))
    process = start(folder, arguments)
    if moment == "starting":
        time.sleep(share * times["starting"])
    else:
        wait_until_training(folder, process, before)
        time.sleep(share * times["training"])
        run = run_folder(folder)
        unfinished = run / UNFINISHED if run else None
        while moment == "writing" and process.poll() is None and changed(unfinished) in (0, left):
            pass  # a write takes milliseconds
    if process.poll() is None:
        # A terminal sends Ctrl-C to the data workers too.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=600)
    if process.returncode == 0:
        return None
    run = run_folder(folder)
    return {
        "signal": number.name,
        "moment": moment,
        "exit_code": process.returncode,
        "said": err.strip().splitlines()[-1:] if number != signal.SIGKILL else [],
        "traceback": "Traceback" in err,
        "recorded": run is not None,
        "checkpoints": sorted(p.name for p in run.glob("checkpoints/*.ckpt")) if run else [],
        "write_cut_short": run is not None and changed(run / UNFINISHED) not in (0, left),
    }


def outcome(folder: Path) -> dict[str, Any]:
    """Return everything that must not depend on having been killed."""
    run = run_folder(folder)
    if run is None:
        raise SystemExit(f"no run in {folder}")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "images_per_second"]
    return {
        "weights": checkpoint["state_dict"],
        "adam": checkpoint["optimizer_states"][0]["state"],
        "validation_losses": json.loads((run / "summary.json").read_text())["validation_losses"],
        "log": {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags},
    }


def equal(first: Any, second: Any) -> bool:
    """Return whether nested containers are equal, tensors bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    first = [*NETWORK, *MACHINE, f"trainer.max_steps={options.steps}", "trainer.validate_every=5"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        references, times = [], {}
        for workers in (0, 1):
            folder = root / f"untouched {workers}"
            folder.mkdir()
            process = start(folder, [*first, f"data.num_workers={workers}"])
            began = time.monotonic()
            wait_until_training(folder, process, 0)
            training = time.monotonic()
            process.communicate()
            if process.returncode:
                raise SystemExit("the run that nobody touches failed")
            times[workers] = {"starting": training - began, "training": time.monotonic() - training}
            references.append(outcome(folder))
        if not equal(*references):
            raise SystemExit("the runs with and without data workers differ")

        def killed_run(number: int) -> dict[str, Any]:
            rng = random.Random(f"{options.seed} {number}")
            folder, workers = root / f"killed {number}", number % 2
            folder.mkdir()
            kills: list[dict[str, Any]] = []
            wanted = min(KILLS_A_RUN, options.kills - number * KILLS_A_RUN)
            misses = 0
            while len(kills) < wanted:
                index = number * KILLS_A_RUN + len(kills)
                arguments = ["resume=last"] if run_folder(folder) else [*first, f"data.num_workers={workers}"]
                # Every signal meets every moment; what is left of training shrinks with every kill.
                shares = {"starting": rng.random(), "training": rng.random() * 0.5, "writing": rng.random() * 0.4}
                moment = MOMENTS[(index + index // 3) % 3]
                one = kill(folder, arguments, SIGNALS[index % 3], moment, shares[moment], times[workers])
                if one is None:  # it had finished: the next try starts a run anew
                    misses += 1
                    folder = root / f"killed {number}, {misses}"
                    folder.mkdir()
                    kills.clear()
                else:
                    kills.append(one)
                    print(f"run {number}: {one['signal']} while {moment}, exit code {one['exit_code']}", flush=True)
            finish(folder, ["resume=last"] if run_folder(folder) else [*first, f"data.num_workers={workers}"])
            got = outcome(folder)
            for tag, points in references[0]["log"].items():  # a run that is asked to stop logs that step too
                steps = {step for step, _ in points}
                got["log"][tag] = [point for point in got["log"].get(tag, []) if point[0] in steps]
            same = {key: equal(got[key], references[0][key]) for key in got}
            print(f"run {number}: {'equal' if all(same.values()) else same}", flush=True)
            return {"data_workers": workers, "kills": kills, "equal": same}

        with ThreadPoolExecutor(options.jobs) as pool:
            runs = list(pool.map(killed_run, range(-(-options.kills // KILLS_A_RUN))))
    kills = [one for run in runs for one in run["kills"]]
    resumed = sum(len(run["kills"]) for run in runs if all(run["equal"].values()))
    results = {
        "kills": len(kills),
        "resumed exactly": resumed,
        "tracebacks": sum(one["traceback"] for one in kills),
        "writes cut short": sum(one["write_cut_short"] for one in kills),
        "runs": runs,
        "conditions": {
            "steps": options.steps,
            "checkpoint every": "5 steps",
            "seed": options.seed,
            "threads": 1,
            "precision": "float32 on the CPU",
            "seconds of an untouched run": times,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "system": platform.platform(),
            "torch": torch.__version__,
            "commit": source_commit(),
            "date": date.today().isoformat(),
        },
    }
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{resumed} of {len(kills)} kills resumed exactly → {options.output}")
    sys.exit(resumed != len(kills))


if __name__ == "__main__":
    main()
