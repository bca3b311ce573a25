"""What tests share: one thread a process, a cache of their own, and `train` in this process."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
from onnx import TensorProto, helper

# Tests run in as many processes as there are cores, and the processes that they start inherit it: weights that must
# agree bit for bit come from one number of threads. Before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import it themselves

from nst_fast.commands import train as train_command

MOST_PROCESSES = 8


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def state_kept() -> Iterator[None]:
    """Put back what a command leaves in its process, which ends with it where it has one of its own."""
    environment, handlers, hook = dict(os.environ), list(logging.getLogger("nst_fast").handlers), threading.excepthook
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.getLogger("nst_fast").handlers[:] = handlers
        threading.excepthook = hook
        for number, handler in signals.items():
            if handler is not None:  # else it is none of Python's
                signal.signal(number, handler)


@contextlib.contextmanager
def printed(number: int, name: str) -> Iterator[Callable[[], str]]:
    """Catch what this process writes to a file descriptor, libraries in C++ too; what is yielded reads it."""
    before = os.dup(number)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), number)
            how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "", "buffering": 1}
            with open(os.dup(number), "w", **how) as stream, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123
                patch.setattr(sys, name, stream)

                def read() -> str:
                    stream.flush()
                    file.seek(0)
                    return file.read().decode("utf-8", "surrogateescape")

                yield read
    finally:
        os.dup2(before, number)
        os.close(before)


def run_main(main: Callable[[], Any], name: str, *arguments: object, folder: Path, **environment: str) -> Result:
    """Run a command in this process as the shell does in its own, in a folder, and leave nothing of it here."""
    with state_kept(), printed(1, "stdout") as out, printed(2, "stderr") as err, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        os.environ.update(environment)
        with pytest.raises(SystemExit) as end:
            main()
        return Result(end.value.code or 0, out(), err())


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Of more processes each would import torch for a few tests."""
    return min((yield), MOST_PROCESSES)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache untouched, also from the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NST_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in it, m.onnx, that changes nothing."""
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return `train` as a function of its arguments, run in this process in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_main(train_command.main, "train", *arguments, folder=Path.cwd())
