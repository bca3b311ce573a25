"""Fast against slow: a model's loss beside the per-image optimiser's curve on the very same loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from nst_fast.loss.painting_size import style_distances
from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.reference.image_optimizer import METHODS, STARTS, optimize_image, white_noise

TIMED_RUNS = 3  # of a model, after one to warm up; the median counts


@dataclass(frozen=True)
class ModelResult:
    """What a model made of one photograph.

    Attributes:
        image: its picture.
        seconds: picture in, picture out, both runs of a model that has an underpainting.
        losses: content, style, tv and total of the 8-bit picture.
        style_distances: from the painting at each size, px.
    """

    image: Image.Image
    seconds: float
    losses: Mapping[str, float]
    style_distances: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerResult:
    """One run of the per-image optimiser.

    Attributes:
        image: the picture with the lowest loss.
        trace: for the start and each iteration ``iteration``, ``seconds`` and the loss terms.
    """

    image: Image.Image
    trace: Sequence[Mapping[str, float]]

    def passes(self, total: float) -> Mapping[str, float] | None:
        """Return the first row of the trace whose total is not above a figure, or None where it never gets there."""
        return next((row for row in self.trace if row["total"] <= total), None)


@dataclass(frozen=True)
class Comparison:
    """Models and optimisers on one photograph; optimisers are named ``method from start``."""

    photograph: Image.Image
    models: Mapping[str, ModelResult]
    optimizers: Mapping[str, OptimizerResult] = field(default_factory=dict)


@torch.no_grad()
def perceptual_losses(
    perceptual_loss: PerceptualLoss, style_targets: Targets, image: Tensor, content: Tensor
) -> dict[str, float]:
    """Return the loss terms of an image (1, 3, H, W) in [0, 1] for a content image of its shape."""
    terms = perceptual_loss(image, perceptual_loss.content_targets(content, True), style_targets)
    return {name: float(term) for name, term in terms.items()}


def compare(
    photograph: Image.Image,
    models: Mapping[str, Callable[[Image.Image], Image.Image]],
    perceptual_loss: PerceptualLoss,
    style_targets: Targets,
    *,
    painting_sizes: Mapping[int, Targets] | None = None,
    methods: Sequence[str] = METHODS,
    starts: Sequence[str] = STARTS,
    iterations: int = 200,
    learning_rate: float = 0.06,
    seed: int = 0,
    on_progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Stylize a photograph with models and optimise it with every method from every start, on one loss.

    Args:
        photograph: RGB; it is compared at the size it has.
        models: by name, from picture to picture of the same size.
        perceptual_loss: what they are compared on.
        style_targets: of the painting, on its device.
        painting_sizes: of the painting at other sizes, px, which tell how large the models' strokes are.
        methods: of `optimize_image`.
        starts: content or noise.
        iterations: of each optimisation.
        learning_rate: Adam's.
        seed: of the noise.
        on_progress: called with an optimiser's name and its iterations so far.
    """
    device = next(perceptual_loss.loss_network.parameters()).device
    content = to_tensor(photograph).to(device)
    results = {}
    for name, model in models.items():
        model(photograph)
        seconds = []
        for _ in range(TIMED_RUNS):
            began = time.perf_counter()
            image = model(photograph)
            seconds.append(time.perf_counter() - began)
        stylized = to_tensor(image).to(device)
        losses = perceptual_losses(perceptual_loss, style_targets, stylized, content)
        distances = style_distances(perceptual_loss, stylized, painting_sizes or {})
        results[name] = ModelResult(image, sorted(seconds)[TIMED_RUNS // 2], losses, distances)
    optimizers = {}
    for start in starts:
        for method in methods:
            name = f"{method} from {start}"
            optimized, trace = optimize_image(
                content,
                perceptual_loss,
                style_targets,
                start=content if start == "content" else white_noise(content, seed),
                method=method,
                iterations=iterations,
                learning_rate=learning_rate,
                on_iteration=None if on_progress is None else lambda i, name=name: on_progress(name, i.number),  # type: ignore[misc]
            )
            optimizers[name] = OptimizerResult(to_image(optimized), trace)
    return Comparison(photograph, results, optimizers)
