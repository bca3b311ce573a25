"""Paint a photograph in two styles and in three blends of them, side by side.

pip install nst_fast
python blend.py photo.jpg starry_night great_wave blends.jpg
"""

import sys

from PIL import Image

from nst_fast import Stylizer
from nst_fast.errors import UserError
from nst_fast.stylizing.images import load_image, save_image

SHARES = (0, 0.25, 0.5, 0.75, 1)  # of the second style


def blends(photograph: Image.Image, first: str, second: str) -> Image.Image:
    """Return five painted pictures in a row, from the first style to the second."""
    stylizer = Stylizer("gallery")  # one network for many styles; list(stylizer.paintings) has their names
    painted = [stylizer(photograph, {first: 1 - share, second: share}) for share in SHARES]
    width, height = painted[0].size
    row = Image.new("RGB", (len(painted) * width, height))
    for number, picture in enumerate(painted):
        row.paste(picture, (number * width, 0))
    return row


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    photo, first, second, output = sys.argv[1:]
    try:
        photograph = load_image(photo)
        photograph.thumbnail((640, 640))
        save_image(blends(photograph, first, second), output)
    except UserError as error:  # no such photograph or style
        sys.exit(str(error))
