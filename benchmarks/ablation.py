"""What each term of the recipe is for: python benchmarks/ablation.py

From one start every term is left out once, everything else equal; an outside judge (a script that prints JSON for
--model and --style) scores photographs never seen. Writes the figures as JSON and a sheet a painting.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path

import torch
from judging import SHARED, ask_judge, trained
from PIL import Image

from nst_fast.stylizing.images import load_image, resize_short_side, save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.sheet import draw_sheet

ROOT = Path(__file__).resolve().parents[1]
PAINTINGS = ("starry_night", "wave", "composition_vii")
SHORT = ["data.size=192", "data.window=0.6", "trainer.learning_rate=1.5e-3"]  # everything else is `train` as it stands
CHOICES = {
    "all terms": [],
    "without distributions": ["loss.sliced_layers={}"],
    "with grain": ["network.grain=true"],
    "each picture alone": ["trainer.own_style=1"],
    "without weave": ["trainer.weave_weight=0"],
    "without grid": ["trainer.grid_weight=0"],
}
FIGURES = ("content_vgg16", "style_vgg16", "painting_size_vgg16", "content", "style_vgg19", "palette", "tv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paintings", nargs="+", default=PAINTINGS, help="in the styles of the shared data")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES)
    parser.add_argument("--loss-network", nargs="+", default=["loss_network=vgg16_slim"], help="options of train")
    parser.add_argument("--steps", type=int, default=250, help="of 4 pictures")
    parser.add_argument("--photographs", type=int, default=12, help="that the judge looks at")
    parser.add_argument("--size", type=int, default=512, help="px, of the pictures that are judged")
    parser.add_argument("--runs", type=Path, default=Path("runs", "ablation"), help="goes on with what is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--sheets", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    photograph = resize_short_side(load_image(SHARED / "photos" / "hoovertowernight.jpg"), options.size)
    figures: dict[str, dict[str, object]] = {}
    for name in options.paintings:
        painting = SHARED / "styles" / f"{name}.jpg"
        figures[name], pictures = {}, []
        for choice in options.choices:
            common = [*options.loss_network, *SHORT, f"trainer.max_steps={options.steps}"]
            # The start is another painting's, by all terms; a network with grain has one of its own.
            network = [option for option in CHOICES[choice] if option.startswith("network")]
            start = options.runs / ("start_with_grain" if network else "start")
            _, model = trained(SHARED / "styles" / "the_scream.jpg", start, [*common, *network])
            run = options.runs / f"{name}_{choice.replace(' ', '_')}"
            summary, model = trained(painting, run, [*common, *CHOICES[choice], f"init_from={model}"])
            answer = ask_judge(model, painting, options.photographs, ["--size", str(options.size)])
            figures[name][choice] = {figure: answer[figure] for figure in FIGURES} | {
                "grid": summary["validation_losses"]["val/grid_loss"],
                "minutes": summary["seconds"] / 60,
            }
            print(name, choice, figures[name][choice], flush=True)
            pictures.append(Stylizer(model)(photograph))
        sheet = draw_sheet([pictures[:3], pictures[3:]], ["", ""], options.choices[:3], "") if pictures[3:] else None
        if isinstance(sheet, Image.Image):
            save_image(sheet, options.sheets / f"ablation_{name}.jpg", quality=60)
    report = {
        "what": f"fast network, {options.steps} steps of 4 at 192 px from one start, each term left out once",
        "loss_network": options.loss_network[0].partition("=")[2],
        "photographs": options.photographs,
        "size": options.size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "figures": figures,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
