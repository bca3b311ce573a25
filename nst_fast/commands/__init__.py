"""The commands: thin verbs over the library."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from nst_fast import __version__
from nst_fast.errors import UserError


def run(command: Callable[[list[str]], int | None], name: str, usage: str) -> NoReturn:
    """Run a command: answer --help and --version, show a user's error as one line on stderr with exit code 1."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(usage.strip())
        sys.exit(0)
    if "--version" in arguments:
        print(f"{name} (nst_fast) {__version__}")
        sys.exit(0)
    warnings.filterwarnings("ignore", module="PIL")  # a huge or odd picture is no matter for the user's terminal
    try:
        sys.exit(command(arguments) or 0)
    except UserError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def require_training_packages(error: ModuleNotFoundError) -> NoReturn:
    """Say what to install where a command needs the ``train`` extra."""
    raise UserError(f'{error.name} is not installed; training needs: pip install "nst_fast[train]"') from error
