"""Colours of a finished network: mapped, so that the pictures of each of its paintings have the painting's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nst_fast.loss.terms import are_moments
from nst_fast.training.networks import TransformationNetwork

FLOOR = 1e-4  # least variance of a colour: pictures of one colour have none, and the map divides by it
LARGEST = 2.0  # factor by which contrast may grow or shrink: more would enlarge noise


def root(matrix: Tensor, least: float = 0.0) -> Tensor:
    """Return the square root of symmetric matrices (..., 3, 3) whose eigenvalues are raised to the least one."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=least).sqrt()[..., None, :] @ vectors.mT


def colour_map(painting: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map x → A x + b of colours that gives pictures the mean and covariance of a painting's.

    Both are `colour_moments`, (..., 4, 3). Of all such maps it moves colours least: Monge's, for normal distributions
    (Pitié and Kokaram, "The linear Monge-Kantorovitch colour mapping", CVMP 2007, equation 7). A (..., 3, 3) is
    symmetric, b is (..., 3).
    Departure from the paper: no contrast is changed by more than `LARGEST` times.

    Raises ValueError where they are no moments of colours in [0, 1].
    """
    if not (are_moments(painting) and are_moments(pictures)):
        raise ValueError("moments of colours are of shape (..., 4, 3) and lie in [0, 1], these are not")
    both = torch.stack([painting, pictures]).double()
    means = both[..., 0, :]
    wanted, made = both[..., 1:, :] - means[..., :, None] * means[..., None, :]
    made_root = root(made, FLOOR)
    inverse = torch.linalg.inv(made_root)
    values, vectors = torch.linalg.eigh(inverse @ root(made_root @ wanted @ made_root) @ inverse)
    matrix = vectors * values.clamp(1 / LARGEST, LARGEST)[..., None, :] @ vectors.mT
    return matrix, means[0] - (matrix @ means[1][..., None])[..., 0]


def recolour(network: TransformationNetwork, matrix: Tensor, offset: Tensor) -> None:
    """Map the colours that a network paints, A x + b, by a matrix (S, 3, 3) and an offset (S, 3) for each painting.

    The network gets new vectors; those that it had stay as they are.
    """
    own = network.as_learned()
    network.vectors = nn.Parameter(torch.cat([own, matrix.flatten(1).to(own), offset.to(own)], 1))
