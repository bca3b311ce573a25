"""Checkpoints written whole, for Lightning."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from nst_fast.errors import UserError
from nst_fast.training.checkpoints import PREVIOUS
from nst_fast.weights import damage


class Checkpoints(TorchCheckpointIO):
    """Write checkpoints so that whatever happens meanwhile the newest or the one before is whole on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file beside the target, flush it to the disk, keep the target as `PREVIOUS`, rename.

        Raises UserError where the place cannot be written.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")  # one name: what a killed run left is written over
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.exists() and damage(path) is None:  # a damaged one must not take a good one's place
                path.replace(path.with_name(PREVIOUS))
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # where nothing can be written nothing can be removed
                unfinished.unlink(missing_ok=True)
            kept = "; the checkpoint before it is whole" if path.exists() else ""
            raise UserError(f"cannot write {path}: {error.strerror}{kept}") from error
