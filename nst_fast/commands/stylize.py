"""The command `stylize`: pictures through an exported model."""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from nst_fast.assets import INT8, find_model, shipped_models
from nst_fast.commands import printable, run
from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.stylizing.images import (
    GPS_POSITION,
    HEIC,
    ORIENTATION,
    SUFFIXES,
    encode_image,
    fill_hidden,
    find_format,
    find_pictures,
    keep_colors,
    over_white,
    resize_long_side,
    split_alpha,
    why_unreadable,
)
from nst_fast.stylizing.stylizer import DEVICES, TILED_ABOVE, Stylizer

USAGE = """
usage: stylize --model FILE_OR_NAME INPUT... [-o OUTPUT] [options]

Stylize pictures, one forward pass each.

  --model FILE_OR_NAME  an .onnx file, or the name of a shipped model (--list)
  INPUT                 pictures, folders, quoted globs, or - for standard input
  -o, --output OUTPUT   a picture, a folder, or - for standard output
                        (default: photo.MODEL.jpg beside photo.jpg; FOLDER.MODEL/ beside FOLDER)
  -r, --recursive       folders with what is below them
  --overwrite           replace files that exist
  --format FORMAT       jpg, png, webp, tiff, bmp or gif (default: the input's; jpg for HEIC, png where its name tells
                        none)
  --quality N           of JPEG and WebP, 1 to 100 (default 95)
  --keep-gps            keep the position in the EXIF data, which is dropped otherwise

  --strength S          0 is the photograph, 1 the stylized picture (default 1)
  --keep-colors         luminance of the stylized picture, colours of the photograph
  --max-side PX         make larger pictures smaller first
  --scale F             stylize at F times the size and return: above 1 smaller strokes, below 1 larger ones

  --tile                run in tiles, as pictures of more than 4 megapixels are: bounded memory, the same result
  --huge                open pictures of more than 179 megapixels, which may be decompression bombs
  --device NAME         auto, cpu, cuda, coreml or directml (default auto)
  --threads N           threads to use (default: all cores)
  --pixel-range 1|255   for another project's model with float input: what it calls white; --bgr for its channel order

  --json                print one JSON object a picture
  --list                show the shipped models
  --info                show what the model says of itself
  --version             print the version

examples:
  stylize --model starry_night photo.jpg
  stylize --model starry_night holiday/ -o stylized/ --max-side 2000
  stylize --model starry_night --scale 0.5 --strength 0.8 photo.png -o out.webp
  stylize --model starry_night - -o - < photo.jpg > out.jpg
"""

FORMATS = {"jpg": ".jpg", "jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp", "gif": ".gif"}
ANIMATED = (".gif", ".webp", ".png", ".apng")
ANIMATIONS = ("GIF", "WEBP", "PNG")  # as Pillow calls them
# Pictures that run at the same time take no more memory together than the largest that is not tiled.
PIXELS_AT_ONCE = TILED_ABOVE
SLASHES = tuple({"/", os.sep})
WITH_ALPHA = (".png", ".apng", ".webp", ".avif", ".tif", ".tiff", ".gif")
# EXIF tags that speak of the photograph, not of the file: a TIFF's are its very layout, its profile and its XMP.
CARRIED = frozenset(
    {0x010E, 0x010F, 0x0110, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749}
    | {0x8298, 0x8769, GPS_POSITION, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F}
)


@dataclass(frozen=True)
class Job:
    """One picture to stylize: where it comes from and where it goes to; None is standard input or output."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if self.source is None else str(self.source)


def written_as(suffix: str) -> str:
    """Return the suffix of a result, given that of its photograph.

    Few programs read HEIC, so it becomes JPEG; what says nothing of a format becomes PNG.
    """
    if suffix.lower() in HEIC:
        return ".jpg"
    return suffix if suffix.lower() in Image.registered_extensions() else ".png"


def find_jobs(inputs: list[str], output: str | None, model: str, suffix: str | None, recursive: bool) -> list[Job]:
    """Return what a command line asks for. Raises UserError where inputs are missing or outputs collide."""

    def renamed(path: Path) -> Path:
        return path.with_suffix(suffix or written_as(path.suffix))

    if "" in (*inputs, output):
        raise UserError("an input or the output is empty; . is the folder where you are")
    to_stdout = output == "-"
    folder = None if output is None or to_stdout else Path(os.path.expanduser(output))
    expanded: list[str] = []
    for given in inputs:
        plain = os.path.expanduser(given)
        literal = given == "-" or os.path.lexists(plain)
        matches = [plain] if literal else sorted(glob.glob(plain, recursive=recursive))  # noqa: PTH207
        expanded += matches or [plain]
    # A folder is what ends in a slash, is there already or takes more than one picture.
    single = len(expanded) == 1 and not os.path.isdir(expanded[0])
    may_be_file = folder is not None and not os.path.isdir(folder) and not (output or "").endswith(SLASHES)
    is_file = may_be_file and single
    if may_be_file and not single and Path(output or "").suffix.lower() in SUFFIXES:
        raise UserError(f"-o {output} names one picture, but more may come out; the name of a folder ends in /")
    jobs = []
    for given in expanded:
        source = Path(given)
        if given == "-":
            if folder is None:
                jobs.append(Job(None, None))
            elif is_file:
                jobs.append(Job(None, folder))
            else:
                raise UserError("standard input has no name: say -o FILE or -o -")
        elif os.path.isdir(source):
            if to_stdout:
                raise UserError(f"{source} is a folder; only one picture goes to standard output")
            into = folder or source.resolve().with_name(f"{source.resolve().name}.{model}")
            if os.path.exists(into) and not os.path.isdir(into):
                raise UserError(f"{into} is a file; the output of a folder must be a folder")
            found = find_pictures(source, recursive)
            if inside(into, source) and not inside(source, into):  # what an earlier command made is no photograph
                found = [path for path in found if not inside(path, into)]
            if not found:
                raise UserError(f"no pictures in {source} but those in the output {into}")
            jobs += [Job(path, renamed(into / path.relative_to(source))) for path in found]
        elif to_stdout:
            jobs.append(Job(source, None))
        elif folder is None:
            name = f"{source.stem}.{model}{suffix or written_as(source.suffix)}"
            jobs.append(Job(source, source.with_name(name)))
        else:
            jobs.append(Job(source, folder if is_file else renamed(folder / source.name)))
    if to_stdout and len(jobs) > 1:
        raise UserError(f"{len(jobs)} pictures; only one goes to standard output")
    return jobs


def inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or below it, wherever links lead."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def refuse_targets(jobs: list[Job], suffix: str | None, overwrite: bool) -> None:
    """Raise UserError before any work where it would be in vain.

    No format has the output's suffix, two pictures would go to one file, one would replace its input, or a file is
    there.
    """
    taken: dict[str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        try:
            kind = find_format(suffix or job.target.suffix)
        except UserError as error:
            raise UserError(f"cannot write {job.target}: {error}, or a name that ends in / for a folder") from error
        named = Image.registered_extensions().get(job.target.suffix.lower(), kind)
        if named != kind:
            raise UserError(
                f"{job.target} is named like {named} and would be {kind} by --format; leave one of them out"
            )
        place = os.path.realpath(job.target)
        if job.source is not None and os.path.realpath(job.source) == place:
            raise UserError(f"the output would replace the input {job.source}; name another with -o")
        if place in taken:
            raise UserError(f"{taken[place].name} and {job.name} would both be written to {job.target}")
        taken[place] = job
        if not overwrite and os.path.lexists(job.target):
            raise UserError(f"{job.target} exists; --overwrite replaces it, -o names another")


@dataclass
class Looks:
    """What happens around the model, in the user's units."""

    strength: float = 1.0
    keep_colors: bool = False
    max_side: int | None = None
    scale: float = 1.0

    def apply(self, stylizer: Stylizer, photograph: Image.Image) -> Image.Image:
        """Return a stylized RGB picture of the size of the photograph, once that is no larger than ``max_side``."""
        if self.max_side is not None and max(photograph.size) > self.max_side:
            photograph = resize_long_side(photograph, self.max_side)
        seen = photograph
        if self.scale != 1:
            size = (max(1, round(seen.width * self.scale)), max(1, round(seen.height * self.scale)))
            seen = seen.resize(size, Image.Resampling.LANCZOS)
        stylized = stylizer.stylize(seen)
        if stylized.size != photograph.size:
            stylized = stylized.resize(photograph.size, Image.Resampling.LANCZOS)
        if self.keep_colors:
            stylized = keep_colors(stylized, photograph)
        return stylized if self.strength == 1 else Image.blend(photograph, stylized, self.strength)


@contextlib.contextmanager
def reading(job: Job) -> Iterator[None]:
    """Report whatever decoders raise as a UserError that names the picture."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UserError(f"{job.name} claims a huge size, perhaps a bomb; --huge opens it: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever they please
        raise UserError(f"{job.name} cannot be read as a picture: {why_unreadable(job.name, error)}") from error


def open_picture(job: Job) -> Image.Image:
    """Return a picture that is yet to be decoded; raises UserError where it is missing or no picture."""
    if job.source is not None and not os.path.isfile(job.source):
        raise UserError(f"no picture at {job.source}")
    source: Path | io.BytesIO = job.source or io.BytesIO(sys.stdin.buffer.read())
    if isinstance(source, io.BytesIO) and not source.getbuffer():
        raise UserError("standard input is empty; a picture is needed")
    with reading(job):
        return Image.open(source)


def carried_exif(image: Image.Image, keep_gps: bool) -> bytes:
    """Return a picture's EXIF data for its upright result, without the position unless asked for; b"" where none is."""
    exif = Image.Exif()
    try:
        exif.load(image.getexif().tobytes())
        for tag in set(exif) - (CARRIED if keep_gps else CARRIED - {GPS_POSITION}):
            del exif[tag]
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        return exif.tobytes() if len(exif) else b""
    except Exception:  # damaged metadata is no reason to refuse a picture
        return b""


def read_frames(job: Job, image: Image.Image, every: bool) -> Iterator[tuple[Image.Image, Image.Image | None, float]]:
    """Yield every frame, or the first alone, as RGB, alpha and milliseconds; raises UserError for a damaged one."""
    with reading(job):
        for frame in ImageSequence.Iterator(image) if every else [image]:
            photograph, alpha = split_alpha(frame)
            shown = photograph if alpha is None else fill_hidden(photograph, alpha)
            yield shown, alpha, frame.info.get("duration", 100)


def stylize_picture(
    job: Job, image: Image.Image, stylizer: Stylizer, looks: Looks, suffix: str, options: Any
) -> tuple[Image.Image, dict[str, Any]]:
    """Return the result of a picture and Pillow's options for saving it.

    It has every frame where both formats are animated, and alpha where that has a place. Raises UserError where a frame
    cannot be read.
    """
    with reading(job):
        image.load()
    exif = carried_exif(image, options.keep_gps)
    every = []
    # Only these are animated: the pictures of a TIFF or an MPO are pages and previews.
    for photograph, alpha, duration in read_frames(job, image, suffix in ANIMATED and image.format in ANIMATIONS):
        stylized = looks.apply(stylizer, photograph)
        if alpha is not None:
            small = alpha if alpha.size == stylized.size else alpha.resize(stylized.size)
            if suffix in WITH_ALPHA:
                stylized.putalpha(small)
            else:
                stylized = over_white(stylized, small)
        stylized.info["duration"] = duration
        every.append(stylized)

    extra: dict[str, Any] = {"exif": exif} if exif else {}
    if len(every) > 1:
        extra |= {"save_all": True, "append_images": every[1:]}
        extra["duration"] = [frame.info["duration"] for frame in every]
        # A GIF that says nothing plays once.
        extra["loop"] = image.info.get("loop", None if suffix == ".gif" else 1)
        if suffix == ".gif" and any(frame.mode == "RGBA" for frame in every):
            extra["disposal"] = 2  # what is transparent shows nothing of the frame before
    return every[0], {"suffix": suffix, "quality": options.quality, **extra}


class PixelBudget:
    """Lets pictures in while their pixels together stay within a number; one that is larger than that runs alone."""

    def __init__(self, pixels: float) -> None:
        self.most, self.taken = pixels, 0.0
        self.change = threading.Condition()

    @contextlib.contextmanager
    def spend(self, pixels: float) -> Iterator[None]:
        """Wait until there is room for so many pixels and hold it."""
        with self.change:
            self.change.wait_for(lambda: not self.taken or self.taken + pixels <= self.most)
            self.taken += pixels
        try:
            yield
        finally:
            with self.change:
                self.taken -= pixels
                self.change.notify_all()


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


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line. Raises UserError for values out of range."""
    usage = USAGE.split("\n\n")[0].removeprefix("\nusage: ")
    parser = argparse.ArgumentParser("stylize", usage=usage, add_help=False)
    parser.add_argument("--model")
    parser.add_argument("inputs", nargs="*", metavar="INPUT")
    parser.add_argument("-o", "--output")
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--quality", type=int, default=95)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--max-side", type=int)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--pixel-range", type=int, choices=(1, 255))
    for flag in (
        "--overwrite",
        "--keep-gps",
        "--keep-colors",
        "--huge",
        "--bgr",
        "--tile",
        "--json",
        "--list",
        "--info",
    ):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-r", "--recursive", action="store_true")
    if "--" in arguments:  # argparse knows it only where inputs are not mixed with options
        first = arguments.index("--")
        arguments = arguments[:first] + [f".{os.sep}{a}" if a.startswith("-") else a for a in arguments[first + 1 :]]
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
    if not options.list and (options.model is None or not (options.inputs or options.info)):
        parser.error(
            "a model and pictures are needed: stylize --model starry_night photo.jpg (--list shows the models)"
        )
    return options


def stylize(arguments: list[str]) -> int:
    """Do what a command line says; return 1 where a picture among several could not be read."""
    options = parse(arguments)
    if options.list:
        show_models()
        return 0
    if options.huge:
        Image.MAX_IMAGE_PIXELS = None
    model = find_model(options.model)
    stylizer = Stylizer(
        model,
        options.threads,
        device=options.device,
        pixel_range=options.pixel_range,
        bgr=options.bgr,
        tile=options.tile,
    )
    if options.info:
        for key, value in stylizer.metadata.items():
            print(printable(f"{key}: {value}"))
        return 0
    suffix = None if options.format is None else FORMATS[options.format]
    jobs = find_jobs(options.inputs, options.output, model.stem, suffix, options.recursive)
    refuse_targets(jobs, suffix, options.overwrite)
    looks = Looks(options.strength, options.keep_colors, options.max_side, options.scale)
    budget = PixelBudget(PIXELS_AT_ONCE)

    def work(job: Job) -> dict[str, Any]:
        try:
            with open_picture(job) as image, budget.spend(image.width * image.height * max(1, options.scale) ** 2):
                began = time.perf_counter()
                kind = job.target.suffix if job.target else written_as(f".{image.format or 'png'}")
                kind = suffix or kind.lower()
                stylized, saving = stylize_picture(job, image, stylizer, looks, kind, options)
                write(job, stylized, saving)
        except UserError as error:
            return {"input": job.name, "error": " ".join(str(error).split())}
        except MemoryError:
            return {"input": job.name, "error": f"not enough memory for {job.name}; --max-side makes it smaller"}
        size = {"width": stylized.width, "height": stylized.height}
        seconds = round(time.perf_counter() - began, 4)
        return {"input": job.name, "output": str(job.target or "-"), **size, "seconds": seconds}

    def tell(told: dict[str, Any]) -> bool:
        if options.json and told.get("output") != "-":
            print(json.dumps(told), flush=True)
        elif "error" in told:
            print(f"stylize: {printable(told['error'])}", file=sys.stderr)
        return "error" not in told

    done = 0
    with ThreadPoolExecutor(stylizer.runs_at_once) as pool:
        waiting = deque(pool.submit(work, job) for job in jobs)
        try:
            for _ in track(jobs, len(jobs)):
                told = waiting[0].result()
                waiting.popleft()
                done += tell(told)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for future in waiting:  # those that were under way are written by now
                if not future.cancelled() and not future.exception():
                    tell(future.result())
            raise
    if done and not options.json and len(jobs) == 1 and jobs[0].target is not None:
        print(jobs[0].target)
    elif not options.json and len(jobs) > 1 and all(job.target is not None for job in jobs):
        places = sorted({str(job.target.parent) for job in jobs if job.target is not None})
        named = ", ".join(places) if len(places) < 4 else f"{places[0]} and {len(places) - 1} more folders"
        print(f"{done} of {len(jobs)} pictures stylized into {options.output or named}")
    return 0 if done == len(jobs) else 1


def write(job: Job, stylized: Image.Image, saving: dict[str, Any]) -> None:
    """Encode a result and write it in one step; raises UserError where that is not possible."""
    try:
        content = encode_image(stylized, **saving)
    except UserError as error:
        raise UserError(f"{job.name}: {error}") from error
    if job.target is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write_atomically(job.target, content)


def track(jobs: Iterable[Any], total: int) -> Iterable[Any]:
    """Return the same items, with a progress bar where there are several and someone looks."""
    if total < 2 or not sys.stderr.isatty():
        return jobs
    from rich.console import Console  # here: one picture needs no bar and should not wait for one
    from rich.progress import track as bar

    return bar(jobs, f"{total} pictures", total, console=Console(stderr=True), transient=True)


def main() -> None:
    """Entry point."""
    run(stylize, "stylize", USAGE)


if __name__ == "__main__":
    main()
