"""What is done to each picture, by whom, and what becomes of it: a file, and a row that says so."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import socket
import tarfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any

from PIL import Image

from nst_fast.assets import find_model
from nst_fast.batch.inputs import Picture
from nst_fast.batch.store import Store, read
from nst_fast.errors import UserError, one_line
from nst_fast.stylizing.formats import written_as
from nst_fast.stylizing.images import encode_image, open_image
from nst_fast.stylizing.jobs import PIXELS_AT_ONCE, PixelBudget
from nst_fast.stylizing.looks import Looks, Saving, reading, stylize_picture
from nst_fast.stylizing.stylizer import Stylizer, among, read_model

PICTURES = "pictures"
TARS = "tars"
WAITING = 8  # threads more than pictures that run at once: they read and write, and wait for stores
STEM = 40  # characters of a picture's name in its result's
RESULT = re.compile(rf"{PICTURES}/[0-9a-f]{{2}}/[^/]*_[0-9a-f]{{20}}\.\w+|{TARS}/[0-9a-f]{{20}}\.tar")


@dataclass(frozen=True)
class Style:
    """A style that pictures are drawn to: a model's only one, or one of a model's paintings.

    Attributes:
        name: what the manifest calls it.
        path: of the model's file.
        sha256: of its bytes.
        painting: the painting's name; None: the model has one style.
    """

    name: str
    path: Path
    sha256: str
    painting: str | None = None

    @classmethod
    def load(cls, model: str, paintings: Sequence[str] = ()) -> list[Style]:
        """Return the one style of a model's file or shipped name, or those of some of its paintings.

        Raises UserError where it has them not, or has many and none is named.
        """
        stylizer = Stylizer(find_model(model), device="cpu", pixel_range=1)
        path, digest = stylizer.path, hashlib.sha256(read_model(stylizer.path)).hexdigest()
        for painting in paintings:
            stylizer.feeds(painting)
        if stylizer.paintings and not paintings:
            raise UserError(f"which styles? say --style NAME; {path.stem} has {', '.join(stylizer.paintings)}")
        return [cls(name, path, digest, name) for name in paintings] or [cls(path.stem, path, digest)]


@dataclass(frozen=True, slots=True)
class Task:
    """A picture in a style; its key tells it and all that its result depends on."""

    picture: Picture
    style: str
    key: str


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a task; with a stage, find, read, decode, stylize or write, it failed there.

    Attributes:
        id: the picture's.
        style, key: the task's.
        input: the address of its file.
        worker: the host and process that did it.
        output: the name of the result below the output.
        input_sha256, output_sha256: of the files' bytes.
        width, height: of the result, px.
        strength: that the picture was stylized with.
        seconds: from when its turn came until it was encoded.
        stage, error: where and why it failed.
    """

    id: str
    style: str
    key: str
    input: str
    worker: str
    output: str | None = None
    input_sha256: str | None = None
    output_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    strength: float | None = None
    seconds: float | None = None
    stage: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """All that results depend on, and where they go.

    Attributes:
        output: the address of a folder.
        styles: each picture gets one, drawn by its id; or all of them where ``each`` is set.
        looks, saving: as of `stylize`.
        session: the keyword arguments of `Stylizer`.
        weakest: each picture's strength is drawn by its id, from this to that of looks; None: they have that of looks.
        tar: results that go into one tar; 0: each is a file.
        huge: whether pictures are opened that may be decompression bombs.
    """

    output: str
    styles: tuple[Style, ...]
    each: bool = False
    looks: Looks = field(default_factory=Looks)
    saving: Saving = field(default_factory=Saving)
    session: dict[str, Any] = field(default_factory=dict)
    weakest: float | None = None
    tar: int = 0
    huge: bool = False

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """What a result depends on beside the picture and the model."""
        saving = {key: value for key, value in asdict(self.saving).items() if key not in ("overwrite", "span")}
        session = {key: value for key, value in self.session.items() if key not in ("threads", "device")}
        strength = self.looks.strength if self.weakest is None else [self.weakest, self.looks.strength]
        return asdict(self.looks) | saving | session | {"strength": strength}

    def looks_of(self, picture: Picture) -> Looks:
        """Return the looks of a picture's results, their strength with four digits, as `stylize` may be given it."""
        if self.weakest is None:
            return self.looks
        drawn = int(sha256(f"\0{picture.id}")[:8], 16) / 0xFFFFFFFF
        return replace(self.looks, strength=round(self.weakest + drawn * (self.looks.strength - self.weakest), 4))

    def is_result(self, address: str) -> bool:
        """Return whether a file is a result of this plan, which is no photograph where the output lies in an input."""
        inside = address.removeprefix(f"{self.output}/")
        return inside != address and RESULT.fullmatch(inside) is not None

    def tasks(self, picture: Picture) -> list[Task]:
        """Return a picture's tasks.

        One style is drawn by rendezvous hashing (Thaler, Ravishankar 1998): a style more takes only its own share from
        the others.
        """

        def weight(style: Style) -> str:
            return sha256(f"{style.name}\0{picture.id}")

        styles = self.styles if self.each else [max(self.styles, key=weight)]
        return [Task(picture, style.name, self.key(picture.id, style)) for style in styles]

    def key(self, picture_id: str, style: Style) -> str:
        """Return 80 bits, as hexadecimal digits, of the picture's id, the model, the painting and the options."""
        return sha256(json.dumps([picture_id, style.sha256, style.painting, self.options], sort_keys=True))[:20]


def sha256(text: str | bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes, or of a text, which may hold a file name's odd ones."""
    content = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return hashlib.sha256(content).hexdigest()


def result_name(task: Task, suffix: str) -> str:
    """Return the name of a result; its one dot is its suffix's, as readers of tars expect."""
    stem = re.sub(r"[^\w-]+", "_", PurePosixPath(task.picture.id).stem)[:STEM]
    return f"{stem}_{task.key}{suffix}"


class Worker:
    """Does tasks, several at once: a model for each style, held as long as it lives.

    Raises UserError where a model or the output's store is not to be had.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.store = plan, Store(plan.output)
        sessions = {style.path: Stylizer(style.path, **plan.session) for style in plan.styles}
        self.stylizers = {style.name: sessions[style.path] for style in plan.styles}
        self.paintings = {style.name: style.painting for style in plan.styles}
        self.at_once = min(stylizer.runs_at_once for stylizer in self.stylizers.values())
        # Threads of their own: each that has ever held a picture keeps memory for one.
        self.painters, self.budget = ThreadPoolExecutor(self.at_once), PixelBudget(PIXELS_AT_ONCE)
        self.name = f"{socket.gethostname()} {os.getpid()}"
        if plan.huge:
            Image.MAX_IMAGE_PIXELS = None

    def __call__(self, tasks: Iterable[Task]) -> Generator[Row, None, None]:
        """Yield what became of tasks, which are taken as they are needed; nothing a task does is raised."""
        with ThreadPoolExecutor(self.at_once + WAITING) as pool:
            if self.plan.tar:
                yield from self.into_tars(pool, iter(tasks))
            else:
                yield from (row for row, _ in as_done(pool, self.into_file, tasks, 2 * (self.at_once + WAITING)))

    def into_file(self, task: Task) -> tuple[Row, bytes]:
        """Do a task and write its result."""
        row, content = self.do(task)
        if row.stage is None:
            name = f"{PICTURES}/{task.key[:2]}/{row.output}"
            try:
                self.store.write(name, content)
            except UserError as error:
                return replace(row, output=None, stage="write", error=str(error)), b""
            row = replace(row, output=name)
        return row, b""

    def into_tars(self, pool: ThreadPoolExecutor, tasks: Iterator[Task]) -> Iterator[Row]:
        """Do tasks and yield their rows when the tar with their results is there."""
        while block := list(islice(tasks, self.plan.tar)):
            rows, name = [], f"{TARS}/{sha256(' '.join(task.key for task in block))[:20]}.tar"
            try:
                with self.store.writing(name) as file, tarfile.open(file, "w") as tar:
                    for row, content in as_done(pool, self.do, block, 2 * (self.at_once + WAITING)):
                        if row.stage is None:
                            member = tarfile.TarInfo(str(row.output))
                            member.size = len(content)
                            tar.addfile(member, io.BytesIO(content))
                            row = replace(row, output=f"{name}/{row.output}")
                        rows.append(row)
            except UserError as error:
                rows = [self.row(task, stage="write", error=str(error)) for task in block]
            yield from rows

    def row(self, task: Task, **what: Any) -> Row:
        """Return a task's row."""
        return Row(task.picture.id, task.style, task.key, task.picture.address, self.name, **what)

    def do(self, task: Task) -> tuple[Row, bytes]:
        """Return a task's row, with the file name of its result, and the result; nothing is raised."""
        picture = task.picture
        try:
            content = read(picture.address, picture.start, picture.length)
        except Exception as error:
            stage = "find" if isinstance(error.__cause__, FileNotFoundError) else "read"
            return self.row(task, stage=stage, error=one_line(error)), b""
        return self.painters.submit(self.paint, task, content).result()

    def paint(self, task: Task, content: bytes) -> tuple[Row, bytes]:
        """Return the row and the result of a picture that is read; nothing is raised."""
        picture, saving = task.picture, self.plan.saving
        looks = replace(self.plan.looks_of(picture), style=self.paintings[task.style])
        suffix = saving.suffix or written_as(PurePosixPath(picture.id).suffix).lower()
        stage, source = "decode", io.BytesIO(content)
        try:
            with reading(picture.id, source):
                opened = open_image(source)
            with opened, self.budget.spend(pixels := looks.pixels(*opened.size)):
                began = time.perf_counter()
                with reading(picture.id, source):
                    opened.load()
                stage = "stylize"
                painter = among(self.stylizers[task.style], pixels)
                stylized, options = stylize_picture(picture.id, opened, painter, looks, suffix, saving.keep_gps)
                result = encode_image(stylized, suffix, saving.quality, **options)
                seconds = time.perf_counter() - began
        except MemoryError:
            return self.row(task, stage=stage, error="not enough memory; --max-side makes it smaller"), b""
        except Exception as error:  # a picture's trouble, of whatever kind, is its own
            return self.row(task, stage=stage, error=one_line(error)), b""
        made = self.row(
            task,
            output=result_name(task, suffix),
            input_sha256=sha256(content),
            output_sha256=sha256(result),
            width=stylized.width,
            height=stylized.height,
            strength=looks.strength,
            seconds=seconds,
        )
        return made, result


def as_done(pool: ThreadPoolExecutor, do: Callable[[Task], Any], tasks: Iterable[Task], most: int) -> Iterator[Any]:
    """Yield results as they come, with at most so many tasks under way; those not begun are given up at an end."""
    waiting, done = set[Future[Any]](), SimpleQueue[Future[Any]]()  # in which Ctrl-C leaves no lock half taken

    def take() -> Any:
        waiting.remove(future := done.get())
        return future.result()

    try:
        for task in tasks:
            waiting.add(future := pool.submit(do, task))
            future.add_done_callback(done.put)
            if len(waiting) == most:
                yield take()
        while waiting:
            yield take()
    finally:
        for future in waiting:
            future.cancel()
