"""The released models at 256, 720 and 2160 px: whole pictures shown small, and 240 px of each at full size.

python scripts/figures/sizes.py    # → docs/images/sizes.jpg
"""

import skimage.data
from PIL import Image
from sheet import DOCS

from nst_fast.assets import shipped_models
from nst_fast.stylizing.images import save_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.sheet import draw_sheet

SIZES = (256, 720, 2160)  # px, side of the picture
SHOWN = 240  # px


def main() -> None:
    photograph = Image.fromarray(skimage.data.astronaut())
    rows = []
    for model in shipped_models().values():
        stylize, row = Stylizer(model), []
        for size in SIZES:
            picture = stylize(photograph.resize((size, size), Image.Resampling.LANCZOS))
            left, top = round(0.42 * size), round(0.1 * size)
            left, top = min(left, size - SHOWN), min(top, size - SHOWN)
            row += [
                picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS),
                picture.crop((left, top, left + SHOWN, top + SHOWN)),
            ]
        rows.append(row)
    columns = [text for size in SIZES for text in (f"{size} px, whole", f"{size} px, 1:1")]
    path = DOCS / "sizes.jpg"
    save_image(draw_sheet(rows, list(shipped_models()), columns, "Released models at three sizes"), path, quality=55)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
