"""The command `train`: one style, one network, one ONNX file."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import signal
import sys
import threading
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from nst_fast import __version__
from nst_fast.commands import require_training_packages, run, tune_torch
from nst_fast.errors import UserError

CPU_WORKERS = 1  # that prepare pictures, some 150 a second and more; the other cores train
MOST_GPU_WORKERS = 16  # some 2,500 bundled pictures a second, 15,000 of a folder
LOSS_SCALE = 2.0**7  # of float16 at the start; from torch's 2**16 the first nine steps are lost
CONTROL_RATE = 0.03  # of the style weight's logarithm a step: the network follows within some 50 steps

USAGE = """
usage: train style=NAME [key=value ...]

Train a transformation network on a style and export it to ONNX.

  style=NAME               starry_night, the_scream, great_wave, composition_vii, or custom
  style.image=FILE         with style=custom: your own picture
  style.size=PX            short side of the painting; smaller means smaller strokes (default 384)
  style.strength=S         subtle, medium, strong, or the content distance to aim for (0.2 to 1): training finds the
                           style weight that gives it, with loss=balanced
  loss.style_weight=W      or the weight itself (default 5)
  loss=NAME                structure, balanced, gatys or johnson
  loss.content_layers=…    all of them with their weights, '{relu3_1: 0.5, relu4_2: 0.5}'; likewise loss.style_layers;
                           relu3_1@4 is relu3_1 of the picture at a quarter of its size: larger shapes
  loss.sliced_layers=…     and those whose distributions count as style too, for paintings of flat colours and closed
                           shapes: '{rgb@2: 0.1, relu3_3: 0.8}'; rgb is the picture itself (default: none)
  data=folder data.root=D  train on your own photographs (default: bundled ones)
  data=coco                train on COCO's: data.split=val2017 (778 MB, fetched once) or train2017 (18 GB)
  trainer.max_steps=N      length of training (default: minutes on a CPU, 40,000 steps on a GPU)
  trainer=smoke            a few steps, to see that everything works
  loss_network=NAME        vgg19_slim, vgg19 or teachers (default: chosen by the device)
  network=NAME             fast, tiny or johnson
  network.grain=contrast   strokes grow from the photograph's own faint contrast (default: noise; johnson: none)
  experiment=johnson2016   the field's standard recipe
  init_from=NAME           start from a shipped model's network, or from a .onnx or .ckpt file's, which saves time
  resume=last              go on with the newest run of the style, or with the one in output=FOLDER
  resume=CHECKPOINT        go on from a checkpoint, or a run's folder; its options hold and need not be repeated
  output=FOLDER            folder of the run (default: runs/train/<style>/<time>)
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
    import torch
    from pytorch_lightning.strategies import StrategyRegistry

    from nst_fast.commands.configuration import require_choice, require_number
    from nst_fast.commands.perceptual_loss import resolve_perceptual_loss
    from nst_fast.downloads import COCO
    from nst_fast.loss.loss_network import multiplies_bfloat16
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
    for key in ("trainer.cpu_steps", "trainer.gpu_steps", "trainer.validate_every"):
        require_number(cfg, key, 1)
    require_number(cfg, "trainer.max_steps", 1, optional=True)
    require_number(cfg, "data.num_workers", 0, 256, optional=True)
    if cfg.data.name == "bundled":
        require_number(cfg, "data.dead_leaves", 0, 1, whole=False)
    require_number(cfg, "data.window", 0.05, 1, whole=False)
    require_choice(cfg, "network.name", NETWORKS)
    require_choice(cfg, "data.name", ("bundled", "folder", "coco"))
    if cfg.data.name == "coco":
        require_choice(cfg, "data.split", COCO)
    require_choice(cfg, "float_nchw", (True, False))
    require_choice(cfg, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda"))
    require_choice(cfg, "trainer.precision", ("auto", "32-true", "bf16-mixed", "16-mixed"))
    require_number(cfg, "trainer.num_nodes", 1, 1024)
    # The others shard what a small network has not.
    parallel = [name for name in StrategyRegistry.available_strategies() if name.startswith("ddp")]
    require_choice(cfg, "trainer.strategy", ("auto", *parallel))
    for key in ("trainer.learning_rate", "trainer.grid_weight", "trainer.weave_weight"):
        require_number(cfg, key, 0, whole=False)
    require_number(cfg, "trainer.gradient_clip", 1e-6, whole=False)  # of 0 nothing would be learned
    if cfg.network.width % 4:
        raise UserError(f"network.width is {cfg.network.width}; a multiple of 4 is needed")

    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    if cfg.resume is None and not gpu:  # a run from a machine with a GPU may go on without one
        if cfg.trainer.accelerator in ("gpu", "cuda"):
            raise UserError(
                f"trainer.accelerator is {cfg.trainer.accelerator}, but torch finds no GPU; leave it at auto"
            )
        if cfg.trainer.precision == "16-mixed":
            raise UserError("trainer.precision=16-mixed needs a GPU; leave it at auto, bf16-mixed or 32-true")
    cfg.trainer.accelerator = "gpu" if gpu else "cpu"
    if cfg.data.num_workers is None:
        cores = os.cpu_count() or 1
        cfg.data.num_workers = min(max(cores // cfg.trainer.devices - 1, 1), MOST_GPU_WORKERS) if gpu else CPU_WORKERS
    if cfg.trainer.max_steps is None:
        cfg.trainer.max_steps = cfg.trainer.gpu_steps if gpu else cfg.trainer.cpu_steps
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = "bf16-mixed" if multiplies_bfloat16("cuda" if gpu else "cpu") else "32-true"
    resolve_perceptual_loss(cfg, gpu, console)


def warm_start(network: Any, path: str) -> None:
    """Fill a network with a model's or a checkpoint's; raises UserError where that is of another kind."""
    from nst_fast.assets import find_model, is_model
    from nst_fast.stylizing.stylizer import Stylizer
    from nst_fast.training.onnx_export import import_network
    from nst_fast.training.style_transfer import CHECKPOINT_KEY, read_checkpoint, trained_network

    if is_model(path):
        model = find_model(path)
        weights, theirs = import_network(model).state_dict(), Stylizer(model).metadata.get("network", "unknown")
    else:
        checkpoint = read_checkpoint(path)
        weights = trained_network(checkpoint, path).state_dict()
        theirs = ", ".join(f"{key} {value}" for key, value in checkpoint[CHECKPOINT_KEY]["config"]["network"].items())
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in network.state_dict().items()}:
        raise UserError(f"init_from={path} is of another network, {theirs}; the options of network must agree")
    network.load_state_dict(weights)


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
    return ContentImages(images, cfg.data.batch_size, cfg.data.num_workers, cfg.data.size, cfg.data.validation)


def create_trainer(cfg: Any, output: Path, batches_seen: int, console: Console) -> Any:
    """Return Lightning's trainer of a run in a folder, which goes on after so many batches."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import TensorBoardLogger
    from pytorch_lightning.plugins import MixedPrecision

    from nst_fast.commands.progress import TrainingProgress
    from nst_fast.training.interruption import Interruption
    from nst_fast.training.style_transfer import LAST, Checkpoints

    class RunLogger(TensorBoardLogger):
        """Lightning's, which takes a $ in a path for a variable of the shell."""

        @property
        def log_dir(self) -> str:
            return str(self.root_dir)

    given = cfg.trainer
    checkpoints = ModelCheckpoint(
        str(output / "checkpoints"),
        filename=Path(LAST).stem,
        save_on_train_epoch_end=False,  # but after each validation, whose losses are in it
        enable_version_counter=False,
    )
    half = given.precision == "16-mixed"
    plugins: list[Any] = [Checkpoints()]
    if half:
        scaler = torch.amp.GradScaler(init_scale=LOSS_SCALE)
        plugins.append(MixedPrecision("16-mixed", "cuda", scaler))
    return pl.Trainer(
        accelerator=given.accelerator,
        devices=given.devices,
        num_nodes=given.num_nodes,
        strategy=given.strategy,
        precision=None if half else given.precision,
        max_steps=given.max_steps,
        val_check_interval=given.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[checkpoints, TrainingProgress(console), Interruption()],
        plugins=plugins,
        use_distributed_sampler=False,  # the data know which share is whose
        enable_progress_bar=False,
        # What a killed session logged after its last checkpoint is logged again.
        logger=RunLogger(output / "tensorboard", name="", version="", purge_step=batches_seen),
        enable_model_summary=False,
    )


def train(arguments: list[str]) -> Path | None:
    """Train as a command line says, leave the run's folder behind and return the path of the ONNX file.

    Of several processes that train together the first one writes and prints; the others return None.
    """
    import pytorch_lightning as pl
    import torch
    from omegaconf import OmegaConf
    from pytorch_lightning.utilities import rank_zero_only

    from nst_fast.commands.configuration import literal, load_config
    from nst_fast.commands.export import export_checkpoint
    from nst_fast.commands.perceptual_loss import create_control, create_perceptual_loss, find_style
    from nst_fast.commands.progress import download_progress
    from nst_fast.commands.resume import RUNS, resume_run
    from nst_fast.files import write_atomically
    from nst_fast.training.interruption import interrupt_at_once
    from nst_fast.training.networks import create_network
    from nst_fast.training.style_transfer import (
        CHECKPOINT_KEY,
        LAST,
        PREVIOUS,
        StyleTransfer,
        read_checkpoint,
        trained_network,
    )
    from nst_fast.weights import one_line

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    first = getattr(rank_zero_only, "rank", 0) == 0
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, quiet=not first)
    resumed = any(a.startswith("resume=") and a != "resume=null" for a in arguments)
    cfg = resume_run(arguments, console) if resumed else load_config("train", arguments)
    resolve(cfg, console)
    if (cfg.trainer.accelerator, cfg.trainer.precision) == ("gpu", "bf16-mixed"):
        torch.set_float32_matmul_precision("high")  # of Gram matrices: TF32 holds bf16 and adds in float32
    pl.seed_everything(cfg.seed, verbose=False)
    # First of all that draws random numbers: the same seed starts alike whatever the loss network.
    network = create_network(**cfg.network)
    started = datetime.now()
    resume, cfg.resume = cfg.resume, None
    earlier: dict[str, Any] = {}
    if resume is None and cfg.init_from is not None:
        warm_start(network, cfg.init_from)
    if resume is not None:
        checkpoint = read_checkpoint(resume)
        trained_network(checkpoint, resume)
        earlier = checkpoint[CHECKPOINT_KEY]
    output = Path(cfg.output or RUNS / cfg.style.name / started.strftime("%Y-%m-%d_%H-%M-%S"))
    model = output / f"{cfg.style.name}.onnx"
    last = output / "checkpoints" / LAST
    in_place = resume is not None and Path(resume).parent.resolve() == last.parent.resolve()
    if in_place and (output / "summary.json").exists() and model.exists():
        console.print(f"the run in {output} is finished", soft_wrap=True)
        return model if first else None
    data = create_data(cfg, console)
    with download_progress(console) as show:
        perceptual_loss = create_perceptual_loss(cfg, show)
        statistics, sha256 = find_style(cfg.style, perceptual_loss, progress=show)
    perceptual_loss.set_style(statistics)
    if cfg.style.sha256 not in (None, sha256):
        console.print(
            f"the picture is not the one that style={cfg.style.name} names, whose title, artist and licence the model "
            "will have; style=custom has none",
            style="yellow",
            soft_wrap=True,
        )
    recorded = {"image_sha256": sha256, "loss_network": perceptual_loss.loss_network.identity}
    for key, value in recorded.items():
        if earlier and earlier[key] != value:
            raise UserError(f"{resume} was trained with {key} {earlier[key]}, this command has {value}")
    photographs = data.images.identity
    if earlier.get("photographs", photographs) != photographs:
        console.print(
            "the photographs are not those that the run began with; it goes on, to another model than without a break",
            style="yellow",
            soft_wrap=True,
        )
    skipped: dict[str, str] = dict(earlier.get("skipped_pictures", {}))
    skipped |= {str(path): reason for path, reason in data.images.skipped}

    named, cfg.output = cfg.output is not None, literal(str(output))
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if first:
        if not in_place and (last.exists() or last.with_name(PREVIOUS).exists()):
            raise UserError(
                f"{output} holds a run already; resume=last goes on with it, another output=FOLDER does not"
            )
        try:
            output.mkdir(parents=True, exist_ok=named)
            write_atomically(output / "config.yaml", OmegaConf.to_yaml(cfg).encode())
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot write the run into {output}: {reason}; output=FOLDER moves it") from error

    description = {"config": config, **recorded, "photographs": photographs, "skipped_pictures": skipped}
    module = StyleTransfer(
        network,
        perceptual_loss,
        cfg.trainer.learning_rate,
        cfg.trainer.max_steps,
        cfg.trainer.gradient_clip,
        cfg.trainer.grid_weight,
        cfg.trainer.weave_weight,
        description,
        create_control(cfg, CONTROL_RATE),
    )
    module.samples_folder = output / "samples"
    trainer = create_trainer(cfg, output, earlier.get("batches_seen", 0), console)
    images_a_step = cfg.data.batch_size * trainer.world_size
    console.print(
        f"style {cfg.style.name} at {cfg.style.size} px, loss network {recorded['loss_network'][:30]}, "
        f"network {cfg.network.name}, data {cfg.data.name}, {cfg.trainer.max_steps} steps of {images_a_step} "
        f"on {cfg.trainer.accelerator} in {cfg.trainer.precision} → {output}",
        soft_wrap=True,
    )

    start = time.perf_counter()
    with warnings.catch_warnings():
        # Lightning's hints for other set-ups than this one: a frozen network, steps taken by hand, an endless loader.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        try:
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        except SystemExit as error:  # so Lightning leaves on a second Ctrl-C
            raise KeyboardInterrupt from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory with {cfg.data.batch_size} pictures of {cfg.data.size} px a step on "
                f"{cfg.trainer.accelerator}; a smaller data.batch_size or data.size takes less"
            ) from error
        except Exception as error:  # what the engine keeps of itself may have been tampered with in any way
            if isinstance(error, UserError) or not earlier or trainer.global_step > earlier["step"]:
                raise
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{resume} cannot be gone on from ({reason}); the run starts anew without it") from error
        interrupt_at_once()
        if trainer.global_step < cfg.trainer.max_steps:
            if trainer.global_step == 0:  # otherwise Lightning has validated, and so saved, when it was told to stop
                trainer.save_checkpoint(last)
            if not trainer.is_global_zero:
                sys.exit(1)
            raise UserError(f"stopped at step {trainer.global_step}; go on with resume={shlex.quote(str(last))}")
        unvalidated = module.batches_seen % cfg.trainer.validate_every != 0
        if unvalidated:
            trainer.validate(module, data, verbose=False)
        if unvalidated or earlier.get("step") == cfg.trainer.max_steps:  # otherwise it has just been saved
            trainer.save_checkpoint(last)
    if not trainer.is_global_zero:
        return None
    checkpoint = read_checkpoint(last)
    export_checkpoint(checkpoint, model)
    if cfg.float_nchw:
        export_checkpoint(checkpoint, output / f"{cfg.style.name}.float.onnx", float_nchw=True)
    summary = {
        "style": cfg.style.name,
        "steps": trainer.global_step,
        "skipped_steps": module.skipped_steps,
        "skipped_pictures": list(skipped),
        "validation_losses": module.validation_losses,
        "seconds": module.earlier_seconds + time.perf_counter() - start,
        "images_per_second": trainer.global_step * images_a_step / max(module.seconds, 1e-9),
        "processes": trainer.world_size,
        "device": torch.cuda.get_device_name()
        if cfg.trainer.accelerator == "gpu"
        else f"CPU, {torch.get_num_threads()} threads",
        "precision": cfg.trainer.precision,
        "loss_network": recorded["loss_network"],
        "style_weight": float(perceptual_loss.style_weight),
        "versions": {"nst_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    write_atomically(output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    if module.control is not None:
        console.print(
            f"strength {cfg.style.strength}: style weight {summary['style_weight']:.3g} gives a content distance of "
            f"{module.validation_losses['val/content_loss']:.3g} on validation pictures; "
            f"{module.control.target:.3g} was aimed for in training",
            soft_wrap=True,
        )
    if skipped:
        console.print(f"{len(skipped)} pictures could not be read and were left out:", style="yellow")
        for path, reason in skipped.items():
            console.print(f"  {path}: {reason}", soft_wrap=True)
    if module.skipped_steps:
        console.print(f"{module.skipped_steps} steps were not finite and were skipped", style="yellow")
    return model


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        tune_torch()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # The log is written by a thread of TensorBoard's, whose errors come up again in this one.
        threading.excepthook = lambda e: None if isinstance(e.exc_value, OSError) else threading.__excepthook__(e)
        try:
            from omegaconf import OmegaConf

            from nst_fast.commands.configuration import load_config

            if "--cfg" in arguments:
                print(OmegaConf.to_yaml(load_config("train", [a for a in arguments if a != "--cfg"])), end="")
                return
            model = train(arguments)
        except ModuleNotFoundError as error:
            require_training_packages(error)
        except OSError as error:  # a disk that is full or gone; nothing of the run is lost
            place = error.filename or "cannot write the run"
            raise UserError(f"{place}: {error.strerror or error}; go on with resume=last") from error
        finally:
            threading.excepthook = threading.__excepthook__
        if model is not None:
            print(model)
            print(f"stylize --model {shlex.quote(str(model))} photo.jpg")

    run(command, "train", USAGE)


if __name__ == "__main__":
    main()
