"""Second views of training pictures, as a moving camera would take them: made from stills, by a flow that is known.

A network that is to stylize both alike learns strokes that stay on things (after Wang et al. 2020, ReReVST).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from nst_fast.training.networks import blurred

LEAST_SHIFT, LARGEST_SHIFT = 0.25, 16.0  # px; every octave between is as likely
ZOOM, TURN = 0.03, 0.03  # standard deviations, of a factor's logarithm and of an angle, rad
WOBBLE, CELLS = 1.0, 4  # px, standard deviation at the corners of cells; how many cells there are both ways
FAINT = 1e-5  # for each place, added to the squares of its strokes: where there are none, nothing is divided by 0
NOISE, EXPOSURE = 2.0, 0.03  # of 255, largest standard deviation; of a factor's logarithm, standard deviation


def random_flow(size: int, rng: np.random.Generator) -> Tensor:
    """Return a smooth flow (2, size, size), float32 in px, x before y: a shift, a zoom, a turn and a local wobble."""
    centred = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(centred, centred, indexing="ij")
    shift = LEAST_SHIFT * (LARGEST_SHIFT / LEAST_SHIFT) ** rng.random()
    direction, turn = rng.uniform(0, 2 * np.pi), TURN * rng.standard_normal()
    zoom = float(np.exp(ZOOM * rng.standard_normal()))
    cos, sin = zoom * float(np.cos(turn)), zoom * float(np.sin(turn))
    affine = torch.stack(
        [
            cos * x - sin * y - x + shift * float(np.cos(direction)),
            sin * x + cos * y - y + shift * float(np.sin(direction)),
        ]
    )
    corners = torch.from_numpy(WOBBLE * rng.standard_normal((1, 2, CELLS + 1, CELLS + 1), np.float32))
    return affine + F.interpolate(corners, (size, size), mode="bicubic", align_corners=True)[0]


def places(flow: Tensor) -> Tensor:
    """Return where flows (N, 2, H, W) lead, (N, H, W, 2): −1 and 1 are the middles of the outermost pixels."""
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    return torch.stack([2 * (x + flow[:, 0]) / (width - 1) - 1, 2 * (y + flow[:, 1]) / (height - 1) - 1], 3)


def moved(images: Tensor, flow: Tensor) -> Tensor:
    """Return images (N, C, H, W) as seen along flows (N, 2, H, W): at p what they show at p + flow, bicubic."""
    return F.grid_sample(images, places(flow), "bicubic", "reflection", align_corners=True)


def strokes(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) less what they are blurred: what is drawn, without its tone."""
    return images - blurred(images, 5)


def motion_difference(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """Return how far second views' strokes are from first ones' moved, where both see the place, shape (N,).

    0: they moved along. 1: they have nothing to do with each other. Squares of differences are divided by those of the
    strokes themselves, so that fainter strokes gain nothing, as they do without the division (Wang et al. 2020).
    """
    seen = (places(flow).abs() <= 1).all(3)[:, None]
    here, there = strokes(second), strokes(moved(first, flow))
    squares, energy = ((s * seen).sum((1, 2, 3)) for s in ((here - there).square(), here.square() + there.square()))
    return squares / (energy + FAINT * seen.sum((1, 2, 3)).clamp(min=1))


class SecondViews(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Pictures, second views and the flows between: uint8 (3, size, size) twice, float32 (2, size, size).

    A second view is a picture moved, a little lighter or darker and noisy: a function of the pictures' seed and the
    index alone.

    Args:
        images: a dataset of uint8 (3, size, size), which has a ``seed``.
    """

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        first = self.images[index]
        rng = np.random.default_rng((self.images.seed, index, 1))  # type: ignore[attr-defined]
        flow = random_flow(first.shape[1], rng)
        exposure, noise = float(np.exp(EXPOSURE * rng.standard_normal())), NOISE * rng.random()
        grain = torch.from_numpy(noise * rng.standard_normal(first.shape, np.float32))
        second = exposure * moved(first[None].float(), flow[None])[0] + grain
        return first, second.clamp(0, 255).round().byte(), flow
