"""The files in examples/, run as their first lines say, against models run without them."""

import io
import itertools
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import skimage.data
import torch
import yaml
from PIL import Image

from nst_fast.assets import find_model
from nst_fast.stylizing.stroke import underpainted
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.checkpoints import kept_colours, read_checkpoint, trained_network
from nst_fast.training.recolouring import colour_map

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = ["data.size=64", "data.batch_size=1", "data.num_workers=0", "style.size=64", "trainer.accelerator=cpu"]


def run(cwd: Path, name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run an example in a folder."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def twice(run: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, share: float) -> np.ndarray:
    """Return what a model makes of a picture over its underpainting, given what it makes of any in one run."""
    return run(np.asarray(underpainted(lambda p: Image.fromarray(run(np.asarray(p))), Image.fromarray(picture), share)))


def in_gallery(picture: np.ndarray, **shares: float) -> np.ndarray:
    """Return what onnxruntime makes of a picture with the gallery's file and shares of its paintings."""
    session = onnxruntime.InferenceSession(find_model("gallery"), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["nst_fast.paintings"])
    weights = np.array([shares.get(painting["name"], 0) for painting in told], np.float32)
    name, metadata = session.get_inputs()[0].name, session.get_modelmeta().custom_metadata_map
    return twice(
        lambda seen: session.run(None, {name: seen[None], "style_weights": weights})[0][0],
        picture,
        float(metadata["nst_fast.underpainting"]),
    )


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    """A photograph, uint8 RGB (H, W, 3)."""
    return np.asarray(Image.fromarray(skimage.data.chelsea()).resize((150, 100)))


def as_file(picture: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format, **options)
    return file.getvalue()


def test_training_from_a_folder_leaves_the_picture_that_the_trained_network_paints(tmp_path, cat):
    (tmp_path / "my photos").mkdir()
    for number, photo in enumerate((skimage.data.astronaut(), skimage.data.coffee())):
        Image.fromarray(photo).resize((96, 96)).save(tmp_path / "my photos" / f"{number}.png")
    (tmp_path / "photo.png").write_bytes(as_file(cat))
    (tmp_path / "painting.png").write_bytes(as_file(cat[::-1, :, ::-1]))
    options = [*TINY, "trainer.max_steps=2", "output=run", "style.underpainting=0"]
    done = run(tmp_path, "train_folder.py", "painting.png", "my photos", "photo.png", "painted.png", *options)
    assert done.returncode == 0, done.stderr
    started, *progress = done.stderr.splitlines()  # by `train`, a process of its own
    assert started.startswith("style painting at 64 px")
    assert all(line.startswith("training: step ") for line in progress), done.stderr  # on a busy machine
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert Path(config["data"]["root"]).samefile(tmp_path / "my photos")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trained = read_checkpoint(checkpoint)
    network = trained_network(trained, checkpoint).eval()
    matrix, offset = (part.float() for part in colour_map(*(part[0] for part in kept_colours(trained))))
    with torch.no_grad():
        expected = network(torch.from_numpy(cat.copy()).permute(2, 0, 1)[None] / 255, network.vectors)
    expected = torch.einsum("ij,njhw->nihw", matrix, expected) + offset[:, None, None]
    painted = np.asarray(Image.open(tmp_path / "painted.png"), float)
    np.testing.assert_allclose(painted, 255 * expected[0].permute(1, 2, 0).clamp(0, 1).numpy(), atol=1.01)


def test_training_says_which_photograph_is_missing_before_it_begins(tmp_path):
    done = run(tmp_path, "train_folder.py", "painting.png", "photos", "nowhere.png", "painted.png")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no picture at nowhere.png\n")


def test_a_blend_goes_from_one_style_to_the_other(tmp_path, cat):
    (tmp_path / "photo.png").write_bytes(as_file(cat))
    done = run(tmp_path, "blend.py", "photo.png", "starry_night", "great_wave", "blends.png")
    assert (done.returncode, done.stderr) == (0, "")
    shares = [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]
    expected = [in_gallery(cat, starry_night=first, great_wave=second) for first, second in shares]
    painted = np.asarray(Image.open(tmp_path / "blends.png"), int)
    np.testing.assert_allclose(painted, np.concatenate(expected, 1), atol=1)
    assert all(np.abs(one.astype(int) - other).mean() > 2 for one, other in itertools.pairwise(expected))


def test_a_blend_with_an_unknown_style_is_one_line(tmp_path, cat):
    (tmp_path / "photo.png").write_bytes(as_file(cat))
    done = run(tmp_path, "blend.py", "photo.png", "stary_night", "great_wave", "blends.png")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "did you mean starry_night?" in done.stderr


FRAMES = 3


@pytest.fixture(scope="module")
def clip(tmp_path_factory, cat) -> Path:
    """A video without loss, of a picture that moves by 8 px a frame."""
    av = pytest.importorskip("av", reason="needs the extra video")
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10, width=cat.shape[1], height=cat.shape[0], pix_fmt="bgr0")
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(cat, 8 * number, 1)))
            file.mux(stream.encode(frame.reformat(format="bgr0")))
        file.mux(stream.encode())
    return path


def test_a_camera_loop_yields_every_frame_painted(clip, cat):
    camera = runpy.run_path(str(EXAMPLES / "camera.py"))
    painted = list(camera["paint"](camera["open_source"](str(clip)), "great_wave"))
    assert len(painted) == FRAMES
    for number, frame in enumerate(painted):
        np.testing.assert_allclose(frame.astype(int), in_gallery(np.roll(cat, 8 * number, 1), great_wave=1), atol=1)


def test_a_camera_loop_writes_a_video(clip, cat, tmp_path):
    import av

    done = run(tmp_path, "camera.py", clip, "great_wave", "painted.mp4")
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "painted.mp4")) as file:
        assert file.streams.video[0].average_rate == 10
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    assert len(frames) == FRAMES
    for number, frame in enumerate(frames):
        expected = in_gallery(np.roll(cat, 8 * number, 1), great_wave=1)
        error, exchanged = (np.abs(frame - colours).mean() for colours in (expected, expected[..., ::-1]))
        assert error < 8  # MPEG-4's loss
        assert exchanged > 2 * error


def test_a_camera_loop_shows_a_window_until_it_is_closed(cat):
    tkinter = pytest.importorskip("tkinter", reason="this Python has no Tk")
    try:
        tkinter.Tk().destroy()
    except tkinter.TclError as error:
        pytest.skip(f"there is no display: {error}")
    shown = []

    def frames() -> Iterator[np.ndarray]:
        for number in range(5):
            yield cat
            window = tkinter._get_default_root()
            (label,) = window.winfo_children()
            shown.append((label.winfo_width() >= cat.shape[1], label.winfo_height() >= cat.shape[0]))
            if number == 2:
                window.destroy()

    runpy.run_path(str(EXAMPLES / "camera.py"))["show"](frames())
    assert shown == [(True, True)] * 3


def test_a_camera_that_is_not_there_is_one_line(tmp_path):
    done = run(tmp_path, "camera.py", "none.mp4", "great_wave", "painted.mp4")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "no camera or video 'none.mp4'"
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def service():
    for package in ("fastapi", "httpx2"):
        pytest.importorskip(package, reason=f"needs {package}")
    from fastapi.testclient import TestClient

    return TestClient(runpy.run_path(str(EXAMPLES / "service.py"))["app"])


def test_the_service_answers_what_a_stylizer_paints(service, cat):
    answer = service.post("/stylize?style=great_wave&strength=0.6", content=as_file(cat))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    expected = Stylizer("gallery")(cat, style="great_wave", strength=0.6)
    assert answer.content == as_file(expected, "JPEG", quality=95, subsampling=0)
    plain = np.asarray(Image.open(io.BytesIO(service.post("/stylize", content=as_file(cat)).content)), int)
    assert np.abs(plain - in_gallery(cat, starry_night=1)).mean() < 3


def test_the_service_answers_requests_at_once(service, cat):
    styles = list(Stylizer("gallery").paintings)[:6]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda style: service.post(f"/stylize?style={style}", content=as_file(cat)), styles))
    for style, answer in zip(styles, answers, strict=True):
        painted = np.asarray(Image.open(io.BytesIO(answer.content)), int)
        assert np.abs(painted - in_gallery(cat, **{style: 1})).mean() < 3


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (b"", "it is empty"),
        (b"just words", "it is text, not a picture"),
        (as_file(np.zeros((50, 50, 3), np.uint8))[:60], "truncated|damaged|broken"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
    ],
)
def test_the_service_refuses_what_is_no_picture_in_one_line(service, photo, reason):
    answer = service.post("/stylize", content=photo)
    assert answer.status_code == 400
    (line,) = answer.json()["detail"].splitlines()
    assert line.startswith("the picture cannot be read as a picture: ")
    assert re.search(reason, line, re.IGNORECASE)


@pytest.mark.parametrize("query", ["style=nobody", "style=/etc/passwd.style", "strength=1.5", "strength=nan"])
def test_the_service_refuses_styles_and_strengths_that_there_are_not(service, cat, query):
    assert service.post(f"/stylize?{query}", content=as_file(cat)).status_code == 422


def test_every_example_is_run_here():
    named = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in named] == []
