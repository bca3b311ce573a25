"""The command `stylize`: pictures and videos through an exported model."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from nst_fast.assets import GALLERY, INT8, find_model, shipped_models
from nst_fast.commands import printable, run, say, show_warnings
from nst_fast.errors import UserError
from nst_fast.stylizing.any_painting import METHODS, AnyPainting
from nst_fast.stylizing.contact_sheet import contact_sheet
from nst_fast.stylizing.formats import OF_SUFFIX, choices
from nst_fast.stylizing.images import load_image, resize_long_side, save_image
from nst_fast.stylizing.jobs import Job, Result, Watch, check_targets, find_jobs, stylize_jobs
from nst_fast.stylizing.looks import Looks, Saving
from nst_fast.stylizing.stroke import Stroke
from nst_fast.stylizing.style_file import SUFFIX
from nst_fast.stylizing.stylizer import DEVICES, Painter, Style, Stylizer

USAGE = """
usage: stylize --style NAME INPUT... [-o OUTPUT] [options]

Stylize pictures and videos, one or two forward passes a picture.

  --style NAME          a painting of the gallery (--list), or a .style file that `train` made;
                        starry_night=0.7,the_scream=0.3 blends two or more; weights are divided by their sum
  --model FILE_OR_NAME  an .onnx file, or the name of a shipped model (--list; default gallery)
  --painting FILE       any painting, without training: its colours, few of its strokes;
                        a.jpg=0.6,b.jpg=0.4 mixes two or more
  --method NAME         with --painting: adain, or wct, bolder and less like the photograph (default adain)
  INPUT                 pictures, videos, folders, quoted globs, or - for standard input
  -o, --output OUTPUT   a picture or a video, a folder, or - for standard output
                        (default: photo.STYLE.jpg beside photo.jpg; FOLDER.STYLE/ beside FOLDER)
  -r, --recursive       folders with their subfolders
  --overwrite           replace files that exist
  --skip-existing       leave out pictures whose result exists: go on with a folder
  --format FORMAT       FORMATS
                        (default: the input's; jpg for HEIC, png for formats that cannot be written)
  --quality N           of JPEG, WebP, AVIF and videos, 1 to 100 (default 95)
  --from T, --to T      the part of a video between two times: seconds, MM:SS or H:MM:SS
  --to-style NAME       with --style: move from one style to the other over the video
  --steady S            0 to 1: less flicker in videos, strokes move along with things (default 0)
  --keep-gps            keep the GPS position in the metadata; by default it is dropped

  --strength S          0 is the photograph, 1 the stylized picture (default 1)
  --mask FILE           a picture: white is painted, black stays as it is, grey is in between
  --outside NAME        with --mask: black is painted like this style
  --sheet               one picture in every style of the model, on one sheet, 320 px each: strokes look large;
                        --max-side 960 makes all larger
  --keep-colours        keep the photograph's colours; light and dark are the stylized picture's
  --max-side PX         make larger pictures smaller first
  --stroke F|auto       strokes F times as large (default 1); auto: larger in larger pictures
  --underpainting F     0 to 1: more is bolder, 0 keeps more of the scene and takes less time (default: what the model
                        says, 0.25 for ours)

  --tile                run small pictures in tiles too: less memory, the same result. Above 4 megapixels always
  --huge                open pictures and videos of more than 179 megapixels; they may be decompression bombs
  --device NAME         auto, cpu, cuda, coreml or directml (default auto)
  --threads N           threads to use (default: all cores)
  --pixel-range 1|255   for another project's model with float input: what it calls white; --bgr for its channel order

  --json                print one JSON object a picture
  --list                show the shipped models and the gallery's styles, or those of --model
  --info                show the model's metadata
  --version             print the version

examples:
  stylize --style starry_night photo.jpg
  stylize --painting my.jpg photo.jpg
  stylize --style starry_night=0.7,the_scream=0.3 holiday/ -o stylized/ --max-side 2000
  stylize --style great_wave --stroke 2 --strength 0.8 photo.png -o out.webp
  stylize --sheet photo.jpg -o styles.jpg
  stylize --model my.onnx clip.mp4 --from 0:05 --to 0:10 -o out.mp4
  stylize --style starry_night - -o - < photo.jpg > out.jpg
"""

SHEET = "--sheet needs one picture, -o and no --style: stylize --sheet photo.jpg -o styles.jpg"
SHEET_SIDE = 320  # px, long side of a picture on a sheet
FORMATS = choices()
USAGE = USAGE.replace("FORMATS", ", ".join(dict.fromkeys(suffix[1:] for suffix in FORMATS.values())))


def show_models(models: Mapping[str, Path]) -> None:
    """Print models by their names, the gallery first, with title, artist, licence and size."""
    for name, path in sorted(models.items(), key=lambda item: (not item[0].startswith(GALLERY), item[0])):
        stylizer = Stylizer(path)
        told = stylizer.metadata
        again = name.endswith(INT8) and name.removesuffix(INT8) in models
        if again:
            about = "the same in 8-bit integers, faster on a CPU"
        elif stylizer.paintings:
            about = f"{len(stylizer.paintings)} paintings in one network"
        else:
            about = f"{told.get('title', name)}, {told.get('artist', 'unknown')} ({told.get('licence', 'unknown')})"
        print(f"{name:<22} {about}, {path.stat().st_size / 1e6:.2f} MB")
        if not again:
            for style_name, painting in stylizer.paintings.items():
                print(f"  {style_name:<22} {painting.get('title', style_name)}, {painting.get('artist', 'unknown')}")


@dataclass(frozen=True)
class StandardError:
    """A console of plain lines that begin with a command's name, for which rich need not be imported."""

    name: str

    def print(self, text: str, **_: Any) -> None:
        """Print a warning."""
        print(f"{self.name}: {text}", file=sys.stderr)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of everything that the usage names."""
    usage = USAGE.split("\n\n")[0].removeprefix("\nusage: ")
    parser = argparse.ArgumentParser("stylize", usage=usage, add_help=False)
    parser.add_argument("--model", default=GALLERY)
    parser.add_argument("--style", type=style)
    parser.add_argument("--painting", type=paintings, metavar="FILE")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--outside", type=style)
    parser.add_argument("--to-style", type=style)
    parser.add_argument("--mask")
    parser.add_argument("inputs", nargs="*", metavar="INPUT")
    parser.add_argument("-o", "--output")
    parser.add_argument("-r", "--recursive", action="store_true")
    for flag in ("--overwrite", "--skip-existing", "--sheet", "--json", "--list", "--info"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--from", type=seconds, default=0.0, dest="first", metavar="T")
    parser.add_argument("--to", type=seconds, default=math.inf, dest="last", metavar="T")
    parser.add_argument("--steady", type=float, default=0.0)
    add_looks(parser)
    return parser


def add_looks(parser: argparse.ArgumentParser, strength: Callable[[str], Any] = float) -> None:
    """Add the options of what is done to a picture, which `nst-batch` has too; its strength may be a range."""
    parser.add_argument("--format", type=str.lower, choices=FORMATS)
    parser.add_argument("--quality", type=int, default=95)
    parser.add_argument("--strength", type=strength, default="1")
    parser.add_argument("--max-side", type=int)
    parser.add_argument("--stroke", type=stroke, default=1.0, metavar="F")
    parser.add_argument("--underpainting", type=float)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--pixel-range", type=int, choices=(1, 255))
    for flag in ("--keep-gps", "--keep-colours", "--huge", "--bgr", "--tile"):
        parser.add_argument(flag, action="store_true")


def parse_looks(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line. Raises UserError where those of `add_looks` are out of range."""
    if "--" in arguments:  # argparse knows it only where inputs are not mixed with options
        first = arguments.index("--")
        arguments = arguments[:first] + [f".{os.sep}{a}" if a.startswith("-") else a for a in arguments[first + 1 :]]
    # Two names in argparse would make --keep-c ambiguous.
    arguments = ["--keep-colours" if a in ("--keep-color", "--keep-colors") else a for a in arguments]
    options = parser.parse_intermixed_args(arguments)
    check_limits(
        ("--threads", options.threads, 0, os.cpu_count() or 1),
        ("--quality", options.quality, 1, 100),
        ("--stroke", 1 if options.stroke == "auto" else options.stroke, 0.0625, 64),
        ("--underpainting", options.underpainting, 0, 1),
        ("--max-side", options.max_side, 1, 10**6),
    )
    return options


def check_limits(*limits: tuple[str, float | None, float, float]) -> None:
    """Raise UserError where an option's value is below its least or above its most."""
    for name, value, least, most in limits:
        if value is not None and not least <= value <= most:
            raise UserError(f"{name} is {value}; {least} to {most} is needed")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line. Raises UserError for values out of range."""
    parser = create_parser()
    options = parse_looks(parser, arguments)
    check_limits(("--strength", options.strength, 0, 1), ("--steady", options.steady, 0, 1))
    if options.first >= options.last:
        raise UserError(f"--from is {options.first:g} s and --to {options.last:g} s; --from must be earlier")
    if not options.list and not options.inputs and not options.info:
        parser.error("pictures are needed: stylize --style starry_night photo.jpg (--list shows the styles)")
    if options.outside is not None and options.mask is None:
        raise UserError("--outside paints what a mask leaves black: say --mask FILE")
    if options.to_style is not None and options.style is None:
        raise UserError("--to-style is where a video ends: say with --style where it begins")
    if options.sheet and (options.style is not None or len(options.inputs) != 1 or options.output is None):
        raise UserError(SHEET)
    if options.sheet and os.path.isdir(options.inputs[0]):
        raise UserError(f"{options.inputs[0]} is a folder; {SHEET}")
    of_models = ("style", "to_style", "outside", "sheet", "info", "bgr", "pixel_range", "tile", "underpainting")
    if options.painting and (given := [n for n in of_models if getattr(options, n) != parser.get_default(n)]):
        raise UserError(f"--painting and --{given[0].replace('_', '-')} exclude each other: leave one out")
    if options.method and not options.painting:
        raise UserError("--method is of --painting: say --painting FILE, or leave --method out")
    if options.painting and options.model != GALLERY:
        raise UserError("--painting needs no model; leave --model or --painting out")
    return options


def chosen_style(options: argparse.Namespace, stylizer: Stylizer) -> Style | None:
    """Return the style to paint in; UserError where a model of many is there and none is named."""
    if options.style is None and stylizer.paintings:
        raise UserError(f"which style? say --style NAME; {stylizer.path.stem} has {', '.join(stylizer.paintings)}")
    for name in options.style or ():
        if name not in stylizer.paintings and os.path.exists(name + SUFFIX):
            raise UserError(f"no style {name!r} in {stylizer.name}: did you mean the file {name}{SUFFIX}?")
    return None if options.style is None else options.style


def called(options: argparse.Namespace, stylizer: Painter) -> str:
    """Return what results are called after: the styles, the model or the paintings."""
    return "+".join(Path(name).name.removesuffix(SUFFIX) for name in options.style or [stylizer.name])


def stylize(arguments: list[str]) -> int:
    """Do what a command line says; return 1 where a picture among several could not be read."""
    options = parse(arguments)
    show_warnings(StandardError("stylize"))
    if options.list:
        file = find_model(options.model)
        show_models(shipped_models() | shipped_models(int8=True) if options.model == GALLERY else {file.stem: file})
        return 0
    if options.huge:
        Image.MAX_IMAGE_PIXELS = None
    suffix = None if options.format is None else FORMATS[options.format]
    stylizer: Stylizer | AnyPainting
    chosen = None
    if options.painting:
        method = options.method or "adain"
        stylizer = AnyPainting(options.painting, options.threads, device=options.device, method=method)
    else:
        stylizer = Stylizer(
            options.model,
            options.threads,
            device=options.device,
            pixel_range=options.pixel_range,
            bgr=options.bgr,
            tile=options.tile,
            underpainting=options.underpainting,
        )
        if options.info:
            for key, value in stylizer.metadata.items():
                print(printable(f"{key}: {value}"))
            print(f"device: {stylizer.device}")
            return 0
        if options.sheet:
            return paint_sheet(options, stylizer, suffix)
        chosen = chosen_style(options, stylizer)
        stylizer.feeds(chosen)  # refuses what the model has not, before any picture
        stylizer.feeds(options.outside)
        stylizer.feeds(options.to_style)
    if options.device != "auto" or stylizer.device != "cpu":
        say(f"on {stylizer.device}")
    found = find_jobs(options.inputs, options.output, called(options, stylizer), suffix, options.recursive)
    jobs = check_targets(found, suffix, options.overwrite, options.skip_existing)
    if len(jobs) < len(found) and not options.json:
        say(f"{len(found) - len(jobs)} of {len(found)} pictures exist already and stay as they are")
    mask = None if options.mask is None else load_image(options.mask)
    looks = Looks(
        options.strength,
        options.keep_colours,
        options.max_side,
        options.stroke,
        style=chosen,
        mask=mask,
        outside=options.outside,
        steady=options.steady,
        to_style=options.to_style,
    )
    saving = Saving(suffix, options.quality, options.keep_gps, options.overwrite, (options.first, options.last))
    with progress(jobs, suffix) as (advance, watch):
        done = tell_each(stylize_jobs(jobs, stylizer, looks, saving, watch), advance, options.json)
    if not options.json:
        sum_up(jobs, done, options.output)
    return 0 if done == len(jobs) else 1


def tell_each(results: Generator[Result, None, None], advance: Callable[[], Any], as_json: bool) -> int:
    """Print results as they come, those that were under way at Ctrl-C too, and return how many are without an error."""
    done = 0
    try:
        for result in results:
            advance()
            tell(result, as_json)
            done += result.error is None
    except BaseException as error:
        for result in finish(results, error):
            tell(result, as_json)
        raise
    return done


def finish(results: Generator[Result, None, None], error: BaseException) -> Iterator[Result]:
    """Yield what was under way when an error ended the work, then raise it; at once where it came from there."""
    yield results.throw(error)
    yield from results


def tell(result: Result, as_json: bool) -> None:
    """Print what became of a picture: an error on stderr, or a JSON object."""
    told: dict[str, Any] = {"input": result.input}
    if result.error is not None:
        told["error"] = result.error
    else:
        size = {"width": result.width, "height": result.height}
        frames = {"frames": result.frames} if result.frames else {}
        told |= {"output": str(result.output), **size, **frames, "seconds": round(result.seconds, 4)}
    if as_json and (result.output is not None or result.error is not None):  # else standard output has the picture
        say(json.dumps(told))
    elif result.error is not None:
        print(f"stylize: {printable(result.error)}", file=sys.stderr)


def sum_up(jobs: list[Job], done: int, output: str | None) -> None:
    """Print where one picture is, or how many of several there are and where; nothing beside one on stdout."""
    targets = [job.target for job in jobs if job.target is not None and job.error is None]
    if any(job.target is None for job in jobs) or not targets:
        return
    if len(jobs) > 1:
        places = sorted({str(target.parent) for target in targets})
        named = ", ".join(places) if len(places) < 4 else f"{places[0]} and {len(places) - 1} more folders"
        things = "files" if any(job.is_clip() for job in jobs) else "pictures"
        say(f"{done} of {len(jobs)} {things} stylized into {output or named}")
    elif done:
        say(str(targets[0]))


@contextlib.contextmanager
def progress(jobs: list[Job], suffix: str | None) -> Iterator[tuple[Callable[[], Any], Watch]]:
    """Give what counts results, and the frames of a video, on bars where there are several and someone looks."""
    clips = any(job.is_clip(suffix) for job in jobs)
    if not sys.stderr.isatty() or (len(jobs) < 2 and not clips):
        yield lambda: None, lambda name, done, expected: None
        return
    from rich.console import Console  # here: one picture needs no bar and should not wait for one
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        files = bars.add_task(f"{len(jobs)} files" if clips else f"{len(jobs)} pictures", total=len(jobs), speed="")
        frames = bars.add_task("", total=None, speed="", visible=False)

        def watch(name: str, done: int, expected: int) -> None:
            if done == 1:
                bars.reset(frames, description=escape(printable(name)), visible=True)
            speed = bars.tasks[frames].speed
            told = f"{speed:.1f} frames/s" if speed else ""
            bars.update(frames, completed=done, total=max(done, expected), speed=told)

        yield lambda: bars.advance(files), watch


def style(text: str) -> dict[str, float]:
    """Return the weights of styles: starry_night, or starry_night=0.7,the_scream=0.3."""
    weights = {}
    for part in text.split(","):
        name, equals, weight = part.partition("=")
        if not name.strip():
            raise argparse.ArgumentTypeError(f"{text!r} has a style without a name: NAME=0.7,NAME=0.3 is needed")
        if Path(name).suffix.lower() in OF_SUFFIX:
            raise argparse.ArgumentTypeError(f"{name} is no style but a picture: --painting {name} paints after it")
        try:
            weights[name.strip()] = float(weight) if equals else 1.0
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r} is no style: NAME or NAME=WEIGHT is needed") from error
    if len(weights) == 1 and "=" in text:
        raise argparse.ArgumentTypeError(
            f"{text}: one style has no weight; a comma joins several, --strength 0.3 paints one more faintly"
        )
    if text.count("=") not in (0, len(weights)):
        raise argparse.ArgumentTypeError(f"{text}: give every style a weight, or none")
    return weights


def paint_sheet(options: argparse.Namespace, stylizer: Stylizer, suffix: str | None) -> int:
    """Write one picture in every style of the model, on one sheet."""
    if not stylizer.paintings:
        raise UserError(f"{stylizer.path} has one style; --sheet needs a model of many, such as gallery")
    job, *others = check_targets(find_jobs(options.inputs, options.output, "sheet", suffix), suffix, options.overwrite)
    if others:
        raise UserError(f"{options.inputs[0]} holds {len(others) + 1} pictures; {SHEET}")
    if job.source is None or job.target is None or job.error is not None:
        raise UserError(job.error or "--sheet reads and writes files")
    photograph = resize_long_side(load_image(job.source), options.max_side or SHEET_SIDE)
    looks = Looks(options.strength, options.keep_colours, None, options.stroke)
    pictures = {name: replace(looks, style=name).apply(stylizer, photograph) for name in stylizer.paintings}
    save_image(contact_sheet({"photograph": photograph, **pictures}), job.target, quality=options.quality)
    say(str(job.target))
    return 0


def seconds(text: str) -> float:
    """Return the seconds of a time: 12.5, 1:30 or 1:02:30.5."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is no time: seconds, MM:SS or H:MM:SS is needed")
    return sum(float(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))


def stroke(text: str) -> Stroke:
    """Return a stroke: a number or "auto"."""
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no stroke: a number or auto is needed") from error


def paintings(text: str) -> dict[Path, float]:
    """Return the weights of paintings: of one file, or of FILE=WEIGHT,FILE=WEIGHT."""
    if os.path.lexists(os.path.expanduser(text)):
        return {Path(os.path.expanduser(text)): 1.0}
    found = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        if not name or os.path.lexists(os.path.expanduser(part)):
            name, weight = part, "1"
        if not re.fullmatch(r"\d*\.?\d+", weight, re.ASCII) or not float(weight):
            raise argparse.ArgumentTypeError(f"{part}: {weight} is no weight above 0; FILE=0.6,FILE=0.4 is needed")
        found[Path(os.path.expanduser(name))] = float(weight)
    return found


def main() -> None:
    """Entry point."""
    run(stylize, "stylize", USAGE)


if __name__ == "__main__":
    main()
