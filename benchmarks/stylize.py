"""`stylize` against the least that could be done: python benchmarks/stylize.py

- one 1920×1080 JPEG in a cold process, against a script of ten lines, also cold;
- a folder of pictures, against bare session.run on arrays that are in memory;
- peak memory at 1080p and, with --huge, of 16384² from JPEG to JPEG.

Both sides run in turns on the same model, machine and threads, once a picture: without an underpainting. Medians and
their ratio are written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnxruntime
import skimage.data
from PIL import Image

from nst_fast.assets import find_model
from nst_fast.training.onnx_export import source_commit

MINIMAL = """
import sys
import numpy, onnxruntime
from PIL import Image
model, source, target, threads = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
picture = numpy.asarray(Image.open(source).convert("RGB"))[None]
Image.fromarray(session.run(None, {"image": picture})[0][0]).save(target, quality=95, subsampling=0)
"""
# The peak of a child process, printed by itself.
MEASURED = """
import resource, sys
from nst_fast.commands.stylize import stylize
sys.exit(print(stylize(sys.argv[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def peak_gigabytes(arguments: list[str]) -> float:
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e9


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starry_night")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--huge", action="store_true", help="also 16384², which takes minutes")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    model, threads = str(find_model(options.model)), str(options.threads)
    base = ["--model", model, "--threads", threads, "--underpainting", "0", "--overwrite"]
    command = [sys.executable, "-m", "nst_fast.commands.stylize"]
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hd = folder / "hd.jpg"
        photograph(1920, 1080).save(hd, quality=92)
        minimal = [sys.executable, "-c", MINIMAL, model, str(hd), str(folder / "minimal.jpg"), threads]
        ours = [*command, *base, str(hd), "-o", str(folder / "ours.jpg")]
        times: dict[str, list[float]] = {"minimal": [], "stylize": []}
        for turn in range(options.rounds + 1):
            for key, one in (("minimal", minimal), ("stylize", ours)):
                taken = seconds(one)
                if turn:  # the first warms the file cache
                    times[key].append(taken)
        medians = {key: statistics.median(t) for key, t in times.items()}
        results["1080p, cold process"] = {
            "seconds": medians,
            "all": times,
            "ratio": medians["stylize"] / medians["minimal"],
        }
        results["1080p, peak GB"] = peak_gigabytes([*base, str(hd), "-o", str(folder / "peak.jpg")])

        pictures = folder / "pictures"
        pictures.mkdir()
        small = photograph(640, 480)
        for number in range(options.pictures):
            small.rotate(number % 4).save(pictures / f"{number:03}.jpg", quality=92)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])
        arrays = [np.asarray(Image.open(p))[None] for p in sorted(pictures.iterdir())]
        session.run(None, {"image": arrays[0]})
        rates: dict[str, list[float]] = {"session.run": [], "stylize": []}
        for _ in range(3):
            began = time.perf_counter()
            for array in arrays:
                session.run(None, {"image": array})
            rates["session.run"].append(len(arrays) / (time.perf_counter() - began))
            taken = seconds([*command, *base, str(pictures), "-o", str(folder / "out")])
            rates["stylize"].append(len(arrays) / taken)
        median_rates = {key: statistics.median(r) for key, r in rates.items()}
        results[f"folder of {options.pictures} pictures, 640×480"] = {
            "pictures_per_second": median_rates,
            "ratio": median_rates["stylize"] / median_rates["session.run"],
            "what": "stylize with its start, decoding and encoding; session.run on arrays in memory",
        }
        if options.huge:
            for side in (4096, 8192, 16384):
                huge = folder / f"{side}.jpg"
                photograph(side, side).save(huge, quality=85)
                began = time.perf_counter()
                peak = peak_gigabytes([*base, "--huge", str(huge), "-o", str(folder / "huge.jpg")])
                taken = time.perf_counter() - began
                figures = {"peak_GB": peak, "seconds": taken, "seconds_per_megapixel": taken / side**2 * 1e6}
                results[f"{side}², JPEG to JPEG"] = figures
                print(side, figures, flush=True)
    report = {
        "model": options.model,
        "threads": options.threads,
        "versions": {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "results": results,
    }
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
