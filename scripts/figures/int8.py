"""A photograph, two released models in floating point and in 8-bit integers, and ten times their difference, at 1:1.

python scripts/figures/int8.py    # → docs/images/int8.jpg
"""

import skimage.data
from PIL import Image, ImageChops
from sheet import DOCS

from nst_fast.assets import find_model
from nst_fast.stylizing.images import save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.sheet import draw_sheet

STYLES = ("starry_night", "great_wave")
SHOWN = (60, 0, 380, 320)  # px: left, top, right, bottom
TIMES = 10


def main() -> None:
    photograph = Image.fromarray(skimage.data.astronaut())
    rows = []
    for style in STYLES:
        pictures = [Stylizer(find_model(name))(photograph).crop(SHOWN) for name in (style, f"{style}.int8")]
        difference = ImageChops.difference(*pictures).point(lambda step: TIMES * step)
        rows.append([photograph.crop(SHOWN), *pictures, difference])
    columns = ["photograph", "floating point", "8-bit integers", f"difference ×{TIMES}"]
    path = DOCS / "int8.jpg"
    save_image(draw_sheet(rows, list(STYLES), columns, ""), path, quality=70)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
