"""Train the decoders of `stylize --painting`, and write them and their encoder.

    OMP_NUM_THREADS=1 python scripts/train_decoders.py --photographs ../shared/content/train \
        --paintings ../shared/paintings --output nst_fast/assets/any_painting

The encoder is the first convolutions of vgg16_slim, its taps scaled so that an average picture's features have the
identity for covariance. Decoders learn two things at once: to give pictures back from their features, and to make of a
photograph's features, once whitened and colored as a painting's, a picture that the perceptual loss takes for the
painting's. docs/any_painting.md says what becomes of them.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from nst_fast.assets import VGG16_SLIM
from nst_fast.files import write_atomically
from nst_fast.loss.loss_networks import VGG, freeze, multiplies_bfloat16
from nst_fast.loss.perceptual_loss import BalancedLoss, gather, split_name, style_target
from nst_fast.loss.pretrained import load_slim_vgg
from nst_fast.loss.tensors import to_tensor
from nst_fast.loss.terms import pixel_weave
from nst_fast.stylizing.images import load_image, resize_short_side
from nst_fast.stylizing.whitening import FLOOR, Moments, Statistics, power

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = json.loads((ROOT / "docs" / "held_out.json").read_text())
SIZES = (192, 384)  # px, from and to: short sides of paintings
CHANNELS = (3, 32, 64, 48, 3)  # of the levels; each has half the resolution of the one before
COLOURS = 16  # px, side of the squares whose mean colours are the coarsest level
TAPPED = ("2_2", "3_3", "4_1")
# Weights beside the perceptual loss: of the mean absolute error of what is given back, and of `pixel_weave`.
GIVEN_BACK, WEAVE = 40.0, 60.0
Convolution = TypeVar("Convolution", nn.Conv2d, nn.ConvTranspose2d)
PICTURES = {".jpg", ".jpeg", ".png"}


class Encoder(nn.Module):
    """A picture (N, 3, H, W) in [0, 1] in, features of five levels out, fine to coarse.

    The finest is the picture, its values scaled, the coarsest its mean colours. The others are what the trunk's
    convolutions give before their rectification, in as few channels as they compute it in.
    """

    def __init__(self, trunk: VGG) -> None:
        super().__init__()
        self.preprocess, self.convolutions = trunk.preprocess, trunk.convolutions
        self.cores = [core_of(self.convolutions[name]) for name in TAPPED]
        self.taps = nn.ModuleList(
            nn.Conv2d(core.out_channels, count, 1) for core, count in zip(self.cores, CHANNELS[1:-1], strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        found, x = [(image - 0.5) / 0.25], self.preprocess(image)
        names = list(self.convolutions)
        for name, following in zip(names, [*names[1:], ""], strict=True):
            convolution = self.convolutions[name]
            if name in TAPPED:
                core = core_of(convolution)
                x = core(x if core is convolution else convolution.reduce(x))
                found.append(self.taps[TAPPED.index(name)](x))
                if name == TAPPED[-1]:
                    found.append(F.avg_pool2d(found[0], COLOURS))
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


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class Up(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Join(nn.Module):
    """The coarsest level and the next one, both colored, in; features of the next level out."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(conv(48, 96), nn.ReLU(), conv(96, 64), nn.ReLU(), Up())
        self.joined = nn.Sequential(conv(128, 64), nn.ReLU(), Residual(64), nothing(conv(64, 64)))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return fine + self.joined(torch.cat([self.coarse(coarse), fine], 1))


class Decoder(nn.Module):
    """The best linear guess from features nearby, which `fit` gives, and what a network adds to it."""

    def __init__(self, linear: nn.ConvTranspose2d, network: nn.Module) -> None:
        super().__init__()
        self.linear, self.network = linear, network

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.network(x)


class Painter(Decoder):
    """The last decoder: what is added to the mean colours."""

    def forward(self, x: Tensor, colours: Tensor) -> Tensor:
        return super().forward(x) + enlarged(colours)


def enlarged(colours: Tensor) -> Tensor:
    return F.interpolate(colours, scale_factor=COLOURS, mode="bilinear")


def nothing(convolution: Convolution) -> Convolution:
    """Return a convolution that gives 0 to begin with."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return convolution


def decoders() -> nn.ModuleList:
    return nn.ModuleList(
        [
            Join(),
            Decoder(
                nn.ConvTranspose2d(64, 32, 6, 2, 2),
                nn.Sequential(
                    conv(64, 64), nn.ReLU(), Residual(64), conv(64, 48), nn.ReLU(), Up(), nothing(conv(48, 32))
                ),
            ),
            Painter(
                nn.ConvTranspose2d(32, 3, 6, 2, 2),
                nn.Sequential(
                    conv(32, 32), nn.ReLU(), Residual(32), nn.ReLU(), nothing(nn.ConvTranspose2d(32, 3, 6, 2, 2))
                ),
            ),
        ]
    )


@torch.no_grad()
def fit(decoder: Decoder, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set a decoder's linear part by least squares over pairs of features (1, C, h, w) and what is wanted of them."""
    products: Tensor | float = 0.0
    for given, wanted in pairs:
        patches = F.unfold(given, 3, padding=1)[0]
        phases = F.pixel_unshuffle(wanted, 2)
        rows = torch.cat([patches, torch.ones_like(patches[:1]), phases.flatten(2)[0]])
        products = products + rows @ rows.T
    assert isinstance(products, Tensor)
    products, seen = products.double(), patches.shape[0] + 1
    ridge = 1e-4 * products[:seen, :seen].diagonal().mean() * torch.eye(seen)
    weight = torch.linalg.solve(products[:seen, :seen] + ridge, products[:seen, seen:]).float()
    kernel = weight[:-1].unflatten(0, (-1, 3, 3))  # (C, 3, 3, outputs)
    # Position i + d of what is given adds to position 2 i + p of what is wanted: tap 2 - 2 d + p.
    kernel = kernel.unflatten(3, (-1, 2, 2)).flip(1, 2).permute(0, 3, 1, 4, 2, 5)
    decoder.linear.weight.copy_(kernel.reshape(decoder.linear.weight.shape))
    decoder.linear.bias.copy_(weight[-1].unflatten(0, (-1, 4)).mean(1))


def statistics(features: Tensor) -> list[Statistics]:
    """Return the statistics of every picture's features (N, C, H, W)."""
    made = []
    for picture in features.detach().float().numpy():
        moments = Moments(len(picture))
        moments.add(np.ascontiguousarray(picture))
        made.append(moments.statistics())
    return made


class Whitening(torch.autograd.Function):
    """E max(Λ, FLOOR)^-½ Eᵀ of covariances E Λ Eᵀ (N, C, C), its gradient by divided differences.

    Daleckii and Krein: the derivative of E f(Λ) Eᵀ is E (L ∘ Eᵀ dΣ E) Eᵀ, L the divided differences of f. It exists
    where two eigenvalues are the same, which that of their eigenvectors does not.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor) -> Tensor:
        variances, directions = torch.linalg.eigh(covariance)
        ctx.save_for_backward(variances, directions)
        return (directions * variances.clamp_min(FLOOR)[:, None] ** -0.5) @ directions.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        variances, directions = ctx.saved_tensors
        powers = variances.clamp_min(FLOOR) ** -0.5
        apart = variances[:, :, None] - variances[:, None]
        slope = torch.where(variances > FLOOR, -0.5 * powers**3, 0.0)
        close = apart.abs() < 1e-9 * variances.amax(1)[:, None, None]
        between = (powers[:, :, None] - powers[:, None]) / torch.where(close, 1.0, apart)
        between = torch.where(close, (slope[:, :, None] + slope[:, None]) / 2, between)
        return directions @ (between * (directions.mT @ gradients[0] @ directions)) @ directions.mT


def transform(features: Tensor, styles: Sequence[Statistics]) -> Tensor:
    """Return features (N, C, H, W) whitened and colored picture by picture."""
    with torch.autocast("cpu", enabled=False):
        flat = features.float().flatten(2)
        centred = flat - flat.mean(2, keepdim=True)
        white = Whitening.apply((centred @ centred.mT / flat.shape[2]).double())
        color = torch.from_numpy(np.stack([power(style.covariance, 0.5) for style in styles]))
        means = torch.from_numpy(np.stack([style.mean for style in styles])).float()
        colored = (color @ white).float() @ centred + means[:, :, None]
        return colored.unflatten(2, features.shape[2:]).contiguous(memory_format=torch.channels_last)


def decode(network: nn.ModuleList, found: Sequence[Tensor], styles: Sequence[Sequence[Statistics]]) -> Tensor:
    """Return pictures (N, 3, H, W) in [0, 1], not clipped, of levels that get statistics, fine to coarse, of others."""
    levels = list(zip(*styles, strict=True))  # each of every picture
    x = network[0](transform(found[3], levels[3]), transform(found[2], levels[2]))
    x = network[1](transform(x, levels[2]))
    x = network[2](transform(x, levels[1]), transform(found[4], levels[4]))
    return 0.5 + 0.25 * transform(x, levels[0])


class Encoding(nn.Module):
    """The levels of a picture, uint8 (N, 3, H, W)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.encoder(image.float() / 255)


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
    pixels = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    graphs: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "encoder": (Encoding(encoder), (pixels,)),
        "decoder_4": (network[0], (torch.zeros(1, 48, 8, 10), torch.zeros(1, 64, 16, 20))),
        "decoder_3": (network[1], (torch.zeros(1, 64, 16, 20),)),
        "decoder_2": (network[2], (torch.zeros(1, 32, 32, 48), torch.zeros(1, 3, 4, 6))),
    }
    for name, (module, example) in graphs.items():
        buffer = io.BytesIO()
        inputs = [f"input_{i}" for i in range(len(example))]
        outputs = [f"output_{i}" for i in range(5 if name == "encoder" else 1)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.to(memory_format=torch.contiguous_format).eval(),
                example,
                buffer,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes={n: {2: f"H_{n}", 3: f"W_{n}"} for n in inputs + outputs},
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
def prepare(encoder: Encoder, network: nn.ModuleList, images: Sequence[Tensor]) -> None:
    """Make the taps these pictures' strongest directions, together of mean 0 and variance 1, and fit the decoders."""
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
    found = [encoder(image[..., : image.shape[2] // 16 * 16, : image.shape[3] // 16 * 16]) for image in images]
    fit(network[1], [(levels[2], levels[1]) for levels in found])
    fit(network[2], [(levels[1], levels[0] - enlarged(levels[4])) for levels in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", default=[str(ROOT / "../shared/content/train")])
    parser.add_argument("--paintings", nargs="+", default=[str(ROOT / "../shared/paintings")])
    parser.add_argument("--output", type=Path, default=ROOT / "nst_fast/assets/any_painting")
    parser.add_argument("--run", type=Path, default=ROOT / "runs/decoders")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--style-weight", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--init", type=Path, help="go on from the last.pt of a run")
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    options.run.mkdir(parents=True, exist_ok=True)
    photographs, paintings = pictures(options.photographs), pictures(options.paintings)
    loss_network = load_slim_vgg(VGG16_SLIM)
    freeze(loss_network)
    loss = BalancedLoss(
        loss_network,
        {"relu2_2": 0.5, "relu3_3": 0.5},
        {"relu1_2": 0.1, "relu2_2": 0.3, "relu3_3": 0.6, "relu4_1": 0.3},
        1.0,
        options.style_weight,
        4.0,
    )
    encoder = Encoder(load_slim_vgg(VGG16_SLIM).trunk).requires_grad_(False).to(memory_format=torch.channels_last)

    @functools.cache
    def painted(path: Path) -> tuple[list[Statistics], dict[str, Tensor]]:
        painting, size = load_image(path), round(math.exp(rng.uniform(*map(math.log, SIZES))))
        image = to_tensor(resize_short_side(painting, size))
        layers = {name: split_name(name)[1] for name in loss.style_target_names}
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
                found, seen = encoder(image), loss_network(image, list(dict.fromkeys(layers.values())))
            targets = {n: style_target(loss_network, n, seen[layer].float()) for n, layer in layers.items()}
        return [statistics(features)[0] for features in found], targets

    rng.shuffle(paintings)
    print(f"{len(photographs)} photographs, {len(paintings)} paintings", flush=True)
    network = decoders().to(memory_format=torch.channels_last)
    if options.init:
        began = torch.load(options.init, weights_only=True)
        encoder.load_state_dict(began["encoder"])
        network.load_state_dict(began["decoders"])
    else:
        mixture = [*rng.sample(photographs, 40), *rng.sample(paintings, 40)]
        prepare(encoder, network, [to_tensor(resize_short_side(load_image(path), 160)) for path in mixture])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    shown: dict[str, float] = {}
    for step in range(options.steps):
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * step / options.steps)) / 2
        optimizer.param_groups[0]["lr"] = options.rate * min(1, (step + 1) / 50) * falling
        given = [rng.choice(photographs) for _ in range(options.batch - 1)]
        given.append(rng.choice(paintings if rng.random() < 0.5 else photographs))
        image = torch.cat([crop(p, options.size, rng) for p in given]).contiguous(memory_format=torch.channels_last)
        known = paintings[: 8 + step // 4]  # their statistics are costly, and kept
        chosen = [painted(rng.choice(known)) for _ in given[:-1]]
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
            with torch.no_grad():
                found = encoder(image)
                contents = loss.content_targets(image[:-1])
            own = [statistics(level[-1:])[0] for level in found]
            made = decode(network, found, [*(styles for styles, _ in chosen), own])
            terms = loss(made[:-1], contents, gather([targets for _, targets in chosen], torch.arange(len(chosen))))
            given_back = (made[-1] - image[-1]).abs().mean()
            out = (made - made.clamp(0, 1)).square().mean()
            weave = pixel_weave(made[:-1]).mean()
            total = terms["total"] + GIVEN_BACK * given_back + WEAVE * weave + 10 * out
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        if norm.isfinite():
            optimizer.step()
        terms |= {"given_back": given_back, "weave": weave, "out": out, "norm": norm, "sum": total}
        for name, value in terms.items():
            shown[name] = shown.get(name, float(value.detach())) * 0.95 + float(value.detach()) * 0.05
        if (step + 1) % 20 == 0:
            told = " ".join(f"{k} {v:.4f}" for k, v in shown.items())
            print(f"{step + 1} {time.process_time() / 60:.1f} minutes of the processor, {told}", flush=True)
            torch.save({"encoder": encoder.state_dict(), "decoders": network.state_dict()}, options.run / "last.pt")
    torch.save({"encoder": encoder.state_dict(), "decoders": network.state_dict()}, options.run / "last.pt")
    export(encoder, network, options.output)


if __name__ == "__main__":
    main()
