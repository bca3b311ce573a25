"""What tests share: one thread a process, a cache of their own, and `train` in this process."""

import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

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
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return `train` as a function of its arguments, run in this process in a fresh folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as end:
            train_command.main()
        return Result(end.value.code or 0, *capsys.readouterr())

    return command
