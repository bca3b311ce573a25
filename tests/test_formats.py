"""One table of formats: read, found, holding alpha, animated, written; and which files of a folder are photographs."""

import errno
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nst_fast.commands.stylize import FORMATS, USAGE
from nst_fast.errors import UserError
from nst_fast.stylizing import folders
from nst_fast.stylizing.folders import find_pictures, search
from nst_fast.stylizing.formats import OF_SUFFIX, SUFFIXES, TABLE, described, format_of, written_as
from nst_fast.stylizing.images import encode_image, load_image, open_image
from nst_fast.stylizing.looks import Looks, stylize_picture

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (12, 20, 4), dtype=np.uint8)
WRITTEN = [kind for kind in TABLE if kind.written and kind.read and not kind.video]
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "GIF", "BLP", "MSP", "XBM", "ICNS", "DDS")


@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind.becomes is None], ids=lambda kind: kind.suffixes[0])
def test_what_the_table_says_of_a_format_is_what_its_files_hold(tmp_path, kind):
    for number, suffix in enumerate(kind.suffixes):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(encode_image(Image.fromarray(PIXELS if kind.alpha else PIXELS[..., :3]), suffix))
        with open_image(path) as image:
            assert image.size == (20, 12)
            assert ("A" in image.getbands()) == kind.alpha or kind.name == "GIF"
        if kind.name not in LOSSY and not kind.alpha:
            np.testing.assert_array_equal(np.asarray(load_image(path)), PIXELS[..., :3])
        assert written_as(suffix) == suffix
    assert len(find_pictures(tmp_path)) == len(kind.suffixes)


@pytest.mark.parametrize("kind", [k for k in WRITTEN if k.animated and k.becomes is None], ids=lambda kind: kind.name)
def test_an_animated_format_holds_frames(kind):
    frames = [Image.fromarray(RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)) for _ in range(3)]
    content = encode_image(frames[0], kind.suffixes[0], save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3


ANIMATED = [kind.suffixes[0] for kind in WRITTEN if kind.animated and kind.becomes is None]


class Negative:
    """A model that inverts."""

    @staticmethod
    def stylize(picture: Image.Image, *_: object) -> Image.Image:
        return Image.fromarray(255 - np.asarray(picture))


@pytest.mark.parametrize("to", ANIMATED)
@pytest.mark.parametrize("suffix", ANIMATED)
def test_every_animated_format_becomes_every_other(suffix, to):
    levels = (40, 120, 200)
    frames = [Image.new("RGB", (32, 16), (level, level, level)) for level in levels]
    options = {"save_all": True, "append_images": frames[1:], "duration": [50, 120, 70]}
    with open_image(io.BytesIO(encode_image(frames[0], suffix, **options))) as image:
        result, options = stylize_picture("moving", image, Negative(), Looks(), to)
        got = Image.open(io.BytesIO(encode_image(result, to, **options)))
    shown = []
    for number in range(got.n_frames):
        got.seek(number)
        got.load()
        shown.append((got.convert("RGB").getpixel((8, 8))[0], round(got.info["duration"])))
    for (level, duration), (given, lasting) in zip(shown, zip(levels, (50, 120, 70), strict=True), strict=True):
        assert level == pytest.approx(255 - given, abs=4)
        assert duration == lasting


def pages(count: int, **of_others: int) -> bytes:
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        for number in range(count):
            file.write(PIXELS[..., :3], photometric="rgb", metadata=None, **(of_others if number else {}))
    return content.getvalue()


def moving(suffix: str) -> bytes:
    frames = [Image.new("RGB", (32, 16), (level, level, level)) for level in (40, 120)]
    return encode_image(frames[0], suffix, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("content", "to", "told"),
    [
        (pages(3), ".tif", True),
        (pages(2, subfiletype=2), ".png", True),
        (pages(2, subfiletype=1), ".tif", False),
        (pages(1), ".tif", False),
        *((moving(suffix), to, to == ".jpg") for suffix in ANIMATED for to in (".jpg", ".webp")),
        (encode_image(Image.new("RGB", (8, 8)), ".gif"), ".jpg", False),
    ],
)
def test_pictures_behind_the_first_that_are_left_out_are_told(content, to, told, caplog):
    with open_image(io.BytesIO(content)) as image:
        stylize_picture("album/a", image, Negative(), Looks(), to)
    assert ("album/a holds several pictures; the first alone is stylized" in caplog.text) == told


@pytest.mark.parametrize("suffix", [s for s, kind in OF_SUFFIX.items() if kind.read])
def test_every_format_that_is_read_becomes_one_that_is_written(suffix):
    assert format_of(written_as(suffix), video=True).written
    assert written_as(suffix.upper()).lower() == written_as(suffix)


@pytest.mark.parametrize("suffix", [".psd", ".xpm", ".fits", ".cur", ".xyz", "", ".mp4"])
def test_what_cannot_be_written_says_so(suffix):
    with pytest.raises(UserError, match=r"use \.png or \.jpg"):
        format_of(suffix)
    assert written_as(suffix) == (".mp4" if suffix == ".mp4" else ".png")


def test_help_and_guide_have_the_table():
    assert described() in (ROOT / "docs" / "guide" / "stylize.md").read_text()
    for suffix in FORMATS.values():
        assert suffix[1:] in USAGE
    assert {"jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif"} <= FORMATS.keys()


def test_a_photoshop_file_is_read(tmp_path):
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 12, 20, 8, 3) + bytes(14)
    (tmp_path / "art.psd").write_bytes(header + PIXELS[..., :3].transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "art.psd")), PIXELS[..., :3])


@pytest.mark.parametrize(("size", "fits"), [((256, 200), True), ((257, 10), False)])
def test_an_icon_keeps_its_size_or_is_refused_with_the_largest(size, fits):
    if fits:
        assert Image.open(io.BytesIO(encode_image(Image.new("RGBA", size), ".ico"))).size == size
    else:
        with pytest.raises(UserError, match="256×256"):
            encode_image(Image.new("RGBA", size), ".ico")


# Folders


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in search(folder).pictures}


def test_a_folder_gives_every_format_and_counts_what_it_leaves_out(tmp_path, caplog):
    touch(tmp_path, *(f"a{suffix.upper()}" for suffix in SUFFIXES), "notes.txt", "b.mov", "c.MOV", "raw.dng", "README")
    touch(tmp_path, ".hidden.txt", "Thumbs.db", "desktop.ini")
    assert len(found(tmp_path)) == len(SUFFIXES)
    told = f"{tmp_path}: left out, in no known format of pictures: 1 .dng, 2 .mov, 1 .txt, 1 without suffix"
    assert caplog.messages == [told]


def test_hidden_files_and_caches_are_no_photographs(tmp_path):
    touch(tmp_path, "a.jpg", "holiday/b.jpg", "thumbnails/c.jpg")
    touch(tmp_path, "._a.jpg", ".trashed-1-a.jpg", ".thumbnails/a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg")
    touch(tmp_path, "__MACOSX/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg", "Photos Previews.lrdata/a.jpg")
    assert found(tmp_path) == {"a.jpg", "holiday/b.jpg", "thumbnails/c.jpg"}
    assert found(tmp_path / ".thumbnails") == {"a.jpg"}  # it was asked for by name


@pytest.mark.parametrize("beside", ["checkpoints/last.ckpt", "samples/0.png", "trace.json", "snapshots/1.png"])
def test_what_our_own_runs_left_is_no_photograph(tmp_path, beside):
    run = "runs/train/my/2026"
    touch(tmp_path, "a.jpg", f"{run}/config.yaml", f"{run}/{beside}", f"{run}/samples/1.png", f"{run}/deep/er/2.png")
    touch(tmp_path, "comparison/report.html", "comparison/report.json", "comparison/c.png")
    touch(tmp_path, "settings/config.yaml", "settings/b.jpg")
    assert found(tmp_path) == {"a.jpg", "settings/b.jpg"}
    assert "deep/er/2.png" in found(tmp_path / run)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    assert search(tmp_path).unreadable == [(tmp_path / "closed", "Permission denied")]
    with pytest.raises(UserError, match="closed cannot be read: permission denied; make it readable, or name a folder"):
        find_pictures(tmp_path)
    with pytest.raises(UserError, match="closed cannot be read: permission denied"):
        search(tmp_path / "closed")
