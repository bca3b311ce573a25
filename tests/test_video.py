"""Videos in and out: sound, times, turns, colours, what is broken or odd, what memory holds, and where Ctrl-C ends.

Most clips go through a model that changes nothing, so that what comes out is known but for what encoders lose.
"""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst_fast.commands import stylize as command

av = pytest.importorskip("av", reason="PyAV is not installed: the extra video")

from nst_fast.stylizing.video import Frame, VideoReader  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "video"
WIDTH, HEIGHT, RATE = 48, 32, 25
WRITTEN = [".mp4", ".mov", ".mkv", ".webm", ".avi"]


@pytest.fixture
def stylize(folder, monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """The command in this process."""

    def call(*arguments) -> subprocess.CompletedProcess:
        given = ["stylize", "--model", "m.onnx", "--threads", "1", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as leaving:
            command.main()
        return subprocess.CompletedProcess(given, leaving.value.code, *capfd.readouterr())

    return call


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a smooth picture that tells its number by its blue, and its sides by its red and green."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(40, 220, width)
    pixels[..., 1] = np.linspace(40, 220, height)[:, None]
    pixels[..., 2] = 16 * number % 256
    return pixels


def planes(pixels: tuple[int, ...], format: str, width: int, height: int) -> av.VideoFrame:
    """Return a frame of one colour, given as the numbers of its planes."""
    frame = av.VideoFrame(width, height, format)
    kind = np.uint16 if "10" in format else np.uint8
    for plane, value in zip(frame.planes, pixels, strict=True):
        plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, value, kind).tobytes())
    return frame


def make_clip(
    path: str | Path,
    frames: Iterable[np.ndarray | av.VideoFrame] = (),
    codec: str = "libx264",
    times: list[int] | None = None,
    step: Fraction = Fraction(1, RATE),
    sound: str | None = None,
    subtitles: str | None = None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    turn: Callable = lambda stream: None,
    **context,
) -> None:
    """Write a clip; times are multiples of step."""
    frames = list(frames) or [picture(i) for i in range(12)]
    lossless = {"crf": "0"} if codec == "libx264" else {}
    with av.open(str(path), "w") as file:
        file.metadata.update(metadata or {})
        stream = file.add_stream(codec, rate=RATE, options=options or lossless, time_base=step)
        first = frames[0] if isinstance(frames[0], av.VideoFrame) else av.VideoFrame.from_ndarray(frames[0])
        stream.width, stream.height = first.width, first.height
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        turn(stream)
        voice = file.add_stream(sound, rate=48_000) if sound else None
        words = file.add_mux_stream(subtitles) if subtitles else None
        rng = np.random.default_rng(0)
        for i, pixels in enumerate(frames):
            frame = pixels if isinstance(pixels, av.VideoFrame) else av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = i if times is None else times[i], step
            file.mux(stream.encode(frame))
            if voice is not None:
                heard = av.AudioFrame.from_ndarray(rng.normal(0, 0.2, (2, 1920)).astype(np.float32), "fltp", "stereo")
                heard.sample_rate, heard.pts, heard.time_base = 48_000, 1920 * i, Fraction(1, 48_000)
                file.mux(voice.encode(heard))
            if words is not None and i % 4 == 0:
                text = f"line {i}".encode()
                packet = av.Packet(len(text).to_bytes(2, "big") + text if subtitles == "mov_text" else text)
                packet.pts = packet.dts = 40 * i
                packet.duration, packet.time_base, packet.stream = 100, Fraction(1, 1000), words
                file.mux(packet)
        file.mux(stream.encode())
        if voice is not None:
            file.mux(voice.encode())


def packets(path: str | Path, kind: str) -> list[tuple]:
    """Return times, s, and bytes of the packets of a kind of stream."""
    with av.open(str(path)) as file:
        streams = [stream for stream in file.streams if stream.type == kind]
        found = file.demux(streams) if streams else []
        return [(p.pts * p.time_base, p.duration * p.time_base, bytes(p)) for p in found if p.size]


def decoded(path: str | Path) -> list[tuple[Fraction, np.ndarray]]:
    """Return times, s, and frames (H, W, 3) as FFmpeg shows them."""
    with av.open(str(path)) as file:
        return [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]


def times(path: str | Path, end: float = math.inf) -> list[Fraction]:
    """Return the times of frames, s, as FFmpeg shows them, as far as an end that none of them is at."""
    with av.open(str(path)) as file:
        shown = (frame.pts * frame.time_base for frame in file.decode(video=0))
        return list(itertools.takewhile(lambda time: time < end, shown))


def tags(path: str | Path) -> tuple:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        context, frame = stream.codec_context, next(file.decode(stream))
        own = context.colorspace, context.color_range, context.color_primaries, context.color_trc
        return (*own, frame.colorspace, frame.color_range, stream.sample_aspect_ratio or 1)


def error_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def assert_one_line(done: subprocess.CompletedProcess) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert done.stderr.startswith("stylize: ")


# Sound, subtitles, times


@pytest.mark.parametrize(
    ("name", "codec", "sound", "subtitles"),
    [
        ("a.mp4", "libx264", "aac", "mov_text"),
        ("a.mov", "libx264", "alac", "mov_text"),
        ("a.mkv", "libx264", "flac", "subrip"),
        ("a.webm", "libvpx-vp9", "libopus", "webvtt"),
        ("a.avi", "mpeg4", "mp3", None),
    ],
)
def test_sound_and_subtitles_are_copied_and_frames_keep_their_times(stylize, name, codec, sound, subtitles):
    make_clip(name, codec=codec, sound=sound, subtitles=subtitles, pix_fmt="yuv420p")
    done = stylize(name, "-o", f"out/{name}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["width"], told["height"], told["frames"]) == (WIDTH, HEIGHT, 12)
    assert len(packets(name, "audio")) >= 5
    assert packets(f"out/{name}", "audio") == packets(name, "audio")
    assert packets(f"out/{name}", "subtitle") == packets(name, "subtitle")
    assert bool(packets(name, "subtitle")) == (subtitles is not None)
    assert times(f"out/{name}") == times(name)
    with av.open(name) as one, av.open(f"out/{name}") as other:
        assert abs(one.duration - other.duration) <= av.time_base / RATE
    for (_, before), (_, after) in zip(decoded(name), decoded(f"out/{name}"), strict=True):
        assert error_of(before, after) < 6


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_frames_at_irregular_times_stay_there(stylize, suffix):
    ticks = [0, 10, 15, 200, 201, 203, 500, 1000, 1001, 1900, 1940, 2500]
    make_clip("a.mkv", times=ticks, step=Fraction(1, 1000))
    assert times("a.mkv") == [Fraction(tick, 1000) for tick in ticks]
    assert stylize("a.mkv", "-o", f"b{suffix}").returncode == 0
    assert times(f"b{suffix}") == times("a.mkv")


def test_avi_and_gif_have_the_nearest_times_that_they_can_hold(stylize):
    ticks = [0, 3, 6, 7, 10, 20, 30, 31, 32, 33, 40, 44]
    make_clip("a.mp4", times=ticks, step=Fraction(1, 30))
    for name, step in (("b.gif", Fraction(1, 100)), ("b.avi", 1 / VideoReader(Path("a.mp4")).clip.rate)):
        assert stylize("a.mp4", "-o", name).returncode == 0
        grid = list(dict.fromkeys(round(Fraction(tick, 30) / step) for tick in ticks))
        assert [round(shown / step) for shown in times(name)] == grid


def test_a_span_starts_at_zero_with_its_own_sound(stylize):
    make_clip("a.mkv", [picture(i % 16) for i in range(75)], sound="flac", options={"crf": "0", "g": "20"})
    assert stylize("a.mkv", "--from", "0:01", "--to", 2.2, "-o", "b.mkv").returncode == 0
    assert times("b.mkv") == [Fraction(i, RATE) for i in range(30)]
    for i, (_, frame) in enumerate(decoded("b.mkv")):
        assert error_of(frame, picture((25 + i) % 16)) < 6
    inside = [(start - 1, *rest) for start, *rest in packets("a.mkv", "audio") if 1 <= start < Fraction(22, 10)]
    assert packets("b.mkv", "audio") == inside
    assert len(inside) > 5


@pytest.mark.parametrize(
    "given", [["--from", "x"], ["--from", "3", "--to", "2"], ["--to", "-1"], ["--from", "1:2:3:4"]]
)
def test_times_that_are_none_are_refused(stylize, given):
    make_clip("a.mp4")
    done = stylize("a.mp4", *given)
    assert done.returncode
    assert "--from" in done.stderr or "--to" in done.stderr


def test_a_span_that_a_clip_does_not_reach_is_one_line(stylize):
    make_clip("a.mp4")
    done = stylize("a.mp4", "--from", "50", "-o", "b.mp4")
    assert_one_line(done)
    assert "a.mp4 gives no frame between these times" in done.stderr


def test_a_picture_has_no_span(stylize):
    Image.fromarray(picture(1)).save("a.png")
    done = stylize("a.png", "--from", "1")
    assert_one_line(done)
    assert "--from" in done.stderr


# How frames are shown


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored_clips_come_out_upright(stylize, angle, mirrored):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV writes no display matrix")
    make_clip("a.mp4", turn=lambda stream: stream.set_display_rotation(angle, hflip=mirrored), sample_aspect_ratio=2)
    assert stylize("a.mp4", "-o", "b.mp4").returncode == 0
    with av.open("a.mp4") as file:
        assert mirrored or next(file.decode(video=0)).rotation % 360 == angle
    # FFmpeg's matrix turns counterclockwise and mirrors after that.
    shown = np.rot90(picture(0), angle // 90)
    shown = shown[:, ::-1] if mirrored else shown
    with av.open("b.mp4") as file:
        stream = file.streams.video[0]
        frame = next(file.decode(stream))
        assert (frame.rotation, frame.width, frame.height) == (0, shown.shape[1], shown.shape[0])
        assert stream.sample_aspect_ratio == (Fraction(1, 2) if angle % 180 else 2)
        assert error_of(frame.to_ndarray(format="rgb24"), shown) < 6


def of_numbers(numbers: tuple[int, ...], red: float, blue: float, full: bool) -> np.ndarray:
    """Return RGB in 0 to 255 of Y'CbCr of 8 bits, by H.273."""
    y, cb, cr = numbers
    luma = y / 255 if full else (y - 16) / 219
    b, r = ((c - 128) / (255 if full else 224) for c in (cb, cr))
    r, b = luma + 2 * (1 - red) * r, luma + 2 * (1 - blue) * b
    return 255 * np.array([r, (luma - red * r - blue * b) / (1 - red - blue), b])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (9, 0.2627, 0.0593)]
)
def test_range_and_matrix_are_read_and_kept(stylize, matrix, red, blue, full):
    numbers = (110, 100, 150)
    kept = {"colorspace": matrix, "color_range": 1 + full, "color_primaries": 6, "color_trc": 1}
    make_clip("a.mp4", [planes(numbers, "yuv420p", WIDTH, HEIGHT)] * 3, pix_fmt="yuv420p", **kept)
    reader = VideoReader(Path("a.mp4"))
    seen = next(item.picture for item in reader if isinstance(item, Frame))
    assert np.abs(np.asarray(seen) - of_numbers(numbers, red, blue, full)).max() < 2
    assert stylize("a.mp4", "-o", "b.mp4").returncode == 0
    assert tags("b.mp4") == tags("a.mp4")
    assert tags("b.mp4")[:4] == (matrix, 1 + full, 6, 1)
    with av.open("b.mp4") as file:
        frame = next(file.decode(video=0))
        for plane, number in zip(frame.planes, numbers, strict=True):
            assert abs(int(np.frombuffer(plane, np.uint8)[0]) - number) <= 2


@pytest.mark.parametrize(("size", "red", "blue"), [((1280, 720), 0.2126, 0.0722), ((720, 576), 0.299, 0.114)])
def test_an_unnamed_matrix_is_guessed_by_the_size(folder, size, red, blue):
    numbers = (110, 100, 150)
    make_clip("a.mp4", [planes(numbers, "yuv420p", *size)], pix_fmt="yuv420p")
    seen = next(item.picture for item in VideoReader(Path("a.mp4")) if isinstance(item, Frame))
    assert np.abs(np.asarray(seen)[0, 0] - of_numbers(numbers, red, blue, full=False)).max() < 2


def test_ten_bits_become_eight_and_are_said(stylize):
    make_clip("a.mkv", [planes((440, 400, 600), "yuv420p10le", WIDTH, HEIGHT)] * 2, codec="ffv1", pix_fmt="yuv420p10le")
    done = stylize("a.mkv", "-o", "b.mp4")
    assert (done.returncode, done.stderr) == (0, "stylize: a.mkv has 10 bits a colour; its result has 8\n")
    with av.open("b.mp4") as file:
        values = [np.frombuffer(plane, np.uint8)[0] for plane in next(file.decode(video=0)).planes]
    assert np.abs(np.subtract(values, (110.0, 100.0, 150.0))).max() <= 2


@pytest.mark.skipif(int(av.__version__.split(".")[0]) < 18, reason="PyAV before 18 converts no HDR")
def test_hdr_becomes_sdr_and_is_said(stylize):
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # ST 2084
    kept = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 16}
    lights, greys = (1, 20, 100, 203), []  # cd/m², the last of which is white paper's
    for light in lights:
        power = (light / 10_000) ** m1
        luma = round(64 + 876 * ((c1 + c2 * power) / (1 + c3 * power)) ** m2)
        greys.append(planes((luma, 512, 512), "yuv420p10le", WIDTH, HEIGHT))
        greys[-1].colorspace, greys[-1].color_range, greys[-1].color_primaries, greys[-1].color_trc = kept.values()
    make_clip("a.mkv", greys, codec="ffv1", pix_fmt="yuv420p10le", **kept)
    done = stylize("a.mkv", "-o", "b.mp4")
    assert done.returncode == 0
    assert "HDR (PQ) of 10 bits; its result is SDR of 8" in done.stderr
    assert tags("b.mp4")[:4] == (1, 1, 1, 1)
    for light, (_, shown) in zip(lights, decoded("b.mp4"), strict=True):
        assert abs(shown.mean() - 255 * (light / 203) ** (1 / 2.4)) < 6  # a screen's gamma, BT.1886


def test_where_a_clip_was_taken_is_kept_on_request_alone(stylize):
    make_clip("a.mp4", metadata={"location": "+48.85+002.35/", "title": "a walk"})
    for options, kept in (((), False), (("--keep-gps", "--overwrite"), True)):
        assert stylize("a.mp4", "-o", "b.mp4", *options).returncode == 0
        with av.open("b.mp4") as file:
            assert (file.metadata.get("title"), "location" in file.metadata) == ("a walk", kept)


# Formats


@pytest.mark.parametrize("suffix", [*WRITTEN, ".gif", ".webp"])
def test_every_format_is_written_and_quality_counts(stylize, suffix):
    rng = np.random.default_rng(0)
    make_clip("a.mp4", [picture(i) ^ rng.integers(0, 30, (HEIGHT, WIDTH, 3), dtype=np.uint8) for i in range(12)])
    sizes = []
    for quality in (10, 95):
        done = stylize("a.mp4", "-o", f"b{suffix}", "--quality", quality, "--overwrite")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"b{suffix}\n", "")
        sizes.append(Path(f"b{suffix}").stat().st_size)
    assert suffix == ".gif" or sizes[0] < 0.7 * sizes[1]
    if suffix == ".webp":  # which this FFmpeg does not read
        with Image.open("b.webp") as image:
            assert (image.size, image.n_frames) == ((WIDTH, HEIGHT), 12)
            assert error_of(np.asarray(image.convert("RGB")), decoded("a.mp4")[0][1]) < 8
    else:
        assert times(f"b{suffix}") == times("a.mp4")
        assert error_of(decoded(f"b{suffix}")[5][1], decoded("a.mp4")[5][1]) < 8


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_becomes_a_video(stylize, name):
    frames = [Image.fromarray(picture(i)) for i in (0, 5, 10, 15)]
    frames[0].save(name, save_all=True, append_images=frames[1:], duration=[100, 200, 50, 300], lossless=True)
    assert stylize(name, "-o", "b.mp4").returncode == 0
    assert [float(shown) for shown in times("b.mp4")] == [0, 0.1, 0.3, 0.35]
    with av.open("b.mp4") as file:
        assert file.duration == pytest.approx(650_000, abs=1000)
    for (_, after), before in zip(decoded("b.mp4"), frames, strict=True):
        assert error_of(after, np.asarray(before)) < 8


def test_what_an_animation_hides_is_white(stylize):
    hidden = Image.fromarray(np.dstack([picture(3), np.full((HEIGHT, WIDTH), 255, np.uint8)]))
    hidden.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
    hidden.save("a.png", save_all=True, append_images=[hidden.rotate(180)])
    assert stylize("a.png", "-o", "b.mp4").returncode == 0
    shown = decoded("b.mp4")[0][1]
    assert shown[:, : WIDTH // 2 - 4].min() > 245
    assert error_of(shown[:, WIDTH // 2 + 4 :], picture(3)[:, WIDTH // 2 + 4 :]) < 8


def test_a_single_picture_is_no_video(stylize):
    Image.fromarray(picture(1)).save("a.png")
    assert_one_line(stylize("a.png", "-o", "b.mp4"))


def test_a_video_is_no_picture(stylize):
    make_clip("a.mp4")
    for target in ("b.png", "-", "b.mts", "/dev/null"):
        done = stylize("a.mp4", "-o", target)
        assert_one_line(done)
    assert stylize("a.mp4", "--format", "webm").stdout == "a.m.webm\n"


def test_folders_and_globs_have_videos(stylize):
    Path("holiday").mkdir()
    make_clip("holiday/a.mp4")
    make_clip("holiday/b.avi", codec="mpeg4")
    Image.fromarray(picture(0)).save("holiday/c.png")
    done = stylize("holiday", "-o", "out")
    assert (done.returncode, done.stdout) == (0, "3 of 3 files stylized into out\n")
    assert {path.name for path in Path("out").iterdir()} == {"a.mp4", "b.avi", "c.png"}
    assert stylize("holiday/*.mp4").stdout == f"{Path('holiday/a.m.mp4')}\n"
    assert "2 of 2 pictures exist" not in stylize("holiday", "-o", "out", "--skip-existing").stdout


def test_options_of_pictures_count_for_videos(stylize):
    make_clip("a.mp4", [picture(5, 200, 100)] * 3)
    done = stylize("a.mp4", "-o", "b.mp4", "--max-side", 100, "--stroke", 2, "--strength", 0.5, "--json")
    assert json.loads(done.stdout)["width"] == 100
    assert decoded("b.mp4")[0][1].shape == (50, 100, 3)


def test_without_pyav_a_line_says_what_to_install(folder):
    make_clip("a.mp4")
    script = "import sys; sys.modules['av'] = None; from nst_fast.commands import stylize; stylize.main()"
    given = [sys.executable, "-c", script, "--model", "m.onnx"]
    done = subprocess.run([*given, "a.mp4"], capture_output=True, text=True, check=False)
    assert_one_line(done)
    assert 'pip install "nst_fast[video]"' in done.stderr
    Image.fromarray(picture(0)).save("b.png")
    done = subprocess.run([*given, ".", "-o", "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "1 .mp4" in done.stderr


# Broken and odd


def damage(path: str, numbers: list[int]) -> None:
    """Put zeros in place of packets of frames."""
    with av.open(path) as file:
        found = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    content = Path(path).read_bytes()
    for number in numbers:
        assert content.count(found[number]) == 1
        content = content.replace(found[number], bytes(len(found[number])))
    Path(path).write_bytes(content)


def test_damaged_frames_are_counted_and_the_rest_goes_on(stylize):
    make_clip("a.mkv", codec="mjpeg", sound="flac", pix_fmt="yuvj420p")
    damage("a.mkv", [3, 7])
    done = stylize("a.mkv", "-o", "b.mkv", "--json")
    assert (done.returncode, done.stderr) == (0, "stylize: a.mkv: damaged frames: 2 of 12\n")
    kept = [i for i in range(12) if i not in (3, 7)]
    assert json.loads(done.stdout)["frames"] in (10, 12)  # FFmpeg may show what it can
    shown = dict(decoded("b.mkv"))
    for i in kept:
        assert error_of(shown[Fraction(i, RATE)], picture(i)) < 6
    assert packets("b.mkv", "audio") == packets("a.mkv", "audio")


def test_a_file_that_is_cut_off_gives_what_is_there(stylize):
    make_clip("a.mkv", [picture(i % 16) for i in range(60)], codec="ffv1", sound="flac")
    content = Path("a.mkv").read_bytes()
    Path("a.mkv").write_bytes(content[: len(content) // 2])
    done = stylize("a.mkv", "-o", "b.mkv", "--json")
    assert done.returncode == 0
    assert "of 2.4 s: it may be cut off" in done.stderr
    assert 20 < json.loads(done.stdout)["frames"] < 40
    assert times("b.mkv") == times("a.mkv")[: len(times("b.mkv"))]


def cover_art(name: str) -> None:
    with av.open(name, "w") as file:
        voice = file.add_stream("aac", rate=48_000)
        art = file.add_stream("mjpeg", rate=1, pix_fmt="yuvj420p", width=16, height=16)
        art.disposition = av.stream.Disposition.attached_pic
        file.mux(art.encode(av.VideoFrame.from_ndarray(picture(0, 16, 16)).reformat(format="yuvj420p")))
        file.mux(art.encode())
        for i in range(10):
            heard = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            heard.sample_rate, heard.pts = 48_000, 1024 * i
            file.mux(voice.encode(heard))
        file.mux(voice.encode())


def only_sound(name: str) -> None:
    with av.open(name, "w") as file:
        voice = file.add_stream("aac", rate=48_000)
        for i in range(10):
            heard = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            heard.sample_rate, heard.pts = 48_000, 1024 * i
            file.mux(voice.encode(heard))
        file.mux(voice.encode())


def two_videos(name: str) -> None:
    with av.open(name, "w") as file:
        streams = [file.add_stream("libx264", rate=RATE, width=WIDTH, height=HEIGHT) for _ in range(2)]
        for i in range(5):
            for k, stream in enumerate(streams):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i + 8 * k))))
        for stream in streams:
            file.mux(stream.encode())


def cut(name: str, share: float = 0.5) -> None:
    make_clip(name, [picture(i % 16) for i in range(60)])
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[: int(len(content) * share)])


def content(of: bytes) -> Callable[[str], object]:
    return lambda name: Path(name).write_bytes(of)


def renamed(*given, **options) -> Callable[[str], object]:
    def make(name: str) -> None:
        make_clip(f"x{given[0]}", *given[1:], **options)
        Path(f"x{given[0]}").rename(name)

    return make


def with_alpha(name: str) -> None:
    clear = np.dstack([picture(3), np.zeros((HEIGHT, WIDTH), np.uint8)])
    frames = [av.VideoFrame.from_ndarray(clear, "rgba").reformat(format="bgra") for _ in range(3)]
    make_clip(name, frames, codec="ffv1", pix_fmt="bgra")


def changing_size(name: str) -> None:
    make_clip("1.mpg", [picture(i) for i in range(4)], codec="mpeg2video")
    make_clip("2.mpg", [picture(i, 96, 64) for i in range(4)], codec="mpeg2video")
    Path(name).write_bytes(Path("1.mpg").read_bytes() + Path("2.mpg").read_bytes())


LINE = None  # one line on stderr and no result, or the number of frames that come out
ODD = {
    "cut without an index.mp4": (cut, LINE),
    "cut after its index.mp4": (
        lambda name: (
            make_clip("x.mp4", [picture(i % 16) for i in range(60)]),
            remux("x.mp4", name),
            Path(name).write_bytes(Path(name).read_bytes()[:-3000]),
        ),
        range(2, 60),
    ),
    "cut to its head.mkv": (lambda name: cut(name, 0.02), LINE),
    "no video.mp4": (only_sound, LINE),
    "cover art.mp4": (cover_art, LINE),
    "two videos.mkv": (two_videos, 5),
    "alpha.mkv": (with_alpha, 3),
    "odd sides.mkv": (lambda name: make_clip(name, [picture(i, 33, 21) for i in range(3)], codec="ffv1"), 3),
    "one pixel.mkv": (lambda name: make_clip(name, [picture(5, 1, 1)] * 3, codec="ffv1"), 3),
    "one frame.mp4": (lambda name: make_clip(name, [picture(0)]), 1),
    "no duration.mkv": (lambda name: make_clip(name, [picture(0)] * 2, codec="ffv1", times=[0, 0]), range(1, 3)),
    "grey.mkv": (lambda name: make_clip(name, codec="ffv1", pix_fmt="gray"), 12),
    "12 bits.mkv": (lambda name: make_clip(name, codec="ffv1", pix_fmt="yuv444p12le"), 12),
    "RGB.mov": (lambda name: make_clip(name, codec="qtrle", pix_fmt="rgb24"), 12),
    "motion JPEG.avi": (lambda name: make_clip(name, codec="mjpeg", pix_fmt="yuvj420p"), 12),
    "wrong suffix.mp4": (renamed(".mkv"), 12),
    "a picture.mp4": (lambda name: Image.fromarray(picture(0)).save(name, "JPEG"), LINE),
    "a text.mp4": (content(b"just words\n" * 30), LINE),
    "nothing.mp4": (content(b""), LINE),
    "zeros.mp4": (content(bytes(10_000)), LINE),
    "noise.mkv": (lambda name: Path(name).write_bytes(np.random.default_rng(0).bytes(20_000)), LINE),
    "a folder.mp4": (lambda name: Path(name).mkdir(), LINE),
    "missing.mp4": (lambda name: None, LINE),
    "a playlist.mp4": (content(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n"), LINE),
    "a list.mp4": (content(b"ffconcat version 1.0\nfile secret.ts\n"), LINE),
    "changing size.mpg": (changing_size, range(4, 9)),
    "-dash:colon %d.mp4": (lambda name: make_clip("x.mp4") or Path("x.mp4").rename(name), 12),
}


def remux(source: str, target: str) -> None:
    """Copy a clip with its index in front."""
    with av.open(source) as clip, av.open(target, "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream_from_template(clip.streams.video[0])
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_give_a_result_or_one_line(stylize, name):
    make, frames = ODD[name]
    make_clip("secret.mkv")
    Path("secret.mkv").rename("secret.ts")
    make(name)
    done = stylize("-o", "out.mp4", "--", name)
    if frames is LINE:
        assert_one_line(done)
        assert not Path("out.mp4").exists()
        return
    assert (done.returncode, done.stdout) == (0, "out.mp4\n"), done.stderr
    assert len(decoded("out.mp4")) in (frames if isinstance(frames, range) else [frames])
    if name == "alpha.mkv":
        assert decoded("out.mp4")[0][1].min() > 250
    if name == "odd sides.mkv":
        assert error_of(decoded("out.mp4")[0][1], picture(0, 33, 21)[:20, :32]) < 8


def test_a_file_that_may_be_a_bomb_is_opened_on_request_alone(stylize, monkeypatch):
    make_clip("a.mp4")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    done = stylize("a.mp4")
    assert_one_line(done)
    assert "--huge" in done.stderr
    assert stylize("a.mp4", "--huge").returncode == 0


def test_sound_without_a_place_is_left_out_and_said(stylize):
    make_clip("a.mp4", sound="aac")
    done = stylize("a.mp4", "-o", "b.webm")
    assert done.returncode == 0
    assert done.stderr == "stylize: audio (aac) has no place in webm and is left out; .mkv has one\n"
    assert times("b.webm") == times("a.mp4")


def test_a_full_disk_is_one_line(stylize):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    make_clip("a.mp4")
    assert_one_line(stylize("a.mp4", "-o", "m.onnx/b.mp4"))
    assert {path.name for path in Path().iterdir()} == {"a.mp4", "m.onnx"}


# Memory, interruption, progress

PEAK = """
import re, sys
from pathlib import Path
from nst_fast.commands.stylize import stylize
stylize(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_memory_does_not_grow_with_a_clip(folder):
    peaks = []
    for frames in (60, 300):
        make_clip("a.mp4", (picture(i % 16, 320, 240) for i in range(frames)), options={"preset": "ultrafast"})
        given = [sys.executable, "-c", PEAK, "--model", "m.onnx", "a.mp4", "-o", "b.mp4", "--overwrite"]
        done = subprocess.run(given, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1000)
    assert peaks[1] - peaks[0] < 15  # MB; 240 frames have 55


def test_ctrl_c_leaves_a_file_that_plays(folder):
    make_clip("a.mkv", [picture(i % 16, 160, 120) for i in range(3000)], options={"preset": "ultrafast"}, sound="flac")
    given = [sys.executable, "-m", "nst_fast.commands.stylize", "--model", "starry_night", "a.mkv", "-o", "b.mkv"]
    given += ["--quality", "100"]  # frames reach the file soon
    running = subprocess.Popen([*given, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        began = time.monotonic()
        while not any(p.stat().st_size > 10_000 for p in Path().glob(".b.mkv.*")):  # some frames are there
            assert running.poll() is None
            assert time.monotonic() - began < 300
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 130
    told = json.loads(out)
    assert 0 < told["frames"] < 3000
    assert err.startswith(f"stylize: b.mkv was interrupted: it plays {told['frames'] / RATE:.2f} s")
    assert err.splitlines()[-1] == "stylize: interrupted"
    assert times("b.mkv") == [Fraction(i, RATE) for i in range(told["frames"])]
    heard = packets("b.mkv", "audio")
    assert heard == packets("a.mkv", "audio")[: len(heard)]
    assert abs(float(heard[-1][0]) - told["frames"] / RATE) < 1
    assert not list(Path().glob(".b.mkv.*"))


def test_progress_tells_frames_a_second_and_time_left(folder):
    pty = pytest.importorskip("pty", reason="no terminals of this kind here")
    make_clip("a.mp4", [picture(i % 16, 160, 120) for i in range(40)])
    ours, theirs = pty.openpty()
    given = [sys.executable, "-m", "nst_fast.commands.stylize", "--model", "starry_night", "a.mp4", "-o", "b.mp4"]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    running = subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    assert running.wait(300) == 0
    text = shown.decode()
    assert "a.mp4" in text
    assert "frames/s" in text
    assert "/40" in text
    assert "0:00:0" in text


# Clips of cameras


@pytest.mark.skipif(not SHARED.is_dir(), reason="no clips in ../shared/video")
@pytest.mark.parametrize("clip", sorted(SHARED.glob("*")), ids=lambda path: path.name)
def test_clips_of_cameras_keep_sound_times_and_colours(stylize, clip):
    target = f"b{clip.suffix}"
    done = stylize(clip, "-o", target, "--max-side", 64, "--to", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert times(target) == times(clip, 3)
    heard = [packet for packet in packets(clip, "audio") if packet[0] < 3]
    assert packets(target, "audio") == heard
    assert tags(target)[:6] == tags(clip)[:6]
