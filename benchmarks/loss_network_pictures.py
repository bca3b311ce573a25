"""What counts in a loss network: pictures of networks trained on it. python benchmarks/loss_network_pictures.py

Each painting is trained on vgg19_slim and on the two teachers together with the same data, steps, network, seed and
weights; an outside judge (a script that prints JSON for --model and --style) scores both on photographs never seen.
candy was not used while vgg19_slim was designed, neither its distillation nor its settings.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path

import torch
from judging import SHARED, TEACHERS, judged

from nst_fast.training.onnx_export import source_commit

FIGURES = ("content", "style", "style_vgg19")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["starry_night", "candy"])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--judge", type=Path, default=SHARED / "judge.py")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs", "loss_network_pictures"), help="resumes what is there"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    styles = {}
    for name in options.styles:
        style = SHARED / "styles" / f"{name}.jpg"
        found = {}
        for network, chosen in (("vgg19_slim", ["loss_network=vgg19_slim"]), ("teachers", TEACHERS)):
            given = ["loss=balanced", "style.size=256", f"trainer.max_steps={options.steps}", *chosen]
            answer, _, _ = judged(style, options.runs / f"{network}_{name}", given, options.judge)
            found[network] = {figure: answer[figure] for figure in (*FIGURES, "painting_size")}
        slim, both = found["vgg19_slim"], found["teachers"]
        ratios = {figure: slim[figure] / both[figure] for figure in FIGURES}
        styles[name] = {"vgg19_slim": slim, "teachers": both, "ratio": ratios}
        print(name, json.dumps(styles[name], indent=1), flush=True)
    report = {
        "what": f"fast network, {options.steps} steps of 4 at 256 px, painting at 256 px, default weights",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "styles": styles,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
