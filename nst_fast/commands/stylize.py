"""The command `stylize`: pictures and videos through an exported model."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from nst_fast.assets import INT8, shipped_models
from nst_fast.commands import printable, run, say, show_warnings
from nst_fast.errors import UserError
from nst_fast.stylizing.any_painting import AnyPainting
from nst_fast.stylizing.formats import choices
from nst_fast.stylizing.jobs import Job, Result, Watch, check_targets, find_jobs, stylize_jobs
from nst_fast.stylizing.looks import Looks, Saving
from nst_fast.stylizing.stylizer import DEVICES, Stylizer

USAGE = """
usage: stylize (--model FILE_OR_NAME | --painting FILE) INPUT... [-o OUTPUT] [options]

Stylize pictures and videos, one forward pass a picture.

  --model FILE_OR_NAME  an .onnx file, or the name of a shipped model (--list)
  --painting FILE       or a painting, without training; several: --painting a.jpg=0.6,b.jpg=0.4
  INPUT                 pictures, videos, folders, quoted globs, or - for standard input
  -o, --output OUTPUT   a picture or a video, a folder, or - for standard output
                        (default: photo.MODEL.jpg beside photo.jpg; FOLDER.MODEL/ beside FOLDER)
  -r, --recursive       folders with what is below them
  --overwrite           replace files that exist
  --skip-existing       leave pictures whose result is there: go on with a folder
  --format FORMAT       FORMATS
                        (default: the input's; jpg for HEIC, png where its name tells none or it cannot be written)
  --quality N           of JPEG, WebP, AVIF and videos, 1 to 100 (default 95)
  --from T, --to T      the part of a video between two times: seconds, MM:SS or H:MM:SS
  --keep-gps            keep the position in the metadata, which is dropped otherwise

  --strength S          0 is the photograph, 1 the stylized picture (default 1)
  --keep-colours        luminance of the stylized picture, colours of the photograph
  --max-side PX         make larger pictures smaller first
  --scale F             stylize at F times the size and return: above 1 smaller strokes, below 1 larger ones

  --tile                run in tiles, as pictures of more than 4 megapixels are: bounded memory, the same result
  --huge                open pictures and videos of more than 179 megapixels, which may be decompression bombs
  --device NAME         auto, cpu, cuda, coreml or directml (default auto)
  --threads N           threads to use (default: all cores)
  --pixel-range 1|255   for another project's model with float input: what it calls white; --bgr for its channel order

  --json                print one JSON object a picture
  --list                show the shipped models
  --info                show what the model says of itself
  --version             print the version

examples:
  stylize --model starry_night photo.jpg
  stylize --painting my.jpg photo.jpg
  stylize --model starry_night holiday/ -o stylized/ --max-side 2000
  stylize --model starry_night --scale 0.5 --strength 0.8 photo.png -o out.webp
  stylize --model starry_night clip.mp4 --from 0:05 --to 0:10 -o out.mp4
  stylize --model starry_night - -o - < photo.jpg > out.jpg
"""

FORMATS = choices()
USAGE = USAGE.replace("FORMATS", ", ".join(dict.fromkeys(suffix[1:] for suffix in FORMATS.values())))
FLAGS = (
    "--overwrite",
    "--skip-existing",
    "--keep-gps",
    "--keep-colours",
    "--huge",
    "--bgr",
    "--tile",
    "--json",
    "--list",
    "--info",
)


def show_models() -> None:
    """Print the shipped models with title, artist, licence, size and losses."""
    for name, path in sorted((shipped_models() | shipped_models(int8=True)).items()):
        told = Stylizer(path).metadata
        if name.endswith(INT8):
            about = f"in 8-bit integers, {told['int8_psnr']} dB from {name.removesuffix(INT8)} on photographs"
        else:
            about = f"{told.get('title', name)}, {told.get('artist', 'unknown')} ({told.get('licence', 'unknown')})"
        losses = "  ".join(f"{k[4:-5]} {float(v):.3g}" for k, v in told.items() if k.startswith("val_"))
        size = f"{path.stat().st_size / 1e6:.2f} MB"
        print(f"{name:<20} {about}, {size}  {'' if name.endswith(INT8) else losses}".rstrip())


class StandardError:
    """A console of plain lines, for which rich need not be imported."""

    def print(self, text: str, **_: Any) -> None:
        """Print a warning."""
        print(f"stylize: {text}", file=sys.stderr)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of everything that the usage names."""
    usage = USAGE.split("\n\n")[0].removeprefix("\nusage: ")
    parser = argparse.ArgumentParser("stylize", usage=usage, add_help=False)
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--model")
    style.add_argument("--painting", type=paintings, metavar="FILE")
    parser.add_argument("inputs", nargs="*", metavar="INPUT")
    parser.add_argument("-o", "--output")
    parser.add_argument("--format", type=str.lower, choices=FORMATS)
    parser.add_argument("--quality", type=int, default=95)
    parser.add_argument("--from", type=seconds, default=0.0, dest="first", metavar="T")
    parser.add_argument("--to", type=seconds, default=math.inf, dest="last", metavar="T")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--max-side", type=int)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--pixel-range", type=int, choices=(1, 255))
    parser.add_argument("-r", "--recursive", action="store_true")
    for flag in FLAGS:
        parser.add_argument(flag, action="store_true")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line. Raises UserError for values out of range."""
    parser = create_parser()
    if "--" in arguments:  # argparse knows it only where inputs are not mixed with options
        first = arguments.index("--")
        arguments = arguments[:first] + [f".{os.sep}{a}" if a.startswith("-") else a for a in arguments[first + 1 :]]
    # Two names in argparse would make --keep-c ambiguous.
    arguments = ["--keep-colours" if a in ("--keep-color", "--keep-colors") else a for a in arguments]
    options = parser.parse_intermixed_args(arguments)
    cores = os.cpu_count() or 1
    for name, value, least, most in (
        ("--threads", options.threads, 0, cores),
        ("--quality", options.quality, 1, 100),
        ("--strength", options.strength, 0, 1),
        ("--scale", options.scale, 0.05, 16),
        ("--max-side", options.max_side, 1, 10**6),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(f"{name} is {value}; {least} to {most} is needed")
    if options.first >= options.last:
        raise UserError(f"--from is {options.first:g} s and --to {options.last:g} s; --from has to come first")
    of_models = [n for n in ("info", "bgr", "pixel_range") if getattr(options, n)]
    if options.painting and of_models:
        raise UserError(f"--{of_models[0].replace('_', '-')} is of models; leave it or --painting out")
    if not options.list and not ((options.model or options.painting) and (options.inputs or options.info)):
        parser.error(
            "a model and pictures are needed: stylize --model starry_night photo.jpg (--list shows the models), "
            "or stylize --painting my.jpg photo.jpg"
        )
    return options


def stylize(arguments: list[str]) -> int:
    """Do what a command line says; return 1 where a picture among several could not be read."""
    options = parse(arguments)
    show_warnings(StandardError())
    if options.list:
        show_models()
        return 0
    if options.huge:
        Image.MAX_IMAGE_PIXELS = None
    stylizer: Stylizer | AnyPainting
    if options.painting:
        stylizer = AnyPainting(options.painting, options.threads, device=options.device, strength=options.strength)
        options.strength = 1.0  # features are blended, not pictures
    else:
        stylizer = Stylizer(
            options.model,
            options.threads,
            device=options.device,
            pixel_range=options.pixel_range,
            bgr=options.bgr,
            tile=options.tile,
        )
        if options.info:
            for key, value in stylizer.metadata.items():
                print(printable(f"{key}: {value}"))
            print(f"device: {stylizer.device}")
            return 0
    if options.device != "auto" or stylizer.device != "cpu":
        say(f"on {stylizer.device}")
    suffix = None if options.format is None else FORMATS[options.format]
    found = find_jobs(options.inputs, options.output, stylizer.name, suffix, options.recursive)
    jobs = check_targets(found, suffix, options.overwrite, options.skip_existing)
    if len(jobs) < len(found) and not options.json:
        say(f"{len(found) - len(jobs)} of {len(found)} pictures are there already and left as they are")
    looks = Looks(options.strength, options.keep_colours, options.max_side, options.scale)
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


def seconds(text: str) -> float:
    """Return the seconds of a time: 12.5, 1:30 or 1:02:30.5."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is no time: seconds, MM:SS or H:MM:SS is needed")
    return sum(float(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))


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
