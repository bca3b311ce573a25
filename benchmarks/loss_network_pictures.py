"""What counts in a loss network: pictures of networks trained on it. python benchmarks/loss_network_pictures.py

Each painting is trained on vgg16_slim and on VGG-16 itself with the same data, steps, network, seed and weights; an
outside judge (a script that prints JSON for --model and --style) scores both on photographs never seen, with VGG-16.
vgg16_slim has never seen candy nor the last painting (docs/held_out.json). --earlier FILE takes vgg19_slim along:
`git show d2d214e:nst_fast/assets/vgg19_slim.safetensors > vgg19_slim.safetensors`. --networks alexnet teachers
asks two more.
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

LOSS = [
    "loss.content_layers={relu3_3: 1.0}",
    "loss.style_layers={relu1_2: 0.25, relu2_2: 0.25, relu3_3: 0.25, relu4_3: 0.25}",
]
# Networks of other layers: Gatys', and relu3_1 for relu3_3.
GATYS = [
    "loss.content_layers={relu3_1: 1.0}",
    "loss.style_layers={relu1_1: 0.2, relu2_1: 0.2, relu3_1: 0.2, relu4_1: 0.2, relu5_1: 0.2}",
]
ALEXNET = [
    "loss.content_layers={relu3: 1}",
    "loss.style_layers={relu1: 0.2, relu2: 0.2, relu3: 0.2, relu4: 0.2, relu5: 0.2}",
]
NETWORKS = {
    "vgg16_slim": ["loss_network=vgg16_slim", *LOSS],
    "vgg16": [
        "loss_network=vgg16",
        f"loss_network.weights={SHARED / 'teachers' / 'vgg16_features.safetensors'}",
        *LOSS,
    ],
    "alexnet": [
        "loss_network=alexnet",
        f"loss_network.weights={SHARED / 'teachers' / 'alexnet_features.safetensors'}",
        *ALEXNET,
    ],
    "teachers": [*TEACHERS, *GATYS],
}
PAINTINGS = ["styles/starry_night.jpg", "styles/candy.jpg", "paintings/carl-newman__crucifixion.jpg"]
FIGURES = ("content_vgg16", "style_vgg16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paintings", nargs="+", default=PAINTINGS, help="below the folder of shared data")
    parser.add_argument("--networks", nargs="+", default=["vgg16_slim", "vgg16"], choices=NETWORKS)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--size", type=int, default=192, help="px, of the photographs")
    parser.add_argument("--earlier", type=Path, help="weights of vgg19_slim, taken along where given")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs", "loss_network_pictures"), help="resumes what is there"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    common = ["style.size=256", f"data.size={options.size}", "data.batch_size=2", f"trainer.max_steps={options.steps}"]
    networks = {name: [*common, *NETWORKS[name]] for name in dict.fromkeys(["vgg16", *options.networks])}
    if options.earlier:
        earlier = ["loss_network=vgg16_slim", f"loss_network.weights={options.earlier}"]
        networks[options.earlier.stem] = [*common, *GATYS, *earlier]
    paintings = {}
    for name in options.paintings:
        painting, found = SHARED / name, {}
        for network, given in networks.items():
            answer, _, _ = judged(painting, options.runs / f"{network}_{painting.stem}", given)
            found[network] = {figure: answer[figure] for figure in (*FIGURES, "painting_size_vgg16")}
        ratios = {
            network: {figure: found[network][figure] / found["vgg16"][figure] for figure in FIGURES}
            for network in networks
            if network != "vgg16"
        }
        paintings[painting.stem] = found | {"ratios": ratios}
        print(painting.stem, json.dumps(paintings[painting.stem], indent=1), flush=True)
    report = {
        "what": f"fast network, {options.steps} steps of 2 at {options.size} px, painting at 256 px, balanced loss",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "paintings": paintings,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
