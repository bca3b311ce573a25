"""The LightningModule that trains one transformation network on one painting or on many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from nst_fast import __version__
from nst_fast.errors import UserError
from nst_fast.loss.perceptual_loss import GRAM, PerceptualLoss, Targets, gather
from nst_fast.loss.style_targets import COLOURS
from nst_fast.loss.style_weight import StyleWeightControl
from nst_fast.loss.terms import colour_moments, pixel_grid, pixel_weave, saturated_share
from nst_fast.stylizing.images import save_image
from nst_fast.training.checkpoints import CHECKPOINT_KEY, STYLE_MEAN, STYLE_TARGET
from nst_fast.training.motion import motion_difference
from nst_fast.training.networks import TransformationNetwork

LOG_EVERY = 10  # steps
NEWEST = 0.0075  # of the means of a painting's pictures, the share of its newest picture
MOST_SKIPPED_IN_A_ROW = 20  # steps; past this the run is broken, not unlucky


@cache
def share_pool(workers: int) -> ThreadPoolExecutor:
    """Return threads that take a share of every batch; they keep their memory from step to step."""
    return ThreadPoolExecutor(workers)


def chosen_paintings(pictures: Sequence[int], paintings: int) -> np.ndarray:
    """Return which of so many paintings each picture of a run, by its number, is to be like.

    All paintings take their turn, in an order of each round's own, before any has another one.
    """
    rounds = {
        number: np.random.default_rng(number).permutation(paintings) for number in {p // paintings for p in pictures}
    }
    return np.array([rounds[picture // paintings][picture % paintings] for picture in pictures])


@dataclass(frozen=True)
class Recipe:
    """How a network learns.

    Attributes:
        max_steps: optimiser steps; the learning rate's one cycle is as long.
        learning_rate: Adam's, the peak of the cycle.
        gradient_clip: largest gradient norm, None for any. Norms are above 1 nearly always (9 to 35 with the default
            loss), so that 1 normalises gradients: every step has the same norm, whatever the loss's scale.
        grid_weight: of `pixel_grid`, beside the perceptual loss: it is the network's fault, not the picture's.
        weave_weight: of `pixel_weave`, likewise.
        own_style: share of a picture's own Gram matrices in what is compared with the painting's. The rest is the mean
            of the newest pictures'. Together they are to be like the painting; a night may stay dark. 1: each alone.
        motion_weight: of `motion_difference`, for clips; 0: training takes no second views.
        one_cycle: whether the rate goes up and down to nothing; otherwise it stays.
        vector_steps: the first steps, which change the paintings' vectors alone.
        vector_rate: of the vectors' learning rate, times the others'.
    """

    max_steps: int
    learning_rate: float = 2e-3
    gradient_clip: float | None = 1.0
    grid_weight: float = 3000.0
    weave_weight: float = 20.0
    own_style: float = 1.0
    motion_weight: float = 0.0
    one_cycle: bool = True
    vector_steps: int = 0
    vector_rate: float = 1.0


class StyleTransfer(pl.LightningModule):
    """Train a transformation network against a frozen perceptual loss.

    Where it has several paintings, each picture of a batch has its own.

    Args:
        network: the transformation network.
        perceptual_loss: never stored in checkpoints.
        style_targets: of each painting, as the perceptual loss names them; not stored either.
        recipe: how it learns.
        description: plain types to store in checkpoints: the resolved config and what was chosen.
        control: sets the style weight of each painting while training; None leaves the perceptual loss's for all.
    """

    def __init__(
        self,
        network: TransformationNetwork,
        perceptual_loss: PerceptualLoss,
        style_targets: Sequence[Targets],
        recipe: Recipe,
        description: dict[str, Any],
        control: StyleWeightControl | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.perceptual_loss = perceptual_loss
        self.paintings = len(style_targets)
        names = list(style_targets[0])
        self.style_target_names = [name for name in names if name != COLOURS]
        # Where the loss compares colours, a finished network is recoloured by the mean of its pictures' colours.
        recolours = any(layer.startswith("rgb") for layer in perceptual_loss.sliced_layers)
        together = set(perceptual_loss.style_layers) if recipe.own_style < 1 else set()
        self.followed = [name for name in names if name in together or (name == COLOURS and recolours)]
        for name, target in gather(style_targets, torch.arange(self.paintings)).items():
            # As buffers they go where the module goes.
            self.register_buffer(STYLE_TARGET + name, target, persistent=name == COLOURS and name in self.followed)
            if name in self.followed:
                self.register_buffer(STYLE_MEAN + name, target.clone())  # as if earlier pictures had been perfect
        self.recipe, self.description, self.control = recipe, description, control
        self.automatic_optimization = False  # a non-finite step is skipped: no update, no momentum
        self.strict_loading = False  # the frozen loss network is not in checkpoints
        self.batches_seen = 0
        # All skipped steps, and the newest in a row: on the device, where a step that waits for nothing counts them.
        self.skipped: Tensor
        self.register_buffer("skipped", torch.zeros(2, dtype=torch.long), persistent=False)
        self.seconds = self.earlier_seconds = (
            0.0  # of training, over all sessions of a resumed run, and before this one
        )
        self.started = self.clock = 0.0
        self.first_batch = 0
        self.samples_folder: Path | None = None
        self.validation_losses: dict[str, float] = {}

    def style_targets(self, chosen: Tensor) -> dict[str, Tensor]:
        """Return the style targets of each picture's painting, on the module's device."""
        return self.buffers_of(STYLE_TARGET, self.style_target_names, chosen)

    def buffers_of(self, kind: str, names: Iterable[str], chosen: Tensor) -> dict[str, Tensor]:
        """Return buffers of a kind for each picture's painting, (N, …); of a single one as they are, (1, …)."""
        found = {name: self.get_buffer(kind + name) for name in names}
        return found if self.paintings == 1 else {name: buffer[chosen] for name, buffer in found.items()}

    def configure_optimizers(self) -> Any:
        """Return Adam, on one cycle where asked for: warm-up over the first tenth, then down to nothing."""
        rate = self.recipe.learning_rate
        rates = [rate * self.recipe.vector_rate, rate]
        vectors, *shared = self.network.parameters()
        groups = [{"params": [vectors], "lr": rates[0]}, {"params": shared, "lr": rates[1]}]
        optimizer = torch.optim.Adam(groups, rate, fused=True)
        total = self.recipe.max_steps + 1
        warm_up = 0.1 if total != 10 else 0.2  # torch divides by warm_up · total − 1
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.recipe.one_cycle:
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=warm_up)
        else:
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def next_paintings(self, count: int) -> Tensor:
        """Return the paintings of this process's next pictures; a single one is copied to no device."""
        if self.paintings == 1:
            return torch.zeros(count, dtype=torch.long, device=self.device)
        first = (self.batches_seen * self.trainer.world_size + self.trainer.global_rank) * count
        chosen = torch.from_numpy(chosen_paintings(range(first, first + count), self.paintings))
        return chosen.to(self.device, non_blocking=True)

    def learning(self) -> list[nn.Parameter]:
        """Return the parameters that the next step changes."""
        first = self.batches_seen < self.recipe.vector_steps
        return [self.network.vectors] if first else list(self.network.parameters())

    def stylize(self, content: Tensor, chosen: Tensor) -> Tensor:
        """Return stylized images (N, 3, H, W), each like its painting, in the weights' type, not clamped."""
        vectors = self.network.vectors if self.paintings == 1 else self.network.vectors[chosen]
        return self.network(content.contiguous(memory_format=torch.channels_last), vectors).to(self.dtype)

    def style_means(self, chosen: Tensor) -> dict[str, Tensor] | None:
        """Return the mean Gram matrices of each picture's painting; None where a picture counts alone."""
        if self.recipe.own_style == 1:
            return None
        return self.buffers_of(STYLE_MEAN, self.perceptual_loss.style_layers, chosen)

    def losses(
        self, content: Tensor, stylized: Tensor, chosen: Tensor, means: Targets | None = None
    ) -> dict[str, Tensor]:
        """Return `PerceptualLoss.each`, with ``grid`` and ``weave``, of shape (N,), beside it and in the total."""
        content_targets = self.perceptual_loss.content_targets(content)
        weight = None if self.control is None else self.control.style_weight[chosen]
        targets = self.style_targets(chosen)
        terms = self.perceptual_loss.each(stylized, content_targets, targets, weight, means, self.recipe.own_style)
        grid = pixel_grid(stylized, self.network.stride)
        weave = pixel_weave(stylized)
        total = terms["total"] + self.recipe.grid_weight * grid + self.recipe.weave_weight * weave
        return terms | {"grid": grid, "weave": weave, "total": total}

    def training_losses(
        self, content: Tensor, chosen: Tensor, second: Tensor | None = None, flow: Tensor | None = None
    ) -> Any:
        """Return `losses` of a batch stylized; with second views (N, 3, H, W), moved by flows, ``motion`` too.

        Beside them stand the `colour_moments` of its pictures, where those are followed.
        """
        stylized = self.stylize(content, chosen)
        terms = self.losses(content, stylized, chosen, self.style_means(chosen))
        if COLOURS in self.followed:
            terms[COLOURS] = colour_moments(stylized)
        if second is not None and flow is not None:
            terms["motion"] = motion_difference(stylized, self.stylize(second, chosen), flow)
            terms["total"] = terms["total"] + self.recipe.motion_weight * terms["motion"]
        return terms

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Take one optimiser step, without effect where it is not finite.

        The batch is content images (N, 3, H, W) uint8, or those, second views of them and the flows between.
        Nothing here waits for the device: what comes of the step is decided there and read at the next log.
        """
        pictures, flow = (batch[:2], batch[2:]) if isinstance(batch, list) else ([batch], [])
        views = [(p.to(self.dtype) / 255).contiguous(memory_format=torch.channels_last) for p in pictures]
        chosen = self.next_paintings(len(views[0]))
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of float16, whose gradients it multiplies
        if self.device.type == "cpu" and self.trainer.world_size == 1 and scaler is None:
            terms = self.backward_in_threads(views[0], chosen, *views[1:], *flow)
        else:
            terms = self.training_losses(views[0], chosen, *views[1:], *flow)
            self.manual_backward(terms["total"].mean())
            for parameter in set(self.network.parameters()) - set(self.learning()):
                parameter.grad = None
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        if scaler is not None:  # `get_scale` would wait for the device
            norm = norm / scaler.scale(torch.ones_like(norm))
        if self.recipe.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), self.recipe.gradient_clip, norm)
        self.batches_seen += 1
        skip = ~torch.isfinite(norm)
        if self.device.type == "mps" and skip:  # whose fused Adam does not look at found_inf
            raise UserError(f"step {self.global_step} gave no finite gradient; try a lower trainer.learning_rate")
        optimizer.optimizer.found_inf = skip.float()  # what a gradient scaler tells Adam: leave everything as it is
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self.skipped = torch.stack([self.skipped[0] + skip, (self.skipped[1] + 1) * skip])
        if self.control is not None:  # every process has its own pictures, and all have the same weights
            content = terms["content"].detach()
            sums = self.summed(torch.stack([content, torch.ones_like(content)], 1), chosen)
            self.control.update((sums[:, 0] / sums[:, 1]).masked_fill(skip, torch.nan))  # 0 / 0: not in this step
        names = {name: name if name == COLOURS else GRAM + name for name in self.followed}
        self.follow({name: terms.pop(term) for name, term in names.items()}, chosen, skip)
        metrics = {f"train/{name}_loss": value.detach().mean() for name, value in terms.items()}
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        images = (self.batches_seen - self.first_batch) * len(views[0]) * self.trainer.world_size
        metrics |= {"train/gradient_norm": norm, "images_per_second": torch.tensor(images / (now - self.started))}
        if self.control is not None:
            metrics["style_weight"] = self.control.style_weight.mean()
        self.log_dict(metrics, logger=False)
        if self.batches_seen % min(LOG_EVERY, self.trainer.val_check_interval) == 0:
            self.write_log(metrics)
            self.check_steps()

    def follow(self, values: Targets, chosen: Tensor, skip: Tensor) -> None:
        """Let the paintings' means follow a step's values {name: (N, ·, ·)} in place, if it had an effect."""
        if not values:
            return
        means = [self.get_buffer(STYLE_MEAN + name) for name in values]
        ones = torch.ones_like(chosen)[:, None]
        parts = [ones, *(of_pictures.flatten(1) for of_pictures in values.values())]
        flat = torch.cat([part.to(means[0]) for part in parts], 1)
        counts, *sums = self.summed(flat, chosen).split([1, *(v[0].numel() for v in values.values())], 1)
        rates = torch.where(skip, 0.0, 1 - (1 - NEWEST) ** counts)[:, :, None]
        for mean, of_all in zip(means, sums, strict=True):
            newest = (of_all / counts).view_as(mean)
            mean.copy_(torch.where(rates > 0, mean.lerp(newest, rates), mean))

    def summed(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Return the sums (S, …) of values (N, …) of each painting's pictures, over all processes."""
        if self.paintings == 1:  # on a GPU in a fixed order, which `index_add_` has not
            sums = values.sum(0, keepdim=True)
        else:
            sums = values.new_zeros(self.paintings, *values.shape[1:]).index_add_(0, chosen, values)
        return self.trainer.strategy.reduce(sums, reduce_op="sum")

    @property
    def style_weights(self) -> list[float]:
        """The style weight of each painting."""
        same = [self.perceptual_loss.style_weight] * self.paintings
        return same if self.control is None else self.control.style_weight.tolist()

    @property
    def skipped_steps(self) -> int:
        """Steps so far that were not finite."""
        return int(self.skipped[0])

    def check_steps(self) -> None:
        """Raise UserError where the newest steps were all without effect."""
        in_a_row = int(self.skipped[1])
        if in_a_row >= min(MOST_SKIPPED_IN_A_ROW, self.recipe.max_steps):
            raise UserError(
                f"{in_a_row} steps in a row gave no finite gradient at step {self.global_step}; "
                "try a lower trainer.learning_rate, or trainer.precision=32-true"
            )

    def on_train_end(self) -> None:
        """Raise UserError where nothing was learned."""
        self.check_steps()

    def backward_in_threads(self, content: Tensor, chosen: Tensor, *moved: Tensor) -> dict[str, Tensor]:
        """Leave a batch's gradients in the parameters and return the losses' terms, the pictures shared among threads.

        Small maps and serial operations leave cores of a CPU idle where all of them work on the same operation. The
        loss is a mean over pictures, so the shares' gradients add up; they do so in order, whichever ends first.
        """
        workers = min(len(content), torch.get_num_threads())
        threads = max(1, torch.get_num_threads() // workers)
        parameters = self.learning()

        def share(part: Tensor, *others: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            torch.set_num_threads(threads)  # of this thread; the others keep theirs
            with self.trainer.precision_plugin.train_step_context():
                terms = self.training_losses(part, *others)
            gradients = torch.autograd.grad(terms["total"].sum() / len(content), parameters)
            return {name: value.detach() for name, value in terms.items()}, gradients

        parts = (t.tensor_split(workers) for t in (content, chosen, *moved))
        terms, (gradients, *others) = zip(*share_pool(workers).map(share, *parts), strict=True)
        for more_gradients in others:
            for gradient, more in zip(gradients, more_gradients, strict=True):
                gradient += more
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # In its parameter's memory layout, as fused Adam takes for granted.
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        return {name: torch.cat([part[name] for part in terms]) for name in terms[0]}

    def write_log(self, metrics: dict[str, Tensor]) -> None:
        """Log metrics under the number of the last batch; Lightning's own count shifts when a run is resumed."""
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in metrics.items()}, self.batches_seen - 1)

    def on_fit_start(self) -> None:
        """Raise UserError where processes that train together have different loss networks."""
        identity = self.perceptual_loss.loss_network.identity
        first = self.trainer.strategy.broadcast(identity)
        if first != identity:
            raise UserError(
                f"process {self.trainer.global_rank} has the loss network {identity}, the first one {first}; "
                "loss_network=NAME gives all of them one"
            )

    def on_train_start(self) -> None:
        """Start the clocks."""
        self.started = self.clock = time.perf_counter()
        self.first_batch = self.batches_seen

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Log the losses of the clamped pictures, as a viewer sees them, and keep the first ones as a strip.

        Every photograph is painted like every painting; of many, each one's own total is logged beside the means.
        Returns the pictures of the first painting, (N, 3, H, W), for callbacks.
        """
        content = (batch.to(self.dtype) / 255).contiguous(memory_format=torch.channels_last)
        rows, found = [content], list[dict[str, Tensor]]()
        for painting in range(self.paintings):
            chosen = torch.full((len(content),), painting, device=self.device)
            rows.append(self.stylize(content, chosen).clamp(0, 1))
            shares = {"saturated_share": saturated_share(rows[-1]).mean()}
            losses = self.losses(content, rows[-1], chosen)
            found.append({f"{name}_loss": value.mean() for name, value in losses.items()} | shares)
        figures = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        if self.paintings > 1:
            names = [painting["name"] for painting in self.description["paintings"]]
            own = ["total_loss"] if self.control is None else ["content_loss", "total_loss"]
            figures |= {f"{name}_{key}": each[key] for name, each in zip(names, found, strict=True) for key in own}
        for name, value in figures.items():
            self.log(f"val/{name}", value, batch_size=len(batch), logger=False)
        if batch_idx == 0:
            self.save_strip(rows)
        return rows[1]

    def on_validation_epoch_end(self) -> None:
        """Log the newest validation figures and remember the losses for the summary and the model's metadata."""
        figures = {name: value for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
        self.write_log(figures)
        self.validation_losses = {name: float(value) for name, value in figures.items() if name.endswith("_loss")}

    def save_strip(self, rows: Sequence[Tensor]) -> None:
        """Write content images above their stylized ones, to TensorBoard and as PNG."""
        strip = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).float()
        for logger in self.loggers:
            logger.experiment.add_image("val/strip", strip, self.batches_seen - 1)  # type: ignore[attr-defined]
        if self.samples_folder is not None and self.trainer.is_global_zero:
            pixels = (strip * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            name = f"step_{self.global_step:06d}.png"
            save_image(Image.fromarray(np.ascontiguousarray(pixels)), self.samples_folder / name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the frozen loss network and add the description; plain types and tensors only."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if not k.startswith("perceptual_loss.")}
        checkpoint[CHECKPOINT_KEY] = {
            **self.description,
            "version": __version__,
            "step": self.global_step,
            "batches_seen": self.batches_seen,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": int(self.skipped[1]),
            "seconds": self.seconds,
            "validation_losses": self.validation_losses,
            "style_weight": statistics.fmean(self.style_weights),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters up where the checkpoint left them; ValueError where Adam's memory is of another network.

        Fused Adam reads and writes it without looking at shapes or strides. 0.1.0 kept one style weight as a scalar.
        """
        for name in checkpoint["state_dict"].keys() & {"control.log_weight", "control.content"}:
            checkpoint["state_dict"][name] = checkpoint["state_dict"][name].expand(self.paintings).clone()
        for number, parameter in enumerate(self.network.parameters()):
            memory = checkpoint["optimizer_states"][0]["state"].get(number, {})
            for name in memory.keys() - {"step"}:
                if memory[name].shape != parameter.shape:
                    raise ValueError(f"{name} {number} is of shape {tuple(memory[name].shape)}")
                memory[name] = torch.empty_like(parameter.detach()).copy_(memory[name])
        ours = checkpoint[CHECKPOINT_KEY]
        self.batches_seen = ours["batches_seen"]
        self.skipped.copy_(torch.tensor([ours["skipped_steps"], ours.get("skipped_in_a_row", 0)]))
        self.seconds = self.earlier_seconds = ours["seconds"]
        self.validation_losses = ours["validation_losses"]
