"""The perceptual loss of Gatys et al. (CVPR 2016): content, Gram style, total variation.

Beside Gram matrices, style may be compared by the distributions of features and colours.
One `PerceptualLoss` serves the trainer and the per-image optimiser. What it aims at is handed in: content targets of
the photographs, style targets of a painting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nst_fast.errors import UserError
from nst_fast.loss.loss_networks import LossNetwork, split_octave
from nst_fast.loss.terms import (
    SLICES,
    SLICES_A_PICTURE,
    content_representation,
    in_full_precision,
    layer_gram_matrix,
    slice_directions,
    sliced_quantiles,
    total_variation,
)

# A flat wall has almost no features: dividing by its own energy alone would make it worth more than any photograph.
CONTENT_FLOOR = 0.1  # of the painting's energy at the same layer
SLICED_FLOOR = 1e-3  # of the painting's mean square there, beside its variance: a picture of one colour has none
# Before a layer's name: a painting's mean square there, or its distribution, in place of its Gram matrix.
ENERGY, SLICED = "energy:", "sliced:"
GRAM = "gram:"  # before a layer's name: Gram matrices of pictures, which are no style target

Targets = Mapping[str, Tensor]


def style_target(loss_network: LossNetwork, name: str, features: Tensor) -> Tensor:
    """Return what a painting's features (1, C, H, W) at a layer are compared by.

    A Gram matrix (1, C, C) for a layer's name, the mean square (1,) for one with `ENERGY` before it, quantiles
    (1, `SLICES`, `QUANTILES`) for one with `SLICED`.
    """
    if not name.startswith(SLICED):
        gram = layer_gram_matrix(loss_network, split_name(name)[1], features)
        return gram.diagonal(dim1=1, dim2=2).mean(1) if name.startswith(ENERGY) else gram
    features = in_full_precision(content_representation(loss_network, split_name(name)[1], features))
    parts = slice_directions(features.shape[1], features.device, features.dtype).split(SLICES_A_PICTURE)
    return torch.cat([sliced_quantiles(features, part[None]) for part in parts], 1)


def split_name(name: str) -> tuple[str, str]:
    """Return what a style target is (`ENERGY`, `SLICED` or nothing, a Gram matrix), and its layer."""
    kind = next((kind for kind in (ENERGY, SLICED) if name.startswith(kind)), "")
    return kind, name.removeprefix(kind)


def gather(paintings: Sequence[Targets], chosen: Tensor) -> dict[str, Tensor]:
    """Return the style targets of a batch whose picture n is to be like painting ``chosen[n]``: first axis N."""
    return {name: torch.cat([painting[name] for painting in paintings])[chosen] for name in paintings[0]}


def blend(paintings: Sequence[Targets], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of several paintings' style targets."""
    total = sum(weights)
    parts = list(zip(paintings, weights, strict=True))
    return {name: torch.stack([p[name] * (weight / total) for p, weight in parts]).sum(0) for name in paintings[0]}


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
        self.layers = list(dict.fromkeys([*self.content_layers, *self.style_layers, *self.sliced_layers]))
        loss_network.check_layers(self.layers)
        self.loss_network = loss_network
        self.content_weight, self.tv_weight = content_weight, tv_weight
        self.style_weight = style_weight

    @property
    def style_target_names(self) -> list[str]:
        """What is needed of a painting, as `style_target` names it."""
        return [
            *self.style_layers,
            *(ENERGY + layer for layer in self.content_layers),
            *(SLICED + layer for layer in self.sliced_layers),
        ]

    def check(self, style_targets: Targets) -> None:
        """Raise UserError where a style target is missing."""
        missing = [name for name in self.style_target_names if name not in style_targets]
        if missing:
            have = ", ".join(style_targets)
            raise UserError(f"the style targets lack {missing[0]}; they have {have}; style.image=FILE has all")

    @torch.no_grad()
    def content_targets(self, content: Tensor, every_direction: bool = False) -> dict[str, Tensor]:
        """Return the content targets {layer: features} of a content image (N, 3, H, W).

        And, as ``slices``, where each picture starts among the directions that it is compared in: neither chance nor a
        counter, so that a loss stays the same function of the stylized image, and training sees all of them. With
        ``every_direction`` it is compared in all: an optimiser of one picture would find the others free.
        """
        features = self.loss_network(content, list(self.content_layers))
        targets = {layer: content_representation(self.loss_network, layer, f) for layer, f in features.items()}
        if self.sliced_layers and not every_direction:
            targets["slices"] = (255 * content).round().long().sum((1, 2, 3)) % SLICES
        return targets

    def forward(self, stylized: Tensor, content_targets: Targets, style_targets: Targets) -> dict[str, Tensor]:
        """Return the means over the batch, scalars, of what `each` returns."""
        return {name: term.mean() for name, term in self.each(stylized, content_targets, style_targets).items()}

    def each(
        self,
        stylized: Tensor,
        content_targets: Targets,
        style_targets: Targets,
        style_weight: Tensor | None = None,
        means: Targets | None = None,
        own: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return ``content``, ``style`` and ``tv`` of each picture, not yet weighted, and their weighted sum ``total``.

        All are of shape (N,). With ``means`` the pictures' Gram matrices (N, C, C) stand beside them, `GRAM` before
        each layer's name.

        Args:
            stylized: (N, 3, H, W) in [0, 1].
            content_targets: of the content images, from `content_targets`.
            style_targets: {name: target} of one painting, first axis 1, or of a painting for each picture, first
                axis N, as `gather` gives them.
            style_weight: of each picture, (N,); None: the loss's own.
            means: {layer: Gram matrices} that each picture's are mixed with, of the painting's shapes; None: a picture
                is compared alone, as in the papers.
            own: of the mixture, the picture's share. The term is divided by its square, so that a picture among perfect
                ones counts as it does alone.

        Raises UserError where a style target is missing or of another loss network.
        """
        self.check(style_targets)
        features = self.loss_network(stylized, self.layers)
        with torch.autocast(stylized.device.type, enabled=False):
            content, style = stylized.new_zeros(len(stylized)), stylized.new_zeros(len(stylized))
            grams: dict[str, Tensor] = {}
            for layer, weight in self.content_layers.items():
                x = in_full_precision(content_representation(self.loss_network, layer, features[layer]))
                target, energy = in_full_precision(content_targets[layer]), style_targets[ENERGY + layer]
                content = content + weight * self.content_term(x, target, energy, self.filters(layer))
            for layer, weight in self.style_layers.items():
                gram, target = layer_gram_matrix(self.loss_network, layer, features[layer]), style_targets[layer]
                if gram.shape[1:] != target.shape[1:]:
                    raise UserError(f"the style targets have {len(target[0])} channels of {layer}, not {len(gram[0])}")
                if means is not None:
                    grams[GRAM + layer] = gram.detach()
                    gram, weight = own * gram + (1 - own) * means[layer], weight / own**2
                style = style + weight * self.style_term(gram, target, self.filters(layer))
            for layer, weight in self.sliced_layers.items():
                x = in_full_precision(content_representation(self.loss_network, layer, features[layer]))
                target, start = style_targets[SLICED + layer], content_targets.get("slices")
                style = style + weight * self.sliced_term(x, target, start)
            tv = total_variation(stylized)
            of_style = self.style_weight if style_weight is None else style_weight
            total = self.content_weight * content + of_style * style + self.tv_weight * tv
        return {"content": content, "style": style, "tv": tv, "total": total} | grams

    def filters(self, layer: str) -> int | None:
        """Return how many filters a layer's features stand for; None where they are the picture's channels."""
        return self.loss_network.filters.get(split_octave(layer)[0])

    def content_term(self, features: Tensor, target: Tensor, energy: Tensor, filters: int | None = None) -> Tensor:
        """Return each picture's content loss at one layer, shape (N,).

        ``energy`` (1,) or (N,) is the painting's mean square there; ``filters`` how many filters the features
        stand for, as many as they have channels unless the loss network is narrower than what it estimates.
        """
        raise NotImplementedError

    def style_term(self, gram: Tensor, target: Tensor, filters: int | None = None) -> Tensor:
        """Return each picture's style loss at one layer, shape (N,), from Gram matrices (N, C, C), (1 or N, C, C)."""
        raise NotImplementedError

    def sliced_term(self, features: Tensor, target: Tensor, start: Tensor | None) -> Tensor:
        """Return each picture's distance from the painting's distribution at one layer, shape (N,).

        The squared sliced Wasserstein distance (Heitz et al., CVPR 2021) over the painting's variance and
        `SLICED_FLOOR`: 0 for the same features in any order. To Gram matrices a colour between two others may be as
        good as both; here it is not. ``target`` is the painting's (1 or N, `SLICES`, `QUANTILES`), ``start`` (N,) the
        first of a picture's directions, None for all of them.
        """
        count, device = len(features), features.device
        if start is None:
            chosen = torch.arange(SLICES, device=device).expand(count, -1)
        else:
            chosen = (start[:, None] + torch.arange(SLICES_A_PICTURE, device=device)) % SLICES
        directions = slice_directions(features.shape[1], device, features.dtype)
        variance = target.var(2, correction=0).mean(1) + SLICED_FLOOR * target.square().mean((1, 2))
        painted, pictures = target.expand(count, -1, -1), torch.arange(count, device=device)[:, None]
        differences = [
            sliced_quantiles(features, directions[part]) - painted[pictures, part]
            for part in chosen.split(SLICES_A_PICTURE, 1)
        ]
        return torch.cat(differences, 1).square().mean((1, 2)) / variance.clamp_min(1e-6)  # black has no energy either


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


LOSSES: dict[str, type[PerceptualLoss]] = {
    "balanced": BalancedLoss,
    "gatys": GatysLoss,
    "johnson": JohnsonLoss,
}
