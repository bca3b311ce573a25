"""`stylize --painting` against magenta's pair of networks, and what it takes.

python benchmarks/any_painting.py pictures --output FOLDER   # pictures, scenes for votes.py, the judge's figures
python benchmarks/any_painting.py speed                      # the first picture cold, further ones, peak memory

FOLDER/384.json and FOLDER/720.json are scenes for `votes.py prepare`. Paintings and photographs are held out. Magenta's
pair takes 384 px alone: at 720 px its pictures are enlarged. Figures are means over the paintings; style_vgg16 is that
at the painting size that fits a method's pictures best, of those that do not enlarge the painting.
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
from typing import Any

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnxruntime
import skimage.data
from judging import SHARED, Judge
from PIL import Image, ImageOps

from nst_fast.stylizing.any_painting import AnyPainting
from nst_fast.stylizing.images import load_image
from nst_fast.training.onnx_export import source_commit

HELD_OUT = json.loads((Path(__file__).resolve().parents[1] / "docs" / "held_out.json").read_text())
# A portrait, an animal, a city, a landscape, a building, water.
PHOTOGRAPHS = ("cameras_016", "unsplash_008", "popos_004", "sunhays80_014", "cameras_044", "pexels-ocean_007")
SIZES = (384, 720)
MEASURED = """
import resource, sys
from nst_fast.commands.stylize import stylize
sys.exit(print(stylize(sys.argv[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def magenta(painting: Image.Image, photographs: list[Image.Image]) -> list[Image.Image]:
    """Return the pair's pictures, 384 px, of square photographs."""
    predict, transform = (
        onnxruntime.InferenceSession(SHARED / "peers" / f"arbitrary_{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("predict", "transform")
    )

    def numbers(picture: Image.Image, side: int) -> np.ndarray:
        return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS), np.float32)[None] / 255

    vector = predict.run(None, {predict.get_inputs()[0].name: numbers(painting, 256)})[0]
    image, style = sorted(transform.get_inputs(), key=lambda given: "mobilenet" in given.name)
    made = [
        transform.run(None, {image.name: numbers(p, 384), style.name: vector.reshape(1, 1, 1, -1)})[0][0]
        for p in photographs
    ]
    return [Image.fromarray((picture * 255).clip(0, 255).round().astype(np.uint8)) for picture in made]


def pictures(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    scenes: dict[int, list[Any]] = {size: [] for size in options.sizes}
    for name in HELD_OUT["paintings"][: options.paintings]:
        file = SHARED / "paintings" / name
        judge = Judge(file) if options.judge else None
        for size in options.sizes:
            sources = {}
            for stem in PHOTOGRAPHS[: options.photographs]:
                large = SHARED / "content" / "4k" / f"{stem}.jpg"
                sources[stem] = large if large.exists() else SHARED / "content" / "large" / f"{stem}.jpg"
            given = [ImageOps.fit(load_image(p), (size, size), Image.Resampling.LANCZOS) for p in sources.values()]
            stylizer = AnyPainting({file: 1.0})
            made = {"nst_fast": [stylizer.stylize(p) for p in given]}
            made["magenta"] = [
                p.resize((size, size), Image.Resampling.LANCZOS) for p in magenta(load_image(file), given)
            ]
            for method, results in made.items():
                folder = options.output / str(size) / method / file.stem
                folder.mkdir(parents=True, exist_ok=True)
                for stem, photograph, result in zip(sources, given, results, strict=True):
                    photograph.save(folder / f"{stem}.content.png")
                    result.save(folder / f"{stem}.stylized.png")
                if judge:
                    kept = figures.setdefault(f"{size} px", {}).setdefault(method, {})
                    kept[file.stem] = {
                        "style_vgg16": min(judge.style(map(judge.grams, results)).values()),
                        "palette": statistics.fmean(map(judge.palette, results)),
                    }
                    print(size, method, file.stem, kept[file.stem], flush=True)
            scenes[size] += [
                {
                    "photograph": str(folder / f"{stem}.content.png"),
                    "painting": str(file),
                    "pictures": {
                        method: str(options.output / str(size) / method / file.stem / f"{stem}.stylized.png")
                        for method in made
                    },
                }
                for stem in sources
            ]
    for size, listed in scenes.items():
        (options.output / f"{size}.json").write_text(json.dumps(listed, indent=1) + "\n")
    means = {
        size: {
            method: {name: statistics.fmean(one[name] for one in found) for name in found[0]}
            for method, found in ((method, list(of.values())) for method, of in methods.items())
        }
        for size, methods in figures.items()
    }
    return {"means": means, "paintings": figures} if figures else {}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    painting = SHARED / "paintings" / HELD_OUT["paintings"][0]
    base = ["--painting", str(painting), "--threads", str(options.threads), "--overwrite"]
    command = [sys.executable, "-m", "nst_fast.commands.stylize", *base]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        photo = Path(name, "photo.png")
        Image.fromarray(skimage.data.astronaut()).save(photo)  # 512×512
        cold, processor = [], []
        for turn in range(options.rounds + 1):
            began, used = time.perf_counter(), sum(os.times()[2:4])
            subprocess.run([*command, str(photo), "-o", f"{name}/o.png"], check=True, stdout=subprocess.DEVNULL)
            if turn:  # the first warms the file cache
                cold.append(time.perf_counter() - began)
                processor.append(sum(os.times()[2:4]) - used)
        results["512 px, first picture, cold process, s"] = statistics.median(cold)
        results["512 px, first picture, cold process, s of processors"] = statistics.median(processor)
        stylizer, warm, processor = AnyPainting({painting: 1.0}, options.threads), [], []
        picture = load_image(photo)
        stylizer.stylize(picture)
        for _ in range(options.rounds):
            began, used = time.perf_counter(), time.process_time()
            stylizer.stylize(picture)
            warm.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
        results["512 px, further pictures, s"] = statistics.median(warm)
        results["512 px, further pictures, s of processors"] = statistics.median(processor)
        huge = Path(name, "huge.jpg")
        picture.resize((4096, 4096), Image.Resampling.BICUBIC).save(huge, quality=85)
        began = time.perf_counter()
        arguments = [sys.executable, "-c", MEASURED, *base, str(huge), "-o", f"{name}/huge_out.jpg"]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        results["4096², peak GB"] = int(done.stdout.split()[-1]) * 1024 / 1e9
        results["4096², s"] = time.perf_counter() - began
    return {"threads": options.threads, "load before": os.getloadavg()[0], **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("pictures", "speed"))
    parser.add_argument("--output", type=lambda given: Path(given).resolve(), help="folder of the pictures")
    parser.add_argument("--paintings", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="px")
    parser.add_argument("--photographs", type=int, default=len(PHOTOGRAPHS))
    parser.add_argument("--no-judge", action="store_false", dest="judge", help="pictures alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.part == "pictures" and options.output is None:
        parser.error("pictures need --output FOLDER")
    results = pictures(options) if options.part == "pictures" else speed(options)
    report = json.loads(options.report.read_text()) if options.report.exists() else {}
    versions = {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
    if results:
        told = {"versions": versions, "commit": source_commit(), "date": date.today().isoformat()}
        report[options.part] = told | results
        options.report.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
