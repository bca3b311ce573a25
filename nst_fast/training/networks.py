"""Transformation networks: content image in, stylized image out, both RGB (N, 3, H, W) in [0, 1]."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nst_fast.assets import nearest
from nst_fast.errors import UserError
from nst_fast.stylizing.style_file import AS_PAINTED
from nst_fast.weights import fill

STRIDE = 4  # pixels a position of the body stands for, both ways


class Norm(nn.Module):
    """Instance norm whose scales and biases are the painting's, not the network's (Dumoulin et al. 2017).

    ``phases`` channels beside each other, the phases of one channel, are normalised by themselves and have one scale
    and one bias: no phase can be brighter than another over the picture, which a lattice of two pixels would be.

    Attributes:
        first: where in a painting's vector this norm's scales begin; its biases follow. The network sets it.
    """

    EPSILON = 1e-5

    def __init__(self, channels: int, phases: int = 1) -> None:
        super().__init__()
        self.channels, self.phases, self.first = channels, phases, 0

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Return the normalised x (N, phases C, H, W), for the vectors of one painting (1, V) or of N (N, V)."""
        if len(vectors) == 1:
            scale, bias = self.parameters_of(vectors[0])
            return F.instance_norm(x, weight=scale, bias=bias, eps=self.EPSILON)
        # What instance norm itself does with one scale for all pictures.
        one = x.reshape(1, -1, *x.shape[2:])
        scales, biases = (torch.cat(of_all) for of_all in zip(*map(self.parameters_of, vectors), strict=True))
        return F.batch_norm(one, None, None, scales, biases, training=True, eps=self.EPSILON).view(x.shape)

    def parameters_of(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return a painting's scales and biases (phases C,), given its vector (V,)."""
        own = vector[self.first : self.first + 2 * self.channels].view(2, self.channels)
        scale, bias = torch.stack([own] * self.phases, 2).flatten(1).unbind()
        return scale, bias

    def fold(self, vector: Tensor) -> nn.Module:
        """Return an instance norm that is equal for one painting, given its vector (V,)."""
        plain = nn.InstanceNorm2d(self.phases * self.channels, self.EPSILON, affine=True)
        plain.weight.data, plain.bias.data = self.parameters_of(vector.detach())
        return plain


class Layers(nn.Sequential):
    """Modules one after the other; those that have norms are handed the paintings' vectors."""

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:  # type: ignore[override]
        """Return what the last one makes."""
        for module in self:
            x = module(x, vectors) if isinstance(module, Norm | Residual) else module(x)
        return x


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution with reflection padding, so that borders do not darken."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, padding_mode="reflect")


class PhasePixels(nn.PixelShuffle):
    """Lay the four phases of every channel (N, 4 C, H, W) out as its pixels (N, C, 2 H, 2 W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(2)
        self.channels = channels

    def fold(self) -> nn.Module:
        """Return an equal transposed convolution: onnxruntime shares it among threads, DepthToSpace it does not."""
        channels = self.channels
        plain = nn.ConvTranspose2d(4 * channels, channels, 2, 2, bias=False)
        plain.weight.data = torch.eye(4 * channels).view(4 * channels, channels, 2, 2)
        return plain


class PhaseConv(nn.Conv2d):
    """A convolution of a large map that is held as its phases, one of two positions both ways: (N, 4 I, H, W).

    A phase of the result sees the others at whole positions of the small map, so that a kernel of the large one makes a
    kernel from phases to phases. The large map, costly where it has few channels, is never laid out. `fold` gives the
    plain convolution, for inference.
    """

    TABLE: tuple[Any, ...]  # [phase of the result, tap of the kernel, phase seen, tap of the kernel of phases]
    table: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, padding_mode="reflect")
        # On the device once: to hand it over in every step would wait for it.
        self.register_buffer("table", torch.from_numpy(np.array(self.TABLE, np.float32)), persistent=False)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight (4 O, 4 I or I, 3, 3) and bias (4 O,), the phases of a channel beside each other."""
        weight = torch.einsum("oihw,phak,qwbl->opqiabkl", self.weight, self.table, self.table)
        assert self.bias is not None
        return weight.flatten(3, 5).flatten(0, 2), self.bias.repeat_interleave(4)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4 O, H, W)."""
        weight, bias = self.folded()
        return F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), weight, bias)

    def fold(self) -> nn.Module:
        """Return an equal plain convolution."""
        weight, bias = self.folded()
        plain = conv(weight.shape[1], weight.shape[0], 3).to(weight)
        plain.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
        return plain

    def unfold(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Return the weights that `fold` made these of."""
        table = torch.tensor(self.TABLE)
        phases, _, seen, _ = table.shape
        inverse = torch.linalg.pinv(table.movedim(1, 3).flatten(0, 2)).unflatten(1, (phases, seen, 3))
        split = weight.unflatten(1, (-1, seen, seen)).unflatten(0, (-1, phases, phases))
        return {"weight": torch.einsum("opqiabkl,hpak,wqbl->oihw", split, inverse, inverse), "bias": bias[::4]}


class OutputConv(PhaseConv):
    """A 5×5 convolution from phases to phases."""

    # Tap t of phase p sees position p + t - 2 of the large map: phase (p + t) % 2 of small position (p + t) // 2 - 1.
    TABLE = tuple(
        tuple(tuple(tuple(float((p + t) == 2 * k + a) for k in range(3)) for a in range(2)) for t in range(5))
        for p in range(2)
    )

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 5)


class UpsampleConv(PhaseConv):
    """Bilinear ×2 and a 3×3 convolution in one, from a small map (N, I, H, W) to the phases of the large one.

    The same figures come out, except at the border: the small map is continued by reflection.
    """

    # ¾ and ¼ of the two nearest positions
    TABLE = tuple(
        tuple((taps,) for taps in phase)
        for phase in (
            ((0.75, 0.25, 0), (0.25, 0.75, 0), (0, 0.75, 0.25)),
            ((0.25, 0.75, 0), (0, 0.75, 0.25), (0, 0.25, 0.75)),
        )
    )

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3)


class Residual(nn.Module):
    """Two 3×3 convolutions around an identity, no rectification after the addition (Gross & Wilber 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = Layers(
            conv(channels, channels, 3),
            Norm(channels),
            nn.ReLU(),
            conv(channels, channels, 3),
            Norm(channels),
        )

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Return x + body(x)."""
        return x + self.body(x, vectors)


class Grain(nn.Module):
    """Add a fixed map of noise, scaled for every channel, that strokes grow from where the photograph is flat.

    A convolution makes the same of every place in a clear sky: nothing, or a pattern of its own sampling period. Noise
    tells places apart (Ulyanov et al. 2016, Texture Networks; scaled for a channel as by Karras et al. 2019). It has
    as much energy in every octave, so that small strokes and large shapes find something; it repeats after ``PERIOD``
    positions both ways. In training every picture has another part of it.
    """

    grain: Tensor
    PERIOD = 128  # positions
    LARGEST = 8  # positions, wavelength of the lowest octave
    START = 0.15  # of the deviation that the norm before gives, the scale before training

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), self.START))
        white = np.fft.rfft2(np.random.default_rng(0).standard_normal((self.PERIOD, self.PERIOD)))
        frequency = np.hypot(np.fft.fftfreq(self.PERIOD)[:, None], np.fft.rfftfreq(self.PERIOD))
        grain = np.fft.irfft2(white / np.maximum(frequency, 1 / self.LARGEST))
        grain = (grain - grain.mean()) / grain.std()
        self.register_buffer("grain", torch.from_numpy(grain.astype(np.float32)))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Return x (N, C, H, W) with grain in it; in training the images (N, 3, ·, ·) choose the parts."""
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[2:])
        if not self.training:
            return x + (self.scale * self.grain[rows % self.PERIOD][:, columns % self.PERIOD]).to(x.dtype)
        # Exact: neither threads nor a new start change it.
        chosen = (255 * image).round().long().sum((1, 2, 3))[:, None]
        rows, columns = (rows + chosen) % self.PERIOD, (columns + chosen // self.PERIOD) % self.PERIOD
        return x + (self.scale * self.grain[rows[:, :, None], columns[:, None, :]][:, None]).to(x.dtype)


def blurred(images: Tensor, side: int) -> Tensor:
    """Return the mean of images (N, C, H, W), twice, over squares of an odd side, as much of them as is in them."""
    for _ in range(2):
        images = F.avg_pool2d(images, (1, side), 1, (0, side // 2), count_include_pad=False)
        images = F.avg_pool2d(images, (side, 1), 1, (side // 2, 0), count_include_pad=False)
    return images


class Contrast(nn.Module):
    """Add the photograph's contrast in three octaves, brought to one level everywhere, scaled for every channel.

    So strokes follow faint clouds and what is in shadow as they follow outlines (local contrast normalisation: Jarrett
    et al. 2009). An octave is brightness blurred less brightness blurred more, over its deviation around there; where
    that is below ``FAINT`` it fades. Without the finest detail its contours are round, and strokes grow along them.
    """

    WINDOWS = (3, 7, 15, 31)  # positions, sides of the squares that brightness is averaged over, twice
    FAINT = 0.002  # of brightness in [0, 1]: less than JPEG's rounding leaves in skies
    START = 0.15  # of the deviation that the norm before gives, the scale's deviation before training

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(self.START * torch.randn(len(self.WINDOWS) - 1, channels, 1, 1))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Return x (N, C, H, W) with the contrast of images (N, 3, 4 H, 4 W) in it."""
        brightness = F.avg_pool2d(image, STRIDE).mean(1, keepdim=True)
        levels = [blurred(brightness, side) for side in self.WINDOWS]
        for scale, fine, coarse, side in zip(self.scale, levels, levels[1:], self.WINDOWS[1:], strict=False):
            octave = fine - coarse
            deviation = blurred(octave.square(), 2 * side + 1).sqrt()
            x = x + (scale * (octave / (deviation + self.FAINT))).to(x.dtype)
        return x


def matrix_and_offset(mapped: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (3, 3) and b (3,) of a map of colours A x + b, (12,)."""
    return mapped[:9].view(3, 3), mapped[9:]


def with_colours_mapped(images: Tensor, maps: Tensor) -> Tensor:
    """Return images (N, 3, H, W) in colours A x + b, given A's rows and b (1, 12); as they are, given none (1, 0)."""
    if not maps.shape[1]:
        return images
    assert len(maps) == 1, "training, where each picture has its own painting, maps no colours"
    matrix, offset = matrix_and_offset(maps[0])
    return F.conv2d(images, matrix[:, :, None, None].to(images), offset.to(images))


class TransformationNetwork(nn.Module):
    """A fully convolutional network: a stem down to a quarter of the resolution, what strokes grow from, a body.

    Convolutions are shared by all paintings that it knows; a painting is one vector, the scales and biases of the
    norms in their order (conditional instance norm: Dumoulin et al. 2017). In a finished network the twelve numbers of
    a map of colours may follow them. One painting is the plain case of many.
    Strokes grow from `Grain`, from the photograph's own `Contrast`, from both or from neither. Sizes that are no
    multiple of the stride are continued by reflection, the margin too, and cut off again.

    Attributes:
        vectors: of the paintings, (S, V).
        of_norms: how many of a vector's numbers are the norms'.
        stride: total down-sampling.
        margin: what is seen around the picture outside training, in pixels, a multiple of the stride up to 24.
    """

    stride: ClassVar[int] = STRIDE
    margin: int = 0
    of_norms: int
    stem: Layers
    grain: Grain | None
    contrast: Contrast | None
    body: Layers

    @property
    def min_size(self) -> int:
        """Smallest height and width in pixels that reflection padding allows."""
        return max(16, self.margin + self.stride)

    def create_vectors(self, paintings: int) -> None:
        """Give each norm its place in the vectors, and every painting scales of 1 and biases of 0."""
        first, parts = 0, list[Tensor]()
        for norm in self.norms():
            norm.first, first = first, first + 2 * norm.channels
            parts += [torch.ones(norm.channels), torch.zeros(norm.channels)]
        self.of_norms = first
        self.vectors = nn.Parameter(torch.cat(parts).repeat(paintings, 1))

    def as_learned(self) -> Tensor:
        """Return the paintings' vectors without maps of colours, (S, of_norms), detached."""
        return self.vectors.detach()[:, : self.of_norms]

    def norms(self) -> list[Norm]:
        """Return the norms in the order of the vectors."""
        return [module for module in self.modules() if isinstance(module, Norm)]

    def blend(self, style_weights: Tensor, style_vector: Tensor) -> Tensor:
        """Return the vector (1, V) of the paintings' mean by weights (S,), a vector (V,) from elsewhere added."""
        return style_weights[None] @ self.vectors + style_vector

    def forward(self, image: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the stylized image: same shape, near [0, 1] but not clamped.

        Args:
            image: (N, 3, H, W).
            vectors: of one painting for all pictures (1, V), or of each picture's (N, V); None: of the first one.
        """
        vectors = self.vectors[:1] if vectors is None else vectors
        height, width = image.shape[2:]
        margin = 0 if self.training else self.margin
        around = (margin, margin + -width % self.stride, margin, margin + -height % self.stride)
        seen = F.pad(image, around, mode="reflect")
        x = self.stem(seen, vectors)
        for grown_from in (self.grain, self.contrast):
            x = x if grown_from is None else grown_from(x, seen)
        painted = self.body(x, vectors)[:, :, margin : margin + height, margin : margin + width]
        return with_colours_mapped(painted, vectors[:, self.of_norms :])


class JohnsonNetwork(TransformationNetwork):
    """The field's standard network (Johnson et al. 2016, supplement), as pytorch/examples trains it.

    Nearest-neighbour upsampling before a convolution replaces the paper's transposed convolutions (Odena et al. 2016);
    instance norm replaces batch norm. ``width=32`` is the published one, with 1,679,235 parameters.
    """

    def __init__(
        self, width: int = 32, blocks: int = 5, grain: bool = False, contrast: bool = False, paintings: int = 1
    ) -> None:
        super().__init__()
        w1, w2, w4 = width, 2 * width, 4 * width
        self.stem = Layers(
            *(conv(3, w1, 9), Norm(w1), nn.ReLU()),
            *(conv(w1, w2, 3, stride=2), Norm(w2), nn.ReLU()),
            *(conv(w2, w4, 3, stride=2), Norm(w4), nn.ReLU()),
        )
        self.grain, self.contrast = Grain(w4) if grain else None, Contrast(w4) if contrast else None
        self.body = Layers(
            *(Residual(w4) for _ in range(blocks)),
            *(nn.Upsample(scale_factor=2), conv(w4, w2, 3), Norm(w2), nn.ReLU()),
            *(nn.Upsample(scale_factor=2), conv(w2, w1, 3), Norm(w1), nn.ReLU()),
            conv(w1, 3, 9),
        )
        self.create_vectors(paintings)


class FastNetwork(TransformationNetwork):
    """A small network that works at a quarter of the resolution, with smoothed nearest upsampling out.

    Bilinear ×2 is nearest ×2 followed by [1 2 1] / 4 both ways: plain nearest upsampling strings strokes into beads of
    four pixels, and pixel-shuffle leaves a two-pixel grid in flat skies. Outside training the picture is continued by
    reflection and the margin cut off again: the loss network's zero padding teaches brighter borders. Instance norms
    see the margin, which training has not.
    """

    def __init__(
        self,
        width: int = 48,
        blocks: int = 4,
        grain: bool = False,
        contrast: bool = False,
        paintings: int = 1,
        margin: int = 8,
    ) -> None:
        super().__init__()
        if margin not in range(0, 25, self.stride):  # training pictures, which validation paints, may be of 32 px
            raise UserError(f"network.margin is {margin}; a multiple of {self.stride} from 0 to 24 is needed, px")
        self.margin = int(margin)
        half, full = width // 2, width // 4
        self.stem = Layers(nn.Conv2d(3, width, 12, 4, 4, padding_mode="reflect"), Norm(width), nn.ReLU())
        self.grain, self.contrast = Grain(width) if grain else None, Contrast(width) if contrast else None
        self.body = Layers(
            *(Residual(width) for _ in range(blocks)),
            *(UpsampleConv(width, half), Norm(half, 4), nn.ReLU(), PhasePixels(half)),
            *(UpsampleConv(half, full), Norm(full, 4), nn.ReLU()),
            *(OutputConv(full, 3), PhasePixels(3)),
        )
        self.create_vectors(paintings)


class TinyNetwork(FastNetwork):
    """`FastNetwork` without its last convolution: the last upsampling gives the picture."""

    def __init__(self, width: int = 16, blocks: int = 3, **options: Any) -> None:
        super().__init__(width, blocks, **options)
        last = max(index for index, module in enumerate(self.body) if isinstance(module, UpsampleConv))
        self.body = Layers(*self.body[:last], UpsampleConv(width // 2, 3), PhasePixels(3))
        self.create_vectors(len(self.vectors))


NETWORKS: dict[str, type[JohnsonNetwork] | type[FastNetwork]] = {
    "fast": FastNetwork,
    "johnson": JohnsonNetwork,
    "tiny": TinyNetwork,
}


def create_network(name: str, width: int, blocks: int, **options: Any) -> TransformationNetwork:
    """Return a new transformation network; UserError names the nearest where a name is unknown."""
    if name not in NETWORKS:
        raise UserError(f"unknown network {name!r}: {nearest(name, NETWORKS)}")
    return NETWORKS[name](width, blocks, **options)


def in_words(config: Mapping[str, Any]) -> str:
    """Return what `create_network` was given as text, but what changes no weight: fast, width 48, blocks 4, grain."""
    options = {k: value for k, value in config.items() if k not in ("paintings", "margin") and value is not False}
    told = [key if value is True else f"{key} {value}" for key, value in options.items()]
    return ", ".join(told).removeprefix("name ")


def for_inference(network: TransformationNetwork) -> TransformationNetwork:
    """Return a copy of a network on the CPU in evaluation mode, what was split for training folded into one.

    A single painting's vector goes into the norms, its map of colours into the last convolution.
    """
    folded = copy.deepcopy(network).cpu().float().eval()
    if len(folded.vectors) == 1 and len(mapped := folded.vectors.detach()[0, folded.of_norms :]):
        matrix, offset = matrix_and_offset(mapped)
        last = [module for module in folded.body.modules() if isinstance(module, nn.Conv2d)][-1]
        assert last.bias is not None
        last.weight.data = torch.einsum("ij,jchw->ichw", matrix, last.weight.data)
        last.bias.data = matrix @ last.bias.data + offset
        folded.vectors = nn.Parameter(folded.as_learned())
    for module in list(folded.modules()):
        for name, child in module.named_children():
            if isinstance(child, PhaseConv | PhasePixels):
                setattr(module, name, child.fold())
            elif isinstance(child, Norm) and len(folded.vectors) == 1:
                setattr(module, name, child.fold(folded.vectors[0]))
    return folded


def unfolded(network: nn.Module, inference_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network, given those of its copy `for_inference`."""
    weights = dict(inference_weights)
    for name, module in network.named_modules():
        if isinstance(module, PhaseConv):
            split = module.unfold(weights[f"{name}.weight"], weights[f"{name}.bias"])
            weights |= {f"{name}.{key}": tensor for key, tensor in split.items()}
    return weights


def mean_of_others(vectors: Tensor, names: Sequence[str], style: str) -> Tensor:
    """Return where a painting starts that a network is to learn: the mean (1, V) of those (S, V) of other names."""
    others = [number for number in range(len(vectors)) if list(names[number : number + 1]) != [style]]
    return vectors[others].mean(0, keepdim=True)


def with_vectors(network: TransformationNetwork, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network, given those in which every norm has its own: a single model's, or of before."""
    weights, parts = dict(weights), list[Tensor]()
    for name, norm in network.named_modules():
        if isinstance(norm, Norm) and "vectors" not in weights:
            own = (weights.pop(f"{name}.{kind}") for kind in ("weight", "bias"))
            parts += [tensor[:: max(1, len(tensor) // norm.channels)] for tensor in own]  # once for all its phases
    return weights | ({"vectors": torch.cat(parts)[None]} if parts else {})


def read_network(
    config: Any, weights: Mapping[str, Any], path: str | Path, folded: bool = False
) -> TransformationNetwork:
    """Return the network that a file describes with the weights that it has, or unfolded from those `for_inference`.

    Raises UserError where there is no such network or the weights are not its.
    """
    try:
        if config["width"] % 4 or not config["width"] > 0 or not 0 < config["blocks"] <= len(weights):
            raise ValueError("no such network")
        with torch.device("meta"):
            network = create_network(**config)
        weights = with_vectors(network, unfolded(network, weights) if folded else weights)
    except (UserError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not as `train` wrote it: there is no network {config}") from error
    vectors = weights.get("vectors")
    if isinstance(vectors, Tensor) and vectors.shape[1:] == (network.of_norms + len(AS_PAINTED),):  # recoloured
        network.vectors = nn.Parameter(torch.empty(len(network.vectors), *vectors.shape[1:], device="meta"))
    fill(network, weights, path)
    return network
