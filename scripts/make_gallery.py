"""Make the README's pictures: CC0 photographs, what a shipped model makes of them, what the slow optimiser does.

python scripts/make_gallery.py            # every shipped model → docs/images/<style>.jpg
python scripts/make_gallery.py loss_network=teachers loss_network.shallow=FILE loss_network.deep=FILE

Options are the loss's, where it is not to be had from the models alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage.data
from PIL import Image

from nst_fast.assets import shipped_models
from nst_fast.commands.compare import loss_arguments
from nst_fast.commands.configuration import load_config
from nst_fast.commands.optimize import resolve
from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_style
from nst_fast.files import write_atomically
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.reference.image_optimizer import optimize_image
from nst_fast.stylizing.images import encode_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.photographs import centre_crop
from nst_fast.training.sheet import draw_sheet

SIDE = 300  # px of one picture
LARGEST = 200_000  # bytes of a sheet
ITERATIONS = 200  # of L-BFGS, from the photograph, on the loss that the model was trained on
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images"


def main() -> None:
    # Near enough that faces have the pixels to be recognised by.
    arrays = {
        "a cat": skimage.data.chelsea(),
        "an astronaut": skimage.data.astronaut()[:320, 60:380],
        "coffee": skimage.data.coffee(),
    }
    photographs = [to_image(centre_crop(Image.fromarray(array), SIDE)[None] / 255) for array in arrays.values()]
    for name, model in shipped_models().items():
        stylize = Stylizer(model)
        cfg = load_config("optimize", ["content=photograph", *loss_arguments(stylize, name, sys.argv[1:])])
        resolve(cfg)
        loss = create_perceptual_loss(cfg)
        style_targets, _ = find_style(cfg.style, loss)
        slow = [optimize_image(to_tensor(p), loss, style_targets, iterations=ITERATIONS)[0] for p in photographs]
        rows = list(zip(photographs, map(stylize, photographs), map(to_image, slow), strict=True))
        columns = ["photograph", "the model, one forward pass", f"the optimiser, {ITERATIONS} iterations"]
        title = f"{cfg.style.title}, {cfg.style.artist}"
        path = OUTPUT / f"{name}.jpg"
        sheet = draw_sheet(rows, list(arrays), columns, title)
        tried = (encode_image(sheet, path.suffix, quality) for quality in range(80, 20, -5))
        write_atomically(path, next(content for content in tried if len(content) <= LARGEST))
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
