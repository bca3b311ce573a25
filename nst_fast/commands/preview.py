"""The command `nst-preview`: a sheet of strengths and brush sizes, to choose from before training."""

from __future__ import annotations

import copy
import itertools
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from nst_fast.commands import require_training_packages, run, tune_torch
from nst_fast.errors import UserError

USAGE = """
usage: nst-preview style=NAME [key=value ...]

Show what a style comes to at several strengths and brush sizes: one sheet, a minute or two on a CPU. Each picture is
that of a network which goes on from a shipped model for seconds; `train style=NAME style.strength=… style.size=…`
trains one for minutes on what you like.

  style=NAME               starry_night, the_scream, great_wave, composition_vii, or custom
  style.image=FILE         with style=custom: your own picture
  content=FILE             a photograph of yours (default: a cup of coffee)
  strengths='[medium, 0.6]'  subtle, medium, strong, or content distances
  brushes='[256, 512]'     px, short side of the painting (style.size of `train`)
  size=PX                  long side of each picture (default 384)
  loss_network=NAME        vgg19_slim, vgg19 or teachers
  output=FILE              (default: <style>.preview.jpg)
  --cfg                    print the resolved config and stop
  --version                print the version

examples:
  nst-preview style=starry_night
  nst-preview style=custom style.image=my.jpg content=photo.jpg
"""

STARTS_FROM = "starry_night"  # shipped model, where there is none of the style
PICTURES, PICTURE_SIZE = 128, 160  # that networks learn on in turn; px
BATCH = 4  # pictures a step


def resolve(cfg: Any, console: Console) -> None:
    """Check a config's values and replace what is automatic by what this machine gets."""
    from omegaconf import ListConfig

    from nst_fast.commands.configuration import check_number, require_choice, require_number
    from nst_fast.commands.perceptual_loss import check_strength, resolve_device, resolve_perceptual_loss
    from nst_fast.stylizing.images import find_format

    require_number(cfg, "size", 16, 4096)
    for key in ("settling_steps", "steps"):
        require_number(cfg, key, 1)
    require_number(cfg, "seed", 0, 2**32 - 1)
    require_choice(cfg, "loss.name", ("balanced",))
    if cfg.style.strength is not None:
        raise UserError("style.strength is one; here say strengths='[…]'")
    for key in ("strengths", "brushes"):
        if not isinstance(cfg[key], ListConfig):
            raise UserError(f"{key} is {cfg[key]!r}; a list is needed, as in {key}='[…]'")
        if not 1 <= len(cfg[key]) <= 16:
            raise UserError(f"{key} has {len(cfg[key])} values; 1 to 16 are needed")
    for brush in cfg.brushes:
        check_number("brushes", brush, 16, 16384)
    for strength in cfg.strengths:
        check_strength("strengths", strength)
    if cfg.output is not None:
        find_format(Path(cfg.output).suffix)
    path = os.path.realpath(cfg.output or f"{cfg.style.name}.preview.jpg")
    if path in {os.path.realpath(given) for given in (cfg.content, cfg.style.image) if given is not None}:
        raise UserError(f"the sheet would replace {path}; output=FILE names another")
    resolve_device(cfg)
    resolve_perceptual_loss(cfg, cfg.device == "cuda", console)


def preview(cfg: Any) -> Path:
    """Make the sheet that a config asks for and return its path."""
    import torch
    from PIL import Image
    from rich.progress import Progress

    from nst_fast.assets import find_model, shipped_models
    from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_style
    from nst_fast.commands.progress import download_progress
    from nst_fast.loss.strength import content_distance, rehearse
    from nst_fast.loss.style_targets import to_image, to_tensor
    from nst_fast.stylizing.images import load_image, resize_long_side, save_image
    from nst_fast.training.content_images import BundledImages, bundled_photographs
    from nst_fast.training.onnx_export import import_network
    from nst_fast.training.sheet import draw_sheet

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    resolve(cfg, console)
    photograph = Image.fromarray(bundled_photographs(True)[1]) if cfg.content is None else load_image(cfg.content)
    content = to_tensor(resize_long_side(photograph, cfg.size)).to(cfg.device)
    with download_progress(console) as fetching:
        loss = create_perceptual_loss(cfg, fetching).to(cfg.device)
        found = [find_style(cfg.style, loss, size, fetching)[0] for size in cfg.brushes]
    paintings = [{name: statistic.to(cfg.device) for name, statistic in painting.items()} for painting in found]
    with torch.no_grad():  # a photograph too small ends the command here
        loss.loss_network(content, [*loss.layers, *loss.sliced_layers])
    began, rows = time.perf_counter(), []
    images = BundledImages(PICTURE_SIZE, cfg.seed, 0.0)
    batches = torch.stack([images[number] for number in range(PICTURES)]).to(cfg.device).split(BATCH)
    start = cfg.style.name if cfg.style.name in shipped_models() else STARTS_FROM
    network = import_network(find_model(start)).to(cfg.device).to(memory_format=torch.channels_last)
    # Rising, so that networks go on from each other, whatever order they are shown in.
    distances = {strength: content_distance(strength, cfg.loss_network.name) for strength in cfg.strengths}
    strengths = sorted(distances, key=lambda strength: distances[strength])
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        steps = cfg.settling_steps + cfg.steps * len(strengths) * len(paintings)
        task = bar.add_task("preview", total=steps)
        learn = partial(rehearse, loss=loss, batches=itertools.cycle(batches), on_step=lambda: bar.advance(task))
        loss.set_style(paintings[len(paintings) // 2])
        middle = distances[strengths[len(strengths) // 2]]
        settled = learn(network, middle, cfg.loss.style_weight * cfg.style.weight, cfg.settling_steps)
        for size, painting in zip(cfg.brushes, paintings, strict=True):
            loss.set_style(painting)
            own, weight, weights, pictures = copy.deepcopy(network), settled, {}, {}
            for strength in strengths:
                weight = weights[strength] = learn(own, distances[strength], weight, cfg.steps)
                with torch.no_grad():
                    pictures[strength] = to_image(own(content).clamp(0, 1))
            rows.append([pictures[strength] for strength in cfg.strengths])
            told = ", ".join(f"{s}: {w:.3g}" for s, w in weights.items())
            console.print(f"style.size={size}, style weights {told}", soft_wrap=True)
    sheet = draw_sheet(
        rows,
        [f"style.size={size}" for size in cfg.brushes],
        [f"style.strength={strength}" for strength in cfg.strengths],
        str(cfg.style.title),
    )
    path = Path(cfg.output or f"{cfg.style.name}.preview.jpg")
    save_image(sheet, path)
    console.print(f"{len(rows) * len(cfg.strengths)} pictures in {time.perf_counter() - began:.0f} s")
    return path


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        tune_torch()
        try:
            from omegaconf import OmegaConf

            from nst_fast.commands.configuration import load_config

            cfg = load_config("preview", [a for a in arguments if a != "--cfg"])
            if "--cfg" in arguments:
                print(OmegaConf.to_yaml(cfg), end="")
                return
            print(preview(cfg))
        except ModuleNotFoundError as error:
            require_training_packages(error)

    run(command, "nst-preview", USAGE)


if __name__ == "__main__":
    main()
