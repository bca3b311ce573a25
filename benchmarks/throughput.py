"""Training images/s and stylized frames/s of torch, on a GPU or a CPU. python benchmarks/throughput.py

Training is the command `train` itself, data and log and all, with the VGG-19 architecture (random weights cost the
same) and with vgg16_slim as loss network; beside it bare forward and backward passes over a batch in memory, and, on a
CPU, the share of the time between its first and last step that `train` spends in forward and backward passes of
training. Frames are passes of the network in bf16, channels-last and compiled, where that pays. Multiply-adds are
counted by torch and set against a large matrix product measured in the same run. A GPU wants --batch 32 --steps 2000; a
CPU manages --steps 30 --size 128.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do, before torch is imported
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from judging import DATA
from torch.utils.flop_counter import FlopCounterMode

from nst_fast.commands.train import train_command
from nst_fast.loss.loss_networks import multiplies_bfloat16
from nst_fast.loss.perceptual_loss import BalancedLoss, split_name, style_target
from nst_fast.loss.pretrained import VGG_WIDTHS, create_loss_network
from nst_fast.training.networks import create_network, for_inference
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.style_transfer import StyleTransfer

NETWORKS = {"fast": ("fast", 48, 4), "tiny": ("tiny", 16, 3), "johnson": ("johnson", 32, 5)}
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
FRAMES = {"720p": (720, 1280), "1080p": (1080, 1920)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = torch.bfloat16 if multiplies_bfloat16(DEVICE.type) else torch.float32


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of some work, after three rounds that warm up."""
    taken = []
    for _ in range(rounds + 3):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:])


def write_random_vgg19(path: Path) -> None:
    """Write VGG-19's convolutions in torchvision's format with random weights."""
    state, channels, position = {}, 3, 0
    for widths in VGG_WIDTHS["vgg19"]:
        for width in widths:
            std = (2 / (9 * channels)) ** 0.5
            state[f"features.{position}.weight"] = torch.randn(width, channels, 3, 3) * std
            state[f"features.{position}.bias"] = torch.zeros(width)
            channels, position = width, position + 2
        position += 1
    torch.save(state, path)


@contextlib.contextmanager
def passes_timed() -> Iterator[list[float]]:
    """Give one number: the seconds that `train` on a CPU spends in forward and backward passes, validation apart."""
    spent, method = [0.0], StyleTransfer.backward_in_threads

    def timed(module: StyleTransfer, content: torch.Tensor) -> dict[str, torch.Tensor]:
        start = time.perf_counter()
        terms = method(module, content)
        spent[0] += time.perf_counter() - start
        return terms

    with patch.object(StyleTransfer, "backward_in_threads", timed):
        yield spent


def training(name: str, loss_network: list[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return images/s of `train`, and of bare passes over the same shapes."""
    style = ["style=custom", f"style.image={options.style}", f"style.size={options.size}", f"network={name}"]
    shape = [f"data.batch_size={options.batch}", f"data.size={options.size}", f"trainer.max_steps={options.steps}"]
    run = folder / f"{name} {loss_network[0]}"
    with passes_timed() as spent:
        train_command([*style, *DATA, *shape, *loss_network, f"output={run}"])
    summary = json.loads((run / "summary.json").read_text())
    seconds_taken = options.steps * options.batch / summary["images_per_second"]

    torch.manual_seed(0)
    network = create_network(*NETWORKS[name]).to(DEVICE, memory_format=torch.channels_last)
    given = dict(option.split(".", 1)[1].split("=") for option in loss_network[1:])
    frozen = create_loss_network(loss_network[0].removeprefix("loss_network="), **given).to(DEVICE)
    loss = BalancedLoss(frozen, {"relu4_2": 1.0}, dict.fromkeys(STYLE_LAYERS, 0.2), 1.0, 7.0, 1.0)
    content = torch.rand(options.batch, 3, options.size, options.size, device=DEVICE)
    content = content.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = frozen(content[:1], loss.layers)
        style = {name: style_target(frozen, name, features[split_name(name)[1]]) for name in loss.style_target_names}

    def passes() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=multiplies_bfloat16(DEVICE.type)):
            terms = loss(network(content).float(), loss.content_targets(content), style)
        terms["total"].backward()

    with FlopCounterMode(display=False) as counter:
        passes()
    bare = options.batch / seconds(passes, options.rounds)
    return {
        "images_per_second": summary["images_per_second"],
        "share_of_time_in_passes": spent[0] / seconds_taken if DEVICE.type == "cpu" else None,
        "bare_passes_images_per_second": bare,
        "against_bare_passes": summary["images_per_second"] / bare,  # above 1: train shares a batch among threads
        "flop_per_image": counter.get_total_flops() / options.batch,
        "loss_network": summary["loss_network"].split("@")[0],
    }


@torch.no_grad()
def frames(name: str, height: int, width: int, options: argparse.Namespace) -> dict[str, float]:
    """Return frames/s of a network, one at a time."""
    torch.manual_seed(0)
    network = for_inference(create_network(*NETWORKS[name])).to(DEVICE, PRECISION, memory_format=torch.channels_last)
    picture = torch.rand(1, 3, height, width, device=DEVICE, dtype=PRECISION)
    picture = picture.contiguous(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        network(picture)
    run: Any = torch.compile(network, mode="max-autotune", dynamic=False) if DEVICE.type == "cuda" else network
    return {"frames_per_second": 1 / seconds(lambda: run(picture), options.rounds), "flop": counter.get_total_flops()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", type=Path, default=Path(__file__).parents[2] / "shared/styles/starry_night.jpg")
    parser.add_argument("--size", type=int, default=256, help="px, of the crops and the painting")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--frames", nargs="*", default=list(FRAMES), choices=FRAMES)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    side = 8192 if DEVICE.type == "cuda" else 2048
    matrix = torch.rand(side, side, device=DEVICE, dtype=PRECISION)
    peak = 2 * side**3 / seconds(lambda: matrix @ matrix, options.rounds)
    found: dict[str, Any] = {"training": {}, "frames": {}}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vgg19.pth"
        write_random_vgg19(weights)
        losses = {
            "vgg19": ["loss_network=vgg19", f"loss_network.weights={weights}"],
            "vgg16_slim": ["loss_network=vgg16_slim"],
        }
        for name in options.networks:
            for loss_network, given in losses.items():
                figures = training(name, given, options, Path(folder))
                figures["share_of_matrix_product"] = figures["flop_per_image"] * figures["images_per_second"] / peak
                found["training"][f"{name}, {loss_network}"] = figures
                print(name, loss_network, json.dumps(figures), flush=True)
    for size in options.frames:
        found["frames"][size] = {n: frames(n, *FRAMES[size], options) for n in options.networks}
        for figures in found["frames"][size].values():
            figures["share_of_matrix_product"] = figures["flop"] * figures["frames_per_second"] / peak
        print(size, json.dumps(found["frames"][size]), flush=True)
    report = {
        "what": f"train at {options.size} px, batch {options.batch}, {options.steps} steps; frames one at a time",
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "precision": str(PRECISION).removeprefix("torch."),
        "matrix_product_flop_per_second": peak,
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        **found,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
