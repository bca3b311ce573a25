"""The command `stylize`: pictures through an exported model."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from nst_fast.assets import find_model
from nst_fast.commands import run
from nst_fast.errors import UserError
from nst_fast.images import find_pictures, load_image, save_image
from nst_fast.stylizer import Stylizer

USAGE = """
usage: stylize --model FILE_OR_NAME INPUT [-o OUTPUT] [--threads N]

Stylize a picture, or every picture in a folder, in one forward pass each.

  --model FILE_OR_NAME  an .onnx file, or the name of a shipped model
  INPUT                 a picture or a folder
  -o, --output OUTPUT   a picture, or a folder for a folder
                        (default: photo.MODEL.jpg beside photo.jpg; FOLDER.MODEL/ beside FOLDER)
  --threads N           threads to use (default: all cores)
  --version             print the version

examples:
  stylize --model starry_night photo.jpg
  stylize --model runs/train/my/2026-01-01_12-00-00/my.onnx photo.jpg -o out.png
  stylize --model starry_night holiday/ -o stylized/
"""


def stylize(arguments: list[str]) -> int:
    """Stylize a picture or a folder; return 1 where a picture of a folder could not be read."""
    parser = argparse.ArgumentParser("stylize", usage=USAGE.split("\n\n")[0].removeprefix("\nusage: "), add_help=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("input", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.threads < 0:
        raise UserError(f"--threads is {options.threads}; it must be 0 (all cores) or more")
    source = options.input.expanduser()
    model = find_model(options.model)
    console = Console(stderr=True)

    if not source.is_dir():
        picture = load_image(source)
        output = options.output or source.with_name(f"{source.stem}.{model.stem}{source.suffix}")
        if output.is_dir():
            output /= source.name
        save_image(Stylizer(model, options.threads)(picture), output)
        print(output)
        return 0

    pictures = find_pictures(source)
    folder = options.output or source.resolve().with_name(f"{source.resolve().name}.{model.stem}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; the output of a folder must be a folder")
    stylizer, broken = Stylizer(model, options.threads), 0
    with Progress(console=console, transient=True) as progress:
        for path in progress.track(pictures, description=f"{len(pictures)} pictures"):
            try:
                picture = load_image(path)
            except UserError as error:
                broken += 1
                console.print(f"stylize: {' '.join(str(error).split())}", style="red", highlight=False, soft_wrap=True)
                continue
            save_image(stylizer(picture), folder / path.relative_to(source))
    print(f"{len(pictures) - broken} of {len(pictures)} pictures stylized into {folder}")
    return 1 if broken else 0


def main() -> None:
    """Entry point."""
    run(stylize, "stylize", USAGE)


if __name__ == "__main__":
    main()
