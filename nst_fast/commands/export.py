"""The command `nst-export`: a training checkpoint to ONNX."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nst_fast import __version__
from nst_fast.assets import INT8, PACKAGE, find_model, is_model
from nst_fast.commands import require_training_packages, run
from nst_fast.errors import UserError
from nst_fast.stylizing.stylizer import Stylizer

USAGE = """
usage: nst-export CHECKPOINT_OR_RUN [-o FILE] [--float-nchw | --int8]

Export a checkpoint that `train` wrote to one self-describing ONNX file.

  CHECKPOINT_OR_RUN  for example runs/train/starry_night/<time>, or checkpoints/last.ckpt in it; for --int8 also a
                     model, an .onnx file or the name of a shipped one
  -o, --output FILE  (default: <style>.onnx, <style>.float.onnx or <style>.int8.onnx, <model>.int8.onnx for a model,
                     in the folder where you are)
  --float-nchw       float32 (N, 3, H, W) RGB in [0, 1] in and out, in place of uint8 (N, H, W, 3)
  --int8             convolutions in 8-bit integers: faster on a processor, and the pictures look alike
  --version          print the version

examples:
  nst-export runs/train/starry_night/2026-01-01_12-00-00/checkpoints/last.ckpt
  nst-export last.ckpt -o models/mine.onnx
  nst-export --int8 mine.onnx
"""


def source_commit() -> str:
    """Return the commit of the clone that runs, or ``unknown`` for an installed wheel."""
    if not (PACKAGE.parent / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a run's config belongs into a model that is handed on: where its user keeps files does not."""
    from nst_fast.commands.configuration import PATH_OPTIONS

    told = {key: dict(config[key]) for key in ("style", "loss", "loss_network", "network", "data", "trainer")}
    for path in (name.split(".") for name in PATH_OPTIONS if "." in name):
        group, key = path
        if told.get(group, {}).get(key) is not None:
            told[group][key] = Path(told[group][key]).name
    return {**told, "seed": config["seed"]}


def describe(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Return everything that a checkpoint says of its network, as a model's metadata.

    Raises KeyError, TypeError, ValueError or AttributeError where it has been tampered with.
    """
    from nst_fast.training.style_transfer import CHECKPOINT_KEY

    ours = checkpoint[CHECKPOINT_KEY]
    config = ours["config"]
    style, network = config["style"], config["network"]
    metadata = {
        "version": __version__,
        "style": style["name"],
        "title": style["title"],
        "artist": style["artist"],
        "licence": style["licence"],
        "image_sha256": ours["image_sha256"],
        "style_size": style["size"],
        "style_weight": f"{ours['style_weight']:.6g}",
        **({} if style["strength"] is None else {"strength": style["strength"]}),
        "loss": config["loss"]["name"],
        "loss_network": ours["loss_network"],
        "network": ", ".join([network["name"], *(f"{key} {network[key]}" for key in network if key != "name")]),
        "data": config["data"]["name"],
        "steps": ours["step"],
        **{k.replace("/", "_"): f"{v:.6g}" for k, v in ours["validation_losses"].items()},
        "config": json.dumps(without_folders(config)),
        "commit": source_commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    return {k: str(v) for k, v in metadata.items()}


def file_name(style: str, kind: str, source: str | Path) -> str:
    """Return what a style's model of a kind is called; UserError, which names its source, where that is no file's."""
    if Path(style).name != style:
        raise UserError(f"{source} has a style called {style!r}, which names no file here: say -o FILE")
    return f"{style}{kind}.onnx"


def export_checkpoint(
    checkpoint: dict[str, Any], path: str | Path | None = None, float_nchw: bool = False, source: str | Path = "it"
) -> Path:
    """Write a checkpoint's network as ONNX with everything that is known of it in the metadata, and return its path.

    Without a path it is called as its style, in the folder where the command is typed. Raises UserError, which names
    the ``source`` of the checkpoint, where that is not as `train` wrote it.
    """
    from nst_fast.training.onnx_export import export
    from nst_fast.training.style_transfer import trained_network

    network = trained_network(checkpoint, source)
    try:
        metadata = describe(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{source} is not as `train` wrote it, its config cannot be read ({reason})") from error
    path = path or file_name(metadata["style"], ".float" if float_nchw else "", source)
    return export(network, path, metadata, float_nchw)


def export_in_8_bits(model: Path, path: str | Path) -> Path:
    """Write an exported model in 8-bit integers, and return its path; raises UserError where it cannot be quantised."""
    from nst_fast.stylizing.quantization import export_int8
    from nst_fast.training.content_images import bundled_photographs

    return export_int8(model, path, bundled_photographs(), bundled_photographs(held_out=True))


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        parser = argparse.ArgumentParser("nst-export", add_help=False)
        parser.add_argument("checkpoint")
        parser.add_argument("-o", "--output", type=os.path.expanduser)
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("--float-nchw", action="store_true")
        kind.add_argument("--int8", action="store_true")
        options = parser.parse_args(arguments)
        try:
            from nst_fast.training.style_transfer import last_checkpoint, read_checkpoint
        except ModuleNotFoundError as error:
            require_training_packages(error)
        given = os.path.expanduser(options.checkpoint)
        if options.int8 and (is_model(options.checkpoint) or not os.path.lexists(given)):
            model = find_model(options.checkpoint)
            print(export_in_8_bits(model, options.output or f"{model.stem}{INT8}.onnx"))
            return
        source = last_checkpoint(given)
        checkpoint = read_checkpoint(source)
        if options.int8:
            with tempfile.TemporaryDirectory() as folder:
                model = export_checkpoint(checkpoint, Path(folder) / "model.onnx", source=source)
                style = Stylizer(model).metadata["style"]
                print(export_in_8_bits(model, options.output or file_name(style, INT8, source)))
        else:
            print(export_checkpoint(checkpoint, options.output, options.float_nchw, source))

    run(command, "nst-export", USAGE)


if __name__ == "__main__":
    main()
