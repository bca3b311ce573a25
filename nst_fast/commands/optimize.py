"""The command `nst-optimize`: Gatys' per-image optimiser, the slow reference."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console

from nst_fast.commands import require_training_packages, run, tune_torch
from nst_fast.errors import UserError
from nst_fast.files import new_folder, refuse_existing

if TYPE_CHECKING:
    from torch import Tensor

    from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets

COARSEST = 80  # px, short side of the first scale: what a real VGG sees at once there, it lays out as one
LONGEST_NAME = 240  # bytes of a file's name without its suffix: it has more while it is written

USAGE = """
usage: nst-optimize content=PHOTO style=NAME [key=value ...]

Optimise the pixels of one picture on the perceptual loss (Gatys et al.): the slow way, which the networks imitate.

  content=FILE             the photograph
  style=NAME               starry_night, the_scream, great_wave, composition_vii, or custom
  style.image=FILE         with style=custom: your own picture
  style.size=PX            short side of the painting; smaller gives smaller strokes (default 512)
  size=PX                  long side of the result (default 512; null: the photograph's)
  scales=N                 paint small first: start at size/2^(N-1) and double (default: from a short side of 80 px;
                           1 on vgg16_slim)
  start=content|noise      where to start; start_image=FILE starts from a picture
  method=lbfgs|adam
  iterations=N             at most, at each scale (default 300)
  blend='{the_scream: 0.5}'  more paintings, by name or file, beside the style, which has weight 1
  keep_colours=true         luminance of the result, colours of the photograph
  snapshot_every=N         write the picture every N iterations
  format=png|jpg
  loss=NAME                balanced, gatys or johnson; loss.style_weight=W (balanced: 8),
                           loss.style_layers='{relu1_1: 1}', …
  loss_network=NAME        vgg16_slim, vgg16, vgg19, alexnet or teachers (default: vgg19 or vgg16 if it is on this
                           machine or, on a GPU, can be fetched; else vgg16_slim)
  experiment=NAME          presets of the paper: gatys2016, gatys2016_figure1_content, gatys2016_figure1_style
  output=FOLDER            (default: runs/optimize/<style>/<time>)
  overwrite=true           replace an earlier result in it
  --cfg                    print the resolved config and stop
  --version                print the version

Ctrl-C ends early and saves the best picture so far.

examples:
  nst-optimize content=photo.jpg style=starry_night
  nst-optimize content=photo.jpg style=custom style.image=my.jpg size=1024 scales=3 format=jpg
"""


def resolve(cfg: Any) -> str:
    """Check a config's values and replace what is automatic by what this machine gets.

    Returns what the user should know of the loss network, or nothing.
    """
    from nst_fast.commands.configuration import require_choice, require_number, require_weights
    from nst_fast.commands.perceptual_loss import resolve_device, resolve_perceptual_loss
    from nst_fast.reference.image_optimizer import METHODS, STARTS

    if cfg.content is None:
        raise UserError("content is null; give the photograph: content=FILE")
    require_number(cfg, "size", 16, 32768, optional=True)  # px
    require_number(cfg, "scales", 1, 16, optional=True)
    require_number(cfg, "iterations", 1)
    require_number(cfg, "snapshot_every", 1, optional=True)
    require_number(cfg, "learning_rate", 0, whole=False)
    require_number(cfg, "seed", 0, 2**32 - 1)
    require_choice(cfg, "method", METHODS)
    require_choice(cfg, "start", STARTS)
    require_choice(cfg, "format", ("png", "jpg"))
    for key in ("keep_colours", "overwrite"):
        require_choice(cfg, key, (True, False))
    require_weights(cfg, "blend", optional=True)
    if cfg.style.content_distance is not None:
        raise UserError("style.content_distance is for train and nst-preview; here say loss.style_weight=W")
    resolve_device(cfg)
    return resolve_perceptual_loss(cfg, cfg.device == "cuda", reference=True)


def usual_scales(short_side: float) -> int:
    """Return how many scales a result of a short side in pixels has, the first no smaller than `COARSEST`."""
    return 1 + max(0, math.floor(math.log2(short_side / COARSEST)))


def optimize(cfg: Any) -> Path:
    """Optimise as a config says, leave the run's folder behind and return the path of the picture."""
    from nst_fast.loss.pretrained import TORCHVISION
    from nst_fast.loss.tensors import to_image
    from nst_fast.reference.image_optimizer import optimize_picture
    from nst_fast.stylizing.images import keep_colours, load_image, save_image

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    warning = resolve(cfg)
    photograph = load_image(cfg.content)
    size = cfg.size or max(photograph.size)
    if cfg.scales is None:
        short_side = size * min(photograph.size) / max(photograph.size)
        cfg.scales = usual_scales(short_side) if cfg.loss_network.name in TORCHVISION else 1
    start = cfg.start if cfg.start_image is None else load_image(cfg.start_image)
    sizes = [max(16, round(size / 2**octave)) for octave in reversed(range(cfg.scales))]
    perceptual_loss, found = prepare_loss(cfg, photograph, sizes, console)
    name = f"{Path(cfg.content).stem}.{cfg.style.name}"
    picture = f"{name}.{cfg.format}"
    if len(os.fsencode(name)) > LONGEST_NAME:  # before minutes of work
        raise UserError(f"the picture's name {name} would be too long; rename the photograph")
    output = start_folder(cfg, ("config.yaml", "trace.json", "snapshots", picture))

    def finish(image: Tensor, path: Path) -> Path:
        optimized = to_image(image)
        if cfg.keep_colours:
            optimized = keep_colours(optimized, photograph.resize(optimized.size, Image.Resampling.LANCZOS))
        save_image(optimized, path)
        return path

    if warning:
        console.print(warning, style="yellow", soft_wrap=True)
    console.print(
        f"style {cfg.style.name} at {cfg.style.size} px, loss {cfg.loss.name}, loss network "
        f"{perceptual_loss.loss_network.identity[:30]}, {cfg.method} on {cfg.device} at {sizes} px → {output}",
        soft_wrap=True,
    )
    with Follower(cfg, output, console, finish) as follower:
        image, trace = optimize_picture(
            photograph,
            perceptual_loss,
            {scale: targets for scale, (targets, _) in zip(sizes, found, strict=True)},
            start=start,
            method=cfg.method,
            iterations=cfg.iterations,
            learning_rate=cfg.learning_rate,
            seed=cfg.seed,
            on_iteration=follower.follow,
        )
    report = {
        "content": Path(cfg.content).name,
        "style": cfg.style.name,
        "image_sha256": found[-1][1],
        "loss_network": perceptual_loss.loss_network.identity,
        "stopped_early": follower.stopped,
        "trace": trace,
    }
    (output / "trace.json").write_text(json.dumps(report, indent=1) + "\n")
    if follower.stopped:
        console.print(f"interrupted at {trace[-1]['size']} px: this is the best picture so far", style="yellow")
    return finish(image, output / picture)


def prepare_loss(
    cfg: Any, photograph: Image.Image, sizes: list[int], console: Console
) -> tuple[PerceptualLoss, list[tuple[Targets, str]]]:
    """Return the loss, and for each size of the result the painting's style targets and its sha256.

    Nothing is written before: a picture too small or a painting that cannot be had ends the command here.
    """
    import torch

    from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_blend
    from nst_fast.commands.progress import download_progress
    from nst_fast.loss.tensors import to_tensor
    from nst_fast.stylizing.images import resize_long_side

    brushes = [round(cfg.style.size * size / (cfg.size or max(photograph.size))) for size in sizes]
    with download_progress(console) as fetching:
        perceptual_loss = create_perceptual_loss(cfg, fetching).to(cfg.device)
        with torch.no_grad():
            smallest = to_tensor(resize_long_side(photograph, sizes[0])).to(cfg.device)
            perceptual_loss.loss_network(smallest, perceptual_loss.layers)
        blend = dict(cfg.blend or {})
        return perceptual_loss, [find_blend(cfg, blend, perceptual_loss, brush, fetching) for brush in brushes]


def start_folder(cfg: Any, files: tuple[str, ...]) -> Path:
    """Make the folder that a config names, or a new one, and write the config into it.

    Raises UserError where that is not possible, or one of the run's files is there and may not be replaced.
    """
    from omegaconf import OmegaConf

    from nst_fast.commands.configuration import literal

    started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if cfg.output is None:
        output = new_folder(Path("runs", "optimize", cfg.style.name, started))
    else:
        output = Path(cfg.output)
        if not cfg.overwrite:
            refuse_existing((output / file for file in files), "overwrite=true")
    cfg.output = literal(str(output))
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / "config.yaml").open("w" if cfg.overwrite else "x", encoding="utf-8") as file:
            OmegaConf.save(cfg, file)
    except OSError as error:
        raise UserError(f"cannot write into {output}: {error.strerror}; output=FOLDER moves it") from error
    return output


class Follower:
    """Show how an optimisation goes, log it to TensorBoard, keep snapshots, and end it where Ctrl-C comes."""

    def __init__(self, cfg: Any, output: Path, console: Console, finish: Callable[[Any, Path], Path]) -> None:
        self.cfg, self.output, self.console, self.finish = cfg, output, console, finish
        self.stopped = False
        self.scale: int | None = None  # under way
        self.before = self.done = 0  # iterations, of earlier scales and in all
        self.figures = ""  # of the last one

    def __enter__(self) -> Follower:
        """Draw the bar, open the log and take Ctrl-C over; UserError where the log cannot be written."""
        from torch.utils.tensorboard import SummaryWriter

        from nst_fast.commands.progress import Steps

        try:
            self.board = SummaryWriter(str(self.output / "tensorboard"))
        except OSError as error:
            raise UserError(f"cannot write into {self.output}: {error.strerror}; output=FOLDER moves it") from error
        self.steps = Steps(self.console)
        self.earlier = signal.signal(signal.SIGINT, self.stop)
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave everything as it was."""
        signal.signal(signal.SIGINT, self.earlier)
        self.end_scale()
        self.steps.stop()
        self.board.close()

    def stop(self, *_: Any) -> None:
        """End after this iteration; a second Ctrl-C ends at once."""
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_scale(self) -> None:
        """Show where the scale under way ended, perhaps early."""
        if self.scale is not None:
            self.steps.show(self.done - self.before, self.figures)

    def follow(self, scale: int, iteration: Any) -> bool:
        """Take note of an iterate, and return whether to end."""
        cfg, number = self.cfg, iteration.number
        if scale != self.scale:
            self.end_scale()
            self.before, self.scale = 0 if self.scale is None else self.done + 1, scale
            self.steps.start(f"{scale} px", number, cfg.iterations)
        self.done = self.before + number
        self.figures = "  ".join(f"{k} {v:.4g}" for k, v in iteration.losses.items())
        if self.steps.due:
            self.steps.show(number, self.figures)
        for term, value in iteration.losses.items():
            self.board.add_scalar(f"optimize/{term}_loss", value, self.done)
        if cfg.snapshot_every and number % cfg.snapshot_every == 0:
            self.finish(iteration.image, self.output / "snapshots" / f"{scale}px_{number:05d}.{cfg.format}")
        return self.stopped


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        tune_torch()
        try:
            from omegaconf import OmegaConf

            from nst_fast.commands.configuration import load_config

            cfg = load_config("optimize", [a for a in arguments if a != "--cfg"])
            if "--cfg" in arguments:
                print(OmegaConf.to_yaml(cfg), end="")
                return
            print(optimize(cfg))
        except ModuleNotFoundError as error:
            require_training_packages(error)

    run(command, "nst-optimize", USAGE)


if __name__ == "__main__":
    main()
