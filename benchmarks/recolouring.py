"""What recolouring a finished network does: python benchmarks/recolouring.py RUN

RUN is a folder that `train style=NAME` left behind. Its network is exported as it learned and recoloured; VGG-16 of the
outside judge (../shared) compares what both make of the photographs of votes_recolouring_choice_1.json, 720 px.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from judging import SHARED, Judge, painting_of
from PIL import Image, ImageOps

from nst_fast.commands.export import export_in_8_bits
from nst_fast.loss.style_targets import COLOURS
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.checkpoints import kept_colours, last_checkpoint, read_checkpoint
from nst_fast.training.onnx_export import export_checkpoint, source_commit

PHOTOGRAPHS = json.loads(Path(__file__).with_name("votes_recolouring_choice_1.json").read_text())["photographs"]
SIZE = 720  # px


def content(judge: Judge, pairs: Iterable[tuple[Image.Image, Image.Image]]) -> float:
    """Return the relative distance of pictures from their photographs at relu3_3."""
    layer = ["relu3_3"]
    features = [[judge.features(picture, layer)[layer[0]] for picture in pair] for pair in pairs]
    return float(sum((a - b).square().sum() for a, b in features) / sum(a.square().sum() for a, _ in features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    photographs = [
        ImageOps.fit(load_image(SHARED / "content" / "large" / f"{name}.jpg"), (SIZE, SIZE), Image.Resampling.LANCZOS)
        for name in PHOTOGRAPHS
    ]
    checkpoint = read_checkpoint(last_checkpoint(options.run))
    if (colours := kept_colours(checkpoint)) is None:
        raise SystemExit(f"{options.run} compared no colours")
    moments, style = torch.cat(colours), checkpoint["nst_fast"]["config"]["style"]
    judge = Judge(painting_of(style))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for method in ("recoloured", "as it learned"):
            if method == "as it learned":
                weights = checkpoint["state_dict"]
                checkpoint["state_dict"] = {name: w for name, w in weights.items() if COLOURS not in name}
            model = export_checkpoint(checkpoint, Path(folder) / f"{method}.onnx")
            pictures = [Stylizer(model)(photograph) for photograph in photographs]
            by_size = judge.style(map(judge.grams, pictures))
            integers = Path(folder) / f"{method}.int8.onnx"
            export_in_8_bits(model, integers)
            found[method] = {
                "style_vgg16": min(by_size.values()),
                "painting size, px": min(by_size, key=by_size.__getitem__),
                "palette": statistics.fmean(map(judge.palette, pictures)),
                "content_vgg16": content(judge, zip(photographs, pictures, strict=True)),
                "8 bits, dB": float(Stylizer(integers).metadata["int8_psnr"]),
            }
            print(method, found[method], flush=True)
    second = moments[:, 1:] - moments[:, :1].mT @ moments[:, :1]
    deviations = second.diagonal(dim1=1, dim2=2).sqrt().tolist()
    results = {
        "what": f"{style['name']}, the judge's figures of {len(photographs)} photographs at {SIZE} px",
        "photographs": PHOTOGRAPHS,
        "deviations of red, green, blue": dict(zip(("painting", "pictures"), deviations, strict=True)),
        "commit": source_commit(),
        "figures": found,
    }
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
