"""Strokes of the size that is asked for: style, edges, size, time and memory. python benchmarks/stroke.py

Figures are those of ../shared/judge.py, which shares no code with us, on the real VGG-16. Photographs are those of
../shared/content/4k, which no released model was trained on. What is there already is kept: --again makes it anew.

  sizes    pictures of a short side of 512, 1080 and 2160 px, brought back to 512 px: style_vgg16 with `auto` and with 1
  edges    `auto` at 2160 px against the same model run at 512 px and enlarged: content_vgg16 in 1024 px crops
  strokes  strokes of 1, 2 and 4 at 1080 px, each picture made smaller by its stroke: the painting size that fits best
  seconds  a picture at 720p and 1080p, Johnson's network beside, in turns
  memory   `stylize` on a JPEG of 3840x2160: peak resident memory
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnxruntime
import torch
from judging import SHARED, Grams, Judge
from PIL import Image

from nst_fast.loss.painting_size import best_painting_size
from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.stylizing.stroke import AUTO_SIDE
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export, source_commit

PHOTOGRAPHS = sorted((SHARED / "content" / "4k").glob("*.jpg"))
PAINTINGS = {"starry_night": "starry_night.jpg", "great_wave": "wave.jpg"}
SHORT_SIDES = (AUTO_SIDE, 1080, 2160)
CROP = 1024  # px
STROKES = (1, 2, 4)
SWEEP = (128, 181, 256, 362, 512, 640)  # px, short side of the painting; those that would enlarge it are left out
KERNELS = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
ROUNDS = 5


def told(sweep: dict[int, float]) -> dict[str, Any]:
    """Return what a sweep says: its least distance, where that is, and all of it."""
    return {"style_vgg16": min(sweep.values()), "painting_size": best_painting_size(sweep), "sweep": sweep}


def measure_sizes(stylizer: Stylizer, judge: Judge, photographs: list[Path]) -> Any:
    """Return style_vgg16 with `auto` and with strokes of 1 at each short side, at 512 px."""
    grams: dict[str, list[Grams]] = {}
    for path in photographs:
        full = load_image(path)
        for side in SHORT_SIDES:
            picture = resize_short_side(full, side)
            for stroke in ("auto", 1) if side > AUTO_SIDE else (1,):
                painted = resize_short_side(stylizer.stylize(picture, stroke=stroke), AUTO_SIDE)
                grams.setdefault(f"{side} px, stroke {stroke}", []).append(judge.grams(painted))
    found = {name: told(judge.style(pictures)) for name, pictures in grams.items()}
    least = found[f"{AUTO_SIDE} px, stroke 1"]["style_vgg16"]
    return {name: figures | {"times_that_at_512_px": figures["style_vgg16"] / least} for name, figures in found.items()}


def measure_edges(stylizer: Stylizer, judge: Judge, photographs: list[Path]) -> Any:
    """Return content_vgg16 in crops at full size, of `auto` and of the same model run at 512 px and enlarged."""
    layer, errors, energy = "relu3_3", defaultdict[str, float](float), 0.0
    for path in photographs:
        full = load_image(path)
        left, top = (full.width - CROP) // 2, (full.height - CROP) // 2
        box = (left, top, left + CROP, top + CROP)
        small = stylizer.stylize(resize_short_side(full, AUTO_SIDE))
        pictures = {f"run at 512 px and enlarged, {k.name.lower()}": small.resize(full.size, k) for k in KERNELS}
        wanted = judge.features(full.crop(box), [layer])[layer]
        energy += float((wanted**2).sum())
        for name, picture in ({"auto": stylizer.stylize(full, "auto")} | pictures).items():
            errors[name] += float(((judge.features(picture.crop(box), [layer])[layer] - wanted) ** 2).sum())
    return {name: {"content_vgg16": e / energy, "auto_over_it": errors["auto"] / e} for name, e in errors.items()}


def measure_strokes(stylizer: Stylizer, judge: Judge, photographs: list[Path]) -> Any:
    """Return the painting size that fits pictures of 1080 px best, each made smaller by its stroke."""
    grams: dict[int, list[Grams]] = {stroke: [] for stroke in STROKES}
    for path in photographs:
        picture = resize_short_side(load_image(path), 1080)
        for stroke, made in grams.items():
            made.append(judge.grams(resize_short_side(stylizer.stylize(picture, stroke=stroke), round(1080 / stroke))))
    found = {f"stroke {stroke}": told(judge.style(pictures)) for stroke, pictures in grams.items()}
    first = found["stroke 1"]["painting_size"]
    return {name: figures | {"times_that_of_1": figures["painting_size"] / first} for name, figures in found.items()}


def measure_seconds(threads: int) -> Any:
    """Return seconds a picture, the fastest of some rounds in turns, and how many times faster than Johnson's.

    By the clock, and of all processors together, which other work on the machine hardly changes.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        johnson = export(create_network("johnson", 32, 5), Path(folder) / "johnson.onnx", {})
        stylizers = {
            name: Stylizer(model, 0 if threads == os.cpu_count() else threads, device="cpu")
            for name, model in {"johnson": johnson, "fast": "starry_night", "int8": "starry_night.int8"}.items()
        }
        methods: dict[str, Callable[[Image.Image], Image.Image]] = {"johnson": stylizers["johnson"].stylize}
        for name in ("fast", "int8"):
            for stroke in (1, "auto", 4):
                methods[f"{name}, stroke {stroke}"] = lambda p, n=name, s=stroke: stylizers[n].stylize(p, s)  # type: ignore[misc]
        results = {}
        for name, (width, height) in SIZES.items():
            picture = resize_short_side(load_image(PHOTOGRAPHS[0]), height).resize((width, height))
            times: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
            for _ in range(ROUNDS):
                for method, run in methods.items():
                    began = (time.perf_counter(), time.process_time())
                    run(picture)
                    times[method].append((time.perf_counter() - began[0], time.process_time() - began[1]))
            for number, clock in enumerate(("clock", "processors")):
                seconds = {method: min(taken[number] for taken in rounds) for method, rounds in times.items()}
                faster = {method: seconds["johnson"] / taken for method, taken in seconds.items()}
                results[f"{name}, {clock}"] = {"seconds": seconds, "times_faster_than_johnson": faster}
    return results


def measure_memory() -> Any:
    """Return the peak resident bytes of `stylize` on a JPEG of 3840x2160, by stroke."""
    # ru_maxrss would be this process's own where that has more.
    script = (
        "import pathlib, re, sys\nfrom nst_fast.commands.stylize import stylize\nstylize(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1], file=sys.stderr)"
    )
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.jpg"
        load_image(PHOTOGRAPHS[0]).resize((3840, 2160)).save(source, quality=95)
        for stroke in ("1", "auto", "1.5"):
            options = ["--model", "starry_night", "--stroke", stroke, "--overwrite", str(source)]
            done = subprocess.run([sys.executable, "-c", script, *options], check=True, capture_output=True, text=True)
            peaks[f"stroke {stroke}"] = int(done.stderr.split()[-1]) * 1024
    return peaks


PARTS = ("sizes", "edges", "strokes", "seconds", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--models", nargs="+", choices=PAINTINGS, default=list(PAINTINGS))
    parser.add_argument("--count", type=int, default=len(PHOTOGRAPHS), help="photographs")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    chosen = PHOTOGRAPHS[:: max(1, len(PHOTOGRAPHS) // options.count)][: options.count]

    def keep(part: str, measure: Callable[[], Any], **conditions: Any) -> None:
        if part in report and not options.again:
            return
        began = time.perf_counter()
        report[part] = {
            "results": measure(),
            **conditions,
            "took_seconds": round(time.perf_counter() - began),
            "device": f"CPU {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores",
            "load": os.getloadavg(),
            "versions": {
                "onnxruntime": onnxruntime.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "commit": source_commit(),
            "date": date.today().isoformat(),
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(part, json.dumps(report[part]["results"], indent=1), flush=True)

    parts = options.parts or PARTS
    for model in options.models:
        given = (Stylizer(model, torch.get_num_threads()), Judge(SHARED / "styles" / PAINTINGS[model], SWEEP), chosen)
        for part, measure in (("edges", measure_edges), ("sizes", measure_sizes), ("strokes", measure_strokes)):
            if part in parts:
                names = [path.stem for path in chosen]
                keep(f"{part}, {model}", functools.partial(measure, *given), photographs=names)
    if "seconds" in parts:
        threads = torch.get_num_threads()
        keep("seconds", lambda: measure_seconds(threads), threads=threads, rounds=ROUNDS)
    if "memory" in parts:
        keep("memory", measure_memory)


if __name__ == "__main__":
    main()
