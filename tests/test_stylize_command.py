"""The commands as a user meets them: what they write, what they say, how they exit."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_main
from PIL import Image

import nst_fast
from nst_fast.commands import compare as compare_command
from nst_fast.commands import export as export_command
from nst_fast.commands import optimize as optimize_command
from nst_fast.commands import stylize as stylize_command
from nst_fast.commands import train as train_command
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export

BIN = Path(sys.executable).parent
COMMANDS = {
    "train": train_command.main,
    "stylize": stylize_command.main,
    "nst-export": export_command.main,
    "nst-optimize": optimize_command.main,
    "nst-compare": compare_command.main,
}


def call(name: str, *arguments, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [str(BIN / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment})


def stylize_from_the_shell(*arguments, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return call("stylize", "--threads", 1, *arguments, folder=folder, **environment)


def call_here(name: str, *arguments, folder: Path) -> subprocess.CompletedProcess:
    """Run a command in this process."""
    return subprocess.CompletedProcess([name, *arguments], *run_main(COMMANDS[name], name, *arguments, folder=folder))


def stylize(*arguments, folder: Path) -> subprocess.CompletedProcess:
    return call_here("stylize", "--threads", 1, *arguments, folder=folder)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_one_line(done: subprocess.CompletedProcess, name: str = "stylize") -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    return export(create_network("fast", 8, 1), tmp_path_factory.mktemp("model") / "tiny.onnx", {"style": "tiny"})


@pytest.fixture
def folder(tmp_path, exported):
    """A folder with the model and one photograph."""
    shutil.copy(exported, tmp_path)
    save_photo(tmp_path / "photo.jpg")
    return tmp_path


def save_photo(path: Path, width: int = 30, height: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix == ".png" else "JPEG")


def assert_picture(path: Path, size: tuple[int, int] = (30, 20)) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.size == size


def test_picture_lands_beside_its_source_under_the_models_name(folder):
    photo = (folder / "photo.jpg").read_bytes()
    done = stylize_from_the_shell("--model", "tiny.onnx", "photo.jpg", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "photo.tiny.jpg\n", "")
    assert set(files(folder)) == {"photo.jpg", "photo.tiny.jpg", "tiny.onnx"}
    assert (folder / "photo.jpg").read_bytes() == photo
    assert_picture(folder / "photo.tiny.jpg")


def test_output_may_be_a_file_in_a_new_folder(folder):
    done = stylize("--model", "tiny.onnx", "photo.jpg", "-o", "new/folder/out.png", folder=folder)
    assert done.returncode == 0, done.stderr
    assert set(files(folder)) == {"photo.jpg", "new/folder/out.png", "tiny.onnx"}
    with Image.open(folder / "new/folder/out.png") as image:
        assert (image.format, image.size) == ("PNG", (30, 20))


def test_output_may_be_a_folder_that_exists(folder):
    (folder / "out").mkdir()
    done = stylize("--model", "tiny.onnx", "photo.jpg", "-o", "out", folder=folder)
    assert done.returncode == 0, done.stderr
    assert set(files(folder)) == {"photo.jpg", "out/photo.jpg", "tiny.onnx"}
    assert_picture(folder / "out/photo.jpg")


def test_turned_photograph_comes_out_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "turned.jpg", exif=exif)
    assert stylize("--model", "tiny.onnx", "turned.jpg", folder=folder).returncode == 0
    with Image.open(folder / "turned.tiny.jpg") as image:
        assert image.size == (20, 40)
        assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("broken", ["broken.jpg", "deep/broken [final] :smile: 50%.jpg", "a [/b] c.jpg"])
def test_broken_picture_of_a_folder_is_named_and_the_rest_is_done(folder, broken):
    save_photo(folder / "holiday/a.jpg")
    save_photo(folder / "holiday/deep/er/b.png", 17, 40)
    (folder / "holiday/notes.txt").write_text("no picture")
    (folder / "holiday" / broken).parent.mkdir(exist_ok=True)
    (folder / "holiday" / broken).write_bytes((folder / "holiday/a.jpg").read_bytes()[:-300])
    done = stylize("--model", "tiny.onnx", "-r", "holiday", folder=folder)
    assert done.returncode == 1
    left_out, told = (line for line in done.stderr.splitlines() if line.strip())
    assert left_out.endswith(" 1 .txt")
    assert told.startswith(f"stylize: holiday/{broken}")
    assert set(files(folder / "holiday.tiny")) == {"a.jpg", "deep/er/b.png"}
    assert_picture(folder / "holiday.tiny/a.jpg")
    assert_picture(folder / "holiday.tiny/deep/er/b.png", (17, 40))


def test_folder_goes_into_the_folder_that_was_asked_for(folder):
    save_photo(folder / "holiday/deep/a.jpg")
    done = stylize("--model", "tiny.onnx", "-r", "holiday/", "-o", "out/here", folder=folder)
    assert done.returncode == 0, done.stderr
    assert set(files(folder / "out")) == {"here/deep/a.jpg"}
    assert set(files(folder / "holiday")) == {"deep/a.jpg"}


@pytest.mark.parametrize(
    "name",
    [
        "my photo.jpg",
        "photo [1].jpg",
        "a,b=c.jpg",
        "naïve 日本 é.jpg",
        "${x} 'quoted' {y}.jpg",
        "~photo.jpg",
        "[/x] (y)/[bold]z.jpg",
    ],
)
def test_any_file_name_works(folder, name):
    save_photo(folder / name)
    run = stylize if name.isascii() else stylize_from_the_shell  # where the locale has a say
    done = run("--model", "tiny.onnx", name, folder=folder)
    assert done.returncode == 0, done.stderr
    expected = f"{name.removesuffix('.jpg')}.tiny.jpg"
    assert done.stdout == f"{expected}\n"
    assert_picture(folder / expected)


def test_model_in_a_folder_of_any_name_works(folder):
    (folder / "my models, é [1]").mkdir()
    (folder / "tiny.onnx").rename(folder / "my models, é [1]/a=b.onnx")
    done = stylize("--model", "my models, é [1]/a=b.onnx", "photo.jpg", "--output", "out, é [2].png", folder=folder)
    assert done.returncode == 0, done.stderr
    assert_picture(folder / "out, é [2].png")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "tiny.onnx", "missing.jpg"],
        ["--model", "tiny.onnx", "two\nlines.jpg"],
        ["--model", "tiny.onnx", "x" * 300 + ".jpg"],
        ["--model", "tiny.onnx", "~no such user/photo.jpg"],
        ["--model", "tiny.onnx", "words.jpg"],
        ["--model", "tiny.onnx", "empty"],
        ["--model", "missing.onnx", "photo.jpg"],
        ["--model", "x" * 300, "photo.jpg"],
        ["--model", "words.onnx", "photo.jpg"],
        ["--model", "empty", "photo.jpg"],
        ["--model", "tiny.onnx", "photo.jpg", "-o", "words.jpg/out.jpg"],
        ["--model", "tiny.onnx", "photo.jpg", "-o", "out.xyz"],
        ["--model", "tiny.onnx", "photo.jpg", "-o", "out.psd"],
        ["--model", "tiny.onnx", "photo.jpg", "-o", "x" * 300 + ".png"],
        ["--model", "tiny.onnx", "holiday", "-o", "words.jpg"],
        ["--model", "tiny.onnx", "holiday", "-o", "words.jpg/out"],
        ["--model", "tiny.onnx", "photo.jpg", "--threads", "-1"],
        ["--model", "tiny.onnx", "photo.jpg", "--threads", "99999999999"],
    ],
    ids=lambda arguments: " ".join(a[:20] for a in arguments[1:]),
)
def test_mistake_is_one_line_and_writes_nothing(folder, arguments):
    (folder / "empty").mkdir()
    (folder / "words.jpg").write_text("just words")
    (folder / "words.onnx").write_text("just words")
    save_photo(folder / "holiday/a.jpg")
    before = files(folder)
    assert_one_line(stylize(*arguments, folder=folder))
    assert files(folder) == before


def test_shipped_model_is_found_by_its_name_and_the_nearest_is_named_for_a_misspelt_one(folder):
    # The layout of an installed wheel, with two models in it.
    package = folder / "site" / "nst_fast"
    shutil.copytree(Path(nst_fast.__file__).parent, package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.rmtree(package / "checkpoints", ignore_errors=True)
    (package / "checkpoints").mkdir()
    for name in ("blue_moon", "red_sun"):
        shutil.copy(folder / "tiny.onnx", package / "checkpoints" / f"{name}.onnx")
    site = str(package.parent)
    done = stylize_from_the_shell("--model", "blue_moon", "photo.jpg", folder=folder, PYTHONPATH=site)
    assert (done.returncode, done.stdout) == (0, "photo.blue_moon.jpg\n"), done.stderr
    done = stylize_from_the_shell("--model", "blu_mon", "photo.jpg", folder=folder, PYTHONPATH=site)
    assert_one_line(done)
    assert "'blu_mon'" in done.stderr
    assert "did you mean blue_moon?" in done.stderr
    assert "red_sun" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_and_version_is_the_packages(tmp_path, name):
    for run, flag in ((call, "--help"), (call_here, "-h")):
        done = run(name, flag, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        usage, examples = done.stdout.split("examples:\n")
        assert usage.startswith(f"usage: {name} ")
        assert all(line.startswith(f"  {name} ") for line in examples.splitlines())
        assert len(examples.splitlines()) >= 2
    done = call_here(name, "--version", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{name} (nst_fast) {nst_fast.__version__}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train", "stylize", "nst-compare"])
def test_help_and_names_are_printed_where_the_terminal_knows_few_letters(tmp_path, name):
    done = call(name, "--help", folder=tmp_path, PYTHONIOENCODING="cp437")
    assert (done.returncode, done.stderr) == (0, "")


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code of a checkpoint has run")


def write_bad_checkpoint(kind: str, folder: Path) -> None:
    path = folder / "last.ckpt"
    if kind in ("empty", "words"):
        path.write_text("" if kind == "empty" else "just words\n")
    elif kind == "another project's":
        torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "malicious":
        torch.save({"nst_fast": Malicious(folder / "written"), "state_dict": {}}, path)
    elif kind == "malicious pickle":
        path.write_bytes(pickle.dumps(Malicious(folder / "written")))


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "words", "another project's", "a tensor", "malicious", "malicious pickle"]
)
def test_bad_checkpoint_is_refused_in_one_line_and_runs_no_code(tmp_path, monkeypatch, capfd, kind):
    write_bad_checkpoint(kind, tmp_path)
    before = files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nst-export", "last.ckpt"])
    with pytest.raises(SystemExit) as leaving:
        export_command.main()
    out, err = capfd.readouterr()
    assert_one_line(subprocess.CompletedProcess([], leaving.value.code, out, err), "nst-export")
    assert "last.ckpt" in err
    assert "arbitrary code" not in err  # nobody is told how to load it all the same
    assert files(tmp_path) == before


@pytest.mark.slow  # the same as above in a process of its own
def test_nst_export_refuses_a_malicious_checkpoint_from_the_shell(tmp_path):
    write_bad_checkpoint("malicious", tmp_path)
    assert_one_line(call("nst-export", "last.ckpt", folder=tmp_path), "nst-export")
    assert set(files(tmp_path)) == {"last.ckpt"}


@pytest.mark.skipif(os.name == "nt", reason="there are no broken pipes")
@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["--json", "--model", "tiny.onnx", "photo.jpg"]])
def test_nothing_is_said_where_nobody_reads_what_is_printed(folder, arguments):
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([str(BIN / "stylize"), *arguments], stdout=writes, stderr=subprocess.PIPE, cwd=folder)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")
