"""The command `nst-preview`: a painting that is new to the gallery, at several content distances, before training."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from nst_fast.commands import require_training_packages, run, tune_torch
from nst_fast.errors import UserError
from nst_fast.files import refuse_existing

USAGE = """
usage: nst-preview style=NAME [key=value ...]

Show on one sheet what a style comes to at several content distances, in one to five minutes on a CPU: after the
gallery has learned the painting's vector alone, and after its whole network has learned for seconds more. `train
style=NAME style.content_distance=…` trains for minutes on what you like.

  style=NAME               starry_night, the_scream, great_wave, composition_vii, or custom
  style.image=FILE         with style=custom: your own picture
  content=FILE             a photograph of yours (default: a cup of coffee)
  content_distances='[medium, 1.4]'  how far pictures may go from the photograph: subtle, medium, strong, or numbers
  style.size=PX            short side of the painting; smaller means smaller strokes (default: the style's)
  size=PX                  long side of each picture (default 384)
  loss_network=NAME        vgg16_slim, vgg16, vgg19, alexnet or teachers
  output=FILE              (default: <style>.preview.jpg)
  overwrite=true           replace it where it is there
  --cfg                    print the resolved config and stop
  --version                print the version

examples:
  nst-preview style=starry_night
  nst-preview style=custom style.image=my.jpg content=photo.jpg
"""


def resolve(cfg: Any, console: Console) -> None:
    """Check a config's values and replace what is automatic by what this machine gets."""
    from omegaconf import ListConfig

    from nst_fast.commands.configuration import require_choice, require_number
    from nst_fast.commands.perceptual_loss import check_content_distance, resolve_device, resolve_perceptual_loss
    from nst_fast.stylizing.formats import format_of

    require_number(cfg, "size", 16, 4096)
    for key in ("vector_steps", "steps"):
        require_number(cfg, key, 1)
    require_number(cfg, "seed", 0, 2**32 - 1)
    require_choice(cfg, "loss.name", ("balanced",))
    require_choice(cfg, "overwrite", (True, False))
    if cfg.style.content_distance is not None:
        raise UserError("style.content_distance is one; here say content_distances='[…]'")
    if not isinstance(cfg.content_distances, ListConfig):
        got = cfg.content_distances
        raise UserError(f"content_distances is {got!r}; a list is needed, as in content_distances='[…]'")
    if not 1 <= len(cfg.content_distances) <= 16:
        raise UserError(f"content_distances has {len(cfg.content_distances)} values; 1 to 16 are needed")
    for distance in cfg.content_distances:
        check_content_distance("content_distances", distance)
    if cfg.output is not None:
        format_of(Path(cfg.output).suffix)
    path = os.path.realpath(cfg.output or f"{cfg.style.name}.preview.jpg")
    if path in {os.path.realpath(given) for given in (cfg.content, cfg.style.image) if given is not None}:
        raise UserError(f"the sheet would replace {path}; output=FILE names another")
    if not cfg.overwrite:
        refuse_existing([Path(path)], "overwrite=true")
    resolve_device(cfg)
    if warning := resolve_perceptual_loss(cfg, cfg.device == "cuda"):
        console.print(warning, style="yellow", soft_wrap=True)


def preview_sheet(cfg: Any) -> Path:
    """Make the sheet that a config asks for and return its path."""
    import torch
    from PIL import Image

    from nst_fast.assets import GALLERY, find_model
    from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_style
    from nst_fast.commands.progress import Steps, download_progress
    from nst_fast.loss.style_weight import content_distance
    from nst_fast.loss.tensors import to_tensor
    from nst_fast.stylizing.images import load_image, resize_long_side, save_image
    from nst_fast.stylizing.stroke import COARSE
    from nst_fast.stylizing.stylizer import Stylizer
    from nst_fast.training.networks import mean_of_others
    from nst_fast.training.onnx_export import import_network
    from nst_fast.training.photographs import bundled_photographs
    from nst_fast.training.preview import preview
    from nst_fast.training.sheet import draw_sheet

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    resolve(cfg, console)
    photograph = Image.fromarray(bundled_photographs(True)[1]) if cfg.content is None else load_image(cfg.content)
    content = to_tensor(resize_long_side(photograph, cfg.size)).to(cfg.device)
    network = import_network(find_model(GALLERY))
    least = network.min_size * (COARSE if cfg.style.underpainting else 1)  # half of it is painted first
    if min(content.shape[2:]) < least:
        height, width = content.shape[2:]
        raise UserError(f"the picture is {width}×{height} px; {least} px each way are needed: give a larger size=")
    with download_progress(console) as fetching:
        loss = create_perceptual_loss(cfg, fetching).to(cfg.device)
        style_targets, _ = find_style(cfg.style, loss, progress=fetching)
    with torch.no_grad():  # a photograph too small ends the command here
        loss.loss_network(content, loss.layers)
    began = time.perf_counter()
    names = list(Stylizer(GALLERY, device="cpu").paintings)
    network.vectors = torch.nn.Parameter(mean_of_others(network.as_learned(), names, cfg.style.name))
    network.to(cfg.device).to(memory_format=torch.channels_last)
    distances = {name: content_distance(name, cfg.loss_network.name) for name in cfg.content_distances}
    total = (cfg.vector_steps + cfg.steps) * len(set(distances.values()))
    console.print(f"style {cfg.style.name} at {cfg.style.size} px, {total} steps on {cfg.device}", soft_wrap=True)
    steps, done = Steps(console), 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if steps.due:
            steps.show(done)

    steps.start("preview", 0, total)
    try:
        made = preview(
            content,
            network,
            loss,
            style_targets,
            list(set(distances.values())),
            vector_steps=cfg.vector_steps,
            steps=cfg.steps,
            underpainting=cfg.style.underpainting,
            seed=cfg.seed,
            on_step=on_step,
        )
    finally:
        steps.stop(done)
    rows = {name: made[distance] for name, distance in distances.items()}
    weights = ", ".join(f"{name}: {row.style_weight:.3g}" for name, row in rows.items())
    console.print(f"loss.style_weight {weights}", soft_wrap=True)
    sheet = draw_sheet(
        [[row.vector, row.everything] for row in rows.values()],
        [str(name) for name in rows],
        [f"the vector alone, {cfg.vector_steps} steps", f"everything, {cfg.steps} more"],
        f"{cfg.style.title}, by style.content_distance",
    )
    path = Path(cfg.output or f"{cfg.style.name}.preview.jpg")
    save_image(sheet, path)
    console.print(f"{2 * len(rows)} pictures in {time.perf_counter() - began:.0f} s")
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
            print(preview_sheet(cfg))
        except ModuleNotFoundError as error:
            require_training_packages(error)

    run(command, "nst-preview", USAGE)


if __name__ == "__main__":
    main()
