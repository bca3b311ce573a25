"""The command `train`: one style, one network, one ONNX file."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import signal
import threading
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from nst_fast.assets import GALLERY
from nst_fast.commands import require_training_packages, run, show_warnings, tune_torch
from nst_fast.errors import UserError
from nst_fast.files import new_folder

logger = logging.getLogger(__name__)

CPU_WORKERS = 1  # that prepare pictures, some 150 a second and more; the other cores train
CHOSEN = "NST_FAST_LOSS_NETWORK"  # environment variable: the first process's choice, for those that Lightning starts
MOST_GPU_WORKERS = 16  # some 2,500 bundled pictures a second, 15,000 of a folder
CONTROL_RATE = 0.03  # of the style weight's logarithm a step: the network follows within some 50 steps
FAR_OFF = 0.15  # of the content distance that training aims for

USAGE = """
usage: train style=NAME [key=value ...]

Train a network on a style and export it to ONNX.

  style=NAME               starry_night, the_scream, great_wave, composition_vii, custom, or gallery
  style.image=FILE         with style=custom: your own picture
  style.images=FOLDER      with style=gallery: a folder of pictures, all in one network
  style.size=PX            short side of the painting; smaller gives smaller strokes (default 362)
  style.underpainting=F    0 to 1: more gives bolder strokes, less keeps more of the scene (default 0.25)
  loss.style_weight=W      1 is subtle, 5 bold (default 3)
  style.content_distance=D how far pictures may go from their photographs: subtle, medium, strong (0.6, 1.2, 1.6) or a
                           number. Training finds the style weight, of each painting. Needs loss=balanced

  trainer.max_steps=N      length of training (default: 600 steps on a CPU, 40,000 on a GPU)
  trainer.minutes=M        train for so many minutes; the steps that this machine takes in them are printed
  trainer=smoke            a few steps, to see that everything works
  data=folder data.root=D  train on your own photographs (default: bundled ones)
  data=coco                train on COCO: data.split=val2017 (778 MB, fetched once) or train2017 (18 GB)
  init_from=NAME           start from a shipped model, or a .onnx or .ckpt file (default: gallery). init_from=null
                           starts from nothing and needs more steps
  resume=last              go on with the newest run of the style, or with the run in output=FOLDER
  resume=CHECKPOINT        go on from a checkpoint or a run's folder; its options need not be repeated
  output=FOLDER            folder of the run (default: runs/train/<style>/<time>)

  network=NAME             fast, tiny or johnson
  network.grain=true       strokes grow from a fixed map of noise in flat places
  network.contrast=true    strokes grow from the photograph's own faint contrast
  loss=NAME                balanced, gatys or johnson
  loss.content_layers=…    layers of the content with their weights: '{relu2_2: 0.5, relu3_3: 0.5}'
  loss.style_layers=…      layers of the style. relu3_1@4 is relu3_1 of the picture at a quarter of its size
  loss.sliced_layers=…     layers whose distributions count as style too (default '{rgb@4: 0.06}': the colours);
                           '{rgb@4: 0.06, relu3_3: 0.8}' for closed shapes
  loss_network=NAME        vgg16_slim, vgg16, vgg19, alexnet or teachers (default: by the device)
  experiment=johnson2016   the field's standard recipe
  trainer.own_style=F      1: each picture alone is to have the painting's style. Less: the newest pictures together, so
                           that plain places may stay plain (default 0.25)
  trainer.vector_steps=N   the first N steps change the painting's vector alone. If trainer.max_steps is N too, the run
                           leaves NAME.style, for the gallery that it starts from

  --cfg                    print the resolved config and stop
  --version                print the version

examples:
  train style=starry_night
  train style=custom style.image="my picture (1).jpg" style.size=256
  train style=the_scream data=folder data.root=~/Pictures trainer.max_steps=5000
  train style=the_scream resume=last
"""


def resolve(cfg: Any, console: Console) -> None:
    """Check a config's values and replace what is automatic by what this machine gets."""
    from omegaconf import OmegaConf
    from pytorch_lightning.utilities import rank_zero_only

    from nst_fast.commands.perceptual_loss import resolve_perceptual_loss
    from nst_fast.loss.style_targets import find_paintings

    check_options(cfg)
    if cfg.style.get("images") is not None:
        OmegaConf.update(cfg, "network.paintings", len(find_paintings(cfg.style.images)), force_add=True)
    choose_start(cfg)
    gpu = choose_engine(cfg)
    several = cfg.trainer.devices * cfg.trainer.num_nodes > 1
    if several and cfg.loss_network.name == "auto" and getattr(rank_zero_only, "rank", 0):
        cfg.loss_network.name = os.environ.get(CHOSEN, "auto")
    if warning := resolve_perceptual_loss(cfg, gpu):
        console.print(warning, style="yellow", soft_wrap=True)
    if several:
        os.environ[CHOSEN] = cfg.loss_network.name


def check_options(cfg: Any) -> None:
    """Raise UserError where an option of network, data or trainer is none."""
    from pytorch_lightning.strategies import StrategyRegistry

    from nst_fast.commands.configuration import require_choice, require_number
    from nst_fast.downloads import COCO
    from nst_fast.training.networks import NETWORKS

    for key, least, most in (
        ("data.size", 32, 4096),  # px
        ("data.batch_size", 1, 4096),
        ("network.width", 4, 1024),
        ("network.blocks", 1, 256),
        ("trainer.devices", 1, 1024),
        ("seed", 0, 2**32 - 1),
    ):
        require_number(cfg, key, least, most)
    require_number(cfg, "trainer.validate_every", 1)
    for key in ("network.grain", "network.contrast"):
        require_choice(cfg, key, (True, False))
    require_number(cfg, "trainer.max_steps", 1, optional=True)
    require_number(cfg, "trainer.minutes", 0.1, 1e5, whole=False, optional=True)
    require_number(cfg, "data.num_workers", 0, 256, optional=True)
    if cfg.data.name == "bundled":
        require_number(cfg, "data.dead_leaves", 0, 1, whole=False)
    require_number(cfg, "data.window", 0.05, 1, whole=False)
    require_choice(cfg, "network.name", NETWORKS)
    require_choice(cfg, "data.name", ("bundled", "folder", "coco"))
    if cfg.data.name == "coco":
        require_choice(cfg, "data.split", COCO)
    require_choice(cfg, "float_nchw", (True, False))
    require_choice(cfg, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda", "mps"))
    require_choice(cfg, "trainer.precision", ("auto", "32-true", "bf16-mixed", "16-mixed"))
    require_number(cfg, "trainer.num_nodes", 1, 1024)
    # The others shard what a small network has not.
    parallel = [name for name in StrategyRegistry.available_strategies() if name.startswith("ddp")]
    require_choice(cfg, "trainer.strategy", ("auto", *parallel))
    require_number(cfg, "trainer.own_style", 0.01, 1, whole=False)
    for key in ("learning_rate", "vector_rate", "grid_weight", "weave_weight", "motion_weight"):
        require_number(cfg, f"trainer.{key}", 0, whole=False)
    require_number(cfg, "trainer.vector_steps", 0)
    require_number(cfg, "trainer.gradient_clip", 1e-6, whole=False, optional=True)  # of 0 nothing would be learned
    require_choice(cfg, "trainer.one_cycle", (True, False))
    if cfg.network.width % 4:
        raise UserError(f"network.width is {cfg.network.width}; a multiple of 4 is needed")


def choose_engine(cfg: Any) -> bool:
    """Replace what is automatic in a config's trainer and workers, and return whether an NVIDIA GPU computes."""
    import torch

    from nst_fast.loss.loss_networks import multiplies_bfloat16
    from nst_fast.training.run import STEPS

    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    mps = torch.backends.mps.is_available() and cfg.trainer.accelerator == "mps"
    if cfg.resume is None and not gpu:  # a run from a machine with a GPU may go on without one
        if cfg.trainer.accelerator in ("gpu", "cuda") or (cfg.trainer.accelerator == "mps" and not mps):
            raise UserError(
                f"trainer.accelerator is {cfg.trainer.accelerator}, but torch finds no GPU; leave it at auto"
            )
        if cfg.trainer.precision == "16-mixed":
            raise UserError("trainer.precision=16-mixed needs a GPU; leave it at auto, bf16-mixed or 32-true")
        if mps and cfg.trainer.precision not in ("auto", "32-true"):
            raise UserError(f"trainer.precision is {cfg.trainer.precision}; a Mac's GPU trains in 32-true")
    cfg.trainer.accelerator = "gpu" if gpu else "mps" if mps else "cpu"
    if cfg.data.num_workers is None:
        cores = os.cpu_count() or 1
        cfg.data.num_workers = min(max(cores // cfg.trainer.devices - 1, 1), MOST_GPU_WORKERS) if gpu else CPU_WORKERS
    if cfg.trainer.max_steps is None:
        cfg.trainer.max_steps = STEPS[cfg.trainer.accelerator]
    if cfg.trainer.precision == "auto":
        native = not mps and multiplies_bfloat16("cuda" if gpu else "cpu")
        cfg.trainer.precision = "bf16-mixed" if native else "32-true"
    return gpu


def choose_start(cfg: Any) -> None:
    """Replace init_from=auto by the shipped model that a network of its kind starts from, or by nothing."""
    from nst_fast.stylizing.stylizer import Stylizer
    from nst_fast.training.networks import in_words

    if cfg.init_from == "auto":
        theirs = Stylizer(GALLERY, device="cpu").metadata.get("network")
        cfg.init_from = GALLERY if in_words(cfg.network) == theirs else None


def warm_start(network: Any, path: str, style: str) -> str | None:
    """Fill a network with a model's or a checkpoint's, and return the identity of a gallery, of which it may be.

    A painting that is new to a gallery starts as the mean of the others. Raises UserError where the model is of
    another kind.
    """
    from nst_fast.assets import find_model, is_model
    from nst_fast.stylizing.stylizer import Stylizer
    from nst_fast.training.checkpoints import CHECKPOINT_KEY, read_checkpoint, trained_network
    from nst_fast.training.networks import in_words, mean_of_others
    from nst_fast.training.onnx_export import import_network

    trunk = None
    if is_model(path):
        stylizer = Stylizer(find_model(path), device="cpu")
        start, theirs = import_network(stylizer.path), stylizer.metadata.get("network", "unknown")
        weights = start.state_dict() | {"vectors": start.as_learned()}  # colours are mapped in the end
        names, trunk = list(stylizer.paintings), stylizer.metadata.get("trunk")
    else:
        checkpoint = read_checkpoint(path)
        weights, ours = trained_network(checkpoint, path).state_dict(), checkpoint[CHECKPOINT_KEY]
        theirs = in_words(ours["config"]["network"])
        names = [painting["name"] for painting in ours.get("paintings", [])]
    if len(weights["vectors"]) != len(network.vectors):
        mean = mean_of_others(weights["vectors"], names, style)
        weights["vectors"] = mean.repeat(len(network.vectors), 1)
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in network.state_dict().items()}:
        raise UserError(f"init_from={path} has another network, {theirs}; the options of network must agree")
    network.load_state_dict(weights)
    return trunk


def create_data(cfg: Any, console: Console) -> Any:
    """Return the LightningDataModule of the config's content images."""
    from rich.progress import Progress

    from nst_fast.commands.progress import download_progress
    from nst_fast.downloads import fetch_coco
    from nst_fast.training.content_images import BundledImages, ContentImages, FolderImages

    images: BundledImages | FolderImages
    if cfg.data.name == "bundled":
        images = BundledImages(cfg.data.size, cfg.seed, cfg.data.dead_leaves, cfg.data.window)
    else:
        root = cfg.data.get("root")
        if cfg.data.name == "coco":
            with download_progress(console) as show:
                root = fetch_coco(cfg.data.split, show)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("reading pictures", total=None)
            images = FolderImages(
                root,
                cfg.data.size,
                cfg.seed,
                lambda done, total: progress.update(bar, completed=done, total=total),
                cfg.data.window,
            )
    loading = cfg.data.batch_size, cfg.data.num_workers, cfg.data.size, cfg.data.validation
    return ContentImages(images, *loading, moving=cfg.trainer.motion_weight > 0)


def train_command(arguments: list[str]) -> Path | None:
    """Train as a command line says and return the path of the ONNX file.

    Of several processes that train together the first one writes and prints; the others return None.
    """
    from omegaconf import OmegaConf

    from nst_fast.commands.configuration import literal, load_config

    resumed = any(a.startswith("resume=") and a != "resume=null" for a in arguments)
    cfg: Any = None if resumed else load_config("train", arguments)  # a mistake is told at once
    with Console(stderr=True).status("loading PyTorch Lightning"):  # ten seconds and more on slow cores
        import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_only

    from nst_fast.commands.perceptual_loss import (
        create_control,
        create_perceptual_loss,
        find_gallery,
        find_sizes,
        find_style,
    )
    from nst_fast.commands.progress import download_progress
    from nst_fast.commands.resume import RUNS, resume_run
    from nst_fast.commands.training_progress import TrainingProgress
    from nst_fast.loss.style_targets import COLOURS
    from nst_fast.training.networks import create_network
    from nst_fast.training.run import Engine, finished_model, steps_in, train
    from nst_fast.training.stroke_size import StrokeSize
    from nst_fast.training.style_transfer import Recipe

    first = getattr(rank_zero_only, "rank", 0) == 0
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, quiet=not first)
    show_warnings(console)
    if resumed:
        cfg = resume_run(arguments)
    resolve(cfg, console)
    pl.seed_everything(cfg.seed, verbose=False)
    # First of all that draws random numbers: the same seed starts alike whatever the loss network.
    network = create_network(**cfg.network)
    started = datetime.now()
    resume, cfg.resume = None if cfg.resume is None else Path(cfg.resume), None
    trunk = None
    if resume is None and cfg.init_from is not None:
        trunk = warm_start(network, cfg.init_from, cfg.style.name)
        if trunk is None and cfg.trainer.vector_steps >= cfg.trainer.max_steps:
            console.print(
                f"{cfg.init_from} is no gallery: this run leaves no .style file", style="yellow", soft_wrap=True
            )
    output = Path(cfg.output or RUNS / cfg.style.name / started.strftime("%Y-%m-%d_%H-%M-%S"))
    if (model := finished_model(output, cfg.style.name, resume)) is not None:
        more = f"say init_from={shlex.quote(str(model))} trainer.max_steps=N in place of resume"
        console.print(f"the run in {output} is finished; for N further steps in a new run {more}", soft_wrap=True)
        return model if first else None
    data = create_data(cfg, console)
    with download_progress(console) as show:
        perceptual_loss = create_perceptual_loss(cfg, show)
        paintings: list[dict[str, str]] = []
        if cfg.style.get("images") is not None:
            style_targets, paintings = find_gallery(cfg.style, perceptual_loss, more=[COLOURS])
            sha256 = hashlib.sha256("".join(painting["sha256"] for painting in paintings).encode()).hexdigest()
        else:
            style_target, sha256 = find_style(cfg.style, perceptual_loss, progress=show, more=[COLOURS])
            style_targets = [style_target]
    if cfg.style.sha256 not in (None, sha256):
        logger.warning(
            "the picture is not the one of style=%s, but the model gets the title, artist and licence of that one; "
            "style=custom has none",
            cfg.style.name,
        )
    if cfg.output is None and first:
        output = new_folder(output)
    cfg.output = literal(str(output))
    engine = Engine(**{field.name: cfg.trainer[field.name] for field in fields(Engine)})

    def recipe() -> Recipe:
        return Recipe(**{field.name: cfg.trainer[field.name] for field in fields(Recipe)})

    if cfg.trainer.get("minutes") is not None:
        given = network, perceptual_loss, style_targets, data, recipe(), engine
        cfg.trainer.max_steps = steps_in(cfg.trainer.minutes, *given, paintings=paintings)
        cfg.trainer.minutes = None
        console.print(f"trainer.max_steps={cfg.trainer.max_steps} repeats this run", soft_wrap=True)
    identity, steps = perceptual_loss.loss_network.identity, cfg.trainer.max_steps
    title = (
        f"style {cfg.style.name} at {cfg.style.size} px, loss network {identity[:30]}, network {cfg.network.name}, "
        f"data {cfg.data.name}, {steps} steps of {cfg.data.batch_size * cfg.trainer.devices * cfg.trainer.num_nodes} "
        f"on {cfg.trainer.accelerator} in {cfg.trainer.precision} → {output}"
    )
    trained = train(
        network,
        perceptual_loss,
        style_targets,
        data,
        recipe(),
        engine,
        output,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        image_sha256=sha256,
        paintings=paintings,
        trunk=trunk,
        control=create_control(cfg, CONTROL_RATE, len(style_targets)),
        resume=resume,
        start_over=resumed and resume is None,
        float_nchw=cfg.float_nchw,
        callbacks=[TrainingProgress(console, title), StrokeSize(find_sizes(cfg, perceptual_loss))],
    )
    if trained is not None:
        tell(trained, cfg, console)
    return None if trained is None else trained.path


def tell(trained: Any, cfg: Any, console: Console) -> None:
    """Print what is to be known of a run beside its model."""
    from nst_fast.loss.style_weight import content_distance

    if cfg.style.content_distance is not None:
        distance, losses = cfg.style.content_distance, trained.summary["validation_losses"]
        weights = trained.summary.get("style_weights", {})
        shown, wanted = content_distance(distance, cfg.loss_network.name), content_distance(distance)
        # Relative to what is wanted, of each painting.
        off = [losses[f"val/{name}content_loss"] / shown for name in [f"{painting}_" for painting in weights] or [""]]
        if weights:
            found = f"style weights of {min(weights.values()):.3g} to {max(weights.values()):.3g} give "
            found += f"{min(off) * wanted:.3g} to {max(off) * wanted:.3g}"
        else:
            found = f"a style weight of {trained.summary['style_weight']:.3g} gives {off[0] * wanted:.3g}"
        console.print(
            f"style.content_distance={distance}: {found} on validation pictures, {wanted:.3g} is wanted"
            + ("; more steps come nearer" if max(abs(each - 1) for each in off) > FAR_OFF else ""),
            soft_wrap=True,
        )
    if trained.skipped_pictures:
        console.print(f"{len(trained.skipped_pictures)} pictures cannot be read and were left out:", style="yellow")
        for path, reason in trained.skipped_pictures.items():
            console.print(f"  {path}: {reason}", soft_wrap=True)
    if trained.summary["skipped_steps"]:
        console.print(
            f"{trained.summary['skipped_steps']} steps had no finite gradient and were skipped", style="yellow"
        )


def show_result(model: Path) -> None:
    """Print where a run's model is, or its style file, and the command that stylizes with it."""
    from nst_fast.stylizing.style_file import SUFFIX
    from nst_fast.stylizing.stylizer import Stylizer

    style = model.with_suffix(SUFFIX)
    if style.exists():
        print(style)
        print(f"stylize --style {shlex.quote(str(style))} photo.jpg")
        return
    paintings = list(Stylizer(model, device="cpu").paintings)
    painting = f" --style {shlex.quote(paintings[0])}" if paintings else ""
    print(model)
    print(f"stylize --model {shlex.quote(str(model))}{painting} photo.jpg")


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        tune_torch()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # The log is written by a thread of TensorBoard's, whose errors come up again in this one.
        hook = threading.excepthook
        threading.excepthook = lambda e: None if isinstance(e.exc_value, OSError) else hook(e)
        try:
            from omegaconf import OmegaConf

            from nst_fast.commands.configuration import load_config

            if "--cfg" in arguments:
                print(OmegaConf.to_yaml(load_config("train", [a for a in arguments if a != "--cfg"])), end="")
                return
            model = train_command(arguments)
        except ModuleNotFoundError as error:
            require_training_packages(error)
        except OSError as error:  # a disk that is full or gone; nothing of the run is lost
            place = error.filename or "cannot write the run"
            raise UserError(f"{place}: {error.strerror or error}; go on with resume=last") from error
        finally:
            threading.excepthook = hook
        if model is not None:
            show_result(model)

    run(command, "train", USAGE)


if __name__ == "__main__":
    main()
