"""TIFF by its own tags against tifffile's arrays and bytes written by hand; colours against their standards."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from nst_fast.errors import UserError
from nst_fast.stylizing.exif import into_tiff
from nst_fast.stylizing.images import load_image, open_image, split_alpha, to_rgb

LIGHT = np.linspace(0, 1, 20 * 30 * 3).reshape(20, 30, 3)
GREY = LIGHT[..., :1].repeat(3, 2)


def assert_shows(path: Path, light: np.ndarray, tolerance: float = 1) -> None:
    np.testing.assert_allclose(np.asarray(load_image(path)).astype(float), light * 255, atol=tolerance)


def integers(light: np.ndarray, bits: int) -> np.ndarray:
    return (light * (2**bits - 1)).round().astype(f"u{(bits + 7) // 8 if bits != 12 else 2}")


# TIFF


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("kind", ["rgb", "separated"])
def test_planes_and_pixels_of_any_depth_give_the_same(tmp_path, kind, bits, planar, compression):
    values = integers(LIGHT, bits)
    if kind == "separated":
        values = np.dstack([2**bits - 1 - values, 0 * values[..., :1]]).astype(values.dtype)
    if planar == "separate":
        values = values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=kind, planarconfig=planar, compression=compression)
    assert_shows(tmp_path / "a.tif", LIGHT)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_grey_is_no_negative(tmp_path, kind, bits, tile, byteorder):
    values = integers(LIGHT[..., 0] if kind == "minisblack" else 1 - LIGHT[..., 0], bits)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=kind, tile=tile, byteorder=byteorder)
    assert_shows(tmp_path / "a.tif", GREY)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_in_floating_point_is_read(tmp_path, dtype, planar):
    values = LIGHT.astype(dtype) if planar == "contig" else LIGHT.astype(dtype).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=planar)
    assert_shows(tmp_path / "a.tif", LIGHT)


def packed_tiff(values: np.ndarray, bits: int, photometric: int, deflate: bool, planar: bool) -> bytes:
    """A TIFF of samples (H, W, channels) with any number of bits, a strip of 7 rows each, big-endian."""
    height, width, channels = values.shape
    planes = [values[..., [c]] for c in range(channels)] if planar else [values]
    strips = []
    for plane in planes:
        for top in range(0, height, 7):
            rows = ["".join(f"{v:0{bits}b}" for v in row.ravel()) for row in plane[top : top + 7]]
            content = b"".join(int(r.ljust(-(-len(r) // 8) * 8, "0"), 2).to_bytes(-(-len(r) // 8), "big") for r in rows)
            strips.append(zlib.compress(content) if deflate else content)
    body = struct.pack(f">{channels}H", *[bits] * channels)
    at_bits, place, starts = 8, 8 + len(body), []
    for strip in strips:
        starts.append(place)
        place += len(strip)
    lists = struct.pack(f">{len(strips)}I", *starts), struct.pack(f">{len(strips)}I", *map(len, strips))
    at_lists = place, place + len(lists[0])
    entries = [(256, 4, 1, width), (257, 4, 1, height), (259, 4, 1, 8 if deflate else 1), (262, 4, 1, photometric)]
    entries += [(258, 3, channels, at_bits if channels > 2 else bits << 16), (273, 4, len(strips), at_lists[0])]
    entries += [(277, 4, 1, channels), (278, 4, 1, 7), (279, 4, len(strips), at_lists[1]), (284, 4, 1, 1 + planar)]
    table = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *e) for e in sorted(entries)) + bytes(4)
    head = b"MM\0*" + struct.pack(">I", at_lists[1] + len(lists[1]))
    return head + body + b"".join(strips) + b"".join(lists) + table


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize(("photometric", "channels"), [(0, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize(("deflate", "planar"), [(False, False), (True, False), (False, True)])
def test_odd_numbers_of_bits_are_neither_dark_nor_scrambled(tmp_path, bits, photometric, channels, deflate, planar):
    light = LIGHT[..., :channels] if photometric else 1 - LIGHT[..., :1]
    values = (light * (2**bits - 1)).round().astype(int)
    (tmp_path / "a.tif").write_bytes(packed_tiff(values, bits, photometric, deflate, planar))
    assert_shows(tmp_path / "a.tif", LIGHT if channels == 3 else GREY)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_of_16_bits_is_alpha_where_the_file_says_so(tmp_path, channels, kind):
    alpha = np.full((20, 30, 1), 0.5)
    colour = LIGHT[..., :channels] * (alpha if kind == "assocalpha" else 1)
    values = integers(np.dstack([colour, alpha]), 16).transpose(2, 0, 1)
    name = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric=name, planarconfig="separate", extrasamples=[kind], metadata=None
    )
    with open_image(tmp_path / "a.tif") as image:
        picture, got = split_alpha(image)
    assert (got is None) == (kind == "unspecified")
    np.testing.assert_allclose(np.asarray(picture), 255 * (LIGHT if channels == 3 else GREY), atol=2)
    if got is not None:
        np.testing.assert_allclose(np.asarray(got), 127.5, atol=1)


def write_with_preview(path: Path, full: np.ndarray, below: bool, **tags: object) -> None:
    preview = np.full((5, 8, 3), 90, np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(preview, photometric="rgb", subfiletype=1, **({"subifds": 1} if below else {}))
        file.write(full, subfiletype=0, **tags)


@pytest.mark.parametrize("below", [False, True], ids=["behind", "below"])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_full_picture_is_read_not_the_preview_before_it(tmp_path, below, bits):
    write_with_preview(tmp_path / "a.tif", integers(LIGHT, bits), below, photometric="rgb")
    assert_shows(tmp_path / "a.tif", LIGHT)


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("name", ["IMG_1.dng", "DSC_1.NEF", "a.tif"])
@pytest.mark.parametrize("photometric", [32803, 34892])
def test_a_cameras_raw_file_is_refused_whatever_preview_it_has(tmp_path, name, below, photometric):
    full = integers(LIGHT[..., 0] if photometric == 32803 else LIGHT, 16)
    write_with_preview(tmp_path / name, full, below, photometric=photometric)
    with pytest.raises(UserError, match="camera's raw file"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("dtype", ["i1", "i2", "c8"])
def test_numbers_that_are_no_light_are_refused_with_the_reason(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", (LIGHT[..., 0] * 100).astype(dtype), photometric="minisblack")
    with pytest.raises(UserError, match="signed or complex"):
        load_image(tmp_path / "a.tif")


def test_a_tiff_that_was_cut_short_is_no_dark_picture(tmp_path):
    content = io.BytesIO()
    tifffile.imwrite(content, integers(LIGHT[..., 0], 16), photometric="miniswhite")
    (tmp_path / "a.tif").write_bytes(content.getvalue()[:-200])
    with pytest.raises(UserError, match="cut short"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_read_by_its_tags_is_upright_as_pillows_is(tmp_path, orientation):
    for name, bits in (("a.tif", 8), ("b.tif", 16)):
        values = integers(LIGHT, bits).transpose(2, 0, 1)
        tag = (274, "H", 1, orientation, True)
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", planarconfig="separate", extratags=[tag])
    by_pillow, by_tags = (np.asarray(load_image(tmp_path / name)).astype(int) for name in ("a.tif", "b.tif"))
    np.testing.assert_allclose(by_tags, by_pillow, atol=1)


def test_a_tiffs_lab_is_converted(tmp_path):
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[..., 0] = 128  # L* = 50.2: sRGB 119
    tifffile.imwrite(tmp_path / "a.tif", lab, photometric="cielab")
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.tif")), 119, atol=1)


def test_training_sees_the_same_pictures(tmp_path, monkeypatch):
    content_images = pytest.importorskip("nst_fast.training.content_images")
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    tifffile.imwrite(tmp_path / "a.tif", integers(1 - LIGHT[..., 0], 16), photometric="miniswhite")
    write_with_preview(tmp_path / "b.tif", integers(LIGHT, 16), True, photometric="rgb")
    photographs = content_images.FolderImages(tmp_path, 16, 0)  # of 20 px: as they are
    assert photographs.shapes == [(20, 30, 3)] * 2
    kept = np.asarray(photographs.pixels).reshape(2, 20, 30, 3)
    np.testing.assert_allclose(kept, [255 * GREY, 255 * LIGHT], atol=1)


# Colours

COLOURS = np.array([[100, 150, 80], [200, 120, 90], [128, 128, 128], [60, 90, 140]], np.uint8)
# From numbers in light to XYZ: Adobe RGB (1998), 4.3.5.3, and IEC 61966-2-1.
ADOBE = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
SRGB = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def in_srgb(light: np.ndarray) -> np.ndarray:
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0, 1) ** (1 / 2.4) - 0.055).clip(0, 1)


ADOBE_IN_SRGB = in_srgb((COLOURS / 255) ** (563 / 256) @ ADOBE.T @ np.linalg.inv(SRGB).T)


def exif(space: int | None, index: str | None) -> Image.Exif:
    made = Image.Exif()
    made[0x010F] = "Maker"
    inner = made.get_ifd(0x8769)
    if space is not None:
        inner[0xA001] = space
    if index is not None:
        inner[0xA005] = {1: index}
    return made


def save_colours(path: Path, **options: object) -> None:
    image = Image.fromarray(COLOURS[None].repeat(8, 0).repeat(8, 1))
    image.save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}), **options)


def colours_of(path: Path) -> np.ndarray:
    return np.asarray(load_image(path))[4, 4::8].astype(float)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize(
    ("space", "index", "adobe"),
    [
        (65535, "R03", True),
        (2, None, True),
        (None, "R03", True),
        (1, "R98", False),
        (65535, "R98", False),
        (65535, None, False),
        (1, "R03", False),
        (None, None, False),
    ],
)
def test_a_colour_space_that_exif_alone_tells_is_converted(tmp_path, suffix, space, index, adobe):
    path, told = tmp_path / f"a{suffix}", exif(space, index).tobytes()
    save_colours(path, **({} if suffix == ".tif" else {"exif": told}))
    if suffix == ".tif":  # Pillow writes a directory within a directory nowhere in it
        path.write_bytes(into_tiff(path.read_bytes(), told))
    np.testing.assert_allclose(colours_of(tmp_path / f"a{suffix}"), ADOBE_IN_SRGB if adobe else COLOURS, atol=2)


def test_a_profile_counts_for_more_than_exif(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save_colours(tmp_path / "a.jpg", exif=exif(65535, "R03"), icc_profile=profile)
    np.testing.assert_allclose(colours_of(tmp_path / "a.jpg"), COLOURS, atol=2)


@pytest.mark.parametrize("index", ["R03", "R98"])
@pytest.mark.parametrize("profile", [False, True])
def test_what_is_converted_is_not_converted_again(tmp_path, index, profile):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save_colours(tmp_path / "a.jpg", exif=exif(65535, index), **({"icc_profile": srgb} if profile else {}))
    once = load_image(tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(to_rgb(once)), np.asarray(once))
    assert "icc_profile" not in once.info


def png(*chunks: tuple[bytes, bytes], alpha: bool = False) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = np.dstack([COLOURS[None], np.full((1, 4, 1), 255, np.uint8)]) if alpha else COLOURS
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 6 if alpha else 2, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\0" + pixels.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)  # Adobe RGB's


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.5])
def test_a_gamma_of_png_is_honoured(tmp_path, gamma, alpha):
    (tmp_path / "a.png").write_bytes(png((b"gAMA", struct.pack(">I", round(100_000 / gamma))), alpha=alpha))
    expected = in_srgb((COLOURS / 255) ** gamma)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.png"))[0], expected, atol=1)


def test_chromaticities_of_png_are_honoured_with_its_gamma(tmp_path):
    (tmp_path / "a.png").write_bytes(png((b"gAMA", struct.pack(">I", 45470)), (b"cHRM", PRIMARIES)))
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.png"))[0], ADOBE_IN_SRGB, atol=1)


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", struct.pack(">I", 45455))],
        [(b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")],
        [(b"gAMA", struct.pack(">I", 0))],
        [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", bytes(32))],
        [(b"cHRM", PRIMARIES)],
    ],
    ids=["sRGB's", "sRGB said", "none", "no light", "no gamma"],
)
def test_numbers_stay_where_png_says_srgb_or_nonsense(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png(*chunks))
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png"))[0], COLOURS)


# From numbers in light to XYZ: SMPTE EG 432-1 with D65, and ITU-R BT.2020.
P3 = np.array([[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0, 0.04511, 1.04394]])
BT2020 = np.array([[0.63696, 0.14462, 0.16888], [0.2627, 0.678, 0.0593], [0, 0.02807, 1.06099]])


def light(numbers: np.ndarray) -> np.ndarray:
    return np.where(numbers <= 0.04045, numbers / 12.92, ((numbers + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("others", [[], [(b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")]], ids=["", "gAMA"])
@pytest.mark.parametrize(
    ("primaries", "transfer", "to_light", "to_xyz"),
    [
        (12, 13, light, P3),
        (9, 13, light, BT2020),
        (9, 4, lambda x: x**2.2, BT2020),
        (1, 8, lambda x: x, SRGB),
        (1, 5, lambda x: x**2.8, SRGB),
        (1, 13, light, SRGB),
        (1, 1, light, SRGB),
        (2, 2, light, SRGB),
    ],
)
def test_code_points_of_png_are_honoured_and_come_first(tmp_path, primaries, transfer, to_light, to_xyz, others):
    (tmp_path / "a.png").write_bytes(png((b"cICP", bytes([primaries, transfer, 0, 1])), *others))
    expected = in_srgb((to_light(COLOURS / 255) @ to_xyz.T @ np.linalg.inv(SRGB).T).clip(0, 1))
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.png"))[0], expected, atol=1.5)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_a_picture_for_hdr_is_refused_not_shown_dull(tmp_path, transfer, name):
    (tmp_path / "a.png").write_bytes(png((b"cICP", bytes([9, transfer, 0, 1]))))
    with pytest.raises(UserError, match=f"HDR \\({name}\\)"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("again", [False, True], ids=["one", "another beside it"])
def test_code_points_of_avif_are_honoured_where_there_is_one_pair(tmp_path, again):
    save_colours(tmp_path / "a.avif", quality=100)
    content = (tmp_path / "a.avif").read_bytes()
    assert content.count(b"colrnclx") == 1
    before, at = colours_of(tmp_path / "a.avif"), content.index(b"colrnclx") + 8
    content = content[:at] + struct.pack(">HH", 12, 13) + content[at + 4 :]
    (tmp_path / "a.avif").write_bytes(content + (b"colrnclx" + bytes([0, 9, 0, 16]) if again else b""))
    expected = in_srgb((light(before / 255) @ P3.T @ np.linalg.inv(SRGB).T).clip(0, 1))
    np.testing.assert_allclose(colours_of(tmp_path / "a.avif"), before if again else expected, atol=2)
