"""Loss networks from their weights' files: torchvision's, distilled ones, others' in safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nst_fast.assets import VGG16_SLIM, cache_folder, nearest
from nst_fast.downloads import Progress, fetch, file_hash, reachable
from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.loss.loss_networks import (
    VGG,
    AlexNet,
    LossNetwork,
    MergedLossNetwork,
    NormalisedLossNetwork,
    SlimVGG,
    floored,
    freeze,
)
from nst_fast.weights import fill, read_safetensors, read_torch

VGG_WIDTHS = {
    "vgg16": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
# torchvision's IMAGENET1K_V1: where they are, and their hashes.
TORCHVISION = {
    "vgg16": (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "vgg19": (
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "sha256:dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    ),
    "alexnet": (
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "sha256:7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
}
# torchvision numbers convolutions, rectifications and pools in one sequence.
ALEXNET_POSITIONS = (0, 3, 6, 8, 10)
# torchvision's own statistics: pixels in [0, 1], RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def file_identity(name: str, path: str | Path) -> str:
    """Return ``name@sha256`` of a weights file."""
    return f"{name}@{file_hash(path)}"


def load_weights(network: VGG | AlexNet, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill a network with ``convN_M.weight|bias`` and ``preprocess.*``; UserError names the first misfit."""
    state = {
        key if key.startswith("preprocess") else "convolutions." + key.removeprefix("conv"): tensor
        for key, tensor in tensors.items()
    }
    fill(network, state, path)


def convolution_widths(tensors: Mapping[str, Tensor], path: str | Path) -> list[list[int | tuple[int, int, int]]]:
    """Return the channels of the convolutions ``convN_M``, block by block; UserError where they are none."""
    widths: list[list[int | tuple[int, int, int]]] = []
    names = {k[4:].partition(".")[0] for k in tensors if k.startswith("conv") and k.endswith(".weight")}
    for name in sorted(names):
        if name.endswith("_1"):
            widths.append([])
        if not widths:
            raise UserError(f"{path} has no conv1_1; a VGG with preprocess and convN_M tensors is needed")
        if f"conv{name}.weight" in tensors:
            widths[-1].append(channels(tensors, f"conv{name}.weight", path)[0])
        else:
            rank, reduced = channels(tensors, f"conv{name}.convolution.weight", path)
            widths[-1].append((reduced, rank, channels(tensors, f"conv{name}.expand.weight", path)[0]))
    return widths


def channels(tensors: Mapping[str, Tensor], name: str, path: str | Path) -> tuple[int, int]:
    """Return how many channels a convolution's weights give and read; UserError where they are none."""
    shape = tuple(tensors[name].shape) if name in tensors else ()
    if len(shape) != 4 or 0 in shape:
        raise UserError(f"{path} does not fit: it has shape {shape} for {name}, a convolution is needed")
    return shape[0], shape[1]


def imagenet_preprocessing() -> dict[str, Tensor]:
    """Return the 1×1 convolution from RGB in [0, 1] to what torchvision's weights were trained on."""
    std = torch.tensor(IMAGENET_STD)
    return {
        "preprocess.weight": torch.diag(1 / std)[:, :, None, None],
        "preprocess.bias": -torch.tensor(IMAGENET_MEAN) / std,
    }


def torchvision_positions(name: str) -> dict[str, int]:
    """Return {convolution: its place in torchvision's sequence} of a network, as in ``features.N.weight``."""
    if name == "alexnet":
        return {str(number): position for number, position in enumerate(ALEXNET_POSITIONS, start=1)}
    positions, position = dict[str, int](), 0
    for block, widths in enumerate(VGG_WIDTHS[name], start=1):
        for index in range(1, len(widths) + 1):
            positions[f"{block}_{index}"] = position
            position += 2
        position += 1
    return positions


def load_torchvision(name: str, path: str | Path, pooling: str = "max") -> VGG | AlexNet:
    """Return vgg16, vgg19 or alexnet with torchvision's weights, rounded to float16.

    The file is a state dict, a .pth or safetensors, with ``features.N.weight``, or safetensors with ``convN_M.weight``.
    Rounded and hashed, both are one network with one identity. Raises UserError where the file does not fit.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no weights file at {path}; give loss_network.weights=FILE with torchvision's {name}")
    tensors = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path} holds no state dict; the weights of torchvision's {name} are needed")
    network: VGG | AlexNet
    with torch.device("meta"):
        network = VGG(VGG_WIDTHS[name], pooling, name) if name in VGG_WIDTHS else AlexNet(pooling, name)
    renamed = imagenet_preprocessing()
    for convolution, position in torchvision_positions(name).items():
        for kind in ("weight", "bias"):
            own = f"conv{convolution}.{kind}"
            tensor = tensors.get(f"features.{position}.{kind}", tensors.get(own))
            renamed |= {} if tensor is None else {own: tensor}
    load_weights(network, renamed, path)
    digest = hashlib.sha256()
    for key, parameter in sorted(network.convolutions.state_dict().items()):
        rounded = parameter.half()
        if not rounded.isfinite().all():
            raise UserError(f"{path} does not fit: {key} holds numbers past float16")
        parameter.copy_(rounded)
        digest.update(rounded.numpy().tobytes())
    network.identity = network.identity.replace(name, f"{name}@{digest.hexdigest()}", 1)
    return network


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


def load_slim_vgg(path: str | Path, normalise: bool = False) -> SlimVGG:
    """Return the distilled network from a file that ``save_slim_vgg`` wrote.

    ``normalise`` divides each estimated filter by its mean activation, as the file records it.
    """
    tensors, metadata = read_safetensors(path)
    heads = {k[5:-7]: channels(tensors, k, path)[0] for k in tensors if k.startswith("head_") and k.endswith(".weight")}
    if not heads:
        raise UserError(f"{path} is no distilled loss network: it has no heads")
    widths = convolution_widths(tensors, path)
    identity = file_identity(metadata.get("name", "vgg16_slim"), path) + (":normalised" if normalise else "")
    with torch.device("meta"):
        network = SlimVGG(widths, dict(sorted(heads.items(), key=lambda h: h[0][4:])), identity)
    load_weights(network.trunk, {k: v for k, v in tensors.items() if not k.startswith(("head_", "mean_"))}, path)
    fill(network.heads, {k[5:]: t for k, t in tensors.items() if k.startswith("head_")}, path)
    if normalise:
        factors = {k[16:]: t for k, t in tensors.items() if k.startswith("mean_activation.")}
        for layer, head in network.heads.items():
            if layer not in factors or factors[layer].shape != (heads[layer],):
                raise UserError(f"{path} does not fit: {heads[layer]} mean activations of {layer} are needed")
            head.state_dict()["weight"].div_(floored(factors[layer])[:, None, None, None])
    network.set_metrics()
    return network


def kept_files(name: str) -> list[Path]:
    """Return where weights of torchvision's may be: its convolutions in our cache, the whole file in torch's own."""
    whole = Path(TORCHVISION[name][0])
    return [
        cache_folder() / "loss_networks" / f"{whole.stem}.safetensors",
        Path(torch.hub.get_dir()) / "checkpoints" / whole.name,
    ]


def is_kept(name: str) -> bool:
    """Return whether torchvision's weights of a network are on this machine."""
    return any(path.is_file() for path in kept_files(name))


def fetch_weights(name: str, progress: Progress | None = None) -> Path:
    """Return a file of torchvision's weights of a network, fetched on first use; only its convolutions are kept.

    Raises UserError where it cannot be had.
    """
    ours, torchs = kept_files(name)
    if torchs.is_file() and not ours.is_file():
        return torchs
    advice = "use loss_network=vgg16_slim, which ships with the package, or loss_network.weights=FILE"
    url, expected = TORCHVISION[name]
    return fetch(url, ours, expected, advice, progress, lambda whole: convolutions(name, whole))


def convolutions(name: str, path: Path) -> bytes:
    """Return safetensors of a network's convolutions from torchvision's file: all that it has as a loss network."""
    state = load_torchvision(name, path).convolutions.state_dict()
    return save({f"conv{key}": tensor.half() for key, tensor in state.items()}, {"source": TORCHVISION[name][0]})


def choose_loss_network(name: str, on_gpu: bool, reference: bool = False) -> tuple[str, str]:
    """Return which network ``auto`` stands for, and a warning or nothing; other names stand for themselves.

    A GPU has vgg19 where it is on this machine or can be fetched, a CPU vgg16_slim. A reference has vgg19 or vgg16 on a
    CPU too where one of them is on this machine, and vgg16_slim with a warning where none is.
    """
    if name != "auto":
        return name, ""
    kept = [real for real in ("vgg19", "vgg16") if is_kept(real)]
    if reference and kept:
        return kept[0], ""
    if on_gpu and ("vgg19" in kept or reachable(TORCHVISION["vgg19"][0])):
        return "vgg19", ""
    if reference:
        return "vgg16_slim", (
            "neither VGG-19 nor VGG-16 is on this machine: vgg16_slim, a small network, takes their place; "
            "loss_network=vgg16 fetches VGG-16 once"
        )
    return "vgg16_slim", "VGG-19 is neither cached nor to be fetched: training with vgg16_slim" if on_gpu else ""


LOSS_NETWORKS = (*TORCHVISION, "vgg16_slim", "teachers")


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
    """Return a frozen loss network by name.

    Args:
        name: `LOSS_NETWORKS` has the names; ``auto`` is resolved by `choose_loss_network`.
        weights: a file in place of the shipped or downloaded one.
        shallow: for teachers, the file whose layers come first.
        deep: for teachers, the file that has the other layers.
        pooling: max or average; vgg16_slim has learned max pooling alone.
        normalise: divide each filter by its mean activation over photographs.
        photographs: RGB (1, 3, H, W) in [0, 1], from which factors are computed where the weights record none.
        progress: of a download.

    Raises UserError where the name is unknown or a file is missing or does not fit.
    """
    if name not in LOSS_NETWORKS:
        raise UserError(f"unknown loss network {name!r}: {nearest(name, LOSS_NETWORKS)}")
    if name == "vgg16_slim":
        if pooling != "max":
            raise UserError(f"loss.pooling is {pooling}, but vgg16_slim has learned max; loss_network=vgg19 takes both")
        return freeze(load_slim_vgg(weights or VGG16_SLIM, normalise))
    network: LossNetwork
    if name in TORCHVISION:
        network = load_torchvision(name, weights or fetch_weights(name, progress), pooling)
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
