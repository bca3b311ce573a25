"""Gatys' slow path: optimise the pixels of one image on the perceptual loss that also trains the networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nst_fast.errors import UserError
from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets
from nst_fast.loss.tensors import to_tensor
from nst_fast.stylizing.images import resize_long_side

METHODS = ("lbfgs", "adam")
STARTS = ("content", "noise")

# From pixels to the perceptual loss's terms and the gradient of its total.
Objective = Callable[[Tensor], tuple[dict[str, float], Tensor]]


@dataclass(frozen=True)
class Iteration:
    """One iterate of an optimisation.

    Attributes:
        number: iterations done; 0 is the start.
        seconds: since the start, loss evaluations and steps together.
        losses: content, style, tv and total, as `PerceptualLoss` returns them.
        image: the iterate, (N, 3, H, W) in [0, 1]; do not write into it.
    """

    number: int
    seconds: float
    losses: dict[str, float]
    image: Tensor


def white_noise(like: Tensor, seed: int) -> Tensor:
    """Return grey with Gaussian noise of 1/255, of an image's shape and device, the same for a seed on every device.

    As faint as in Gatys' own code: of noise over the full range a grain stays that the loss hardly sees.
    """
    generator = torch.Generator().manual_seed(seed)
    return (0.5 + torch.randn(like.shape, generator=generator) / 255).to(like.device)


def optimize_image(
    content: Tensor,
    perceptual_loss: PerceptualLoss,
    style_targets: Targets,
    *,
    start: Tensor | None = None,
    method: str = "lbfgs",
    iterations: int = 500,
    learning_rate: float = 0.06,
    on_iteration: Callable[[Iteration], bool | None] | None = None,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Minimise a perceptual loss over the pixels of an image, kept within [0, 1].

    Args:
        content: RGB (N, 3, H, W), float32 or float64 in [0, 1].
        perceptual_loss: on the content's device.
        style_targets: of the painting, there too.
        start: where to start, the content's shape; the content itself unless given.
        method: ``lbfgs`` (projected L-BFGS: the total never rises) or ``adam``.
        iterations: at most so many; L-BFGS may converge earlier.
        learning_rate: Adam's, in pixel units (1 is black to white); it falls to nothing along half a cosine.
        on_iteration: called with the start and with every iterate; returning True stops.

    Returns:
        The iterate with the lowest total, and the trace: for the start and each iteration ``iteration``, ``seconds``
        and the loss terms.

    Raises UserError for an unknown method, a misshapen start or a loss that is not finite.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if iterations < 0:
        raise UserError(f"iterations is {iterations}; 0 or more are needed")
    start = content if start is None else start
    if start.shape != content.shape:
        raise UserError(
            f"the start has shape {tuple(start.shape)}, the content {tuple(content.shape)}; they must agree"
        )
    targets = perceptual_loss.content_targets(content.contiguous(memory_format=torch.channels_last), True)

    def objective(pixels: Tensor) -> tuple[dict[str, float], Tensor]:
        pixels = pixels.detach().requires_grad_(True)
        with torch.enable_grad():
            terms = perceptual_loss(pixels, targets, style_targets)
            (gradient,) = torch.autograd.grad(terms["total"], pixels)
        losses = dict(zip(terms, torch.stack([t.detach() for t in terms.values()]).tolist(), strict=True))
        return losses, gradient.contiguous(memory_format=torch.channels_last)

    began = time.perf_counter()
    pixels = start.detach().clamp(0, 1).contiguous(memory_format=torch.channels_last)
    iterates = lbfgs(objective, pixels) if method == "lbfgs" else adam(objective, pixels, learning_rate, iterations)
    best, lowest, trace = pixels, float("inf"), []
    for number, (pixels, losses) in enumerate(iterates):
        iteration = Iteration(number, time.perf_counter() - began, losses, pixels)
        trace.append({"iteration": number, "seconds": iteration.seconds, **losses})
        if not losses["total"] < float("inf"):
            raise UserError(f"the loss is {losses['total']} at iteration {number}; smaller weights may help")
        if losses["total"] < lowest:
            best, lowest = pixels, losses["total"]
        if (on_iteration is not None and on_iteration(iteration)) or number == iterations:
            break
    return best.contiguous(), trace


def optimize_picture(
    photograph: Image.Image,
    perceptual_loss: PerceptualLoss,
    scales: Mapping[int, Targets],
    *,
    start: str | Image.Image = "content",
    method: str = "lbfgs",
    iterations: int = 500,
    learning_rate: float = 0.06,
    seed: int = 0,
    on_iteration: Callable[[int, Iteration], bool | None] | None = None,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Optimise a photograph coarse to fine, each scale from the one before.

    Args:
        photograph: RGB.
        perceptual_loss: on the device to compute on.
        scales: {long side in pixels: style targets of the painting for it}, in order.
        start: content, noise or a picture, of the first scale.
        method: of `optimize_image`, as are ``iterations`` and ``learning_rate``, at each scale.
        seed: of the noise.
        on_iteration: called with the scale and every iterate; returning True ends it all.

    Returns:
        The image (1, 3, H, W) of the last scale, and the trace: `optimize_image`'s rows with their scale as ``size``.
    """
    device = next(perceptual_loss.loss_network.parameters()).device
    image: Tensor | None = None
    trace: list[dict[str, float]] = []
    stopped = False

    for scale, style_targets in scales.items():
        content = to_tensor(resize_long_side(photograph, scale)).to(device)
        height, width = content.shape[2:]
        if image is not None:
            begin = F.interpolate(image, (height, width), mode="bicubic", align_corners=False)
        elif isinstance(start, Image.Image):
            begin = to_tensor(start.resize((width, height), Image.Resampling.LANCZOS)).to(device)
        else:
            begin = content if start == "content" else white_noise(content, seed)

        def tell(iteration: Iteration, scale: int = scale) -> bool:
            nonlocal stopped
            stopped = bool(on_iteration and on_iteration(scale, iteration))
            return stopped

        options = {"method": method, "iterations": iterations, "learning_rate": learning_rate, "on_iteration": tell}
        image, rows = optimize_image(content, perceptual_loss, style_targets, start=begin, **options)  # type: ignore[arg-type]
        trace += [{"size": scale, **row} for row in rows]
        if stopped:
            break
    assert image is not None
    return image, trace


def adam(
    objective: Objective, pixels: Tensor, learning_rate: float, iterations: int
) -> Iterator[tuple[Tensor, dict[str, float]]]:
    """Yield Adam's iterates and their losses, clamped to [0, 1] after every step."""
    pixels = pixels.clone()
    optimizer = torch.optim.Adam([pixels], learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(iterations, 1))
    while True:
        losses, pixels.grad = objective(pixels)
        yield pixels.clone(), losses
        optimizer.step()
        schedule.step()
        pixels.clamp_(0, 1)


def lbfgs(objective: Objective, pixels: Tensor, history: int = 10) -> Iterator[tuple[Tensor, dict[str, float]]]:
    """Yield the iterates of projected L-BFGS within [0, 1], and their losses; the total never rises.

    Pixels that stand at a bound with the gradient pushing outwards are held; the two-loop recursion (Nocedal & Wright,
    algorithm 7.4) gives a direction for the others, and the step along its projection is halved until the total falls
    enough (Bertsekas 1982, "Projected Newton methods for optimization problems with simple constraints"). Clamping
    after each step of an unbounded L-BFGS, as peers do, lets it diverge.
    """
    losses, gradient = objective(pixels)
    pairs: list[tuple[Tensor, Tensor, float]] = []
    rounding, idle = torch.finfo(pixels.dtype).eps, 0
    yield pixels, losses
    while idle < 5:  # iterations in a row whose fall is within rounding: converged
        free = ~(((pixels <= 0) & (gradient > 0)) | ((pixels >= 1) & (gradient < 0)))
        reduced = gradient * free
        direction = -two_loop(reduced, pairs) * free
        slope = dot(reduced, direction)
        if slope >= 0:
            pairs.clear()
            direction, slope = -reduced, -dot(reduced, reduced)
        if slope == 0 or slope != slope:
            return  # no pixel can improve
        # Without curvature yet, the first step moves the pixel with the steepest gradient by 0.1.
        step = 1.0 if pairs else 0.1 / float(direction.abs().max())
        for _ in range(20):
            candidate = (pixels + step * direction).clamp_(0, 1)
            moved = candidate - pixels
            new_losses, new_gradient = objective(candidate)
            if new_losses["total"] <= losses["total"] + 1e-4 * dot(reduced, moved):
                break
            step /= 2
        else:
            if not pairs:
                return  # converged: the fall expected is within rounding
            pairs.clear()
            continue
        change = new_gradient - gradient
        curvature = dot(moved, change)
        if curvature > 1e-10 * dot(change, change):
            pairs = [*pairs[-history + 1 :], (moved, change, curvature)]
        fall = losses["total"] - new_losses["total"]
        idle = 0 if fall > rounding * abs(losses["total"]) else idle + 1
        pixels, losses, gradient = candidate, new_losses, new_gradient
        yield pixels, losses


def two_loop(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Return the inverse Hessian's estimate times a gradient."""
    q, weights = gradient.clone(), []
    for moved, change, curvature in reversed(pairs):
        weight = dot(moved, q) / curvature
        weights.append(weight)
        q.sub_(change, alpha=weight)
    if pairs:
        _, change, curvature = pairs[-1]
        q.mul_(curvature / dot(change, change))
    for (moved, change, curvature), weight in zip(pairs, reversed(weights), strict=True):
        q.add_(moved, alpha=weight - dot(change, q) / curvature)
    return q


def dot(a: Tensor, b: Tensor) -> float:
    """Return Σ ab of two images in channels-last memory."""
    return float(torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1)))
