"""Make the README's pictures: scikit-image's public-domain and CC0 photographs beside their stylized versions.

python scripts/make_gallery.py            # every shipped model → docs/images/<style>.jpg
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from nst_fast.assets import shipped_models
from nst_fast.images import resize_short_side, save_image
from nst_fast.stylizer import Stylizer

HEIGHT = 240  # px of one picture
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images"


def main() -> None:
    arrays = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut())
    photographs = [resize_short_side(Image.fromarray(a), HEIGHT) for a in arrays]
    for name, model in shipped_models().items():
        stylize = Stylizer(model)
        rows = [np.concatenate([np.asarray(p) for p in photographs], 1)]
        rows.append(np.concatenate([np.asarray(stylize(p)) for p in photographs], 1))
        path = OUTPUT / f"{name}.jpg"
        save_image(Image.fromarray(np.concatenate(rows)), path, quality=80)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
