"""Forward and backward of vgg16_slim against VGG-16, both in one run: python benchmarks/loss_network.py

VGG-16 has random weights, which cost the same. Both run to relu4_3 in channels-last memory at 256², batch 4, and give
the taps of the default loss; the gradient goes to the picture. Rounds alternate; ratios are of medians. --earlier FILE
takes an earlier small network along, with its own taps, for example
`git show d2d214e:nst_fast/assets/vgg19_slim.safetensors > vgg19_slim.safetensors`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from datetime import date
from pathlib import Path

# As the commands do (nst_fast.commands.tune_torch), before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch

from nst_fast.loss.loss_networks import VGG, LossNetwork, freeze
from nst_fast.loss.pretrained import VGG_WIDTHS, create_loss_network, load_slim_vgg
from nst_fast.training.onnx_export import source_commit

LAYERS = ["relu1_2", "relu2_2", "relu3_3", "relu4_3"]
EARLIER_LAYERS = [
    "relu1_1",
    "relu2_1",
    "relu3_1",
    "relu4_1",
    "relu4_2",
    "relu5_1",
]  # vgg19_slim's


def seconds(network: LossNetwork, layers: list[str], picture: torch.Tensor, precision: torch.dtype) -> float:
    """Return the time of one forward and backward pass; the taps' gradients, which a loss would give, are there."""
    with torch.no_grad(), torch.autocast(picture.device.type, precision, enabled=precision != torch.float32):
        gradients = [torch.ones_like(f) for f in network(picture, layers).values()]
    x = picture.clone(memory_format=torch.channels_last).requires_grad_(True)
    device = picture.device.type
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        features = list(network(x, layers).values())
    torch.autograd.backward(features, gradients)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--earlier", type=Path, help="weights of an earlier small network")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("loss_network.json"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    networks: dict[str, LossNetwork] = {
        "vgg16": freeze(VGG(VGG_WIDTHS["vgg16"])),
        "vgg16_slim": create_loss_network("vgg16_slim"),
    }
    if options.earlier:
        networks[options.earlier.stem] = freeze(load_slim_vgg(options.earlier))
    picture = torch.rand(options.batch, 3, options.size, options.size, device=device)
    results = {}
    for precision in (torch.float32, torch.bfloat16):
        times: dict[str, list[float]] = {name: [] for name in networks}
        for turn in range(options.rounds + 2):
            for name, network in networks.items():
                layers = LAYERS if set(LAYERS) <= set(network.layers) else EARLIER_LAYERS
                taken = seconds(network.to(device), layers, picture, precision)
                if turn >= 2:  # the first two warm up
                    times[name].append(taken)
        results[str(precision).removeprefix("torch.")] = {
            name: {"median_seconds": statistics.median(t), "fastest": min(t), "slowest": max(t)}
            for name, t in times.items()
        } | {
            "ratios": {
                f"{name} over vgg16_slim": statistics.median(t) / statistics.median(times["vgg16_slim"])
                for name, t in times.items()
                if name != "vgg16_slim"
            }
        }
    report = {
        "what": "forward and backward, all taps of the default loss",
        "batch": options.batch,
        "size": options.size,
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "results": results,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
