"""Designs of the transformation network: what a loss costs. python benchmarks/designs.py

Every design is trained on the same paintings, photographs, loss, steps, schedule and seed; its validation loss and the
figures of an outside judge (a script that prints JSON for --model and --style) stand beside its time on onnxruntime,
where all take turns. Writes JSON, docs/designs.md and a plot. --steps 300 weeds out; the finalists want thousands.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from judging import SHARED, judged
from matplotlib.figure import Figure
from networks import SIZES, measure
from onnx import numpy_helper

from nst_fast.commands.export import source_commit

USUAL = {"johnson": 5, "fast": 5, "tiny": 3}  # blocks
DESIGNS = {
    f"{kind} {width}" + (f", {blocks} blocks" if blocks != USUAL[kind] else ""): (kind, width, blocks)
    for kind, width, blocks in (
        *(("johnson", 32, 5), ("johnson", 16, 5), ("johnson", 8, 5)),
        *(("fast", 64, 5), ("fast", 64, 3), ("fast", 48, 5), ("fast", 32, 8), ("fast", 32, 5), ("fast", 16, 5)),
        ("tiny", 16, 3),
    )
}
DOCS = Path(__file__).resolve().parents[1] / "docs"


def trained(design: str, style: Path, run: Path, steps: int) -> dict[str, float]:
    """Train one design on a painting, unless its model is there already, and return its figures."""
    kind, width, blocks = DESIGNS[design]
    given = [f"network={kind}", f"network.width={width}", f"network.blocks={blocks}", "loss_network=vgg19_slim"]
    given += [f"trainer.max_steps={steps}", f"data.validation={SHARED / 'content' / 'val'}"]
    answer, summary, _ = judged(style, run, given)
    figures = {"validation_loss": summary["validation_losses"]["val/total_loss"]}
    figures |= {f"judge_{name}": answer[name] for name in ("content", "style", "style_vgg19")}
    return figures | {"training_images_per_second": summary["images_per_second"]}


def parameters(model: Path) -> int:
    graph = onnx.load(model).graph
    return sum(numpy_helper.to_array(w).size for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=DESIGNS)
    parser.add_argument("--styles", nargs="+", default=["starry_night", "mosaic"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--runs", type=Path, default=Path("runs", "designs"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for design in options.designs:
        runs = {name: options.runs / f"{design.replace(', ', ' ')} {name} {options.steps}" for name in options.styles}
        each = [trained(design, SHARED / "styles" / f"{n}.jpg", run, options.steps) for n, run in runs.items()]
        mean = {key: statistics.fmean(figures[key] for figures in each) for key in each[0]}
        model = runs[options.styles[0]] / f"{options.styles[0]}.onnx"
        found[design] = {"model": str(model), **mean, "by_painting": dict(zip(options.styles, each, strict=True))}
        print(design, mean, flush=True)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.log_severity_level = 3
    height, width = SIZES["720p"]
    picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    sessions = {}
    for design, figures in found.items():
        model = figures.pop("model")
        figures["exported_weights"] = parameters(Path(model))
        sessions[design] = (onnxruntime.InferenceSession(model, session_options, ["CPUExecutionProvider"]), picture)
    for design, seconds in measure(sessions, options.rounds).items():
        found[design]["seconds_720p"] = seconds
    report = {
        "what": f"{options.steps} steps of 4 at 256 px on {' and '.join(options.styles)}, means; seconds at 720p",
        "threads": options.threads,
        "device": f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "designs": found,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    slowest = max(figures["seconds_720p"] for figures in found.values())
    rows = [
        f"| {design} | {f['exported_weights'] / 1e3:,.0f} k | {f['seconds_720p']:.3f} | "
        f"{slowest / f['seconds_720p']:.1f} | {f['validation_loss']:.3f} | {f['judge_content']:.2f} | "
        f"{f['judge_style_vgg19']:.3f} | {f['training_images_per_second']:.1f} |"
        for design, f in found.items()
    ]
    page = f"""# Designs of the transformation network

Written by `python benchmarks/designs.py --steps {options.steps}`; the figures are in `../benchmarks/designs.json`.
{report["what"]} on {options.threads} threads, {report["device"]}. `johnson 32` is the field's standard; a number is the
width, with 5 residual blocks (`tiny` 3) unless it says otherwise. Weights are those of the exported file, folded.
Training rates are of whatever else the machine did at the time.

![validation loss against time](images/designs.svg)

| design | weights | seconds at 720p | times faster | validation loss | content | style_vgg19 | images/s in training |
|---|---|---|---|---|---|---|---|
""" + "\n".join(rows)
    (DOCS / "designs.md").write_text(page + "\n")
    figure = Figure((6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for design, f in found.items():
        axis.scatter(f["seconds_720p"], f["validation_loss"], color="C0" if design.startswith("fast") else "C1")
        axis.annotate(design, (f["seconds_720p"], f["validation_loss"]), (4, 4), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel="seconds a 720p picture", ylabel=f"validation loss after {options.steps} steps")
    figure.savefig(DOCS / "images" / "designs.svg")


if __name__ == "__main__":
    main()
