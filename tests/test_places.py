"""What is written where: file systems without case or permissions, long names, collisions, going on, pipes, streams."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from nst_fast import assets
from nst_fast.commands import stylize as command
from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.stylizing import folders, jobs
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.jobs import Job, check_targets
from nst_fast.stylizing.looks import Saving
from nst_fast.stylizing.stylizer import Stylizer

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def stylize(folder, monkeypatch, capfd):
    """The command in this process."""

    def call(*arguments) -> subprocess.CompletedProcess:
        given = ["stylize", "--model", "m.onnx", "--threads", "1", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as leaving:
            command.main()
        return subprocess.CompletedProcess(given, leaving.value.code, *capfd.readouterr())

    return call


def save(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(name)


def files(place: str = ".") -> set[str]:
    return {p.relative_to(place).as_posix() for p in Path(place).rglob("*") if p.is_file()} - {"m.onnx"}


# File systems


@pytest.fixture
def without_case(monkeypatch):
    """A file system that finds names whatever their case, as a probe, and the listing of what is there, tell."""

    def lexists(path: str | Path) -> bool:
        path = Path(path)
        try:
            return path.name.lower() in (name.lower() for name in os.listdir(path.parent))  # noqa: PTH208
        except OSError:
            return False

    monkeypatch.setattr(jobs.os.path, "lexists", lexists)


@pytest.mark.parametrize(
    ("one", "other"), [("a.jpg", "A.JPG"), ("straße.png", "STRASSE.png"), ("é.png", "e\u0301.png")]
)
def test_results_whose_names_differ_in_case_alone_are_told_where_that_is_one_file(folder, without_case, one, other):
    checked = check_targets([Job(Path(name), Path("out", name)) for name in (one, other)])
    assert [job.error is None for job in checked] == [True, False]
    assert one in str(checked[1].error)
    assert other in str(checked[1].error)


def test_where_case_tells_files_apart_both_are_written(stylize):
    if Path("M.ONNX").exists():
        pytest.skip("a file system that ignores case")
    save("album/a.png", "album/A.png")
    assert stylize("album", "-o", "out").returncode == 0
    assert files("out") == {"a.png", "A.png"}


def test_a_photograph_is_not_replaced_by_its_name_in_another_case(folder, without_case):
    save("PHOTO.png")
    with pytest.raises(UserError, match="would replace the input"):
        check_targets([Job(Path("PHOTO.png"), Path("photo.png"))], overwrite=True)


def test_a_file_system_without_permissions_is_written_to(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_atomically(Path("a.bin"), b"content")
    assert Path("a.bin").read_bytes() == b"content"
    assert files() == {"a.bin"}


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
@pytest.mark.parametrize("length", [240, 250, 255])
def test_names_as_long_as_a_name_may_be_are_written(stylize, length, letter):
    stem = letter * ((length - 4) // len(letter.encode()))
    save(f"in/{stem}.png")
    done = stylize("in", "-o", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert files("out") == {f"{stem}.png"}
    done = stylize(f"in/{stem}.png", "--format", "jpg", "-o", "out")
    assert done.returncode == 0


def test_a_name_that_would_be_too_long_is_told_before_the_work(stylize):
    save(f"{'x' * 250}.png")
    done = stylize(f"{'x' * 250}.png")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "too long" in done.stderr
    assert "-o" in done.stderr


# Folders


def test_a_collision_is_told_and_the_rest_of_the_folder_is_done(stylize):
    save("album/1.png", "album/1.jpg", "album/2.png", "album/deep/3.png", "album/deep/3.bmp")
    done = stylize("-r", "album", "--format", "jpg", "-o", "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 2)
    assert "3 of 5 pictures" in done.stdout
    assert files("out") == {"1.jpg", "2.jpg", "deep/3.jpg"}


def test_a_folder_is_gone_on_with(stylize):
    save(*(f"album/{number}.png" for number in range(5)))
    save("out/1.png", "out/3.png")
    before = Path("out/1.png").stat().st_mtime_ns
    done = stylize("album", "-o", "out", "--skip-existing")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 5 pictures exist already" in done.stdout
    assert files("out") == {f"{number}.png" for number in range(5)}
    assert Path("out/1.png").stat().st_mtime_ns == before
    done = stylize("album", "-o", "out", "--skip-existing")
    assert (done.returncode, done.stderr) == (0, "")
    done = stylize("album", "-o", "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--skip-existing" in done.stderr


def test_what_is_there_is_told_and_the_rest_of_the_folder_is_done(stylize):
    save("album/1.png", "album/2.png", "out/1.png")
    done = stylize("album", "-o", "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "out/1.png exists" in done.stderr
    assert files("out") == {"1.png", "2.png"}


def test_a_subfolder_that_cannot_be_read_is_told_and_counts(stylize, monkeypatch):
    save("album/1.png", "album/closed/2.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    done = stylize("-r", "album", "-o", "out")
    assert (done.returncode, done.stderr) == (1, "stylize: album/closed cannot be read: permission denied\n")
    done = stylize("-r", "album", "-o", "out2", "--json")
    assert [("error" in json.loads(line)) for line in done.stdout.splitlines()] == [False, True]


def test_what_a_folder_holds_besides_is_counted(stylize):
    save("album/1.png", "album/2.png")
    for name in ("album/raw.NEF", "album/b.nef", "album/c.mp3", "album/.hidden.mp3"):
        Path(name).touch()
    done = stylize("album", "-o", "out")
    told = "stylize: album: left out, in no known format of pictures: 1 .mp3, 2 .nef\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 of 2 pictures stylized into out\n", told)


@pytest.mark.parametrize("others", [[], ["--overwrite"], ["--skip-existing"]])
@pytest.mark.parametrize("inputs", [["album"], ["-r", "."], ["album/*.*"], ["album/a.png", "album/a.m.png", "album"]])
def test_what_an_earlier_command_made_of_a_picture_is_no_picture(stylize, inputs, others):
    save("album/a.png", "album/b.v2.jpg", "album/a.m.png", "album/b.v2.m.webp", "album/a.other.png", "album/m.png")
    save("album.m/a.png", "album.m/alone.png", "album/lonely.m.png")
    done = stylize(*inputs, "-o", "out/", *others)
    made = {Path(name).name for name in files("out")}
    album = {"a.png", "b.v2.jpg", "a.other.png", "m.png", "lonely.m.png"}
    assert made == (album | {"alone.png"} if inputs == ["-r", "."] else album)
    count, lines = (3, 2) if inputs == ["-r", "."] else (2, 1)  # of . the model, too, is left out
    assert (done.returncode, done.stderr.count("\n")) == (0, lines)
    assert f"beside what they were made of: {count}\n" in done.stderr


def test_the_same_command_again_in_the_same_folder_makes_nothing_new(stylize):
    save("a.png", "b.jpg")
    assert stylize("*.[pj]*").returncode == 0
    made = files()
    for option in ("--overwrite", "--skip-existing"):
        done = stylize("*.[pj]*", option)
        assert (done.returncode, files()) == (0, made)
    assert stylize("a.m.png").returncode == 0
    assert files() == made | {"a.m.m.png"}


@pytest.mark.parametrize("inputs", [["a.png", "a.png"], ["a.png", "./a.png"], ["a.png", "*.png"], ["x", "x/", "a.png"]])
def test_what_is_named_twice_is_done_once(stylize, inputs):
    save("a.png", "x/b.png")
    done = stylize(*inputs, "-o", "out/")
    assert (done.returncode, done.stderr) == (0, "")
    assert files("out") == ({"a.png", "b.png"} if "x" in inputs else {"a.png"})


def test_an_empty_folder_is_told_and_the_others_are_done(stylize):
    save("full/a.png")
    Path("empty").mkdir()
    done = stylize("empty", "full", "-o", "out")
    assert (done.returncode, files("out")) == (1, {"a.png"})
    assert done.stderr.startswith("stylize: no pictures in empty; it needs .jpg")
    alone = stylize("empty")
    assert (alone.returncode, alone.stdout) == (1, "")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_another_command_writes_meanwhile_is_not_replaced(folder, monkeypatch, overwrite, links):
    def no_links(*_):
        raise OSError(38, "Function not implemented")

    if not links:
        monkeypatch.setattr("nst_fast.files.os.link", no_links)
    save("a.png", "b.png")
    todo = check_targets([Job(Path(name), Path(f"out/{name}")) for name in ("a.png", "b.png")], overwrite=overwrite)
    Path("out").mkdir()
    Path("out/a.png").write_text("another's")
    first, second = jobs.stylize_jobs(todo, Stylizer("m.onnx", 1), saving=Saving(overwrite=overwrite))
    assert (first.error is None, second.error) == (overwrite, None)
    assert overwrite or "another command has written out/a.png meanwhile" in first.error
    assert (Path("out/a.png").read_bytes() == b"another's") != overwrite
    np.testing.assert_array_equal(np.asarray(Image.open("out/b.png")), PIXELS)
    assert files("out") == {"a.png", "b.png"}


# Pipes and streams


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only POSIX has them")
def test_a_pipe_is_read_by_its_name(stylize):
    save("photo.png")
    content = Path("photo.png").read_bytes()

    def pour() -> None:
        Path("pipe").write_bytes(content)

    os.mkfifo("pipe")
    for read in (lambda: stylize("pipe", "-o", "out.png").returncode == 0, lambda: load_image("pipe") is not None):
        pouring = threading.Thread(target=pour)
        pouring.start()
        assert read()
        pouring.join()
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")), PIXELS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only POSIX has them")
def test_a_pipe_is_written_into_not_replaced(stylize):
    save("photo.png")
    os.mkfifo("pipe")
    received: list[bytes] = []
    reading = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reading.start()
    assert stylize("photo.png", "--format", "png", "-o", "pipe").returncode == 0
    reading.join()
    assert Path("pipe").is_fifo()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(received[0]))), PIXELS)


SHELL = [sys.executable, "-m", "nst_fast.commands.stylize", "--model", "m.onnx", "--threads", "1", "photo.png", "-o"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
@pytest.mark.parametrize(
    ("output", "to", "code"),
    [("a.png", ">&-", 0), ("a.png", ">/dev/full", 0), ("a.png", ">&- 2>&- <&-", 0), ("-", ">/dev/full", 1)],
)
def test_an_output_that_cannot_be_written_gives_no_traceback(folder, output, to, code):
    save("photo.png")
    done = subprocess.run(["bash", "-c", f'"$@" {to}', "-", *SHELL, output], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert output == "-" or np.array_equal(np.asarray(Image.open(output)), PIXELS)


@pytest.mark.parametrize("answer", ["~/.cache/nst_fast", RuntimeError("no home")])
def test_a_user_without_a_home_has_a_cache(monkeypatch, answer):
    def usual(*_: object, **__: object) -> Path:
        if isinstance(answer, Exception):
            raise answer
        return Path(answer)

    monkeypatch.delenv("NST_FAST_CACHE", raising=False)
    monkeypatch.setattr(assets.platformdirs, "user_cache_path", usual)
    assert assets.cache_folder().is_absolute()


def test_nothing_is_reported_to_anyone():
    script = (
        "import os, sys; sys.modules['onnxruntime'] = None\n"
        "try: import nst_fast.stylizing.stylizer\n"
        "except ImportError: print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "1\n"


def test_nothing_is_written_but_what_was_named_and_our_cache(folder):
    save("photo.png")
    before = files()
    places = {"HOME": str(folder), "NST_FAST_CACHE": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("XDG_", "MPL"))} | places
    arguments = ["content=photo.png", "style=the_scream", "size=32", "iterations=1", "output=run"]
    command = [sys.executable, "-m", "nst_fast.commands.optimize", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {Path(name).parts[0] for name in files() - before} <= {"run", "cache"}
    assert "atplotlib" not in done.stderr


def test_a_file_where_a_folder_would_have_to_be_is_called_one(stylize):
    save("photo.png", "a.png")
    done = stylize("photo.png", "-o", "a.png/out.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a.png is a file, not a folder" in done.stderr


@pytest.mark.parametrize("name", ["1.png", "2.png"])
def test_an_error_of_the_model_names_the_picture(stylize, name):
    save("album/1.png", "album/2.png")
    Image.new("RGB", (9, 9)).save(f"album/{name}")
    ends = [helper.make_tensor_value_info(n, TensorProto.UINT8, ["N", "H", "W", 3]) for n in "xy"]
    weights = [onnx.numpy_helper.from_array(np.array([1, 20, 30, 3]), "s")]
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "m.onnx")
    done = stylize("album", "-o", "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"stylize: album/{name}: m.onnx cannot stylize a picture of 9×9: ")


# Reasons


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (bytes(4000), "nothing but zeros"),
        (b"%PDF-1.7", "PDF"),
        (b"<!doctype html><html>", "web page"),
        (b"\n<svg xmlns=", "SVG"),
        (b"PK\x03\x04", "ZIP"),
        (b"\xff\x0a\x00\x00", "JPEG XL"),
        (bytes.fromhex("0005160700020000") + b"Mac OS X", "Mac"),
        (b"\0\0\0\x18ftypmp42", "video"),
        (b"\0\0\0\x18ftypcrx ", "camera's raw file"),
        (b"just words", "text, not a picture"),
        (b'{"error": "gone"}', "text, not a picture"),
        ("größer\n".encode(), "text, not a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>", "XML"),
        (b"RIFF\0\0\1\0AVI LIST", "video or a sound"),
        (b"\x1a\x45\xdf\xa3" + bytes(50), "video"),
        (b"Rar!\x1a\x07\0", "RAR"),
        (b"P7\nWIDTH 2\n", "PAM"),
        (b"gimp xcf v011\0", "GIMP"),
        (b"v/1\x01" + bytes(20), "OpenEXR"),
        (b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\1\0\0\0\1\0\x10\0\3" + bytes(50), "PSD, damaged or of a kind"),
        (b"8BPS\0\2" + bytes(60), "PSD, damaged or of a kind"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "PNG, damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "JPEG, damaged"),
        (b"RIFF\0\0\1\0WEBPVP8 " + bytes(10), "could not create decoder|WEBP, damaged"),
        (b"\xff" * 400, "in no format that is known here"),
        (bytes(range(128, 256)), "in no format that is known here"),
    ],
)
def test_the_reason_is_the_true_one(folder, content, reason):
    Path("photo.jpg").write_bytes(content)
    for source in ("photo.jpg", io.BytesIO(content)):
        with pytest.raises(UserError, match=reason):
            load_image(source)


def test_heic_by_another_name_is_called_heic(folder, monkeypatch):
    Path("photo.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    with pytest.raises(UserError, match="pip install pillow-heif"):
        load_image("photo.jpg")
