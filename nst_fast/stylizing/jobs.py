"""Many pictures and videos through a model: what is asked for, where it goes, and as many at once as memory allows."""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.util
import io
import logging
import os
import sys
import tempfile
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from nst_fast.errors import UserError
from nst_fast.files import is_stream, write_atomically
from nst_fast.stylizing.folders import no_pictures, search
from nst_fast.stylizing.formats import OF_NAME, OF_SUFFIX, PNG, SUFFIXES, VIDEO_SUFFIXES, format_of, written_as
from nst_fast.stylizing.images import encode_image, is_readable, open_image
from nst_fast.stylizing.looks import WHOLE, Looks, Saving, reading, stylize_picture
from nst_fast.stylizing.stylizer import TILED_ABOVE, Painter, among

logger = logging.getLogger(__name__)

# Pictures that run at the same time take no more memory together than the largest that is not tiled.
PIXELS_AT_ONCE = TILED_ABOVE
LONGEST_NAME = 255  # bytes, on nearly every file system
SLASHES = tuple({"/", os.sep})
Watch = Callable[[str, int, int], None]  # is told of a video's name, frames done and, as far as is known, in all


@dataclass(frozen=True)
class Job:
    """A picture or a video to stylize: where it comes from and where it goes to; None is standard input or output.

    With an error, one line that says why, there is nothing to do but to tell of it.
    """

    source: Path | None
    target: Path | None
    error: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if self.source is None else str(self.source)

    def is_clip(self, suffix: str | None = None) -> bool:
        """Return whether it is a video, or becomes one, by its names or the suffix of the result's format."""
        ends = {suffix, *(path.suffix for path in (self.source, self.target) if path is not None)}
        return any(end is not None and end.lower() in VIDEO_SUFFIXES for end in ends)


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        input: what messages call the picture.
        output: the file that was written; None: standard output, or nothing where there is an error.
        width, height: of the stylized picture or video, px.
        frames: of a video; 0: it is a picture.
        seconds: from when its turn came until it was written.
        error: one line; None: it is stylized.
    """

    input: str
    output: Path | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None


def find_jobs(
    inputs: Sequence[str],
    output: str | None,
    model: str,
    suffix: str | None = None,
    recursive: bool = False,
) -> list[Job]:
    """Return the jobs that stylize pictures, folders and globs, each once.

    Args:
        inputs: paths, globs, or "-" for standard input; "~" is the user's folder.
        output: a picture, a folder, or "-" for standard output; None: beside each input, named after it and the model.
        model: the model's name.
        suffix: of the results' format; None: each photograph's.
        recursive: folders with what is below them.

    What is left out is a warning. Raises UserError where inputs are missing or do not fit the output.
    """
    if "" in (*inputs, output):
        raise UserError("an input or the output is empty; . is the folder where you are")
    expanded = expand(inputs, recursive)
    if output == "-":
        return to_standard_output(expanded)
    place = None if output is None else Path(os.path.expanduser(output))
    is_file = output is not None and names_one_picture(output, expanded)
    jobs = []
    for given in expanded:
        source = Path(given)
        if given == "-":
            if place is not None and not is_file:
                raise UserError("standard input has no name: say -o FILE or -o -")
            jobs.append(Job(None, place))
        elif os.path.isdir(source):
            try:
                jobs += jobs_of_folder(source, recursive, place, model, suffix)
            except UserError as error:
                jobs.append(Job(source, source, str(error)))
        elif place is None:
            jobs.append(Job(source, source.with_name(f"{source.stem}.{model}{suffix or written_as(source.suffix)}")))
        else:
            jobs.append(Job(source, place if is_file else renamed(place / source.name, suffix)))
    return without_results(dict.fromkeys(jobs), model)


def without_results(jobs: Iterable[Job], model: str) -> list[Job]:
    """Return jobs without those of pictures that the model has made of others among them; how many is a warning.

    They are called so: photo.MODEL.png beside photo.jpg, or FOLDER.MODEL/photo.jpg beside FOLDER/photo.jpg.
    """
    jobs, end = list(jobs), f".{model}"
    sources = {job: job.source.with_suffix("") for job in jobs if job.source is not None and job.error is None}
    photographs = set(sources.values())

    def is_result(job: Job) -> bool:
        parts = sources[job].parts if job in sources else ()
        return any(
            part.endswith(end) and Path(*parts[:i], part.removesuffix(end), *parts[i + 1 :]) in photographs
            for i, part in enumerate(parts)
        )

    kept = [job for job in jobs if not is_result(job)]
    if len(kept) < len(jobs):
        count = len(jobs) - len(kept)
        logger.warning("left out, as earlier results called .%s beside what they were made of: %d", model, count)
    return kept


def expand(inputs: Sequence[str], recursive: bool) -> list[str]:
    """Return inputs with globs replaced by the sorted paths that they match, or left where there are none."""
    expanded: list[str] = []
    for given in inputs:
        plain = os.path.expanduser(given)
        literal = given == "-" or os.path.lexists(plain)
        matches = [plain] if literal else sorted(glob.glob(plain, recursive=recursive))  # noqa: PTH207
        expanded += matches or [plain]
    return expanded


def to_standard_output(inputs: Sequence[str]) -> list[Job]:
    """Return the job of one picture that goes to standard output; raises UserError where there may be more."""
    for given in inputs:
        if given != "-" and os.path.isdir(given):
            raise UserError(f"{Path(given)} is a folder; only one picture goes to standard output")
    if len(inputs) > 1:
        raise UserError(f"{len(inputs)} pictures; only one goes to standard output")
    return [Job(None if given == "-" else Path(given), None) for given in inputs]


def names_one_picture(output: str, inputs: Sequence[str]) -> bool:
    """Return whether an output is a file: a folder ends in a slash, is there already or takes several pictures.

    Raises UserError where it is named like a picture, but more may come out.
    """
    single = len(inputs) == 1 and not os.path.isdir(inputs[0])
    may_be_file = not os.path.isdir(os.path.expanduser(output)) and not output.endswith(SLASHES)
    if may_be_file and not single and Path(output).suffix.lower() in SUFFIXES | VIDEO_SUFFIXES:
        raise UserError(f"-o {output} names one file, but more may come out; the name of a folder ends in /")
    return may_be_file and single


def jobs_of_folder(source: Path, recursive: bool, output: Path | None, model: str, suffix: str | None) -> list[Job]:
    """Return the jobs of what is found in a folder, but for what an earlier command left in the output within it.

    Raises UserError where there are none, or the output is a file.
    """
    into = output or source.resolve().with_name(f"{source.resolve().name}.{model}")
    if os.path.exists(into) and not os.path.isdir(into):
        raise UserError(f"{into} is a file; the output of a folder must be a folder")
    videos = VIDEO_SUFFIXES if importlib.util.find_spec("av") else frozenset[str]()
    found = search(source, recursive, SUFFIXES | videos)
    pictures = found.pictures
    if not pictures:
        raise no_pictures(source)
    if inside(into, source) and not inside(source, into):
        pictures = [path for path in pictures if not inside(path, into)]
    if not pictures:
        raise UserError(f"no pictures in {source} but those in the output {into}")
    unread = [Job(place, into, f"{place} cannot be read: {reason.lower()}") for place, reason in found.unreadable]
    return [Job(path, renamed(into / path.relative_to(source), suffix)) for path in pictures] + unread


def renamed(path: Path, suffix: str | None) -> Path:
    """Return the path of a result that is named like its photograph."""
    return path.with_suffix(suffix or written_as(path.suffix))


def inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or below it, wherever links lead."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_targets(
    jobs: Sequence[Job], suffix: str | None = None, overwrite: bool = False, skip_existing: bool = False
) -> list[Job]:
    """Return jobs with the reason, before any work, why some of them cannot be done.

    No format has the output's suffix, two pictures would go to one file, one would replace an input, or a file is
    there; jobs whose file is there are left out where that is asked for. Raises UserError where no job is left to do.
    """
    checked: list[Job] = []
    taken: dict[str, Job] = {}
    inputs = {folded(job.source): job.source for job in jobs if job.source is not None and job.error is None}
    for job in jobs:
        if job.target is None or job.error is not None:
            checked.append(job)
            continue
        place, there = folded(job.target), os.path.lexists(job.target) and not is_stream(job.target)
        source = inputs.get(place)
        other = taken.get(place, Job(None, None))
        reason = unwritable(job.target, suffix)
        if reason is None and source is not None and is_same(job.target, source):
            reason = f"the output would replace the input {source}; name another with -o"
        elif reason is None and other.target is not None and would_be_same(job.target, other.target):
            reason = f"{other.name} and {job.name} would both be written to {job.target}"
        elif reason is None and there and skip_existing:
            taken[place] = job
            continue
        elif reason is None and there and not overwrite:
            reason = f"{job.target} exists; --overwrite replaces it, --skip-existing leaves it, -o names another"
        if reason is None:
            taken[place] = job
        checked.append(job if reason is None else replace(job, error=reason))
    errors = [job.error for job in checked if job.error is not None]
    if errors and len(errors) == len(checked):
        raise UserError(errors[0])
    return checked


def unwritable(target: Path, suffix: str | None) -> str | None:
    """Return why no picture can be written to a file, by its name and the suffix of `--format`; None where it can."""
    try:
        kind = format_of(suffix or target.suffix, video=True)
    except UserError as error:
        return f"cannot write {target}: {error}, or a name that ends in / for a folder"
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        return f"cannot write {target}: the name is too long; -o FILE names another"
    named = OF_SUFFIX.get(target.suffix.lower(), kind)
    if named.name != kind.name:
        return f"{target} is named like {named.name} and would be {kind.name} by --format; leave one of them out"
    return None


def folded(path: Path) -> str:
    """Return what names of one file have in common, also where a file system ignores case or accents' spelling."""
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


def is_same(path: Path, other: Path) -> bool:
    """Return whether two names that are folded alike are one file's."""
    path, other = Path(os.path.realpath(path)), Path(os.path.realpath(other))
    return path == other or (os.path.lexists(path) and not (is_listed(path) and is_listed(other)))


def is_listed(path: Path) -> bool:
    """Return whether every part of a path is spelt as its folder lists it."""
    try:
        return all(part.name in os.listdir(part.parent) for part in (path, *path.parents) if part.name)  # noqa: PTH208
    except OSError:
        return True


def would_be_same(path: Path, other: Path) -> bool:
    """Return whether two names that are folded alike, of files that need not be there, are one file's."""
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    folder = Path(os.path.realpath(path)).parent
    while not os.path.isdir(folder):
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".Case") as probe:
            return os.path.lexists(folder / Path(probe.name).name.swapcase())
    except OSError:
        return True  # nothing can be written there anyway


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


def open_picture(job: Job) -> Image.Image:
    """Return a picture that is yet to be decoded; raises UserError where it is missing or no picture."""
    if job.source is not None and not is_readable(job.source):
        raise UserError(f"no picture at {job.source}")
    source: Path | io.BytesIO = job.source or io.BytesIO(sys.stdin.buffer.read())
    if isinstance(source, io.BytesIO) and not source.getbuffer():
        raise UserError("standard input is empty; a picture is needed")
    with reading(job.name, source):
        return open_image(source)


def write(job: Job, content: bytes, overwrite: bool) -> None:
    """Write a result's bytes in one step; raises UserError where that is not possible."""
    if job.target is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write_atomically(job.target, content, overwrite)


def stylize_video(
    job: Job, stylizer: Painter, looks: Looks, saving: Saving, watch: Watch, stop: threading.Event
) -> Result:
    """Stylize one video, from or to an animation also, and return what became of it."""
    try:
        from nst_fast.stylizing.clips import AnimationReader, stylize_clip
        from nst_fast.stylizing.video import ENCODERS, VideoReader

        if looks.steady:
            import cv2  # noqa: F401  or it would be found missing after the file is begun
    except ModuleNotFoundError as error:
        raise UserError(f'{job.name}: videos need PyAV, --steady OpenCV: pip install "nst_fast[video]"') from error
    if job.target is None or is_stream(job.target):
        raise UserError(f"{job.name}: a video goes into a file: -o FILE")
    encoder = ENCODERS.get(format_of(saving.suffix or job.target.suffix, video=True).name)
    if encoder is None:
        named = ".mp4, .mov, .mkv, .webm, .avi, .gif or .webp"
        raise UserError(f"{job.name} is a video, {job.target} would be a picture; {named} is needed")
    began = time.perf_counter()
    reader: VideoReader | AnimationReader
    if job.source is not None and job.source.suffix.lower() in VIDEO_SUFFIXES:
        if not is_readable(job.source):
            raise UserError(f"no video at {job.source}")
        reader = VideoReader(job.source, saving.span, stylizer.threads)
    else:
        reader = AnimationReader(job.name, open_picture(job), saving.span)
    with contextlib.closing(reader):
        told = functools.partial(watch, job.name)
        result = stylize_clip(reader, job.target, encoder, stylizer, looks, saving, told, stop)
    return Result(job.name, job.target, *result.size, result.frames, time.perf_counter() - began)


def stylize_job(
    job: Job,
    stylizer: Painter,
    looks: Looks,
    saving: Saving,
    budget: PixelBudget,
    watch: Watch,
    stop: threading.Event,
    alone: bool,
) -> Result:
    """Stylize one picture or video once the budget has room for it, and return what became of it, errors too."""
    if job.error is not None:
        return Result(job.name, error=job.error)
    try:
        if job.is_clip(saving.suffix):
            with budget.spend(PIXELS_AT_ONCE):  # its frames run several at once themselves
                return stylize_video(job, stylizer, looks, saving, watch, stop)
        if saving.span != WHOLE:
            raise UserError(f"--from and --to cut videos; {job.name} becomes a picture")
        if looks.steady:
            raise UserError(f"--steady ties frames of a video; {job.name} becomes a picture")
        if looks.to_style is not None:
            raise UserError(f"--to-style is the end of a video; {job.name} becomes a picture")
        with open_picture(job) as image, budget.spend(pixels := looks.pixels(*image.size)):
            painter = stylizer if alone else among(stylizer, pixels)
            began = time.perf_counter()
            known = OF_NAME.get(image.format or "")  # "-" has no name that tells it
            named = job.target.suffix if job.target else written_as(known.suffixes[0] if known else PNG)
            suffix = saving.suffix or named.lower()
            stylized, options = stylize_picture(job.name, image, painter, looks, suffix, saving.keep_gps)
            write(job, encode_image(stylized, suffix, saving.quality, **options), saving.overwrite)
    except UserError as error:
        reason = " ".join(str(error).split())
        return Result(job.name, error=reason if job.name in reason else f"{job.name}: {reason}")
    except MemoryError:
        return Result(job.name, error=f"not enough memory for {job.name}; --max-side makes it smaller")
    return Result(job.name, job.target, *stylized.size, seconds=time.perf_counter() - began)


def stylize_jobs(
    jobs: Iterable[Job],
    stylizer: Painter,
    looks: Looks | None = None,
    saving: Saving | None = None,
    watch: Watch = lambda name, done, expected: None,
) -> Generator[Result, None, None]:
    """Stylize pictures, several at once, and videos, and yield what became of each in their order.

    What cannot be read, stylized or written gives a result that says why, and the rest go on. Whatever else is raised
    here or thrown in, Ctrl-C for instance, ends the work: no other picture is begun, a video that is under way ends
    after the frames that are, the results are yielded, and it is raised again.
    """
    stop = threading.Event()
    looks, saving, budget = looks or Looks(), saving or Saving(), PixelBudget(PIXELS_AT_ONCE)
    jobs = list(jobs)
    with ThreadPoolExecutor(stylizer.runs_at_once) as pool:
        waiting = deque(
            pool.submit(stylize_job, job, stylizer, looks, saving, budget, watch, stop, len(jobs) == 1) for job in jobs
        )
        try:
            while waiting:
                result = waiting[0].result()
                waiting.popleft()
                yield result
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, GeneratorExit):
                for future in waiting:  # those that were under way are written by now
                    if not future.cancelled() and not future.exception():
                        yield future.result()
            raise
