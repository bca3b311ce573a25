"""Make the pictures of README and cards: CC0 photographs, what a shipped model makes of them, what the optimiser does.

python scripts/make_gallery.py                    # every shipped model → docs/images/<style>.jpg, and gallery.jpg
python scripts/make_gallery.py loss_network=vgg16 loss_network.weights=FILE
python scripts/make_gallery.py movement           # one of them

Options are the optimiser's: it works on the loss that the model was trained on, by a real VGG where one is to be had.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image
from release_models import painting_of

from nst_fast.assets import GALLERY, shipped_models
from nst_fast.commands.compare import loss_arguments
from nst_fast.commands.configuration import load_config
from nst_fast.commands.optimize import optimize
from nst_fast.files import write_atomically
from nst_fast.loss.tensors import to_image
from nst_fast.stylizing.contact_sheet import contact_sheet
from nst_fast.stylizing.images import encode_image, load_image, save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.photographs import centre_crop
from nst_fast.training.sheet import draw_sheet

SIDE = 320  # px of one picture
PAINTED = 640  # px at which those of the gallery are painted: strokes are as fine as in a picture of that size
LARGEST = 400_000  # bytes of a sheet
ITERATIONS = 100  # of L-BFGS at each scale, from the photograph
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images"


def main() -> None:
    names = [argument for argument in sys.argv[1:] if "=" not in argument]
    options = [argument for argument in sys.argv[1:] if "=" in argument]
    shipped = shipped_models()
    cat, coffee = (
        to_image(centre_crop(Image.fromarray(array), SIDE)[None] / 255)
        for array in (skimage.data.chelsea(), skimage.data.coffee())
    )
    for name in names or shipped:
        stylize = Stylizer(shipped[name])
        if name == GALLERY:
            large = cat.resize((PAINTED, PAINTED), Image.Resampling.LANCZOS)
            pictures = {
                style: stylize(large, style).resize(cat.size, Image.Resampling.LANCZOS) for style in stylize.paintings
            }
            write_small(contact_sheet({"photograph": cat, **pictures}), OUTPUT / f"{GALLERY}.jpg")
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "coffee.png")
            save_image(coffee, file)
            chosen = [f"content={file}", f"output={folder}/optimised", f"size={SIDE}", f"iterations={ITERATIONS}"]
            cfg = load_config(
                "optimize", [*chosen, *loss_arguments(stylize, name, [*painting(shipped[name]), *options])]
            )
            row = coffee, stylize(coffee), load_image(optimize(cfg))
        columns = ["photograph", "the model", f"the optimiser, {ITERATIONS} iterations a scale"]
        title = f"{stylize.metadata['title']}, {stylize.metadata['artist']}"
        write_small(draw_sheet([row], ["coffee"], columns, title), OUTPUT / f"{name}.jpg")


def painting(model: Path) -> list[str]:
    """Return the option that gives a model's painting where it does not ship."""
    image = json.loads(Stylizer(model).metadata["config"])["style"]["image"]
    return [f"style.image={painting_of(model)}"] if image else []


def write_small(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as the best JPEG that takes no more than LARGEST."""
    tried = (encode_image(sheet, path.suffix, quality) for quality in range(80, 20, -5))
    write_atomically(path, next(content for content in tried if len(content) <= LARGEST))
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
