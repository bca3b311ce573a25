"""What 8-bit integers do to pictures: losses and an outside judge's figures. python benchmarks/int8.py [MODEL...]

Every model, the released ones unless others are named, is quantised as `nst-export --int8` does, and both are looked at
on the same photographs, which neither training nor quantisation has seen.
Seconds are in networks.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnxruntime
import torch
from judging import SHARED, ask_judge, painting_of

from nst_fast.assets import GALLERY, find_model, shipped_models
from nst_fast.commands.compare import compare_command
from nst_fast.commands.export import export_in_8_bits
from nst_fast.loss.tensors import to_image
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.quantization import psnr
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.photographs import centre_crop

PHOTOGRAPHS = SHARED / "content" / "val"
JUDGED = ("content", "style", "style_vgg19", "tv")


def nearness(models: list[Path], count: int, size: int) -> dict[str, float]:
    """Return how near two models' pictures are, in dB and in steps of 1/255."""
    first, second = map(Stylizer, models)
    crops = [to_image(centre_crop(load_image(p), size)[None] / 255) for p in sorted(PHOTOGRAPHS.glob("*.jpg"))[:count]]
    pairs = [(np.asarray(first(crop)), np.asarray(second(crop))) for crop in crops]
    return {
        "psnr_least": min(psnr(*pair) for pair in pairs),
        "psnr_mean": float(np.mean([psnr(*pair) for pair in pairs])),
        "mean_difference": float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs])),
    }


def losses(models: list[Path], count: int, painting: list[str]) -> dict[str, dict[str, float]]:
    """Return the mean losses of models, on the loss that the first was trained on."""
    with tempfile.TemporaryDirectory() as folder:
        given = [argument for model in models for argument in ("--model", str(model))]
        options = ["--content", str(PHOTOGRAPHS), "--count", str(count), "--iterations", "1", "-o", folder]
        compare_command([*given, *options, "--methods", "adam", "--starts", "content", *painting])
        report = json.loads((Path(folder) / "report.json").read_text())
    return {name: found["losses"] for name, found in report["models"].items()}


def compared(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures of a model are in floating point and in 8 bits."""
    style = json.loads(Stylizer(model).metadata["config"])["style"]
    painting = painting_of(style)
    with tempfile.TemporaryDirectory() as folder:
        both = [model, export_in_8_bits(model, Path(folder) / f"{model.stem}.int8.onnx")]
        own = [f"style.image={painting}"] if style["name"] == "custom" or style["image"] else []
        answers = [ask_judge(path, painting, options.count) for path in both]
        loss = losses(both, options.count, own + options.loss)
        near = nearness(both, options.count, 256)
    return {
        **near,
        "losses": dict(zip(("float32", "int8"), loss.values(), strict=True)),
        "judge": {
            kind: {name: answer[name] for name in JUDGED}
            for kind, answer in zip(("float32", "int8"), answers, strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of models of one painting, or files (default: all that ship)")
    parser.add_argument("--count", type=int, default=12, help="photographs")
    parser.add_argument("--loss", nargs="*", default=[], metavar="key=value", help="of the loss, as for nst-compare")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.models or [name for name in shipped_models() if name != GALLERY]:
        model = find_model(name)
        name = name if name in shipped_models() else f"{model.stem}, {Stylizer(model).metadata['steps']} steps"
        found[name] = compared(model, options)
        print(name, json.dumps(found[name]), flush=True)
    report = {
        "what": f"float32 against int8 on {options.count} photographs of 256 px: dB, losses, the judge",
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "device": f"CPU {torch.backends.cpu.get_cpu_capability()} ({platform.machine()})",
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "models": found,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
