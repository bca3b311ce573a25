"""Many pictures through a model: what is asked for, where it goes, and as many at once as memory allows."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.stylizing.images import SUFFIXES, encode_image, find_format, find_pictures, written_as
from nst_fast.stylizing.looks import Looks, Saving, reading, stylize_picture
from nst_fast.stylizing.stylizer import TILED_ABOVE, Stylizer

# Pictures that run at the same time take no more memory together than the largest that is not tiled.
PIXELS_AT_ONCE = TILED_ABOVE
SLASHES = tuple({"/", os.sep})


@dataclass(frozen=True)
class Job:
    """One picture to stylize: where it comes from and where it goes to; None is standard input or output."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "standard input" if self.source is None else str(self.source)


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        input: what messages call the picture.
        output: the file that was written; None: standard output, or nothing where there is an error.
        width, height: of the stylized picture, px.
        seconds: from when its turn came until it was written.
        error: one line; None: it is stylized.
    """

    input: str
    output: Path | None = None
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str | None = None


def find_jobs(
    inputs: Sequence[str], output: str | None, model: str, suffix: str | None = None, recursive: bool = False
) -> list[Job]:
    """Return the jobs that stylize pictures, folders and globs.

    Args:
        inputs: paths, globs, or "-" for standard input; "~" is the user's folder.
        output: a picture, a folder, or "-" for standard output; None: beside each input, named after it and the model.
        model: the model's name.
        suffix: of the results' format; None: each photograph's.
        recursive: folders with what is below them.

    Raises UserError where inputs are missing or do not fit the output.
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
            jobs += jobs_of_folder(source, place, model, suffix, recursive)
        elif place is None:
            jobs.append(Job(source, source.with_name(f"{source.stem}.{model}{suffix or written_as(source.suffix)}")))
        else:
            jobs.append(Job(source, place if is_file else renamed(place / source.name, suffix)))
    return jobs


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
    if may_be_file and not single and Path(output).suffix.lower() in SUFFIXES:
        raise UserError(f"-o {output} names one picture, but more may come out; the name of a folder ends in /")
    return may_be_file and single


def jobs_of_folder(source: Path, output: Path | None, model: str, suffix: str | None, recursive: bool) -> list[Job]:
    """Return the jobs of a folder's pictures, but for those that an earlier command left in the output within it.

    Raises UserError where there are none, or the output is a file.
    """
    into = output or source.resolve().with_name(f"{source.resolve().name}.{model}")
    if os.path.exists(into) and not os.path.isdir(into):
        raise UserError(f"{into} is a file; the output of a folder must be a folder")
    found = find_pictures(source, recursive)
    if inside(into, source) and not inside(source, into):
        found = [path for path in found if not inside(path, into)]
    if not found:
        raise UserError(f"no pictures in {source} but those in the output {into}")
    return [Job(path, renamed(into / path.relative_to(source), suffix)) for path in found]


def renamed(path: Path, suffix: str | None) -> Path:
    """Return the path of a result that is named like its photograph."""
    return path.with_suffix(suffix or written_as(path.suffix))


def inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or below it, wherever links lead."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def refuse_targets(jobs: Iterable[Job], suffix: str | None = None, overwrite: bool = False) -> None:
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
    if job.source is not None and not os.path.isfile(job.source):
        raise UserError(f"no picture at {job.source}")
    source: Path | io.BytesIO = job.source or io.BytesIO(sys.stdin.buffer.read())
    if isinstance(source, io.BytesIO) and not source.getbuffer():
        raise UserError("standard input is empty; a picture is needed")
    with reading(job.name):
        return Image.open(source)


def write(job: Job, content: bytes) -> None:
    """Write a result's bytes in one step; raises UserError where that is not possible."""
    if job.target is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write_atomically(job.target, content)


def stylize_job(job: Job, stylizer: Stylizer, looks: Looks, saving: Saving, budget: PixelBudget) -> Result:
    """Stylize one picture once the budget has room for it, and return what became of it, errors too."""
    try:
        with open_picture(job) as image, budget.spend(image.width * image.height * max(1, looks.scale) ** 2):
            began = time.perf_counter()
            named = job.target.suffix if job.target else written_as(f".{image.format or 'png'}")
            suffix = saving.suffix or named.lower()
            stylized, options = stylize_picture(job.name, image, stylizer, looks, suffix, saving.keep_gps)
            try:
                content = encode_image(stylized, suffix, saving.quality, **options)
            except UserError as error:
                raise UserError(f"{job.name}: {error}") from error
            write(job, content)
    except UserError as error:
        return Result(job.name, error=" ".join(str(error).split()))
    except MemoryError:
        return Result(job.name, error=f"not enough memory for {job.name}; --max-side makes it smaller")
    return Result(job.name, job.target, stylized.width, stylized.height, time.perf_counter() - began)


def stylize_jobs(
    jobs: Iterable[Job], stylizer: Stylizer, looks: Looks | None = None, saving: Saving | None = None
) -> Generator[Result, None, None]:
    """Stylize pictures, several at once, and yield what became of each in their order.

    A picture that cannot be read, stylized or written gives a result that says why, and the rest go on. Whatever else
    is raised here or thrown in, Ctrl-C for instance, ends the work: no other picture is begun, the results of those
    under way are yielded, and it is raised again.
    """
    looks, saving, budget = looks or Looks(), saving or Saving(), PixelBudget(PIXELS_AT_ONCE)
    with ThreadPoolExecutor(stylizer.runs_at_once) as pool:
        waiting = deque(pool.submit(stylize_job, job, stylizer, looks, saving, budget) for job in jobs)
        try:
            while waiting:
                result = waiting[0].result()
                waiting.popleft()
                yield result
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, GeneratorExit):
                for future in waiting:  # those that were under way are written by now
                    if not future.cancelled() and not future.exception():
                        yield future.result()
            raise
