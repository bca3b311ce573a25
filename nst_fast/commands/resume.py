"""Going on with a run: which one, from which checkpoint, with which config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from nst_fast.commands.configuration import PATH_OPTIONS, literal, load_config
from nst_fast.commands.perceptual_loss import style_name
from nst_fast.errors import UserError
from nst_fast.style_transfer import CHECKPOINT_KEY, LAST, PREVIOUS, read_checkpoint

RUNS = Path("runs", "train")
# Where things lie and who reads them may change in the middle of a run; what is trained may not.
MAY_CHANGE = PATH_OPTIONS | {"data.num_workers"}


def resume_run(arguments: list[str], console: Console) -> DictConfig:
    """Return the recorded config of an earlier run, its ``resume`` the checkpoint to go on from, None to start over.

    Raises UserError where there is no such run, none of its checkpoints can be read, or an option contradicts it.
    """
    typed = {a.partition("=")[0] for a in arguments}
    if "style" not in typed:
        arguments = ["style=custom", *arguments]
    asked = load_config("train", arguments)
    notes: list[str] = []
    checkpoint: Path | None
    folder: Path | None
    if asked.resume == "last":
        if not typed & {"style", "output"}:
            raise UserError("resume=last needs style=NAME, or the run's output=FOLDER")
        folder = Path(asked.output) if asked.output else newest_run(RUNS / style_name(asked.style))
        if not (folder / "config.yaml").is_file():
            raise UserError(f"no run in {folder}: it has no config.yaml; leave out resume=last to start one")
        kept = [folder / "checkpoints" / name for name in (LAST, PREVIOUS)]
        checkpoint = kept[0] if any(path.exists() for path in kept) else None
    else:
        checkpoint = Path(asked.resume)
        inside = checkpoint.parent.name == "checkpoints"
        folder = Path(asked.output) if asked.output else checkpoint.parents[1] if inside else None
    if folder and not checkpoint:
        notes.append(f"{folder} has no checkpoint yet: starting over")
        recorded = OmegaConf.load(folder / "config.yaml")
    if checkpoint:
        checkpoint, config = whole_checkpoint(checkpoint, notes)
        recorded = OmegaConf.create(escaped(config))
    if not isinstance(recorded, DictConfig):
        raise UserError(f"the config of {checkpoint or folder} is no mapping")
    # What the command line chose, as opposed to what a choice of style brings with it.
    usual = load_config("train", [a for a in arguments if a.startswith("style=")])
    chosen = typed | {f"{key}.name" for key in typed}
    for name, value in options(asked):
        if name in ("resume", "output") or value in (None, "auto"):
            continue
        if name not in chosen and value == OmegaConf.select(usual, name):
            continue
        was = OmegaConf.select(recorded, name)
        if value != was and str(value) != str(was):
            if name not in MAY_CHANGE:
                raise UserError(f"the run of {checkpoint or folder} has {name}={was}, this command {value}")
            notes.append(f"{name} was {was} and is now {value}")
            OmegaConf.update(recorded, name, literal(value) if isinstance(value, str) else value)
    for name, value in options(usual):  # an option that came after the run takes its default
        group, _, key = name.rpartition(".")
        if not isinstance(recorded if not group else recorded.get(group), DictConfig):
            raise UserError(f"the config of {checkpoint or folder} lacks {group}")
        if group != "data" and key not in (recorded[group] if group else recorded):
            OmegaConf.update(recorded, name, value, force_add=True)
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)
    recorded.resume = None if checkpoint is None else literal(str(checkpoint))
    recorded.output = None if folder is None else literal(str(folder))
    return recorded


def newest_run(root: Path) -> Path:
    """Return the folder of the run in ``root`` that was started or resumed last."""
    configs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
    if not configs:
        raise UserError(f"no run in {root}; leave out resume=last to start one")
    return configs[-1].parent


def whole_checkpoint(path: Path, notes: list[str]) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint and its config; those of the one before, noting so, where it is damaged or missing."""
    previous = path.with_name(PREVIOUS)
    try:
        return path, read_checkpoint(path)[CHECKPOINT_KEY]["config"]
    except UserError as error:
        if path.name != LAST or not previous.exists():
            raise
        config = read_checkpoint(previous)[CHECKPOINT_KEY]["config"]
        notes.append(f"{error}; going on from {previous}")
        return previous, config


def options(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every option; a mapping of layers is one value."""
    for key in map(str, cfg):
        if isinstance(cfg[key], DictConfig):
            yield from ((f"{key}.{name}", value) for name, value in cfg[key].items())
        else:
            yield key, cfg[key]


def escaped(value: Any) -> Any:
    """Return plain types such that OmegaConf reads every string in them as it stands."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return literal(value) if isinstance(value, str) else value
