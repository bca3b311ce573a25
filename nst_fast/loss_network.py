"""Frozen loss networks: image in, features of named layers out.

A layer is named as in VGG-19: ``conv3_1`` is its first convolution at a quarter of the resolution before the
rectification, ``relu3_1`` the same after it. ``rgb`` is the picture itself. ``relu3_1@4`` is relu3_1 of the picture at
a quarter of its size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from nst_fast.assets import VGG19_SLIM, cache_folder, nearest
from nst_fast.downloads import Progress, fetch, file_hash, reachable
from nst_fast.errors import UserError
from nst_fast.images import write_atomically
from nst_fast.weights import fill, read_safetensors, read_torch

VGG19_WIDTHS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
# torchvision's own statistics: pixels in [0, 1], RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Widths = Sequence[Sequence[int]]
OCTAVES = (2, 4, 8)  # how many times smaller the picture may be made for a layer
PICTURE = "rgb"  # the layer that every network has


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
        # Blocks halve.
        sides = [
            times * 2 ** (0 if name == PICTURE else int(name[4]) - 1) for times in octaves for name in octaves[times]
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
        means = {layer: (total / count[layer]).float() for layer, total in sums.items()}
        # A filter that photographs leave dead must not explode on a painting.
        return {layer: mean.clamp_min(1e-3 * float(mean.mean()) + 1e-12) for layer, mean in means.items()}


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
        channels = 3
        for block, block_widths in enumerate(widths, start=1):
            for index, width in enumerate(block_widths, start=1):
                self.convolutions[f"{block}_{index}"] = Convolution(channels, width)
                channels = width
        flat = [width for block_widths in widths for width in block_widths]
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


class SlimVGG(LossNetwork):
    """A narrow VGG whose features s estimate a wide VGG's by 1×1 heads, T ≈ H s, at the layers that have a head.

    Content and Gram distances between two estimates are quadratic forms in s: ``‖H s‖ = ‖R s‖`` and
    ``G(H s) = H G(s) Hᵀ`` is as far from another as ``R G(s) R``, with ``R = (HᵀH)^½``. So a tap gives s itself, dozens
    of channels instead of hundreds, and `metric` gives R: exactly the distances in the wide network's channels.
    """

    def __init__(self, widths: Widths, heads: Mapping[str, int], pooling: str = "max", identity: str = "slim") -> None:
        super().__init__()
        self.trunk = VGG(widths, pooling, identity)
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

    def __init__(self, network: VGG | MergedLossNetwork, factors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network = network
        self.identity = network.identity + ":normalised"
        self.layers = tuple(layer for layer in network.layers if "relu" + layer[4:] in factors)
        self.filters = network.filters
        for layer, factor in factors.items():
            self.register_buffer("mean_" + layer, factor.reshape(1, -1, 1, 1))

    def taps(self, image: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return {layer: features} for the layers wanted."""
        return {k: f / self.get_buffer("mean_relu" + k[4:]) for k, f in self.network.taps(image, wanted).items()}


def file_identity(name: str, path: str | Path) -> str:
    """Return ``name@sha256`` of a weights file."""
    return f"{name}@{file_hash(path)}"


def multiplies_bfloat16(device_type: str) -> bool:
    """Return whether a device multiplies bf16 natively: then it is about twice as fast as float32, else slower."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()  # torch 2.9 has no public name for it


def freeze(network: LossNetwork) -> LossNetwork:
    """Put the network in evaluation mode, in channels-last memory, without gradients for its weights."""
    network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, Convolution):
            module.freeze()
    return network


def load_weights(network: VGG, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill a VGG with ``convN_M.weight|bias`` and ``preprocess.*``; UserError names the first misfit."""
    state = {
        key if key.startswith("preprocess") else "convolutions." + key.removeprefix("conv"): tensor
        for key, tensor in tensors.items()
    }
    fill(network, state, path)


def convolution_widths(tensors: Mapping[str, Tensor], path: str | Path) -> list[list[int]]:
    """Return the channels of the convolutions ``convN_M``, block by block; UserError where they are none."""
    widths: list[list[int]] = []
    for name in sorted(k[4:-7] for k in tensors if k.startswith("conv") and k.endswith(".weight")):
        if name.endswith("_1"):
            widths.append([])
        if not widths:
            raise UserError(f"{path} has no conv1_1; a VGG with preprocess and convN_M tensors is needed")
        widths[-1].append(channels(tensors, f"conv{name}.weight", path))
    return widths


def channels(tensors: Mapping[str, Tensor], name: str, path: str | Path) -> int:
    """Return how many channels a convolution's weights have; UserError where they are none."""
    shape = tuple(tensors[name].shape)
    if len(shape) != 4 or 0 in shape:
        raise UserError(f"{path} does not fit: it has shape {shape} for {name}, a convolution is needed")
    return shape[0]


def load_torchvision_vgg19(path: str | Path, pooling: str = "max") -> VGG:
    """Return VGG-19 with weights in torchvision's format (``features.N.weight``), a state dict or safetensors."""
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no weights file at {path}; give loss_network.weights=FILE in torchvision's VGG-19 format")
    tensors = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path} holds no state dict; VGG-19 weights in torchvision's format are needed")
    with torch.device("meta"):
        network = VGG(VGG19_WIDTHS, pooling, file_identity("vgg19", path))
    # torchvision numbers convolutions, rectifications and pools in one sequence.
    position, renamed = 0, {}
    for block, widths in enumerate(VGG19_WIDTHS, start=1):
        for index in range(1, len(widths) + 1):
            for kind in ("weight", "bias"):
                key = f"features.{position}.{kind}"
                if key in tensors:
                    renamed[f"conv{block}_{index}.{kind}"] = tensors[key]
            position += 2
        position += 1
    load_weights(network, renamed | imagenet_preprocessing(), path)
    return network


def imagenet_preprocessing() -> dict[str, Tensor]:
    """Return the 1×1 convolution from RGB in [0, 1] to what torchvision's weights were trained on."""
    std = torch.tensor(IMAGENET_STD)
    return {
        "preprocess.weight": torch.diag(1 / std)[:, :, None, None],
        "preprocess.bias": -torch.tensor(IMAGENET_MEAN) / std,
    }


def load_converted_vgg(path: str | Path, pooling: str = "max") -> VGG:
    """Return a VGG of any widths from safetensors with ``convN_M`` (the teachers' format).

    Without ``preprocess`` they are torchvision's weights.
    """
    tensors = imagenet_preprocessing() | read_safetensors(path)[0]
    widths = convolution_widths(tensors, path)
    with torch.device("meta"):
        network = VGG(widths, pooling, file_identity(Path(path).stem, path))
    load_weights(network, tensors, path)
    return network


def save_slim_vgg(
    network: SlimVGG, path: str | Path, metadata: Mapping[str, Any], factors: Mapping[str, Tensor]
) -> None:
    """Write trunk, heads and mean activations of the estimates as float16 safetensors that describe themselves."""
    tensors = {"preprocess." + k: v for k, v in network.trunk.preprocess.state_dict().items()}
    tensors |= {"conv" + k: v for k, v in network.trunk.convolutions.state_dict().items()}
    tensors |= {"head_" + k: v for k, v in network.heads.state_dict().items()}
    tensors |= {"mean_activation." + k: v for k, v in factors.items()}
    described = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    write_atomically(Path(path), save({k: v.detach().half().contiguous() for k, v in tensors.items()}, described))


def load_slim_vgg(
    path: str | Path,
    pooling: str = "max",
    normalise: bool = False,
    photographs: Iterable[Tensor] = (),
) -> SlimVGG:
    """Return the distilled network from a file that ``save_slim_vgg`` wrote.

    ``normalise`` divides each estimated filter by its mean activation, as recorded for max pooling and computed from
    photographs for average pooling.
    """
    tensors, metadata = read_safetensors(path)
    heads = {k[5:-7]: channels(tensors, k, path) for k in tensors if k.startswith("head_") and k.endswith(".weight")}
    if not heads:
        raise UserError(f"{path} is no distilled loss network: it has no heads")
    widths = convolution_widths(tensors, path)
    identity = file_identity(metadata.get("name", "vgg19_slim"), path) + (":normalised" if normalise else "")
    with torch.device("meta"):
        network = SlimVGG(widths, dict(sorted(heads.items(), key=lambda h: h[0][4:])), pooling, identity)
    load_weights(network.trunk, {k: v for k, v in tensors.items() if not k.startswith(("head_", "mean_"))}, path)
    fill(network.heads, {k[5:]: t for k, t in tensors.items() if k.startswith("head_")}, path)
    if normalise:
        if pooling == "average":
            plain = load_slim_vgg(path, pooling)
            factors = mean_activation_factors(plain.eval().requires_grad_(False), photographs)
        else:
            factors = {k[16:]: t for k, t in tensors.items() if k.startswith("mean_activation.")}
            factors = {layer: factor.clamp_min(1e-3 * float(factor.mean())) for layer, factor in factors.items()}
        for layer, head in network.heads.items():
            if layer not in factors or factors[layer].shape != (heads[layer],):
                raise UserError(f"{path} does not fit: {heads[layer]} mean activations of {layer} are needed")
            head.state_dict()["weight"].div_(factors[layer][:, None, None, None])
    network.set_metrics()
    return network


# torchvision's IMAGENET1K_V1
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
VGG19_HASH = "sha256:dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"


def vgg19_file() -> Path:
    """Return where torch keeps torchvision's VGG-19 once it is downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG19_URL).name


def fetch_vgg19(progress: Progress | None = None) -> Path:
    """Return torchvision's VGG-19 weights file, fetched on first use; raises UserError where it cannot be had."""
    advice = "use loss_network=vgg19_slim, which ships with the package, or loss_network.weights=FILE"
    return fetch(VGG19_URL, vgg19_file(), VGG19_HASH, advice, progress)


def choose_loss_network(name: str, on_gpu: bool) -> tuple[str, str]:
    """Return which network ``auto`` stands for, and a warning or nothing; other names stand for themselves."""
    if name != "auto":
        return name, ""
    if not on_gpu:
        return "vgg19_slim", ""
    if vgg19_file().exists() or reachable(VGG19_URL):
        return "vgg19", ""
    return "vgg19_slim", "VGG-19 is neither cached nor to be fetched: training with vgg19_slim"


LOSS_NETWORKS = ("vgg19", "vgg19_slim", "teachers")


def create_loss_network(
    name: str,
    *,
    weights: str | Path | None = None,
    shallow: str | Path | None = None,
    deep: str | Path | None = None,
    pooling: str = "max",
    normalise: bool = False,
    photographs: Iterable[Tensor] = (),
    progress: Progress | None = None,
) -> LossNetwork:
    """Return a frozen loss network by name: vgg19, vgg19_slim or teachers.

    Args:
        name: `LOSS_NETWORKS` has the names; ``auto`` is resolved by `choose_loss_network`.
        weights: a file in place of the shipped or downloaded one.
        shallow: for teachers, the file whose layers come first.
        deep: for teachers, the file that has the other layers.
        pooling: max or average.
        normalise: divide each filter by its mean activation over photographs.
        photographs: RGB (1, 3, H, W) in [0, 1], from which factors are computed where the weights record none.
        progress: of the download of VGG-19.

    Raises UserError where the name is unknown or a file is missing or does not fit.
    """
    if name not in LOSS_NETWORKS:
        raise UserError(f"unknown loss network {name!r}: {nearest(name, LOSS_NETWORKS)}")
    if name == "vgg19_slim":
        return freeze(load_slim_vgg(weights or VGG19_SLIM, pooling, normalise, photographs=photographs))
    network: VGG | MergedLossNetwork
    if name == "vgg19":
        network = load_torchvision_vgg19(weights or fetch_vgg19(progress), pooling)
    else:
        if shallow is None or deep is None:
            raise UserError("loss_network=teachers needs loss_network.shallow=FILE and loss_network.deep=FILE")
        first, second = load_converted_vgg(shallow, pooling), load_converted_vgg(deep, pooling)
        network = MergedLossNetwork(
            [(first, first.layers), (second, [layer for layer in second.layers if layer not in first.layers])]
        )
    if normalise:
        return freeze(NormalisedLossNetwork(network, mean_activation_factors(network, photographs)))
    return freeze(network)


def mean_activation_factors(network: LossNetwork, photographs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return a network's mean activations, computed once and kept beside the downloads under its identity."""
    digest = hashlib.sha256(network.identity.encode()).hexdigest()[:16]
    path = cache_folder() / "mean_activations" / f"{digest}.safetensors"
    if path.exists():
        return read_safetensors(path)[0]
    factors = network.mean_activations(photographs, [layer for layer in network.layers if layer.startswith("relu")])
    if not factors:
        raise UserError("normalising a loss network needs photographs")
    write_atomically(path, save({k: v.contiguous() for k, v in factors.items()}))
    return factors
