"""The command `stylize`: pictures through an exported model."""

from __future__ import annotations

import argparse
import os
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
    cores = os.cpu_count() or 1
    if not 0 <= options.threads <= cores:
        raise UserError(f"--threads is {options.threads}; 0 (all cores) to {cores} is needed")
    source = Path(os.path.expanduser(options.input))
    target = Path(os.path.expanduser(options.output)) if options.output else None
    model = find_model(options.model)
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)

    if not os.path.isdir(source):
        picture = load_image(source)
        output = target or source.with_name(f"{source.stem}.{model.stem}{source.suffix}")
        if os.path.isdir(output):
            output /= source.name
        refuse_to_overwrite(source, output)
        save_image(Stylizer(model, options.threads)(picture), output)
        print(output)
        return 0

    pictures = find_pictures(source)
    folder = target or source.resolve().with_name(f"{source.resolve().name}.{model.stem}")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is a file; the output of a folder must be a folder")
    refuse_to_overwrite(source, folder)
    stylizer, broken = Stylizer(model, options.threads), 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for path in progress.track(pictures, description=f"{len(pictures)} pictures"):
            try:
                picture = load_image(path)
            except UserError as error:
                broken += 1
                console.print(f"stylize: {' '.join(str(error).split())}", style="red", soft_wrap=True)
                continue
            save_image(stylizer(picture), folder / path.relative_to(source))
    print(f"{len(pictures) - broken} of {len(pictures)} pictures stylized into {folder}")
    return 1 if broken else 0


def refuse_to_overwrite(source: Path, output: Path) -> None:
    """Raise UserError where the output would replace the input."""
    if os.path.realpath(source) == os.path.realpath(output):
        raise UserError(f"the output would replace the input {source}; name another with -o")


def main() -> None:
    """Entry point."""
    run(stylize, "stylize", USAGE)


if __name__ == "__main__":
    main()
