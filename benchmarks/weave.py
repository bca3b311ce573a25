"""Detail that is one wave all over the picture, a weave to the eye: python benchmarks/weave.py [NAME=MODEL...]

`pixel_weave` and `pixel_grid` of what the shipped models and the peers' make of photographs never trained on, of the
photographs themselves, and of other models given by name. A sheet shows a smooth place of one photograph as those given
and the shipped model of their style paint it, enlarged.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import skimage.data
import torch
from judging import SHARED
from PIL import Image

from nst_fast.assets import shipped_models
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.loss.terms import pixel_grid, pixel_weave
from nst_fast.stylizing.images import load_image, save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit
from nst_fast.training.photographs import centre_crop
from nst_fast.training.sheet import draw_sheet

PHOTOGRAPHS = SHARED / "content" / "val"
PLACE, ENLARGED = (180, 40, 340, 200), 3  # px of scikit-image's coffee, and how many times they are shown


def measured(paint: Callable[[Image.Image], Image.Image], size: int) -> dict[str, float]:
    """Return the mean and the largest weave and the mean grid over the validation photographs, of size × size px."""
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    photographs = (to_image(centre_crop(load_image(file), size)[None] / 255) for file in files)
    pictures = [to_tensor(paint(photograph)) for photograph in photographs]
    weave = torch.cat([pixel_weave(picture) for picture in pictures])
    grid = torch.cat([pixel_grid(picture) for picture in pictures])
    return {"size": size, "weave": float(weave.mean()), "most": float(weave.max()), "grid": float(grid.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="others, NAME=FILE")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--sheet", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "weave.jpg")
    options = parser.parse_args()
    given = {name: Stylizer(file) for name, _, file in (model.partition("=") for model in options.models)}
    shipped = {name: Stylizer(model) for name, model in shipped_models().items()}
    sides: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {"the photographs": (lambda one: one, 256)}
    sides |= {name: (stylize, 256) for name, stylize in (shipped | given).items()}
    for peer in sorted((SHARED / "peers").glob("*.onnx")):
        bgr, size = peer.stem.startswith("winml"), int(peer.stem.split("_")[-1])
        sides[peer.stem] = (Stylizer(peer, pixel_range=255, bgr=bgr), size)
    figures = {}
    for name, (paint, size) in sides.items():
        figures[name] = measured(paint, size)
        print(name, figures[name], flush=True)
    report = {
        "what": f"{len(list(PHOTOGRAPHS.glob('*.jpg')))} validation photographs",
        "device": f"CPU, {os.cpu_count()} cores",
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "figures": figures,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    if not given:
        return
    style = next(iter(given.values())).metadata["style"]
    painters = {"photograph": lambda one: one} | given | {f"{style}, shipped": shipped[style]}
    photograph = Image.fromarray(skimage.data.coffee())
    size = tuple(ENLARGED * (end - start) for start, end in zip(PLACE[:2], PLACE[2:], strict=True))
    pictures = [paint(photograph).crop(PLACE) for paint in painters.values()]
    places = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
    save_image(draw_sheet([places], [""], list(painters), ""), options.sheet, quality=60)


if __name__ == "__main__":
    main()
