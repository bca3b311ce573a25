"""A style weight that training finds: the one that takes pictures as far from their photographs as is wanted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Content distances, as `BalancedLoss` measures them at relu2_2: 0 is the photograph, 1 a picture without features;
# strokes that the photograph has not take it past 1. At 2 the scene is gone.
DISTANCES = {"subtle": 0.6, "medium": 1.2, "strong": 1.6}
# What a loss network shows of the distance that the real features have, where that is not all of it: vgg16_slim's
# estimates are smoother (of four models' pictures it shows 0.92 to 0.94 at relu2_2).
SHOWN = {"vgg16_slim": 0.92}
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-3, 1e5
MEMORY = 0.9  # of the running mean of the content distance, a step
FURTHEST = 0.5  # natural logarithm: a distance that is off by more than this counts as off by this


def content_distance(wanted: str | float, loss_network: str = "") -> float:
    """Return a content distance, a number or one of `DISTANCES`, as a loss network of an identity or name shows it.

    Without a loss network it is the real features' own.
    """
    distance = DISTANCES[wanted] if isinstance(wanted, str) else float(wanted)
    return distance * SHOWN.get(loss_network.partition("@")[0], 1.0)


class StyleWeightControl(nn.Module):
    """Steer the style weight, step by step, until the content distance comes out as it should.

    A weight that leaves one painting faint drowns the photograph in another. Minimising style under the constraint
    content = target instead says the same for every painting, size and loss network; the weight is the constraint's
    multiplier, and each step moves its logarithm towards the target (multiplicative dual ascent). Of many paintings
    each has its own, which moves in the steps that have the painting.

    Args:
        content: the content distance to aim for.
        style_weight: where to start.
        rate: how far the logarithm of the weight moves a step for a distance that is off by a factor of e.
        paintings: how many there are.
    """

    log_weight: Tensor
    content: Tensor

    def __init__(self, content: float, style_weight: float, rate: float, paintings: int = 1) -> None:
        super().__init__()
        self.target, self.rate = content, rate
        start = min(max(style_weight, LEAST_WEIGHT), LARGEST_WEIGHT)
        self.register_buffer("log_weight", torch.full((paintings,), math.log(start)))
        self.register_buffer("content", torch.full((paintings,), float(content)))  # running means, as wanted at first

    @property
    def style_weight(self) -> Tensor:
        """The weight to take the next step with, of each painting."""
        return self.log_weight.exp()

    @torch.no_grad()
    def update(self, content: Tensor) -> None:
        """Move each painting's weight by its content distance in a step; not where that is not finite."""
        mean = self.content.lerp(content.to(self.content), 1 - MEMORY)
        off = (math.log(self.target) - mean.clamp_min(1e-12).log()).clamp(-FURTHEST, FURTHEST)
        moved = (self.log_weight + self.rate * off).clamp(math.log(LEAST_WEIGHT), math.log(LARGEST_WEIGHT))
        known = torch.isfinite(mean)
        self.content.copy_(torch.where(known, mean, self.content))
        self.log_weight.copy_(torch.where(known, moved, self.log_weight))
