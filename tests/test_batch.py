"""`nst-batch`: everything done once, on record, and as `stylize` does it; what is wrong is one line or one row."""

import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import run_main
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from nst_fast.batch.inputs import Picture
from nst_fast.batch.manifest import Keys
from nst_fast.batch.run import stylize_batch
from nst_fast.batch.work import Plan, Style
from nst_fast.commands import batch as batch_command
from nst_fast.commands import stylize as stylize_command
from nst_fast.errors import UserError
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export

HARNESS = Path(__file__).resolve().parents[1] / "benchmarks" / "kill_batch.py"
GOOD = ["a.jpg", "b.png", "below/a.jpg", "below/deep/c d.é.webp"]


def command(main: Callable[[], NoReturn], *arguments, folder: Path) -> subprocess.CompletedProcess:
    """Run a command in this process."""
    done = run_main(main, "nst", *arguments, "--threads", "1", folder=folder)
    return subprocess.CompletedProcess(list(arguments), *done)


def batch(*arguments, folder: Path) -> subprocess.CompletedProcess:
    return command(batch_command.main, *arguments, folder=folder)


def stylize(*arguments, folder: Path) -> subprocess.CompletedProcess:
    return command(stylize_command.main, *arguments, folder=folder)


def batch_from_the_shell(*arguments, folder: Path) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "nst_fast.commands.batch", *map(str, arguments), "--threads", "1"]
    return subprocess.run(call, capture_output=True, text=True, cwd=folder, timeout=300)


def rows(output: Path, kind: str = "manifest") -> list[dict]:
    parts = sorted((output / kind).glob("*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.ParquetFile(part).read().to_pylist()]


def save_photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("nst-batch: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two", "three")):
        torch.manual_seed(seed)
        export(create_network("fast", 8, 1), folder / f"{name}.onnx", {"style": name})
    return folder


@pytest.fixture
def folder(tmp_path, models):
    """Three models and a folder of photographs, of which one is broken."""
    for path in models.iterdir():
        shutil.copy(path, tmp_path)
    for seed, name in enumerate(GOOD):
        save_photo(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "broken.jpg").write_bytes((tmp_path / "photos" / "a.jpg").read_bytes()[:300])
    return tmp_path


def test_results_are_those_of_stylize_and_rows_say_so(folder):
    done = batch_from_the_shell("--model", "one.onnx", "photos", "-o", "out", "--json", folder=folder)
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert (told["stylized"], told["failed"], told["done"]) == (4, 1, 5)
    assert json.loads((folder / "out" / "summary.json").read_text())["failed_share"] == 0.2
    stylize("--model", "one.onnx", "-r", "photos", "-o", "stylized", folder=folder)
    results = rows(folder / "out")
    assert sorted(row["id"] for row in results) == sorted(f"photos/{name}" for name in GOOD)
    for row in results:
        content = (folder / "out" / row["output"]).read_bytes()
        assert content == (folder / "stylized" / row["id"].removeprefix("photos/")).read_bytes()
        assert row["output_sha256"] == hashlib.sha256(content).hexdigest()
        assert row["input_sha256"] == hashlib.sha256((folder / row["id"]).read_bytes()).hexdigest()
        assert (row["width"], row["height"], row["style"]) == (30, 24, "one")
        assert Path(row["input"]) == folder / row["id"]
    (failure,) = rows(folder / "out", "failures")
    assert (failure["id"], failure["stage"]) == ("photos/broken.jpg", "decode")
    assert "photos/broken.jpg cannot be read as a picture" in failure["error"]
    told = {row["output"] for row in results} | {"nst_batch.json", "summary.json"}
    assert {name for name in files(folder / "out") if not name.endswith(".parquet")} == told  # nothing unfinished


def test_the_same_command_does_what_is_missing_and_no_more(folder):
    first = batch("--model", "one.onnx", "photos", "-o", "photos/out", "--max-failed", "0.2", folder=folder)
    assert first.returncode == 0, first.stderr
    before = files(folder / "photos" / "out")
    again = batch("--model", "one.onnx", "photos", "-o", "photos/out", "--max-failed", "0.19", folder=folder)
    assert (again.returncode, "nothing was missing" in again.stdout) == (1, True)
    del before["summary.json"]
    assert {name: files(folder / "photos" / "out").get(name) for name in before} == before
    save_photo(folder / "photos" / "late.png", 9)
    late = batch("--model", "one.onnx", "photos", "-o", "photos/out", "--json", folder=folder)
    assert json.loads(late.stdout)["done"] == 1
    save_photo(folder / "photos" / "broken.jpg", 10)
    assert (
        json.loads(batch("--model", "one.onnx", "photos", "-o", "photos/out", "--json", folder=folder).stdout)["done"]
        == 0
    )
    mended = batch("--model", "one.onnx", "photos", "-o", "photos/out", "--retry-failed", "--json", folder=folder)
    assert mended.returncode == 0
    assert json.loads(mended.stdout)["done"] == 1
    assert len({row["id"] for row in rows(folder / "photos" / "out")}) == len(rows(folder / "photos" / "out")) == 6
    assert rows(folder / "photos" / "out", "failures") == []


def test_results_are_no_photographs_where_the_output_lies_in_an_input(folder):
    for output in ("photos", "photos/out"):
        for given in ("photos", "photos", "photos/**/*.jpg"):
            done = batch("--model", "one.onnx", given, "-o", output, folder=folder)
            assert done.stdout.startswith(f"4 pictures stylized into {output}, 1 failed"), done.stderr
        assert sorted(row["id"] for row in rows(folder / output)) == sorted(f"photos/{name}" for name in GOOD)
        shutil.rmtree(folder / output / "pictures")


def test_names_are_the_same_wherever_the_pictures_lie(folder):
    shutil.copytree(folder / "photos", folder / "elsewhere" / "photos")
    models = ["--model", "one.onnx", "--model", "two.onnx"]
    batch(*models, "photos", "-o", "first", folder=folder)
    batch(*models[2:], *models[:2], folder / "elsewhere" / "photos", "-o", "second", folder=folder)
    named = [{(row["id"], row["style"], row["output"]) for row in rows(folder / out)} for out in ("first", "second")]
    assert len(named[0]) == 4
    assert named[0] == named[1]


def test_every_style_gets_its_share_and_a_style_more_takes_only_its_own():
    pictures = [f"folder/{number}.jpg" for number in range(4000)]

    def draw(*names: str) -> list[str]:
        plan = Plan("out", tuple(Style(name, Path(name), name) for name in names))
        return [task.style for name in pictures for task in plan.tasks(Picture(name, name))]

    four, five = draw("a", "b", "c", "d"), draw("a", "b", "c", "d", "e")
    # 4.5 standard deviations of a binomial distribution
    assert all(abs(count - 1000) < 4.5 * (4000 * 0.25 * 0.75) ** 0.5 for count in Counter(four).values())
    assert {after for before, after in zip(four, five, strict=True) if before != after} == {"e"}
    assert abs(Counter(five)["e"] - 800) < 4.5 * (4000 * 0.2 * 0.8) ** 0.5


def test_strengths_are_drawn_from_their_range_and_stylize_gives_the_same(folder):
    batch("--model", "one.onnx", "--strength", "0.3:0.8", "photos", "-o", "out", folder=folder)
    results = rows(folder / "out")
    assert len({row["strength"] for row in results}) == 4
    for row in results:
        assert 0.3 <= row["strength"] <= 0.8
        again = folder / f"again{Path(row['id']).suffix}"
        told = ("--strength", row["strength"], row["id"], "-o", again, "--overwrite")
        stylize("--model", "one.onnx", *told, folder=folder)
        assert again.read_bytes() == (folder / "out" / row["output"]).read_bytes()


def test_each_paints_every_picture_by_every_model(folder):
    batch("--model", "one.onnx", "--model", "two.onnx", "--each", "photos", "-o", "out", folder=folder)
    done = Counter((row["id"], row["style"]) for row in rows(folder / "out"))
    assert done == Counter((f"photos/{name}", style) for name in GOOD for style in ("one", "two"))
    assert len({row["output"] for row in rows(folder / "out")}) == 8
    assert len(rows(folder / "out", "failures")) == 2


def test_tars_go_in_and_out(folder):
    stylize("--model", "one.onnx", "-r", "photos", "-o", "stylized", folder=folder)
    for number in range(2):
        (folder / "shards").mkdir(exist_ok=True)
        with tarfile.open(folder / "shards" / f"{number}.tar", "w") as tar:
            for name in (*GOOD, "broken.jpg")[number::2]:
                tar.add(folder / "photos" / name, name)
            tar.addfile(tarfile.TarInfo("label.cls"))
    done = batch("--model", "one.onnx", "shards/*.tar", "-o", "out", "--tar", "2", "--json", folder=folder)
    told = json.loads(done.stdout)
    results = rows(folder / "out")
    inside = {f"shards/{number % 2}.tar/{name}": name for number, name in enumerate(GOOD)}
    assert (told["stylized"], told["failed"]) == (4, 1)
    assert sorted(row["id"] for row in results) == sorted(inside)
    for row in results:
        shard, _, member = row["output"].rpartition("/")
        assert member.count(".") == 1  # or readers of WebDataset would take another key
        with tarfile.open(folder / "out" / shard) as tar:
            assert tar.extractfile(member).read() == (folder / "stylized" / inside[row["id"]]).read_bytes()
    (folder / "out" / "tars" / "killed.tar").write_bytes(b"")
    batch("--model", "one.onnx", "shards/*.tar", "-o", "out", "--tar", "2", folder=folder)
    assert {row["output"].rpartition("/")[0] for row in results} == {
        f"tars/{path.name}" for path in (folder / "out" / "tars").iterdir()
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_name_pictures_beside_them_and_anywhere(folder, kind):
    save_photo(folder / "far" / "away.png", 5)
    values = ["photos/a.jpg", str(folder / "far" / "away.png"), "photos/a.jpg", "photos/not there.jpg", ""]
    if kind == "csv":
        with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("n", "file"), *enumerate(values)])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"file": [v or None for v in values]}), folder / "table.parquet")
    table = f"table.{kind}"
    assert_one_line(batch("--model", "one.onnx", table, "-o", "out", folder=folder), "no column 'path' but ", "file")
    batch("--model", "one.onnx", table, "--column", "file", "-o", "out", folder=folder)
    assert Counter(row["id"] for row in rows(folder / "out")) == Counter(values[:2])
    failures = {row["id"]: row["stage"] for row in rows(folder / "out", "failures")}
    assert failures == {"photos/not there.jpg": "find", f"{folder.name}/{table} row 4": "find"}


def test_a_store_in_memory_gives_the_same(folder):
    memory = fsspec.filesystem("memory")
    for name, content in files(folder / "photos").items():
        memory.pipe_file(f"/in/photos/{name}", content)
    memory.pipe_file("/in/photos/.hidden/a.jpg", b"")
    plan = Plan("memory://out", tuple(Style.load(str(folder / "one.onnx"))), session={"threads": 1})
    told = stylize_batch(plan, ["memory://in/photos"])
    assert (told.stylized, told.failed) == (4, 1)
    batch("--model", "one.onnx", "photos", "-o", "out", folder=folder)
    local = {row["id"]: (folder / "out" / row["output"]).read_bytes() for row in rows(folder / "out")}
    parts = [
        pyarrow.parquet.ParquetFile(io.BytesIO(memory.cat_file(p))) for p in memory.ls("/out/manifest", detail=False)
    ]
    there = [row for part in parts for row in part.read().to_pylist()]
    assert {row["id"]: memory.cat_file(f"/out/{row['output']}") for row in there} == local
    assert stylize_batch(plan, ["memory://in/photos/*.jpg"]).done == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "two.onnx", "photos"], ["holds results of other options", "one ", "two "]),
        (["--model", "one.onnx", "--strength", "0.5", "photos"], ["strength: 1.0 there, 0.5 now"]),
        (["--model", "one.onnx", "--strength", "0.5:1.5", "photos"], ["--strength is 1.5; 0 to 1 is needed"]),
        (["--model", "one.onnx", "missing"], ["nothing at", "missing"]),
        (["--model", "one.onnx", "missing/*.jpg"], ["nothing matches"]),
        (["--model", "one.onnx", "photos", "other/photos"], ["have one name"]),
        (["--model", "one.onnx", "nowhere://x"], ["nowhere"]),
        (["--model", "one.onnx", "http://127.0.0.1:9/x.csv"], ["127.0.0.1:9"]),
        (["--model", "one.onnx", "one.tar"], ["one.tar"]),
        (["--model", "one.onnx", "photos", "--actors", "2"], ["--address"]),
        (["--model", "one.onnx", "late", "--address", "127.0.0.1:9"], ["no Ray cluster at 127.0.0.1:9"]),
        (["--model", "one.onnx", "--model", "./one.onnx", "photos"], ["have one name"]),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_half(folder, arguments, words):
    assert batch("--model", "one.onnx", "photos", "-o", "out", folder=folder).returncode == 1
    (folder / "other" / "photos").mkdir(parents=True)
    (folder / "one.tar").write_bytes(b"no tar" * 200)
    save_photo(folder / "late" / "late.jpg")
    before = files(folder / "out")
    run = batch_from_the_shell if "--address" in arguments else batch  # Ray is not imported for one line
    assert_one_line(run(*arguments, "-o", "out", folder=folder), *words)
    assert files(folder / "out") == before


def test_what_to_install_is_one_line(folder):
    for package in ("pyarrow", "fsspec", "ray"):
        code = f"import sys; sys.modules[{package!r}] = None; sys.argv[0] = 'nst-batch'\n"
        code += "from nst_fast.commands.batch import main; main()"
        call = [sys.executable, "-c", code, "--model", "one.onnx", "photos", "-o", "out", "--address", "auto"]
        done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
        assert_one_line(done, f'{package} is not installed; nst-batch needs: pip install "nst_fast[batch]"')


def test_no_torch_is_imported_and_no_ray(folder):
    code = "import sys; from nst_fast.commands.batch import batch; batch(sys.argv[1:]); "
    code += "sys.exit(len({'torch', 'ray'} & set(sys.modules)))"
    call = [sys.executable, "-c", code, "--model", "one.onnx", "photos", "-o", "out"]
    assert subprocess.run(call, cwd=folder, capture_output=True).returncode == 0


class Locked(MemoryFileSystem):
    """A bucket that may be read but not written: clients of object stores raise PermissionError."""

    protocol = "locked"
    store: dict = {}  # noqa: RUF012  as its own is
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path, value, **_):
        raise PermissionError("Access Denied")


def test_a_bucket_without_permission_is_one_line(folder):
    fsspec.register_implementation("locked", Locked, clobber=True)
    plan = Plan("locked://out", tuple(Style.load(str(folder / "one.onnx"))), session={"threads": 1})
    with pytest.raises(UserError, match=r"locked://.*out/nst_batch\.json cannot be read or written: Access Denied"):
        stylize_batch(plan, [str(folder / "photos")])


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
def test_a_full_disk_is_one_line_and_the_rest_is_done_once_there_is_room(folder):
    if os.getuid() != 0:
        pytest.skip("mounts a small file system, which root alone may")
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(folder / "photos" / f"{number}.png")
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        done = batch_from_the_shell("--model", "one.onnx", "photos", "-o", "small/out", folder=folder)
        assert_one_line(done, "No space left on device")
        written = rows(small / "out")
        assert len(written) < 44
        for row in written:
            content = (small / "out" / row["output"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row["output_sha256"]
        subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
        batch("--model", "one.onnx", "photos", "-o", "small/out", folder=folder)
        assert Counter(row["id"] for row in rows(small / "out")) == Counter(
            [f"photos/{name}" for name in GOOD] + [f"photos/{number}.png" for number in range(40)]
        )
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_store_that_is_gone_ends_the_command(folder):
    (folder / "table.csv").write_text("path\n" + "".join(f"http://127.0.0.1:9/{n}.jpg\n" for n in range(300)))
    done = batch("--model", "one.onnx", "table.csv", "-o", "out", folder=folder)
    assert_one_line(done, "100 pictures in a row cannot be read", "127.0.0.1:9", "--retry-failed")
    assert len(rows(folder / "out", "failures")) == 100


def test_many_missing_pictures_do_not_keep_the_next_from_its_turn(folder):
    (folder / "table.csv").write_text("path\n" + "".join(f"{n}.jpg\n" for n in range(150)) + "photos/a.jpg\n")
    told = json.loads(batch("--model", "one.onnx", "table.csv", "-o", "out", "--json", folder=folder).stdout)
    assert (told["stylized"], told["failed"]) == (1, 150)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C goes to a whole console there")
def test_ctrl_c_ends_cleanly_and_what_is_done_is_on_record(folder):
    for number in range(400):
        save_photo(folder / "photos" / f"{number}.png", number)
    call = [sys.executable, "-m", "nst_fast.commands.batch", "--model", "one.onnx", "photos", "-o", "out"]
    process = subprocess.Popen(call, cwd=folder, stderr=subprocess.PIPE, text=True)
    while len(list(folder.glob("out/pictures/*/*"))) < 50:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "nst-batch: interrupted\n")
    assert len(rows(folder / "out")) > 0
    assert list((folder / "out").glob(".unfinished/*")) == []


def test_keys_are_a_set():
    rng, keys, oracle = random.Random(0), Keys(), set()
    for _ in range(40_000):
        key = f"{rng.randrange(20_000) * 256:020x}"  # numpy drops zeros at an end
        assert keys.add(key) == (key not in oracle)
        oracle.add(key)
    assert len(keys.sorted) > 15_000
    again = Keys([sorted(oracle)[:9000], sorted(oracle)[5000:]])
    assert len(again.sorted) == len(oracle)
    assert not any(again.add(key) for key in oracle)
    assert again.add("f" * 20)


def batch_on_ray(*arguments, folder: Path) -> subprocess.CompletedProcess:
    done = batch_from_the_shell(*arguments, "--address", "local", folder=folder)
    if "The current node timed out during startup" in done.stderr:
        pytest.skip("Ray gives a node 30 seconds to start, and the machine was too busy for it")
    return done


@pytest.mark.slow  # two actors load onnxruntime and Ray
@pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters there are another matter")
def test_two_actors_do_what_one_process_does(folder):
    models = ("--model", "one.onnx", "--model", "two.onnx")
    batch(*models, "photos", "-o", "alone", folder=folder)
    done = batch_on_ray(*models, "photos", "-o", "actors", "--actors", "2", "--json", folder=folder)
    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["done"] == 5
    assert files(folder / "actors" / "pictures") == files(folder / "alone" / "pictures")
    named = [[(row["id"], row["error"]) for row in rows(folder / out, "failures")] for out in ("alone", "actors")]
    assert named[0] == named[1]


@pytest.mark.slow  # a cluster for one line
@pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters there are another matter")
def test_an_output_that_nodes_do_not_share_is_one_line(folder):
    done = batch_on_ray("--model", "one.onnx", "photos", "-o", "memory://out", folder=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("nst-batch: memory:///out of ")
    assert "nodes must share it" in done.stderr


def kill(tmp_path: Path, *arguments: str) -> dict:
    call = [sys.executable, HARNESS, *arguments, "--output", tmp_path / "report.json"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(not HARNESS.exists() or sys.platform != "linux", reason="needs the harness, and /proc")
def test_killed_three_times_without_ray_it_has_everything_once(tmp_path, models):
    model = str(models / "one.onnx")
    report = kill(
        tmp_path, "--model", model, "--only", "process", "--pictures", "500", "--kills", "3", "--seconds", "4"
    )
    assert report["wrong in all"] == 0
    assert len(report["results"]["without Ray"]["kills"]) == 3


@pytest.mark.slow
@pytest.mark.skipif(not HARNESS.exists() or sys.platform != "linux", reason="needs the harness, and /proc")
def test_driver_actor_and_node_killed_it_has_everything_once(tmp_path):
    report = kill(tmp_path, "--only", "ray", "--pictures", "400", "--kills", "3", "--seconds", "6")
    assert report["wrong in all"] == 0
    assert {one["killed"] for one in report["results"]["with Ray, two nodes"]["kills"]} == {"driver", "actor", "node"}


def test_a_gallerys_paintings_are_drawn_by_the_pictures_id(folder):
    told = {"paintings": json.dumps([{"name": name} for name in "abc"])}
    torch.manual_seed(0)
    network = create_network("fast", 8, 1, paintings=3)
    with torch.no_grad():
        network.vectors.add_(0.3 * torch.randn_like(network.vectors))
    painter = Stylizer(export(network, folder / "many.onnx", told))
    (folder / "photos" / "broken.jpg").unlink()
    for seed in range(8):
        save_photo(folder / "photos" / f"{seed}.png", seed)
    given = ["--model", "many.onnx", "--style", "a", "--style", "c", "photos", "--format", "png"]
    assert batch(*given, "-o", "drawn", folder=folder).returncode == 0
    assert batch(*given, "--each", "-o", "each", folder=folder).returncode == 0
    drawn, each = rows(folder / "drawn"), rows(folder / "each")
    assert {row["style"] for row in drawn} == {"a", "c"}
    assert len(each) == 2 * len(drawn) == 24
    styles = {row["key"]: row["style"] for row in each}
    assert all(styles[row["key"]] == row["style"] for row in drawn)
    for output, row in [("drawn", row) for row in drawn] + [("each", row) for row in each]:
        expected = painter(Image.open(folder / row["id"]).convert("RGB"), row["style"])
        assert np.array_equal(Image.open(folder / output / row["output"]), expected)
    assert_one_line(batch("--model", "many.onnx", "photos", "-o", "x", folder=folder), "which styles", "a, b, c")
    assert_one_line(batch("--model", "many.onnx", "--style", "d", "photos", "-o", "x", folder=folder), "no style 'd'")
