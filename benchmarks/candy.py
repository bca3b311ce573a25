"""Models of candy against the peer's that made the look known, at 720 px: python benchmarks/candy.py RUN...

A run is a folder that `train` left behind. An outside judge scores both sides on two sets of photographs. Beside it
stands how much of the photographs can be recognised: the correlation of stylized features with the photograph's,
filter by filter, weighted by the filter's variance there; 1 is the photograph.
What the output has of other runs stays, each with the commit that it was measured at.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch
from judging import SHARED, ask_judge
from omegaconf import OmegaConf

from nst_fast.loss.loss_networks import VGG
from nst_fast.loss.pretrained import load_converted_vgg
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.photographs import centre_crop

PAINTING = SHARED / "styles" / "candy.jpg"
PEER = SHARED / "peers" / "winml_candy_720.onnx"
SIZE = 720  # px, the peer's
SETS = {"3 photographs": SHARED / "photos", "12 validation photographs": SHARED / "content" / "val"}
MOST = 12
LAYERS = ("relu3_3", "relu4_2")
FIGURES = ("content", "style", *(f"style_relu{n}_1" for n in range(1, 6)), "style_vgg19", "tv", "painting_size")
TOLD = (
    *("network.name", "network.width", "network.blocks", "network.grain", "loss_network.name"),
    *("loss.name", "loss.content_layers", "loss.style_layers", "loss.sliced_layers"),
    *("loss.style_weight", "loss.tv_weight", "trainer.grid_weight", "trainer.weave_weight"),
    *("style.size", "style.content_distance", "data.size", "data.window", "data.batch_size"),
    *("trainer.max_steps", "trainer.learning_rate"),
)


@torch.no_grad()
def correlations(stylize: Stylizer, photographs: Path, network: VGG) -> dict[str, float]:
    """Return the mean correlation of features with the photographs', layer by layer."""
    files = sorted(photographs.glob("*.jpg"))[:MOST]
    sums = dict.fromkeys(LAYERS, 0.0)
    for file in files:
        photograph = to_image(centre_crop(load_image(file), SIZE)[None] / 255)
        features = [network(to_tensor(picture), LAYERS) for picture in (stylize(photograph), photograph)]
        for layer in LAYERS:
            x, p = (f[layer][0].flatten(1).double() for f in features)
            x, p = x - x.mean(1, keepdim=True), p - p.mean(1, keepdim=True)
            variance = p.square().mean(1)
            correlation = (x * p).mean(1) / (x.square().mean(1) * variance).sqrt().clamp_min(1e-12)
            sums[layer] += float((correlation * variance).sum() / variance.sum())
    return {layer: value / len(files) for layer, value in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    network = load_converted_vgg(SHARED / "teachers" / "vgg19_quarter_width_to_conv5_1.safetensors", "max")
    measured = {"commit": source_commit(), "date": date.today().isoformat()}
    found: dict[str, Any] = json.loads(options.output.read_text())["models"] if options.output.exists() else {}
    found["the peer"] = {}
    sides = {"the peer": (PEER, Stylizer(PEER, pixel_range=255, bgr=True), ["--bgr"])}
    for run in options.runs:
        config, summary = OmegaConf.load(run / "config.yaml"), json.loads((run / "summary.json").read_text())
        chosen: Any = OmegaConf.to_container(OmegaConf.create({name: OmegaConf.select(config, name) for name in TOLD}))
        found[run.name] = chosen | {"minutes": summary["seconds"] / 60, "device": summary["device"]}
        sides[run.name] = (run / "candy.onnx", Stylizer(run / "candy.onnx"), [])
    for name, (model, stylize, given) in sides.items():
        found[name] |= measured
        for which, photographs in SETS.items():
            shown = correlations(stylize, photographs, network)
            answer = ask_judge(model, PAINTING, MOST, ["--size", str(SIZE), "--photos", str(photographs), *given])
            found[name][which] = {figure: answer[figure] for figure in FIGURES} | {"correlation": shown}
        print(name, json.dumps(found[name], indent=1), flush=True)
    report = {
        "what": f"candy at {SIZE} px, relative distances to painting and photograph",
        "device": f"CPU, {os.cpu_count()} cores",
        "models": found,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
