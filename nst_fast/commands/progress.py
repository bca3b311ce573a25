"""One line that says how training goes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal to draw on


class TrainingProgress(Callback):
    """Show steps, losses, images/s and time left; plain lines now and then where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
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

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw the bar."""
        self.bar = self.progress.add_task("", total=trainer.max_steps, completed=trainer.global_step, losses="")
        self.progress.start()
        self.last_line = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Move it."""
        metrics = trainer.callback_metrics
        shown = {"content": "train/content_loss", "style": "train/style_loss", "images/s": "images_per_second"}
        losses = "  ".join(f"{name} {float(metrics[key]):.3g}" for name, key in shown.items() if key in metrics)
        self.progress.update(self.bar, completed=trainer.global_step, losses=losses)
        now = time.perf_counter()
        if not self.console.is_terminal and now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            batch_size = trainer.train_dataloader.batch_size * trainer.world_size  # type: ignore[union-attr]
            left = (trainer.max_steps - trainer.global_step) * batch_size
            minutes = left / max(float(metrics["images_per_second"]), 1e-9) / 60
            line = f"step {trainer.global_step} of {trainer.max_steps}  {losses}  {minutes:.1f} minutes left"
            self.console.print(line, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the finished bar."""
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()
