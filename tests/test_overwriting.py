"""No command replaces what is there unasked, and two commands of one second have two folders."""

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from nst_fast.assets import shipped_models
from nst_fast.commands import compare, export, optimize, preview, train
from nst_fast.errors import UserError
from nst_fast.files import new_folder

TINY = ["style=starry_night", "style.size=512", "size=32", "iterations=1", "loss_network=vgg16_slim", "device=cpu"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a command of a module in this process, in a folder with photo.png: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save("photo.png")

    def call(module, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        with pytest.raises(SystemExit) as end:
            module.main()
        return (end.value.code or 0, *capsys.readouterr())

    return call


def test_of_many_commands_at_once_each_has_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_folder, [tmp_path / "runs" / "12-00-00"] * 16))
    assert len(set(folders)) == 16
    assert all(folder.is_dir() for folder in folders)
    assert {folder.name for folder in folders} == {"12-00-00", *(f"12-00-00_{n}" for n in range(2, 17))}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output=FOLDER"):
        new_folder(tmp_path / "file" / "run")


class Clock(datetime):
    """It stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12)


@pytest.mark.parametrize("module", [optimize, train], ids=["nst-optimize", "train"])
def test_two_runs_of_one_second_have_two_folders(module, command, monkeypatch):
    monkeypatch.setattr(module, "datetime", Clock)
    options = ["content=photo.png", *TINY]
    if module is train:
        options = ["style=starry_night", "trainer.max_steps=1", "data.size=32", "data.batch_size=1", "network.width=4"]
        options += ["network.blocks=1", "data.num_workers=0", "trainer.accelerator=cpu"]
    done = [command(module, *options) for _ in range(2)]
    assert [code for code, *_ in done] == [0, 0]
    made = [Path(out.splitlines()[0]).parent for _, out, _ in done]
    assert [folder.name for folder in made] == ["2026-01-01_12-00-00", "2026-01-01_12-00-00_2"]
    assert all(folder.name in (folder / "config.yaml").read_text() for folder in made)


def assert_refused(told: tuple[int, str, str], name: str, option: str) -> None:
    code, out, err = told
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert f"{name} exists already; {option}" in err


@pytest.mark.parametrize("name", ["config.yaml", "trace.json", "photo.starry_night.png"])
def test_nst_optimize_replaces_an_earlier_run_only_where_told(name, command):
    options = ["content=photo.png", *TINY, "output=run"]
    Path("run").mkdir()
    Path("run", name).write_text("mine")
    assert_refused(command(optimize, *options), name, "overwrite=true")
    assert [p.name for p in Path("run").iterdir()] == [name]
    if name == "trace.json":
        assert command(optimize, *options, "overwrite=true")[0] == 0
        assert Path("run", name).read_text() != "mine"


def test_nst_preview_replaces_a_sheet_only_where_told(command):
    Path("starry_night.preview.jpg").write_text("mine")
    options = ["style=starry_night", "loss_network=vgg16_slim", "device=cpu", "size=96", "steps=1", "vector_steps=1"]
    assert_refused(command(preview, *options), "starry_night.preview.jpg", "overwrite=true")
    assert Path("starry_night.preview.jpg").read_text() == "mine"
    more = ["content_distances=[medium]", "overwrite=true"]
    assert command(preview, *options, *more)[0] == 0
    assert Path("starry_night.preview.jpg").read_bytes().startswith(b"\xff\xd8")


def test_nst_compare_replaces_a_report_only_where_told(command):
    Path("photos").mkdir()
    Path("photo.png").rename("photos/photo.png")
    Path("comparison").mkdir()
    Path("comparison/report.html").write_text("mine")
    options = ["--model", "starry_night", "--content", "photos", "--size", "32", "--iterations", "1"]
    assert_refused(command(compare, *options), "report.html", "--overwrite")
    assert Path("comparison/report.html").read_text() == "mine"
    more = ["--methods", "adam", "--starts", "content", "--overwrite"]
    assert command(compare, *options, *more)[0] == 0
    assert Path("comparison/report.html").read_text() != "mine"


def test_nst_export_replaces_a_model_only_where_told(command, monkeypatch):
    model = str(shipped_models()["starry_night"])
    Path("starry_night.int8.onnx").write_text("mine")
    assert_refused(command(export, "--int8", model), "starry_night.int8.onnx", "--overwrite")
    assert_refused(
        command(export, "--int8", model, "-o", "starry_night.int8.onnx"), "starry_night.int8.onnx", "--overwrite"
    )
    assert Path("starry_night.int8.onnx").read_text() == "mine"
    quantised = shipped_models(int8=True)["starry_night.int8"]  # which takes a while
    monkeypatch.setattr(
        "nst_fast.stylizing.quantization.export_int8", lambda model, path, *_: shutil.copyfile(quantised, path)
    )
    assert command(export, "--int8", model, "--overwrite")[:2] == (0, "starry_night.int8.onnx\n")
    assert Path("starry_night.int8.onnx").read_bytes() == quantised.read_bytes()
