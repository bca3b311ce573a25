"""`nst-batch` against `stylize`, two actors against one, memory of many rows: python benchmarks/batch.py

- a folder of pictures by `stylize` and by `nst-batch`, whole commands in turns: seconds, and the processor's, which
  other work on the machine changes less;
- one actor of one thread against two on a local Ray cluster, in turns: pictures/s between the first tenth of the
  results and the last, without Ray's start; and, which other work changes less, the actors over the processor's
  seconds that they spend on a picture together;
- peak memory of `nst-batch` for a table of 1,000 rows and of 100,000, of small pictures, and the seconds of the same
  command when nothing is missing;
- what a row costs the driver of a Ray cluster, in the processor's seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import pyarrow
import pyarrow.parquet
import ray
import skimage.data
import torch
from kill_batch import actors_below
from PIL import Image

from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export, source_commit

BATCH = [sys.executable, "-m", "nst_fast.commands.batch"]
STYLIZE = [sys.executable, "-m", "nst_fast.commands.stylize"]
DRIVER_ROWS = (1_000, 9_000)
SECONDS_BETWEEN_LOOKS = 1.0  # each takes some hundredths of a second of a core
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# A command that prints its own peak, kB, and the processor's seconds; getrusage would tell its parent's peak.
MEASURED = """
import sys, time
from pathlib import Path
from nst_fast.commands.batch import batch
batch(sys.argv[1:])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0], time.process_time())
"""


def run(command: list[str]) -> dict[str, float]:
    """Run a command and return its seconds, and the processor's."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": ended - began, "processor_seconds": processor}


def make_photographs(folder: Path, number: int, width: int, height: int) -> None:
    photograph = Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    folder.mkdir()
    for index in range(number):
        photograph.rotate(index % 4).save(folder / f"{index:05}.jpg", quality=92)


def steady_rate(output: Path) -> float:
    """Return results/s between the first tenth and the last, by the times of the files."""
    times = sorted(path.stat().st_mtime for path in output.glob("pictures/*/*"))
    first, last = len(times) // 10, len(times) - 1 - len(times) // 10
    return (last - first) / (times[last] - times[first])


def against_stylize(folder: Path, model: str, number: int, rounds: int) -> dict[str, Any]:
    pictures, out = folder / "pictures", folder / "out"
    make_photographs(pictures, number, 640, 480)
    taken: dict[str, list[dict[str, float]]] = {"stylize": [], "nst-batch": []}
    for _ in range(rounds):
        for name, command in (("stylize", STYLIZE), ("nst-batch", BATCH)):
            taken[name].append(run([*command, "--model", model, str(pictures), "-o", str(out)]))
            shutil.rmtree(out)
            print(name, taken[name][-1], flush=True)
    result: dict[str, Any] = {"all": taken}
    for figure in ("seconds", "processor_seconds"):
        medians = {name: statistics.median(one[figure] for one in runs) for name, runs in taken.items()}
        result[figure] = medians | {"ratio of throughput": medians["stylize"] / medians["nst-batch"]}
        pairs = zip(*taken.values(), strict=True)
        result[figure]["ratio, median of turns"] = statistics.median(a[figure] / b[figure] for a, b in pairs)
    return result


def actors(folder: Path, model: str, rounds: int) -> dict[str, Any]:
    pictures, out = folder / "pictures", folder / "out"
    rates: dict[int, list[float]] = {1: [], 2: []}
    spent: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for number in rates:
            told = ["--model", model, "--threads", "1", "--address", "local", "--actors", str(number)]
            command = [*BATCH, *told, str(pictures), "-o", str(out)]
            process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds: dict[int, float] = {}
            while process.poll() is None:
                seconds |= actors_below(process.pid)
                time.sleep(SECONDS_BETWEEN_LOOKS)
            rates[number].append(steady_rate(out))
            spent[number].append(sum(seconds.values()) / len(list(pictures.iterdir())))
            shutil.rmtree(out)
            print(number, rates[number][-1], spent[number][-1], flush=True)
    medians = {number: statistics.median(rate) for number, rate in rates.items()}
    costs = {number: statistics.median(cost) for number, cost in spent.items()}
    pairs = zip(*rates.values(), strict=True)
    return {
        "pictures_per_second": medians,
        "ratio": medians[2] / medians[1],
        "ratio, median of turns": statistics.median(b / a for a, b in pairs),
        "processor_seconds of a picture": costs,
        "ratio by processor_seconds": 2 * costs[1] / costs[2],
        "all": {"pictures_per_second": rates, "processor_seconds": spent},
    }


def measured(arguments: list[str]) -> dict[str, float]:
    """Run `nst-batch` and return its peak MB and seconds, its own without those of actors."""
    began = time.perf_counter()
    call = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(
        call, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak, processor = done.stdout.split()[-2:]
    seconds = {"seconds": time.perf_counter() - began, "processor_seconds": float(processor)}
    return {"peak_MB": int(peak) * 1024 / 1e6} | seconds


def memory(folder: Path, rows: tuple[int, ...], driver_rows: tuple[int, ...]) -> dict[str, Any]:
    """Return peak MB, for pictures of 16×16 by a small network: rows are what is to count."""
    torch.manual_seed(0)
    model = export(create_network("fast", 8, 1), folder / "small.onnx", {"style": "small"})
    source = folder / "source"
    Image.effect_noise((16, 16), 50).convert("RGB").save(small := io.BytesIO(), "png")

    def options(number: int, out: Path) -> list[str]:
        names = [f"{index // 1000:03}/{index:06}.png" for index in range(number)]
        for name in names:
            if not (source / name).exists():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes(small.getvalue())
        pyarrow.parquet.write_table(pyarrow.table({"path": names}), source / f"{number}.parquet")
        return ["--model", str(model), "--threads", "1", str(source / f"{number}.parquet"), "-o", str(out)]

    result: dict[str, Any] = {}
    for number in rows:
        out = folder / f"out {number}"
        result[str(number)] = measured(options(number, out)) | {"nothing missing": measured(options(number, out))}
        print(number, result[str(number)], flush=True)
        shutil.rmtree(out)
    first, last = (result[str(number)]["peak_MB"] for number in (rows[0], rows[-1]))
    costs = []
    for number in driver_rows:
        told = [*options(number, folder / f"driver {number}"), "--address", "local", "--actors", "1"]
        costs.append(measured(told)["processor_seconds"])
        print("driver", number, costs[-1], flush=True)
    each = (costs[-1] - costs[0]) / (driver_rows[-1] - driver_rows[0])
    return result | {"ratio of peaks": last / first, "a row costs a Ray cluster's driver, processor_seconds": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starry_night")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=(1_000, 100_000))
    parser.add_argument("--machine", default="nothing else ran", help="what else the machine did meanwhile")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {"memory of many rows": memory(folder, tuple(options.rows), DRIVER_ROWS)}
        results[f"folder of {options.pictures} pictures, 640×480"] = against_stylize(
            folder, options.model, options.pictures, options.rounds
        )
        results["actors of one thread"] = actors(folder, options.model, options.rounds)
    report = {
        "model": options.model,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores; {options.machine}",
        "versions": {"ray": ray.__version__, "onnxruntime": onnxruntime.__version__, "pyarrow": pyarrow.__version__},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "results": results,
    }
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
