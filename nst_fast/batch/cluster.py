"""The same work on a Ray cluster: actors that hold a worker each, fed by Ray Data."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import tempfile
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nst_fast.batch.inputs import Picture
from nst_fast.batch.work import Plan, Row, Task, Worker
from nst_fast.errors import UserError, one_line

BLOCK = 32  # tasks that an actor does at a time, where no tar says how many
WINDOW = 10_000  # tasks for each actor that are handed to Ray Data at a time
SECONDS_TO_CONNECT = 10


class Actor:
    """A worker with the models' bytes: nodes need share no file system but the output's and the inputs'."""

    def __init__(self, plan: Plan, models: dict[str, bytes]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="nst_fast")
        styles = []
        for style in plan.styles:
            path = Path(self.folder.name, style.path.name)
            path.write_bytes(models[style.sha256])
            styles.append(dataclasses.replace(style, path=path))
        self.worker = Worker(dataclasses.replace(plan, styles=tuple(styles)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of tasks, both as JSON."""
        rows = self.worker(decode_task(told) for told in batch["task"])
        return {"row": [json.dumps(dataclasses.asdict(row)) for row in rows]}


def decode_task(told: str) -> Task:
    """Return the task of its JSON."""
    fields = json.loads(told)
    return Task(**{**fields, "picture": Picture(**fields["picture"])})


def on_cluster(plan: Plan, tasks: Iterator[Task], address: str, actors: int | None) -> Generator[Row, None, None]:
    """Yield what became of tasks that actors of a Ray cluster do.

    Args:
        plan: whose session's threads are each actor's.
        tasks: taken some thousand at a time.
        address: of the cluster; ``local`` starts one on this machine.
        actors: how many; None: as many as the cluster has cores for.

    Raises UserError where Ray is not installed or the cluster cannot be reached.
    """
    first = next(tasks, None)
    if first is None:
        return
    Worker(plan)  # what is wrong with a model is said here, not by an actor
    models = {style.sha256: style.path.read_bytes() for style in plan.styles}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it prints
    import ray  # here: one machine needs none
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if host:  # Ray itself would try for minutes, and print
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except Exception as error:  # of several kinds
        raise UserError(f"no Ray cluster at {address}: {one_line(error)}") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        threads = plan.session.get("threads") or 1
        actors = actors or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors)
        window = [first, *islice(tasks, WINDOW * actors - 1)]
        while window:
            size = plan.tar or BLOCK
            told = [{"task": json.dumps(dataclasses.asdict(task))} for task in window]
            blocks = ray.data.from_items(told, override_num_blocks=-(-len(told) // size))
            done = blocks.map_batches(
                Actor, batch_size=None, num_cpus=threads, compute=pool, fn_constructor_args=(plan, models)
            )
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
                yield from (Row(**json.loads(row)) for row in batch["row"])
            window = list(islice(tasks, WINDOW * actors))
    except UserError:  # of what the tasks come from
        raise
    except Exception as error:  # of several kinds
        raise UserError(f"the Ray cluster at {address} failed: {one_line(error)}; the same command goes on") from error
    finally:
        ray.shutdown()
