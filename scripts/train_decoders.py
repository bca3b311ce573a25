"""Train the decoders of `stylize --painting`, and write them and their encoder.

    python scripts/train_decoders.py

The encoder is the first convolutions of vgg16_slim, its taps scaled so that an average picture's features have the
identity for covariance. Each decoder learns to give photographs and paintings back from the features of one level (Li
et al. 2017, Universal style transfer via feature transforms, equation 1). No style takes part.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from nst_fast.assets import VGG16_SLIM
from nst_fast.files import write_atomically
from nst_fast.loss.loss_networks import VGG, freeze, multiplies_bfloat16
from nst_fast.loss.pretrained import load_slim_vgg
from nst_fast.loss.tensors import to_tensor
from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.stylizing.whitening import Moments

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = json.loads((ROOT / "docs" / "held_out.json").read_text())
CHANNELS = (32, 64)  # of levels 1 and 2, which have a half and a quarter of a picture's height and width
TAPPED = ("2_2", "3_3")
LAYERS = ("relu1_2", "relu2_2", "relu3_3")  # of vgg16_slim, whose features a picture that is given back has to have
PICTURES = {".jpg", ".jpeg", ".png"}


class Encoder(nn.Module):
    """A picture (N, 3, H, W) in [0, 1] in, features of two levels out, fine to coarse.

    They are what the trunk's convolutions give before their rectification, in as few channels as they compute it in.
    """

    def __init__(self, trunk: VGG) -> None:
        super().__init__()
        self.preprocess, self.convolutions = trunk.preprocess, trunk.convolutions
        self.cores = [core_of(self.convolutions[name]) for name in TAPPED]
        self.taps = nn.ModuleList(
            nn.Conv2d(core.out_channels, count, 1) for core, count in zip(self.cores, CHANNELS, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        found, x = list[Tensor](), self.preprocess(image)
        names = list(self.convolutions)
        for name, following in zip(names, [*names[1:], ""], strict=True):
            convolution = self.convolutions[name]
            if name in TAPPED:
                core = core_of(convolution)
                x = core(x if core is convolution else convolution.reduce(x))
                found.append(self.taps[TAPPED.index(name)](x))
                if name == TAPPED[-1]:
                    break
                x = x if core is convolution else convolution.expand(x)
            else:
                x = convolution(x)
            x = F.relu(x)
            if following[:1] != name[0]:
                x = F.max_pool2d(x, 2)
        return found


def core_of(convolution: nn.Module) -> nn.Conv2d:
    """Return a convolution, or the middle one of one of low rank."""
    core = convolution if isinstance(convolution, nn.Conv2d) else convolution.convolution
    assert isinstance(core, nn.Conv2d)
    return core


def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode="reflect")


def decoder(*stages: Sequence[int]) -> nn.Sequential:
    """Return a network from features to a picture: convolutions of so many channels, twice as large after each stage.

    Nearest neighbours enlarge: what is interpolated or transposed leaves a weave that strokes are then made of.
    """
    layers: list[nn.Module] = []
    for channels in stages:
        for pair in pairwise(channels):
            layers += [conv(*pair), nn.ReLU()]
        layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
    return nn.Sequential(*layers[:-2])


def decoders() -> nn.ModuleList:
    return nn.ModuleList([decoder((32, 48, 48), (48, 24, 3)), decoder((64, 96, 96), (96, 64, 48), (48, 24, 3))])


class Decoding(nn.Module):
    """The picture (N, 3, H, W) in [0, 1], not clipped, of features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        return 0.5 + 0.25 * self.network(features)


class Encoding(nn.Module):
    """The levels of a picture (N, 3, H, W) in [0, 255]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.encoder(image / 255)


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose weights are kept in float16, and cast when it is loaded."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and math.prod(weight.dims) > 1:
            name, values = weight.name, numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + ".half"))
            casts.append(helper.make_node("Cast", [name + ".half"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return model


def export(encoder: Encoder, network: nn.ModuleList, folder: Path) -> None:
    """Write the graphs that `AnyPainting` runs."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = torch.zeros(1, 3, 64, 96)
    graphs: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
        "encoder": (Encoding(encoder), pixels, ["level_1", "level_2"]),
        "decoder_1": (Decoding(network[0]), torch.zeros(1, 32, 32, 48), ["picture"]),
        "decoder_2": (Decoding(network[1]), torch.zeros(1, 64, 16, 24), ["picture"]),
    }
    for name, (module, example, outputs) in graphs.items():
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.to(memory_format=torch.contiguous_format).eval(),
                (example,),
                buffer,
                input_names=["input"],
                output_names=outputs,
                dynamic_axes={n: {2: f"H_{n}", 3: f"W_{n}"} for n in ["input", *outputs]},
                opset_version=18,
                dynamo=False,
            )
        model = in_half(onnx.load_from_string(buffer.getvalue()))
        onnx.checker.check_model(model)
        write_atomically(folder / f"{name}.onnx", model.SerializeToString())


def crop(path: Path, size: int, rng: random.Random) -> Tensor:
    """Return a random piece of a picture: (1, 3, size, size), perhaps mirrored, of 1 to 2 times its side before."""
    image = load_image(path)
    side = min(*image.size, round(size * rng.uniform(1, 2)))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    image = image.crop((left, top, left + side, top + side)).resize((size, size), 3)
    tensor = to_tensor(image)
    return tensor.flip(3) if rng.random() < 0.5 else tensor


def pictures(folders: Sequence[str]) -> list[Path]:
    held_out = {*HELD_OUT["paintings"], *HELD_OUT["photographs"]}
    found = [p for folder in folders for p in sorted(Path(folder).iterdir()) if p.suffix.lower() in PICTURES]
    return [p for p in found if p.name not in held_out]


@torch.no_grad()
def prepare(encoder: Encoder, images: Sequence[Tensor]) -> None:
    """Make the taps these pictures' strongest directions, together of mean 0 and variance 1."""
    for tap in encoder.taps:
        nn.init.dirac_(tap.weight)
        nn.init.zeros_(tap.bias)
    moments = [Moments(core.out_channels) for core in encoder.cores]
    hooks = [
        core.register_forward_hook(lambda _, __, x, level=level: level.add(x[0].numpy()))
        for core, level in zip(encoder.cores, moments, strict=True)
    ]
    for image in images:
        encoder(image)
    for hook in hooks:
        hook.remove()
    for tap, level in zip(encoder.taps, moments, strict=True):
        mean, covariance = level.statistics()
        variances, directions = np.linalg.eigh(covariance)
        strongest = slice(-tap.out_channels, None)
        variances, directions = variances[strongest], directions[:, strongest]
        matrix = (directions * np.maximum(variances, 1e-3 * variances.mean()) ** -0.5).T
        tap.weight.copy_(torch.from_numpy(matrix)[:, :, None, None])
        tap.bias.copy_(torch.from_numpy(-matrix @ mean))


def losses(encoder: Encoder, network: nn.ModuleList, loss_network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return what decoders lose of a picture (N, 3, H, W) in [0, 1]: shares of its variance, and of its features."""
    with torch.no_grad():
        found, wanted = encoder(image), loss_network(image, LAYERS)
    terms = {}
    for level, (features, decode) in enumerate(zip(found, network, strict=True), 1):
        made = Decoding(decode)(features).float()
        seen = loss_network(made, LAYERS)
        lost = [F.mse_loss(seen[name], wanted[name]) / wanted[name].square().mean() for name in LAYERS]
        terms[f"pixels_{level}"] = F.mse_loss(made, image) / 0.0625
        terms[f"features_{level}"] = torch.stack(lost).sum()
    return terms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", default=[str(ROOT / "../shared/content/train")])
    parser.add_argument("--paintings", nargs="+", default=[str(ROOT / "../shared/paintings")])
    parser.add_argument("--output", type=Path, default=ROOT / "nst_fast/assets/any_painting")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--size", type=int, default=160, help="px")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    photographs, paintings = pictures(options.photographs), pictures(options.paintings)
    print(f"{len(photographs)} photographs, {len(paintings)} paintings", flush=True)
    loss_network = freeze(load_slim_vgg(VGG16_SLIM))
    encoder = Encoder(load_slim_vgg(VGG16_SLIM).trunk).requires_grad_(False).to(memory_format=torch.channels_last)
    mixture = [*rng.sample(photographs, 40), *rng.sample(paintings, 40)]
    prepare(encoder, [to_tensor(resize_short_side(load_image(path), 160)) for path in mixture])
    network = decoders().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), options.rate)
    shown: dict[str, float] = {}
    for step in range(options.steps):
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * step / options.steps)) / 2
        optimizer.param_groups[0]["lr"] = options.rate * min(1, (step + 1) / 50) * falling
        given = [rng.choice(paintings if i % 4 == 0 else photographs) for i in range(options.batch)]
        image = torch.cat([crop(p, options.size, rng) for p in given]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
            terms = losses(encoder, network, loss_network, image)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        for name, value in terms.items():
            shown[name] = shown.get(name, float(value.detach())) * 0.95 + float(value.detach()) * 0.05
        if (step + 1) % 50 == 0:
            told = " ".join(f"{k} {v:.4f}" for k, v in shown.items())
            print(f"{step + 1} {time.process_time() / 60:.1f} minutes of the processor, {told}", flush=True)
    export(encoder, network, options.output)


if __name__ == "__main__":
    main()
