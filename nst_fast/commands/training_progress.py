"""How training goes, told by Lightning."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from rich.console import Console

from nst_fast.commands.progress import Steps


class TrainingProgress(Callback):
    """Show what is trained, then steps, losses, images/s and time left."""

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title, self.steps = console, title, Steps(console)

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Print the title."""
        self.console.print(self.title, soft_wrap=True)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw the bar."""
        self.steps.start("training", trainer.global_step, trainer.max_steps)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Move it."""
        if self.steps.due:
            metrics = trainer.callback_metrics
            shown = {"content": "train/content_loss", "style": "train/style_loss", "images/s": "images_per_second"}
            figures = (f"{name} {float(metrics[key]):.3g}" for name, key in shown.items() if key in metrics)
            self.steps.show(trainer.global_step, "  ".join(figures))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the finished bar."""
        self.steps.stop(trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.steps.stop()
