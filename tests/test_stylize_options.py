"""What `stylize` does with inputs, outputs, looks and devices, against Pillow and runs by hand."""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageCms

from nst_fast.commands.stylize import main
from nst_fast.stylizing.images import fill_hidden
from nst_fast.stylizing.jobs import Job, PixelBudget, Result, find_jobs, stylize_jobs
from nst_fast.stylizing.looks import Looks, Saving
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT.parent / "shared" / "peers"
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = RNG.integers(1, 256, (20, 30), dtype=np.uint8)  # 0 has tests of its own
FRAMES = [Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(4)]
DURATIONS = [50, 120, 200, 70]
ARTIST, ORIENTATION, EXIF_IFD, DATE_TAKEN, GPS_IFD, PROFILE = 0x013B, 0x0112, 0x8769, 0x9003, 0x8825, 0x8773
PILLOWS = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".tif": {"format": "TIFF"},
    ".bmp": {"format": "BMP"},
    ".gif": {"format": "GIF"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    network = create_network("fast", 8, 1)
    with torch.no_grad():
        list(network.parameters())[-1].add_(0.5)
    return export(network, tmp_path_factory.mktemp("model") / "tiny.onnx", {"style": "tiny", "title": "Ťiny"})


@pytest.fixture(scope="module")
def by_hand(exported):
    """A function from an RGB picture to its stylized one, through arrays."""
    stylizer = Stylizer(exported, threads=1)
    return lambda picture: Image.fromarray(stylizer.stylize_array(np.asarray(picture)[None])[0])


@pytest.fixture
def folder(tmp_path, exported, monkeypatch):
    """The current folder, with the model in it."""
    shutil.copy(exported, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stylize(folder, monkeypatch, capfd):
    """The command in this process."""

    def call(*arguments, model="tiny.onnx") -> subprocess.CompletedProcess:
        command = ["stylize", "--model", str(model), "--threads", "1", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as leaving:
            main()
        return subprocess.CompletedProcess(command, leaving.value.code, *capfd.readouterr())

    return call


def pipe(content: bytes, *arguments, folder: Path) -> bytes:
    """Standard output of the command in a process of its own."""
    command = [sys.executable, "-m", "nst_fast.commands.stylize", "--model", "tiny.onnx", "--threads", "1", *arguments]
    done = subprocess.run(command, input=content, capture_output=True, cwd=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def save(path: str | Path, picture: Image.Image | np.ndarray = PIXELS, **options) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)


def opened(path: str | Path | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(path if isinstance(path, bytes) else Path(path).read_bytes()))
    image.load()
    return image


def encoded(picture: Image.Image, **options) -> bytes:
    content = io.BytesIO()
    picture.save(content, **options)
    return content.getvalue()


def assert_same(got: Image.Image, expected: Image.Image, tolerance: float = 0) -> None:
    assert (got.mode, got.size) == (expected.mode, expected.size)
    np.testing.assert_allclose(np.asarray(got).astype(int), np.asarray(expected).astype(int), rtol=0, atol=tolerance)


def assert_one_line(done: subprocess.CompletedProcess) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("stylize: ")
    assert done.stderr.count("\n") == 1


def names(folder: str | Path = ".") -> set[str]:
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()} - {"tiny.onnx"}


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([PIXELS, ALPHA]))


# Inputs


@pytest.mark.parametrize("suffix", PILLOWS)
def test_each_format_is_kept_and_holds_the_stylized_picture_as_pillow_writes_it(stylize, by_hand, suffix):
    save(f"photo{suffix}")
    assert stylize(f"photo{suffix}").returncode == 0
    got = opened(f"photo.tiny{suffix}")
    assert got.format == PILLOWS[suffix]["format"]
    expected = opened(encoded(by_hand(opened(f"photo{suffix}").convert("RGB")), **PILLOWS[suffix]))
    assert_same(got.convert("RGB"), expected.convert("RGB"))


def test_several_pictures_land_beside_themselves_or_in_a_folder(stylize):
    for name in ("a.jpg", "deep/b.png"):
        save(name)
    done = stylize("a.jpg", "deep/b.png")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert "2 of 2 pictures" in done.stdout
    assert names() == {"a.jpg", "a.tiny.jpg", "deep/b.png", "deep/b.tiny.png"}
    assert stylize("a.jpg", "deep/b.png", "-o", "out").returncode == 0
    assert names("out") == {"a.jpg", "b.png"}


def test_pictures_may_be_named_from_here_and_from_the_root(stylize, folder):
    save("a/cat.png")
    save("b/dog.png")
    done = stylize("a/cat.png", folder / "b" / "dog.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 of 2 pictures stylized into {folder / 'b'}, a\n"


def test_a_name_that_starts_with_a_dash_follows_two_dashes(stylize):
    save("-dash.png")
    done = stylize("-o", "out.png", "--", "-dash.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.png\n", "")


def test_what_an_earlier_command_put_into_the_folder_is_no_photograph(stylize):
    save("hol/a.png")
    for _ in range(2):
        assert stylize("hol", "-r", "-o", "hol/out", "--overwrite").returncode == 0
        assert names("hol") == {"a.png", "out/a.png"}
    assert stylize("hol/out", "-o", "hol", "--overwrite").returncode == 0  # but a folder may go into the one above
    assert stylize("hol/out", "-o", "hol/out/more").returncode == 0


def test_a_picture_on_standard_output_has_nothing_said_behind_it(folder):
    save("b.png")
    content = encoded(Image.fromarray(PIXELS), format="PNG")
    assert pipe(content, "-", "b.png", folder=folder) == pipe(content, "-", folder=folder)
    assert Path("b.tiny.png").is_file()


def test_of_many_folders_one_is_named_and_the_others_counted(stylize):
    pictures = [f"{letter}/photo.png" for letter in "abcd"]
    for name in pictures:
        save(name)
    assert stylize(*pictures).stdout == "4 of 4 pictures stylized into a and 3 more folders\n"


def save_heic(name: str, orientation: int = 1) -> None:
    """A telephone's photograph, flat, so that compression changes little: red to the left of blue."""
    halves = np.repeat(np.array([[[200, 60, 20], [20, 60, 200]]], np.uint8), 16, 1).repeat(24, 0)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0110] = orientation, "Telephone"
    pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(halves)).save(name, quality=95, exif=exif.tobytes())


def test_a_telephones_heic_becomes_an_upright_jpeg(stylize, by_hand):
    save_heic("IMG_1.HEIC", orientation=6)
    assert stylize("IMG_1.HEIC", "--strength", 0).returncode == 0
    got = opened("IMG_1.tiny.jpg")
    assert got.format == "JPEG"
    assert got.size == (24, 32)
    assert got.getexif()[0x0110] == "Telephone"
    assert got.getexif().get(ORIENTATION, 1) == 1
    np.testing.assert_allclose(np.asarray(got)[4, 12], (200, 60, 20), atol=12)
    np.testing.assert_allclose(np.asarray(got)[28, 12], (20, 60, 200), atol=12)


def test_heic_in_a_folder_or_on_standard_input_is_written_as_jpeg_unless_told(stylize, folder):
    Path("roll").mkdir()
    save_heic("roll/a.heic")
    save("roll/b.png")
    assert stylize("roll", "-o", "out").returncode == 0
    assert names("out") == {"a.jpg", "b.png"}
    assert stylize("roll/a.heic", "--format", "png", "-o", "other/").returncode == 0
    assert opened("other/a.png").format == "PNG"
    assert Image.open(io.BytesIO(pipe(Path("roll/a.heic").read_bytes(), "-", folder=folder))).format == "JPEG"


def test_without_its_library_heic_is_named_and_the_rest_goes_on(stylize, monkeypatch):
    Path("roll").mkdir()
    save_heic("roll/a.heic")
    save("roll/b.png")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    done = stylize("roll", "-o", "out")
    assert done.returncode == 1
    assert names("out") == {"b.png"}
    (line,) = [line for line in done.stderr.splitlines() if "a.heic" in line]
    assert "pip install pillow-heif" in line


def test_a_format_that_the_outputs_name_contradicts_is_refused(stylize):
    save("cat.png")
    done = stylize("cat.png", "--format", "jpg", "-o", "out.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert all(word in done.stderr for word in ("out.png", "PNG", "JPEG"))
    assert not Path("out.png").exists()


def test_a_folder_gives_its_own_pictures_and_those_below_it_only_when_asked(stylize):
    for name in ("holiday/a.jpg", "holiday/deep/er/b.png"):
        save(name)
    assert stylize("holiday").returncode == 0
    assert names("holiday.tiny") == {"a.jpg"}
    assert stylize("-r", "holiday", "-o", "out").returncode == 0
    assert names("out") == {"a.jpg", "deep/er/b.png"}


def test_a_quoted_glob_gives_what_matches(stylize):
    for name in ("a.png", "b.png", "c.jpg", "deep/d.png", "deep/e.png", "deep/er/f.png"):
        save(name)
    for arguments, found in ((["*.png"], "ab"), (["**/*.png"], "de"), (["-r", "**/*.png"], "abdef")):
        assert stylize(*arguments, "-o", "out").returncode == 0
        assert names("out") == {f"{name}.png" for name in found}
        shutil.rmtree("out")


def test_a_glob_that_matches_nothing_is_one_line(stylize):
    done = stylize("*.png")
    assert_one_line(done)
    assert "*.png" in done.stderr


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif"])
def test_standard_input_goes_to_standard_output_in_its_format(folder, by_hand, suffix):
    content = encoded(Image.fromarray(PIXELS), **PILLOWS[suffix])
    got = opened(pipe(content, "-", "-o", "-", folder=folder))
    assert got.format == PILLOWS[suffix]["format"]
    expected = opened(encoded(by_hand(opened(content).convert("RGB")), **PILLOWS[suffix]))
    assert_same(got.convert("RGB"), expected.convert("RGB"))
    assert names(folder) == set()


def test_a_jpeg_with_a_preview_from_standard_input_comes_out_in_full_quality(folder, by_hand):
    content = encoded(FRAMES[0], format="MPO", save_all=True, append_images=[Image.new("RGB", (15, 10))], quality=95)
    got = opened(pipe(content, "-", "-o", "-", folder=folder))
    assert got.format == "JPEG"
    assert_same(got, opened(encoded(by_hand(opened(content)), **PILLOWS[".jpg"])))


def test_standard_input_goes_to_a_file_and_a_file_to_standard_output(folder, by_hand):
    save("photo.png")
    content = Path("photo.png").read_bytes()
    assert pipe(content, "-", "-o", "out.webp", folder=folder) == b"out.webp\n"
    assert opened("out.webp").format == "WEBP"
    got = pipe(b"", "photo.png", "-o", "-", "--format", "bmp", folder=folder)
    assert opened(got).format == "BMP"
    assert_same(opened(got), by_hand(PIXELS))


@pytest.mark.parametrize(
    "arguments",
    [["-"], ["-", "-o", "holiday"], ["-", "a.png", "-o", "new"], ["a.png", "b.png", "-o", "-"], ["holiday", "-o", "-"]],
    ids=" ".join,
)
def test_streams_that_cannot_be_are_one_line(stylize, monkeypatch, arguments):
    for name in ("a.png", "b.png", "holiday/c.png"):
        save(name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    before = names()
    assert_one_line(stylize(*arguments))
    assert names() == before


# Animations


def frames_of(image: Image.Image) -> list[tuple[float, np.ndarray]]:
    frames = []
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        frames.append((image.info["duration"], np.asarray(image.convert("RGBA")).astype(int)))
    return frames


def save_animation(path: str, frames: list[Image.Image] = FRAMES, **options) -> None:
    if path.endswith(".webp"):
        options["lossless"] = True
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=DURATIONS[: len(frames)], **options)


@pytest.mark.parametrize("to", [".png", ".webp", ".gif"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
def test_every_frame_is_stylized_with_its_duration_and_the_loops_are_kept(stylize, by_hand, suffix, to):
    save_animation(f"moving{suffix}", loop=3)
    assert stylize(f"moving{suffix}", "-o", f"out{to}").returncode == 0
    source, got = opened(f"moving{suffix}"), opened(f"out{to}")
    assert (got.n_frames, got.info["loop"]) == (4, 3)
    for number, (duration, pixels) in enumerate(frames_of(got)):
        assert duration == DURATIONS[number]
        source.seek(number)
        alone = by_hand(source.convert("RGB"))
        loss = np.asarray(opened(encoded(alone, **PILLOWS[to])).convert("RGB")).astype(int) - np.asarray(alone)
        difference = pixels[..., :3] - np.asarray(alone)
        assert np.abs(difference).mean() <= 1.2 * np.abs(loss).mean()


@pytest.mark.parametrize("to", [".gif", ".png", ".webp"])
def test_a_gif_that_plays_once_still_does(stylize, to):
    save_animation("once.gif")
    assert "loop" not in opened("once.gif").info
    assert stylize("once.gif", "-o", f"out{to}").returncode == 0
    assert opened(f"out{to}").info.get("loop") == (None if to == ".gif" else 1)


@pytest.mark.parametrize("to", [".gif", ".png", ".webp"])
@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_moving_holes_of_an_animation_stay_where_they_are(stylize, suffix, to):
    alphas = [np.full((20, 30), 255, np.uint8) for _ in range(3)]
    for number, alpha in enumerate(alphas):
        alpha[:, 10 * number : 10 * number + 10] = 0
    frames = [Image.merge("RGBA", (*f.split(), Image.fromarray(a))) for f, a in zip(FRAMES, alphas, strict=False)]
    save_animation(f"moving{suffix}", frames, **({"disposal": 2} if suffix == ".gif" else {}))
    assert stylize(f"moving{suffix}", "-o", f"out{to}").returncode == 0
    got = [pixels[..., 3] for _, pixels in frames_of(opened(f"out{to}"))]
    np.testing.assert_array_equal(got, alphas)


def test_a_turned_animation_is_upright_in_every_frame(stylize, by_hand):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save_animation("turned.png", exif=exif)
    assert stylize("turned.png", "-o", "out.png").returncode == 0
    got = opened("out.png")
    assert got.getexif()[ORIENTATION] == 1
    for (_, pixels), frame in zip(frames_of(got), FRAMES, strict=True):
        expected = by_hand(np.rot90(np.asarray(frame), -1))
        np.testing.assert_array_equal(pixels[..., :3], np.asarray(expected))


def test_an_animation_becomes_its_first_frame_where_the_format_has_no_other(stylize, by_hand):
    save_animation("moving.png")
    assert stylize("moving.png", "--format", "bmp").returncode == 0
    assert_same(opened("moving.tiny.bmp"), by_hand(FRAMES[0]))


@pytest.mark.parametrize("name", ["pages.tif", "preview.jpg"])
def test_pages_and_previews_do_not_become_an_animation(stylize, name):
    kind = "TIFF" if name == "pages.tif" else "MPO"
    save(name, FRAMES[0], format=kind, save_all=True, append_images=[Image.new("RGB", (15, 10))])
    assert opened(name).n_frames == 2
    assert stylize(name, "-o", "out.png").returncode == 0
    assert getattr(opened("out.png"), "n_frames", 1) == 1
    assert opened("out.png").size == (30, 20)


def test_an_animation_that_breaks_off_is_one_line(stylize):
    for suffix in (".gif", ".png"):
        save_animation(f"moving{suffix}")
        content = Path(f"moving{suffix}").read_bytes()
        Path(f"broken{suffix}").write_bytes(content[: len(content) * 3 // 5])
        assert_one_line(stylize(f"broken{suffix}"))
    assert not [name for name in names() if "tiny" in name]


# Modes and alpha


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_carried_over_untouched(stylize, by_hand, mode, suffix):
    picture = with_alpha() if mode == "RGBA" else Image.fromarray(np.dstack([PIXELS[..., 0], ALPHA]))
    save("photo.png", picture)
    assert stylize("photo.png", "-o", f"out{suffix}").returncode == 0
    got = opened(f"out{suffix}")
    np.testing.assert_array_equal(np.asarray(got.getchannel("A")), ALPHA)
    if suffix != ".webp":
        colours = PIXELS if mode == "RGBA" else PIXELS[..., :1].repeat(3, 2)
        assert_same(got.convert("RGB"), by_hand(colours))


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_laid_over_white_where_it_has_no_place(stylize, by_hand, suffix):
    save("photo.png", with_alpha())
    assert stylize("photo.png", "-o", f"out{suffix}", "--quality", 100).returncode == 0
    colours, alpha = np.asarray(by_hand(PIXELS)).astype(float), ALPHA[..., None] / 255
    got = np.asarray(opened(f"out{suffix}")).astype(float)
    np.testing.assert_allclose(got, colours * alpha + 255 * (1 - alpha), rtol=0, atol=5 if suffix == ".jpg" else 1)


@pytest.mark.parametrize("more", [[], ["--max-side", 20], ["--stroke", 1.5]])
def test_what_lies_under_transparent_pixels_changes_nothing(stylize, more):
    alpha = np.where(np.add.outer(np.arange(20), np.arange(30)) < 24, 255, 0).astype(np.uint8)
    alpha[3, 4], alpha[19, 29] = 0, 1
    results = []
    for hidden in (np.zeros_like(PIXELS), np.full_like(PIXELS, 255), PIXELS):
        save("photo.png", Image.fromarray(np.dstack([np.where(alpha[..., None], PIXELS, hidden), alpha])))
        assert stylize("photo.png", "--overwrite", *more).returncode == 0
        results.append(np.asarray(opened("photo.tiny.png")))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_transparent_palette_colour_stays_transparent(stylize, by_hand):
    indices = RNG.integers(0, 3, (20, 30), dtype=np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette([10, 20, 30, 200, 100, 0, 0, 50, 250])
    save("photo.png", picture, transparency=1)
    assert opened("photo.png").mode == "P"
    assert stylize("photo.png").returncode == 0
    got = opened("photo.tiny.png")
    np.testing.assert_array_equal(np.asarray(got.getchannel("A")), np.where(indices == 1, 0, 255))
    shown = fill_hidden(picture.convert("RGB"), got.getchannel("A"))
    assert_same(got.convert("RGB"), by_hand(shown))


GREY16 = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
MODES = {mode: Image.fromarray(PIXELS).convert(mode) for mode in ("1", "L", "P", "CMYK", "YCbCr")}
MODES["I;16"] = Image.fromarray(GREY16)


@pytest.mark.parametrize("to", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_stylized_as_its_rgb(stylize, by_hand, mode, to):
    save("photo.tif", MODES[mode])
    assert opened("photo.tif").mode == mode
    assert stylize("photo.tif", "-o", f"out{to}").returncode == 0
    grey = (GREY16.astype(int) * 255 + 32767) // 65535
    rgb = np.stack([grey] * 3, 2).astype(np.uint8) if mode == "I;16" else MODES[mode].convert("RGB")
    assert_same(opened(f"out{to}"), opened(encoded(by_hand(rgb), **PILLOWS[to])))


def swapped_profile() -> bytes:
    """An sRGB profile whose red and blue primaries have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?").replace(b"bXYZ", b"rXYZ").replace(b"?", b"bXYZ")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_colour_profile_is_converted_and_left_out(stylize, by_hand, suffix):
    save(f"photo{suffix}", icc_profile=swapped_profile(), **({"lossless": True} if suffix == ".webp" else {}))
    source = opened(f"photo{suffix}")
    profiles = ImageCms.ImageCmsProfile(io.BytesIO(swapped_profile())), ImageCms.createProfile("sRGB")
    assert_same(ImageCms.profileToProfile(source, *profiles), Image.fromarray(np.asarray(source)[..., ::-1]), 3)
    for to in (".png", ".tif"):
        assert stylize(f"photo{suffix}", "-o", f"out{to}").returncode == 0
        got = opened(f"out{to}")
        assert "icc_profile" not in got.info
        assert PROFILE not in got.getexif()
        assert_same(got, by_hand(ImageCms.profileToProfile(source, *profiles)))


# EXIF


def exif_data(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ARTIST], exif[ORIENTATION] = "A. Person", orientation
    exif.get_ifd(EXIF_IFD)[DATE_TAKEN] = "2020:02:29 12:34:56"
    exif.get_ifd(GPS_IFD).update({1: "N", 2: (52.0, 31.0, 12.0), 29: "1999:12:31"})
    return exif.tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("keep", [False, True], ids=["default", "--keep-gps"])
def test_exif_is_kept_but_for_the_position(stylize, suffix, keep):
    save(f"photo{suffix}", exif=exif_data())
    assert stylize(f"photo{suffix}", *["--keep-gps"] * keep).returncode == 0
    got = opened(f"photo.tiny{suffix}").getexif()
    assert got[ARTIST] == "A. Person"
    assert got.get_ifd(EXIF_IFD)[DATE_TAKEN] == "2020:02:29 12:34:56"
    position = got.get_ifd(GPS_IFD)
    assert (position.get(1), tuple(map(float, position.get(2, ())))) == (("N", (52, 31, 12)) if keep else (None, ()))
    assert (b"1999:12:31" in Path(f"photo.tiny{suffix}").read_bytes()) == keep


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_applied_and_reset(stylize, by_hand, suffix, orientation):
    save(f"photo{suffix}", exif=exif_data(orientation), **({"lossless": True} if suffix == ".webp" else {}))
    stored = PIXELS if suffix == ".tif" else np.asarray(opened(f"photo{suffix}"))  # Pillow turns a TIFF by itself
    assert stylize(f"photo{suffix}", "-o", f"out{suffix}").returncode == 0
    assert stylize(f"photo{suffix}", "-o", "out.bmp").returncode == 0
    assert opened(f"out{suffix}").getexif().get(ORIENTATION, 1) == 1
    assert opened(f"out{suffix}").getexif()[ARTIST] == "A. Person"
    assert_same(opened("out.bmp"), by_hand(np.rot90(stored, {3: 2, 6: -1}[orientation])))


def test_the_layout_of_a_tiff_does_not_become_exif(stylize):
    save("photo.tif", MODES["P"], exif=exif_data())
    for suffix in (".jpg", ".png"):
        assert stylize("photo.tif", "-o", f"out{suffix}").returncode == 0
        assert set(opened(f"out{suffix}").getexif()) == {ARTIST, ORIENTATION, EXIF_IFD}


def damaged_exif() -> list[bytes]:
    """Cut short, or with tags of wrong types."""
    whole, damaged = exif_data(6), [b"Exif\0\0", b"Exif\0\0no exif"]
    damaged += [whole[:length] for length in range(7, len(whole), 9)]
    for tag, kind in ((ARTIST, 2), (ORIENTATION, 3), (EXIF_IFD, 4), (DATE_TAKEN, 2), (GPS_IFD, 4)):
        entry = struct.pack(">HH", tag, kind)
        assert whole.count(entry) == 1
        damaged += [whole.replace(entry, struct.pack(">HH", tag, wrong)) for wrong in range(14) if wrong != kind]
    return damaged


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_does_not_refuse_a_picture(stylize, suffix):
    for number, exif in enumerate(damaged_exif()):
        save(f"photos/{number}{suffix}", exif=exif)
    done = stylize("photos", "-o", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert names("out") == names("photos")
    assert all(opened(f"out/{name}").width in (20, 30) for name in names("out"))


# Outputs


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["photo.png"], "photo.tiny.png"),
        (["photo.png", "--format", "jpg"], "photo.tiny.jpg"),
        (["photo.png", "--format", "jpeg"], "photo.tiny.jpg"),
        (["photo.png", "--format", "tiff"], "photo.tiny.tif"),
        (["photo.png", "-o", "new/out.webp"], "new/out.webp"),
        (["photo.png", "-o", "there"], "there/photo.png"),
        (["photo.png", "-o", "new/"], "new/photo.png"),
        (["photo.png", "-o", "new/er/", "--format", "jpg"], "new/er/photo.jpg"),
        (["photo.png", "-o", "out.png/"], "out.png/photo.png"),
        (["photo.png", "-o", "out", "--format", "png"], "out"),
        (["photo.png", "-o", "there", "--format", "gif"], "there/photo.gif"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_output_is_named_as_documented(stylize, arguments, written):
    save("photo.png")
    Path("there").mkdir()
    done = stylize(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{written}\n", "")
    assert names() == {"photo.png", written}
    assert opened(written).format == PILLOWS[Path(written).suffix or ".png"]["format"]


@pytest.mark.parametrize("quality", [1, 40, 100])
def test_quality_is_jpegs_and_webps(stylize, by_hand, quality):
    save("photo.png")
    for suffix in (".jpg", ".webp"):
        assert stylize("photo.png", "-o", f"out{suffix}", "--quality", quality).returncode == 0
        expected = opened(encoded(by_hand(PIXELS), **PILLOWS[suffix] | {"quality": quality}))
        assert_same(opened(f"out{suffix}"), expected)
        if suffix == ".jpg":
            assert opened("out.jpg").quantization == expected.quantization


def test_a_file_that_exists_is_replaced_only_when_asked(stylize):
    save("photo.png")
    Path("out.png").write_bytes(b"old")
    done = stylize("photo.png", "-o", "out.png")
    assert_one_line(done)
    assert "out.png" in done.stderr
    assert "--overwrite" in done.stderr
    assert Path("out.png").read_bytes() == b"old"
    assert stylize("photo.png", "-o", "out.png", "--overwrite").returncode == 0
    assert opened("out.png").size == (30, 20)
    assert names() == {"photo.png", "out.png"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["a/x.jpg", "-o", "a/x.jpg", "--overwrite"],
        ["a/x.jpg", "-o", "a", "--overwrite"],
        ["a", "-o", "a", "--overwrite"],
        ["b/x.jpg"],  # b/x.tiny.jpg is there
        ["b/y.png", "a/x.jpg", "-o", "out.png"],  # a folder, or the last of them?
        ["a", "-o", "out.jpg"],
    ],
    ids=" ".join,
)
def test_outputs_that_collide_are_refused_before_any_work(stylize, arguments):
    for name in ("a/x.jpg", "a/x.png", "b/x.jpg", "b/x.tiny.jpg", "b/y.png"):
        save(name)
    before = {name: Path(name).read_bytes() for name in names()}
    assert_one_line(stylize(*arguments))
    assert {name: Path(name).read_bytes() for name in names()} == before
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["a/x.jpg", "b/x.jpg", "-o", "out"], "out/x.jpg"),
        (["a/x.jpg", "a/x.png", "--format", "png"], "a/x.tiny.png"),
        (["a", "-o", "out", "--format", "png"], "out/x.png"),
        (["b/y.png", "b/x.jpg"], "b/y.tiny.png"),  # b/x.tiny.jpg is there
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_picture_that_is_in_anothers_way_is_told_and_the_rest_is_done(stylize, arguments, written):
    for name in ("a/x.jpg", "a/x.png", "b/x.jpg", "b/x.tiny.jpg", "b/y.png"):
        save(name)
    before = {name: Path(name).read_bytes() for name in names()}
    done = stylize(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stdout.startswith("1 of 2 pictures")
    assert names() == {*before, written}
    assert {name: Path(name).read_bytes() for name in before} == before


def test_a_folder_may_be_called_like_a_picture_where_that_is_said(stylize):
    for name in ("a.png", "b.png"):
        save(name)
    assert stylize("a.png", "b.png", "-o", "out.png/").returncode == 0
    assert names("out.png") == {"a.png", "b.png"}
    assert stylize("a.png", "b.png", "-o", "out.png", "--overwrite").returncode == 0  # for it is there


@pytest.mark.parametrize("output", ["out", "out.xyz", "new/out.JPEG2"])
def test_an_output_in_no_format_is_refused_before_its_picture_is_read(stylize, output):
    done = stylize("missing.png", "-o", output)
    assert_one_line(done)
    assert output in done.stderr
    assert "ends in /" in done.stderr
    assert names() == set()


def test_a_result_that_cannot_be_written_is_named_and_the_rest_is_done(stylize):
    for name in ("holiday/a.png", "holiday/deep/b.png", "holiday/z.png"):
        save(name)
    Path("out").mkdir()
    Path("out/deep").write_bytes(b"a file")
    done = stylize("-r", "holiday", "-o", "out")
    assert (done.returncode, done.stderr.count("\n"), done.stdout.count("\n")) == (1, 1, 1)
    assert "out/deep/b.png" in done.stderr
    assert "2 of 3 pictures" in done.stdout
    assert names("out") == {"a.png", "deep", "z.png"}


def test_a_place_that_cannot_be_written_leaves_no_half_file(stylize):
    save("photo.png")
    Path("out.png").mkdir()
    assert_one_line(stylize("photo.png", "-o", "out.png/photo.png/deeper.xyz"))
    Path("file").touch()
    assert_one_line(stylize("photo.png", "-o", "file/out.png"))
    assert names() == {"photo.png", "file"}


# Looks


@pytest.mark.parametrize("strength", [0, 0.3, 1])
def test_strength_mixes_photograph_and_stylized_picture(stylize, by_hand, strength):
    save("photo.png")
    assert stylize("photo.png", "--strength", strength).returncode == 0
    mixed = (1 - strength) * PIXELS + strength * np.asarray(by_hand(PIXELS))
    np.testing.assert_allclose(np.asarray(opened("photo.tiny.png")), mixed, rtol=0, atol=1)


def with_colors_of(stylized: np.ndarray, photograph: np.ndarray) -> np.ndarray:
    """BT.601's luminance of one and chroma of the other, in floating point."""
    weights = np.array([0.299, 0.587, 0.114])
    luminance, photographs = stylized @ weights, photograph @ weights
    blue, red = (photograph[..., 2] - photographs) / 1.772, (photograph[..., 0] - photographs) / 1.402
    red_channel, blue_channel = luminance + 1.402 * red, luminance + 1.772 * blue
    green_channel = (luminance - 0.299 * red_channel - 0.114 * blue_channel) / 0.587
    return np.stack([red_channel, green_channel, blue_channel], 2).clip(0, 255)


@pytest.mark.parametrize("strength", [1, 0.6])
def test_keep_colours_takes_luminance_from_one_and_chroma_from_the_other(stylize, by_hand, strength):
    save("photo.png")
    assert stylize("photo.png", "--keep-colours", "--strength", strength).returncode == 0
    painted = strength * np.asarray(by_hand(PIXELS)).astype(float) + (1 - strength) * PIXELS
    expected = with_colors_of(painted, PIXELS.astype(float))
    got = np.asarray(opened("photo.tiny.png"))
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.51 if strength == 1 else 1.5)  # mixing rounds down


def test_colours_may_be_spelt_otherwise(stylize):
    save("photo.png")
    for spelling in ("colours", "colors", "color", "c"):
        assert stylize("photo.png", f"--keep-{spelling}", "-o", f"{spelling}.png").returncode == 0
        assert Path(f"{spelling}.png").read_bytes() == Path("colours.png").read_bytes()


def test_a_grey_photograph_stays_grey_with_keep_colours(stylize):
    save("photo.png", PIXELS[..., 0])
    assert stylize("photo.png", "--keep-colours").returncode == 0
    assert np.ptp(np.asarray(opened("photo.tiny.png")).astype(int), axis=2).max() <= 1


@pytest.mark.parametrize(("max_side", "size"), [(10, (10, 7)), (29, (29, 19)), (30, (30, 20)), (31, (30, 20))])
def test_max_side_makes_larger_pictures_smaller_and_no_others(stylize, by_hand, max_side, size):
    save("photo.png", with_alpha())
    assert stylize("photo.png", "--max-side", max_side, "--strength", 0.5).returncode == 0
    got = opened("photo.tiny.png")
    assert got.size == size
    small = Image.fromarray(PIXELS).resize(size, Image.Resampling.LANCZOS)
    expected = (np.asarray(small).astype(float) + np.asarray(by_hand(small))) / 2
    np.testing.assert_allclose(np.asarray(got.convert("RGB")), expected, rtol=0, atol=1)
    alpha = np.asarray(Image.fromarray(ALPHA).resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.asarray(got.getchannel("A")), alpha)


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_an_underpainting_is_as_strong_as_is_said(stylize, exported, share):
    save("photo.png", Image.fromarray(PIXELS))
    assert stylize("photo.png", "--underpainting", share).returncode == 0
    expected = Stylizer(exported, threads=1, underpainting=share)(Image.fromarray(PIXELS))
    assert_same(opened("photo.tiny.png"), expected)
    assert (np.asarray(expected) != np.asarray(Stylizer(exported)(Image.fromarray(PIXELS)))).any() == (share > 0)


@pytest.mark.parametrize("stroke", [0.5, 0.8, 1 / 3])
def test_smaller_strokes_are_those_of_a_larger_picture_made_smaller_again(stylize, by_hand, stroke):
    save("photo.png", with_alpha())
    assert stylize("photo.png", "--stroke", stroke).returncode == 0
    size = (round(30 / stroke), round(20 / stroke))
    seen = Image.fromarray(PIXELS).resize(size, Image.Resampling.LANCZOS)
    expected = by_hand(seen).resize((30, 20), Image.Resampling.LANCZOS)
    expected.putalpha(Image.fromarray(ALPHA))
    assert_same(opened("photo.tiny.png"), expected)


def test_looks_go_together_and_into_every_frame(stylize, by_hand):
    save_animation("moving.png")
    assert stylize("moving.png", "--max-side", 20, "--stroke", 0.5, "--keep-colours", "--strength", 0.7).returncode == 0
    for (_, pixels), frame in zip(frames_of(opened("moving.tiny.png")), FRAMES, strict=True):
        small = frame.resize((20, 13), Image.Resampling.LANCZOS)
        stylized = by_hand(small.resize((40, 26), Image.Resampling.LANCZOS)).resize((20, 13), Image.Resampling.LANCZOS)
        photograph = np.asarray(small).astype(float)
        painted = 0.7 * np.asarray(stylized).astype(float) + 0.3 * photograph
        expected = with_colors_of(painted, photograph)
        np.testing.assert_allclose(pixels[..., :3], expected, rtol=0, atol=1.5)


# Devices, reports, mistakes


def test_the_processor_is_always_a_device_and_threads_change_nothing(stylize, by_hand):
    save("photo.png")
    for arguments in (["--device", "cpu"], ["--threads", "0"]):
        assert stylize("photo.png", "--overwrite", *arguments).returncode == 0
        assert_same(opened("photo.tiny.png"), by_hand(PIXELS))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime offers cuda"
)
def test_a_device_that_is_not_there_is_one_line_that_names_those_that_are(stylize):
    save("photo.png")
    done = stylize("photo.png", "--device", "cuda")
    assert_one_line(done)
    assert "cuda" in done.stderr
    assert "cpu" in done.stderr
    assert names() == {"photo.png"}


def test_json_has_one_line_a_picture_that_agrees_with_the_files(stylize):
    save("a.png")
    save("b.jpg", exif=exif_data(6))
    done = stylize("a.png", "b.jpg", "-o", "out", "--max-side", 15, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["input"] for one in told] == ["a.png", "b.jpg"]
    assert [one["output"] for one in told] == ["out/a.png", "out/b.jpg"]
    assert [(one["width"], one["height"]) for one in told] == [(15, 10), (10, 15)]
    assert all(opened(one["output"]).size == (one["width"], one["height"]) for one in told)
    assert all(one["seconds"] >= 0 for one in told)


def test_a_broken_picture_among_several_is_reported_and_the_rest_is_done(stylize):
    for name in ("holiday/a.png", "holiday/c.jpg"):
        save(name)
    Path("holiday/b.png").write_bytes(Path("holiday/a.png").read_bytes()[:900])
    done = stylize("holiday")
    assert (done.returncode, done.stderr.count("\n"), done.stdout.count("\n")) == (1, 1, 1)
    assert "holiday/b.png" in done.stderr
    assert "2 of 3 pictures" in done.stdout
    assert "holiday.tiny" in done.stdout
    assert names("holiday.tiny") == {"a.png", "c.jpg"}

    done = stylize("holiday", "missing.jpg", "-o", "out", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    told = {one["input"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert set(told) == {"holiday/a.png", "holiday/b.png", "holiday/c.jpg", "missing.jpg"}
    assert {name for name, one in told.items() if "error" in one} == {"holiday/b.png", "missing.jpg"}
    assert all("output" not in one for one in told.values() if "error" in one)
    assert names("out") == {"a.png", "c.jpg"}


def test_a_picture_that_its_format_cannot_hold_is_named_among_several(stylize):
    for name, width in (("a.png", 30), ("wide.png", 20_000)):
        save(name, np.zeros((1, width, 3), np.uint8))
    done = stylize("a.png", "wide.png", "-o", "out", "--format", "webp")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "wide.png" in done.stderr
    assert names("out") == {"a.webp"}


def test_a_name_that_tells_no_format_becomes_png_and_ends_no_batch(stylize):
    for name in ("a.jpg", "scan", "photo.v2"):
        save(f"{name}.png" if name != "a.jpg" else name)
    for name in ("scan", "photo.v2"):
        Path(f"{name}.png").rename(name)
    done = stylize("a.jpg", "scan", "photo.v2")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("a.tiny.jpg", "scan.tiny.png", "photo.tiny.png"):
        assert opened(name).size == opened("a.jpg").size
    assert stylize("scan", "photo.v2", "-o", "out/").returncode == 0
    assert names("out") == {"scan.png", "photo.png"}


def test_empty_standard_input_and_unknown_formats_are_told_plainly(folder, monkeypatch):
    command = [sys.executable, "-m", "nst_fast.commands.stylize", "--model", "tiny.onnx", "-"]
    for content, told in ((b"", "standard input is empty"), (b"text", "it is text")):
        done = subprocess.run(command, input=content, capture_output=True, cwd=folder)
        assert (done.returncode != 0, done.stdout, done.stderr.count(b"\n")) == (True, b"", 1)
        assert told in done.stderr.decode()


def test_a_model_says_what_it_is(stylize, exported):
    done = stylize("--info")
    assert (done.returncode, done.stderr) == (0, "")
    entries = {entry.key.removeprefix("nst_fast."): entry.value for entry in onnx.load(exported).metadata_props}
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert told.pop("device") in ("cpu", "cuda")  # what computes here, not the model
    assert told == entries
    assert entries["title"] == "Ťiny"


def test_list_has_a_line_for_each_shipped_model(stylize):
    done = stylize("--list", model="gallery")
    assert (done.returncode, done.stderr) == (0, "")
    shipped = sorted(path.stem for path in (ROOT / "checkpoints").glob("*.onnx"))
    lines = done.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines if line[0] != " ") == shipped
    assert [line.split()[0] for line in lines if line[0] == " "] == list(Stylizer("gallery").paintings)


def test_list_of_one_model_has_it_alone(stylize, exported):
    done = stylize("--list")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(exported.stem)
    assert "Ťiny" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--strength", "1.01"],
        ["--strength", "-0.5"],
        ["--strength", "nan"],
        ["--stroke", "0"],
        ["--stroke", "inf"],
        ["--stroke", "nan"],
        ["--underpainting", "1.5"],
        ["--underpainting", "nan"],
        ["--max-side", "0"],
        ["--quality", "0"],
        ["--quality", "101"],
        ["--threads", "-1"],
        ["-o", "out.xyz"],
    ],
    ids=" ".join,
)
def test_a_value_out_of_range_is_one_line_and_writes_nothing(stylize, arguments):
    save("photo.png")
    assert_one_line(stylize("photo.png", *arguments))
    assert names() == {"photo.png"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "psd"],
        ["--device", "tpu"],
        ["--quality", "good"],
        ["--pixel-range", "7"],
        ["--odd"],
        ["--stroke"],
        ["--stroke", "big"],
    ],
    ids=" ".join,
)
def test_a_value_that_is_none_is_named_below_the_usage(stylize, arguments):
    save("photo.png")
    done = stylize("photo.png", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0] in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert names() == {"photo.png"}


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def test_a_picture_that_claims_a_huge_size_is_refused_in_one_line(stylize):
    Path("bomb.png").write_bytes(png_that_claims(50_000, 50_000))
    done = stylize("bomb.png")
    assert_one_line(done)
    assert "bomb.png" in done.stderr
    assert "--huge" in done.stderr
    assert names() == {"bomb.png"}


def test_huge_opens_what_is_refused_otherwise(stylize, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save("photo.png")
    assert_one_line(stylize("photo.png"))
    assert stylize("photo.png", "--huge").returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="a signal to a process is POSIX")
def test_interrupted_folder_leaves_whole_pictures_and_no_others(folder):
    save("holiday/0.jpg", np.tile(PIXELS, (24, 24, 1)))
    for number in range(1, 200):
        shutil.copy("holiday/0.jpg", f"holiday/{number}.jpg")
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have ignored it
    script += "from nst_fast.commands.stylize import main; main()"
    command = [sys.executable, "-c", script, "--model", "tiny.onnx", "--threads", "1", "holiday", "-o", "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(Path("out").glob("*.jpg")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "stylize: interrupted\n")
    written = names("out")
    assert 0 < len(written) < 200
    assert written < names("holiday")
    assert all(opened(f"out/{name}").size == (720, 480) for name in written)


@pytest.mark.skipif(os.name == "nt", reason="a signal to a process is POSIX")
def test_json_tells_of_each_picture_once_it_is_written_and_of_no_other(folder):
    save("holiday/0.jpg", np.tile(PIXELS, (24, 24, 1)))
    for number in range(1, 200):
        shutil.copy("holiday/0.jpg", f"holiday/{number}.jpg")
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from nst_fast.commands.stylize import main; main()"
    command = [sys.executable, "-c", script, "--model", "tiny.onnx", "--threads", "1", "holiday", "-o", "out", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        assert Path(json.loads(first)["output"]).is_file()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    told = [json.loads(line)["output"] for line in (first + rest).splitlines()]
    assert {f"out/{name}" for name in names("out")} == set(told)
    assert len(told) == len(set(told)) < 200


def test_several_pictures_at_once_come_out_as_one_at_a_time(stylize):
    for number in range(12):
        save(f"holiday/{number}.png", np.tile(np.roll(PIXELS, number, 1), (4 + number, 9, 1)))
    assert stylize("holiday", "-o", "one", "--threads", 1).returncode == 0
    assert stylize("holiday", "-o", "three", "--threads", min(3, os.cpu_count())).returncode == 0
    for name in names("one"):
        assert Path("one", name).read_bytes() == Path("three", name).read_bytes()


def test_pictures_at_once_stay_within_the_pixels_and_larger_ones_run_alone():
    budget, lock, inside, seen = PixelBudget(10), threading.Lock(), [], []

    def work(pixels):
        with budget.spend(pixels):
            with lock:
                inside.append(pixels)
                seen.append(list(inside))
            time.sleep(0.002)
            with lock:
                inside.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 5, 9, 40, 2, 2, 2, 2, 2, 10, 7, 3, 11] * 5))
    assert all(sum(together) <= 10 or len(together) == 1 for together in seen)
    assert max(map(len, seen)) > 1


# In other programs


def test_a_folder_is_stylized_without_a_command(stylize, exported, capfd):
    save("holiday/a.png")
    save("holiday/deep/c.jpg")
    Path("holiday/b.png").write_text("no picture")
    looks, saving = Looks(strength=0.6, keep_colours=True, max_side=20), Saving(suffix=".png")
    jobs = find_jobs(["holiday"], "out/", "tiny", ".png", recursive=True)
    results = list(stylize_jobs(jobs, Stylizer(exported, threads=1), looks, saving))
    assert [(r.input, r.output, r.width, r.height) for r in results] == [
        ("holiday/a.png", Path("out/a.png"), 20, 13),
        ("holiday/b.png", None, 0, 0),
        ("holiday/deep/c.jpg", Path("out/deep/c.png"), 20, 13),
    ]
    assert [r.error is None for r in results] == [True, False, True]
    assert "holiday/b.png" in results[1].error
    assert capfd.readouterr() == ("", "")
    options = ("--strength", 0.6, "--keep-colours", "--max-side", 20, "--format", "png")
    assert stylize("holiday", "-r", "-o", "again", *options).returncode == 1
    assert names("out") == names("again") == {"a.png", "deep/c.png"}
    for name in names("out"):
        assert Path("out", name).read_bytes() == Path("again", name).read_bytes()


def test_results_may_be_left_before_the_end(folder, exported):
    save("a.png")
    jobs = [Job(Path("a.png"), Path(f"{number}.png")) for number in range(200)]
    results = stylize_jobs(jobs, Stylizer(exported, threads=1))
    assert isinstance(next(results), Result)
    results.close()
    assert "199.png" not in names()


def test_what_is_under_way_at_an_interruption_is_told_and_no_other_picture_is_begun(folder, exported):
    save("a.png")
    jobs = [Job(Path("a.png"), Path(f"{number}.png")) for number in range(200)]
    results = stylize_jobs(jobs, Stylizer(exported, threads=1))
    told = [next(results), next(results)]
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        told.append(results.throw(KeyboardInterrupt))
        for result in results:
            told.append(result)
    assert [result.output for result in told] == [job.target for job in jobs[: len(told)]]
    assert len(told) < len(jobs)
    assert names() - {"a.png"} == {str(result.output) for result in told}


# Models of other projects


@pytest.mark.skipif(not PEERS.is_dir(), reason="the peers' models in shared/peers are not here")
def test_a_model_of_another_project_runs_once_its_input_is_described(stylize):
    path, picture = PEERS / "winml_candy_720.onnx", np.tile(PIXELS, (36, 24, 1))
    save("photo.png", picture)
    done = stylize("photo.png", model=path)
    assert_one_line(done)
    assert "--pixel-range" in done.stderr
    assert "--bgr" in done.stderr
    assert names() == {"photo.png"}

    assert stylize("photo.png", "--pixel-range", 255, "--bgr", model=path).returncode == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = picture[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    (output,) = session.run(None, {session.get_inputs()[0].name: fed})
    expected = output[0].transpose(1, 2, 0)[..., ::-1].clip(0, 255)
    np.testing.assert_allclose(np.asarray(opened(f"photo.{path.stem}.png")), expected, rtol=0, atol=0.501)
