"""Blends, strengths and speed of the gallery. python benchmarks/gallery.py

Figures are those of ../shared/judge.py on the real VGG-16, on held-out photographs at 512 px.

  blends    eleven blends of two paintings: the distance from each, and whether it only falls or only rises
  strength  eleven strengths of one painting: its distance and the content distance, likewise
  singles   paintings of the gallery against networks of their own, trained from nothing into runs/gallery
  seconds   a picture at 720p against a model of one painting, in alternating turns
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnxruntime
from judging import SHARED, Judge, trained
from PIL import Image
from stroke import SWEEP

from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit

PAIRS = [("starry_night", "the_scream"), ("great_wave", "composition_vii")]
FILES = {name: f"{name}.jpg" for name in ("starry_night", "the_scream", "composition_vii")} | {"great_wave": "wave.jpg"}
PHOTOGRAPHS = ("cameras_016", "unsplash_008", "popos_004")
SINGLES = ("starry_night", "the_scream", "composition_vii")
SHARES = np.linspace(0, 1, 11)
SIDE = 512  # px
ROUNDS = 15
ALLOWED = 0.02  # of a curve's range, that it may turn back


def curve(values: list[float]) -> dict[str, Any]:
    """Return a curve, how far it turns back against its direction from end to end, and whether that is allowed."""
    steps = np.diff(values) * np.sign(values[-1] - values[0])
    back = float(max(0.0, -steps.min())) / (max(values) - min(values))
    return {"values": values, "turns_back": back, "monotone": back <= ALLOWED}


def photographs(count: int) -> list[Image.Image]:
    """Return held-out photographs."""
    folder = SHARED / "content" / "large"
    return [resize_short_side(load_image(folder / f"{name}.jpg"), SIDE) for name in PHOTOGRAPHS[:count]]


def style_of(judge: Judge, pictures: list[Image.Image]) -> float:
    """Return style_vgg16 of pictures at the size of the painting that fits them best."""
    return min(judge.style(judge.grams(picture) for picture in pictures).values())


def measure_blends(gallery: Stylizer, pictures: list[Image.Image]) -> Any:
    """Return the distances of blends of two paintings from each."""
    found = {}
    for pair in PAIRS:
        judges = {name: Judge(SHARED / "styles" / FILES[name], SWEEP) for name in pair}
        distances: dict[str, list[float]] = {name: [] for name in pair}
        for share in SHARES:
            made = [gallery.stylize(p, {pair[0]: 1 - float(share), pair[1]: float(share)}) for p in pictures]
            for name, judge in judges.items():
                distances[name].append(style_of(judge, made))
        found[" to ".join(pair)] = {name: curve(values) for name, values in distances.items()}
    return found


def measure_strength(gallery: Stylizer, pictures: list[Image.Image]) -> Any:
    """Return style and content distances of strengths from 0 to 1."""
    found, layer = {}, "relu3_3"
    for name in FILES:
        judge = Judge(SHARED / "styles" / FILES[name], SWEEP)
        wanted = [judge.features(p, [layer])[layer] for p in pictures]
        energy, style, content = sum(float((f**2).sum()) for f in wanted), list[float](), list[float]()
        for strength in SHARES:
            made = [gallery(p, name, float(strength)) for p in pictures]
            style.append(style_of(judge, made))
            differences = (judge.features(p, [layer])[layer] - f for p, f in zip(made, wanted, strict=True))
            content.append(sum(float((d**2).sum()) for d in differences) / energy)
        found[name] = {"style_vgg16": curve(style), "content_vgg16": curve(content)}
    return found


def measure_singles(gallery: Stylizer, pictures: list[Image.Image]) -> Any:
    """Return style_vgg16 of the gallery's pictures, and of those of a network of the painting's own."""
    found = {}
    for name in SINGLES:
        painting = SHARED / "styles" / FILES[name]
        _, model = trained(
            painting,
            Path("runs", "gallery", name),
            ["style.size=192", "loss.style_weight=8", "trainer.own_style=1", "init_from=null"],
            data=(),
        )
        judge, single = Judge(painting, SWEEP), Stylizer(model)
        ours, theirs = (
            style_of(judge, made) for made in ([gallery(p, name) for p in pictures], [single(p) for p in pictures])
        )
        found[name] = {"gallery": ours, "single": theirs, "ratio": ours / theirs}
    return found


def measure_seconds(gallery: Stylizer, pictures: list[Image.Image]) -> Any:
    """Return seconds a picture at 720p, medians of alternating turns, by the clock and of all processors together."""
    picture, single = pictures[0].resize((1280, 720)), Stylizer("starry_night")
    methods = {"gallery": lambda: gallery.stylize(picture, "starry_night"), "single": lambda: single.stylize(picture)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for turn in range(ROUNDS + 1):
        for name, run in methods.items():
            began = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    found: dict[str, Any] = {}
    for number, clock in enumerate(("clock", "processors")):
        seconds = {name: statistics.median(taken[number] for taken in rounds) for name, rounds in times.items()}
        found[clock] = seconds | {"ratio": seconds["gallery"] / seconds["single"]}
    return found


PARTS = {
    "blends": measure_blends,
    "strength": measure_strength,
    "singles": measure_singles,
    "seconds": measure_seconds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--count", type=int, default=len(PHOTOGRAPHS), help="photographs")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    report = json.loads(options.output.read_text()) if options.output.exists() else {}
    gallery, pictures = Stylizer("gallery"), photographs(options.count)
    for part in options.parts or PARTS:
        report[part] = {
            "commit": source_commit(),
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}",
            "onnxruntime": onnxruntime.__version__,
            "photographs": len(pictures),
            **PARTS[part](gallery, pictures),
        }
        print(part, json.dumps(report[part], indent=1), flush=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
