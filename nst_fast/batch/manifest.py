"""What is on record: Parquet files of one row for each result, others of one row for each failure."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from nst_fast.batch.store import Store, reaching
from nst_fast.batch.work import TARS, Plan, Row
from nst_fast.errors import UserError
from nst_fast.stylizing.folders import OF_A_BATCH

TASK = {name: pyarrow.string() for name in ("id", "style", "key", "input", "worker")}
RESULT = {name: pyarrow.string() for name in ("output", "input_sha256", "output_sha256")}
FIGURES = {
    "width": pyarrow.int32(),
    "height": pyarrow.int32(),
    "strength": pyarrow.float64(),
    "seconds": pyarrow.float32(),
}
FAILURE = {name: pyarrow.string() for name in ("stage", "error")}
MOST_ROWS = 2_000  # in memory, of one file
READ_AT_ONCE = 16  # files
# Rows wait for so much of the time so far, and are written by fewer and fewer files; what a kill costs is as little.
SHARE_OF_TIME = 0.02
LEAST_SECONDS = 1.0
KEY = "S10"  # bytes, of 20 hexadecimal digits
FEWEST_NEW = 4096  # keys, that are sorted in with the others


class Keys:
    """A set of keys in 10 bytes each, with those of lists to begin with."""

    def __init__(self, there: Iterable[Iterable[str]] = ()) -> None:
        known = [np.array([bytes.fromhex(key) for key in keys], KEY) for keys in there]
        self.sorted = np.unique(np.concatenate([np.empty(0, KEY), *known]))
        self.new: set[bytes] = set()

    def add(self, key: str) -> bool:
        """Add a key and return whether it was not there."""
        wanted = bytes.fromhex(key)
        at = int(np.searchsorted(self.sorted, np.array([wanted], KEY))[0])
        if wanted in self.new or (self.sorted[at : at + 1] == np.array([wanted], KEY)).any():
            return False
        self.new.add(wanted)
        if len(self.new) > max(FEWEST_NEW, len(self.sorted) // 16):
            new = np.sort(np.array(list(self.new), KEY))
            self.sorted = np.insert(self.sorted, np.searchsorted(self.sorted, new), new)
            self.new.clear()
        return True


class Parts:
    """Rows in the Parquet files of a folder, each of which is written in one step."""

    def __init__(self, store: Store, folder: str, columns: dict[str, Any]) -> None:
        self.store, self.folder, self.schema = store, folder, pyarrow.schema(columns)
        self.count = 0
        self.begin()

    def begin(self) -> None:
        """Begin the next file."""
        self.rows: list[Row] = []
        self.name = f"{self.folder}/{time.time_ns():020}-{uuid.uuid4().hex[:8]}.parquet"

    def add(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        self.count += 1

    def write(self) -> None:
        """Write the rows that wait; done twice, as at an interruption, it is the same file. Raises UserError."""
        if self.rows:
            columns = [[known(getattr(row, name)) for row in self.rows] for name in self.schema.names]
            made = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table(columns, schema=self.schema), made, compression="zstd")
            self.store.write(self.name, made.getvalue())
            self.begin()
            pyarrow.system_memory_pool().release_unused()  # the heap would keep what pictures and files took

    def read(self, column: str) -> Iterator[list[Any]]:
        """Yield a column file by file; raises UserError where one is damaged."""
        paths = [self.store.path(name) for name in self.store.names(self.folder) if name.endswith(".parquet")]
        for at in range(0, len(paths), READ_AT_ONCE):
            with reaching(f"{self.store.address}/{self.folder}"):
                for content in self.store.file_system.cat(paths[at : at + READ_AT_ONCE]).values():
                    yield pyarrow.parquet.ParquetFile(io.BytesIO(content)).read([column]).column(0).to_pylist()


def known(value: Any) -> Any:
    """Return a value as Parquet holds it: file names may have bytes that are no letters."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class Manifest:
    """The results and the failures of an output.

    Raises UserError where the store cannot be reached, or holds the results of another plan.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store = store
        self.results = Parts(store, "manifest", TASK | RESULT | FIGURES)
        self.failures = Parts(store, "failures", TASK | FAILURE)
        self.began = self.written = time.monotonic()
        settle(store, plan)

    def load(self) -> Keys:
        """Return the keys of all tasks that are on record."""

        def every() -> Iterator[list[str]]:
            for parts in (self.results, self.failures):
                for column in parts.read("key"):
                    parts.count += len(column)
                    yield column

        return Keys(every())

    def forget_failures(self) -> None:
        """Delete the rows of failures, which makes their tasks missing."""
        for name in self.store.names("failures"):
            self.store.remove(name)

    def add(self, row: Row) -> None:
        """Add a row, which is written in a while."""
        (self.results if row.stage is None else self.failures).add(row)
        waits = time.monotonic() - self.written
        most = max(LEAST_SECONDS, SHARE_OF_TIME * (time.monotonic() - self.began))
        if waits > most or len(self.results.rows) + len(self.failures.rows) >= MOST_ROWS:
            self.write()

    def write(self) -> None:
        """Write the rows that wait; raises UserError."""
        self.results.write()
        self.failures.write()
        self.written = time.monotonic()

    def remove_tars_without_rows(self) -> None:
        """Delete tars that a killed command wrote before their rows: the next one did their tasks again."""
        if names := self.store.names(TARS):
            told = {str(output).rsplit("/", 1)[0] for column in self.results.read("output") for output in column}
            for name in set(names) - told:
                self.store.remove(name)


def settle(store: Store, plan: Plan) -> None:
    """Write down what an output is made with; raises UserError where it is made with something else."""
    now = {"models": {style.name: style.sha256 for style in plan.styles}, "each": plan.each} | plan.options
    there = store.read(OF_A_BATCH)
    if there is None:
        store.write(OF_A_BATCH, json.dumps(now, indent=1).encode())
        return
    try:
        before = json.loads(there)
        differ = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{store.address}/{OF_A_BATCH} is damaged; name another output with -o") from error
    if differ:
        what = ", ".join(f"{name}: {tell(before.get(name))} there, {tell(now.get(name))} now" for name in differ[:3])
        raise UserError(f"{store.address} holds results of other options ({what}); name another output with -o")


def tell(value: Any) -> str:
    """Return a setting as a message has it: models with the first digits of their SHA-256."""
    if isinstance(value, dict):
        return " ".join(f"{name} {str(sha256)[:8]}" for name, sha256 in value.items())
    return "none" if value is None else str(value)
