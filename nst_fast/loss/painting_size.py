"""How large the strokes of pictures are: the size of the painting that they are most like."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets
from nst_fast.loss.terms import layer_gram_matrix


@torch.no_grad()
def style_distances(loss: PerceptualLoss, pictures: Tensor, paintings: Mapping[int, Targets]) -> dict[int, float]:
    """Return the style loss's Gram terms of pictures (N, 3, H, W) in [0, 1] for the painting at each of its sizes, px.

    Colours and other distributions, which hardly know sizes, are left out.
    """
    features = loss.loss_network(pictures, list(loss.style_layers))
    grams = {layer: layer_gram_matrix(loss.loss_network, layer, features[layer]) for layer in loss.style_layers}
    distances = dict.fromkeys(paintings, 0.0)
    for size, targets in paintings.items():
        for layer, weight in loss.style_layers.items():
            term = loss.style_term(grams[layer], targets[layer].to(pictures.device), loss.filters(layer))
            distances[size] += weight * float(term.mean())
    return distances


def best_painting_size(distances: Mapping[int, float]) -> float:
    """Return the short side of the painting, px, at which pictures are nearest to its style.

    The least point of the parabola through the nearest of the sizes and its two neighbours, over the logarithm of the
    size; the nearest size itself where that is the first or the last.

    Args:
        distances: style distance of the pictures from the painting at each of its sizes, px.
    """
    sizes = sorted(distances)
    best = min(range(len(sizes)), key=lambda number: distances[sizes[number]])
    if best in (0, len(sizes) - 1):
        return float(sizes[best])
    x = [math.log(size) for size in sizes[best - 1 : best + 2]]
    y = [distances[size] for size in sizes[best - 1 : best + 2]]
    before, after = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])  # slopes halfway
    if before == after:
        return float(sizes[best])
    return math.exp((x[0] + x[1]) / 2 - before * (x[2] - x[0]) / 2 / (after - before))
