"""Tensors from files that anyone may have made: nothing in them is run, nothing grows while it is read."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nst_fast.errors import UserError, one_line

MOST_UNPACKED = 1.0  # times the file's own size: torch.save does not compress
FOLDER = 0x10  # of an entry's attributes in an archive, as MS-DOS had it


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, in float32, and the metadata of a safetensors file.

    Raises UserError where the file is missing or is not safetensors.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no weights file at {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except Exception as error:  # a header can lie in any way
        raise UserError(f"{path} is no readable safetensors file: {one_line(error)}") from error
    return tensors, metadata


def read_torch(path: str | Path) -> Any:
    """Return what torch.save wrote, on the CPU.

    Raises UserError where the file is damaged, holds more than tensors and plain types, or unpacks to more than its
    size.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"  # as torch tells; what it wrote before 1.6 is none
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MOST_UNPACKED * path.stat().st_size:
                raise UserError(
                    f"{path} is no PyTorch file, perhaps a bomb: "
                    f"{path.stat().st_size / 1e6:.1f} MB unpack to {unpacked / 1e6:.1f} MB"
                )
            if (wrong := damage(path)) is not None:
                raise UserError(f"{path} is no PyTorch file, or a damaged one: {wrong}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch's words tell how to load it all the same
        raise UserError(
            f"{path} is no PyTorch file, or holds more than tensors and plain types, which load safely"
        ) from error
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise UserError(
            f"{path} is no PyTorch file, or not one that loads safely: {type(error).__name__}: {one_line(error)}"
        ) from error


def damage(path: str | Path) -> str | None:
    """Return what is wrong with a checkpoint's bytes, or None; torch writes checksums but does not read them."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "compressed, which torch never does"
            # torch fills the tensor of what is marked so with whatever was in memory.
            if any(entry.external_attr & FOLDER for entry in archive.infolist()):
                return "a tensor is marked as a folder"
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive can fail in any way
        return type(error).__name__
    return damaged and f"the checksum of {damaged} does not match"


def fill(network: nn.Module, tensors: Mapping[str, Any], path: str | Path) -> None:
    """Give a network its weights by name, in float32; on the meta device until then, no lie about a size costs memory.

    Raises UserError that names the first tensor that is missing, of another shape or not finite.
    """
    for name, own in network.state_dict().items():
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.shape != own.shape:
            got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "nothing"
            raise UserError(f"{path} does not fit: it has {got} for {name}, {tuple(own.shape)} is needed")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not plain or not tensor.isfinite().all():
            raise UserError(f"{path} does not fit: {name} holds something else than finite numbers")
    network.load_state_dict({name: tensors[name].float() for name in network.state_dict()}, assign=True)
