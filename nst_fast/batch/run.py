"""A batch from top to bottom: which tasks are missing, who does them, what is written down."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from nst_fast.batch.cluster import on_cluster
from nst_fast.batch.inputs import Input, find, locate_inputs
from nst_fast.batch.manifest import Keys, Manifest
from nst_fast.batch.store import Store
from nst_fast.batch.work import Plan, Task, Worker
from nst_fast.errors import UserError
from nst_fast.stylizing.folders import tell_left_out

SUMMARY = "summary.json"
UNREADABLE_IN_A_ROW = 100  # no coincidence, but a store that is gone


@dataclass
class Progress:
    """How a batch goes.

    Attributes:
        stylized, failed: results and failures on record, of all commands.
        done: of this command.
        seconds: since it began.
        total: of all that there is to do, once it is counted; None before, and where there are tars.
    """

    stylized: int = 0
    failed: int = 0
    done: int = 0
    seconds: float = 0.0
    total: int | None = None

    @property
    def per_second(self) -> float:
        """Pictures/s of this command."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def failed_share(self) -> float:
        """Of all that is on record, 0 to 1."""
        return self.failed / max(1, self.stylized + self.failed)

    @property
    def seconds_left(self) -> float | None:
        """Until all is done; None where that is not known."""
        if self.total is None or not self.done:
            return None
        return max(0, self.total - self.stylized - self.failed) / self.per_second


def stylize_batch(
    plan: Plan,
    inputs: Sequence[str],
    column: str = "path",
    *,
    address: str | None = None,
    actors: int | None = None,
    retry_failed: bool = False,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Do what is missing of a plan, write rows for it and a summary, and return how it went.

    Args:
        plan: what is done.
        inputs: folders, globs, tables, tars and pictures, local or of any fsspec address.
        column: of the tables.
        address: of a Ray cluster, or ``local``; None: in this process, without Ray.
        actors: of the cluster; None: as many as it has cores for.
        retry_failed: whether what failed is tried again.
        watch: told after each picture.

    Raises UserError where an input or the output cannot be reached, the output is of another plan or not the
    same on all nodes, a result cannot be written, or a hundred pictures in a row cannot be read though none is missing.
    """
    began, store, found = time.monotonic(), Store(plan.output), locate_inputs(inputs)
    plan = replace(plan, output=store.address)  # which is the same from every folder and node
    manifest = Manifest(store, plan)
    store.clear_unfinished()
    if retry_failed:
        manifest.forget_failures()
    keys, progress, under_way, workers, unread = manifest.load(), Progress(), set[str](), set[str](), 0
    count_aside(found, column, plan, progress)
    tasks = missing(plan, found, column, keys, under_way)
    rows = Worker(plan)(tasks) if address is None else on_cluster(plan, tasks, address, actors)
    try:
        with contextlib.closing(rows):
            for row in rows:
                if row.stage == "write":
                    raise UserError(str(row.error))
                if row.key not in under_way:
                    continue  # an engine that did a lost actor's task again may tell of it twice
                under_way.remove(row.key)
                if row.output and row.worker not in workers:
                    workers.add(row.worker)
                    if not store.exists(row.output.rpartition("/")[0] if plan.tar else row.output):
                        raise UserError(
                            f"{store.address} of {row.worker} is not the same folder as here; nodes must share it"
                        )
                manifest.add(row)
                progress.done += 1
                take_stock(progress, manifest, began)
                watch(progress)
                unread = unread + 1 if row.stage == "read" else 0
                if unread == UNREADABLE_IN_A_ROW:
                    raise UserError(f"{unread} pictures in a row cannot be read, the last: {row.error}; --retry-failed")
    finally:
        manifest.write()
    if under_way:
        raise UserError(f"{len(under_way)} tasks gave no result; the same command does them")
    manifest.remove_tars_without_rows()
    store.clear_unfinished()
    take_stock(progress, manifest, began)
    store.write(SUMMARY, (json.dumps(summary(plan, progress), indent=1) + "\n").encode())
    return progress


def missing(plan: Plan, inputs: Sequence[Input], column: str, keys: Keys, under_way: set[str]) -> Iterator[Task]:
    """Yield the tasks that have no row yet, each once, and note them as under way."""
    left_out = Counter[str]()
    for picture in find(inputs, column, left_out):
        for task in () if plan.is_result(picture.address) else plan.tasks(picture):
            if keys.add(task.key):
                under_way.add(task.key)
                yield task
    tell_left_out(", ".join(one.path for one in inputs), left_out)


def count_aside(inputs: Sequence[Input], column: str, plan: Plan, progress: Progress) -> None:
    """Count what there is to do in a thread of its own; tars would have to be read for it."""

    def count() -> None:
        with contextlib.suppress(UserError):  # the work itself meets it
            number = 0
            for picture in find(inputs, column, Counter()):
                if picture.length is not None:
                    return
                number += 1
            progress.total = number * (len(plan.styles) if plan.each else 1)

    threading.Thread(target=count, daemon=True).start()


def take_stock(progress: Progress, manifest: Manifest, began: float) -> None:
    """Bring the figures up to date."""
    progress.stylized, progress.failed = manifest.results.count, manifest.failures.count
    progress.seconds = time.monotonic() - began


def summary(plan: Plan, progress: Progress) -> dict[str, object]:
    """Return the figures for the summary's file."""
    figures = {"failed_share": progress.failed_share, "pictures_per_second": round(progress.per_second, 3)}
    return {"output": plan.output, "styles": [style.name for style in plan.styles]} | asdict(progress) | figures
