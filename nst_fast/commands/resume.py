"""Going on with a run: which one, from which checkpoint, with which config."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from nst_fast.assets import shipped
from nst_fast.commands.configuration import PATH_OPTIONS, literal, load_config, stored
from nst_fast.commands.perceptual_loss import style_name
from nst_fast.errors import UserError
from nst_fast.training.checkpoints import (
    CHECKPOINT_KEY,
    LAST,
    PREVIOUS,
    last_checkpoint,
    newest_run,
    upgraded,
    whole_checkpoint,
)
from nst_fast.training.run import in_place

logger = logging.getLogger(__name__)

RUNS = Path("runs", "train")
# Where things lie, who reads them and what computes may change in the middle of a run; what is trained may not.
MAY_CHANGE = PATH_OPTIONS - {"init_from"} | {"data.num_workers", "trainer.accelerator"}


def resume_run(arguments: list[str]) -> DictConfig:
    """Return the recorded config of an earlier run, its ``resume`` the checkpoint to go on from, None to start over.

    Raises UserError where there is no such run, none of its checkpoints can be read, or an option contradicts it.
    """
    typed = {a.partition("=")[0] for a in arguments}
    if "style" not in typed:
        arguments = ["style=custom", *arguments]
    style = [a for a in arguments if a.partition("=")[0].partition(".")[0] == "style"]
    wanted = load_config("train", [*style, *(a for a in arguments if a.startswith(("resume=", "output=")))])
    folder, checkpoint = find_checkpoint(wanted, typed)
    if checkpoint:
        checkpoint, content, notes = whole_checkpoint(checkpoint)
        recorded: Any = stored(content[CHECKPOINT_KEY]["config"])
        if folder and in_place(folder, checkpoint):
            notes += take_over_edits(recorded, folder / "config.yaml")
    elif folder:
        notes = [f"{folder} has no checkpoint yet: starting over"]
        recorded = read_config(folder / "config.yaml")
    run = checkpoint or folder
    groups = [str(key) for key, value in wanted.items() if isinstance(value, DictConfig)]
    for group in groups:
        if not isinstance(recorded, DictConfig) or not isinstance(recorded.get(group), DictConfig):
            raise UserError(f"the config of {run} lacks {group}")

    # What the command line says beside the run's own choices, as opposed to what these bring with them.
    files = {group: shipped("configs") / group / f"{recorded[group].get('name')}.yaml" for group in groups}
    chosen = {group: path for group, path in files.items() if group not in typed | {"style"} and path.is_file()}
    choices = [f"{group}={path.stem}" for group, path in chosen.items()]
    # What a choice cannot do without, the run has said.
    needed = {group: OmegaConf.missing_keys(OmegaConf.load(path)) for group, path in chosen.items()}
    choices += [f"{group}.{key}=." for group, keys in needed.items() for key in sorted(keys)]
    usual = load_config("train", [*(a for a in style if a.startswith("style=")), *choices])
    typed |= {f"{key}.name" for key in typed}
    for name, value in options(load_config("train", [*choices, *arguments])):
        usually, was = OmegaConf.select(usual, name), OmegaConf.select(recorded, name)
        if name in ("resume", "output") or value in (None, "auto") or (name not in typed and value == usually):
            continue
        if value != was and str(value) != str(was):
            if name not in MAY_CHANGE:
                raise UserError(
                    f"{run} was trained with {name}={was}, this command has {value}; leave {name} out to go on, or say "
                    "init_from=MODEL.onnx in place of resume to start a new run from its model"
                )
            notes.append(f"{name} was {was} and is now {value}")
            OmegaConf.update(recorded, name, literal(value) if isinstance(value, str) else value)
    for name, value in options(usual):  # an option that came after the run takes its default
        if not name.startswith(("data.", "style.")) and OmegaConf.select(recorded, name) is None:
            OmegaConf.update(recorded, name, value, force_add=True)
    for note in notes:  # once nothing is refused any more
        logger.warning(note)
    recorded.resume = None if checkpoint is None else literal(str(checkpoint))
    recorded.output = None if folder is None else literal(str(folder))
    return recorded


def read_config(path: Path) -> DictConfig:
    """Return a run's config.yaml in today's options; raises UserError where it cannot be read."""
    try:
        return stored(upgraded(yaml.safe_load(path.read_text("utf-8"))))
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read ({type(error).__name__}); mend it, or start a new run") from error


def take_over_edits(recorded: DictConfig, path: Path) -> list[str]:
    """Put what may change and is another in a run's config.yaml into what its checkpoint records; return notes of it.

    Raises UserError where the file cannot be read, or something else in it has been edited.
    """
    if not path.exists():
        return []
    notes = []
    for name, value in options(read_config(path)):
        was = OmegaConf.select(recorded, name, default=value)  # an option that came after the checkpoint is there alone
        if name in ("resume", "output") or value == was:
            continue
        if name not in MAY_CHANGE:
            raise UserError(
                f"{path} has been edited: {name} is {value}, the run has {was}; undo it, or start a new run"
            )
        notes.append(f"{name} was {was} and is now {value}, as {path} has it")
        OmegaConf.update(recorded, name, literal(value) if isinstance(value, str) else value)
    return notes


def find_checkpoint(cfg: DictConfig, typed: set[str]) -> tuple[Path | None, Path | None]:
    """Return the folder of the run that a command line means and its newest checkpoint; one of them may be None."""
    if cfg.resume != "last":
        checkpoint = last_checkpoint(cfg.resume)
        inside = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else None
        return Path(cfg.output) if cfg.output else inside, checkpoint
    if not typed & {"style", "output"}:
        raise UserError("resume=last needs style=NAME, or the run's output=FOLDER")
    folder = Path(cfg.output) if cfg.output else newest_run(RUNS / style_name(cfg.style))
    if not (folder / "config.yaml").is_file():
        raise UserError(f"no run in {folder}: it has no config.yaml; leave out resume=last to start one")
    kept = [folder / "checkpoints" / name for name in (LAST, PREVIOUS)]
    return folder, kept[0] if any(path.exists() for path in kept) else None


def options(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every option; a mapping of layers is one value."""
    for key, value in cfg.items():
        if isinstance(value, DictConfig):
            yield from ((f"{key!s}.{name!s}", item) for name, item in value.items())
        else:
            yield str(key), value
