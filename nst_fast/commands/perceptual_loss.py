"""From a config to a perceptual loss: the groups style, loss and loss_network, which several commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nst_fast.assets import nearest
from nst_fast.commands.configuration import (
    check_number,
    literal,
    load_config,
    require_choice,
    require_number,
    require_text,
    require_weights,
)
from nst_fast.downloads import Progress
from nst_fast.errors import UserError
from nst_fast.loss.loss_network import LOSS_NETWORKS, choose_loss_network, create_loss_network
from nst_fast.loss.losses import LOSSES, PerceptualLoss
from nst_fast.loss.strength import STRENGTHS, StyleWeightControl, content_distance
from nst_fast.loss.style_targets import style_statistics

LONGEST_NAME = 200  # bytes of a style's name: file systems take 255, suffixes among them


def resolve_device(cfg: Any) -> None:
    """Replace device=auto by what this machine has; UserError for a GPU that is not there."""
    require_choice(cfg, "device", ("auto", "cpu", "cuda"))
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU here; device=cpu works everywhere")
    if cfg.device == "auto":
        cfg.device = "cuda" if torch.cuda.is_available() else "cpu"


def check_strength(name: str, strength: Any) -> None:
    """Raise UserError unless a strength is a known word or a content distance."""
    if isinstance(strength, str) and strength not in STRENGTHS:
        raise UserError(f"{name} is {strength!r}; {nearest(strength, STRENGTHS)}, or a content distance")
    if strength not in STRENGTHS:
        check_number(name, strength, 0.01, 10, whole=False)


def resolve_perceptual_loss(cfg: Any, gpu: bool, console: Console) -> None:
    """Check the values of the groups style, loss and loss_network, and replace what is automatic."""
    require_number(cfg, "style.size", 16, 16384)  # px
    for key in ("loss.content_weight", "loss.style_weight", "loss.tv_weight", "style.weight"):
        require_number(cfg, key, 0, whole=False)
    require_weights(cfg, "loss.content_layers")
    require_weights(cfg, "loss.style_layers")
    require_weights(cfg, "loss.sliced_layers", optional=True)
    require_choice(cfg, "loss.name", LOSSES)
    require_choice(cfg, "loss.pooling", ("max", "average"))
    require_choice(cfg, "loss.normalise", (True, False))
    require_choice(cfg, "loss_network.name", ("auto", *LOSS_NETWORKS))
    if cfg.style.strength is not None:
        check_strength("style.strength", cfg.style.strength)
        if cfg.loss.name != "balanced":
            raise UserError(f"style.strength needs loss=balanced, whose content distance it is; got {cfg.loss.name}")
    for key in ("name", "title", "artist", "year", "licence", "url", "sha256"):
        require_text(cfg, f"style.{key}")
    if None not in (cfg.style.url, cfg.style.sha256):
        cfg.style.url, cfg.style.sha256 = literal(str(cfg.style.url)), literal(str(cfg.style.sha256))
    cfg.loss_network.name, warning = choose_loss_network(cfg.loss_network.name, gpu)
    if warning:
        console.print(warning, style="yellow")
    cfg.style.name = literal(style_name(cfg.style))
    if cfg.style.title is None:
        cfg.style.title = literal(cfg.style.name)


def style_name(style: Any) -> str:
    """Return what a style is called: its name, or its picture's; raises UserError where it has neither."""
    if style.name is None and not (style.image or style.targets):
        raise UserError("style=custom needs a picture: style.image=FILE")
    name = Path(style.image or style.targets).stem if style.name is None else str(style.name)
    if Path(name).name != name or name in ("", "..", "???") or len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"style.name is {name!r}; a name without slashes and of at most {LONGEST_NAME} bytes is needed, files are "
            "called after it: style.name=NAME"
        )
    return name


def create_perceptual_loss(cfg: Any, progress: Progress | None = None) -> PerceptualLoss:
    """Return the perceptual loss of a config, without style targets."""
    from PIL import Image

    from nst_fast.training.content_images import bundled_photographs, centre_crop

    photographs = (centre_crop(Image.fromarray(p), 256)[None].float() / 255 for p in bundled_photographs())
    loss_network = create_loss_network(
        **cfg.loss_network,
        pooling=cfg.loss.pooling,
        normalise=cfg.loss.normalise,
        photographs=photographs,
        progress=progress,
    )
    return LOSSES[cfg.loss.name](
        loss_network,
        dict(cfg.loss.content_layers),
        dict(cfg.loss.style_layers),
        cfg.loss.content_weight,
        cfg.loss.style_weight * cfg.style.weight,
        cfg.loss.tv_weight,
        dict(cfg.loss.sliced_layers),
    )


def create_control(cfg: Any, rate: float) -> StyleWeightControl | None:
    """Return what steers the style weight of a config whose style has a strength; None where it has none."""
    if cfg.style.strength is None:
        return None
    distance = content_distance(cfg.style.strength, cfg.loss_network.name)
    return StyleWeightControl(distance, cfg.loss.style_weight * cfg.style.weight, rate)


def find_style(
    style: Any, loss: PerceptualLoss, size: int | None = None, progress: Progress | None = None
) -> tuple[Mapping[str, Tensor], str]:
    """Return the statistics of a style config, at its own size unless told, and its picture's sha256."""
    options = {key: style[key] for key in ("name", "image", "targets", "url", "sha256")}
    return style_statistics(loss.loss_network, loss.statistics, size=size or style.size, progress=progress, **options)


def find_blend(
    cfg: Any, blend: Mapping[str, float], loss: PerceptualLoss, size: int, progress: Progress | None = None
) -> tuple[dict[str, Tensor], str]:
    """Return the mean of several paintings' statistics: the config's style with weight 1 and those of ``blend``.

    ``blend`` maps names of shipped styles or files to weights, relative to 1. Raises UserError for an unknown name.
    """
    styles = [(cfg.style, 1.0)]
    for name, weight in blend.items():
        path = Path(name).expanduser()
        arguments = ["style=custom", f"style.image={path}"] if path.is_file() else [f"style={name}"]
        styles.append((load_config("optimize", ["content=none", *arguments]).style, weight))
    total = sum(weight for _, weight in styles)
    mixed: dict[str, Tensor] = {}
    hashes = []
    for style, weight in styles:
        statistics, sha256 = find_style(style, loss, size, progress)
        hashes.append(sha256)
        for name, statistic in statistics.items():
            mixed[name] = mixed.get(name, torch.zeros_like(statistic)) + statistic * (weight / total)
    return mixed, "+".join(hashes)
