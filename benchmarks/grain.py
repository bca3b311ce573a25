"""What strokes grow from, noise or the photograph's contrast: python benchmarks/grain.py

Trains one painting with either, the rest as `train` has it, asks an outside judge, and shows both on photographs with
skies. Forward passes of the two take turns at 720p.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnxruntime
import torch
from judging import SHARED, judged
from networks import SIZES, measure
from PIL import ImageOps

from nst_fast.stylizing.images import load_image, save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.sheet import draw_sheet

FIGURES = ("content", "style", "style_vgg19", "tv", "painting_size")
GROWN_FROM = ("grain", "contrast")
SIDE = 320  # px, of a photograph on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", type=Path, default=SHARED / "styles" / "starry_night.jpg")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9, help="of forward passes; the fastest counts")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1), help="of forward passes")
    parser.add_argument("--photographs", type=Path, default=SHARED / "photos", help="folder, for the sheet")
    parser.add_argument("--runs", type=Path, default=Path("runs", "grain"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--sheet", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "grain.jpg")
    options = parser.parse_args()
    figures, models = {}, {}
    for grain in GROWN_FROM:
        run = options.runs / f"{options.style.stem}_{grain}_{options.steps}"
        kinds = [f"network.{kind}={str(kind == grain).lower()}" for kind in ("grain", "contrast")]
        chosen = [*kinds, "loss_network=vgg16_slim", f"trainer.max_steps={options.steps}"]
        answer, summary, models[grain] = judged(options.style, run, chosen)
        figures[grain] = {name: answer[name] for name in FIGURES} | {
            "validation_loss": summary["validation_losses"]["val/total_loss"],
            "grid": summary["validation_losses"]["val/grid_loss"],
        }
        print(grain, figures[grain], flush=True)
    photographs = [
        ImageOps.fit(load_image(file), (SIDE, SIDE)) for file in sorted(options.photographs.glob("*.jpg"))[:3]
    ]
    pictures = [photographs, *([Stylizer(model)(one) for one in photographs] for model in models.values())]
    rows = [list(row) for row in zip(*pictures, strict=True)]
    save_image(draw_sheet(rows, [""] * len(rows), ["photograph", *GROWN_FROM], ""), options.sheet, quality=40)
    frame = np.random.default_rng(0).integers(0, 256, (1, *SIZES["720p"], 3), dtype=np.uint8)
    given = onnxruntime.SessionOptions()
    given.intra_op_num_threads = options.threads
    sessions = {grain: onnxruntime.InferenceSession(str(model), given) for grain, model in models.items()}
    seconds = measure({grain: (session, frame) for grain, session in sessions.items()}, options.rounds)
    report = {
        "what": f"{options.style.stem}, fast network, vgg16_slim, {options.steps} steps",
        "figures": figures,
        "threads": options.threads,
        "seconds_720p": seconds,
        "contrast_against_noise": seconds["contrast"] / seconds["noise"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "commit": source_commit(),
        "date": date.today().isoformat(),
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
