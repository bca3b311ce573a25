"""Content images: bundled photographs with dead leaves, or any folder; the dataset and its LightningDataModule.

Every example is a function of (seed, index) alone, so the number of workers, a restart or the order changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nst_fast.assets import cache_folder
from nst_fast.errors import UserError
from nst_fast.stylizing.folders import find_pictures
from nst_fast.stylizing.images import load_image, open_image, reads_heic, resize_short_side, to_rgb, why_unreadable
from nst_fast.training.motion import SecondViews
from nst_fast.training.photographs import bundled_photographs, centre_crop, dead_leaves, random_window, recolour

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
CACHE_VERSION = 4  # of what is kept of a picture; another one where pictures are read or made small in another way
LARGEST_RAW = 4e9  # bytes of a folder's pixels; of larger ones JPEGs are kept, about a fifth
MOST_CACHED = 20e9  # bytes of all folders
BYTES_PER_PICTURE = 4.5  # and square of its short side: three channels, half as long again as it is high
JPEG_SHARE = 0.25  # of its pixels' bytes, at most, as photographs go
LONGEST_TEMPORARY = 70  # bytes of the temporary folder's name: workers wait for ever where a socket's has over 107
LONGEST_PHOTOGRAPH = 3.0  # longer pictures are cut: a 1×10000 one would be huge at a useful short side


class BundledImages(Dataset[Tensor]):
    """An endless mixture of recoloured windows of the bundled photographs and of dead leaves: uint8 (3, size, size).

    Windows are as small as ``window`` times the size, and enlarged.
    """

    identity = "bundled"

    def __init__(self, size: int, seed: int, dead_leaves_share: float, window: float = 0.5) -> None:
        self.size, self.seed, self.share = size, seed, dead_leaves_share
        self.smallest = max(round(window * size), 1)
        self.photographs = bundled_photographs()
        self.skipped: list[tuple[Path, str]] = []

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        if rng.random() < self.share:
            pixels = dead_leaves(self.size, self.photographs, rng)
        else:
            photograph = self.photographs[rng.integers(len(self.photographs))]
            pixels = random_window(photograph, self.size, self.smallest, rng)
        return torch.from_numpy(recolour(pixels, rng).transpose(2, 0, 1).copy())


class FolderImages(Dataset[Tensor]):
    """Random windows of the pictures in a folder tree: uint8 (3, size, size).

    Windows are as small as ``window`` times the size, and enlarged. Each picture is decoded once and kept small in a
    memory-mapped file in the cache folder, as pixels or, of a large folder, as JPEG of quality 95 without chroma
    subsampling; a changed tree makes a new one. Those not used for longest go where all take more than `MOST_CACHED`.

    Attributes:
        skipped: (path, reason) of every picture that could not be read.
        identity: how many pictures there are, and a digest of their sizes.

    Raises UserError where the folder is missing, no picture in it can be read or the disk has no room.
    """

    def __init__(
        self, root: str | Path, size: int, seed: int, progress: Progress | None = None, window: float = 0.8
    ) -> None:
        self.root, self.size, self.seed = Path(root), size, seed
        self.smallest = max(round(window * size), 1)
        self.short_side = round(1.25 * size)
        files = find_pictures(root)
        listing = "".join(f"{p.relative_to(self.root)}\0{size_and_time(p)}\0" for p in files)
        expected = BYTES_PER_PICTURE * self.short_side**2 * len(files)
        self.jpeg = expected > LARGEST_RAW
        key = f"{CACHE_VERSION}\0{self.jpeg}\0{self.root.resolve()}\0{self.short_side}\0{listing}{reads_heic()}"
        self.cache = (
            cache_folder() / "content" / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        )
        if not (self.cache / "index.json").exists():
            self.build(files, expected * JPEG_SHARE if self.jpeg else expected, progress)
        with contextlib.suppress(OSError):  # somebody else's cache, which may only be read
            os.utime(self.cache / "index.json")  # it is used
        index = json.loads((self.cache / "index.json").read_text())
        self.shapes = [tuple(shape) for shape in index["shapes"]]
        self.skipped = [(Path(name), reason) for name, reason in index["skipped"]]
        if not self.shapes:
            raise UserError(
                f"none of the {len(self.skipped)} pictures in {root} can be read; the first: {self.skipped[0][1]}"
            )
        self.identity = f"{len(self.shapes)}@{hashlib.sha256(str(self.shapes).encode()).hexdigest()[:8]}"
        self.offsets = np.cumsum([0, *index["bytes"]], dtype=np.int64)
        self.pixels = np.memmap(self.cache / "pixels", np.uint8, "r")

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker that is started anew needs: not gigabytes of pixels, it opens them itself."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.pixels = np.memmap(self.cache / "pixels", np.uint8, "r")

    def decode(self, path: Path) -> tuple[tuple[int, ...], bytes] | str:
        """Return the shape of the picture made small, and what is kept of it; or why it cannot be read."""
        try:
            with open_image(path) as image:
                image.draft("RGB", (self.short_side, self.short_side))  # lets JPEG skip what would be thrown away
                rgb = to_rgb(image)
        except Exception as error:  # decoders of damaged files raise whatever they please
            return why_unreadable(path, error)
        longest = round(LONGEST_PHOTOGRAPH * min(rgb.size))
        if max(rgb.size) > longest:
            width, height = min(rgb.width, longest), min(rgb.height, longest)
            left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
            rgb = rgb.crop((left, top, left + width, top + height))
        small = resize_short_side(rgb, self.short_side)
        shape = (small.height, small.width, 3)
        if not self.jpeg:
            return shape, small.tobytes()
        small.save(encoded := io.BytesIO(), "JPEG", quality=95, subsampling=0)
        return shape, encoded.getvalue()

    def photograph(self, number: int) -> np.ndarray:
        """Return a picture made small, uint8 RGB (H, W, 3)."""
        kept = self.pixels[self.offsets[number] : self.offsets[number + 1]]
        if not self.jpeg:
            return kept.reshape(self.shapes[number])
        with Image.open(io.BytesIO(kept.tobytes())) as image:
            return np.asarray(image)

    def build(self, files: list[Path], expected: float, progress: Progress | None) -> None:
        """Decode every picture into a folder beside the cache, then rename it: two processes may do so at once.

        Raises UserError where it cannot be written, or what is expected, in bytes, finds no room.
        """
        shapes, sizes, skipped = [], [], []
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            prune(self.cache, MOST_CACHED - expected)
            free = shutil.disk_usage(self.cache.parent).free
            if expected > free:
                raise UserError(
                    f"the {len(files)} pictures of {self.root} take about {expected / 1e9:.1f} GB made small, "
                    f"{self.cache.parent} has {free / 1e9:.1f} GB free; NST_FAST_CACHE=FOLDER moves the cache"
                )
            with tempfile.TemporaryDirectory(dir=self.cache.parent) as name:
                unfinished = Path(name) / "unfinished"
                unfinished.mkdir()
                with ThreadPoolExecutor() as pool, (unfinished / "pixels").open("wb") as out:
                    decoded = pool.map(self.decode, files)
                    for done, (path, picture) in enumerate(zip(files, decoded, strict=True), start=1):
                        if isinstance(picture, str):
                            skipped.append((str(path), picture))
                        else:
                            shapes.append(picture[0])
                            sizes.append(out.write(picture[1]))
                        if progress:
                            progress(done, len(files))
                index = json.dumps({"shapes": shapes, "bytes": sizes, "skipped": skipped})
                (unfinished / "index.json").write_text(index)
                try:
                    unfinished.rename(self.cache)
                except OSError:  # it is there by now
                    if not (self.cache / "index.json").exists():
                        shutil.rmtree(self.cache)
                        unfinished.rename(self.cache)
        except OSError as error:
            raise UserError(
                f"cannot write the picture cache {self.cache}: {error.strerror}; NST_FAST_CACHE=FOLDER moves it"
            ) from error

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        number = int(rng.integers(len(self.shapes)))
        window = random_window(self.photograph(number), self.size, self.smallest, rng)
        return torch.from_numpy(window.transpose(2, 0, 1).copy())


def prune(own: Path, most: float) -> None:
    """Remove the caches beside one's own that were not used for longest, until the others take ``most`` bytes.

    And what processes that were killed left there a day ago. What another run has mapped stays until it ends.
    """
    used, sizes = {}, {}
    for cache in set(own.parent.iterdir()) - {own}:
        with contextlib.suppress(OSError):  # another process removes it, or adds to it
            index = cache / "index.json"
            if index.exists():
                used[cache] = index.stat().st_mtime
                sizes[cache] = sum(file.stat().st_size for file in cache.iterdir())
            elif cache.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(cache, ignore_errors=True)
    for cache in sorted(sizes, key=used.__getitem__):
        if sum(sizes.values()) <= most:
            break
        del sizes[cache]
        with contextlib.suppress(OSError):
            shutil.rmtree(cache.rename(cache.with_suffix(".gone")), ignore_errors=True)  # gone at once, or not at all


def size_and_time(path: Path) -> str:
    """Return what changes with a file's content, or nothing where it has just vanished."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}\0{status.st_mtime_ns}"


class Forever(Sampler[int]):
    """Count upwards from an index, without end; each of several processes takes its share of every batch."""

    def __init__(self, start: int, batch_size: int = 1, rank: int = 0, processes: int = 1) -> None:
        self.start, self.batch_size, self.rank, self.processes = start, batch_size, rank, processes

    def __iter__(self) -> Iterator[int]:
        first = self.start + self.rank * self.batch_size
        for share in itertools.count(first, self.processes * self.batch_size):
            yield from range(share, share + self.batch_size)


def leave_signals_to_the_run(worker: int) -> None:
    """Let a loader's worker outlive SIGINT and SIGTERM to the whole process group, as `timeout` or a scheduler sends.

    The run needs it to finish its step, and ends it with a SIGTERM of its own where need be.
    """

    def end_by_the_run() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_by_the_run, daemon=True).start()


class ContentImages(pl.LightningDataModule):
    """Batches of content images (N, 3, size, size) uint8, and a fixed strip of validation photographs.

    Args:
        images: a dataset whose item i is a function of i alone.
        batch_size: pictures a step, for each of the processes that train together.
        num_workers: processes that prepare them; changes nothing but speed.
        validation: a folder of photographs never trained on, or None for the two bundled ones.
        size: side of the validation photographs, centre crops, px.
        moving: whether second views and flows come with the images to train on, as `SecondViews` has them.
    """

    def __init__(
        self,
        images: BundledImages | FolderImages,
        batch_size: int,
        num_workers: int,
        size: int,
        validation: str | Path | None = None,
        moving: bool = False,
    ) -> None:
        super().__init__()
        self.images, self.batch_size, self.size, self.moving = images, batch_size, size, moving
        self.num_workers = num_workers
        if num_workers and len(os.fsencode(tempfile.gettempdir())) > LONGEST_TEMPORARY:
            self.num_workers = 0
            logger.warning(
                "no data workers: the path %s is too long for their sockets; TMPDIR names a shorter one",
                tempfile.gettempdir(),
            )
        if validation is None:
            photographs = [Image.fromarray(p) for p in bundled_photographs(held_out=True)]
        else:
            photographs = [load_image(p) for p in find_pictures(validation)[:16]]
        self.validation = torch.stack([centre_crop(p, size) for p in photographs])

    @property
    def photographs(self) -> str:
        """What tells the photographs of one run from those of another."""
        return self.images.identity

    @property
    def skipped(self) -> dict[str, str]:
        """{path: reason} of every picture that could not be read."""
        return {str(path): reason for path, reason in self.images.skipped}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the endless loader of this process, starting where the run stopped."""
        seen, rank, processes = 0, 0, 1
        if self.trainer:
            seen = int(self.trainer.lightning_module.batches_seen)  # type: ignore[arg-type]
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(
            SecondViews(self.images) if self.moving else self.images,
            self.batch_size,
            sampler=Forever(seen * processes * self.batch_size, self.batch_size, rank, processes),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals_to_the_run,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers else None,
        )

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return the validation photographs in batches of four."""
        return DataLoader(self.validation, 4)  # type: ignore[arg-type]
