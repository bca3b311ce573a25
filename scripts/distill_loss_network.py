"""Distil vgg19_slim, the loss network that ships with the package, from VGG-19 teachers.

    OMP_NUM_THREADS=2 torchrun --nproc-per-node 2 scripts/distill_loss_network.py  # resumes where it stopped
    python scripts/distill_loss_network.py 'cycles=[{steps: 300}]' run=runs/try output=try.safetensors report=try.json

Several processes, of a batch each, keep the cores of a CPU busier than several threads do; give each its share with
OMP_NUM_THREADS. The same seed on the same processes and threads gives the same student, unless the run was stopped and
resumed: the adversaries start over.

The student's heads are matched to the teachers' features and to their Gram matrices on photographs, paintings, noise
and perturbations and, half of every batch, on pictures made against the student while it learns: by style networks in
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
from collections.abc import Sequence
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

from nst_fast.loss.loss_networks import LossNetwork, MergedLossNetwork, SlimVGG, freeze, multiplies_bfloat16
from nst_fast.loss.pretrained import load_converted_vgg, load_slim_vgg, load_torchvision, save_slim_vgg
from nst_fast.loss.terms import gram_matrix, total_variation
from nst_fast.training.networks import FastNetwork
from nst_fast.weights import read_safetensors

ROOT = Path(__file__).resolve().parent.parent
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT_LAYER = "relu4_2"
PICTURES = {".jpg", ".jpeg", ".png"}


# Pictures


def read_pictures(folder: str | Path, short_side: int) -> dict[str, Tensor]:
    """Return {name: uint8 (3, H, W)} of every picture in a folder, at the given short side in pixels."""
    pictures = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in PICTURES:
            image = Image.open(path).convert("RGB")
            ratio = short_side / min(image.size)
            image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.LANCZOS)
            pictures[path.stem] = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    if not pictures:
        raise SystemExit(f"no pictures in {folder}")
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
        self.photographs = list(read_pictures(cfg.photographs, cfg.short_side).values())
        held_out = set(cfg.held_out_paintings)
        paintings = {k: v for k, v in read_pictures(cfg.paintings, 2 * cfg.short_side).items() if k not in held_out}
        self.paintings = list(paintings.values())

    def photograph(self, size: int, rng: np.random.Generator) -> Tensor:
        return crop(self.photographs[rng.integers(len(self.photographs))], size, rng)

    def batch(self, count: int, size: int, rng: np.random.Generator) -> Tensor:
        images = []
        for _ in range(count):
            kind = rng.choice(list(self.cfg.sources), p=list(self.cfg.sources.values()))
            if kind == "photograph":
                image = self.photograph(size, rng)
            elif kind == "painting":
                image = crop(self.paintings[rng.integers(len(self.paintings))], size, rng)
            else:
                image = procedural(size, rng)
            images.append(perturb(image, rng) if rng.random() < self.cfg.perturbed else image)
        return torch.stack(images)


# Adversaries


class StyleTask:
    """What an adversary aims at: a painting at some size, the student's view of it, and weights."""

    def __init__(self, mixture: Mixture, cfg: DictConfig, rng: np.random.Generator) -> None:
        painting = mixture.paintings[rng.integers(len(mixture.paintings))]
        short = int(rng.integers(160, 2 * cfg.short_side))
        ratio = short / min(painting.shape[1:])
        size = (round(painting.shape[1] * ratio), round(painting.shape[2] * ratio))
        self.painting = F.interpolate(painting[None].float() / 255, size=size, mode="bilinear", antialias=True)
        self.style_weight = math.exp(rng.uniform(*(math.log(w) for w in cfg.style_weight)))
        self.targets: dict[str, Tensor] = {}

    @torch.no_grad()
    def refresh(self, student: ScaledSlimVGG, device: torch.device) -> None:
        self.targets = student.estimated_grams(student.trunk(self.painting.to(device), STYLE_LAYERS))

    def loss(self, student: ScaledSlimVGG, image: Tensor, content: Tensor) -> Tensor:
        """Return the balanced perceptual loss of a picture as the student sees it."""
        features = student.trunk(image, [*STYLE_LAYERS, CONTENT_LAYER])
        head = student.scaled_head(CONTENT_LAYER)[:, :, None, None]
        with torch.no_grad():
            target = F.conv2d(student.trunk(content, [CONTENT_LAYER])[CONTENT_LAYER], head).float()
        seen = F.conv2d(features.pop(CONTENT_LAYER), head).float()
        error = (seen - target).square().mean((1, 2, 3)) / target.square().mean((1, 2, 3))
        grams = student.estimated_grams(features)
        style = sum(relative_gram_error(grams[k], self.targets[k]).mean() for k in STYLE_LAYERS)
        return (
            error.mean() + self.style_weight * style / len(STYLE_LAYERS) + 0.5 * total_variation(image.float()).mean()
        )


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


def matching_errors(student: ScaledSlimVGG, teachers: Teachers, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return {kind: {layer: error}}, one figure a picture: relative to the teacher's energy for features and Gram
    matrices, to the variance over photographs for full-width features."""
    layers = student.layers
    with torch.no_grad():
        truth = {k: t.float() for k, t in teachers.network(images, layers).items()}
        full_width = teachers.full_width(truth)
    features = student.trunk(images, layers)
    errors: dict[str, dict[str, Tensor]] = {"feature": {}, "gram": {}, "full_width": {}}
    with torch.autocast(images.device.type, enabled=False):
        for layer in layers:
            s, t, head = features[layer].float(), truth[layer], student.scaled_head(layer)
            target = gram_matrix(t)
            gram = head @ gram_matrix(s) @ head.T
            # ‖H s − t‖² over all positions in Gram matrices: H s itself would be the widest map of all.
            cross = s.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2) @ t.permute(0, 2, 3, 1).flatten(1, 2)
            cross = (cross / t[0, 0].numel() * head.T).sum((1, 2))
            energy = target.diagonal(dim1=1, dim2=2).sum(1)
            error = gram.diagonal(dim1=1, dim2=2).sum(1) - 2 * cross + energy
            errors["feature"][layer] = error / (energy + 1e-2 * len(head))
            errors["gram"][layer] = relative_gram_error(gram, target)
            if layer in full_width:
                error = (student.full_width[layer](s) - full_width[layer]).square().mean((1, 2, 3))
                errors["full_width"][layer] = error / student.get_buffer("variance_" + layer)
    return errors


def load_teacher(path: str) -> LossNetwork:
    """Return a teacher from either weights format."""
    file = ROOT / path
    return load_converted_vgg(file) if file.suffix == ".safetensors" else load_torchvision("vgg19", file)


class Teachers:
    """The teachers as one loss network, and a narrow teacher's own maps to the full-width network's features."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self.network = freeze(MergedLossNetwork([(load_teacher(t.path), list(t.layers)) for t in cfg.teachers]))
        self.network.to(device)
        self.maps: dict[str, tuple[Tensor, Tensor]] = {}
        for teacher in cfg.teachers:
            tensors = read_safetensors(ROOT / teacher.path)[0] if teacher.path.endswith(".safetensors") else {}
            for layer in teacher.layers:
                key = f"to_vgg19.conv{layer[4:]}"
                if key + ".weight" in tensors:
                    self.maps[layer] = (tensors[key + ".weight"].to(device), tensors[key + ".bias"].to(device))

    def full_width(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the estimates of the full-width network's features, after rectification, where there are maps."""
        return {layer: F.relu(F.conv2d(features[layer], *parts)) for layer, parts in self.maps.items()}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    mixed = precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)


class ScaledSlimVGG(SlimVGG):
    """The student in training: its heads estimate each channel in units of that channel's root mean square.

    Edge filters fire rarely and strongly; heads that must grow to their size learn slowly.
    """

    def start(
        self, images: Tensor, truth: dict[str, Tensor], full_width: dict[str, Tensor], earlier: SlimVGG | None = None
    ) -> None:
        """Give every convolution zero mean and unit variance on some images, and fit the heads by ridge regression.

        Where there is an earlier student it is taken over; filters that it has not are new and read by new ones alone.
        """
        # A narrow teacher's estimates of full-width features are learned beside its own, by heads that are not kept.
        self.full_width = torch.nn.ModuleDict(
            {k: torch.nn.Conv2d(self.trunk.filters[k], t.shape[1], 1, bias=False) for k, t in full_width.items()}
        )
        x, block = self.trunk.preprocess(images), "1"
        for name, convolution in self.trunk.convolutions.items():
            torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            torch.nn.init.zeros_(convolution.bias)
            x, block = (F.max_pool2d(x, 2) if name[0] != block else x), name[0]
            y = convolution(x)
            mean, deviation = y.mean((0, 2, 3)), y.std((0, 2, 3))
            convolution.weight /= deviation[:, None, None, None]
            convolution.bias.copy_(0.3 * torch.randn(len(mean)) - mean / deviation)
            if earlier is not None:
                old = earlier.trunk.convolutions[name]
                convolution.weight[: old.out_channels] = 0
                convolution.weight[: old.out_channels, : old.in_channels] = old.weight
                convolution.bias[: old.out_channels] = old.bias
            x = F.relu(convolution(x))
        for layer, features in self.trunk(images, self.layers).items():
            scale = truth[layer].square().mean((0, 2, 3)).sqrt().clamp_min(1e-2)
            self.register_buffer("scale_" + layer, scale[:, None, None])
            s = to_positions(features)
            normal = s.T @ s
            normal += 1e-3 * normal.diagonal().mean() * torch.eye(len(normal))
            weights = torch.linalg.solve(normal, s.T @ to_positions(truth[layer] / scale[:, None, None]))
            self.heads[layer].weight.copy_(weights.float().T[:, :, None, None])
            if earlier is not None:
                head = earlier.heads[layer].weight / scale[:, None, None, None]
                self.heads[layer].weight.zero_()[:, : head.shape[1]] = head
            if layer in full_width:
                weights = torch.linalg.solve(normal, s.T @ to_positions(full_width[layer]))
                self.full_width[layer].weight.copy_(weights.float().T[:, :, None, None])
                variance = to_positions(full_width[layer]).var(0).mean()
                self.register_buffer("variance_" + layer, variance.float())

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


@torch.no_grad()
def new_student(cfg: DictConfig, teachers: Teachers, mixture: Mixture, earlier: SlimVGG | None = None) -> ScaledSlimVGG:
    torch.manual_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    images = torch.stack([mixture.photograph(128, rng) for _ in range(48)])
    truth = teachers.network(images, teachers.network.layers)
    widths = OmegaConf.to_container(cfg.widths)
    student = ScaledSlimVGG(widths, {layer: t.shape[1] for layer, t in truth.items()})  # type: ignore[arg-type]
    # Pixels to about zero mean and unit variance; the convolutions learn the rest.
    student.trunk.preprocess.weight.data = torch.eye(3)[:, :, None, None] * 4
    student.trunk.preprocess.bias.data = torch.full((3,), -1.8)
    student.trunk.preprocess.requires_grad_(False)
    student.start(images, truth, teachers.full_width(truth), earlier)
    return student


def as_matrix(weight: Tensor) -> Tensor:
    """Return a channels-last convolution weight as the matrix (out, kernel and in) that shares its memory."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


class Optimizer:
    """Muon (Jordan et al. 2024) for the convolutions, seen as matrices, AdamW for the biases, one cycle for both."""

    def __init__(self, student: SlimVGG, learning_rate: float, steps: int) -> None:
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.weights = [p for p in self.parameters if p.dim() == 4]
        self.matrices = [torch.nn.Parameter(as_matrix(p.data)) for p in self.weights]
        assert all(m.data_ptr() == w.data_ptr() for m, w in zip(self.matrices, self.weights, strict=True))
        biases = [p for p in self.parameters if p.dim() != 4]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(self.matrices, learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(biases, learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.schedules = [
            torch.optim.lr_scheduler.OneCycleLR(o, learning_rate, steps + 1, pct_start=0.05, cycle_momentum=False)
            for o in self.optimizers
        ]

    def step(self, loss: Tensor) -> None:
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
                optimizer.step()
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate([*self.optimizers, *self.schedules])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate([*self.optimizers, *self.schedules]):
            part.load_state_dict(state[str(i)])


def distil(cfg: DictConfig, earlier: SlimVGG | None = None) -> ScaledSlimVGG:
    """Train a student, a new one or an earlier one that is taken over, or go on from its saved state, and return it."""
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    run = Path(cfg.run)
    run.mkdir(parents=True, exist_ok=True)
    teachers = Teachers(cfg, device)
    mixture = Mixture(cfg)
    student = new_student(cfg, Teachers(cfg, torch.device("cpu")), mixture, earlier)
    student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Optimizer(student, cfg.learning_rate, cfg.steps)
    first, seconds = 0, 0.0
    state_file = run / "state.pt"
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
        bar = progress.add_task("distil", total=cfg.steps, completed=first, loss="")
        for step in range(first, cfg.steps):
            shape = int(np.random.default_rng((cfg.seed, step)).integers(len(cfg.batches)))
            rng = np.random.default_rng((cfg.seed, step, rank))
            count, size = cfg.batches[shape]
            with context:
                adversary = canvases[shape] if step % 3 == 2 else networks[step % len(networks)]
                made = adversary.pictures(student, count // 2, size, rng)
                clean = mixture.batch(count - count // 2, size, rng).to(device)
                images = torch.cat([made, clean]).contiguous(memory_format=torch.channels_last)
                errors = matching_errors(student, teachers, images)
            # g / (1 + g): one picture whose Gram matrix is far off must not outweigh the rest of the batch
            bounded = {k: g / (1 + g) for k, g in errors["gram"].items()}
            terms = [
                weight * cfg.layer_weights[layer] * error.mean()
                for weight, part in ((1, errors["feature"]), (cfg.gram_weight, bounded), (1, errors["full_width"]))
                for layer, error in part.items()
            ]
            loss = torch.stack(terms).sum()
            optimizer.step(loss)
            for kind, part in errors.items():
                for layer, value in part.items():
                    for group, figures in (("made", value[: count // 2]), ("clean", value[count // 2 :])):
                        key = f"{group}/{kind}/{layer}"
                        running[key] = running.get(key, 0.0) * 0.99 + 0.01 * float(figures.detach().mean())
            progress.update(bar, advance=1, loss=f"loss {loss.item():.3f}")
            if rank == 0 and ((step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps):
                seconds = time.perf_counter() - start
                state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"step": step + 1, "seconds": seconds}
                torch.save(state, state_file.with_suffix(".tmp"))
                state_file.with_suffix(".tmp").replace(state_file)
                log.write(json.dumps({"step": step + 1, "seconds": seconds, **running}) + "\n")
                log.flush()
    return student


def trunk_widths(student: SlimVGG) -> list[list[int]]:
    """Return the channels of the convolutions, block by block."""
    convolutions = student.trunk.convolutions.items()
    return [[c.out_channels for name, c in convolutions if name[0] == str(block)] for block in range(1, 6)]


@torch.no_grad()
def prune(cfg: DictConfig, student: SlimVGG, mixture: Mixture) -> SlimVGG:
    """Return the student without the filters that no picture of any kind makes fire."""
    layers = ["relu" + name for name in student.trunk.convolutions]
    energy = dict.fromkeys(layers, torch.zeros(()))
    for step in range(cfg.prune_batches):
        images = mixture.batch(*cfg.prune_batch, np.random.default_rng((cfg.seed, cfg.steps, step)))
        for layer, features in student.trunk(images, layers).items():
            energy[layer] = energy[layer] + features.double().square().mean((0, 2, 3))
    kept = {k[4:]: (e > cfg.prune_below * e.mean()).nonzero()[:, 0] for k, e in energy.items()}
    widths = [[len(kept[name]) for name in kept if name[0] == str(block)] for block in range(1, 6)]
    pruned = SlimVGG(widths, {layer: head.out_channels for layer, head in student.heads.items()})
    pruned.trunk.preprocess.load_state_dict(student.trunk.preprocess.state_dict())
    read = torch.arange(3)
    for name, convolution in student.trunk.convolutions.items():
        new = pruned.trunk.convolutions[name]
        new.weight.copy_(convolution.weight[kept[name]][:, read])
        new.bias.copy_(convolution.bias[kept[name]])
        read = kept[name]
    for layer, head in student.heads.items():
        pruned.heads[layer].weight.copy_(head.weight[:, kept[layer[4:]]])
    return pruned


def widen_first_layer(cfg: DictConfig, student: SlimVGG, teachers: Teachers, mixture: Mixture) -> SlimVGG:
    """Return the student with more filters in its first convolution, which nothing but the head of relu1_1 reads.

    The trunk needs no more; a full-width first layer does. All other layers stay as they are.
    """
    old, heads = student.state_dict(), {layer: head.out_channels for layer, head in student.heads.items()}
    widths, more = trunk_widths(student), int(cfg.tap_filters)
    kept = widths[0][0]
    widths[0][0] += more
    torch.manual_seed(cfg.seed)
    wide = SlimVGG(widths, heads)
    new = wide.state_dict()
    new["trunk.convolutions.1_2.weight"].zero_()
    for name, tensor in old.items():
        new[name][tuple(slice(side) for side in tensor.shape)] = tensor
    wide.load_state_dict(new)
    first, head = wide.trunk.convolutions["1_1"], wide.heads["relu1_1"]
    optimizer = torch.optim.Adam([first.weight, first.bias, head.weight], cfg.tap_learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.tap_learning_rate, cfg.tap_steps)
    for step in range(cfg.tap_steps):
        images = mixture.batch(*cfg.tap_batch, np.random.default_rng((cfg.seed, cfg.steps + step)))
        with torch.no_grad():
            truth = teachers.network(images, ["relu1_1"])["relu1_1"]
        estimate = wide.estimates(images, ["relu1_1"])["relu1_1"]
        feature = (estimate - truth).square().mean((1, 2, 3)) / (truth.square().mean((1, 2, 3)) + 1e-2)
        optimizer.zero_grad()
        feature.mean().backward()
        for parameter in (first.weight, first.bias):
            parameter.grad[:kept] = 0
        optimizer.step()
        schedule.step()
    return wide


# Report


def to_positions(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).double()


@torch.no_grad()
def fidelity(cfg: DictConfig, student: SlimVGG, photographs: int = 200) -> dict[str, float]:
    """Return each layer's R² on validation photographs at 256 px, after a 1×1 map with bias by least squares."""
    teachers = Teachers(cfg, torch.device("cpu"))

    def pairs(folder: str, count: int) -> Any:
        names = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in PICTURES)
        for path in names[:: max(1, len(names) // count)][:count]:
            image = Image.open(path).convert("RGB")
            ratio = 256 / min(image.size)
            image = image.resize((max(256, round(image.width * ratio)), max(256, round(image.height * ratio))), 1)
            left, top = (image.width - 256) // 2, (image.height - 256) // 2
            x = torch.from_numpy(np.array(image.crop((left, top, left + 256, top + 256)))).permute(2, 0, 1)[None] / 255
            truth = teachers.network(x, student.layers)
            truth |= teachers.full_width(truth)
            yield student(x, student.layers), truth

    normal: dict[str, list[Tensor]] = {}
    for seen, truth in pairs(cfg.photographs, photographs):
        for layer in student.layers:
            s, t = to_positions(seen[layer]), to_positions(truth[layer])
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
    for seen, truth in pairs(cfg.validation, 10**6):
        for layer in student.layers:
            s, t = to_positions(seen[layer]), to_positions(truth[layer])
            error = (torch.cat([s, torch.ones(len(s), 1)], 1) @ maps[layer] - t).square().sum()
            a = sums.setdefault(layer, [0.0, 0.0, 0.0, 0])
            a[0] += float(error)
            a[1] += float(t.square().sum())
            a[2] = a[2] + t.sum(0)
            a[3] += len(t)
    return {k: 1 - e / (q - float((m / n).square().sum() * n)) for k, (e, q, m, n) in sums.items()}


def multiply_adds(widths: Sequence[Sequence[int]]) -> float:
    """Return multiply-adds of the convolutions per pixel of the picture."""
    total, channels, pixels = 0.0, 3, 1.0
    for block_widths in widths:
        for width in block_widths:
            total += 9 * channels * width * pixels
            channels = width
        pixels /= 4
    return total


def write_report(cycles: Sequence[DictConfig], processes: int) -> None:
    """Write what was trained and how well it matches, as JSON and as a page beside it."""
    cfg = cycles[-1]
    lasts = [json.loads(Path(cycle.run, "log.jsonl").read_text().splitlines()[-1]) for cycle in cycles]
    last, seconds = lasts[-1], sum(entry["seconds"] for entry in lasts)
    released = load_slim_vgg(cfg.output)
    widths, r2 = trunk_widths(released), fidelity(cfg, released)
    report = {
        "fidelity_r2": r2,
        "relative_errors_in_training": {k: v for k, v in last.items() if "/" in k},
        "widths": widths,
        "multiply_adds_per_pixel": multiply_adds(widths),
        "vgg19_multiply_adds_per_pixel": multiply_adds([[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512]]),
        "bytes": Path(cfg.output).stat().st_size,
        "steps": [entry["step"] for entry in lasts],
        "pixels_a_step": processes * sum(count * size**2 for count, size in cfg.batches) / len(cfg.batches),
        "seconds": seconds,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "teachers": [Path(t.path).name for t in cfg.teachers],
        "seed": cfg.seed,
        "sha256": student_sha256(cfg.output),
    }
    path = Path(cfg.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    source = {layer: Path(t.path).stem for t in cfg.teachers for layer in t.layers}
    rows = []
    for layer in released.layers:
        clean, made = last[f"clean/gram/{layer}"], last[f"made/gram/{layer}"]
        rows.append(f"| {layer} | {source[layer]} | {r2[layer]:.3f} | {clean:.3f} | {made:.3f} |")
    trunk = " \\| ".join(",".join(map(str, block)) for block in widths)
    slim, full = report["multiply_adds_per_pixel"] / 1e3, report["vgg19_multiply_adds_per_pixel"] / 1e3
    steps = " and ".join(map(str, report["steps"]))
    page = f"""# vgg19_slim

Written by `OMP_NUM_THREADS={report["threads"]} torchrun --nproc-per-node {processes} scripts/distill_loss_network.py`;
the figures are in `{path.name}`.

A VGG of 3×3 convolutions {trunk} with max pooling between, trained from
scratch. 1×1 heads estimate the teachers' features. They are stored in the teachers' channels; loading makes a metric of
the trunk's own channels of them, which leaves every content and Gram distance as it is and makes the loss cheap.

- {report["bytes"] / 1e6:.2f} MB as float16; {slim:.1f} k multiply-adds a pixel against
  {full:.0f} k of VGG-19 to conv5_1.
  Measured times: `benchmarks/loss_network.json`.
- {steps} steps of {report["pixels_a_step"] / 1e3:.0f} k pixels (mean) in {seconds / 60:.0f} minutes on
  {report["device"]}, {report["processes"]} processes of {report["threads"]} threads.

R²: a 1×1 map with bias by least squares on 200 training photographs at 256², scored on the validation photographs,
pooled over channels and positions. Gram error: ‖G − A‖² / ‖A‖² near the end of training, on pictures that no adversary
made (photographs, paintings, noise, perturbations) and on pictures made against the student: by style networks in
training on it and by pictures being optimised on it.

| layer | teacher | R² | Gram error, other pictures | Gram error, adversaries' pictures |
|---|---|---|---|---|
""" + "\n".join(rows)
    path.with_suffix(".md").write_text(page + "\n")


def student_sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


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
    cycles = [OmegaConf.merge(cfg, cycle, {"run": f"{cfg.run}/{n}"}) for n, cycle in enumerate(cfg.cycles, start=1)]
    student: SlimVGG | None = None
    for cycle in cycles:
        made = Path(cycle.run, "student.safetensors")
        trained = distil(cycle, student)
        if rank == 0:
            mixture, photographs = Mixture(cycle), list(read_pictures(cfg.photographs, 256).values())
            student = prune(cycle, trained.cpu().folded(), mixture)
            if cycle.tap_filters:
                student = widen_first_layer(cycle, student, Teachers(cycle, torch.device("cpu")), mixture)
            student.eval().requires_grad_(False)
            sample = [p[None].float() / 255 for p in photographs[:: max(1, len(photographs) // 100)]]
            origin = "distilled by nst_fast from " + " and ".join(Path(t.path).stem for t in cfg.teachers)
            licence = "VGG-19: Simonyan & Zisserman, CC BY 4.0; quarter-width VGG-19: Wang et al., MIT"
            metadata = {"origin": origin, "teachers_licence": licence}
            save_slim_vgg(student, made, metadata, student.mean_activations(sample, student.layers))
        if dist.is_initialized():
            dist.barrier()
        student = load_slim_vgg(made)
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank == 0:
        Path(cfg.output).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, cfg.output)
        write_report(cycles, processes)
        print(f"{cfg.output}\n{cfg.report}")


if __name__ == "__main__":
    main()
