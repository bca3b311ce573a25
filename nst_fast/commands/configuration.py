"""From a command line to a resolved config: Hydra's grammar for values, the shell's for paths."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nst_fast.assets import nearest, shipped, shipped_models
from nst_fast.errors import UserError

# Their values never meet Hydra's grammar, which refuses ~, spaces, brackets, commas, = and accents.
PATH_OPTIONS = frozenset(
    {
        "style.image",
        "style.targets",
        "style.images",
        "data.root",
        "data.validation",
        "loss_network.weights",
        "loss_network.shallow",
        "loss_network.deep",
        "content",
        "start_image",
        "output",
        "resume",
        "init_from",
    }
)


def option_names(cfg: Any, prefix: str = "") -> Iterable[str]:
    """Yield the dotted names of every option in a config."""
    for key in cfg:
        name = f"{prefix}{key}"
        yield name
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from option_names(child, name + ".")


def refuse_unknown(arguments: list[str], cfg: DictConfig) -> None:
    """Raise UserError, which names the nearest, where an argument key=value is no option of a config."""
    known = sorted(option_names(cfg))
    for argument in arguments:
        key = argument.partition("=")[0]
        if key not in known:
            raise UserError(f"unknown option {key!r}: {nearest(key, known).split(';')[0].split('there are')[0]}")


def load_config(root: str, arguments: list[str]) -> DictConfig:
    """Return the config of a command, ``configs/<root>.yaml``, with the overrides of its command line.

    Raises UserError, one line, for an unknown choice or option (naming the nearest), a value that Hydra cannot read and
    a required value that is missing.
    """
    choices, values, paths = sort_arguments(arguments)
    cfg = compose_choices(root, choices, values)
    refuse_unknown([*values, *(f"{key}=" for key in paths)], cfg)
    try:
        for override in OverridesParser.create().parse_overrides(values):
            if override.is_sweep_override():
                raise UserError(f"cannot read {override.input_line}: one value is needed; quotes keep a comma in it")
            # A mapping takes the place of the one that is there: a user who names layers means these and no others.
            OmegaConf.update(cfg, override.get_key_element(), override.value(), merge=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"cannot read {' '.join(values)}: {str(error).strip().splitlines()[0]}") from error
    for key in paths:
        OmegaConf.update(cfg, key, None)
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]} is missing: say {missing[0]}=…")
        OmegaConf.resolve(cfg)
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or " ".join(values)
        raise UserError(f"cannot read {key}: {(str(error).strip() or 'endless').splitlines()[0]}") from error
    for key, path in paths.items():
        OmegaConf.update(cfg, key, literal(path))
    return cfg


def groups() -> dict[str, list[str]]:
    """Return the choices of every config group."""
    folders = sorted(path for path in shipped("configs").iterdir() if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def sort_arguments(arguments: list[str]) -> tuple[list[str], list[str], dict[str, str | None]]:
    """Return the choices of groups, the values and the paths, absolute, among arguments; UserError for what is none."""
    known, choices, values, paths = groups(), [], [], dict[str, str | None]()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not argument.isascii() and argument != argument.encode(errors="replace").decode():
            raise UserError(f"cannot read {argument!r}: it is no UTF-8; rename the file")
        if not equals:
            raise UserError(f"cannot read {argument!r}: options are written key=value; --help has examples")
        if key in known:
            if value not in known[key] and (value, key) != ("null", "experiment"):
                raise UserError(f"unknown {key} {value!r}: {nearest(value, known[key])}")
            choices.append(argument)
        elif key in PATH_OPTIONS and not value:
            raise UserError(f"{key} is empty; a path is needed, or null")
        elif key in PATH_OPTIONS:
            models = () if os.path.lexists(value) else shipped_models() | shipped_models(int8=True)
            names = {"resume": ("last",), "init_from": models}.get(key, ())
            absolute = os.path.abspath(os.path.expanduser(value))
            paths[key] = None if value == "null" else value if value in names else absolute
        else:
            values.append(argument)
    return choices, values, paths


@cache
def composed(root: str, *choices: str) -> DictConfig:
    """Return what a root and choices of its groups compose to, for whoever copies it."""
    with initialize_config_dir(str(shipped("configs")), version_base="1.3"):
        return compose(root, list(choices))


def compose_choices(root: str, choices: list[str], values: list[str]) -> DictConfig:
    """Return what a root and choices of its groups compose to; UserError where a choice is missing or not its own."""
    try:
        cfg = copy.deepcopy(composed(root, *choices))
    except HydraException as error:
        line = str(error).strip().splitlines()[0]
        group = line.partition("You must specify '")[2].partition("'")[0]
        if group:
            known = groups()[group]
            refuse_unknown(values, composed(root, *choices, f"{group}={known[0]}"))  # it may be misspelt
            raise UserError(f"{group} is missing: say {group}=NAME; there are {', '.join(known)}") from error
        raise UserError(line) from error
    experiment = next((choice for choice in choices if choice.startswith("experiment=")), None)
    if experiment is not None:
        foreign = set(cfg) - set(composed(root, *(choice for choice in choices if choice != experiment)))
        if foreign:
            raise UserError(
                f"{experiment} is no experiment for this command: it has no option {', '.join(sorted(foreign))}"
            )
    return cfg


def literal(text: str | None) -> str | None:
    """Return what to put into a config so that it reads as this text: a file may be called a${b}.jpg."""
    return None if text is None else re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def stored(config: Any) -> DictConfig:
    """Return a config that a file kept, as plain values: nothing in it is looked up, resolved or made.

    Its text is escaped, once: `OmegaConf.resolve` on it would wake what it holds.
    Raises UserError where it is no mapping of names to such values.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return literal(value) if isinstance(value, str) else value

    try:
        return OmegaConf.create(dict(plain(config)))
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the recorded config cannot be read: {reason}") from error


def require_choice(cfg: DictConfig, key: str, known: Iterable[Any]) -> None:
    """Raise UserError unless an option is one of the values known."""
    value = OmegaConf.select(cfg, key)
    if value not in (known := list(known)):
        raise UserError(f"{key} is {value!r}; {nearest(str(value), map(str, known))}")


def require_number(
    cfg: DictConfig, key: str, least: float, most: float | None = None, whole: bool = True, optional: bool = False
) -> None:
    """Raise UserError unless an option is a number, whole where asked for, from ``least`` to ``most``."""
    value = OmegaConf.select(cfg, key)
    if not (value is None and optional):
        check_number(key, value, least, most, whole)


def check_number(name: str, value: Any, least: float, most: float | None = None, whole: bool = True) -> None:
    """Raise UserError unless a value is a number, whole where asked for, from ``least`` to ``most``.

    Without ``most`` it is what no run lasts and what float32 can still multiply.
    """
    kinds = (int,) if whole else (int, float)
    most = most if most is not None else 1e9 if whole else 1e20
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"{name} is {value!r}; {kind} of at least {least:g} and at most {most:g} is needed")


def require_text(cfg: DictConfig, key: str) -> None:
    """Raise UserError unless an option is a text, a number or null."""
    value = OmegaConf.select(cfg, key)
    if not isinstance(value, (str, int, float, type(None))):
        raise UserError(f"{key} is {value!r}; text is needed")


def require_weights(cfg: DictConfig, key: str, optional: bool = False) -> None:
    """Raise UserError unless an option maps names to numbers of at least 0, one or more unless optional."""
    value = OmegaConf.select(cfg, key)
    if not isinstance(value, DictConfig) or (not value and not optional):
        raise UserError(f"{key} is {value!r}; {{name: weight}} is needed")
    for name, weight in value.items():
        if not isinstance(name, str):
            raise UserError(f"{key} names {name!r}; the name of a layer or style is needed")
        check_number(f"{key}.{name}", weight, 0, whole=False)
