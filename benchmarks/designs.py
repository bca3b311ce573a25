"""Designs of the transformation network: what a loss costs. python benchmarks/designs.py

Every design is trained on the same paintings, photographs, loss, steps, schedule and seed; its validation loss and the
figures of an outside judge (a script that prints JSON for --model and --style) stand beside its time on onnxruntime,
where all take turns. Few steps weed out; the finalists get many. Writes JSON, docs/research/designs.md, a plot and
pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnx
import onnxruntime
import skimage.data
import torch
from judging import SHARED, ask_judge
from judging import trained as train_once
from matplotlib.figure import Figure
from networks import SIZES, create_session, measure
from omegaconf import OmegaConf
from onnx import numpy_helper
from PIL import Image

from nst_fast.stylizing.images import resize_short_side, save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.sheet import draw_sheet

USUAL = {"johnson": 5, "fast": 5, "tiny": 3}  # blocks
DESIGNS = {
    f"{kind} {width}" + (f", {blocks} blocks" if blocks != USUAL[kind] else ""): (kind, width, blocks)
    for kind, width, blocks in (
        *(("johnson", 32, 5), ("johnson", 16, 5), ("johnson", 8, 5)),
        *(("fast", 64, 5), ("fast", 48, 5), ("fast", 48, 4), ("fast", 32, 5), ("fast", 16, 5)),
        ("tiny", 16, 3),
    )
}
FINALISTS = ["johnson 32", "fast 48, 4 blocks", "fast 48", "fast 32", "tiny 16"]
DOCS = Path(__file__).resolve().parents[1] / "docs"


def trained(design: str, style: Path, run: Path, steps: int, photographs: int) -> dict[str, float]:
    """Train one design on a painting, unless its model is there already, and return its figures."""
    kind, width, blocks = DESIGNS[design]
    given = [
        f"network={kind}",
        f"network.width={width}",
        f"network.blocks={blocks}",
        "loss_network=vgg16_slim",
        "loss=balanced",
    ]
    given += [f"trainer.max_steps={steps}", f"data.validation={SHARED / 'content' / 'val'}"]
    summary, model = train_once(style, run, given)
    answer = ask_judge(model, style, photographs)
    losses = summary["validation_losses"]
    weights = OmegaConf.load(run / "config.yaml").trainer
    networks_own = sum(weights[f"{name}_weight"] * losses[f"val/{name}_loss"] for name in ("grid", "weave"))
    figures = {"validation_loss": losses["val/total_loss"], "perceptual_loss": losses["val/total_loss"] - networks_own}
    figures |= {f"judge_{name}": answer[name] for name in ("content", "style", "style_vgg19")}
    return figures | {"training_images_per_second": summary["images_per_second"]}


def parameters(model: Path) -> int:
    graph = onnx.load(model).graph
    return sum(numpy_helper.to_array(w).size for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT)


def mean(design: str, steps: int, options: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """Return a design's figures over the paintings, and a model of it."""
    runs = {name: options.runs / f"{design.replace(', ', ' ')} {name} {steps}" for name in options.styles}
    styles = {n: SHARED / "styles" / f"{n}.jpg" for n in runs}
    each = {n: trained(design, styles[n], run, steps, options.photographs) for n, run in runs.items()}
    means = {key: statistics.fmean(f[key] for f in each.values()) for key in each[options.styles[0]]}
    print(design, steps, means, flush=True)
    return {**means, "by_painting": each}, runs[options.styles[0]] / f"{options.styles[0]}.onnx"


def table(names: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows])


def page(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Return docs/research/designs.md."""
    slowest = max(f["seconds_720p"] for f in found.values())
    short, long = str(options.steps), str(options.long_steps)
    figures = ("validation_loss", "judge_content", "judge_style_vgg19")

    def of(trained: dict[str, float]) -> list[str]:
        return [f"{trained[name]:.3f}" for name in figures] if trained else ["", "", ""]

    rows = [
        [
            *(name, f"{f['exported_weights'] / 1e3:,.0f} k", f"{f['seconds_720p']:.3f}"),
            f"{slowest / f['seconds_720p']:.1f}",
            *of(f["trained"][short]),
            *of(f["trained"].get(long, {})),
        ]
        for name, f in found.items()
    ]
    columns = ["design", "weights", "s at 720p", "times faster"]
    columns += [f"{what}, {steps}" for steps in (short, long) for what in ("loss", "content", "style_vgg19")]
    finalists = {name: f["trained"][long]["by_painting"] for name, f in found.items() if long in f["trained"]}
    both = ("validation_loss", "perceptual_loss")
    losses = [[n, *(f"{each[s][loss]:.4f}" for s in each for loss in both)] for n, each in finalists.items()]
    return f"""# Designs of the transformation network

Written by `python benchmarks/designs.py`; the figures are in `../../benchmarks/designs.json`. {short} and {long} steps
of 4 at 256 px on {" and ".join(options.styles)}, means of both: the validation loss, and an outside judge's content
and style_vgg19 on {options.photographs} photographs. Photographs, loss (`balanced`, on vgg16_slim), schedule and seed
are the same for all. Seconds are of the exported file on onnxruntime, {options.threads} threads, CPU
{torch.backends.cpu.get_cpu_capability()}, the fastest of {options.rounds} turns. `johnson 32` is the field's standard.
A number is the width, with 5 residual blocks (`tiny` 3) unless it says otherwise. Weights are those of the exported
file, folded.

![validation loss against time](../images/designs.svg)

![a photograph and the finalists](../images/designs.jpg)

{table(columns, rows)}

The validation loss after {long} steps, by painting. *Perceptual* is content, style and total variation, without the
term against a lattice of the network's sampling period.

{table(["design", *(f"{style}, {what}" for style in options.styles for what in ("all", "perceptual"))], losses)}
"""


def plot(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Write docs/images/designs.svg."""
    figure = Figure((7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    by_time = sorted(found.items(), key=lambda item: item[1]["seconds_720p"])
    for steps, filled in ((options.steps, False), (options.long_steps, True)):
        for number, (name, f) in enumerate(by_time):
            if str(steps) in f["trained"]:
                place = f["seconds_720p"], f["trained"][str(steps)]["validation_loss"]
                color = "C1" if name.startswith("johnson") else "C0"
                axis.scatter(*place, edgecolors=color, facecolors=color if filled else "none")
                left = number % 2 == 1  # neighbours' names stay apart
                offset, side = ((-4, -9), "right") if left else ((4, 4), "left")
                axis.annotate(name, place, offset, textcoords="offset points", fontsize=7, ha=side)
    axis.set(xscale="log", xlabel="seconds a 720p picture", ylabel="validation loss")
    axis.margins(x=0.12)
    axis.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
    axis.minorticks_off()
    axis.set_title(f"open: {options.steps} steps, filled: {options.long_steps}", fontsize=9)
    figure.savefig(DOCS / "images" / "designs.svg", metadata={"Date": None})


def show(models: dict[str, Path]) -> None:
    """Write docs/images/designs.jpg: a photograph, and what the finalists make of it."""
    photograph = resize_short_side(Image.fromarray(skimage.data.chelsea()), 256)
    pictures = [photograph, *(Stylizer(model)(photograph) for model in models.values())]
    sheet = draw_sheet([pictures], [""], ["photograph", *models], "")
    save_image(sheet, DOCS / "images" / "designs.jpg", quality=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=DESIGNS)
    parser.add_argument("--finalists", nargs="*", default=FINALISTS, choices=DESIGNS)
    parser.add_argument("--styles", nargs="+", default=["starry_night", "mosaic"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--long-steps", type=int, default=2000)
    parser.add_argument("--photographs", type=int, default=6, help="that the judge looks at")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--runs", type=Path, default=Path("runs", "designs"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    height, width = SIZES["720p"]
    picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    found: dict[str, dict[str, Any]] = {}
    sessions = {}
    for design in options.designs:
        figures, model = mean(design, options.steps, options)
        found[design] = {"exported_weights": parameters(model), "trained": {str(options.steps): figures}}
        sessions[design] = (create_session(model, options.threads), picture)
    finalists = {}
    for design in filter(found.__contains__, options.finalists):
        figures, finalists[design] = mean(design, options.long_steps, options)
        found[design]["trained"][str(options.long_steps)] = figures
    for design, seconds in measure(sessions, options.rounds).items():
        found[design]["seconds_720p"] = seconds
    report = {
        "what": f"steps of 4 at 256 px on {' and '.join(options.styles)}, means; seconds at 720p",
        "threads": options.threads,
        "device": f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "designs": found,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    (DOCS / "research" / "designs.md").write_text(page(found, options))
    plot(found, options)
    show(finalists)


if __name__ == "__main__":
    main()
