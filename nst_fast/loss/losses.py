"""The perceptual loss of Gatys et al. (CVPR 2016): content, Gram style, total variation.

Beside Gram matrices, style may be compared by the distributions of features and colours.
One `PerceptualLoss` serves the trainer and the per-image optimiser. All terms are computed in float32 or better,
whatever precision the features come in, and are means over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from nst_fast.errors import UserError
from nst_fast.loss.loss_network import LossNetwork, split_octave

# A flat wall has almost no features: dividing by its own energy alone would make it worth more than any photograph.
CONTENT_FLOOR = 0.1  # of the painting's energy at the same layer
SLICED_FLOOR = 1e-3  # of the painting's mean square there, beside its variance: a picture of one colour has none
SLICED = "sliced:"  # before a layer's name: what is compared are quantiles, not the Gram matrix
SLICES = 256  # directions that a painting's features are projected on
SLICES_A_PICTURE = 32  # of them, that a picture is compared in
QUANTILES = 256
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
    if projected.device.type == "cpu":  # NumPy's order takes a third of the time of torch's
        ordered = projected.gather(2, torch.from_numpy(np.argsort(projected.detach().numpy(), 2)))
    else:
        ordered = projected.sort(2).values
    return F.adaptive_avg_pool1d(ordered, QUANTILES)


def style_statistic(loss_network: LossNetwork, name: str, features: Tensor) -> Tensor:
    """Return what style is compared by at a layer, of one painting's features (1, C, H, W).

    The Gram matrix (C, C) for a layer's name, quantiles (`SLICES`, `QUANTILES`) for one with `SLICED` before it.
    """
    if not name.startswith(SLICED):
        return layer_gram_matrix(loss_network, name, features)[0]
    features = in_full_precision(content_representation(loss_network, name.removeprefix(SLICED), features))
    parts = slice_directions(features.shape[1], features.device, features.dtype).split(SLICES_A_PICTURE)
    return torch.cat([sliced_quantiles(features, part[None])[0] for part in parts])


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


class PerceptualLoss(nn.Module):
    """Weigh content, style and total variation of a stylized image, as a frozen loss network sees it.

    Args:
        loss_network: maps RGB (N, 3, H, W) in [0, 1] to named features.
        content_layers: weight of each content layer.
        style_layers: weight of each style layer.
        content_weight: α in Gatys' paper.
        style_weight: β.
        tv_weight: weight of `total_variation`.
        sliced_layers: weight of each layer whose distribution counts as style, beside the Gram matrices.

    Raises UserError where the loss network lacks a layer. Subclasses state how a term is measured.
    """

    def __init__(
        self,
        loss_network: LossNetwork,
        content_layers: Mapping[str, float],
        style_layers: Mapping[str, float],
        content_weight: float,
        style_weight: float,
        tv_weight: float,
        sliced_layers: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.content_layers, self.style_layers = dict(content_layers), dict(style_layers)
        self.sliced_layers = dict(sliced_layers or {})
        loss_network.check_layers([*self.layers, *self.sliced_layers])
        self.loss_network = loss_network
        self.content_weight, self.tv_weight = content_weight, tv_weight
        self.style_weight: float | Tensor = style_weight

    @property
    def layers(self) -> list[str]:
        """The layers whose Gram matrices `set_style` needs."""
        return list(dict.fromkeys([*self.content_layers, *self.style_layers]))

    @property
    def statistics(self) -> list[str]:
        """The names of what `set_style` needs of a painting, as `style_statistic` takes them."""
        return [*self.layers, *(SLICED + layer for layer in self.sliced_layers)]

    def set_style(self, statistics: Mapping[str, Tensor]) -> None:
        """Take the painting's `statistics` by name: Gram matrices (C, C), quantiles where a distribution counts."""
        missing = [name for name in self.statistics if name not in statistics]
        if missing:
            have = ", ".join(statistics)
            raise UserError(f"the style targets lack layer {missing[0]}; they have {have}; style.image=FILE has all")
        for name in self.statistics:
            self.register_buffer("style_" + name, statistics[name][None], persistent=False)

    def content_features(self, content: Tensor) -> dict[str, Tensor]:
        """Return the content targets {layer: features} of a content image (N, 3, H, W).

        And, as ``slices``, where each picture starts among the directions that it is compared in: neither chance nor a
        counter, so that a loss stays the same function of the stylized image, and training sees all of them.
        """
        with torch.no_grad():
            features = self.loss_network(content, list(self.content_layers))
            targets = {layer: content_representation(self.loss_network, layer, f) for layer, f in features.items()}
            if self.sliced_layers:
                targets["slices"] = (255 * content).round().long().sum((1, 2, 3)) % SLICES
            return targets

    def forward(self, image: Tensor, content_features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scalars ``content``, ``style`` and ``tv``, not yet weighted, and their weighted sum ``total``."""
        features = self.loss_network(image, list(dict.fromkeys([*self.layers, *self.sliced_layers])))
        with torch.autocast(image.device.type, enabled=False):
            content, style = image.new_zeros(()), image.new_zeros(())
            for layer, weight in self.content_layers.items():
                x = in_full_precision(content_representation(self.loss_network, layer, features[layer]))
                target = in_full_precision(content_features[layer])
                energy = self.get_buffer("style_" + layer).diagonal(dim1=1, dim2=2).mean()
                filters = self.loss_network.filters.get(split_octave(layer)[0])
                content = content + weight * self.content_term(x, target, energy, filters).mean()
            for layer, weight in self.style_layers.items():
                gram = layer_gram_matrix(self.loss_network, layer, features[layer])
                target = self.get_buffer("style_" + layer)
                filters = self.loss_network.filters.get(split_octave(layer)[0])
                style = style + weight * self.style_term(gram, target, filters).mean()
            for layer, weight in self.sliced_layers.items():
                x = in_full_precision(content_representation(self.loss_network, layer, features[layer]))
                target = self.get_buffer("style_" + SLICED + layer)[0]
                style = style + weight * self.sliced_term(x, target, content_features["slices"]).mean()
            tv = total_variation(image).mean()
            total = self.content_weight * content + self.style_weight * style + self.tv_weight * tv
        return {"content": content, "style": style, "tv": tv, "total": total}

    def content_term(self, features: Tensor, target: Tensor, energy: Tensor, filters: int | None = None) -> Tensor:
        """Return each picture's content loss at one layer, shape (N,).

        ``energy`` is the painting's mean square there; ``filters`` how many filters the features stand for, as many as
        they have channels unless the loss network is narrower than what it estimates.
        """
        raise NotImplementedError

    def style_term(self, gram: Tensor, target: Tensor, filters: int | None = None) -> Tensor:
        """Return each picture's style loss at one layer, shape (N,), from Gram matrices (N, C, C) and (1, C, C)."""
        raise NotImplementedError

    def sliced_term(self, features: Tensor, target: Tensor, start: Tensor) -> Tensor:
        """Return each picture's distance from the painting's distribution at one layer, shape (N,).

        The squared sliced Wasserstein distance (Heitz et al., CVPR 2021) over the painting's variance and
        `SLICED_FLOOR`: 0 for the same features in any order. To Gram matrices a colour between two others may be as
        good as both; here it is not. ``target`` is the painting's (`SLICES`, `QUANTILES`), ``start`` (N,) the first of
        a picture's directions.
        """
        chosen = (start[:, None] + torch.arange(SLICES_A_PICTURE, device=start.device)) % SLICES
        directions = slice_directions(features.shape[1], features.device, features.dtype)[chosen]
        difference = sliced_quantiles(features, directions) - target[chosen]
        variance = target.var(1, correction=0).mean() + SLICED_FLOOR * target.square().mean()
        return difference.square().mean((1, 2)) / variance.clamp_min(1e-6)  # black has no energy either


class GatysLoss(PerceptualLoss):
    """The paper's own: ½ Σ (F − P)², and Σ (G/M − A/M)² / (4 N²) (Gatys et al. 2016, equations 1 and 4).

    Where photograph and painting have equally many positions M this is the paper's equation 4; where they have not, the
    paper's form would compare sums over differently many positions.
    """

    def content_term(self, features: Tensor, target: Tensor, energy: Tensor, filters: int | None = None) -> Tensor:
        """Return ½ Σ (F − P)²."""
        return 0.5 * (features - target).square().sum((1, 2, 3))

    def style_term(self, gram: Tensor, target: Tensor, filters: int | None = None) -> Tensor:
        """Return Σ (G/M − A/M)² / (4 N²), N the number of filters."""
        return (gram - target).square().sum((1, 2)) / (4 * (filters or gram.shape[1]) ** 2)


class JohnsonLoss(PerceptualLoss):
    """Mean squared errors of features and of Gram matrices over C H W (Johnson et al. 2016, as pytorch/examples)."""

    def content_term(self, features: Tensor, target: Tensor, energy: Tensor, filters: int | None = None) -> Tensor:
        """Return the mean of (F − P)²."""
        channels, height, width = features.shape[1:]
        return (features - target).square().sum((1, 2, 3)) / ((filters or channels) * height * width)

    def style_term(self, gram: Tensor, target: Tensor, filters: int | None = None) -> Tensor:
        """Return the mean of (G − A)², both divided by C."""
        return (gram - target).square().sum((1, 2)) / (filters or gram.shape[1]) ** 4


class BalancedLoss(PerceptualLoss):
    """Gatys' terms, each divided by its target's energy, so that a weight means the same everywhere.

    Gatys' α·½ Σ (F − P)² with α = 1 / (½ Σ P²) is the relative squared error ‖F − P‖² / ‖P‖², and his
    β·Σ (G − A)² / (4 N² M²) with β = 4 N² M² / Σ A² is ‖G − A‖² / ‖A‖². Both are 0 for a perfect match and near 1 for
    a picture without features, for any painting, layer, loss network and size. The content energy has a floor of
    `CONTENT_FLOOR` times the painting's at that layer.
    """

    def content_term(self, features: Tensor, target: Tensor, energy: Tensor, filters: int | None = None) -> Tensor:
        """Return ‖F − P‖² / (‖P‖² + floor)."""
        difference = (features - target).square().mean((1, 2, 3))
        return difference / (target.square().mean((1, 2, 3)) + CONTENT_FLOOR * energy)

    def style_term(self, gram: Tensor, target: Tensor, filters: int | None = None) -> Tensor:
        """Return ‖G − A‖² / ‖A‖²."""
        return (gram - target).square().sum((1, 2)) / target.square().sum((1, 2))


class StructureLoss(BalancedLoss):
    """`BalancedLoss` with a content term that sees patterns, not colours or contrasts.

    A painting has contrasts of its own, so that a stylized picture's features are far from the photograph's wherever it
    has taken them over; a network that is charged for that saves on what could be recognised. Compared after instance
    normalisation, features may take any mean and deviation (the domain-invariant perceptual loss of Huang et al., ECCV
    2018, supplement). Departure: channels count by their variance in the photograph. For each the term is 0 where the
    pattern is the same, 2 where there is nothing of it.
    """

    def content_term(self, features: Tensor, target: Tensor, energy: Tensor, filters: int | None = None) -> Tensor:
        """Return Σ v mean((F̂ − P̂)²) / Σ (v + floor): over channels, v a channel's variance in the photograph."""
        floor = CONTENT_FLOOR * energy

        def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
            variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
            return (x - mean) / (variance + floor).sqrt(), variance

        (x, _), (pattern, variance) = standardised(features), standardised(target)
        difference = (x - pattern).square().mean((2, 3), keepdim=True)
        return (variance * difference).sum((1, 2, 3)) / (variance + floor).sum((1, 2, 3))


LOSSES: dict[str, type[PerceptualLoss]] = {
    "balanced": BalancedLoss,
    "gatys": GatysLoss,
    "johnson": JohnsonLoss,
    "structure": StructureLoss,
}
