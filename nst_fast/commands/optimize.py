"""The command `nst-optimize`: Gatys' per-image optimiser, the slow reference."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nst_fast.commands import require_training_packages, run, tune_torch
from nst_fast.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from nst_fast.loss.losses import PerceptualLoss
    from nst_fast.reference.image_optimizer import Iteration

LONGEST_NAME = 240  # bytes of a file's name without its suffix: it has more while it is written

USAGE = """
usage: nst-optimize content=PHOTO style=NAME [key=value ...]

Optimise the pixels of one picture on the perceptual loss: the slow path that the networks approximate.

  content=FILE             the photograph
  style=NAME               starry_night, the_scream, great_wave, composition_vii, or custom
  style.image=FILE         with style=custom: your own picture
  style.size=PX            short side of the painting; smaller means smaller strokes (default 384)
  size=PX                  long side of the result (default 512; null: as the photograph is)
  scales=N                 coarse to fine: start at size/2^(N-1) and double
  start=content|noise      or start_image=FILE
  method=lbfgs|adam
  iterations=N             at most, at each scale (default 300)
  blend='{the_scream: 0.5}'  other paintings, by name or file, beside the style with weight 1
  keep_colours=true        luminance of the result, colours of the photograph
  snapshot_every=N         write the picture every N iterations
  format=png|jpg
  loss=NAME                structure, balanced, gatys, johnson; loss.style_weight=W, loss.style_layers='{relu1_1: 1}', …
  loss_network=NAME        vgg19_slim, vgg19 or teachers
  experiment=gatys2016_figure2   the paper's presets: figure1_content, figure1_style, figure2, figure3
  output=FOLDER            (default: runs/optimize/<style>/<time>)
  --cfg                    print the resolved config and stop
  --version                print the version

Ctrl-C ends early and saves the best picture so far.

examples:
  nst-optimize content=photo.jpg style=starry_night
  nst-optimize content=photo.jpg style=custom style.image=my.jpg size=1024 scales=3 format=jpg
"""


def resolve(cfg: Any, console: Console) -> None:
    """Check a config's values and replace what is automatic by what this machine gets."""
    from nst_fast.commands.configuration import require_choice, require_number, require_weights
    from nst_fast.commands.perceptual_loss import resolve_device, resolve_perceptual_loss
    from nst_fast.reference.image_optimizer import METHODS, STARTS

    if cfg.content is None:
        raise UserError("content is null; the photograph is needed: content=FILE")
    require_number(cfg, "size", 16, 32768, optional=True)  # px
    require_number(cfg, "scales", 1, 16)
    require_number(cfg, "iterations", 1)
    require_number(cfg, "snapshot_every", 1, optional=True)
    require_number(cfg, "learning_rate", 0, whole=False)
    require_number(cfg, "seed", 0, 2**32 - 1)
    require_choice(cfg, "method", METHODS)
    require_choice(cfg, "start", STARTS)
    require_choice(cfg, "format", ("png", "jpg"))
    require_choice(cfg, "keep_colours", (True, False))
    require_weights(cfg, "blend", optional=True)
    if cfg.style.strength is not None:
        raise UserError("style.strength is for train and nst-preview; here say loss.style_weight=W")
    resolve_device(cfg)
    resolve_perceptual_loss(cfg, cfg.device == "cuda", console)


def optimize(cfg: Any) -> Path:
    """Optimise as a config says, leave the run's folder behind and return the path of the picture."""
    from torch.utils.tensorboard import SummaryWriter

    from nst_fast.stylizing.images import load_image

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    resolve(cfg, console)
    photograph = load_image(cfg.content)
    size = cfg.size or max(photograph.size)
    sizes = [max(16, round(size / 2**octave)) for octave in reversed(range(cfg.scales))]
    start_image = None if cfg.start_image is None else load_image(cfg.start_image)
    perceptual_loss, targets = prepare_loss(cfg, photograph, sizes, console)
    name = f"{Path(cfg.content).stem}.{cfg.style.name}"
    if len(os.fsencode(name)) > LONGEST_NAME:  # before minutes of work
        raise UserError(f"the picture would be called {name}, which is too long; rename the photograph")
    output = create_output(cfg)
    try:
        board = SummaryWriter(str(output / "tensorboard"))
    except OSError as error:
        raise UserError(f"cannot write into {output}: {error.strerror}; output=FOLDER moves it") from error
    console.print(
        f"style {cfg.style.name} at {cfg.style.size} px, loss {cfg.loss.name}, loss network "
        f"{perceptual_loss.loss_network.identity[:30]}, {cfg.method} on {cfg.device} at {sizes} px → {output}",
        soft_wrap=True,
    )
    optimization = Optimization(cfg, photograph, start_image, output, board, console)
    image = optimization.run(sizes, [statistics for statistics, _ in targets], perceptual_loss)
    report = {
        "content": Path(cfg.content).name,
        "style": cfg.style.name,
        "image_sha256": targets[-1][1],
        "loss_network": perceptual_loss.loss_network.identity,
        "stopped_early": optimization.stopped,
        "trace": optimization.trace,
    }
    (output / "trace.json").write_text(json.dumps(report, indent=1) + "\n")
    if optimization.stopped:
        size = optimization.trace[-1]["size"]
        console.print(f"interrupted at {size} px: this is the best picture so far", style="yellow")
    return optimization.save(image, output / f"{name}.{cfg.format}")


def prepare_loss(
    cfg: Any, photograph: Image.Image, sizes: list[int], console: Console
) -> tuple[PerceptualLoss, list[tuple[dict[str, Tensor], str]]]:
    """Return the loss, and for each size of the result what the painting is compared by and its SHA-256.

    Nothing is written before: a picture too small or a painting that cannot be had ends the command here.
    """
    import torch

    from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_blend
    from nst_fast.commands.progress import download_progress
    from nst_fast.loss.style_targets import to_tensor
    from nst_fast.stylizing.images import resize_long_side

    with download_progress(console) as fetching:
        perceptual_loss = create_perceptual_loss(cfg, fetching).to(cfg.device)
    with torch.no_grad():
        smallest = to_tensor(resize_long_side(photograph, sizes[0])).to(cfg.device)
        perceptual_loss.loss_network(smallest, [*perceptual_loss.layers, *perceptual_loss.sliced_layers])
    size = cfg.size or max(photograph.size)
    blend, paintings = dict(cfg.blend or {}), [round(cfg.style.size * s / size) for s in sizes]
    with download_progress(console) as fetching:
        return perceptual_loss, [find_blend(cfg, blend, perceptual_loss, side, fetching) for side in paintings]


def create_output(cfg: Any) -> Path:
    """Make the run's folder, with the config in it; raises UserError where that is not possible."""
    from omegaconf import OmegaConf

    from nst_fast.commands.configuration import literal

    started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    output = Path(cfg.output or Path("runs", "optimize", cfg.style.name, started))
    cfg.output = literal(str(output))
    try:
        output.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, output / "config.yaml")
    except OSError as error:
        raise UserError(f"cannot write into {output}: {error.strerror}; output=FOLDER moves it") from error
    return output


class Optimization:
    """One picture from scale to scale, shown and written as it goes; Ctrl-C ends it early, a second one at once.

    Attributes:
        stopped: whether it was ended early.
        trace: a row for the start of each scale and each iteration.
    """

    def __init__(
        self,
        cfg: Any,
        photograph: Image.Image,
        start_image: Image.Image | None,
        output: Path,
        board: SummaryWriter,
        console: Console,
    ) -> None:
        self.cfg, self.photograph, self.start_image = cfg, photograph, start_image
        self.output, self.board, self.console = output, board, console
        self.stopped, self.trace = False, list[dict[str, float]]()

    def stop(self, *_: Any) -> None:
        """Remember the first Ctrl-C."""
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one stops at once

    def save(self, image: Tensor, path: Path) -> Path:
        """Write an image as the config says, and return its path."""
        from nst_fast.loss.style_targets import to_image
        from nst_fast.stylizing.images import keep_colours, save_image

        picture = to_image(image)
        if self.cfg.keep_colours:
            picture = keep_colours(picture, self.photograph.resize(picture.size, Image.Resampling.LANCZOS))
        save_image(picture, path)
        return path

    def start(self, content: Tensor, image: Tensor | None) -> Tensor:
        """Return where a scale starts: from the picture of the one before, or as the config says."""
        import torch.nn.functional as F

        from nst_fast.loss.style_targets import to_tensor
        from nst_fast.reference.image_optimizer import white_noise

        height, width = content.shape[2:]
        if image is not None:
            return F.interpolate(image, (height, width), mode="bicubic", align_corners=False)
        if self.start_image is not None:
            return to_tensor(self.start_image.resize((width, height), Image.Resampling.LANCZOS)).to(content.device)
        return content if self.cfg.start == "content" else white_noise(content, self.cfg.seed)

    def show(self, iteration: Iteration, scale: int, done: int, progress: Progress, bar: TaskID) -> bool:
        """Show and record an iteration, ``done`` being those of other scales; return whether it is the last."""
        terms = "  ".join(f"{k} {v:.4g}" for k, v in iteration.losses.items())
        progress.update(bar, completed=iteration.number, losses=terms)
        if not self.console.is_terminal and iteration.number % 50 == 0:
            told = f"{scale} px, iteration {iteration.number} of {self.cfg.iterations}  {terms}"
            self.console.print(told, soft_wrap=True)
        for term, value in iteration.losses.items():
            self.board.add_scalar(f"optimize/{term}_loss", value, done + iteration.number)
        if self.cfg.snapshot_every and iteration.number % self.cfg.snapshot_every == 0:
            path = self.output / "snapshots" / f"{scale}px_{iteration.number:05d}.{self.cfg.format}"
            self.save(iteration.image, path)
        return self.stopped

    def run(self, sizes: list[int], styles: list[dict[str, Tensor]], perceptual_loss: PerceptualLoss) -> Tensor:
        """Return the best picture of the last scale, from coarse to fine; styles are for each size."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
        )
        earlier = signal.signal(signal.SIGINT, self.stop)
        image: Tensor | None = None
        try:
            with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
                for scale, statistics in zip(sizes, styles, strict=True):
                    perceptual_loss.set_style({k: v.to(self.cfg.device) for k, v in statistics.items()})
                    image = self.run_scale(scale, image, perceptual_loss, progress)
                    if self.stopped:
                        break
        finally:
            signal.signal(signal.SIGINT, earlier)
            self.board.close()
        assert image is not None
        return image

    def run_scale(
        self, scale: int, image: Tensor | None, perceptual_loss: PerceptualLoss, progress: Progress
    ) -> Tensor:
        """Return the best picture with a long side of ``scale`` px, from that of the scale before."""
        from nst_fast.loss.style_targets import to_tensor
        from nst_fast.reference.image_optimizer import optimize_image
        from nst_fast.stylizing.images import resize_long_side

        cfg = self.cfg
        content = to_tensor(resize_long_side(self.photograph, scale)).to(cfg.device)
        bar = progress.add_task(f"{scale} px", total=cfg.iterations, losses="")
        done = len(self.trace)
        image, part = optimize_image(
            content,
            perceptual_loss,
            start=self.start(content, image),
            method=cfg.method,
            iterations=cfg.iterations,
            learning_rate=cfg.learning_rate,
            on_iteration=lambda iteration: self.show(iteration, scale, done, progress, bar),
        )
        self.trace += [{"size": scale, **row} for row in part]
        return image


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
