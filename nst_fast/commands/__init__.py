"""The commands: thin verbs over the library."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from nst_fast import __version__
from nst_fast.assets import cache_folder
from nst_fast.errors import UserError

LONGEST_LINE = 1200  # characters: what was got may be without end


def run(command: Callable[[list[str]], int | None], name: str, usage: str) -> NoReturn:
    """Run a command and leave with its exit code.

    --help and --version are answered, a user's error is one line on stderr and exit code 1; where nobody reads what is
    printed any more, as `| head` does not, it ends in silence.
    """
    open_closed_streams()
    # Lightning imports matplotlib, which would keep a list of fonts in the home folder, and say so where there is none.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = answer(command, name, usage)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        code = 141  # what a shell calls SIGPIPE
    except OSError as error:  # a disk is full, be it that of standard output
        discard_output()
        where = f"{error.filename} " if error.filename else ""
        print(printable(f"{name}: {where}cannot be written or read: {error.strerror or error}"), file=sys.stderr)
        code = 1
    sys.exit(code)


def open_closed_streams() -> None:
    """Give a process that was started without one of its standard streams an empty one.

    Otherwise the first file that is opened would become it, and be written to by whatever prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                taken = os.open(os.devnull, os.O_RDWR)
                if taken != number:
                    os.dup2(taken, number)
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115, PTH123


def discard_output() -> None:
    """Let what is still to be printed vanish: Python would try to write it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print where results are; that this cannot be printed is told, and is no failure of the work that is done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)


def answer(command: Callable[[list[str]], int | None], name: str, usage: str) -> int:
    """Return the exit code of a command after all that it prints."""
    arguments = sys.argv[1:]
    if hasattr(sys.stdout, "reconfigure"):  # a file may be called by any bytes, and a terminal may know few letters
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    if {"-h", "--help"} & set(arguments):
        print(usage.strip())
        return 0
    if "--version" in arguments:
        print(f"{name} (nst_fast) {__version__}")
        return 0
    warnings.filterwarnings("ignore", module="PIL")  # a huge or odd picture is no matter for the user's terminal
    try:
        return command(arguments) or 0
    except UserError as error:
        line = printable(" ".join(str(error).split()))
        line = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
        print(f"{name}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def tune_torch() -> None:
    """Set what torch reads when it is imported, unless the user has.

    Threads that spin while they wait take the cores from whatever else runs, a data worker for instance: half the speed
    of training, a thirtieth of the optimiser's. Large pages save a tenth of the time, which goes into fresh memory.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def show_warnings(console: Any) -> None:
    """Let the library's warnings appear on a console, and Lightning's advice not at all."""
    logging.getLogger("nst_fast").handlers = [Lines(console)]
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Lines(logging.Handler):
    """Print each warning as a yellow line."""

    def __init__(self, console: Any) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning."""
        self.console.print(printable(record.getMessage()), style="yellow", soft_wrap=True)


def printable(text: str) -> str:
    """Return a text with what would steer a terminal written as escapes: file names and metadata may be anyone's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require_training_packages(error: ModuleNotFoundError) -> NoReturn:
    """Say what to install where a command needs the ``train`` extra."""
    raise UserError(f'{error.name} is not installed; training needs: pip install "nst_fast[train]"') from error
