"""MDN's clip of a flower (CC0, ../shared/video) by starry_night, with and without --steady, as a moving picture.

python scripts/figures/video.py    # → docs/images/video.webp
"""

from itertools import islice
from pathlib import Path

import av
from PIL import Image
from sheet import DOCS

from nst_fast.stylizing.steadying import Steadying
from nst_fast.stylizing.stylizer import Stylizer

CLIP = Path(__file__).parents[3] / "shared" / "video" / "mdn_flower.mp4"
FRAMES, EVERY = 90, 3  # of the clip; that are shown
SIZE = (480, 270)  # px


def main() -> None:
    stylize, steady = Stylizer("starry_night"), Steadying(1.0)
    shown = []
    with av.open(str(CLIP)) as clip:
        for number, frame in enumerate(islice(clip.decode(video=0), FRAMES)):
            photograph = frame.to_image().resize(SIZE, Image.Resampling.LANCZOS)
            stylized = stylize(photograph)
            tied = steady(photograph, stylized)
            if number % EVERY == 0:
                sheet = Image.new("RGB", (2 * SIZE[0], SIZE[1]))
                sheet.paste(stylized, (0, 0))
                sheet.paste(tied, (SIZE[0], 0))
                shown.append(sheet)
    path = DOCS / "video.webp"
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=100, loop=0, quality=45, method=4)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
