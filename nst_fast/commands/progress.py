"""Lines and bars: how training, a preview or an optimisation goes, or a download."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from nst_fast import downloads

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal to draw on
SECONDS_BETWEEN_FIGURES = 0.5  # on a terminal; to read them waits for the device


class Steps:
    """Show steps done, figures and the time left: a bar, or a line every half minute where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )

    def start(self, name: str, done: int, total: int) -> None:
        """Draw the bar of so many steps, some of which may be done."""
        self.name, self.first, self.total = name, done, total
        self.bar = self.bars.add_task(name, total=total, completed=done, figures="")
        self.began = self.shown = time.perf_counter()
        self.bars.start()

    @property
    def due(self) -> bool:
        """Whether it is time for new figures; to read them may wait for the device."""
        least = SECONDS_BETWEEN_FIGURES if self.console.is_terminal else SECONDS_BETWEEN_LINES
        return time.perf_counter() - self.shown > least

    def show(self, done: int, figures: str = "") -> None:
        """Move the bar, or print a line."""
        self.shown = time.perf_counter()
        self.bars.update(self.bar, completed=done, figures=figures)
        if not self.console.is_terminal:
            minutes = (self.total - done) * (self.shown - self.began) / max(1, done - self.first) / 60
            parts = (f"{self.name}: step {done} of {self.total}", figures, f"{minutes:.1f} minutes left")
            self.console.print("  ".join(part for part in parts if part), soft_wrap=True)

    def stop(self, done: int | None = None) -> None:
        """Leave the bar as it is, or after so many steps, and the terminal as it was."""
        if done is not None:
            self.bars.update(self.bar, completed=done)
        self.bars.stop()


@contextmanager
def download_progress(console: Console) -> Iterator[downloads.Progress]:
    """Yield what draws a bar for each file that is fetched; a line for each where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=None)
            if not console.is_terminal:
                console.print(f"fetching {name}" + (f", {total / 1e6:.1f} MB" if total else ""), soft_wrap=True)
        bars.update(tasks[name], completed=done, total=total or None)

    with bars:
        yield show
