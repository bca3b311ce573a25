"""What a style comes to at several content distances and brush sizes, by networks that learn for seconds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from nst_fast.loss.loss_networks import multiplies_bfloat16
from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets
from nst_fast.loss.style_weight import StyleWeightControl
from nst_fast.loss.tensors import to_image
from nst_fast.training.content_images import BundledImages

PICTURES, PICTURE_SIZE = 128, 160  # that networks learn on in turn; px
BATCH = 4  # pictures a step
RATE = 2e-3  # Adam's at the first step, a tenth of it at the last
CONTROL_RATE = 0.1  # of the style weight's logarithm a step


@dataclass(frozen=True)
class Preview:
    """Pictures {content distance: picture} at one brush size, and the style weights that they took."""

    pictures: Mapping[float, Image.Image]
    style_weights: Mapping[float, float]


def preview(
    content: Tensor,
    network: nn.Module,
    loss: PerceptualLoss,
    brushes: Sequence[Targets],
    distances: Sequence[float],
    *,
    settling_steps: int,
    steps: int,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> list[Preview]:
    """Return for each brush size the photograph as networks paint it at each content distance.

    Args:
        content: the photograph, (1, 3, H, W) in [0, 1].
        network: a trained one, on the photograph's device, to go on from; it is trained.
        loss: there too; its style weight is where networks start, and is moved.
        brushes: style targets of the painting at each size.
        distances: content distances to aim for.
        settling_steps: from the network to the style, at the middle of brushes and distances.
        steps: from there, for each picture.
        seed: of the pictures that networks learn on.
        on_step: called after each step.
    """
    images = BundledImages(PICTURE_SIZE, seed, 0.0)
    pictures = torch.stack([images[number] for number in range(PICTURES)]).to(content.device)
    batches, rising = itertools.cycle(pictures.split(BATCH)), sorted(distances)

    def learn(network: nn.Module, brush: Targets, distance: float, weight: float, steps: int) -> float:
        given: dict[str, Any] = {"loss": loss, "style_targets": brush, "batches": batches, "on_step": on_step}
        return rehearse(network, distance, weight, steps, **given)

    middle = brushes[len(brushes) // 2], rising[len(rising) // 2]
    settled = learn(network, *middle, float(loss.style_weight), settling_steps)
    made = []
    for brush in brushes:
        own, weight, weights, shown = copy.deepcopy(network), settled, {}, {}
        for distance in rising:  # so that networks go on from each other, whatever order they are shown in
            weight = weights[distance] = learn(own, brush, distance, weight, steps)
            with torch.no_grad():
                shown[distance] = to_image(own(content).clamp(0, 1))
        made.append(Preview(shown, weights))
    return made


def rehearse(
    network: nn.Module,
    distance: float,
    style_weight: float,
    steps: int,
    *,
    loss: PerceptualLoss,
    style_targets: Targets,
    batches: Iterator[Tensor],
    on_step: Callable[[], object] = lambda: None,
) -> float:
    """Train a network for seconds towards a content distance, and return the style weight that it took at the end.

    Args:
        network: left in evaluation mode.
        distance: content distance to aim for.
        style_weight: where to start.
        steps: one a batch.
        loss: on the network's device; its style weight is moved.
        style_targets: of the painting, there too.
        batches: content images (N, 3, H, W) uint8.
        on_step: called after each step.
    """
    device = next(network.parameters()).device
    control = StyleWeightControl(distance, style_weight, CONTROL_RATE).to(device)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    network.train()
    for batch in itertools.islice(batches, steps):
        content = (batch.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        loss.style_weight = control.style_weight
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device.type)):
            terms = loss(network(content).float(), loss.content_targets(content), style_targets)
        optimizer.zero_grad()
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        control.update(terms["content"].detach())
        on_step()
    network.eval()
    return float(control.style_weight)
