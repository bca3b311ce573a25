"""What the paper's figures share: run `nst-optimize` for every cell of a grid and put the pictures on one sheet."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import skimage.data
from PIL import Image

from nst_fast.commands.configuration import load_config
from nst_fast.commands.optimize import optimize
from nst_fast.stylizing.images import load_image, resize_long_side, save_image
from nst_fast.training.sheet import draw_sheet

DOCS = Path(__file__).resolve().parents[2] / "docs" / "images"
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
SIZE = 256  # px, long side
Cell = Sequence[str]  # options of one run


def arguments(description: str | None) -> list[str]:
    """Return the options from the command line that hold for every cell, for instance loss_network=vgg19."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of nst-optimize for every picture")
    return parser.parse_intermixed_args().options


def photograph(folder: str) -> Path:
    """Write scikit-image's CC0 photograph of a cat into a folder and return its path."""
    path = Path(folder) / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()[:, 60:-60]).save(path)
    return path


def make_sheet(
    name: str,
    title: str,
    cells: Sequence[Sequence[Cell]],
    rows: Sequence[str],
    columns: Sequence[str],
    options: Sequence[str],
) -> Path:
    """Optimise every cell, write docs/images/<name>.jpg with row and column labels, and return its path."""
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        content = photograph(folder)
        common = [f"content={content}", "style=starry_night", f"size={SIZE}", "style.size=256"]
        for number, cell in enumerate(cell for row in cells for cell in row):
            given = [*common, f"output={Path(folder) / str(number)}", *cell, *options]
            pictures.append(resize_long_side(load_image(optimize(load_config("optimize", given))), SIZE))
    width = len(columns)
    grid = [pictures[start : start + width] for start in range(0, len(pictures), width)]
    sheet = draw_sheet(grid, rows, columns, title)
    DOCS.mkdir(parents=True, exist_ok=True)
    path = DOCS / f"{name}.jpg"
    save_image(sheet, path, quality=60)
    return path
