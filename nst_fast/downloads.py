"""Downloads: gone on with where they broke off, checked, put in place in one step, by one process at a time."""

from __future__ import annotations

import hashlib
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from nst_fast.assets import cache_folder
from nst_fast.errors import UserError
from nst_fast.files import write_atomically

Progress = Callable[[str, int, int], None]  # a file's name, bytes that are here, bytes in all (0: not known)
TIMEOUT = (5.0, 60.0)  # seconds, for a connection and between two blocks
BLOCK = 1 << 16  # bytes
TRIES = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second of them, doubled before each further one
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP's answers that another try may change

MOVE = "NST_FAST_CACHE=FOLDER moves the cache"

# The publisher's own host and md5 sums. 778 MB and 5,000 photographs, 18 GB and 118,287.
COCO = {
    "val2017": ("http://images.cocodataset.org/zips/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"),
    "train2017": ("http://images.cocodataset.org/zips/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
}


def file_hash(path: str | Path, algorithm: str = "sha256") -> str:
    """Return the hash of a file as hexadecimal digits, whatever its size."""
    digest = hashlib.new(algorithm)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Return whether the host of a URL answers within some seconds, whatever it answers."""
    import requests  # here: most runs fetch nothing

    try:
        requests.head(url, timeout=seconds)
    except requests.RequestException:
        return False
    return True


def fetch(
    url: str,
    path: str | Path,
    expected: str,
    advice: str,
    progress: Progress | None = None,
    part_to_keep: Callable[[Path], bytes] | None = None,
) -> Path:
    """Return a file, fetched from its address unless it is there already.

    What came before a break is kept as ``<path>.part``, and this call or a later one goes on from there. Of several
    processes one fetches while the others wait.

    Args:
        url: where it is.
        path: where it goes, once it is whole and right.
        expected: its hash, ``sha256:…`` or ``md5:…``.
        advice: what to do without it.
        progress: told after every block.
        part_to_keep: given the whole file, returns what is written to ``path`` in its stead; the rest goes.

    Raises UserError where the host is not to be reached or refuses, the file is another one or cannot be written.
    """
    import requests
    from filelock import FileLock

    path = Path(path)
    if path.is_file():
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            if path.is_file():  # the process waited for has fetched it
                return path
            if not reachable(url):
                raise UserError(f"{url} is needed and cannot be reached; {advice}")
            failures = wrong = 0
            while True:
                before = size(part)
                try:
                    whole = receive(url, part, path.name, progress)
                    got = f"{expected.partition(':')[0]}:{file_hash(part, expected.partition(':')[0])}"
                    if got == expected:
                        if part_to_keep is None:
                            part.replace(path)
                        else:
                            write_atomically(path, part_to_keep(part))
                            part.unlink()
                        return path
                    part.unlink()
                    wrong += 1
                    if whole or wrong == 2:  # else what an earlier call left may be at fault: from the start
                        raise UserError(f"{url} gave another file: {got}, {expected} is needed; {advice}")
                except requests.RequestException as error:
                    answer = error.response
                    reason = type(error).__name__ if answer is None else f"{answer.status_code} {answer.reason}"
                    failures = 0 if size(part) > before else failures + 1
                    if failures == TRIES or (answer is not None and answer.status_code not in PASSING):
                        kept = f"; the next try continues {part}" if size(part) else ""
                        raise UserError(f"{url} cannot be fetched ({reason}){kept}; {advice}") from error
                    time.sleep(PAUSE * 2**failures / 2)
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror or error}; {advice}") from error


def size(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def receive(url: str, part: Path, name: str, progress: Progress | None) -> bool:
    """Append what is missing of a file to what is there, and return whether it came whole, from its start.

    Raises requests' exceptions where it breaks off, UserError where the disk has no room for it.
    """
    import requests

    there = size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if there and answer.status_code == 416:  # nothing is missing, or this is no part of that file: its hash tells
            return False
        answer.raise_for_status()
        whole = answer.status_code != 206
        there = 0 if whole else there
        missing = int(answer.headers.get("Content-Length", 0))
        total = there + missing if missing else 0
        free = shutil.disk_usage(part.parent).free
        if missing > free:
            raise UserError(f"{url} needs {missing / 1e9:.1f} GB, {part.parent} has {free / 1e9:.1f} GB free")
        with part.open("wb" if whole else "ab") as file:
            for block in answer.iter_content(BLOCK):
                file.write(block)
                there += len(block)
                if progress:
                    progress(name, there, total)
    if there < total:
        raise requests.ConnectionError(f"{there} of {total} bytes came")
    return whole


def fetch_coco(split: str, progress: Progress | None = None) -> Path:
    """Return the folder of a split's photographs, fetched and unpacked into the cache folder on first use.

    Raises UserError where it cannot be had.
    """
    from filelock import FileLock

    url, expected = COCO[split]
    folder = cache_folder() / "coco" / split
    advice = "data=folder data.root=FOLDER trains on any photographs, of COCO too where you have them"
    if folder.is_dir():
        return folder
    archive, unpacked = folder.with_suffix(".zip"), folder.with_suffix(".unpacking")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if folder.is_dir():  # the process waited for has made it
                return folder
            fetch(url, archive, expected, advice, progress)
            shutil.rmtree(unpacked, ignore_errors=True)  # a process that was killed left it
            with zipfile.ZipFile(archive) as file:
                total, done, free = sum(m.file_size for m in file.infolist()), 0, shutil.disk_usage(folder.parent).free
                if total > free:
                    raise UserError(f"{archive} unpacks to {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {MOVE}")
                for member in file.infolist():
                    file.extract(member, unpacked)  # never leaves the folder, whatever the member is called
                    done += member.file_size
                    if progress:
                        progress(f"{split}, unpacking", done, total)
            unpacked.replace(folder)
            archive.unlink()
    except (OSError, zipfile.BadZipFile) as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise UserError(f"cannot unpack {archive}: {getattr(error, 'strerror', None) or error}; {MOVE}") from error
    return folder
