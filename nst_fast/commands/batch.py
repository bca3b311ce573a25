"""The command `nst-batch`: very many pictures through models, none lost and none done twice."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from nst_fast.assets import GALLERY
from nst_fast.commands import run, say, show_warnings
from nst_fast.commands.stylize import FORMATS, StandardError, add_looks, check_limits, parse_looks
from nst_fast.errors import UserError
from nst_fast.stylizing.looks import Looks, Saving

if TYPE_CHECKING:
    from nst_fast.batch.run import Progress

USAGE = """
usage: nst-batch --style NAME INPUT... -o OUTPUT [options]

Stylize very many pictures. The same command again does what is missing.

  --style NAME          a painting of the gallery. Given several times, each picture gets one, drawn by its id
  --model FILE_OR_NAME  an .onnx file or a shipped model. Without --style it may be given several times, too
  --each                paint each picture in all of them
  INPUT                 folders, quoted globs, .parquet or .csv tables, .tar files, pictures; paths, s3://, gs:// …
  --column NAME         column of the tables with paths or addresses (default path)
  -o, --output OUTPUT   a folder or an address, for pictures/, manifest/, failures/ and summary.json
  --tar N               write tars of N results, for WebDataset, instead of one file a result

  --retry-failed        try again what failed
  --max-failed SHARE    end with exit code 1 if a larger share of the pictures fails, 0 to 1 (default 0)
  --address ADDRESS     of a Ray cluster: auto, or local, which starts one here (default: no Ray)
  --actors N            on the cluster (default: as many as it has cores for)
  --threads N           threads to use (default: all cores; with --address 1 for each actor)

  --strength S or S:S   as of stylize; a range draws a strength for each picture by its id
  --keep-colours, --max-side, --stroke, --underpainting, --format, --quality, --keep-gps, --tile, --huge, --device,
  --pixel-range, --bgr  as of stylize

  --json                print the summary as one JSON object
  --version             print the version

Only one command at a time may write to an output. With --address all nodes must reach the inputs and the output by the
same name.

examples:
  nst-batch --style starry_night photos/ -o stylized/
  nst-batch --style andante --style movement --style woggle_bug photos/ -o augmented/
  nst-batch --model starry_night --model the_scream shards.parquet --column url -o s3://bucket/stylized
  nst-batch --model starry_night "shards/*.tar" -o out/ --tar 1000 --address auto
"""
M_ARENA_MAX = -8  # glibc's malloc.h
SECONDS_BETWEEN_LINES = 30.0
SECONDS_ON_A_TERMINAL = 0.5


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line. Raises UserError for values out of range."""
    usage = USAGE.split("\n\n")[0].removeprefix("\nusage: ")
    parser = argparse.ArgumentParser("nst-batch", usage=usage, add_help=False)
    parser.add_argument("--model", action="append")
    parser.add_argument("--style", action="append")
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--column", default="path")
    parser.add_argument("--tar", type=int, default=0)
    parser.add_argument("--max-failed", type=float, default=0.0)
    parser.add_argument("--address")
    parser.add_argument("--actors", type=int)
    for flag in ("--each", "--retry-failed", "--json"):
        parser.add_argument(flag, action="store_true")
    add_looks(parser, strengths)
    options = parse_looks(parser, arguments)
    check_limits(
        *(("--strength", strength, 0, 1) for strength in options.strength),
        ("--tar", options.tar, 0, 10**6),
        ("--max-failed", options.max_failed, 0, 1),
        ("--actors", options.actors, 1, 10**6),
    )
    if options.style is not None and len(options.model or ()) > 1:
        raise UserError(f"--style chooses from one model, got {len(options.model)}: say --model once, or leave it out")
    if options.style is None and options.model is None:
        parser.error("a style is needed: nst-batch --style starry_night photos/ -o stylized/ (stylize --list)")
    if options.actors and not options.address:
        raise UserError("--actors needs a Ray cluster; --address local starts one here")
    return options


def strengths(text: str) -> list[float]:
    """Return the one strength of ``0.7``, or the two of ``0.4:1``, the weaker first; raises ValueError."""
    return sorted(float(strength) for strength in text.split(":", 1))


class Line:
    """One line that says how it goes, drawn anew on a terminal, and elsewhere every 30 seconds."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self.shown = time.monotonic() - (SECONDS_BETWEEN_LINES if self.on_terminal else 0)

    def show(self, progress: Progress) -> None:
        """Print the line where it is time."""
        now = time.monotonic()
        if now - self.shown < (SECONDS_ON_A_TERMINAL if self.on_terminal else SECONDS_BETWEEN_LINES):
            return
        self.shown = now
        total = "" if progress.total is None else f" of {progress.total:,}"
        left = progress.seconds_left
        line = (
            f"{progress.stylized:,}{total} pictures stylized, {progress.failed:,} failed, {progress.per_second:.1f}/s"
            + ("" if left is None else f", {left / 60:.0f} minutes left" if left > 90 else f", {left:.0f} seconds left")
        )
        print(f"\r\x1b[K{line}" if self.on_terminal else line, end="" if self.on_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self.on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def keep_memory_small() -> None:
    """Let threads share the free memory of this process: one heap each would grow for as long as it runs."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def batch(arguments: list[str]) -> int:
    """Do what a command line says; return 1 where more pictures failed than may."""
    options = parse(arguments)
    show_warnings(StandardError("nst-batch"))
    keep_memory_small()
    try:
        from nst_fast.batch.run import stylize_batch
        from nst_fast.batch.work import Plan, Style
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    paintings = list(dict.fromkeys(options.style or []))
    styles = tuple(style for model in options.model or [GALLERY] for style in Style.load(model, paintings))
    names = [style.name for style in styles]
    if len(set(names)) < len(names):
        raise UserError(f"two models have one name ({', '.join(names)}); rename one, or leave it out")
    threads = options.threads or int(options.address is not None)
    plan = Plan(
        options.output,
        styles,
        options.each,
        Looks(options.strength[-1], options.keep_colours, options.max_side, options.stroke),
        Saving(None if options.format is None else FORMATS[options.format], options.quality, options.keep_gps),
        {"threads": threads, "device": options.device, "tile": options.tile}
        | {"pixel_range": options.pixel_range, "bgr": options.bgr, "underpainting": options.underpainting},
        options.strength[0] if len(options.strength) > 1 else None,
        options.tar,
        options.huge,
    )
    line = Line()
    try:
        done = stylize_batch(
            plan,
            options.inputs,
            options.column,
            address=options.address,
            actors=options.actors,
            retry_failed=options.retry_failed,
            watch=line.show,
        )
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    finally:
        line.clear()
    if options.json:
        say(json.dumps(asdict(done)))
    else:
        ended = f"{done.done:,} of them now, {done.per_second:.1f}/s" if done.done else "nothing was missing"
        say(f"{done.stylized:,} pictures stylized into {options.output}, {done.failed:,} failed; {ended}")
    return int(done.failed_share > options.max_failed)


def missing_package(error: ModuleNotFoundError) -> UserError:
    """Return what to install where `nst-batch` needs the ``batch`` extra."""
    package = str(error.name).partition(".")[0]
    return UserError(f'{package} is not installed; nst-batch needs: pip install "nst_fast[batch]"')


def main() -> None:
    """Entry point."""
    run(batch, "nst-batch", USAGE)


if __name__ == "__main__":
    main()
