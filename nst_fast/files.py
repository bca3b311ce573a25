"""Files written in one step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nst_fast.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes beside the target, then rename; raises UserError where that is not allowed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:  # Ctrl-C leaves no half file either
        Path(temporary).unlink(missing_ok=True)
