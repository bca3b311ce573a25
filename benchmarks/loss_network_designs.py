"""Widths of vgg19_slim: fidelity against cost. python benchmarks/loss_network_designs.py

Every design learns the teachers' features on the same photographs for the same few hundred steps from the same seed,
far from convergence: the order counts, not the level. R² is of a 1×1 map by least squares on validation photographs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from nst_fast.training.onnx_export import source_commit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import distill_loss_network as distillation  # noqa: E402

DESIGNS = {
    "narrow": [[16, 16], [48, 24], [96, 64], [96, 96], [96]],
    "first shipped": [[24, 24], [64, 32], [128, 96], [128, 128], [128]],
    "shipped": [[24, 24], [96, 24], [96, 96], [160, 128, 128], [256]],
    "wide at full resolution": [[32, 32], [64, 32], [128, 96], [128, 128], [128]],
    "wide at a half": [[24, 24], [96, 48], [128, 96], [128, 128], [128]],
    "wide and deep below": [[24, 16], [64, 32], [128, 128, 96], [192, 192, 192], [256]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=128, help="px, of the crops")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("loss_network_designs.json"))
    options = parser.parse_args()
    cfg: Any = OmegaConf.load(ROOT / "configs" / "distill_loss_network.yaml")
    teachers = distillation.Teachers(cfg, torch.device("cpu"))
    mixture = distillation.Mixture(cfg)
    rows = {}
    for name, widths in DESIGNS.items():
        cfg.widths = widths
        student = distillation.new_student(cfg, teachers, mixture)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = distillation.Optimizer(student, cfg.learning_rate, options.steps)
        for step in range(options.steps):
            rng = np.random.default_rng((cfg.seed, step))
            images = torch.stack([mixture.photograph(options.size, rng) for _ in range(4)])
            with distillation.autocast(cfg.precision, torch.device("cpu")):
                errors = distillation.matching_errors(student, teachers, images)
            parts = [error.mean() for kind in ("feature", "full_width") for error in errors[kind].values()]
            optimizer.step(torch.stack(parts).sum())
        trained = student.folded().eval().requires_grad_(False)
        picture = torch.rand(1, 3, 256, 256).contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(8):
            x = picture.clone().requires_grad_(True)
            began = time.perf_counter()
            features = list(trained(x, trained.layers).values())
            torch.autograd.grad(features, x, [torch.ones_like(f) for f in features])
            times.append(time.perf_counter() - began)
        rows[name] = {
            "widths": widths,
            "multiply_adds_per_pixel": distillation.multiply_adds(widths),
            "seconds_fastest": min(times),
            "r2": distillation.fidelity(cfg, trained, photographs=60),
        }
        print(name, json.dumps(rows[name]), flush=True)
    report = {
        "what": f"{options.steps} steps of 4 photographs at {options.size} px, features only; 1 × 256² for the time",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "designs": rows,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
