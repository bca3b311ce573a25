"""What a new style comes to at several content distances, by the gallery's network that learns for seconds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from nst_fast.loss.loss_networks import multiplies_bfloat16
from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets
from nst_fast.loss.style_weight import StyleWeightControl
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.stylizing.stroke import underpainted
from nst_fast.training.content_images import BundledImages
from nst_fast.training.networks import TransformationNetwork

PICTURES, PICTURE_SIZE = 128, 160  # that networks learn on in turn; px
BATCH = 4  # pictures a step
VECTOR_RATE, RATE = 1e-2, 2e-3  # Adam's at the first step, of the vector alone and of everything; a tenth at the last
CONTROL_RATE = 0.1  # of the style weight's logarithm a step


@dataclass(frozen=True)
class Preview:
    """A photograph at one content distance, after the vector alone and after everything, and the last style weight."""

    vector: Image.Image
    everything: Image.Image
    style_weight: float


def preview(
    content: Tensor,
    network: TransformationNetwork,
    loss: PerceptualLoss,
    style_targets: Targets,
    distances: Sequence[float],
    *,
    vector_steps: int,
    steps: int,
    underpainting: float = 0.0,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> dict[float, Preview]:
    """Return the photograph as networks paint it at each content distance, in rising order.

    Args:
        content: the photograph, (1, 3, H, W) in [0, 1].
        network: a trained one, on the photograph's device, whose only vector is to become the painting's; trained.
        loss: there too; its style weight is where networks start, and is moved.
        style_targets: of the painting.
        distances: content distances to aim for.
        vector_steps: of the vector alone, for each distance.
        steps: of everything, from there.
        underpainting: share of the first layer that networks paint over.
        seed: of the pictures that networks learn on.
        on_step: called after each step.
    """
    images = BundledImages(PICTURE_SIZE, seed, 0.0)
    pictures = torch.stack([images[number] for number in range(PICTURES)]).to(content.device)
    batches = itertools.cycle(pictures.split(BATCH))

    def learn(network: TransformationNetwork, distance: float, weight: float, steps: int, vector: bool) -> float:
        return rehearse(
            network,
            distance,
            weight,
            steps,
            vector=vector,
            loss=loss,
            style_targets=style_targets,
            batches=batches,
            on_step=on_step,
        )

    @torch.no_grad()
    def paint(network: TransformationNetwork) -> Image.Image:
        def run(picture: Image.Image) -> Image.Image:
            return to_image(network(to_tensor(picture).to(content.device)))

        photograph = to_image(content)
        return run(underpainted(run, photograph, underpainting) if underpainting else photograph)

    made, weight = {}, loss.style_weight
    for distance in sorted(distances):  # so that vectors go on from each other, whatever order they are shown in
        weight = learn(network, distance, weight, vector_steps, True)
        whole = copy.deepcopy(network)
        first, last = paint(network), learn(whole, distance, weight, steps, False)
        made[distance] = Preview(first, paint(whole), last)
    return made


def rehearse(
    network: TransformationNetwork,
    distance: float,
    style_weight: float,
    steps: int,
    *,
    vector: bool = False,
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
        vector: whether the painting's vector alone learns.
        loss: on the network's device; its own style weight does not count.
        style_targets: of the painting, there too.
        batches: content images (N, 3, H, W) uint8.
        on_step: called after each step.
    """
    device = network.vectors.device
    control = StyleWeightControl(distance, style_weight, CONTROL_RATE).to(device)
    learning: list[nn.Parameter] = [network.vectors] if vector else list(network.parameters())
    optimizer = torch.optim.Adam(learning, VECTOR_RATE if vector else RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    network.train()
    for batch in itertools.islice(batches, steps):
        content = (batch.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device.type)):
            targets = loss.content_targets(content)
            terms = loss.each(network(content).float(), targets, style_targets, control.style_weight)
        network.zero_grad()
        terms["total"].mean().backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        control.update(terms["content"].detach().mean())
        on_step()
    network.eval()
    return float(control.style_weight)
