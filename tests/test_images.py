"""Reading pictures as 8-bit sRGB, writing them in one step, finding them in folders."""

import errno
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

from nst_fast.errors import UserError
from nst_fast.stylizing.folders import find_pictures, search
from nst_fast.stylizing.images import fill_hidden, load_image, resize_short_side, save_image, to_rgb

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def red_and_blue_swapped() -> bytes:
    """An sRGB profile whose red and blue primaries have changed places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swap = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    (tags,) = struct.unpack_from(">I", profile, 128)
    for start in range(132, 132 + 12 * tags, 12):
        name = bytes(profile[start : start + 4])
        profile[start : start + 4] = swap.get(name, name)
    return bytes(profile)


def assert_refused(path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        load_image(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "photo.png")), UPRIGHT[orientation](PIXELS))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 256 * 9).astype(np.uint16).reshape(48, 48)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = (grey.astype(int) * 255 + 32767) // 65535
    got = np.asarray(load_image(tmp_path / "grey.png"))
    np.testing.assert_array_equal(got, np.repeat(expected[:, :, None], 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    channels = RNG.integers(0, 256, (16, 16, len(mode)), dtype=np.uint8)
    Image.fromarray(channels, None).save(tmp_path / "alpha.png")
    colour, alpha = channels[..., :-1].astype(float), channels[..., -1:].astype(float)
    expected = np.broadcast_to((colour * alpha + 255 * (255 - alpha)) / 255, (16, 16, 3))
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "alpha.png")), expected, atol=1)


def test_transparent_palette_colour_becomes_white(tmp_path):
    indices = RNG.integers(0, 3, (8, 8), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 50, 250])
    image.save(tmp_path / "palette.png", transparency=1)
    colours = np.array([[10, 20, 30], [255, 255, 255], [0, 50, 250]])
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "palette.png")), colours[indices])


def test_cmyk_inks_become_their_colours(tmp_path):
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]]], np.uint8)
    colours = [[[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]]
    Image.frombytes("CMYK", (5, 1), inks.tobytes()).save(tmp_path / "print.tif")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "print.tif")), colours)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_one_bit_get_three_equal_channels(tmp_path, mode):
    grey = RNG.integers(0, 2, (9, 7), dtype=np.uint8) * 255 if mode == "1" else PIXELS[..., 0]
    Image.fromarray(grey).convert(mode).save(tmp_path / "grey.png")
    got = np.asarray(load_image(tmp_path / "grey.png"))
    np.testing.assert_array_equal(got, np.repeat(grey[:, :, None], 3, 2))


def test_srgb_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", icc_profile=profile)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "photo.png")).astype(int), PIXELS, atol=1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_icc_profile_is_applied(tmp_path, mode):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 90, 20]]], np.uint8)
    image = Image.fromarray(colours).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "photo.png", icc_profile=red_and_blue_swapped())
    got = np.asarray(load_image(tmp_path / "photo.png")).astype(int)
    np.testing.assert_allclose(got, colours[..., ::-1], atol=2)


@pytest.mark.parametrize("profile", [b"no profile", red_and_blue_swapped()[:200]], ids=["garbage", "truncated"])
def test_broken_icc_profile_is_passed_over(tmp_path, profile):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png", icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "photo.png")), PIXELS)


def test_rgb_profile_in_a_grey_picture_is_passed_over(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png", icc_profile=red_and_blue_swapped())
    got = np.asarray(load_image(tmp_path / "grey.png"))
    np.testing.assert_array_equal(got, np.repeat(PIXELS[..., :1], 3, 2))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_truncated_picture_is_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.tile(PIXELS, (9, 9, 1))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(path)


@pytest.mark.parametrize("content", [b"", b"just words\nand more words\n", bytes(RNG.bytes(500))])
def test_file_that_is_no_picture_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    assert_refused(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["missing.jpg", ".", "x" * 300 + ".jpg"], ids=["missing", "folder", "name too long"])
def test_missing_picture_is_refused_in_one_line(tmp_path, name):
    assert_refused(tmp_path / name)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 1000), (7, 5000), (900, 1), (64, 64)])
@pytest.mark.parametrize("short_side", [1, 2, 37])
def test_resizing_sets_the_short_side_and_keeps_proportions(size, short_side):
    got = resize_short_side(Image.new("L", size), short_side).size
    assert min(got) == short_side
    for before, after in zip(size, got, strict=True):
        assert abs(after * min(size) - before * short_side) <= min(size) / 2


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tiff"])
def test_lossless_formats_round_trip_exactly(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    save_image(Image.fromarray(PIXELS), path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), PIXELS)


def test_jpeg_is_quality_95_without_chroma_subsampling(tmp_path):
    image = Image.fromarray(np.tile(PIXELS, (4, 4, 1)))
    save_image(image, tmp_path / "out.jpg")
    image.save(tmp_path / "pillow.jpg", quality=95)
    with Image.open(tmp_path / "out.jpg") as ours, Image.open(tmp_path / "pillow.jpg") as pillows:
        assert JpegImagePlugin.get_sampling(ours) == 0
        assert ours.quantization == pillows.quantization


def test_saving_makes_folders_and_leaves_nothing_but_the_picture(tmp_path):
    path = tmp_path / "new" / "folder" / "out.png"
    for _ in range(2):
        save_image(Image.fromarray(PIXELS), path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    save_image(Image.fromarray(PIXELS), tmp_path / "out.png")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["out.txt", "out", "out.onnx", "out.psd", "out.xbm"])
def test_format_that_cannot_be_written_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match="cannot write"):
        save_image(Image.fromarray(PIXELS), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_picture_too_wide_for_its_format_is_a_user_error_and_the_old_file_stays(tmp_path):
    (tmp_path / "out.jpg").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot write"):
        save_image(Image.new("RGB", (70_000, 1)), tmp_path / "out.jpg")
    assert (tmp_path / "out.jpg").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_place_that_cannot_be_written_is_a_user_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "out.png", tmp_path / "file" / "deeper" / "out.png", tmp_path / "folder.png"):
        with pytest.raises(UserError, match="cannot write") as refusal:
            save_image(Image.fromarray(PIXELS), path)
        assert "\n" not in str(refusal.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder.png"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_pictures_are_found_below_a_folder_and_sorted(tmp_path):
    names = ["b.jpg", "a.PNG", "deep/er/c.webp", "deep/a.tif", "z.JPEG"]
    for name in [*names, "notes.txt", "deep/model.onnx", "jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    found = find_pictures(tmp_path)
    assert found == sorted(found)
    assert {p.relative_to(tmp_path).as_posix() for p in found} == set(names)


def test_linked_folders_are_looked_into_once_and_never_round(tmp_path):
    for name in ("tree/a.jpg", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("linked", tmp_path / "elsewhere"), ("again", tmp_path / "elsewhere"), ("up", tmp_path)):
        (tmp_path / "tree" / link).symlink_to(target)
    found = [path.relative_to(tmp_path / "tree") for path in find_pictures(tmp_path / "tree")]
    assert sorted(path.name for path in found) == ["a.jpg", "b.png"]
    assert search(tmp_path / "tree", recursive=False).pictures == [tmp_path / "tree" / "a.jpg"]


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey with a gamma, written by hand."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256)),
        b"wtpt": b"XYZ \0\0\0\0" + white,
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"g\0" + b"\0" * 80,
        b"cprt": b"text\0\0\0\0g\0\0\0",
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    header = bytearray(128)
    header[8:10], header[12:24], header[36:40], header[68:80] = b"\x02\x10", b"mntrGRAYXYZ ", b"acsp", white
    header[:4] = struct.pack(">I", 128 + len(table) + len(body))
    return bytes(header) + table + body


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_profile_of_grey_is_applied_whatever_comes_with_the_grey(tmp_path, mode):
    picture = Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)) if mode == "I;16" else Image.new(mode, (2, 2), 128)
    if mode == "LA":
        picture.putalpha(255)
    picture.save(tmp_path / "grey.png", icc_profile=grey_profile(1.0))
    linear = 128 / 255
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)  # sRGB, IEC 61966-2-1
    assert np.asarray(load_image(tmp_path / "grey.png"))[0, 0] == pytest.approx(expected, abs=1.5)


def test_a_grey_of_16_bits_that_is_transparent_becomes_white(tmp_path):
    levels = np.array([[0, 20000, 40000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png", transparency=20000)
    assert np.asarray(load_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 255, 156, 255]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_was_turned_is_not_turned_again(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    Image.fromarray(PIXELS).save(tmp_path / f"photo{suffix}", exif=exif)
    once = load_image(tmp_path / f"photo{suffix}")
    np.testing.assert_array_equal(np.asarray(to_rgb(once)), np.asarray(once))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (200, 3)])
def test_hidden_pixels_take_the_colours_around_them(size):
    rng = np.random.default_rng(1)
    alpha = Image.fromarray((rng.random(size) < 0.2).astype(np.uint8) * 255)
    alpha.putpixel((0, 0), 1)
    noise = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    one = Image.composite(Image.new("RGB", noise.size, (200, 30, 90)), noise, alpha.point(lambda a: 255 * (a > 0)))
    filled = np.asarray(fill_hidden(one, alpha)).astype(int)
    assert np.abs(filled - (200, 30, 90)).max() <= 4  # rounded at each of eight halvings
    visible = np.asarray(alpha) > 0
    np.testing.assert_array_equal(np.asarray(fill_hidden(noise, alpha))[visible], np.asarray(noise)[visible])
    nothing = Image.new("L", noise.size, 0)
    assert fill_hidden(noise, nothing) is noise


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_floating_point_grey_is_scaled_by_its_range(tmp_path, white):
    levels = np.array([[0, 0.25, 0.5, 1, np.nan, np.inf, -1]], np.float32)
    Image.fromarray(levels * white).save(tmp_path / "grey.tif")
    assert np.array(load_image(tmp_path / "grey.tif"))[0].tolist() == [[v] * 3 for v in (0, 64, 128, 255, 0, 0, 0)]


@pytest.mark.parametrize("white", [65535, 2**31 - 1])
def test_grey_of_32_bits_is_scaled_by_its_range(tmp_path, white):
    levels = np.array([[0, 0.25, 0.5, 1]])
    Image.fromarray(np.ceil(levels * white).astype(np.int32)).save(tmp_path / "grey.tif")
    assert np.asarray(load_image(tmp_path / "grey.tif"))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_empty_and_missing_folders_are_user_errors(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no pictures in") as empty:
        find_pictures(tmp_path)
    assert all(suffix in str(empty.value) for suffix in (".jpg", ".png", ".webp", ".tif"))
    for path in (tmp_path / "missing", tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="no folder at"):
            find_pictures(path)


def test_interruption_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_image(Image.fromarray(PIXELS), tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


@pytest.mark.parametrize("opaque", [False, True])
def test_a_tga_of_32_bits_that_uses_24_is_no_hidden_picture(tmp_path, opaque):
    alpha = np.zeros((4, 6), np.uint8)
    alpha[0, 0] = 255 * opaque
    pixels = np.dstack([np.full((4, 6, 3), 90, np.uint8), alpha])
    Image.fromarray(pixels).save(tmp_path / "a.tga")
    got = np.asarray(load_image(tmp_path / "a.tga"))
    assert got[0, 0].tolist() == [90] * 3
    assert got[3, 5].tolist() == ([255] * 3 if opaque else [90] * 3)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "a.png")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot be read as a picture: permission denied"):
        load_image(tmp_path / "a.png")
