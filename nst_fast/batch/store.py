"""Files of any fsspec address: read, written in one step, and every failure one line."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nst_fast.errors import UserError, one_line
from nst_fast.files import write_atomically

UNFINISHED = ".unfinished"  # holds what is yet to be renamed, on the same file system
# Stores without folders, where making one may make a bucket.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"})


@contextlib.contextmanager
def reaching(address: str) -> Iterator[None]:
    """Report whatever a store raises as a UserError that names the address."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        told = "" if error.strerror else f": {one_line(error)}"  # that a bucket is missing, for instance
        raise UserError(f"nothing at {address}{told if ' ' in told[2:] else ''}") from error
    except Exception as error:  # stores raise their clients' errors
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UserError(f"{address} cannot be read or written: {reason}") from error


def locate(address: str) -> tuple[Any, str]:
    """Return the file system of an address and the path on it; raises UserError where it is not to be had."""
    if not address:
        raise UserError("an address is empty; . is the folder where you are")
    with reaching(address):
        # Listings that are kept would grow with every folder.
        file_system, path = fsspec.url_to_fs(address, use_listings_cache=False)
        return file_system, path.rstrip("/") or path


def is_local(file_system: Any) -> bool:
    """Return whether a file system is this machine's."""
    return isinstance(file_system, LocalFileSystem)


def address_of(file_system: Any, path: str) -> str:
    """Return the address of a path: the plain path where it is local."""
    return path if is_local(file_system) else file_system.unstrip_protocol(path)


def read(address: str, start: int = 0, length: int | None = None) -> bytes:
    """Return the bytes of a file, or ``length`` of them from ``start``; raises UserError."""
    file_system, path = locate(address)
    with reaching(address):
        return file_system.cat_file(path, start or None, None if length is None else start + length)


class Store:
    """A folder of any fsspec address; names in it are relative, with slashes.

    A local file is written aside and renamed. Elsewhere a file is put whole, which object stores do in one step.

    Raises UserError where there is no such store.
    """

    def __init__(self, address: str) -> None:
        self.file_system, self.root = locate(address)
        self.local = is_local(self.file_system)
        self.address = address_of(self.file_system, self.root)

    def path(self, name: str) -> str:
        """Return the path of a name on the file system."""
        return f"{self.root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one step, in place of what is there; raises UserError."""
        if self.local:
            write_atomically(Path(self.path(name)), content, unfinished=Path(self.path(UNFINISHED)))
            return
        with reaching(f"{self.address}/{name}"):
            self.make_folder(name)
            self.file_system.pipe_file(self.path(name), content)

    def make_folder(self, name: str) -> None:
        """Make the folder that a file is to lie in, where the store has any."""
        protocols = self.file_system.protocol
        if OBJECT_STORES.isdisjoint([protocols] if isinstance(protocols, str) else protocols):
            self.file_system.makedirs(str(PurePosixPath(self.path(name)).parent), exist_ok=True)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local file that becomes the one of a name, in one step, when all has gone well; raises UserError."""
        folder = Path(self.path(UNFINISHED)) if self.local else None
        with reaching(f"{self.address}/{name}"):
            self.make_folder(name)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as made:
                yield (file := Path(made, "file"))
                if self.local:
                    file.replace(self.path(name))
                else:
                    self.file_system.put_file(str(file), self.path(name))

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None where there is none; raises UserError."""
        with reaching(f"{self.address}/{name}"), contextlib.suppress(FileNotFoundError):
            return self.file_system.cat_file(self.path(name))
        return None

    def exists(self, name: str) -> bool:
        """Return whether there is a file; raises UserError."""
        with reaching(f"{self.address}/{name}"):
            return self.file_system.exists(self.path(name))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; raises UserError."""
        with reaching(f"{self.address}/{folder}"), contextlib.suppress(FileNotFoundError):
            listed = self.file_system.ls(self.path(folder), detail=False)
            return sorted(f"{folder}/{PurePosixPath(path).name}" for path in listed)
        return []

    def remove(self, name: str) -> None:
        """Delete a file; raises UserError."""
        with reaching(f"{self.address}/{name}"):
            self.file_system.rm_file(self.path(name))

    def clear_unfinished(self) -> None:
        """Delete what killed commands have left unfinished."""
        if self.local:
            shutil.rmtree(self.path(UNFINISHED), ignore_errors=True)
