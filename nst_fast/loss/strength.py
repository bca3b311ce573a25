"""Strength: how far a stylized picture may go from its photograph, in place of a style weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from nst_fast.loss.loss_network import multiplies_bfloat16
from nst_fast.loss.losses import PerceptualLoss

# Content distances, as `BalancedLoss` measures them: 0 is the photograph, about 1 a picture with nothing of it left.
STRENGTHS = {"subtle": 0.3, "medium": 0.45, "strong": 0.65}
# What a loss network shows of the distance that the real features have, where that is not all of it: vgg19_slim's
# estimates are smoother (benchmarks/strength.json).
SHOWN = {"vgg19_slim": 0.8}
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-3, 1e5
MEMORY = 0.9  # of the running mean of the content distance, a step
REHEARSAL_RATE = 2e-3  # Adam's at the first step, a tenth of it at the last
REHEARSAL_CONTROL = 0.1  # of the style weight's logarithm a step
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


def rehearse(
    network: nn.Module,
    distance: float,
    style_weight: float,
    steps: int,
    *,
    loss: PerceptualLoss,
    batches: Iterator[Tensor],
    on_step: Callable[[], object] = lambda: None,
) -> float:
    """Train a network for seconds towards a content distance, and return the style weight that it took at the end.

    Args:
        network: left in evaluation mode.
        distance: content distance to aim for.
        style_weight: where to start.
        steps: one a batch.
        loss: with its style set, on the network's device; its weight is moved.
        batches: content images (N, 3, H, W) uint8.
        on_step: called after each step.
    """
    device = next(network.parameters()).device
    control = StyleWeightControl(distance, style_weight, REHEARSAL_CONTROL).to(device)
    optimizer = torch.optim.Adam(network.parameters(), REHEARSAL_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    network.train()
    for batch in itertools.islice(batches, steps):
        content = (batch.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        loss.style_weight = control.style_weight
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device.type)):
            terms = loss(network(content).float(), loss.content_features(content))
        optimizer.zero_grad()
        terms["total"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        control.update(terms["content"].detach())
        on_step()
    network.eval()
    return float(control.style_weight)
