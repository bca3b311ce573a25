"""What the perceptual loss is made of: Gram matrices, distributions, total variation, and what eyes mind in a picture.

Everything is computed in float32 or better, whatever precision the features come in.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from nst_fast.loss.loss_networks import LossNetwork

SLICES = 256  # directions that a painting's features are projected on
SLICES_A_PICTURE = 32  # of them, that a picture is compared in
QUANTILES = 64
WEAVE_FLOOR = 1e-4  # of brightness in [0, 1], squared: detail of less than 1 in 100 is no weave that is seen


def in_full_precision(x: Tensor) -> Tensor:
    """Return x in float32, or as it is in float64."""
    return x if x.dtype.itemsize >= 4 else x.float()


def alone_on_cpu(features: Tensor) -> bool:
    """Return whether features are of one picture on a CPU."""
    return len(features) == 1 and features.device.type == "cpu"


class GramProduct(torch.autograd.Function):
    """F Fᵀ / M of F (N, C, H, W), M = H W: one product backward, where autograd takes two, and no core idle.

    A tall and narrow product runs on one core. A single picture on a CPU therefore takes the same sums as a 1×1
    convolution's gradients, twice to four times as fast.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Return (N, C, C)."""
        ctx.save_for_backward(features)
        channels, positions = features.shape[1], features[0, 0].numel()
        if alone_on_cpu(features):
            kernel = (channels, channels, 1, 1)
            return conv2d_weight(features, kernel, features)[None, :, :, 0, 0] / positions
        # Positions before channels: no copy, whether memory is channels-last or not.
        flat = features.permute(0, 2, 3, 1).flatten(1, 2)
        return flat.transpose(1, 2) @ flat / positions

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return (D + Dᵀ) F / M."""
        (features,), (gradient,) = ctx.saved_tensors, gradients
        weight = (gradient + gradient.transpose(1, 2)) / features[0, 0].numel()
        if alone_on_cpu(features):
            return F.conv2d(features, weight[0, :, :, None, None])
        flat = features.permute(0, 2, 3, 1).flatten(1, 2)
        return (flat @ weight).unflatten(1, features.shape[2:]).permute(0, 3, 1, 2)


def gram_matrix(features: Tensor) -> Tensor:
    """Return G = F Fᵀ / (H W), shape (N, C, C), of features (N, C, H, W), in float32 or better.

    Gatys et al. 2016, equation 3, divided by the number of positions so that pictures of any size compare.
    """
    with torch.autocast(features.device.type, enabled=False):
        return GramProduct.apply(in_full_precision(features))


def layer_gram_matrix(loss_network: LossNetwork, layer: str, features: Tensor) -> Tensor:
    """Return the Gram matrices (N, C, C) of a layer's features (N, C, H, W) as the loss network has them compared."""
    gram, metric = gram_matrix(features), loss_network.metric(layer)
    if metric is None:
        return gram
    with torch.autocast(features.device.type, enabled=False):
        return metric.to(gram) @ gram @ metric.to(gram)


def content_representation(loss_network: LossNetwork, layer: str, features: Tensor) -> Tensor:
    """Return a layer's features (N, C, H, W) as the loss network has them compared."""
    metric = loss_network.metric(layer)
    if metric is None:
        return features
    features = in_full_precision(features)
    with torch.autocast(features.device.type, enabled=False):
        return F.conv2d(features, metric.to(features)[:, :, None, None])


@cache
def slice_directions(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return unit vectors (`SLICES`, C), evenly distributed and the same everywhere."""
    directions = np.random.default_rng(0).standard_normal((SLICES, channels))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return torch.from_numpy(directions).to(device, dtype)


def sliced_quantiles(features: Tensor, directions: Tensor) -> Tensor:
    """Return the quantiles (N, D, `QUANTILES`) of features (N, C, H, W) along directions (N or 1, D, C).

    Projections in order, averaged in as many equal parts, so that pictures of any size compare.
    """
    projected = directions @ features.flatten(2)
    if projected.device.type == "cpu" and not projected.requires_grad:  # NumPy takes a sixth of the time of torch
        ordered = torch.from_numpy(np.sort(projected.numpy(), 2))
    elif projected.device.type == "cpu":  # and two thirds for the order
        ordered = projected.gather(2, torch.from_numpy(np.argsort(projected.detach().numpy(), 2)))
    else:
        ordered = projected.sort(2).values
    return F.adaptive_avg_pool1d(ordered, QUANTILES)


def colour_moments(image: Tensor) -> Tensor:
    """Return mean and second moments of the colours of images (N, 3, H, W), clamped to [0, 1], as rows: (N, 4, 3)."""
    pixels = image.detach().float().clamp(0, 1).flatten(2)
    # Differences of moments need every digit: no matrix product, which autocast and TF32 shorten.
    return torch.cat([pixels.mean(2)[:, None], (pixels[:, :, None] * pixels[:, None]).mean(3)], 1)


def are_moments(values: Tensor) -> bool:
    """Return whether values (..., 4, 3) may be `colour_moments`: colours in [0, 1] have no others."""
    return values.shape[-2:] == (4, 3) and bool(((values >= 0) & (values <= 1)).all())


def total_variation(image: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels of (N, 3, H, W), summed over directions, shape (N,)."""
    image = in_full_precision(image)
    across, down = image[..., :, 1:] - image[..., :, :-1], image[..., 1:, :] - image[..., :-1, :]
    return torch.stack([d.square().sum((1, 2, 3)) / max(d[0].numel(), 1) for d in (across, down)]).sum(0)


def fine_detail(image: Tensor) -> Tensor:
    """Return (N, 3, H, W) less its [1 2 1] ⊗ [1 2 1] / 16 blur, which leaves no gradients: (N, 3, H − 2, W − 2)."""
    image = in_full_precision(image)
    binomial = 2 - torch.arange(-1, 2, device=image.device, dtype=image.dtype).abs()  # made there: a copy would wait
    kernel = (binomial[:, None] * binomial[None] / 16).expand(3, 1, 3, 3)
    with torch.autocast(image.device.type, enabled=False):
        return image[..., 1:-1, 1:-1] - F.conv2d(image, kernel, groups=3)


def pixel_grid(image: Tensor, period: int = 4, cells: int = 8) -> Tensor:
    """Return the mean energy of patterns that repeat with a network's sampling period, shape (N,), of (N, 3, H, W).

    Gram matrices do not see where a texture sits, so a network that samples every ``period`` pixels can pay for texture
    with a lattice. `fine_detail` is averaged phase by phase over windows of ``cells`` periods: strokes average out, a
    lattice stays. Pictures smaller than a window have none.
    """
    detail, window = fine_detail(image), period * cells
    rows, columns = detail.shape[2] // window, detail.shape[3] // window
    if not rows or not columns:
        return detail.new_zeros(len(image))
    detail = detail[..., : rows * window, : columns * window]
    folded = detail.reshape(len(image), 3, rows, cells, period, columns, cells, period).mean((3, 6))
    return (folded - folded.mean((3, 5), keepdim=True)).square().flatten(1).mean(1)


def pixel_weave(image: Tensor, near: int = 4, far: int = 12) -> Tensor:
    """Return the energy of fine detail that repeats from ``near`` to ``far`` pixels away, shape (N,), of (N, 3, H, W).

    Upsampling turns waves of two or three samples into finer ones, and Gram matrices take a single one of them, all
    over the picture, for the painting's detail: the eye sees a weave. Brushwork is like itself only close by, so here
    is Σ R² / R₀ over those distances, R the autocovariance of `fine_detail` by the theorem of Wiener and Khinchin,
    round the edges, R₀ its energy. Pictures smaller than twice the distance have none.
    """
    detail = fine_detail(image)
    if min(detail.shape[2:]) < 2 * far:
        return detail.new_zeros(len(image))
    size = image.shape[2:]  # a little more than detail's, and often a power of two
    power = torch.view_as_real(torch.fft.rfft2(detail, size)).square().sum((1, 4))
    covariance = torch.fft.irfft2(power, size) / detail[0].numel()
    rows, columns = (torch.fft.fftfreq(pixels, 1 / pixels, device=image.device).abs() for pixels in size)
    distance = torch.maximum(rows[:, None], columns)
    counts = (distance >= near) & (distance <= far)
    return (covariance.square() * counts).sum((1, 2)) / (covariance[:, 0, 0] + WEAVE_FLOOR)


def saturated_share(image: Tensor, window: int = 8) -> Tensor:
    """Return the share of (N, 3, H, W) that lies in squares with no channel between 1/255 and 254/255, shape (N,).

    Squares of ``window`` pixels: blobs where a network has gone past black, white or a pure colour, not highlights.
    """
    saturated = ((image <= 1 / 255) | (image >= 254 / 255)).all(1, keepdim=True).to(torch.float32)
    if min(image.shape[2:]) < window:
        return image.new_zeros(len(image))
    squares = -F.max_pool2d(-saturated, window, stride=1)
    covered = F.max_pool2d(F.pad(squares, [window - 1] * 4), window, stride=1)
    return covered.mean((1, 2, 3)).to(image.dtype)
