"""Frames tied to the ones before: what is carried along, what is not, and where a clip begins anew."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from nst_fast.commands import stylize as command

pytest.importorskip("cv2", reason="OpenCV is not installed: the extra video")
av = pytest.importorskip("av", reason="PyAV is not installed: the extra video")

from nst_fast.stylizing.steadying import MOST_CARRIED, Steadying  # noqa: E402

HEIGHT, WIDTH, STEP = 96, 128, 3  # px, of frames and from one to the next


def texture(seed: int, width: int = WIDTH, sigma: float = 2) -> np.ndarray:
    """Return a random texture (HEIGHT, width, 3), uint8."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((HEIGHT, width, 3)), (sigma, sigma, 0))
    return (128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def pan(seed: int, frames: int) -> list[Image.Image]:
    """Return frames of a camera that moves to the right."""
    world = texture(seed, WIDTH + STEP * frames)
    return [Image.fromarray(world[:, STEP * i : STEP * i + WIDTH]) for i in range(frames)]


def plain(value: float) -> Image.Image:
    return Image.new("RGB", (WIDTH, HEIGHT), (int(value),) * 3)


def test_plain_frames_of_a_scene_at_rest_are_a_moving_average():
    steady, photograph = Steadying(0.5), Image.fromarray(texture(0))
    expected = 200.0
    for number, value in enumerate((200, 40, 120, 80)):
        shown = np.asarray(steady(photograph, plain(value)))
        expected = value + (0.5 * MOST_CARRIED * (expected - value) if number else 0)
        assert np.abs(shown.astype(float) - expected).max() <= 0.51


def test_what_differs_from_frame_to_frame_differs_less_and_stays_as_fine():
    """Strokes that are of the photograph in one half and of the frame in the other, on a camera that moves."""
    photographs, steady = pan(1, 5), Steadying(1.0)
    painted = [
        Image.blend(photograph, Image.fromarray(texture(10 + i, sigma=1)), 0.5)
        for i, photograph in enumerate(photographs)
    ]
    shown = [steady(photograph, stylized) for photograph, stylized in zip(photographs, painted, strict=True)]

    def flicker(frames: list[Image.Image]) -> float:
        before, now = (np.asarray(frame, float) for frame in frames[-2:])
        return float(np.sqrt(((before[:, STEP:] - now[:, :-STEP]) ** 2)[8:-8, 8:-8].mean()))

    def detail(frame: Image.Image) -> float:
        pixels = np.asarray(frame, float)
        return float(((pixels - gaussian_filter(pixels, (1, 1, 0))) ** 2).mean())

    assert flicker(shown) < 0.5 * flicker(painted)
    assert 0.8 < detail(shown[-1]) / detail(painted[-1]) < 1.25


@pytest.mark.parametrize("wall", [40, 200, 500])
def test_strokes_on_a_plain_wall_move_with_what_is_around_it(wall):
    """Noise of a camera is all that a plain wall shows: optical flow finds there what does not lead home."""
    rng, height, width = np.random.default_rng(3), 360, 640
    world = np.tile(texture(4, width + STEP), (4, 1, 1))[:height]
    world[:, (width - wall) // 2 : (width + wall) // 2] = 128
    strokes = np.tile(texture(20, width + STEP, sigma=1), (4, 1, 1))[:height]
    others = np.tile(texture(21, width, sigma=1), (4, 1, 1))[:height]
    steady = Steadying(1.0)
    for frame, painted in ((0, strokes[:, :width]), (1, others)):
        view = world[:, STEP * frame : STEP * frame + width] + rng.normal(0, 2, (height, width, 1))
        shown = steady(Image.fromarray(view.clip(0, 255).astype(np.uint8)), Image.fromarray(painted))
    inner = slice((width - wall) // 2 + 8, (width + wall) // 2 - 8 - STEP)

    def likeness(picture: np.ndarray) -> float:
        return float(np.corrcoef(np.asarray(shown, float)[:, inner].ravel(), picture[:, inner].ravel())[0, 1])

    assert likeness(strokes[:, STEP:]) > 0.8
    assert likeness(strokes[:, :width]) < 0.5


def test_another_scene_begins_anew():
    steady = Steadying(1.0)
    for seed in (2, 3):
        steady(Image.fromarray(texture(seed)), plain(250))
        shown = steady(Image.fromarray(texture(seed + 10)), plain(10 * seed))
        assert np.asarray(shown).max() == np.asarray(shown).min() == 10 * seed


def test_what_comes_into_view_has_nothing_of_the_frame_before():
    photographs = pan(4, 2)
    steady = Steadying(1.0)
    steady(photographs[0], plain(240))
    shown = np.asarray(steady(photographs[1], plain(40)))[..., 0]
    assert np.median(shown[:, WIDTH // 2]) > 150
    assert (shown[:, -STEP + 1 :] == 40).all()


def test_light_that_goes_out_takes_the_strokes_with_it():
    photograph = Image.fromarray(texture(5))
    steady = Steadying(1.0)
    steady(photograph, plain(240))
    dark = np.asarray(photograph).copy()
    dark[:, : WIDTH // 4] //= 4
    shown = np.asarray(steady(Image.fromarray(dark), plain(40)))[..., 0]
    assert np.median(shown[:, : WIDTH // 8]) == 40
    assert np.median(shown[:, WIDTH // 2 :]) > 150


@pytest.fixture
def folder(folder):
    """The same with a clip of a camera that moves."""
    with av.open("clip.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height = WIDTH, HEIGHT
        for photograph in pan(6, 6):
            file.mux(stream.encode(av.VideoFrame.from_image(photograph)))
        file.mux(stream.encode())
    return folder


def stylize(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stylize", "--model", "m.onnx", "--threads", "1", "--overwrite", *arguments])
    with pytest.raises(SystemExit) as leaving:
        command.main()
    return leaving.value.code or 0


def frames(name: str) -> list[np.ndarray]:
    with av.open(name) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_a_clip_that_is_as_its_photographs_stays_so(folder, monkeypatch):
    assert stylize(monkeypatch, "clip.mp4", "-o", "plain.mp4") == 0
    assert stylize(monkeypatch, "--steady", "1", "clip.mp4", "-o", "steady.mp4") == 0
    for one, other in zip(frames("plain.mp4"), frames("steady.mp4"), strict=True):
        assert np.abs(one.astype(float) - other)[8:-8, 8:-8].mean() < 4


def test_steady_0_imports_nothing_and_changes_nothing(folder):
    script = """
import sys
from nst_fast.commands.stylize import stylize
stylize(["--model", "m.onnx", "--threads", "1", *sys.argv[1:]])
assert "cv2" not in sys.modules
"""
    for arguments in (["-o", "a.mp4"], ["--steady", "0", "-o", "b.mp4"]):
        subprocess.run([sys.executable, "-c", script, "clip.mp4", *arguments], check=True)
    assert all((one == other).all() for one, other in zip(frames("a.mp4"), frames("b.mp4"), strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steady", "1.5", "clip.mp4"], ["--steady is 1.5; 0 to 1 is needed"]),
        (["--steady", "1", "photo.png"], ["--steady", "photo.png becomes a picture"]),
    ],
)
def test_steady_out_of_place_is_one_line(arguments, words, folder, monkeypatch, capsys):
    Image.fromarray(texture(7)).save("photo.png")
    assert stylize(monkeypatch, *arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)


def test_without_opencv_one_line_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert stylize(monkeypatch, "--steady", "1", "clip.mp4", "-o", "out.mp4") != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert 'OpenCV: pip install "nst_fast[video]"' in line
    assert not (folder / "out.mp4").exists()
