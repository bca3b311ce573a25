"""How large a network's strokes are while it learns, in the validation log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor

from nst_fast.loss.painting_size import best_painting_size, style_distances
from nst_fast.loss.perceptual_loss import Targets


class StrokeSize(Callback):
    """Log ``val/painting_size``, px, and over the pictures' short side ``val/relative_painting_size``.

    Args:
        paintings: style targets of the painting at each of its sizes, px.
    """

    def __init__(self, paintings: Mapping[int, Targets]) -> None:
        self.paintings = paintings
        self.sums: dict[int, float] = {}

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Tensor, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the style distances of a batch's stylized pictures (N, 3, H, W) in [0, 1]."""
        if not batch_idx:
            self.sums, self.side = dict.fromkeys(self.paintings, 0.0), min(batch.shape[2:])
        for size, distance in style_distances(module.perceptual_loss, outputs, self.paintings).items():
            self.sums[size] += distance * len(batch)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Log the figures of the whole epoch."""
        if self.sums:
            best = best_painting_size(self.sums)
            figures = {"val/painting_size": best, "val/relative_painting_size": best / self.side}
            module.write_log({name: torch.tensor(figure) for name, figure in figures.items()})
