"""Whether a content distance means the same for any painting and loss network: python benchmarks/content_distance.py

Each painting is trained at style.content_distance=medium with the same data, steps, network and seed, on vgg16_slim
and on the two teachers together; an outside judge (a script that prints JSON for --model and --style) gives the
content distance of photographs never seen. Wanted: within 15 % of each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from datetime import date
from pathlib import Path

import torch
from judging import SHARED, TEACHERS, judged

from nst_fast.training.onnx_export import source_commit

LOSS_NETWORKS = {"vgg16_slim": ["loss_network=vgg16_slim"], "teachers": TEACHERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=sorted(p.stem for p in (SHARED / "styles").glob("*.jpg")))
    parser.add_argument("--loss-networks", nargs="+", default=list(LOSS_NETWORKS), choices=LOSS_NETWORKS)
    parser.add_argument("--distance", default="medium")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--runs", type=Path, default=Path("runs", "content_distance"), help="goes on from there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.loss_networks:
        found[name] = {}
        for style in options.styles:
            image, run = SHARED / "styles" / f"{style}.jpg", options.runs / f"{name}_{style}_{options.distance}"
            given = [
                f"style.content_distance={options.distance}",
                f"trainer.max_steps={options.steps}",
                *LOSS_NETWORKS[name],
            ]
            answer, summary, _ = judged(image, run, given)
            found[name][style] = {
                "content": answer["content"],
                "style_vgg19": answer["style_vgg19"],
                "style_weight": summary["style_weight"],
                "validation_content": summary["validation_losses"]["val/content_loss"],
            }
            print(name, style, found[name][style], flush=True)
    spread = {}
    both = {f"{name} {style}": f for name, styles in found.items() for style, f in styles.items()}
    for name, styles in {**found, "both": both}.items():
        contents = [figures["content"] for figures in styles.values()]
        middle = statistics.fmean([min(contents), max(contents)])
        spread[name] = {"middle": middle, "largest_deviation": max(contents) / middle - 1}
    report = {
        "what": f"style.content_distance={options.distance}, {options.steps} steps of 4 at 256 px, paintings at 384 px",
        "device": f"CPU, {os.cpu_count()} cores" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "spread": spread,
        "found": found,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(spread, indent=1))


if __name__ == "__main__":
    main()
