"""Where shipped files lie, in a clone and in an installed wheel, and where downloads are kept."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from nst_fast.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"
GALLERY = "gallery"  # the shipped model of many paintings
INT8 = ".int8"  # ends the name of a model in 8-bit integers
VGG16_SLIM = ASSETS / "vgg16_slim.safetensors"


def shipped(folder: str) -> Path:
    """Return a top-level folder of the project: inside the package in a wheel, beside it in a clone."""
    installed = PACKAGE / folder
    return installed if installed.is_dir() else PACKAGE.parent / folder


def cache_folder() -> Path:
    """Return the folder for downloads and caches; the environment variable NST_FAST_CACHE moves it.

    A user without a home, as containers may have, keeps them among temporary files.
    """
    if own := os.environ.get("NST_FAST_CACHE"):
        return Path(os.path.expanduser(own))
    try:
        usual = platformdirs.user_cache_path("nst_fast", appauthor=False)
    except RuntimeError:  # so newer ones of it say that there is no home; older ones leave a ~ in the path
        usual = Path("~")
    return usual if usual.is_absolute() else Path(tempfile.gettempdir(), f"nst_fast_{os.getuid()}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest known one, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return (f"did you mean {close[0]}? " if close else "") + f"there are {', '.join(known) or 'none'}"


def shipped_models(int8: bool = False) -> dict[str, Path]:
    """Return {name: file} of the models that ship with the package, or of those in 8 bits, called NAME.int8."""
    found = {path.stem: path for path in sorted(shipped("checkpoints").glob("*.onnx"))}
    return {name: path for name, path in found.items() if name.endswith(INT8) == int8}


def is_model(name: str) -> bool:
    """Return whether a name is a shipped model's or that of an .onnx file, not a checkpoint's."""
    return name.lower().endswith(".onnx") or name in shipped_models() | shipped_models(int8=True)


def find_model(name: str) -> Path:
    """Return the file of a model given as a path or by the name of a shipped one; raises UserError."""
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return path
    models = shipped_models() | shipped_models(int8=True)
    if name in models:
        return models[name]
    raise UserError(f"no model at {name!r}, and none of that name ships: {nearest(name, models)}")
