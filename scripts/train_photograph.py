"""Learn the vector in which the gallery gives photographs back, which its strengths below 1 are blended with.

    python scripts/train_photograph.py

The gallery's convolutions stay as they are. Instance norms take a photograph's brightness and contrast out, so pictures
are compared with their photographs mostly once they have each channel's mean and deviation; what is lost is added when
pictures are painted (`Stylizer.stylize`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor
from train_decoders import ROOT, pictures

from nst_fast.assets import ASSETS, GALLERY, find_model
from nst_fast.loss.tensors import to_tensor
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.style_file import AS_PAINTED, StyleFile
from nst_fast.training.onnx_export import import_network, trunk
from nst_fast.training.photographs import random_window

SIZE, BATCH = 160, 4  # px, pictures a step


def lost(painted: Tensor, photographs: Tensor) -> Tensor:
    """Return how far pictures (N, 3, H, W) are from photographs, tone aside, and a little of how far with it."""
    deviation, mean = torch.std_mean(painted, (2, 3), keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(photographs, (2, 3), keepdim=True)
    toned = (painted - mean) / (deviation + 1e-3) * wanted_deviation + wanted_mean
    return 10 * (toned - photographs).abs().mean() + 2 * (painted - photographs).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folders = [str(ROOT / "../shared/content" / name) for name in ("train", "large")]
    parser.add_argument("--photographs", nargs="+", default=folders)
    parser.add_argument("--model", type=Path, default=find_model(GALLERY))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument(
        "--output", type=Path, default=ASSETS / "photograph", help="folder; the gallery's identity names the file"
    )
    options = parser.parse_args()
    files, rng = pictures(options.photographs), np.random.default_rng(0)
    network = import_network(options.model).requires_grad_(False)
    vector = network.as_learned().mean(0, keepdim=True).requires_grad_(True)
    optimizer = torch.optim.Adam([vector], options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.steps)

    def photograph() -> Tensor:
        pixels = np.asarray(load_image(files[rng.integers(len(files))]))
        return to_tensor(Image.fromarray(np.ascontiguousarray(random_window(pixels, SIZE, SIZE, rng))))

    for step in range(options.steps):
        photographs = torch.cat([photograph() for _ in range(BATCH)])
        loss = lost(network(photographs, vector), photographs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {options.steps}, loss {float(loss.detach()):.3f}", flush=True)
    identity = trunk(onnx.load(options.model))
    options.output.mkdir(parents=True, exist_ok=True)
    style = StyleFile(identity, {"name": "photograph"}, [*vector.detach()[0].tolist(), *AS_PAINTED])
    style.save(options.output / f"{identity}.style")


if __name__ == "__main__":
    main()
