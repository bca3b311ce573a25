"""Ctrl-C and SIGTERM: the current step is finished first."""

from __future__ import annotations

import signal
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

DECIDE_EVERY = 10  # steps; processes that ask each other wait for each other, and for their devices
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_at_once() -> None:
    """Let both signals raise KeyboardInterrupt."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


class Interruption(Callback):
    """Stop after the current step when either signal comes, all processes of a run together; a second one at once."""

    def __init__(self) -> None:
        self.asked = False
        self.listen()

    def listen(self) -> None:
        """Take the signals over."""
        for number in SIGNALS:
            signal.signal(number, self.ask)

    def ask(self, *_: Any) -> None:
        """Remember the first signal."""
        self.asked = True
        interrupt_at_once()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, which would end the run without a checkpoint."""
        if not self.asked:
            self.listen()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Stop where any process was asked to; of several, they agree every few steps."""
        if trainer.world_size > 1 and module.batches_seen % DECIDE_EVERY:
            return
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer.should_stop = True
