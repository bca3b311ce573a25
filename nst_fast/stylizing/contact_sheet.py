"""Pictures of one size on one sheet, each with its name below."""

from __future__ import annotations

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

GAP, LINE = 8, 24  # px: between pictures, of a name


def contact_sheet(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Return RGB pictures of one size row by row on white, about twice as wide as high."""
    width, height = next(iter(pictures.values())).size
    columns = math.ceil(math.sqrt(2 * len(pictures) * (height + LINE) / width))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + LINE + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE // 2)
    for number, (name, picture) in enumerate(pictures.items()):
        left, top = GAP + number % columns * (width + GAP), GAP + number // columns * (height + LINE + GAP)
        sheet.paste(picture, (left, top))
        draw.text((left, top + height + LINE // 4), name, "black", font)
    return sheet
