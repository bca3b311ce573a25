"""The command `train`: one style, one network, one ONNX file."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import signal
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from nst_fast import __version__
from nst_fast.commands import require_training_packages, run
from nst_fast.errors import UserError

USAGE = """
usage: train style=NAME [key=value ...]

Train a transformation network on a style and export it to ONNX.

  style=NAME               starry_night, the_scream, great_wave, composition_vii, or custom
  style.image=FILE         with style=custom: your own picture
  style.size=PX            short side of the painting; smaller means smaller strokes (default 384)
  loss.style_weight=W      strength of the style (default 7; 2 is subtle, 20 strong)
  data=folder data.root=D  train on your own photographs (default: bundled ones)
  data=coco                train on COCO's: data.split=val2017 (778 MB, fetched once) or train2017 (18 GB)
  trainer.max_steps=N      length of training (default: minutes on a CPU, 40,000 steps on a GPU)
  trainer=smoke            a few steps, to see that everything works
  loss_network=NAME        vgg19_slim, vgg19 or teachers (default: chosen by the device)
  network=NAME             fast or johnson
  experiment=johnson2016   the field's standard recipe
  resume=CHECKPOINT        go on from a checkpoint; repeat the options of its run
  output=FOLDER            folder of the run (default: runs/train/<style>/<time>)
  --cfg                    print the resolved config and stop
  --version                print the version

examples:
  train style=starry_night
  train style=custom style.image="my picture (1).jpg" style.size=256
  train style=the_scream data=folder data.root=~/Pictures trainer.max_steps=5000
"""


def resolve(cfg: Any, console: Console) -> None:
    """Check a config's values and replace what is automatic by what this machine gets."""
    import torch
    from pytorch_lightning.strategies import StrategyRegistry

    from nst_fast.commands.configuration import require_choice, require_number
    from nst_fast.commands.perceptual_loss import resolve_perceptual_loss
    from nst_fast.downloads import COCO
    from nst_fast.loss_network import multiplies_bfloat16
    from nst_fast.networks import NETWORKS

    for key, least, most in (
        ("data.size", 32, 4096),  # px
        ("data.batch_size", 1, 4096),
        ("data.num_workers", 0, 256),
        ("network.width", 4, 1024),
        ("network.blocks", 1, 256),
        ("trainer.devices", 1, 1024),
        ("seed", 0, 2**32 - 1),
    ):
        require_number(cfg, key, least, most)
    for key in ("trainer.cpu_steps", "trainer.gpu_steps", "trainer.validate_every"):
        require_number(cfg, key, 1)
    require_number(cfg, "trainer.max_steps", 1, optional=True)
    if cfg.data.name == "bundled":
        require_number(cfg, "data.dead_leaves", 0, 1, whole=False)
    require_choice(cfg, "network.name", NETWORKS)
    require_choice(cfg, "data.name", ("bundled", "folder", "coco"))
    if cfg.data.name == "coco":
        require_choice(cfg, "data.split", COCO)
    require_choice(cfg, "float_nchw", (True, False))
    require_choice(cfg, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda"))
    require_choice(cfg, "trainer.precision", ("auto", "32-true", "bf16-mixed", "16-mixed"))
    # The others shard what a small network has not.
    parallel = [name for name in StrategyRegistry.available_strategies() if name.startswith("ddp")]
    require_choice(cfg, "trainer.strategy", ("auto", *parallel))
    for key in ("trainer.learning_rate", "trainer.gradient_clip", "trainer.grid_weight"):
        require_number(cfg, key, 0, whole=False)
    if cfg.network.width % 4:
        raise UserError(f"network.width is {cfg.network.width}; a multiple of 4 is needed")

    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    cfg.trainer.accelerator = "gpu" if gpu else "cpu"
    if cfg.trainer.max_steps is None:
        cfg.trainer.max_steps = cfg.trainer.gpu_steps if gpu else cfg.trainer.cpu_steps
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = "bf16-mixed" if multiplies_bfloat16("cuda" if gpu else "cpu") else "32-true"
    resolve_perceptual_loss(cfg, gpu, console)


def create_data(cfg: Any, console: Console) -> Any:
    """Return the LightningDataModule of the config's content images."""
    from rich.progress import Progress

    from nst_fast.commands.progress import download_progress
    from nst_fast.data import BundledImages, ContentImages, FolderImages
    from nst_fast.downloads import fetch_coco

    images: BundledImages | FolderImages
    if cfg.data.name == "bundled":
        images = BundledImages(cfg.data.size, cfg.seed, cfg.data.dead_leaves)
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
            )
    return ContentImages(images, cfg.data.batch_size, cfg.data.num_workers, cfg.data.size, cfg.data.validation)


def train(cfg: Any) -> Path:
    """Train as a config says, leave the run's folder behind and return the path of the ONNX file."""
    import pytorch_lightning as pl
    import torch
    from omegaconf import OmegaConf
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import TensorBoardLogger

    from nst_fast.commands.configuration import literal, stored
    from nst_fast.commands.export import export_checkpoint
    from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_style
    from nst_fast.commands.progress import TrainingProgress, download_progress
    from nst_fast.networks import create_network
    from nst_fast.style_transfer import CHECKPOINT_KEY, StyleTransfer, read_checkpoint, trained_network
    from nst_fast.weights import one_line

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    resolve(cfg, console)
    pl.seed_everything(cfg.seed, verbose=False)
    # First of all that draws random numbers: the same seed starts alike whatever the loss network.
    network = create_network(cfg.network.name, cfg.network.width, cfg.network.blocks)
    resume, gone = None, 0
    if cfg.resume is not None:
        checkpoint = read_checkpoint(cfg.resume)
        gone = checkpoint[CHECKPOINT_KEY]["step"]
        trained_network(checkpoint, cfg.resume)
        earlier_config = stored(checkpoint[CHECKPOINT_KEY]["config"])
        for key in ("network.name", "network.width", "network.blocks", "trainer.max_steps"):
            was, now = OmegaConf.select(earlier_config, key), OmegaConf.select(cfg, key)
            if was != now:
                raise UserError(f"{cfg.resume} is of a run with {key}={was}, this one has {now}")
        resume = cfg.resume
    data = create_data(cfg, console)
    with download_progress(console) as show:
        perceptual_loss = create_perceptual_loss(cfg, show)
        grams, sha256 = find_style(cfg.style, perceptual_loss, progress=show)
    perceptual_loss.set_style(grams)
    recorded = {"image_sha256": sha256, "loss_network": perceptual_loss.loss_network.identity}

    started = datetime.now()
    output = Path(cfg.output or Path("runs", "train", cfg.style.name, started.strftime("%Y-%m-%d_%H-%M-%S")))
    cfg.output = literal(str(output))
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    try:
        output.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, output / "config.yaml")
    except OSError as error:
        raise UserError(f"cannot write the run into {output}: {error.strerror}; output=FOLDER moves it") from error

    description = {"config": config, **recorded}
    module = StyleTransfer(
        network,
        perceptual_loss,
        cfg.trainer.learning_rate,
        cfg.trainer.max_steps,
        cfg.trainer.gradient_clip,
        cfg.trainer.grid_weight,
        description,
    )
    module.samples_folder = output / "samples"
    checkpoints = ModelCheckpoint(
        output / "checkpoints",
        filename="last",
        every_n_train_steps=cfg.trainer.validate_every,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        strategy=cfg.trainer.strategy,
        precision=cfg.trainer.precision,
        max_steps=cfg.trainer.max_steps,
        val_check_interval=cfg.trainer.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, cfg.trainer.validate_every),
        callbacks=[checkpoints, TrainingProgress(console)],
        enable_progress_bar=False,
        logger=TensorBoardLogger(output / "tensorboard", name="", version=""),
        enable_model_summary=False,
    )
    console.print(
        f"style {cfg.style.name} at {cfg.style.size} px, loss network {recorded['loss_network'][:30]}, "
        f"network {cfg.network.name}, data {cfg.data.name}, {cfg.trainer.max_steps} steps of {cfg.data.batch_size} "
        f"on {cfg.trainer.accelerator} in {cfg.trainer.precision} → {output}",
        soft_wrap=True,
    )

    def stop(*_: Any) -> None:
        trainer.should_stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one stops at once

    start = time.perf_counter()
    earlier = signal.signal(signal.SIGINT, stop)
    with warnings.catch_warnings():
        # Lightning's hints for other set-ups than this one: a frozen network, steps taken by hand, an endless loader.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        try:
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        except Exception as error:  # what the engine keeps of itself may have been tampered with in any way
            if isinstance(error, UserError) or resume is None or trainer.global_step > gone:
                raise
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{resume} cannot be gone on from ({reason}); the run starts anew without it") from error
        signal.signal(signal.SIGINT, earlier)
        last = output / "checkpoints" / "last.ckpt"
        if trainer.global_step < cfg.trainer.max_steps:
            trainer.save_checkpoint(last)
            raise UserError(f"stopped at step {trainer.global_step}; go on with resume={shlex.quote(str(last))}")
        trainer.validate(module, data, verbose=False)
        trainer.save_checkpoint(last)
    checkpoint = read_checkpoint(last)
    model = export_checkpoint(checkpoint, output / f"{cfg.style.name}.onnx")
    if cfg.float_nchw:
        export_checkpoint(checkpoint, output / f"{cfg.style.name}.float.onnx", float_nchw=True)
    summary = {
        "style": cfg.style.name,
        "steps": trainer.global_step,
        "skipped_steps": module.skipped_steps,
        "skipped_pictures": [str(path) for path, _ in data.images.skipped],
        "validation_losses": module.validation_losses,
        "seconds": time.perf_counter() - start,
        "images_per_second": trainer.global_step * cfg.data.batch_size / max(module.seconds, 1e-9),
        "device": torch.cuda.get_device_name()
        if cfg.trainer.accelerator == "gpu"
        else f"CPU, {torch.get_num_threads()} threads",
        "precision": cfg.trainer.precision,
        "loss_network": recorded["loss_network"],
        "versions": {"nst_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if data.images.skipped:
        console.print(f"{len(data.images.skipped)} pictures could not be read and were left out:", style="yellow")
        for path, reason in data.images.skipped:
            console.print(f"  {path}: {reason}", soft_wrap=True)
    if module.skipped_steps:
        console.print(f"{module.skipped_steps} steps were not finite and were skipped", style="yellow")
    return model


def main() -> None:
    """Entry point."""

    def command(arguments: list[str]) -> None:
        # Threads that spin while they wait halve the speed as soon as anything else runs, a data worker for instance.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            from omegaconf import OmegaConf

            from nst_fast.commands.configuration import load_config

            cfg = load_config("train", [a for a in arguments if a != "--cfg"])
            if "--cfg" in arguments:
                print(OmegaConf.to_yaml(cfg), end="")
                return
            model = train(cfg)
        except ModuleNotFoundError as error:
            require_training_packages(error)
        print(model)
        print(f"stylize --model {shlex.quote(str(model))} photo.jpg")

    run(command, "train", USAGE)


if __name__ == "__main__":
    main()
