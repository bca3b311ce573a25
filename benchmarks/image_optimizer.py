"""An iteration of the image optimiser against torch's bare forward and backward: python benchmarks/image_optimizer.py

Both run full-width VGG-19 with random weights to relu5_1 at 512² on the taps of Gatys' loss. Bare: torch's own
layers in a row, and the gradient of the taps' sum to the picture. Ours: L-BFGS with every loss term, line search
included. Rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path

# As the commands do (nst_fast.commands.tune_torch), before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from nst_fast.loss.loss_networks import VGG, freeze
from nst_fast.loss.perceptual_loss import BalancedLoss, split_name, style_target
from nst_fast.loss.pretrained import VGG_WIDTHS
from nst_fast.reference.image_optimizer import optimize_image
from nst_fast.training.onnx_export import source_commit

STYLE_LAYERS = [f"relu{block}_1" for block in range(1, 6)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("image_optimizer.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    network = VGG(VGG_WIDTHS["vgg19"])
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # torch's own start dies out over 13 layers
    loss = BalancedLoss(freeze(network), {"relu4_2": 1.0}, dict.fromkeys(STYLE_LAYERS, 0.2), 1.0, 7.0, 3.0)
    content, painting = torch.rand(2, 1, 3, options.size, options.size).unbind()
    with torch.no_grad():
        features = network(painting**2, loss.layers)
        style = {name: style_target(network, name, features[split_name(name)[1]]) for name in loss.style_target_names}

    layers = [network.preprocess]
    taps = []  # how many layers each runs through
    for name, convolution in network.convolutions.items():
        if name != "1_1" and name.endswith("_1"):
            layers.append(torch.nn.MaxPool2d(2))
        own = torch.nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1)
        own.load_state_dict(convolution.state_dict())
        layers += [own.to(memory_format=torch.channels_last), torch.nn.ReLU(inplace=True)]
        if "relu" + name in loss.layers:
            taps.append(len(layers))
        if name == "5_1":
            break
    plain = torch.nn.Sequential(*layers).requires_grad_(False)

    def taps_of(picture: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number, layer in enumerate(plain, start=1):
            picture = layer(picture)
            if number in taps:
                features.append(picture)
        return features

    def bare() -> float:
        picture = content.clone(memory_format=torch.channels_last).requires_grad_(True)
        ones = [torch.ones_like(f) for f in taps_of(picture)]
        began = time.perf_counter()
        for _ in range(options.iterations):
            torch.autograd.grad(taps_of(picture), picture, ones)
        return (time.perf_counter() - began) / options.iterations

    def ours() -> float:
        _, trace = optimize_image(content, loss, style, iterations=options.iterations)
        # The first row is the start: content targets are made before it.
        return (trace[-1]["seconds"] - trace[0]["seconds"]) / (len(trace) - 1)

    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for turn in range(options.rounds + 1):
        for name, measure in (("bare", bare), ("ours", ours)):
            seconds = measure()
            if turn:  # the first warms up
                times[name].append(seconds)
    report = {
        "what": "seconds an iteration, VGG-19 with random weights to relu5_1, L-BFGS against bare forward and backward",
        "size": options.size,
        "device": f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "seconds": {k: {"median": statistics.median(t), "all": t} for k, t in times.items()},
        "ratio": statistics.median(times["ours"]) / statistics.median(times["bare"]),
        "ratio_of_the_fastest": min(times["ours"]) / min(times["bare"]),
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
