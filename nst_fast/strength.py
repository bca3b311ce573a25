"""Strength: how far a stylized picture may go from its photograph, in place of a style weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nst_fast.losses import PerceptualLoss
from nst_fast.networks import FastNetwork

# Content distances, as `BalancedLoss` measures them: 0 is the photograph, about 1 a picture with nothing of it left.
STRENGTHS = {"subtle": 0.3, "medium": 0.45, "strong": 0.65}
# What a loss network shows of the distance that the real features have, where that is not all of it: vgg19_slim's
# estimates are smoother (benchmarks/strength.json).
SHOWN = {"vgg19_slim": 0.8}
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-3, 1e5
MEMORY = 0.9  # of the running mean of the content distance, a step
PROBE_BATCH = 4  # pictures
PROBE_STEPS, SETTLING_STEPS = 50, 50  # for each distance; once, before the first
PROBE_RATE = 0.1  # of the style weight's logarithm a step
PROBE_DISTANCE = 1.6  # times that of a network which has had minutes to learn, at the same style weight
FURTHEST = 0.5  # natural logarithm: a distance that is off by more than this counts as off by this


def content_distance(strength: str | float, loss_network: str) -> float:
    """Return the content distance that a strength means to a loss network, given by its identity or name."""
    distance = STRENGTHS[strength] if isinstance(strength, str) else float(strength)
    return distance * SHOWN.get(loss_network.partition("@")[0], 1.0)


class StyleWeightControl(nn.Module):
    """Steer the style weight, step by step, until the content distance comes out as it should.

    A weight that leaves one painting faint drowns the photograph in another. Minimising style under the constraint
    content = target instead says the same for every painting, size and loss network; the weight is the constraint's
    multiplier, and each step moves its logarithm towards the target (multiplicative dual ascent).

    Args:
        content: the content distance to aim for.
        style_weight: where to start.
        rate: how far the logarithm of the weight moves a step for a distance that is off by a factor of e.
    """

    log_weight: Tensor
    content: Tensor

    def __init__(self, content: float, style_weight: float, rate: float) -> None:
        super().__init__()
        self.target, self.rate = content, rate
        start = min(max(style_weight, LEAST_WEIGHT), LARGEST_WEIGHT)
        self.register_buffer("log_weight", torch.tensor(math.log(start)))
        self.register_buffer("content", torch.tensor(float(content)))  # running mean, as wanted until it is known

    @property
    def style_weight(self) -> Tensor:
        """The weight to take the next step with, a scalar."""
        return self.log_weight.exp()

    @torch.no_grad()
    def update(self, content: Tensor) -> None:
        """Take note of a step's content distance, a scalar, and move the weight; nothing where it is not finite."""
        mean = self.content.lerp(content.to(self.content), 1 - MEMORY)
        off = (math.log(self.target) - mean.clamp_min(1e-12).log()).clamp(-FURTHEST, FURTHEST)
        moved = (self.log_weight + self.rate * off).clamp(math.log(LEAST_WEIGHT), math.log(LARGEST_WEIGHT))
        known = torch.isfinite(mean)
        self.content.copy_(torch.where(known, mean, self.content))
        self.log_weight.copy_(torch.where(known, moved, self.log_weight))


def probe_style_weights(
    loss: PerceptualLoss,
    distances: Sequence[float],
    style_weight: float,
    images: Dataset[Tensor],
    on_step: Callable[[], object] = lambda: None,
) -> list[float]:
    """Return the style weights that give content distances, found by training a small network for seconds.

    Networks depart further from a photograph than a picture that is optimised on its own, so those cannot tell.

    Args:
        loss: with its style set; its weight is moved.
        distances: rising.
        style_weight: where to start.
        images: uint8 (3, H, W) each.
        on_step: called after each of ``SETTLING_STEPS + len(distances) * PROBE_STEPS`` steps.
    """
    device = loss.get_buffer("style_" + loss.layers[0]).device
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FastNetwork(width=32, blocks=2).to(device)
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    weights: list[float] = []
    step = 0
    for distance in distances:
        control = StyleWeightControl(PROBE_DISTANCE * distance, style_weight, PROBE_RATE).to(device)
        for _ in range(PROBE_STEPS if weights else SETTLING_STEPS + PROBE_STEPS):
            batch = torch.stack([images[step * PROBE_BATCH + number] for number in range(PROBE_BATCH)])
            content = (batch.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
            loss.style_weight = control.style_weight
            terms = loss(network(content), loss.content_features(content))
            optimizer.zero_grad()
            terms["total"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            control.update(terms["content"])
            step += 1
            on_step()
        style_weight = float(control.style_weight)
        weights.append(style_weight)
    return weights
