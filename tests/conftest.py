"""What tests share: a cache of their own, and `train` in this process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nst_fast.commands import train as train_command


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache untouched, also from the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NST_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
