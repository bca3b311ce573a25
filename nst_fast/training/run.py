"""A training run, from a new network to its ONNX file."""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import shlex
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities import rank_zero_only

from nst_fast import __version__
from nst_fast.errors import UserError, one_line
from nst_fast.files import write_atomically
from nst_fast.loss.perceptual_loss import PerceptualLoss, Targets
from nst_fast.loss.style_weight import StyleWeightControl
from nst_fast.stylizing.style_file import SUFFIX, StyleFile
from nst_fast.training.checkpoints import CHECKPOINT_KEY, LAST, PREVIOUS, read_checkpoint, trained_network
from nst_fast.training.content_images import ContentImages
from nst_fast.training.interruption import Interruption, interrupt_at_once
from nst_fast.training.networks import TransformationNetwork
from nst_fast.training.onnx_export import described_network, export
from nst_fast.training.saving import Checkpoints
from nst_fast.training.style_transfer import Recipe, StyleTransfer

logger = logging.getLogger(__name__)

STEPS = {"cpu": 600, "mps": 600, "gpu": 40_000}  # minutes; the budget of Johnson et al. 2016
MEASURED_STEPS = 8  # that tell how fast a machine is
LOSS_SCALE = 2.0**7  # of float16 at the start; from torch's 2**16 the first nine steps are lost


@dataclass(frozen=True)
class Engine:
    """What computes a run; all but ``validate_every`` are Lightning's own options.

    Attributes:
        validate_every: steps from a validation to the next, after each of which a checkpoint is written.
    """

    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    validate_every: int = 250


@dataclass(frozen=True)
class TrainedModel:
    """What a run leaves behind.

    Attributes:
        path: the ONNX file.
        summary: steps, losses, seconds and so on, as in summary.json.
        skipped_pictures: {path: reason} of those that could not be read.
    """

    path: Path
    summary: Mapping[str, Any]
    skipped_pictures: Mapping[str, str]


def train(
    network: TransformationNetwork,
    perceptual_loss: PerceptualLoss,
    style_targets: Sequence[Targets],
    data: ContentImages,
    recipe: Recipe,
    engine: Engine,
    output: Path,
    *,
    config: dict[str, Any],
    image_sha256: str,
    paintings: Sequence[Mapping[str, Any]] = (),
    trunk: str | None = None,
    control: StyleWeightControl | None = None,
    resume: Path | None = None,
    start_over: bool = False,
    float_nchw: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainedModel | None:
    """Train a network on a style, or on many, and export it; of several processes all but the first return None.

    Args:
        network: the one to train; a resumed run replaces its weights.
        perceptual_loss: what it is trained on.
        style_targets: of each painting.
        data: the photographs.
        recipe: how it learns.
        engine: what computes.
        output: folder of the run, for checkpoints, samples, TensorBoard's log, the model and summary.json.
        config: plain types, what is to be known of the run: the groups of configs/train.yaml. The model is named
            after its style.
        image_sha256: of the painting's file, or of all.
        paintings: of several, what is known of each, its name first of all.
        trunk: identity of the gallery that the network starts from: a run of the vector alone then leaves a .style
            file.
        control: steers the style weight; None leaves it as it is.
        resume: the checkpoint to go on from.
        start_over: whether a run that is in the folder, and left no checkpoint, may be replaced.
        float_nchw: also export a model with float NCHW RGB in [0, 1].
        callbacks: of Lightning's, to show progress.

    Raises UserError where the folder cannot be written or holds another run, the run cannot go on from the checkpoint,
    is stopped, runs out of memory or learns nothing.
    """
    began = time.perf_counter()
    recorded = {"image_sha256": image_sha256, "loss_network": perceptual_loss.loss_network.identity}
    earlier = {} if resume is None else earlier_run(resume, recorded, data.photographs)
    skipped = earlier.get("skipped_pictures", {}) | data.skipped
    trunk = earlier.get("trunk", trunk)
    description = {
        "config": config,
        **recorded,
        "paintings": list(map(dict, paintings)),
        "trunk": trunk,
        "photographs": data.photographs,
        "skipped_pictures": skipped,
    }
    if getattr(rank_zero_only, "rank", 0) == 0:
        start_folder(output, config, start_over or in_place(output, resume))
    module = StyleTransfer(network, perceptual_loss, style_targets, recipe, description, control)
    module.samples_folder = output / "samples"
    trainer = create_trainer(recipe, engine, output, earlier.get("batches_seen", 0), callbacks)
    last = output / "checkpoints" / LAST
    with warnings.catch_warnings():
        # Lightning's hints for other set-ups than this one: a frozen network, steps taken by hand, an endless loader.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        fit(trainer, module, data, resume, earlier)
        interrupt_at_once()
        if trainer.global_step < recipe.max_steps:
            if trainer.global_step == 0:  # otherwise Lightning has validated, and so saved, when it was told to stop
                trainer.save_checkpoint(last)
            if not trainer.is_global_zero:
                raise SystemExit(1)
            raise Stopped(trainer.global_step, last)
        unvalidated = module.batches_seen % engine.validate_every != 0
        if unvalidated:
            trainer.save_checkpoint(last)  # an interrupt from here on loses no step
            try:
                trainer.validate(module, data, verbose=False)
            except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes the second of the first
                if not trainer.is_global_zero:
                    raise SystemExit(1) from error
                raise Stopped(trainer.global_step, last) from error
        if unvalidated or earlier.get("step") == recipe.max_steps:  # otherwise it has just been saved
            trainer.save_checkpoint(last)
    if not trainer.is_global_zero:
        return None
    finished, metadata = described_network(read_checkpoint(last), last)
    style = config["style"]["name"]
    model = export(finished, output / f"{style}.onnx", metadata)
    if float_nchw:
        export(finished, output / f"{style}.float.onnx", metadata, float_nchw=True)
    if trunk is not None and recipe.vector_steps >= recipe.max_steps:
        told = {key: str(config["style"][key]) for key in ("name", "title", "artist", "licence")}
        StyleFile(str(trunk), told, finished.vectors[0].tolist()).save(output / f"{style}{SUFFIX}")
    summary = {
        "style": style,
        "skipped_pictures": list(skipped),
        **summarise(module, trainer, data.batch_size),
        "seconds": module.earlier_seconds + time.perf_counter() - began,
    }
    write_atomically(output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return TrainedModel(model, summary, skipped)


def steps_in(
    minutes: float,
    network: TransformationNetwork,
    perceptual_loss: PerceptualLoss,
    style_targets: Sequence[Targets],
    data: ContentImages,
    recipe: Recipe,
    engine: Engine,
    *,
    paintings: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Return how many steps this machine takes in so many minutes, by a few of a copy of the network."""
    description = {"config": {}, "paintings": [dict(p) for p in paintings]}
    short = replace(recipe, max_steps=MEASURED_STEPS)
    module = StyleTransfer(copy.deepcopy(network), perceptual_loss, style_targets, short, description)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = create_trainer(short, replace(engine, validate_every=MEASURED_STEPS), Path(folder), 0, ())
        trainer.limit_val_batches = 0
        fit(trainer, module, data, None, {})
    return max(1, round(60 * minutes * MEASURED_STEPS / module.seconds))


def summarise(module: StyleTransfer, trainer: pl.Trainer, batch_size: int) -> dict[str, Any]:
    """Return what a run came to, as summary.json has it."""
    names = [painting["name"] for painting in module.description["paintings"]]
    steered = names and module.control is not None
    kind, told = module.device.type, {"cpu": f"CPU, {torch.get_num_threads()} threads", "mps": "Apple's GPU"}
    return {
        "steps": trainer.global_step,
        "skipped_steps": module.skipped_steps,
        "validation_losses": module.validation_losses,
        "images_per_second": trainer.global_step * batch_size * trainer.world_size / max(module.seconds, 1e-9),
        "processes": trainer.world_size,
        "device": torch.cuda.get_device_name() if kind == "cuda" else told[kind],
        "precision": trainer.precision,
        "loss_network": module.perceptual_loss.loss_network.identity,
        "style_weight": statistics.fmean(module.style_weights),
        **({"style_weights": dict(zip(names, module.style_weights, strict=True))} if steered else {}),
        "versions": {"nst_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


class Stopped(UserError):
    """A run was told to stop, and can be gone on with."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped at step {step}; go on with resume={shlex.quote(str(checkpoint))}")


def start_folder(output: Path, config: dict[str, Any], own: bool) -> None:
    """Make a run's folder and write config.yaml into it.

    Raises UserError where it cannot be written, or holds a run and is not the run's ``own``.
    """
    model = f"{config['style']['name']}.onnx"
    files = ("config.yaml", "summary.json", model, f"checkpoints/{LAST}", f"checkpoints/{PREVIOUS}")
    if not own and any(os.path.lexists(output / name) for name in files):
        raise UserError(f"{output} holds a run already; go on with resume=last, or choose another output=FOLDER")
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write the run into {output}: {reason}; output=FOLDER moves it") from error


def in_place(output: Path, resume: Path | None) -> bool:
    """Return whether a checkpoint is of the run in a folder."""
    return resume is not None and resume.parent.resolve() == (output / "checkpoints").resolve()


def finished_model(output: Path, style: str, resume: Path | None) -> Path | None:
    """Return the model of the run in a folder where that is finished, so that there is nothing to go on with."""
    model = output / f"{style}.onnx"
    return model if in_place(output, resume) and (output / "summary.json").exists() and model.exists() else None


def earlier_run(resume: Path, recorded: Mapping[str, str], photographs: str) -> dict[str, Any]:
    """Return what a checkpoint says of its run; UserError where it is of another painting or loss network."""
    checkpoint = read_checkpoint(resume)
    trained_network(checkpoint, resume)
    earlier: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
    for key, value in recorded.items():
        if earlier.get(key) != value:
            raise UserError(f"{resume} was trained with {key} {earlier.get(key)}, this command has {value}")
    if earlier.get("photographs", photographs) != photographs:
        logger.warning("the photographs are not those that the run began with; its model will be another one, too")
    return earlier


class RunLogger(TensorBoardLogger):
    """Lightning's, which takes a $ in a path for a variable of the shell."""

    @property
    def log_dir(self) -> str:
        """The run's folder of TensorBoard's log."""
        return str(self.root_dir)


def create_trainer(
    recipe: Recipe, engine: Engine, output: Path, batches_seen: int, callbacks: Sequence[Callback]
) -> pl.Trainer:
    """Return Lightning's trainer of a run in a folder, which goes on after so many batches."""
    if (engine.accelerator, engine.precision) == ("gpu", "bf16-mixed"):
        torch.set_float32_matmul_precision("high")  # of Gram matrices: TF32 holds bf16 and adds in float32
    checkpoints = ModelCheckpoint(
        str(output / "checkpoints"),
        filename=Path(LAST).stem,
        save_on_train_epoch_end=False,  # but after each validation, whose losses are in it
        enable_version_counter=False,
    )
    half = engine.precision == "16-mixed"
    plugins: list[Any] = [Checkpoints()]
    if half:
        scaler = torch.amp.GradScaler(init_scale=LOSS_SCALE)
        plugins.append(MixedPrecision("16-mixed", "cuda", scaler))
    return pl.Trainer(
        accelerator=engine.accelerator,
        devices=engine.devices,
        num_nodes=engine.num_nodes,
        strategy=engine.strategy,
        precision=None if half else engine.precision,  # type: ignore[arg-type]
        benchmark=engine.accelerator == "gpu" or None,  # of cuDNN's algorithms: every step has the same shapes
        max_steps=recipe.max_steps,
        val_check_interval=engine.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[checkpoints, *callbacks, Interruption()],
        plugins=plugins,
        use_distributed_sampler=False,  # the data know which share is whose
        enable_progress_bar=False,
        # What a killed session logged after its last checkpoint is logged again.
        logger=RunLogger(output / "tensorboard", name="", version="", purge_step=batches_seen),
        enable_model_summary=False,
    )


def fit(
    trainer: pl.Trainer, module: StyleTransfer, data: ContentImages, resume: Path | None, earlier: Mapping[str, Any]
) -> None:
    """Let the trainer take its steps; UserError where memory runs out or the checkpoint cannot be gone on from."""
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    except SystemExit as error:  # so Lightning leaves on a second Ctrl-C
        raise KeyboardInterrupt from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory with {data.batch_size} pictures of {data.size} px a step on "
            f"{module.device.type}; a smaller data.batch_size or data.size takes less"
        ) from error
    except Exception as error:  # what the engine keeps of itself may have been tampered with in any way
        if isinstance(error, UserError) or not earlier or trainer.global_step > earlier["step"]:
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"cannot go on from {resume} ({reason}); without resume= a new run starts") from error
