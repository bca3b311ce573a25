"""Seconds to the validation loss that Johnson's network reaches. python benchmarks/time_to_quality.py

Johnson's network, or what --reference says, is trained for a budget of steps; then `fast` with ever larger budgets,
each a whole schedule, until its validation loss is no higher. Same painting, photographs, loss, batch, machine. The
paper has --steps 40000; a CPU manages --steps 2000. What a released model is worth as a start (warm_start.json):
    --reference network=fast --steps 1400 --fast network=fast init_from=the_scream --shares .07 .14 .25 .4 .6
"""

from __future__ import annotations

import argparse
import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from judging import SHARED, judged

from nst_fast.training.onnx_export import source_commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", type=Path, default=SHARED / "styles" / "starry_night.jpg")
    parser.add_argument("--steps", type=int, default=2000, help="of the reference")
    parser.add_argument("--reference", nargs="+", default=["network=johnson"], help="options of `train` for one side")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4, 0.7, 1.0], help="of the steps")
    parser.add_argument("--fast", nargs="+", default=["network=fast"], help="and for the other")
    parser.add_argument("--common", nargs="*", default=["loss_network=vgg16_slim"], help="options for both")
    parser.add_argument("--runs", type=Path, default=Path("runs", "time_to_quality"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()

    def trained(name: str, given: list[str], steps: int) -> dict[str, Any]:
        given = [*given, *options.common, f"trainer.max_steps={steps}", f"data.validation={SHARED / 'content' / 'val'}"]
        digest = hashlib.sha256(" ".join(given).encode()).hexdigest()[:8]  # other options, another run
        answer, summary, _ = judged(options.style, options.runs / f"{name}_{options.style.stem}_{digest}", given)
        found = {"steps": steps, "seconds": summary["seconds"], "images_per_second": summary["images_per_second"]}
        found["validation_loss"] = summary["validation_losses"]["val/total_loss"]
        found |= {f"judge_{figure}": answer[figure] for figure in ("content", "style", "style_vgg19")}
        print(name, json.dumps(found), flush=True)
        return found

    reference = trained(options.reference[0].removeprefix("network="), options.reference, options.steps)
    runs = []
    for share in options.shares:
        runs.append(trained("fast", options.fast, max(round(share * options.steps), 1)))
        if runs[-1]["validation_loss"] <= reference["validation_loss"]:
            break
    reached = runs[-1]["validation_loss"] <= reference["validation_loss"]
    sides = f"{' '.join(options.reference)} against {' '.join(options.fast)}"
    report = {
        "what": f"{options.style.stem}, {' '.join(options.common)}; {sides}",
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "reference": reference,
        "fast": runs,
        "seconds_to_quality": runs[-1]["seconds"] if reached else None,
        "times_faster": reference["seconds"] / runs[-1]["seconds"] if reached else None,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
