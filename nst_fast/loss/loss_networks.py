"""Frozen loss networks: image in, features of named layers out.

A layer is named as in VGG-19: ``conv3_1`` is its first convolution at a quarter of the resolution before the
rectification, ``relu3_1`` the same after it. ``rgb`` is the picture itself. ``relu3_1@4`` is relu3_1 of the picture at
a quarter of its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_fast.errors import UserError

# Channels of each convolution, block by block; three numbers are a `LowRankConvolution`'s.
Widths = Sequence[Sequence[int | Sequence[int]]]
OCTAVES = (2, 4, 8)  # how many times smaller the picture may be made for a layer
PICTURE = "rgb"  # the layer that every network has
# Of a layer's mean activation, the least that a filter is divided by. On a few photographs a rare filter's own mean is
# chance: divided by it, the rarest of VGG-16's relu5_1 outweighed all other layers' style terms 500 times.
ACTIVATION_FLOOR = 0.1


def split_octave(layer: str) -> tuple[str, int]:
    """Return a layer's name without its octave, and the octave: relu3_1@4 is (relu3_1, 4), relu3_1 is (relu3_1, 1).

    Raises UserError where the octave is not one of `OCTAVES`.
    """
    name, at, octave = layer.partition("@")
    if not at:
        return name, 1
    if octave not in map(str, OCTAVES):
        raise UserError(f"layer {layer!r} has an unknown octave; {name}@2, @4 or @8 halve the picture once or more")
    return name, int(octave)


class LossNetwork(nn.Module):
    """Map an image to the features of named layers, running only as deep as the deepest one asked for.

    A layer may be asked for of the image made smaller, ``relu3_1@4``: with the same filters it sees four times as far.
    Gram matrices of an image's octaves tell large shapes apart that those of deep layers do not (Snelgrove 2017,
    High-resolution multi-scale neural texture synthesis).

    Attributes:
        identity: name and sha256 of the weights; style targets made with another identity do not fit.
        layers: the names that can be asked for.
        filters: for each layer, how many filters its features stand for; a narrow network's tap has fewer channels.
    """

    identity: str
    layers: tuple[str, ...]
    filters: dict[str, int]

    def check_layers(self, wanted: Iterable[str]) -> None:
        """Raise UserError where a layer is asked for that this network lacks."""
        for layer in wanted:
            if split_octave(layer)[0] not in (PICTURE, *self.layers):
                offered = ", ".join([PICTURE, *self.layers])
                raise UserError(f"{self.identity.split('@')[0]} has no layer {layer!r}; it has {offered}")

    def forward(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features (N, C, H, W)} of an RGB image (N, 3, H, W) in [0, 1].

        Raises UserError where a layer is unknown or the image too small for it.
        """
        self.check_layers(wanted)
        octaves: dict[int, dict[str, str]] = {}
        for layer in wanted:
            name, times = split_octave(layer)
            octaves.setdefault(times, {})[name] = layer
        sides = [
            times * (1 if name == PICTURE else self.least_side(name)) for times in octaves for name in octaves[times]
        ]
        least = max(sides, default=1)
        if min(image.shape[2:]) < least:
            raise UserError(
                f"a picture of {image.shape[3]}×{image.shape[2]} px is too small for {', '.join(wanted)}; "
                f"{least} px a side are needed"
            )
        features: dict[str, Tensor] = {}
        for times, names in octaves.items():
            smaller = image if times == 1 else F.avg_pool2d(image, times)
            tapped = [name for name in names if name != PICTURE]
            found = {PICTURE: smaller} | (self.taps(smaller, tapped) if tapped else {})
            features |= {layer: found[name] for name, layer in names.items()}
        return features

    def least_side(self, layer: str) -> int:
        """Return how many pixels a side a picture must have for a layer: each of a VGG's blocks halves it."""
        return 2 ** (int(layer[4]) - 1)

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features (N, C, H, W)} of layers of the image itself, which is large enough for them."""
        raise NotImplementedError

    def metric(self, layer: str) -> Tensor | None:
        """Return the matrix (C, C) whose products with a layer's features are to be compared; None for the identity."""
        return None

    def estimates(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: one map for each of the filters that the features stand for}."""
        return self(image, wanted)

    @torch.no_grad()
    def mean_activations(self, images: Iterable[Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return each filter's mean activation, after rectification, over images of shape (1, 3, H, W).

        Dividing a layer by these factors normalises it as Gatys et al. (CVPR 2016, section 2) do: the network is
        positively homogeneous, so rescaling the weights and rescaling the features are the same thing.
        """
        self.check_layers(wanted)
        sums: dict[str, Tensor] = {}
        count: dict[str, int] = {}
        for image in images:
            for layer, features in self.estimates(image, wanted).items():
                rectified = F.relu(features).double()
                sums[layer] = sums.get(layer, 0) + rectified.sum(dim=(0, 2, 3))
                count[layer] = count.get(layer, 0) + rectified[:, 0].numel()
        return {layer: (total / count[layer]).float() for layer, total in sums.items()}


def floored(means: Tensor) -> Tensor:
    """Return a layer's mean activations (C,) with none below `ACTIVATION_FLOOR` of their mean."""
    return means.clamp_min(ACTIVATION_FLOOR * float(means.mean()) + 1e-12)


class FrozenConvolution(torch.autograd.Function):
    """A 3×3 convolution with zero padding whose weights need no gradient.

    Its input's gradient is a convolution with the weights turned round, which processors run a sixth faster than what
    autograd would run.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, turned: Tensor) -> Tensor:
        """Return (N, D, H, W) of (N, C, H, W), weights (D, C, 3, 3), bias (D,) and turned weights (C, D, 3, 3)."""
        ctx.save_for_backward(turned)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient (N, C, H, W)."""
        (turned,), (gradient,) = ctx.saved_tensors, gradients
        return F.conv2d(gradient, turned.to(gradient.dtype), padding=1), None, None, None


class Convolution(nn.Conv2d):
    """A 3×3 convolution with zero padding, faster once `freeze` has been called."""

    turned: Tensor | None

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1)
        self.register_buffer("turned", None, persistent=False)

    def freeze(self) -> None:
        """Keep the weights turned round, for the input's gradient, beside those that are fixed from now on."""
        turned = self.weight.detach().flip(2, 3).transpose(0, 1)
        self.turned = turned.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D, H, W) of (N, C, H, W)."""
        if self.turned is None:
            return super().forward(x)
        return FrozenConvolution.apply(x, self.weight, self.bias, self.turned)


class LowRankConvolution(nn.Module):
    """A 3×3 convolution of low rank: 1×1 to ``reduced`` channels, 3×3 to ``rank`` channels, 1×1 to ``width`` channels.

    Those of a trained VGG are close to such ones at a fifth of the cost (Zhang et al. 2015, Accelerating very deep
    convolutional networks for classification and detection). Where ``reduced`` is ``channels``, nothing is reduced.
    """

    def __init__(self, channels: int, reduced: int, rank: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Identity() if reduced == channels else nn.Conv2d(channels, reduced, 1, bias=False)
        self.convolution = Convolution(reduced, rank)
        self.expand = nn.Conv2d(rank, width, 1)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Return reduced, rank and width."""
        return self.convolution.in_channels, self.convolution.out_channels, self.expand.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H, W) of (N, C, H, W)."""
        found: Tensor = self.expand(self.convolution(self.reduce(x)))
        return found


class VGG(LossNetwork):
    """A stack of 3×3 convolutions with zero padding, a rectification after each and pooling between blocks.

    ``widths`` gives the channels of every convolution, block by block; ``preprocess`` is a 1×1 convolution from RGB in
    [0, 1] to what the weights were trained on.
    """

    def __init__(self, widths: Widths, pooling: str = "max", identity: str = "vgg") -> None:
        super().__init__()
        if pooling not in ("max", "average"):
            raise UserError(f"pooling {pooling!r} is unknown; use 'max' or 'average'")
        self.identity = identity + (":average" if pooling == "average" else "")
        self.pooling = pooling
        self.preprocess = nn.Conv2d(3, 3, 1)
        self.convolutions = nn.ModuleDict()
        channels, flat = 3, list[int]()
        for block, block_widths in enumerate(widths, start=1):
            for index, width in enumerate(block_widths, start=1):
                name = f"{block}_{index}"
                if isinstance(width, int):
                    self.convolutions[name] = Convolution(channels, width)
                    channels = width
                else:
                    self.convolutions[name] = LowRankConvolution(channels, *width)
                    channels = width[-1]
                flat.append(channels)
        self.filters = {
            kind + name: width for name, width in zip(self.convolutions, flat, strict=True) for kind in ("conv", "relu")
        }
        self.layers = tuple(self.filters)

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features} for the layers wanted."""
        missing = set(wanted)
        features: dict[str, Tensor] = {}
        x = self.preprocess(image)
        names = list(self.convolutions)
        for name, following in zip(names, [*names[1:], ""], strict=True):
            x = self.convolutions[name](x)
            if "conv" + name in missing:
                features["conv" + name] = x
            pooled = following[:1] != name[0]
            # Rectifying and taking the largest commute: after pooling there is a quarter to rectify.
            late = pooled and self.pooling == "max" and not {"conv" + name, "relu" + name} & missing
            if not late:
                x = F.relu(x) if "conv" + name in missing else F.relu_(x)  # its tap keeps its negative values
            if "relu" + name in missing:
                features["relu" + name] = x
            missing -= {"conv" + name, "relu" + name}
            if not missing:
                break
            if pooled:
                x = F.max_pool2d(x, 2) if self.pooling == "max" else F.avg_pool2d(x, 2)
                x = F.relu_(x) if late else x
        return features


class AlexNet(LossNetwork):
    """Five convolutions with a rectification after each and pooling before the second and third (Krizhevsky 2014).

    Layers are ``conv1`` to ``conv5`` and ``relu1`` to ``relu5``. ``preprocess`` is as in `VGG`.
    """

    # Channels in and out, kernel, stride, padding; and pixels a side that a picture must have.
    CONVOLUTIONS = (
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    )
    LEAST_SIDES = (7, 15, 31, 31, 31)
    POOLED = (2, 3)  # convolutions whose input is pooled, 3×3 with a stride of 2

    def __init__(self, pooling: str = "max", identity: str = "alexnet") -> None:
        super().__init__()
        self.identity = identity + (":average" if pooling == "average" else "")
        self.pool = F.max_pool2d if pooling == "max" else F.avg_pool2d
        self.preprocess = nn.Conv2d(3, 3, 1)
        self.convolutions = nn.ModuleDict(
            {str(number): nn.Conv2d(*sizes) for number, sizes in enumerate(self.CONVOLUTIONS, start=1)}
        )
        self.filters = {
            f"{kind}{number}": sizes[1]
            for number, sizes in enumerate(self.CONVOLUTIONS, start=1)
            for kind in ("conv", "relu")
        }
        self.layers = tuple(self.filters)

    def least_side(self, layer: str) -> int:
        """Return how many pixels a side a picture must have for a layer."""
        return self.LEAST_SIDES[int(layer[4]) - 1]

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features} for the layers wanted."""
        features, x = {}, self.preprocess(image)
        for number, convolution in enumerate(self.convolutions.values(), start=1):
            features[f"conv{number}"] = convolution(self.pool(x, 3, 2) if number in self.POOLED else x)
            x = features[f"relu{number}"] = F.relu(features[f"conv{number}"])
            if features.keys() >= set(wanted):
                break
        return {layer: features[layer] for layer in wanted}


class SlimVGG(LossNetwork):
    """A narrow VGG whose features s estimate a wide VGG's by 1×1 heads, T ≈ H s, at the layers that have a head.

    Content and Gram distances between two estimates are quadratic forms in s: ``‖H s‖ = ‖R s‖`` and
    ``G(H s) = H G(s) Hᵀ`` is as far from another as ``R G(s) R``, with ``R = (HᵀH)^½``. So a tap gives s itself, dozens
    of channels instead of hundreds, and `metric` gives R: exactly the distances in the wide network's channels.
    """

    def __init__(self, widths: Widths, heads: Mapping[str, int], identity: str = "slim") -> None:
        super().__init__()
        self.trunk = VGG(widths, "max", identity)
        self.identity = self.trunk.identity
        self.layers = tuple(heads)
        self.trunk.check_layers(self.layers)
        self.filters = dict(heads)
        self.heads = nn.ModuleDict(
            {layer: nn.Conv2d(self.trunk.filters[layer], c, 1, bias=False) for layer, c in heads.items()}
        )
        for layer in heads:
            self.register_buffer("metric_" + layer, None, persistent=False)

    def estimates(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: estimate of the wide network's features}."""
        return {layer: self.heads[layer](s) for layer, s in self(image, wanted).items()}

    def set_metrics(self) -> None:
        """Compute every layer's metric from its head, whose weights are fixed from now on."""
        for layer, head in self.heads.items():
            basis = head.state_dict()["weight"].flatten(1).double()
            energy, axes = torch.linalg.eigh(basis.T @ basis)
            # The symmetric root is unique, so Gram matrices made on one machine fit on every other.
            root = (axes * energy.clamp_min(0).sqrt()) @ axes.T
            self.register_buffer("metric_" + layer, root.float(), persistent=False)

    def metric(self, layer: str) -> Tensor | None:
        """Return the matrix R (C, C), None for the picture itself; `set_metrics` must have been called."""
        if split_octave(layer)[0] == PICTURE:
            return None
        root = self.get_buffer("metric_" + split_octave(layer)[0])
        assert root is not None
        return root

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: the narrow network's own features}."""
        return self.trunk.taps(image, wanted)


class MergedLossNetwork(LossNetwork):
    """Take each layer from the first network that offers it there: ``parts`` maps networks to their layers."""

    def __init__(self, parts: Sequence[tuple[VGG, Sequence[str]]]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network for network, _ in parts)
        self.source = {layer: index for index, (_, layers) in reversed(list(enumerate(parts))) for layer in layers}
        for network, layers in parts:
            network.check_layers(layers)
        self.layers = tuple(sorted(self.source, key=lambda layer: (layer[4:], layer)))
        self.filters = {layer: parts[self.source[layer]][0].filters[layer] for layer in self.layers}
        self.identity = "+".join(network.identity for network, _ in parts)

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features} for the layers wanted."""
        features: dict[str, Tensor] = {}
        for index, network in enumerate(self.networks):
            own = [layer for layer in wanted if self.source[layer] == index]
            if own:
                features |= network(image, own)
        return features


class NormalisedLossNetwork(LossNetwork):
    """Divide each filter by its mean activation over photographs (Gatys et al. 2016): α/β then means what they mean."""

    def __init__(self, network: LossNetwork, factors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network = network
        self.identity = network.identity + ":normalised"
        self.layers = tuple(layer for layer in network.layers if "relu" + layer[4:] in factors)
        self.filters = network.filters
        for layer, factor in factors.items():
            self.register_buffer("mean_" + layer, floored(factor).reshape(1, -1, 1, 1))

    def least_side(self, layer: str) -> int:
        """Return how many pixels a side a picture must have for a layer."""
        return self.network.least_side(layer)

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features} for the layers wanted."""
        return {k: f / self.get_buffer("mean_relu" + k[4:]) for k, f in self.network.taps(image, wanted).items()}


def multiplies_bfloat16(device_type: str) -> bool:
    """Return whether a device multiplies bf16 natively: then it is about twice as fast as float32, else slower."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # torch 2.9 has no public name for it


def freeze(network: LossNetwork) -> LossNetwork:
    """Put the network in evaluation mode, in channels-last memory, without gradients for its weights."""
    network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, Convolution):
            module.freeze()
    return network
