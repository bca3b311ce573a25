"""What each choice of the recipe does to the judge's figures and to the picture: python benchmarks/ablation.py

One painting, one choice changed at a time, the rest as `train` has it, but for loss=balanced; an outside judge (a
script that prints JSON for --model and --style) scores photographs never seen. Writes the figures as JSON and a sheet
with one photograph.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path

import skimage.data
import torch
from judging import SHARED, TEACHERS, ask_judge, trained
from PIL import Image

from nst_fast.stylizing.images import resize_long_side, save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.sheet import draw_sheet

WITHOUT = "loss.style_layers={{{}}}"
CHOICES = {
    "balanced": [],
    "structure": ["loss=structure"],
    "painting at 256 px": ["style.size=256"],
    "painting at 512 px": ["style.size=512"],
    "without relu1_1": [WITHOUT.format(", ".join(f"relu{n}_1: 0.25" for n in (2, 3, 4, 5)))],
    "without relu5_1": [WITHOUT.format(", ".join(f"relu{n}_1: 0.25" for n in (1, 2, 3, 4)))],
    "average pooling": ["loss.pooling=average"],
    "no total variation": ["loss.tv_weight=0"],
    "total variation ×4": ["loss.tv_weight=12"],
    "pictures of 192 px": ["data.size=192", "data.batch_size=7"],
    "pictures of 384 px": ["data.size=384", "data.batch_size=2"],
    "windows of 0.3": ["data.window=0.3"],
    "2 a batch, twice the steps": ["data.batch_size=2", "trainer.max_steps=TWICE"],
    "8 a batch, half the steps": ["data.batch_size=8", "trainer.max_steps=HALF"],
    "learning rate ×2": ["trainer.learning_rate=4.0e-3"],
    "half the steps": ["trainer.max_steps=HALF"],
    "twice the steps": ["trainer.max_steps=TWICE"],
    "both teachers": TEACHERS,
    "content distance subtle": ["style.content_distance=subtle"],
    "content distance medium": ["style.content_distance=medium"],
    "content distance strong": ["style.content_distance=strong"],
}
COLUMNS = 4
FIGURES = ("content", "style", "style_vgg19", "tv", "painting_size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", type=Path, default=SHARED / "styles" / "starry_night.jpg")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--photographs", type=int, default=12, help="that the judge looks at")
    parser.add_argument("--runs", type=Path, default=Path("runs", "ablation"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--sheet", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "ablation.jpg")
    options = parser.parse_args()
    photograph = resize_long_side(Image.fromarray(skimage.data.chelsea()), 360)
    steps = {"HALF": str(options.steps // 2), "TWICE": str(2 * options.steps)}
    figures, pictures = {}, []
    for choice in options.choices:
        run = options.runs / f"{choice.replace(' ', '_')}_{options.steps}"
        given = {
            "loss": "loss=balanced",
            "loss_network": "loss_network=vgg19_slim",
            "trainer.max_steps": f"trainer.max_steps={options.steps}",
        }
        for option in CHOICES[choice]:
            given[option.partition("=")[0]] = option.replace("HALF", steps["HALF"]).replace("TWICE", steps["TWICE"])
        summary, model = trained(options.style, run, list(given.values()))
        answer = ask_judge(model, options.style, options.photographs)
        figures[choice] = {name: answer[name] for name in FIGURES} | {
            "grid": summary["validation_losses"]["val/grid_loss"],
            "style_weight": summary["style_weight"],
            "minutes": summary["seconds"] / 60,
        }
        print(choice, figures[choice], flush=True)
        pictures.append(Stylizer(model)(photograph))
    names = options.choices
    rows = [
        draw_sheet([pictures[start : start + COLUMNS]], [""], names[start : start + COLUMNS], "")
        for start in range(0, len(names), COLUMNS)
    ]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    save_image(sheet, options.sheet, quality=60)
    report = {
        "what": f"{options.style.stem}, fast network, vgg19_slim, {options.steps} steps, one choice changed at a time",
        "photographs": options.photographs,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "figures": figures,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
