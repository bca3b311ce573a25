"""What the gallery is worth to a painting that it never saw: loss against time. python benchmarks/new_painting.py

Each painting, held out by docs/held_out.json, is trained by its vector alone, as `train style=custom` stands, and from
nothing for the steps that took before. Same machine, data, loss and seed; validation losses beside the seconds of
training, in which the validations count.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch
from judging import SHARED, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nst_fast.training.onnx_export import source_commit

PAINTINGS = [
    "vincent-van-gogh__enclosed-field-with-ploughman",
    "carl-newman__crucifixion",
    "paul-gauguin__village-in-the-snow",
    "henri-rousseau__tropical-forest-with-monkeys",
]
SIDES = {
    "vector alone": [
        "trainer.max_steps=150",
        "trainer.vector_steps=150",
        "trainer.vector_rate=10",
        "trainer.validate_every=50",
    ],
    "as it stands": ["trainer.validate_every=100"],
    "from nothing": ["init_from=null", "trainer.max_steps=2200", "trainer.validate_every=200"],
}


def curve(run: Path, summary: dict[str, Any]) -> list[tuple[float, float]]:
    """Return seconds of training and validation loss after each validation of a run."""
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    seconds = summary["seconds"] / summary["steps"]
    return [((event.step + 1) * seconds, event.value) for event in log.Scalars("val/total_loss")]


def draw(paintings: dict[str, Any], path: Path) -> None:
    """Write loss against minutes, a panel a painting."""
    from matplotlib.figure import Figure

    figure = Figure((4 * len(paintings), 3.4), layout="constrained")
    for axes, (name, sides) in zip(
        figure.subplots(1, len(paintings), squeeze=False)[0], paintings.items(), strict=True
    ):
        for side, found in sides.items():
            minutes, losses = zip(*((seconds / 60, loss) for seconds, loss in found["curve"]), strict=True)
            axes.plot(minutes, losses, label=side)
        axes.set(title=name.partition("__")[2].replace("-", " "), xlabel="minutes", ylabel="validation loss")
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paintings", nargs="+", default=PAINTINGS, help="in the paintings of the shared data")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--options", nargs="*", default=["loss_network=vgg16_slim"], help="of `train`, for all sides")
    parser.add_argument("--beside", default="nothing", help="what else the machine did, for the record")
    parser.add_argument("--runs", type=Path, default=Path("runs", "new_painting"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--figure", type=Path, default=Path("docs", "images", "new_painting.png"))
    options = parser.parse_args()
    paintings: dict[str, Any] = {}
    for name in options.paintings:
        paintings[name] = {}
        for side in options.sides:
            run = options.runs / f"{name}_{side.replace(' ', '_')}"
            given = [*options.options, *SIDES[side]]
            summary, _ = trained(SHARED / "paintings" / f"{name}.jpg", run, given)
            found = {key: summary[key] for key in ("steps", "seconds", "images_per_second", "device", "precision")}
            found |= {"loss": summary["validation_losses"]["val/total_loss"], "curve": curve(run, summary)}
            paintings[name][side] = found
            print(name, side, json.dumps({key: found[key] for key in ("steps", "seconds", "loss")}), flush=True)
    report = {
        "what": "new paintings, 4 pictures a step, sizes as `train` has them",
        "options": options.options,
        "beside": options.beside,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "paintings": paintings,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    draw(paintings, options.figure)


if __name__ == "__main__":
    main()
