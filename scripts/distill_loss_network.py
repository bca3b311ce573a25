"""Distil vgg16_slim, the loss network that ships with the package, from VGG-16.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 scripts/distill_loss_network.py  # resumes where it stopped
    python scripts/distill_loss_network.py 'cycles=[[300, 2.0e-3]]' run=runs/try output=try.safetensors report=try.json

Several processes, of a batch each, keep the cores of a CPU busier than several threads do; give each its share with
OMP_NUM_THREADS. The same seed on the same processes and threads gives the same student, unless the run was stopped and
resumed: the adversaries start over. The run's folder has the student as it was last saved.

The student's heads are matched to VGG-16's features and to their Gram matrices on photographs, paintings, noise and
perturbations and, half of every batch, on pictures made against the student while it learns: by style networks in
training on it and by pictures being optimised on it. Where such pictures walk, the student is corrected.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from nst_fast.loss.loss_networks import (
    LossNetwork,
    LowRankConvolution,
    SlimVGG,
    Widths,
    freeze,
    multiplies_bfloat16,
)
from nst_fast.loss.pretrained import load_converted_vgg, load_slim_vgg, save_slim_vgg
from nst_fast.loss.terms import gram_matrix, total_variation
from nst_fast.training.networks import FastNetwork

ROOT = Path(__file__).resolve().parent.parent
# What users train with: Johnson's layers and Gatys'. An adversary takes one of them.
STYLES = (
    ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
    ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"),
)
CONTENTS = ("relu2_2", "relu3_3", "relu4_2")
PICTURES = {".jpg", ".jpeg", ".png"}


# Pictures


def read_pictures(folders: Sequence[str], short_side: int, held_out: Collection[str] = ()) -> dict[str, Tensor]:
    """Return {name: uint8 (3, H, W)} of every picture in some folders that is not held out, at the given short side."""
    pictures = {}
    for path in (path for folder in folders for path in sorted(Path(folder).iterdir())):
        if path.suffix.lower() in PICTURES and path.name not in held_out:
            image = Image.open(path).convert("RGB")
            ratio = short_side / min(image.size)
            image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
            pictures[path.name] = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    if not pictures:
        raise SystemExit(f"no pictures in {', '.join(folders)}")
    return pictures


def crop(picture: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Return a random crop, scaled by 0.6 to 1.5 and perhaps mirrored: float (3, size, size) in [0, 1]."""
    side = min(round(size / math.exp(rng.uniform(math.log(0.6), math.log(1.5)))), *picture.shape[1:])
    top, left = rng.integers(picture.shape[1] - side + 1), rng.integers(picture.shape[2] - side + 1)
    window = picture[:, top : top + side, left : left + side].float().div(255)[None]
    window = F.interpolate(window, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return window.flip(2) if rng.random() < 0.5 else window


def procedural(size: int, rng: np.random.Generator) -> Tensor:
    """Return noise of a random spectrum, a grating, a checkerboard, a gradient or a flat colour."""
    g = torch.Generator().manual_seed(int(rng.integers(2**62)))
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    colours = torch.rand(2, 3, 1, 1, generator=g)
    kind = rng.integers(4)
    if kind == 0:
        frequency = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size)[None].square()
        spectrum = torch.fft.rfft2(torch.randn(3, size, size, generator=g))
        noise = torch.fft.irfft2(spectrum * (frequency + 1e-4) ** (-rng.uniform(0, 1)), s=(size, size))
        noise = noise / noise.std() * rng.uniform(0.02, 0.35)
        return (noise + colours[0]).clamp(0, 1)
    if kind == 1:
        angle, waves = rng.uniform(0, math.pi), math.exp(rng.uniform(0, math.log(size / 2)))
        mask = 0.5 + 0.5 * torch.sin(2 * math.pi * waves * (x * math.cos(angle) + y * math.sin(angle)))
        mask = mask if rng.random() < 0.5 else mask.round()
    elif kind == 2:
        step = int(rng.integers(1, 9))
        index = torch.arange(size) // step
        mask = ((index[:, None] + index[None]) % 2).float()
    else:
        mask = x * rng.uniform(0, 1) + y * rng.uniform(0, 1)
    return colours[0] * mask + colours[1] * (1 - mask)


def perturb(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the picture blurred, noisy, recoloured, contrasted or coarsened."""
    g = torch.Generator().manual_seed(int(rng.integers(2**62)))
    size = image.shape[1]
    match rng.integers(5):
        case 0:
            image = image + torch.randn(image.shape, generator=g) * rng.uniform(0.01, 0.3)
        case 1:
            small = F.interpolate(image[None], scale_factor=1 / int(rng.integers(2, 7)), mode="area")
            image = F.interpolate(small, size=(size, size), mode="nearest" if rng.random() < 0.3 else "bilinear")[0]
        case 2:
            mix = torch.eye(3) + torch.randn(3, 3, generator=g) * 0.5
            image = torch.einsum("dc,chw->dhw", mix / mix.sum(1, keepdim=True).clamp_min(0.5), image)
        case 3:
            image = (image - rng.uniform(0.2, 0.8)) * rng.uniform(0.2, 3.0) + rng.uniform(0.2, 0.8)
        case _:
            smooth = F.avg_pool2d(image[None], 3, 1, 1)[0]
            image = image + (image - smooth) * rng.uniform(0.5, 3.0)
    return image.clamp(0, 1)


class Mixture:
    """The pictures that no adversary made: a function of (seed, step, process) alone."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        held_out = json.loads((ROOT / cfg.held_out).read_text())
        self.photographs = list(read_pictures(cfg.photographs, cfg.short_side, held_out["photographs"]).values())
        paintings = [*held_out["paintings"], *cfg.held_out_styles]
        self.paintings = list(read_pictures(cfg.paintings, 2 * cfg.short_side, paintings).values())

    def photograph(self, size: int, rng: np.random.Generator) -> Tensor:
        return crop(self.photographs[rng.integers(len(self.photographs))], size, rng)

    def painting(self, size: int, rng: np.random.Generator) -> Tensor:
        return crop(self.paintings[rng.integers(len(self.paintings))], size, rng)

    def batch(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        images = []
        for _ in range(count):
            kind = rng.choice(list(self.cfg.sources), p=list(self.cfg.sources.values()))
            if kind == "photograph":
                image = self.photograph(size, rng)
            elif kind == "painting":
                image = self.painting(size, rng)
            else:
                image = procedural(size, rng)
            images.append(perturb(image, rng) if rng.random() < self.cfg.perturbed else image)
        return torch.stack(images)


# Adversaries


class StyleTask:
    """What an adversary aims at: a painting at some size, layers, the student's view of the painting, and a weight."""

    def __init__(self, mixture: Mixture, cfg: DictConfig, rng: np.random.Generator) -> None:
        painting = mixture.paintings[rng.integers(len(mixture.paintings))]
        short = int(rng.integers(160, 2 * cfg.short_side))
        ratio = short / min(painting.shape[1:])
        size = (round(painting.shape[1] * ratio), round(painting.shape[2] * ratio))
        self.painting = F.interpolate(painting[None].float() / 255, size=size, mode="bilinear", antialias=True)
        self.style_weight = math.exp(rng.uniform(*(math.log(w) for w in cfg.style_weight)))
        self.style_layers = STYLES[rng.integers(len(STYLES))]
        self.content_layer = CONTENTS[rng.integers(len(CONTENTS))]
        self.targets: dict[str, Tensor] = {}

    @torch.no_grad()
    def refresh(self, student: ScaledSlimVGG, device: torch.device) -> None:
        self.targets = student.estimated_grams(student.trunk(self.painting.to(device), self.style_layers))

    def loss(self, student: ScaledSlimVGG, image: Tensor, content: Tensor) -> Tensor:
        """Return the balanced perceptual loss of a picture as the student sees it."""
        features = student.trunk(image, [*self.style_layers, self.content_layer])
        head = student.scaled_head(self.content_layer)[:, :, None, None]
        with torch.no_grad():
            target = F.conv2d(student.trunk(content, [self.content_layer])[self.content_layer], head).float()
        seen = F.conv2d(features[self.content_layer], head).float()
        error = (seen - target).square().mean((1, 2, 3)) / target.square().mean((1, 2, 3))
        grams = student.estimated_grams({k: features[k] for k in self.style_layers})
        style = torch.stack([relative_gram_error(grams[k], self.targets[k]).mean() for k in self.style_layers]).mean()
        return error.mean() + self.style_weight * style + 0.5 * total_variation(image.float()).mean()


class StyleNetworkAdversary:
    """A style network that trains on the student, one step a call, and starts over now and then."""

    def __init__(self, mixture: Mixture, cfg: DictConfig, device: torch.device) -> None:
        self.mixture, self.cfg, self.device = mixture, cfg, device
        self.left = 0

    def restart(self, rng: np.random.Generator) -> None:
        torch.manual_seed(int(rng.integers(2**62)))
        self.network = FastNetwork(self.cfg.style_network_width, blocks=int(rng.integers(2, 6)))
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=3e-3)
        self.task = StyleTask(self.mixture, self.cfg, rng)
        self.left = int(rng.integers(*self.cfg.style_network_steps))

    def pictures(self, student: ScaledSlimVGG, count: int, size: int, rng: np.random.Generator) -> Tensor:
        if not self.left:
            self.restart(rng)
        if self.left % 40 == 0 or not self.task.targets:
            self.task.refresh(student, self.device)
        self.left -= 1
        content = torch.stack([self.mixture.photograph(size, rng) for _ in range(count)]).to(self.device)
        image = self.network(content.contiguous(memory_format=torch.channels_last))
        loss = self.task.loss(student, image, content)
        if torch.isfinite(loss):
            for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        return image.detach().float().clamp(0, 1)


class CanvasAdversary:
    """Pictures that are optimised on the student from a photograph or from noise, one step a call."""

    def __init__(self, mixture: Mixture, cfg: DictConfig, device: torch.device) -> None:
        self.mixture, self.cfg, self.device = mixture, cfg, device
        self.left = 0

    def restart(self, count: int, size: int, rng: np.random.Generator) -> None:
        self.task = StyleTask(self.mixture, self.cfg, rng)
        self.content = torch.stack([self.mixture.photograph(size, rng) for _ in range(count)]).to(self.device)
        noise = torch.from_numpy(rng.random(self.content.shape, dtype=np.float32)).to(self.device)
        self.canvas = (noise if rng.random() < 0.5 else self.content.clone()).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.canvas], lr=math.exp(rng.uniform(math.log(0.005), math.log(0.05))))
        self.left = int(rng.integers(*self.cfg.canvas_steps))

    def pictures(self, student: ScaledSlimVGG, count: int, size: int, rng: np.random.Generator) -> Tensor:
        if not self.left or self.canvas.shape[2] != size:
            self.restart(count, size, rng)
        if self.left % 40 == 0 or not self.task.targets:
            self.task.refresh(student, self.device)
        self.left -= 1
        loss = self.task.loss(student, self.canvas, self.content)
        (self.canvas.grad,) = torch.autograd.grad(loss, [self.canvas])
        self.optimizer.step()
        with torch.no_grad():
            self.canvas.clamp_(0, 1)
        return self.canvas.detach().clone()


# Matching


def relative_gram_error(gram: Tensor, target: Tensor) -> Tensor:
    """Return ‖G − A‖² / ‖A‖² for each picture."""
    return (gram - target).square().sum((1, 2)) / target.square().sum((1, 2))


def matching_errors(student: ScaledSlimVGG, teacher: LossNetwork, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return {kind: {layer: error}}, one figure a picture, relative to the teacher's energy in that picture."""
    layers = student.layers
    with torch.no_grad():
        truth = teacher(images, layers)
    features = student.trunk(images, layers)
    errors: dict[str, dict[str, Tensor]] = {"feature": {}, "gram": {}}
    with torch.autocast(images.device.type, enabled=False):
        for layer in layers:
            s, head = features[layer], student.scaled_head(layer)
            t = truth[layer].permute(0, 2, 3, 1).flatten(1, 2)  # in the teacher's precision, which is enough for sums
            target = (t.transpose(1, 2) @ t).float() / t.shape[1]
            gram = head @ gram_matrix(s.float()) @ head.T
            # ‖H s − t‖² over all positions in Gram matrices: H s itself would be the widest map of all.
            cross = (s.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).to(t.dtype) @ t).float() / t.shape[1]
            cross = (cross * head.T).sum((1, 2))
            energy = target.diagonal(dim1=1, dim2=2).sum(1)
            error = gram.diagonal(dim1=1, dim2=2).sum(1) - 2 * cross + energy
            # A flat picture has hardly any energy; that of photographs keeps it from outweighing all others.
            errors["feature"][layer] = error / (energy + 1e-2 * student.get_buffer("energy_" + layer))
            errors["gram"][layer] = relative_gram_error(gram, target)
    return errors


def load_teacher(cfg: DictConfig) -> LossNetwork:
    """Return VGG-16."""
    return freeze(load_converted_vgg(ROOT / cfg.teacher))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    mixed = precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


def choose_filters(moments: Tensor, count: int) -> Tensor:
    """Return which features explain most of all of them: a pivoted Cholesky decomposition of their second moments."""
    left, chosen = moments.clone(), []
    for _ in range(count):
        gain = left.square().sum(0) / left.diagonal().clamp_min(1e-9 * moments.diagonal().mean())
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        column = left[:, chosen[-1]].clone()
        left -= torch.outer(column, column) / column[chosen[-1]].clamp_min(1e-12 * moments.diagonal().max())
    return torch.tensor(chosen)


def solve_ridge(normal: Tensor, cross: Tensor, strength: float) -> Tensor:
    """Return the weights (inputs, outputs) of least squares, given the inputs' products with themselves and outputs."""
    return torch.linalg.solve(normal + strength * normal.diagonal().mean() * torch.eye(len(normal)), cross)


def regress(x: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 3×3 kernels with a bias (9 C + 1, filters) that give some answers of x, and the patches' moments."""
    side, filters = 9 * x.shape[1] + 1, answers.shape[1]
    normal, cross = torch.zeros(side, side).double(), torch.zeros(side, filters).double()
    for picture, answer in zip(x.split(1), answers.flatten(2), strict=True):
        patches = F.pad(F.unfold(picture, 3, padding=1)[0], (0, 0, 0, 1), value=1.0)
        normal += patches @ patches.T
        cross += patches @ answer.T
    return solve_ridge(normal, cross, 3e-4), normal


@torch.no_grad()
def imitate(convolution: torch.nn.Module, x: Tensor, answers: Tensor) -> None:
    """Set a convolution's weights so that it gives, of features x, those of a teacher's answers that explain most.

    One of low rank is the regression of that rank (Izenman 1975): its answers' principal components. What it reads are
    the directions of x that the full regression uses most.
    """
    t = to_positions(F.relu(answers))
    low_rank = isinstance(convolution, LowRankConvolution)
    width = convolution.widths[-1] if low_rank else convolution.out_channels
    answers = answers[:, choose_filters((t.T @ t / len(t)).double(), width)]
    if low_rank and not isinstance(convolution.reduce, torch.nn.Identity):
        weights, _ = regress(x, answers)
        kernels = weights[:-1].unflatten(0, (x.shape[1], 9))
        s = to_positions(x).double()
        energy, axes = torch.linalg.eigh(s.T @ s / len(s))
        energy = energy.clamp_min(1e-5 * energy.max()).sqrt()
        root = (axes * energy) @ axes.T
        _, used = torch.linalg.eigh(root @ torch.einsum("iko,jko->ij", kernels, kernels) @ root)
        directions, _ = torch.linalg.qr((axes / energy) @ axes.T @ used[:, -convolution.widths[0] :])
        directions = directions / (s @ directions).square().mean(0).sqrt()
        convolution.reduce.weight.copy_(directions.T[:, :, None, None])
        x = convolution.reduce(x)
    weights, normal = regress(x, answers)
    # All features in units of their own root mean square: one learning rate for all layers.
    scale = answers.square().mean((0, 2, 3)).sqrt()
    plain = convolution
    if low_rank:
        energy, components = torch.linalg.eigh(weights[:-1].T @ normal[:-1, :-1] @ weights[:-1] / normal[-1, -1])
        rank = convolution.widths[1]
        root, components = energy[-rank:].sqrt(), components[:, -rank:]
        convolution.expand.weight.copy_((components * root / scale[:, None])[:, :, None, None])
        convolution.expand.bias.copy_(weights[-1] / scale)
        weights, scale = torch.cat([weights[:-1] @ components, torch.zeros(1, rank)]), root
        plain = convolution.convolution
    plain.weight.copy_((weights[:-1] / scale).T.reshape(plain.weight.shape))
    plain.bias.copy_(weights[-1] / scale)


def same_shapes(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return whether two modules have the same parameters."""
    return {k: v.shape for k, v in one.named_parameters()} == {k: v.shape for k, v in other.named_parameters()}


class ScaledSlimVGG(SlimVGG):
    """The student in training: its heads estimate each channel in units of that channel's root mean square.

    Edge filters fire rarely and strongly; heads that must grow to their size learn slowly.
    """

    def __init__(self, widths: Widths, heads: Mapping[str, int]) -> None:
        super().__init__(widths, heads)
        # Pixels to about zero mean and unit variance; the convolutions learn the rest.
        self.trunk.preprocess.weight.data = torch.eye(3)[:, :, None, None] * 4
        self.trunk.preprocess.bias.data = torch.full((3,), -1.8)
        self.trunk.preprocess.requires_grad_(False)
        for layer, filters in heads.items():
            self.register_buffer("scale_" + layer, torch.ones(filters, 1, 1))
            self.register_buffer("energy_" + layer, torch.ones(()))

    @torch.no_grad()
    def start(self, images: Tensor, teacher: LossNetwork, earlier: SlimVGG | None) -> None:
        """Let every convolution imitate some of the teacher's filters and fit the heads, all by ridge regression.

        Filters are those that explain most of their layer; each is fitted on what the student's layer before gives.
        The first convolutions are an earlier student's, as far as they have the same widths.
        """
        answers = teacher(images, ["conv" + name for name in self.trunk.convolutions])
        x, block = self.trunk.preprocess(images), "1"
        for name, convolution in self.trunk.convolutions.items():
            x, block = (F.max_pool2d(x, 2) if name[0] != block else x), name[0]
            if earlier and same_shapes(earlier.trunk.convolutions[name], convolution):
                convolution.load_state_dict(earlier.trunk.convolutions[name].state_dict())
            else:
                earlier = None
                imitate(convolution, x, answers["conv" + name])
            x = F.relu(convolution(x))
            layer = "relu" + name
            if layer in self.layers:
                t = to_positions(F.relu(answers["conv" + name]))
                energy = t.square().mean(0)
                scale = energy.sqrt().clamp_min(1e-2 * energy.mean().sqrt())
                self.get_buffer("energy_" + layer).copy_(energy.sum())
                self.get_buffer("scale_" + layer).copy_(scale[:, None, None])
                s = to_positions(x)
                weights = solve_ridge((s.T @ s).double(), (s.T @ (t / scale)).double(), 1e-3)
                self.heads[layer].weight.copy_(weights.T[:, :, None, None])

    def scaled_head(self, layer: str) -> Tensor:
        """Return H (teacher's channels, own channels)."""
        return self.heads[layer].weight[:, :, 0, 0] * self.get_buffer("scale_" + layer)[:, :, 0]

    def estimated_grams(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the Gram matrices that the heads make of the trunk's features."""
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return {k: (h := self.scaled_head(k)) @ gram_matrix(f) @ h.T for k, f in features.items()}

    def folded(self) -> SlimVGG:
        """Return the student with the scales multiplied into its heads."""
        plain = SlimVGG(trunk_widths(self), {layer: head.out_channels for layer, head in self.heads.items()})
        plain.trunk.load_state_dict(self.trunk.state_dict())
        for layer, head in self.heads.items():
            scale = self.get_buffer("scale_" + layer)
            plain.heads[layer].weight.data = head.weight.data * scale[..., None]
        return plain


def as_matrix(weight: Tensor) -> Tensor:
    """Return a channels-last convolution weight as the matrix (out, kernel and in) that shares its memory."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


class Optimizer:
    """Muon (Jordan et al. 2024) for the convolutions, seen as matrices, AdamW for the biases."""

    def __init__(self, student: SlimVGG) -> None:
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.weights = [p for p in self.parameters if p.dim() == 4]
        self.matrices = [torch.nn.Parameter(as_matrix(p.data)) for p in self.weights]
        assert all(m.data_ptr() == w.data_ptr() for m, w in zip(self.matrices, self.weights, strict=True))
        biases = [p for p in self.parameters if p.dim() != 4]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(biases, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """Step along the gradient, its mean over all processes, where it is finite."""
        grads = torch.autograd.grad(loss, self.parameters)
        flat = torch.cat([g.flatten() for g in grads])
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        norm = torch.linalg.vector_norm(flat)
        if torch.isfinite(norm):
            parts = (flat / norm.clamp_min(1)).split([p.numel() for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
            for matrix, weight in zip(self.matrices, self.weights, strict=True):
                matrix.grad, weight.grad = as_matrix(weight.grad), None  # type: ignore[arg-type]
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.optimizers):
            part.load_state_dict(state[str(i)])


def learning_rate(cycles: Sequence[Sequence[float]], step: int) -> float:
    """Return the rate of a step: each cycle [steps, peak] warms up for a thirtieth of its steps, then falls to 0."""
    for steps, peak in cycles:
        if step < steps:
            return peak * min(30 * (step + 1) / steps, (1 - step / steps) * 30 / 29, 1)
        step -= int(steps)
    raise ValueError("no cycle has that step")


def distil(cfg: DictConfig) -> None:
    """Train a new student or go on from its saved state; the run's folder has state, student and log."""
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    run = Path(cfg.run)
    run.mkdir(parents=True, exist_ok=True)
    teacher, mixture = load_teacher(cfg), Mixture(cfg)
    widths: Any = OmegaConf.to_container(cfg.widths)
    student = ScaledSlimVGG(widths, {layer: teacher.filters[layer] for layer in cfg.layers})
    state_file = run / "state.pt"
    if not state_file.exists():
        rng = np.random.default_rng(cfg.seed)
        earlier = load_slim_vgg(ROOT / cfg.earlier) if cfg.earlier else None
        crops = [(mixture.photograph, mixture.painting)[i % 2](176, rng) for i in range(32)]
        student.start(torch.stack(crops), teacher, earlier)
    student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.to(device)
    optimizer = Optimizer(student)
    first, seconds, steps = 0, 0.0, sum(int(cycle[0]) for cycle in cfg.cycles)
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]

    networks = [StyleNetworkAdversary(mixture, cfg, device) for _ in range(cfg.style_networks)]
    canvases = [CanvasAdversary(mixture, cfg, device) for _ in cfg.batches]
    context = autocast(cfg.precision, device)
    rank = dist.get_rank() if dist.is_initialized() else 0
    start, log = time.perf_counter() - seconds, (run / "log.jsonl").open("a")
    running: dict[str, float] = {}
    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("distil", total=steps, completed=first, loss="")
        for step in range(first, steps):
            shape = int(np.random.default_rng((cfg.seed, step)).integers(len(cfg.batches)))
            rng = np.random.default_rng((cfg.seed, step, rank))
            count, size = cfg.batches[shape]
            with context:
                adversary = canvases[shape] if step % 3 == 2 else networks[step % len(networks)]
                made = adversary.pictures(student, count // 2, size, rng)
                clean = mixture.batch(count - count // 2, size, rng).to(device)
                images = torch.cat([made, clean]).contiguous(memory_format=torch.channels_last)
                errors = matching_errors(student, teacher, images)
            # One picture that is far off must not outweigh the rest of the batch.
            terms = [cfg.layer_weights[k] * e.log1p().mean() for k, e in errors["feature"].items()]
            terms += [cfg.gram_weight * cfg.layer_weights[k] * (g / (1 + g)).mean() for k, g in errors["gram"].items()]
            loss = torch.stack(terms).sum()
            optimizer.step(loss, learning_rate(cfg.cycles, step))
            for kind, part in errors.items():
                for layer, value in part.items():
                    for group, figures in (("made", value[: count // 2]), ("clean", value[count // 2 :])):
                        key = f"{group}/{kind}/{layer}"
                        running[key] = running.get(key, 0.0) * 0.99 + 0.01 * float(figures.detach().mean())
            progress.update(bar, advance=1, loss=f"loss {loss.item():.3f}")
            if rank == 0 and ((step + 1) % cfg.save_every == 0 or step + 1 == steps):
                seconds = time.perf_counter() - start
                state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"step": step + 1, "seconds": seconds}
                torch.save(state, state_file.with_suffix(".tmp"))
                state_file.with_suffix(".tmp").replace(state_file)
                export(cfg, student.folded(), mixture, run / "student.safetensors")
                log.write(json.dumps({"step": step + 1, "seconds": seconds, **running}) + "\n")
                log.flush()


def export(cfg: DictConfig, student: SlimVGG, mixture: Mixture, path: Path) -> None:
    """Write a student with its mean activations over photographs."""
    photographs = [p[None].float() / 255 for p in mixture.photographs[:: max(1, len(mixture.photographs) // 24)]]
    student.cpu().eval().requires_grad_(False)
    metadata = {
        "name": "vgg16_slim",
        "origin": f"distilled by nst_fast from {Path(cfg.teacher).stem}",
        "teachers_licence": "VGG-16: Simonyan & Zisserman, CC BY 4.0; torchvision's weights, BSD 3-Clause",
    }
    save_slim_vgg(student, path, metadata, student.mean_activations(photographs, student.layers))


def trunk_widths(student: SlimVGG) -> list[list[int | list[int]]]:
    """Return the channels of the convolutions, block by block."""
    widths: list[list[int | list[int]]] = [[] for _ in range(5)]
    for name, c in student.trunk.convolutions.items():
        widths[int(name[0]) - 1].append(list(c.widths) if isinstance(c, LowRankConvolution) else c.out_channels)
    return widths


# Report


def to_positions(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


@torch.no_grad()
def fidelity(cfg: DictConfig, student: SlimVGG, photographs: int = 200) -> dict[str, float]:
    """Return each layer's R² on validation photographs at 256 px, after a 1×1 map with bias by least squares."""
    teacher = load_teacher(cfg)
    held_out = json.loads((ROOT / cfg.held_out).read_text())["photographs"]

    def pairs(folders: Sequence[str], count: int) -> Any:
        names = sorted(p for f in folders for p in Path(f).iterdir() if p.suffix.lower() in PICTURES)
        names = [p for p in names if p.name not in held_out]
        for path in names[:: max(1, len(names) // count)][:count]:
            image = Image.open(path).convert("RGB")
            ratio = 256 / min(image.size)
            image = image.resize((max(256, round(image.width * ratio)), max(256, round(image.height * ratio))), 1)
            left, top = (image.width - 256) // 2, (image.height - 256) // 2
            x = torch.from_numpy(np.array(image.crop((left, top, left + 256, top + 256)))).permute(2, 0, 1)[None] / 255
            yield student(x, student.layers), teacher(x, student.layers)

    normal: dict[str, list[Tensor]] = {}
    for seen, truth in pairs(cfg.photographs, photographs):
        for layer in student.layers:
            s, t = to_positions(seen[layer]).double(), to_positions(truth[layer]).double()
            s = torch.cat([s, torch.ones(len(s), 1)], 1)
            if layer not in normal:
                normal[layer] = [
                    torch.zeros(s.shape[1], s.shape[1]).double(),
                    torch.zeros(s.shape[1], t.shape[1]).double(),
                ]
            normal[layer][0] += s.T @ s
            normal[layer][1] += s.T @ t
    maps = {k: torch.linalg.lstsq(a, b, driver="gelsd").solution for k, (a, b) in normal.items()}
    sums: dict[str, list[Any]] = {}
    for seen, truth in pairs([cfg.validation], 10**6):
        for layer in student.layers:
            s, t = to_positions(seen[layer]).double(), to_positions(truth[layer]).double()
            error = (torch.cat([s, torch.ones(len(s), 1)], 1) @ maps[layer] - t).square().sum()
            a = sums.setdefault(layer, [0.0, 0.0, 0.0, 0])
            a[0] += float(error)
            a[1] += float(t.square().sum())
            a[2] = a[2] + t.sum(0)
            a[3] += len(t)
    return {k: 1 - e / (q - float((m / n).square().sum() * n)) for k, (e, q, m, n) in sums.items()}


def multiply_adds(widths: Widths) -> float:
    """Return multiply-adds of the convolutions per pixel of the picture."""
    total, channels, pixels = 0.0, 3, 1.0
    for block_widths in widths:
        for width in block_widths:
            if isinstance(width, int):
                total, channels = total + 9 * channels * width * pixels, width
            else:
                reduced, rank, wide = width
                total += ((channels != reduced) * channels * reduced + 9 * reduced * rank + rank * wide) * pixels
                channels = wide
        pixels /= 4
    return total


def width_in_words(width: int | list[int]) -> str:
    return str(width) if isinstance(width, int) else "-".join(map(str, width))


def write_report(cfg: DictConfig, processes: int) -> None:
    """Write what was trained and how well it matches, as JSON and as a page beside it."""
    last = json.loads(Path(cfg.run, "log.jsonl").read_text().splitlines()[-1])
    released = load_slim_vgg(cfg.output)
    widths, r2 = trunk_widths(released), fidelity(cfg, released)
    report = {
        "fidelity_r2": r2,
        "relative_errors_in_training": {k: v for k, v in last.items() if "/" in k},
        "widths": widths,
        "multiply_adds_per_pixel": multiply_adds(widths),
        "vgg16_multiply_adds_per_pixel": multiply_adds([[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512]]),
        "bytes": Path(cfg.output).stat().st_size,
        "steps": last["step"],
        "cycles": OmegaConf.to_container(cfg.cycles),
        "pixels_a_step": processes * sum(count * size**2 for count, size in cfg.batches) / len(cfg.batches),
        "seconds": last["seconds"],
        "processes": processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "teacher": Path(cfg.teacher).name,
        "seed": cfg.seed,
        "sha256": hashlib.sha256(Path(cfg.output).read_bytes()).hexdigest(),
    }
    path = Path(cfg.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    rows = []
    for layer in released.layers:
        figures = [last[f"{group}/{kind}/{layer}"] for kind in ("feature", "gram") for group in ("clean", "made")]
        rows.append(f"| {layer} | {r2[layer]:.3f} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    trunk = " \\| ".join(", ".join(width_in_words(width) for width in block) for block in widths)
    slim, full = report["multiply_adds_per_pixel"] / 1e3, report["vgg16_multiply_adds_per_pixel"] / 1e3
    page = f"""# vgg16_slim

Written by `OMP_NUM_THREADS={report["threads"]} torchrun --nproc-per-node {processes} scripts/distill_loss_network.py`;
the figures are in `{path.name}`.

A VGG of 3×3 convolutions {trunk} with max pooling between. Three numbers are a convolution of low
rank: 1×1 to the first, 3×3 to the second, 1×1 to the third. At first each filter imitated one of VGG-16 by least
squares. Then all were trained together. 1×1 heads estimate VGG-16's features, without normalising them. When the file
is loaded, the heads become a metric of the trunk's own channels. Content and Gram distances stay the same, and the
loss becomes cheap.

- {report["bytes"] / 1e6:.2f} MB as float16; {slim:.1f} k multiply-adds a pixel against
  {full:.0f} k of VGG-16 to conv5_1.
- {report["steps"]} steps of {report["pixels_a_step"] / 1e3:.0f} k pixels (mean) in {report["seconds"] / 60:.0f} minutes
  on {report["device"]}, {report["processes"]} processes of {report["threads"]} threads.

The table:

- R²: a 1×1 map with bias by least squares on 200 training photographs at 256², scored on the validation photographs,
  pooled over channels and positions.
- Feature error: ‖F − T‖² / ‖T‖². Gram error: ‖G − A‖² / ‖A‖². Both near the end of training.
- *Adversaries'* pictures are made against the student, by style networks and by pictures being optimised on it.
  *Others* are photographs, paintings, noise and perturbations.

| layer | R² | features, others | features, adversaries' | Gram, others | Gram, adversaries' |
|---|---|---|---|---|---|
""" + "\n".join(rows)
    path.with_suffix(".md").write_text(page + "\n")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    cfg: Any = OmegaConf.merge(
        OmegaConf.load(ROOT / "configs" / "distill_loss_network.yaml"), OmegaConf.from_cli(sys.argv[1:])
    )
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    distil(cfg)
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank == 0:
        Path(cfg.output).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(cfg.run, "student.safetensors"), cfg.output)
        write_report(cfg, processes)
        print(f"{cfg.output}\n{cfg.report}")


if __name__ == "__main__":
    main()
