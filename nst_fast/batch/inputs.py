"""Which pictures there are: in folders, globs, columns of tables and tars, local or of any fsspec address."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet

from nst_fast.batch.store import address_of, is_local, locate, reaching
from nst_fast.errors import UserError
from nst_fast.stylizing.folders import NO_FILES, is_kept_aside, is_ours, walk
from nst_fast.stylizing.formats import SUFFIXES

TABLES = (".parquet", ".csv")
TAR = ".tar"
MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is yet to be read.

    Attributes:
        id: what it is called wherever its input lies: the input's name and the path below it, or a table's value.
        address: of its file.
        start, length: bytes of the file that are the picture; None: all of it.
    """

    id: str
    address: str
    start: int = 0
    length: int | None = None


@dataclass(frozen=True)
class Input:
    """What a command names, found: a file system, the path on it, and the folder that ids are relative to."""

    file_system: Any
    path: str
    pattern: bool

    @property
    def root(self) -> str:
        """The folder whose name begins the ids: itself, or what a file lies in, or a pattern's fixed part."""
        parts = PurePosixPath(self.path).parts
        fixed = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts)) if self.pattern else None
        if fixed is not None:
            return str(PurePosixPath(*parts[:fixed]))
        return self.path if self.is_folder() else str(PurePosixPath(self.path).parent)

    def is_folder(self) -> bool:
        """Return whether it is a folder; raises UserError where there is nothing."""
        with reaching(address_of(self.file_system, self.path)):
            return self.file_system.info(self.path)["type"] == "directory"

    def files(self, left_out: Counter[str]) -> Iterator[str]:
        """Yield the paths of its files: of a folder its pictures, of a pattern what matches, else itself."""
        with reaching(address_of(self.file_system, self.path)):
            if self.pattern:
                yield from self.matches()
            elif not self.is_folder():
                yield self.path
            elif is_local(self.file_system):
                for picture in walk(Path(self.path), True, refuse, left_out):
                    yield picture.as_posix()
            else:
                yield from walk_store(self.file_system, self.path, left_out)

    def matches(self) -> Iterator[str]:
        """Yield the files that a pattern matches; raises UserError where there are none."""
        if is_local(self.file_system):
            found = (Path(match).as_posix() for match in glob.iglob(self.path, recursive=True) if os.path.isfile(match))  # noqa: PTH207
        else:
            listed = self.file_system.glob(self.path, detail=True)
            found = (path for path, entry in listed.items() if entry["type"] == "file")
        first = next(found, None)
        if first is None:
            raise UserError(f"nothing matches {address_of(self.file_system, self.path)}")
        yield first
        yield from found


def refuse(place: Path, reason: str) -> None:
    """Raise UserError for a folder that cannot be listed: hours of work would be done on part of the pictures."""
    raise UserError(f"{place} cannot be read: {reason.lower()}; make it readable, or name folders without it")


def walk_store(file_system: Any, folder: str, left_out: Counter[str], first: bool = True) -> Iterator[str]:
    """Yield the pictures of a folder and below it that is not local, as `folders.walk` does."""
    entries = {PurePosixPath(entry["name"]).name: entry for entry in file_system.ls(folder, detail=True)}
    if not first and is_ours([], list(entries)):
        return
    below = []
    for name, entry in sorted(entries.items()):
        path, suffix = entry["name"].rstrip("/"), PurePosixPath(name).suffix.lower()
        if is_kept_aside(name) or name.lower() in NO_FILES or path == folder:
            continue
        if entry["type"] == "directory":
            below.append(path)
        elif suffix in SUFFIXES:
            yield path
        else:
            left_out[suffix or "without suffix"] += 1
    del entries
    for path in below:
        yield from walk_store(file_system, path, left_out, first=False)


def locate_inputs(addresses: Sequence[str]) -> list[Input]:
    """Return the inputs that a command names.

    Raises UserError where one is missing, or two different places would give pictures of the same ids.
    """
    inputs, roots = [], dict[str, str]()
    for address in addresses:
        file_system, path = locate(address)
        pattern = bool(MAGIC.search(path)) and not file_system.exists(path)
        found = Input(file_system, path, pattern)
        place = address_of(file_system, found.root)
        known = roots.setdefault(PurePosixPath(found.root).name, place)
        if known != place:
            raise UserError(f"{known} and {place} have one name, and ids begin with it: rename one of them")
        inputs.append(found)
    return inputs


def find(inputs: Sequence[Input], column: str, left_out: Counter[str]) -> Iterator[Picture]:
    """Yield the pictures of inputs as they are found: a folder, a table or a tar is never held as a whole.

    Args:
        inputs: folders, globs, .parquet and .csv tables, .tar files and pictures.
        column: of the tables, with paths, relative to the table or not, or addresses.
        left_out: counts files of folders that are in no format of pictures, by suffix.

    Raises UserError where something cannot be listed.
    """
    tables = set[str]()
    for one in inputs:
        root = PurePosixPath(one.root)
        for path in one.files(left_out):
            name = str(PurePosixPath(root.name) / PurePosixPath(path).relative_to(root))
            address, suffix = address_of(one.file_system, path), PurePosixPath(path).suffix.lower()
            if suffix in TABLES:
                tables.add(str(PurePosixPath(address).parent))
                for number, value in enumerate(values(one.file_system, path, column)):
                    yield of_table(address, value, f"{name} row {number}", tables)
            elif suffix == TAR:
                yield from members(one.file_system, path, name)
            else:
                yield Picture(name, address)


def of_table(table: str, value: str | None, row: str, folders: set[str]) -> Picture:
    """Return the picture of a table's value; a missing one has its row as id, and nothing at its address."""
    if not value:
        return Picture(row, row)
    if "://" in value or PurePosixPath(value).is_absolute() or Path(value).is_absolute():
        return Picture(value, value)
    if len(folders) > 1:
        raise UserError(
            f"tables in several folders ({', '.join(sorted(folders))}) have relative paths, such as {value}"
        )
    return Picture(value, f"{table.rsplit('/', 1)[0]}/{value}")


def values(file_system: Any, path: str, column: str) -> Iterator[str | None]:
    """Yield the values of a column of a Parquet or CSV file; raises UserError where there is none."""
    address = address_of(file_system, path)

    def check(names: Sequence[str]) -> None:
        if column not in names:
            raise UserError(f"{address} has no column {column!r} but {', '.join(names)}; --column names one")

    with reaching(address), file_system.open(path, "rb") as file:
        if path.lower().endswith(".csv"):
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            table = csv.DictReader(text)
            check(table.fieldnames or ())
            yield from (row[column] for row in table)
        else:
            parquet = pyarrow.parquet.ParquetFile(file)
            check(parquet.schema_arrow.names)
            for batch in parquet.iter_batches(4096, columns=[column], use_threads=False):
                yield from (None if value is None else str(value) for value in batch.column(0).to_pylist())


def members(file_system: Any, path: str, name: str) -> Iterator[Picture]:
    """Yield the pictures of a tar, which is read from header to header; raises UserError where it is none."""
    address = address_of(file_system, path)
    with reaching(address), file_system.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # which would keep them all
            inner = PurePosixPath(member.name)
            is_picture = inner.suffix.lower() in SUFFIXES and not is_kept_aside(inner.name)
            if is_picture and member.isreg() and not member.issparse():
                yield Picture(f"{name}/{member.name}", address, member.offset_data, member.size)
