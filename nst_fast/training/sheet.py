"""Pictures in rows and columns with their labels, as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image


def draw_sheet(
    pictures: Sequence[Sequence[Image.Image]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Image.Image:
    """Return rows of pictures of one size with a label left of each row and above each column, pixel for pixel."""
    width, height = pictures[0][0].size
    dpi, gap, left, top = 100, 6, 70, 64  # px
    whole = (left + len(columns) * (width + gap), top + len(rows) * (height + gap))
    figure = Figure((whole[0] / dpi, whole[1] / dpi), dpi=dpi)
    figure.text(gap / whole[0], 1 - 8 / whole[1], title, va="top", fontsize=11)
    for column, label in enumerate(columns):
        centre = left + column * (width + gap) + width / 2
        figure.text(centre / whole[0], 1 - (top - 6) / whole[1], label, ha="center", va="bottom", fontsize=10)
    for row, label in enumerate(rows):
        centre = top + row * (height + gap) + height / 2
        figure.text(
            left / 2 / whole[0], 1 - centre / whole[1], label, ha="center", va="center", rotation=90, fontsize=10
        )
    content = io.BytesIO()
    figure.savefig(content, format="png")
    sheet = Image.open(content).convert("RGB")
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            sheet.paste(picture, (left + column * (width + gap), top + row * (height + gap)))
    return sheet
