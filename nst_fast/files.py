"""Files written in one step, and nothing replaced unasked."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from nst_fast.errors import UserError

LONGEST_PREFIX = 50  # characters of a temporary name, at most 200 bytes: a name may have 255


def is_stream(path: Path) -> bool:
    """Return whether a name is a pipe's or a device's, into which is written and which nothing may replace."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextlib.contextmanager
def replacing(path: Path, replace: bool = True, unfinished: Path | None = None) -> Iterator[Path]:
    """Give an empty file to write to, which takes the target's place in one step where nothing is raised.

    It lies beside the target, or in a folder for what is unfinished on the same file system.

    Raises UserError where that is not allowed, the disk is full, or a file is there that may not be replaced.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if unfinished is not None:
            unfinished.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=unfinished or path.parent, prefix=f".{path.name[:LONGEST_PREFIX]}.")
        os.close(handle)
    except FileExistsError as error:
        raise UserError(f"cannot write {path}: {error.filename} is a file, not a folder") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        with contextlib.suppress(PermissionError, NotImplementedError):  # a share may have no permissions to give
            temporary.chmod(0o666 & ~umask)
        if replace:
            temporary.replace(path)
        else:
            place_new(temporary, path)
    except FileExistsError as error:
        raise UserError(f"another command has written {path} meanwhile") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:  # Ctrl-C leaves no half file either
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, replace: bool = True, unfinished: Path | None = None) -> None:
    """Write bytes to a file in one step, or into a pipe or a device; raises UserError as `replacing` does."""
    if is_stream(path):
        try:
            path.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        return
    with replacing(path, replace, unfinished) as temporary:
        temporary.write_bytes(content)


def place_new(temporary: Path, path: Path) -> None:
    """Give a file another name in the same folder; raises FileExistsError where that is taken, also a moment ago."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # the file system knows no second names
        if os.path.lexists(path):
            raise FileExistsError from None
        temporary.replace(path)


def refuse_existing(paths: Iterable[Path], option: str) -> None:
    """Raise UserError, which names the option that replaces it, where a path is there already."""
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path} exists already; {option} replaces it")


def new_folder(path: Path) -> Path:
    """Make a folder and return it; where there is one, of a command of the same second, the first free of path_2, ….

    Raises UserError where it cannot be made.
    """
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            folder.mkdir(parents=True)  # of several commands one succeeds
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror}; output=FOLDER moves it") from error
        return folder
    raise AssertionError
