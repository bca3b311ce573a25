"""One line that says how training goes, or a download."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
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


class TrainingProgress(Callback):
    """Show what is trained, then steps, losses, images/s and time left; plain lines where stderr is no terminal."""

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Print the title."""
        self.console.print(self.title, soft_wrap=True)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw the bar."""
        self.bar = self.progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, losses="")
        self.progress.start()
        self.last_shown = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Move it."""
        now = time.perf_counter()
        terminal = self.console.is_terminal
        if now - self.last_shown <= (SECONDS_BETWEEN_FIGURES if terminal else SECONDS_BETWEEN_LINES):
            return
        self.last_shown = now
        metrics = trainer.callback_metrics
        shown = {"content": "train/content_loss", "style": "train/style_loss", "images/s": "images_per_second"}
        losses = "  ".join(f"{name} {float(metrics[key]):.3g}" for name, key in shown.items() if key in metrics)
        self.progress.update(self.bar, completed=trainer.global_step, losses=losses)
        if not terminal:
            batch_size = trainer.train_dataloader.batch_size * trainer.world_size  # type: ignore[union-attr]
            left = (trainer.max_steps - trainer.global_step) * batch_size
            minutes = left / max(float(metrics["images_per_second"]), 1e-9) / 60
            line = f"step {trainer.global_step} of {trainer.max_steps}  {losses}  {minutes:.1f} minutes left"
            self.console.print(line, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the finished bar."""
        self.progress.update(self.bar, completed=trainer.global_step)
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()


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
