"""Make what the tests of the page look at, and what `stylize` makes of it: python fixtures.py FOLDER"""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from nst_fast import Stylizer
from nst_fast.stylizing.images import load_image

STYLES = ("starry_night", "the_scream", "great_wave")
BLEND = {"starry_night": 0.75, "great_wave": 0.25}


def photographs() -> dict[str, Image.Image]:
    left, _, _ = skimage.data.stereo_motorcycle()
    found = {"coffee": skimage.data.coffee(), "astronaut": skimage.data.astronaut(), "motorcycle": left}
    pictures = {name: Image.fromarray(array) for name, array in found.items()}
    pictures["large"] = pictures["motorcycle"].resize((1210, 817))  # is run in tiles
    pictures["dot"] = Image.new("RGB", (1, 1), (200, 60, 20))
    pictures["six"] = pictures["coffee"].resize((3, 2))
    return pictures


def main(folder: Path) -> None:
    pictures = photographs()
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90°
    pictures["coffee"].save(folder / "turned.jpg", exif=exif, quality=95)
    deep = np.asarray(pictures["coffee"]).astype(">u2") * 257
    write_16_bits(folder / "deep.png", deep)
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (folder / "notes.png").write_bytes(b"no picture")

    stylizer = Stylizer("gallery", threads=1)
    for style in STYLES:
        names = ("coffee", "astronaut", "motorcycle") + ("large", "dot", "six", "turned", "deep") * (style == STYLES[0])
        for name in names:
            source = folder / (f"{name}.jpg" if name == "turned" else f"{name}.png")
            painted = stylizer.stylize(load_image(source), style)
            painted.save(folder / f"{name}.{style}.png")
            if name == "coffee":
                stylizer.stylize(pictures[name], style, strength=0.4).save(folder / f"{name}.{style}.40.png")

    for name in ("coffee", "large"):
        stylizer(pictures[name], BLEND, 0.5).save(folder / f"{name}.blend.png")
    stylizer(pictures["large"], BLEND, 0.5, stroke=2).save(folder / "large.stroke.png")


def write_16_bits(path: Path, pixels: np.ndarray) -> None:
    """Write an RGB PNG of 16 bits a colour, which Pillow does not."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = {b"IHDR": struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
