"""Which files of a folder are its photographs."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nst_fast.errors import UserError
from nst_fast.stylizing.formats import SUFFIXES

logger = logging.getLogger(__name__)

# What systems and programs keep for themselves, in small letters: thumbnails, previews, what was deleted.
CACHES = frozenset({"@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "system volume information"})
CACHES |= {"#snapshot", "@recently-snapshot", "lost+found", "thumbnails.cache", "ipod photo cache"}
CACHE_ENDINGS = (".lrdata", ".cocatalog", ".thumbnails")
NO_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "zbthumbnail.info", "picasa.ini"})
# What is in the folder of a run beside its config.yaml, or in that of a comparison.
OF_A_RUN = frozenset({"checkpoints", "samples", "snapshots", "tensorboard", "trace.json", "summary.json"})
OF_A_COMPARISON = frozenset({"report.html", "report.json"})
OF_A_BATCH = "nst_batch.json"


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        pictures: its photographs, sorted.
        unreadable: (folder, reason) of those below it that cannot be listed.
    """

    pictures: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


def is_ours(folders: list[str], files: list[str]) -> bool:
    """Return whether a folder of these names is of a run, a comparison or a batch: its pictures are no photographs."""
    names = {*folders, *files}
    return ("config.yaml" in names and bool(names & OF_A_RUN)) or names >= OF_A_COMPARISON or OF_A_BATCH in names


def is_kept_aside(name: str) -> bool:
    """Return whether a file or folder of a name is hidden, or a cache."""
    small = name.lower()
    return name.startswith(".") or small in CACHES or small.endswith(CACHE_ENDINGS)


def walk(
    folder: Path,
    recursive: bool,
    on_error: Callable[[Path, str], None],
    left_out: Counter[str],
    suffixes: frozenset[str] = SUFFIXES,
) -> Iterator[Path]:
    """Yield the files of a folder that end in suffixes, and of what is below it where wanted, sorted folder by folder.

    Hidden files and folders, caches and what our own runs have left are passed over, but never the folder itself.

    Args:
        folder: where to look.
        recursive: whether to look below it.
        on_error: told of each folder that cannot be listed, and why.
        left_out: counts the other files, in no format of pictures, by suffix.
    """
    seen: set[str] = set()

    def note(error: OSError) -> None:
        on_error(Path(error.filename), error.strerror or str(error))

    for place, folders, files in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(place)
        first = not seen
        if real in seen or (not first and is_ours(folders, files)):
            folders.clear()  # a link back up would go round for ever
            continue
        seen.add(real)
        if not os.access(place, os.X_OK):
            note(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place)))
        folders[:] = sorted(f for f in folders if recursive and not is_kept_aside(f))
        for name in sorted(files):
            path, suffix = Path(place, name), Path(name).suffix.lower()
            if is_kept_aside(name) or name.lower() in NO_FILES or not os.path.isfile(path):
                continue
            if suffix in suffixes:
                yield path
            else:
                left_out[suffix or "without suffix"] += 1


def tell_left_out(folder: str | Path, left_out: Counter[str]) -> None:
    """Warn of how many files of a folder were passed over, by suffix, where there are any."""
    if left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        logger.warning("%s: left out, in no known format of pictures: %s", folder, kinds)


def search(folder: str | Path, recursive: bool = True, suffixes: frozenset[str] = SUFFIXES) -> Found:
    """Return what a folder, and what is below it unless told, holds of files that end in suffixes.

    How many other files are in no format of pictures is a warning. Raises UserError where it is missing or cannot be
    read.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no folder at {folder}")
    found, left_out = Found(), Counter[str]()

    def note(place: Path, reason: str) -> None:
        found.unreadable.append((place, reason))

    found.pictures += sorted(walk(folder, recursive, note, left_out, suffixes))
    for unread, reason in found.unreadable:
        if unread == folder:
            raise UserError(f"{folder} cannot be read: {reason.lower()}")
    tell_left_out(folder, left_out)
    return found


def no_pictures(folder: str | Path) -> UserError:
    """Return what a user is told of a folder without pictures."""
    return UserError(f"no pictures in {folder}; it needs .jpg, .png, .webp, .tif or others that `stylize --help` names")


def find_pictures(folder: str | Path) -> list[Path]:
    """Return the photographs in a folder and below it, sorted.

    Raises UserError where the folder is missing or holds none, or it, or a folder below it, cannot be read: hours of
    work would be done on part of them.
    """
    found = search(folder)
    for place, reason in found.unreadable:
        raise UserError(f"{place} cannot be read: {reason.lower()}; make it readable, or name a folder without it")
    if not found.pictures:
        raise no_pictures(folder)
    return found.pictures
