"""Downloads from a server on this machine that cuts, errs, lies and counts what it is asked for."""

import hashlib
import io
import itertools
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from nst_fast import downloads
from nst_fast.commands import train as train_command
from nst_fast.commands.configuration import load_config
from nst_fast.commands.progress import download_progress
from nst_fast.downloads import COCO, fetch, fetch_coco, reachable
from nst_fast.errors import UserError
from nst_fast.loss import pretrained
from nst_fast.loss.style_targets import fetch_painting

CONTENT = np.random.default_rng(0).bytes(700_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
ADVICE = "take another"


class Server(ThreadingHTTPServer):
    """Serves files by path; ``cuts`` has, for the next answers, after how many bytes each breaks off or None."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[int, int]] = []  # of each GET: the first byte sent, how many were
        self.cuts: list[int | None] = []
        self.errors: list[int] = []  # status codes of the next answers
        self.ranges = self.length = True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One answer."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        status = self.server.errors.pop(0) if self.server.errors else 200 if content is not None else 404
        start = 0
        if status == 200 and self.server.ranges and "Range" in self.headers:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            status = 206 if start < len(content) else 416
        body = content[start:] if status in (200, 206) else b""
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.server.asked.append((start, len(body[:cut])))
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    with Server() as made:
        made.files["/file"] = CONTENT
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Fetch the server's file into a folder that is not there yet."""
    return lambda expected=SHA256, **more: fetch(f"{server.url}/file", tmp_path / "new" / "f", expected, ADVICE, **more)


def refused(get: Callable[..., Path], *words: str, **more: str) -> str:
    with pytest.raises(UserError) as caught:
        get(**more)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"f.lock"}


def test_a_file_comes_whole_and_is_told_as_it_comes(server, get):
    told = []
    path = get(progress=lambda *step: told.append(step))
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == {"f"}
    names, done, totals = zip(*told, strict=True)
    assert (set(names), set(totals)) == ({"f"}, {len(CONTENT)})
    assert list(done) == sorted(set(done))
    assert len(done) > 3
    assert done[-1] == len(CONTENT)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_either_hash_will_do(get, algorithm):
    assert get(f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}").read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched(server, tmp_path):
    (tmp_path / "f").write_bytes(b"here")
    assert fetch("http://127.0.0.1:1/file", tmp_path / "f", SHA256, ADVICE).read_bytes() == b"here"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_download_that_is_cut_goes_on_from_there(server, get):
    server.cuts = [300_000, 100_000, None]
    path = get()
    assert path.read_bytes() == CONTENT
    starts = [start for start, _ in server.asked]
    assert len(starts) == 3
    assert 0 == starts[0] < starts[1] < starts[2]
    assert starts[1] > 200_000  # at most some blocks came in vain
    assert sum(sent for _, sent in server.asked) < 1.3 * len(CONTENT)


def test_a_later_call_goes_on_from_what_an_earlier_one_left(server, get, tmp_path):
    server.cuts = [400_000] + [0] * downloads.TRIES
    message = refused(get, "/file", "f.part", ADVICE)
    assert "cannot be fetched" in message
    kept = (tmp_path / "new" / "f.part").stat().st_size
    assert left(tmp_path / "new") == {"f.part"}
    assert 300_000 < kept <= 400_000
    server.asked.clear()
    assert get().read_bytes() == CONTENT
    assert server.asked == [(kept, len(CONTENT) - kept)]


def test_a_server_without_ranges_or_lengths_serves_too(server, get):
    server.ranges = server.length = False
    server.cuts = [300_000, None]  # without a length, only the hash tells that it was cut
    told = []
    with pytest.raises(UserError, match="another file"):
        get(progress=lambda *step: told.append(step))
    assert told[-1] == ("f", 300_000, 0)
    assert get().read_bytes() == CONTENT
    server.length, server.cuts = True, [300_000, None]
    get().unlink()
    assert get().read_bytes() == CONTENT


def test_a_part_that_is_whole_only_moves_into_place(server, get, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "f.part").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.asked == [(len(CONTENT), 0)]


@pytest.mark.parametrize("junk", [b"junk", CONTENT + b"more"], ids=["shorter", "longer"])
def test_a_part_of_another_file_is_thrown_away(server, get, tmp_path, junk):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "f.part").write_bytes(junk)
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] == (0, len(CONTENT))


def test_wrong_bytes_are_refused_and_not_kept(server, get, tmp_path):
    server.files["/file"] = b"x" + CONTENT[1:]
    message = refused(get, SHA256, ADVICE, "another file")
    assert hashlib.sha256(server.files["/file"]).hexdigest() in message
    assert left(tmp_path / "new") == set()
    assert len(server.asked) == 1


def test_wrong_bytes_that_come_in_pieces_end_too(server, get, tmp_path):
    server.files["/file"] = b"x" + CONTENT[1:]
    server.cuts = [300_000, None] * 50
    refused(get, "another file")
    assert len(server.asked) <= 4


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_error_that_passes_is_waited_out(server, get, status):
    server.errors = [status] * (downloads.TRIES - 1)
    assert get().read_bytes() == CONTENT
    assert len(server.asked) == downloads.TRIES


def test_an_error_that_stays_ends_after_some_tries(server, get, tmp_path):
    server.errors = [500] * 100
    refused(get, "/file", "500", ADVICE)
    assert len(server.asked) == downloads.TRIES
    assert left(tmp_path / "new") == set()


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_error_that_will_not_pass_ends_at_once(server, get, status):
    server.errors = [status] * 100
    refused(get, "/file", str(status), ADVICE)
    assert len(server.asked) == 1


def test_waits_grow_between_the_tries(server, get, monkeypatch):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.errors = [500] * 100
    refused(get, "500")
    assert len(waits) == downloads.TRIES - 1
    assert all(b >= 2 * a > 0 for a, b in itertools.pairwise(waits))


def test_a_host_that_does_not_answer_is_one_line_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert not reachable("http://127.0.0.1:1/file")
    with pytest.raises(UserError, match="cannot be reached; take another"):
        fetch("http://127.0.0.1:1/file", tmp_path / "f", SHA256, ADVICE)


def test_any_answer_means_reachable(server):
    assert reachable(f"{server.url}/nothing here")


@pytest.mark.parametrize("place", ["file/below", "folder"])
def test_a_place_that_cannot_be_written_is_one_line(server, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.part").mkdir()
    with pytest.raises(UserError, match="cannot write") as caught:
        fetch(f"{server.url}/file", tmp_path / place, SHA256, ADVICE)
    assert "\n" not in str(caught.value)


def test_a_disk_without_room_is_told_before_it_is_full(server, get, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    refused(get, "0.0 GB free")
    assert left(tmp_path / "new") == set()


FETCH = """
import sys
from nst_fast.downloads import fetch
print(fetch(sys.argv[1], sys.argv[2], sys.argv[3], "").stat().st_size)
"""


def test_processes_at_once_fetch_a_file_once(server, tmp_path):
    server.cuts = [200_000, None]
    command = [sys.executable, "-c", FETCH, f"{server.url}/file", str(tmp_path / "f"), SHA256]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{len(CONTENT)}\n"] * 3
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert sum(sent for _, sent in server.asked) < 1.3 * len(CONTENT)


def test_a_killed_process_leaves_no_lock_and_a_part_to_go_on_from(server, tmp_path):
    server.cuts = [300_000]
    stuck = threading.Event()
    finish = ThreadingHTTPServer.shutdown_request

    def hold(*arguments) -> None:  # the connection stays open, and silent
        stuck.wait(30)
        finish(server, *arguments)

    server.shutdown_request = hold
    command = [sys.executable, "-c", FETCH, f"{server.url}/file", str(tmp_path / "f"), SHA256]
    with subprocess.Popen(command) as process:
        while not (tmp_path / "f.part").exists() or (tmp_path / "f.part").stat().st_size < 200_000:
            assert process.poll() is None
        process.kill()
    stuck.set()
    del server.shutdown_request
    server.asked.clear()
    assert fetch(f"{server.url}/file", tmp_path / "f", SHA256, ADVICE).read_bytes() == CONTENT
    assert server.asked[0][0] >= 200_000


# What is fetched


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NST_FAST_STYLES", raising=False)
    return tmp_path / "cache"


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, value in members.items():
            file.writestr(name, value)
    return content.getvalue()


def photograph(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def coco(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Serve an archive in place of val2017.zip."""

    def serve(content: bytes, expected: str | None = None) -> None:
        server.files["/val2017.zip"] = content
        md5 = expected or f"md5:{hashlib.md5(content).hexdigest()}"
        monkeypatch.setitem(COCO, "val2017", (f"{server.url}/val2017.zip", md5))

    return serve


def test_coco_is_fetched_from_its_own_host_and_checked_by_its_own_sums():
    for split, (url, expected) in COCO.items():
        assert url == f"http://images.cocodataset.org/zips/{split}.zip"
        assert re.fullmatch(r"md5:[0-9a-f]{32}", expected)
    assert list(COCO) == ["val2017", "train2017"]


def test_coco_is_unpacked_once_and_its_archive_goes(coco, server, cache):
    photographs = {f"val2017/{i}.jpg": photograph(i) for i in range(3)}
    coco(archive(**photographs))
    told = []
    folder = fetch_coco("val2017", lambda *step: told.append(step))
    assert {p.name: p.read_bytes() for p in folder.rglob("*.jpg")} == {Path(k).name: v for k, v in photographs.items()}
    assert {p.name for p in folder.parent.iterdir() if p.suffix != ".lock"} == {"val2017"}
    assert [done == total for _, done, total in told][-1]
    assert {name for name, _, _ in told} == {"val2017.zip", "val2017, unpacking"}
    server.files.clear()
    assert fetch_coco("val2017") == folder


def test_members_cannot_leave_the_folder(coco, cache, tmp_path):
    coco(archive(**{"../../evil.jpg": b"1", "/evil.jpg": b"2", "val2017/../../../evil.jpg": b"3", "a.jpg": b"4"}))
    folder = fetch_coco("val2017")
    assert all(folder in path.parents for path in tmp_path.rglob("*.jpg"))
    assert not Path("/evil.jpg").exists()


def test_what_is_no_archive_is_one_line_and_leaves_nothing_half(coco, cache):
    coco(b"no zip")
    with pytest.raises(UserError, match="cannot unpack") as caught:
        fetch_coco("val2017")
    assert "\n" not in str(caught.value)
    assert not (cache / "coco" / "val2017").exists()
    damaged = bytearray(archive(**{"a.jpg": photograph(0)}))
    damaged[100] ^= 1
    coco(bytes(damaged))
    (cache / "coco" / "val2017.zip").unlink()
    with pytest.raises(UserError, match="cannot unpack"):
        fetch_coco("val2017")
    assert {p.name for p in (cache / "coco").iterdir() if p.suffix != ".lock"} == {"val2017.zip"}


def test_an_archive_larger_than_the_disk_is_not_unpacked(coco, cache, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.jpg", bytes(10_000_000))
    coco(content.getvalue())
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1_000_000}))
    with pytest.raises(UserError, match=r"0\.0 GB are free"):
        fetch_coco("val2017")
    assert not (cache / "coco" / "val2017").exists()


COCO_FETCH = """
import sys
from nst_fast.downloads import COCO, fetch_coco
COCO["val2017"] = tuple(sys.argv[1:])
print(len(list(fetch_coco("val2017").rglob("*.jpg"))))
"""


def test_processes_at_once_make_one_folder(coco, server, cache):
    coco(archive(**{f"{i}.jpg": photograph(i) for i in range(20)}))
    command = [sys.executable, "-c", COCO_FETCH, *COCO["val2017"]]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["20\n"] * 3
    assert len(server.asked) == 1


def test_data_coco_is_data_folder_on_it(coco, cache):
    coco(archive(**{f"val2017/{i}.jpg": photograph(i) for i in range(3)}))
    console = Console(file=io.StringIO())
    cfg = load_config("train", ["style=starry_night", "data=coco", "data.size=64", "data.num_workers=0"])
    from_coco = train_command.create_data(cfg, console)
    assert "fetching val2017.zip" in console.file.getvalue()
    folder = ["data=folder", f"data.root={cache / 'coco' / 'val2017'}", "data.size=64", "data.num_workers=0"]
    from_folder = train_command.create_data(load_config("train", ["style=starry_night", *folder]), console)
    for index in range(5):
        assert torch.equal(from_coco.images[index], from_folder.images[index])


def test_a_painting_is_fetched_into_the_cache(server, cache):
    server.files["/styles/wave.jpg"] = photograph(1)
    sha256 = hashlib.sha256(photograph(1)).hexdigest()
    path = fetch_painting(f"{server.url}/styles/wave.jpg", sha256)
    assert path == cache / "styles" / "wave.jpg"
    assert path.read_bytes() == photograph(1)
    path.write_bytes(b"damaged since")
    with pytest.raises(UserError, match="another picture"):
        fetch_painting(f"{server.url}/styles/wave.jpg", sha256)


def test_a_painting_that_cannot_be_had_says_what_to_do(server, cache):
    with pytest.raises(UserError, match=r"404.*style\.image=FILE.*NST_FAST_STYLES=FOLDER") as caught:
        fetch_painting(f"{server.url}/styles/wave.jpg", "0" * 64)
    assert "\n" not in str(caught.value)


@pytest.fixture
def published(server, cache, tmp_path, monkeypatch):
    """Return a function that has the server publish random weights as those of one of torchvision's networks."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def publish(name="alexnet"):
        torch.manual_seed(0)
        with torch.device("meta"):
            features = getattr(torchvision.models, name)().features
        state = {f"features.{key}": torch.randn(t.shape) / 100 for key, t in features.state_dict().items()}
        torch.save(state | {"classifier.6.weight": torch.randn(1000, 500)}, tmp_path / "whole.pth")
        content, file = (tmp_path / "whole.pth").read_bytes(), f"{name}-01234567.pth"
        server.files[f"/{file}"] = content
        expected = f"sha256:{hashlib.sha256(content).hexdigest()}"
        monkeypatch.setitem(pretrained.TORCHVISION, name, (f"{server.url}/{file}", expected))
        return state

    return publish


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_of_a_download_the_convolutions_alone_are_kept(name, published, server, cache, tmp_path):
    state = published(name)
    assert not pretrained.is_kept(name)
    server.cuts = [16 * downloads.BLOCK]  # it breaks off and is gone on with
    path = pretrained.fetch_weights(name)
    assert [start for start, _ in server.asked] == [0, 16 * downloads.BLOCK]
    assert pretrained.is_kept(name)
    assert files_in(cache) == [path]
    names = (
        [f"conv{n}" for n in range(1, 6)]
        if name == "alexnet"
        else [f"conv{block}_{n}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)]
    )
    wanted = [f"{convolution}.{kind}" for convolution in names for kind in ("weight", "bias")]
    kept = load_file(path)
    assert set(kept) == set(wanted)
    for own, tensor in zip(wanted, state.values(), strict=True):
        torch.testing.assert_close(kept[own], tensor.half(), rtol=0, atol=0)
    assert path.stat().st_size < 2 * sum(tensor.numel() for tensor in kept.values()) + 4_000
    # The next start reads it without asking the server, and has the network of the whole file.
    again, whole = (pretrained.create_loss_network(name, weights=file) for file in (None, tmp_path / "whole.pth"))
    assert again.identity == whole.identity
    assert len(server.asked) == 2


def test_what_a_killed_process_left_whole_is_not_fetched_again(published, server, cache):
    published()
    path, _ = pretrained.kept_files("alexnet")
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".part").write_bytes(server.files["/alexnet-01234567.pth"])
    assert pretrained.fetch_weights("alexnet") == path
    assert sum(sent for _, sent in server.asked) == 0
    assert files_in(cache) == [path]


def test_nothing_of_another_file_is_kept(published, server, cache):
    published()
    server.files["/alexnet-01234567.pth"] = CONTENT
    with pytest.raises(UserError, match=r"another file.*loss_network=vgg16_slim"):
        pretrained.fetch_weights("alexnet")
    assert files_in(cache) == []


def test_the_file_that_torch_keeps_is_read_where_it_lies(published, server, cache):
    published()
    _, path = pretrained.kept_files("alexnet")
    assert path == Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-01234567.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(server.files["/alexnet-01234567.pth"])
    assert pretrained.is_kept("alexnet")
    assert pretrained.fetch_weights("alexnet") == path
    assert path.is_file()
    assert (server.asked, files_in(cache)) == ([], [])


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "alexnet"])
def test_a_hash_begins_as_the_name_of_its_file_ends_and_torchvision_has_the_address(name):
    url, expected = pretrained.TORCHVISION[name]
    assert expected.startswith("sha256:" + re.search(r"-([0-9a-f]{8})\.pth$", url)[1])
    assert url == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_or_a_line_for_each_file(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with download_progress(console) as show:
        for done in (1_000_000, 2_000_000):
            show("a.zip", done, 2_000_000)
        show("b.zip", 5, 0)
    text = console.file.getvalue()
    if terminal:
        assert "2.0/2.0 MB" in text
    else:
        assert text == "fetching a.zip, 2.0 MB\nfetching b.zip\n"
