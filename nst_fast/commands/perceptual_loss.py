"""From a config to a perceptual loss: the groups style, loss and loss_network, which several commands share."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

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
from nst_fast.loss.perceptual_loss import LOSSES, PerceptualLoss, Targets, blend
from nst_fast.loss.pretrained import LOSS_NETWORKS, TORCHVISION, VGG_WIDTHS, choose_loss_network, create_loss_network
from nst_fast.loss.style_targets import LARGEST_SIZE, LEAST_SIZE, find_paintings, find_style_targets
from nst_fast.loss.style_weight import DISTANCES, StyleWeightControl, content_distance
from nst_fast.stylizing.images import load_image

PAINTING_SIZES = (91, 128, 181, 256, 362, 512, 724)  # px, short side: sizes of strokes that are tried
LONGEST_NAME = 200  # bytes of a style's name: file systems take 255, suffixes among them


def resolve_device(cfg: Any) -> None:
    """Replace device=auto by what this machine has; UserError for a GPU that is not there."""
    require_choice(cfg, "device", ("auto", "cpu", "cuda", "mps"))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(cfg.device, True):
        raise UserError(f"device={cfg.device}, but torch finds no such GPU here; device=cpu works everywhere")
    if cfg.device == "auto":
        cfg.device = "cuda" if there["cuda"] else "cpu"


def check_content_distance(name: str, distance: Any) -> None:
    """Raise UserError unless a content distance is a known word or a number."""
    if isinstance(distance, str) and distance not in DISTANCES:
        raise UserError(f"{name} is {distance!r}; {nearest(distance, DISTANCES)}, or a content distance")
    if distance not in DISTANCES:
        check_number(name, distance, 0.01, 10, whole=False)


def resolve_perceptual_loss(cfg: Any, gpu: bool, reference: bool = False) -> str:
    """Check the values of the groups style, loss and loss_network, and replace what is automatic.

    A ``reference`` optimises pictures: on a real VGG where one is, with average pooling there, and with more style: one
    picture alone comes out subtle with a network's weight. Returns what the user should know of the loss network, or
    nothing.
    """
    require_number(cfg, "style.size", LEAST_SIZE, LARGEST_SIZE)  # px
    require_number(cfg, "style.underpainting", 0, 1, whole=False)
    require_choice(cfg, "loss.name", LOSSES)
    if cfg.loss.name == "balanced" and cfg.loss.style_weight == "auto":
        cfg.loss.style_weight = 8.0 if reference else 3.0
    for key in ("loss.content_weight", "loss.style_weight", "loss.tv_weight"):
        require_number(cfg, key, 0, whole=False)
    require_weights(cfg, "loss.content_layers")
    require_weights(cfg, "loss.style_layers")
    require_weights(cfg, "loss.sliced_layers", optional=True)
    require_choice(cfg, "loss.pooling", ("auto", "max", "average"))
    require_choice(cfg, "loss.normalise", (True, False))
    require_choice(cfg, "loss_network.name", ("auto", *LOSS_NETWORKS))
    if cfg.style.content_distance is not None:
        check_content_distance("style.content_distance", cfg.style.content_distance)
        if cfg.loss.name != "balanced":
            raise UserError(f"style.content_distance needs loss=balanced, which measures it; got loss={cfg.loss.name}")
    for key in ("name", "title", "artist", "year", "licence", "url", "sha256"):
        require_text(cfg, f"style.{key}")
    if None not in (cfg.style.url, cfg.style.sha256):
        cfg.style.url, cfg.style.sha256 = literal(str(cfg.style.url)), literal(str(cfg.style.sha256))
    cfg.loss_network.name, warning = choose_loss_network(cfg.loss_network.name, gpu, reference)
    if cfg.loss.pooling == "auto":
        cfg.loss.pooling = "average" if reference and cfg.loss_network.name in VGG_WIDTHS else "max"
    cfg.style.name = literal(style_name(cfg.style))
    if cfg.style.title is None:
        cfg.style.title = literal(cfg.style.name)
    return warning


def style_name(style: Any) -> str:
    """Return what a style is called: its name, or its picture's; raises UserError where it has neither."""
    if style.name is None and not (style.image or style.targets):
        raise UserError("style=custom needs a picture: style.image=FILE")
    name = Path(style.image or style.targets).stem if style.name is None else str(style.name)
    if Path(name).name != name or name in ("", "..", "???") or len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"style.name is {name!r}; a name without slashes, of at most {LONGEST_NAME} bytes, is needed: files are "
            "called after it: style.name=NAME"
        )
    return name


def create_perceptual_loss(cfg: Any, progress: Progress | None = None) -> PerceptualLoss:
    """Return the perceptual loss of a config."""
    from PIL import Image

    from nst_fast.training.photographs import bundled_photographs, centre_crop

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
        cfg.loss.style_weight,
        cfg.loss.tv_weight,
        dict(cfg.loss.sliced_layers),
    )


def create_control(cfg: Any, rate: float, paintings: int) -> StyleWeightControl | None:
    """Return what steers the style weights of a config that asks for a content distance; None where it does not."""
    if cfg.style.content_distance is None:
        return None
    distance = content_distance(cfg.style.content_distance, cfg.loss_network.name)
    return StyleWeightControl(distance, cfg.loss.style_weight, rate, paintings)


def find_style(
    style: Any,
    loss: PerceptualLoss,
    size: int | None = None,
    progress: Progress | None = None,
    more: Sequence[str] = (),
) -> tuple[Targets, str]:
    """Return the style targets of a style config, at its own size unless told, and its picture's sha256.

    They are on the loss's device. ``more`` names further ones, which a file may lack.
    """
    found = find_targets(style, loss, [*loss.style_target_names, *more], size or style.size, progress)
    loss.check(found[0])
    return found


def find_targets(
    style: Any, loss: PerceptualLoss, names: list[str], size: int, progress: Progress | None = None
) -> tuple[Targets, str]:
    """Return a style config's targets of these names at a size, on the loss's device, and its picture's sha256."""
    options = {key: style[key] for key in ("name", "image", "targets", "url", "sha256")}
    targets, sha256 = find_style_targets(loss.loss_network, names, size=size, progress=progress, **options)
    device = next(loss.loss_network.parameters()).device
    return {name: targets[name].to(device) for name in names if name in targets}, sha256


def find_gallery(
    style: Any, loss: PerceptualLoss, more: Sequence[str] = ()
) -> tuple[list[Targets], list[dict[str, str]]]:
    """Return the style targets of every painting of a folder, on the loss's device, and what is known of each.

    ``more`` names further targets than the loss's.
    """
    found, told, device = list[Targets](), list[dict[str, str]](), next(loss.loss_network.parameters()).device
    names = [*loss.style_target_names, *more]
    for file, painting in find_paintings(style.images).items():
        size = int(painting.get("style_size", style.size))
        targets, sha256 = find_style_targets(loss.loss_network, names, name=painting["name"], size=size, image=file)
        found.append({name: target.to(device) for name, target in targets.items()})
        told.append({"licence": str(style.licence), **painting, "sha256": sha256})
    return found, told


def find_sizes(cfg: Any, loss: PerceptualLoss) -> dict[int, Targets]:
    """Return a painting's Gram matrices at each of `PAINTING_SIZES` that can be had without another download.

    They tell how large strokes are. Of a real network the painting itself is here by now; for the small one targets of
    some sizes ship. A picture of the user's own is not enlarged. A gallery has none.
    """
    if cfg.style.get("images") is not None:
        return {}
    style = cfg.style if cfg.loss_network.name in TORCHVISION else {**cfg.style, "url": None}
    largest = math.inf if style["image"] is None else min(load_image(style["image"]).size)
    found = {}
    for size in (size for size in PAINTING_SIZES if size <= largest):
        with contextlib.suppress(UserError):
            found[size] = find_targets(style, loss, list(loss.style_layers), size)[0]
    return found


def find_blend(
    cfg: Any, others: Mapping[str, float], loss: PerceptualLoss, size: int, progress: Progress | None = None
) -> tuple[Targets, str]:
    """Return the mean of several paintings' style targets: the config's style with weight 1 and ``others``.

    ``others`` maps names of shipped styles or files to weights, relative to 1. Raises UserError for an unknown name.
    """
    styles = [cfg.style]
    for name in others:
        path = Path(os.path.expanduser(name))
        arguments = ["style=custom", f"style.image={path}"] if path.is_file() else [f"style={name}"]
        styles.append(load_config("optimize", ["content=none", *arguments]).style)
    found = [find_style(style, loss, size, progress) for style in styles]
    mixed = blend([targets for targets, _ in found], [1.0, *others.values()])
    return mixed, "+".join(sha256 for _, sha256 in found)
