"""Checkpoints: read without unpickling code and without Lightning, and what they say of the run that they are of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nst_fast.errors import UserError
from nst_fast.loss.style_targets import COLOURS
from nst_fast.loss.terms import are_moments
from nst_fast.training.networks import TransformationNetwork, read_network
from nst_fast.weights import read_torch

CHECKPOINT_KEY = "nst_fast"
STYLE_TARGET = "style_target_"  # before a style target's name, the name of its buffer
STYLE_MEAN = "style_mean_"  # likewise, of the buffer of the newest pictures' mean
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


# What a checkpoint says beside its weights, and must say for a run to go on or a model to be exported.
STORED = {
    "config": dict,
    "loss_network": str,
    "step": int,
    "batches_seen": int,
    "skipped_steps": int,
    "seconds": float,
    "style_weight": float,
    "validation_losses": dict,
}


def last_checkpoint(path: str | Path) -> Path:
    """Return the newest checkpoint of a run, given its folder; any other path is a checkpoint's own."""
    return Path(path) / "checkpoints" / LAST if os.path.isdir(path) else Path(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint of ours, loaded without unpickling code.

    Raises UserError where it is missing, damaged or another project's.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no checkpoint at {path}")
    checkpoint = read_torch(path)
    ours = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not {"config", "step", "loss_network"} <= ours.keys():
        raise UserError(f"{path} is a checkpoint of another project; one that `train` wrote is needed")
    for key, kind in STORED.items():
        if not isinstance(ours.get(key), kind) or (kind is int and ours[key] < 0):
            raise UserError(f"{path} is not as `train` wrote it: its {key} cannot be used")
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not as `train` wrote it: it has no weights")
    colours = kept_colours(checkpoint)
    if colours is not None and not are_colours(*colours):
        raise UserError(f"{path} is not as `train` wrote it: its colours cannot be used")
    means = [value for name, value in checkpoint["state_dict"].items() if str(name).startswith(STYLE_MEAN)]
    if not all(is_plain(value) and value.isfinite().all() for value in means):
        raise UserError(f"{path} is not as `train` wrote it: its means of pictures cannot be used")
    try:
        ours["config"] = upgraded(ours["config"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not as `train` wrote it: its config cannot be read") from error
    return checkpoint


def is_plain(kept: Any) -> bool:
    """Return whether this is a tensor of numbers that are there: float32, neither sparse nor on no device."""
    if not isinstance(kept, Tensor) or kept.layout != torch.strided or kept.device.type != "cpu":
        return False
    return kept.dtype == torch.float32


def kept_colours(checkpoint: dict[str, Any]) -> tuple[Any, Any] | None:
    """Return the `colour_moments` of each painting and of its newest pictures; None where a run followed none."""
    kept = checkpoint["state_dict"]
    names = (STYLE_TARGET + COLOURS, STYLE_MEAN + COLOURS)
    return (kept.get(names[0]), kept.get(names[1])) if kept.keys() & names else None


def are_colours(painting: Any, pictures: Any) -> bool:
    """Return whether these are the `colour_moments` of paintings and of pictures of each, (S, 4, 3)."""
    plain = is_plain(painting) and is_plain(pictures) and painting.ndim == 3 and painting.shape == pictures.shape
    return plain and are_moments(painting) and are_moments(pictures)


def newest_run(root: Path) -> Path:
    """Return the folder of the run in ``root`` that was started or resumed last; UserError where there is none."""
    configs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
    if not configs:
        raise UserError(f"no run in {root}; leave out resume=last to start one")
    return configs[-1].parent


def whole_checkpoint(path: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Return a checkpoint's path, content and notes: those of the one before it where it is damaged or missing."""
    previous = path.with_name(PREVIOUS)
    try:
        return path, read_checkpoint(path), []
    except UserError as error:
        if path.name != LAST or not previous.exists():
            raise
        checkpoint = read_checkpoint(previous)
        return previous, checkpoint, [f"{error}; going on from {previous}"]


def upgraded(config: Any) -> Any:
    """Return the config of a run of an earlier version in today's options; what is none is returned as it is."""
    if not isinstance(config, dict):
        return config
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    groups = (config.get(key) for key in ("style", "loss", "network", "trainer"))
    style, loss, network, trainer = (group if isinstance(group, dict) else {} for group in groups)
    if "strength" in style:
        style["content_distance"] = style.pop("strength")
    if "weight" in style:
        loss["style_weight"] = loss["style_weight"] * style.pop("weight")
    if network.get("grain") in ("noise", "contrast", "none"):
        network["grain"], network["contrast"] = network["grain"] == "noise", network["grain"] == "contrast"
    if network.get("name") in ("fast", "tiny"):
        network.setdefault("margin", 8)
    for key in ("cpu_steps", "gpu_steps"):
        trainer.pop(key, None)
    trainer.setdefault("own_style", 1.0)
    return config


def trained_network(checkpoint: dict[str, Any], path: str | Path) -> TransformationNetwork:
    """Return the network of a checkpoint that was read from a path.

    Raises UserError where its weights are not those of the network that its config names.
    """
    config = checkpoint[CHECKPOINT_KEY]["config"].get("network")
    weights = {k[8:]: v for k, v in checkpoint["state_dict"].items() if isinstance(k, str) and k.startswith("network.")}
    return read_network(config, weights, path)
