"""Metadata never costs the picture, and what is carried is byte for byte what it was; piexif and Pillow read it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from nst_fast.stylizing.exif import directory_bytes, read_directory
from nst_fast.stylizing.images import encode_image, load_image, open_image
from nst_fast.stylizing.looks import Looks, stylize_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
COPYRIGHT, ARTIST, COMMENT, MAKER_NOTE, VERSION = 0x8298, 0x013B, 0x9286, 0x927C, 0x9000
EXIF_IFD, GPS_IFD, INTEROP_IFD, COLOUR_SPACE, WIDTH, HEIGHT = 0x8769, 0x8825, 0xA005, 0xA001, 0xA002, 0xA003
CARRIED = {
    COPYRIGHT: (2, "© 2024 Zoë Müller\0".encode()),
    ARTIST: (2, "Zoë Müller\0".encode("latin-1")),
    0x011A: (5, (300, 1)),
}
INNER = {
    COMMENT: (7, b"ASCII\0\0\0hello"),
    MAKER_NOTE: (7, bytes(range(256))),
    VERSION: (7, b"0232"),
    0x829A: (5, (1, 125)),
    0x9204: (10, (-1, 3)),
    0x8827: (3, (400,)),
}


class Unchanged:
    """A model whose result is the picture."""

    @staticmethod
    def stylize(picture: Image.Image, *_: object) -> Image.Image:
        return picture


def directory(order: str, values: dict, more: dict | None = None) -> dict:
    packed = {}
    for tag, (kind, value) in values.items():
        letter = {3: "H", 4: "I", 5: "I", 10: "i"}.get(kind)
        content = value if letter is None else struct.pack(f"{order}{len(value)}{letter}", *value)
        packed[tag] = (kind, len(content) // {3: 2, 4: 4, 5: 8, 10: 8}.get(kind, 1), content)
    return packed | (more or {})


def exif_of(order: str, inner: dict | None = None, top: dict | None = None, **more: dict) -> bytes:
    """EXIF data in a byte order, with directories of their own for what is given."""
    entries = directory(order, CARRIED if top is None else top)
    entries[EXIF_IFD] = directory(order, INNER if inner is None else inner, more.get("within"))
    entries |= more.get("beside", {})
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + head + directory_bytes(entries, order, 8)


def stylized(source: bytes, suffix: str, max_side: int | None = None, keep_gps: bool = False) -> bytes:
    with open_image(io.BytesIO(source)) as image:
        result, options = stylize_picture("photo", image, Unchanged(), Looks(max_side=max_side), suffix, keep_gps)
        return encode_image(result, suffix, **options)


def encoded(kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, kind, **options)
    return content.getvalue()


def entries_of(content: bytes) -> tuple[str, dict]:
    """What a file's EXIF data hold, as bytes."""
    if content[:4] in (b"II*\0", b"MM\0*"):
        return read_directory(io.BytesIO(content))
    return read_directory(io.BytesIO(Image.open(io.BytesIO(content)).info["exif"].removeprefix(b"Exif\0\0")))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("to", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_is_carried_is_byte_for_byte_what_it_was(kind, to, order):
    got, entries = entries_of(stylized(encoded(kind, exif=exif_of(order)), to))
    wanted = directory(got, CARRIED, {EXIF_IFD: directory(got, INNER)})
    assert {tag: entries[tag] for tag in CARRIED} == {tag: wanted[tag] for tag in CARRIED}
    assert entries[EXIF_IFD] == wanted[EXIF_IFD]


def test_a_tiffs_own_tags_are_carried_as_they_are():
    first = stylized(encoded("JPEG", exif=exif_of(">")), ".tif")
    _, entries = entries_of(stylized(first, ".jpg"))
    order, _ = entries_of(stylized(first, ".jpg"))
    assert entries == directory(order, CARRIED, {EXIF_IFD: directory(order, INNER)})


def test_other_readers_agree():
    piexif = pytest.importorskip("piexif")
    read = piexif.load(stylized(encoded("JPEG", exif=exif_of(">")), ".jpg"))
    assert read["0th"][COPYRIGHT] == "© 2024 Zoë Müller".encode()
    assert read["Exif"][COMMENT] == b"ASCII\0\0\0hello"
    assert read["Exif"][0x829A] == (1, 125)
    assert Image.open(io.BytesIO(stylized(encoded("JPEG", exif=exif_of(">")), ".tif"))).getexif()[0x011A] == 300


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("max_side", [None, 20])
def test_sizes_and_colour_space_are_those_of_the_result(order, max_side):
    inner = {WIDTH: (4, (40,)), HEIGHT: (3, (24,)), COLOUR_SPACE: (3, (65535,))}
    within = {INTEROP_IFD: directory(order, {1: (2, b"R03\0"), 0x1001: (3, (40,)), 0x1002: (3, (24,))})}
    content = stylized(encoded("JPEG", exif=exif_of(order, inner, within=within)), ".jpg", max_side)
    width, height = Image.open(io.BytesIO(content)).size
    assert (width, height) == ((40, 24) if max_side is None else (20, 12))
    got, entries = entries_of(content)
    told = {tag: struct.unpack(f"{got}H", value[2])[0] for tag, value in entries[EXIF_IFD].items() if tag < INTEROP_IFD}
    assert told == {WIDTH: width, HEIGHT: height, COLOUR_SPACE: 1}
    interop = {1: (2, b"R98\0"), 0x1001: (3, (width,)), 0x1002: (3, (height,))}
    assert entries[EXIF_IFD][INTEROP_IFD] == directory(got, interop)
    again = np.asarray(load_image_of(content)).astype(int)
    np.testing.assert_array_equal(again, np.asarray(Image.open(io.BytesIO(content))))  # converted once


def load_image_of(content: bytes) -> Image.Image:
    from nst_fast.stylizing.images import to_rgb

    with open_image(io.BytesIO(content)) as image:
        return to_rgb(image)


@pytest.mark.parametrize("to", [".jpg", ".tif", ".png"])
def test_the_position_is_carried_only_when_asked_for(to):
    place = {GPS_IFD: directory(">", {1: (2, b"N\0"), 29: (2, b"1999:12:31\0")})}
    source = encoded("JPEG", exif=exif_of(">", beside=place))
    assert b"1999:12:31" in stylized(source, to, keep_gps=True)
    assert b"1999:12:31" not in stylized(source, to)


@pytest.mark.parametrize("place", ["top", "inner"])
@pytest.mark.parametrize("length", [60_000, 70_000, 400_000])
def test_exif_that_a_jpeg_has_no_place_for_costs_its_longest_value_alone(place, length, caplog):
    text = b"x" * length + b"\0"
    top = CARRIED | ({0x010F: (2, text)} if place == "top" else {})
    inner = INNER | ({COMMENT: (7, text)} if place == "inner" else {})
    source = encoded("WEBP", exif=exif_of("<", inner, top))
    _, entries = entries_of(stylized(source, ".jpg"))
    assert entries[COPYRIGHT] == directory("<", CARRIED)[COPYRIGHT]
    assert entries[EXIF_IFD][MAKER_NOTE] == directory("<", INNER)[MAKER_NOTE]
    fits = length < 64_000
    assert (0x010F in entries) == (fits and place == "top")
    assert (("0x010F" if place == "top" else "0x9286") in caplog.text) == (not fits)
    _, kept = entries_of(stylized(source, ".png"))
    assert text in (kept.get(0x010F, (0, 0, b""))[2], kept[EXIF_IFD].get(COMMENT, (0, 0, b""))[2])


def test_exif_of_many_values_fits_a_jpeg_and_is_told_in_one_line(caplog):
    many = {tag: (7, bytes([tag % 256]) * (5 + tag % 3)) for tag in range(0xB000, 0xF000)}
    _, entries = entries_of(stylized(encoded("WEBP", exif=exif_of("<", INNER | many)), ".jpg"))
    assert 3_000 < len(entries[EXIF_IFD]) < 4_000
    assert all(entries[EXIF_IFD][tag][2] == many[tag][1] for tag in entries[EXIF_IFD] if tag in many)
    assert len(caplog.messages) == 1


def test_values_that_lie_over_each_other_take_no_more_memory_than_the_file():
    """5,000 tags that each claim the same megabyte."""
    head = b"II*\0" + struct.pack("<IH", 8, 5_000)
    table = b"".join(struct.pack("<HHII", tag, 7, 1_000_000, 70_000) for tag in range(5_000))
    _, entries = read_directory(io.BytesIO(head + table + bytes(1_100_000)))
    assert len(entries) == 1


@pytest.mark.slow  # a million
def test_a_png_of_a_million_texts_is_read(tmp_path):
    text = struct.pack(">I", 3) + b"tEXta\0b" + struct.pack(">I", zlib.crc32(b"tEXta\0b"))
    whole = encoded("PNG", exif=exif_of("<"))
    at = whole.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(whole[:at] + text * 1_000_000 + whole[at:])
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), PIXELS)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt"])
@pytest.mark.parametrize("length", [2_000_000, 40_000_000])
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind the pixels"])
def test_text_of_any_length_in_a_png_costs_nothing(tmp_path, kind, length, behind):
    text = b"A" * length
    content = {
        "zTXt": b"Comment\0\0" + zlib.compress(text, 1),
        "iTXt": b"Comment\0\1\0\0\0" + zlib.compress(text, 1),
        "tEXt": b"Comment\0" + text,
    }[kind]
    name = kind.encode()
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    whole = encoded("PNG")
    at = whole.index(b"IEND") - 4 if behind else 33
    (tmp_path / "a.png").write_bytes(whole[:at] + chunk + whole[at:])
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), PIXELS)


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind the pixels"])
@pytest.mark.parametrize(
    ("name", "content", "checksum"),
    [
        (b"tEXt", b"Comment\0hello", 1),
        (b"pHYs", bytes(9), 1),
        (b"prIv", b"any program's", 1),
        (b"pHYs", b"abc", 0),
        (b"gAMA", b"\0\0", 0),
        (b"cHRM", bytes(3), 0),
        (b"tRNS", b"\0", 0),
        (b"iCCP", b"", 0),
        (b"iCCP", b"name\0\5" + zlib.compress(b"profile"), 0),
        (b"iCCP", b"name\0\0junk", 0),
        (b"zTXt", b"Comment\0\1junk", 0),
        (b"iTXt", b"Comment\0\1\0", 0),
        (b"eXIf", b"II", 0),
    ],
)
def test_a_damaged_chunk_of_a_png_costs_that_chunk(tmp_path, name, content, checksum, behind):
    """A checksum of 1 is wrong in one bit."""
    wrong = zlib.crc32(name + content) ^ checksum
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", wrong)
    whole = encoded("PNG", exif=exif_of("<"))
    at = whole.index(b"IEND") - 4 if behind else 33
    (tmp_path / "a.png").write_bytes(whole[:at] + chunk + whole[at:])
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), PIXELS)
    if name != b"eXIf":
        _, entries = entries_of(stylized((tmp_path / "a.png").read_bytes(), ".webp"))
        assert entries[COPYRIGHT] == directory("<", CARRIED)[COPYRIGHT]


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xEE, b"Adobe"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\3junk"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\3\0" + b"\xff" * 40),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\xff"),
        (0xE0, b"JFIF"),
        (0xFE, bytes(range(256))),
        (0xE1, b"Exif\0\0II"),
    ],
)
def test_a_damaged_segment_of_a_jpeg_costs_that_segment(tmp_path, marker, content):
    whole = encoded("JPEG", quality=100, subsampling=0, exif=exif_of("<"))
    (tmp_path / "whole.jpg").write_bytes(whole)
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    (tmp_path / "a.jpg").write_bytes(whole[:2] + segment + whole[2:])
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg"), load_image(tmp_path / "whole.jpg"))
    if marker != 0xE1:
        _, entries = entries_of(stylized((tmp_path / "a.jpg").read_bytes(), ".webp"))
        assert entries[COPYRIGHT] == directory("<", CARRIED)[COPYRIGHT]


@pytest.mark.parametrize("length", [1_200_000, 30_000_000])
def test_a_long_colour_profile_counts_or_is_left_out(tmp_path, length):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"?").replace(b"bXYZ", b"rXYZ").replace(b"?", b"bXYZ") + bytes(length)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=struct.pack(">I", len(swapped)) + swapped[4:])
    got = np.asarray(load_image(tmp_path / "a.png")).astype(int)
    np.testing.assert_allclose(got, PIXELS[..., ::-1] if length < 2_000_000 else PIXELS, atol=3)


def test_orientation_in_imagemagicks_text_counts(tmp_path):
    made = Image.Exif()
    made[0x0112] = 6
    exif = made.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
    info.add_text("Comment", "B" * 20_000_000, zip=True)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("to", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_dots_an_inch_are_carried(kind, to):
    got = Image.open(io.BytesIO(stylized(encoded(kind, dpi=(300, 150)), to))).info["dpi"]
    assert tuple(map(float, got)) == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("dpi", [(0, 0), (70_000, 70_000), (float("inf"), 1)])
def test_a_density_that_makes_no_sense_costs_nothing(dpi):
    image = Image.fromarray(PIXELS)
    image.info["dpi"] = dpi
    result, options = stylize_picture("photo", image, Unchanged(), Looks(), ".jpg")
    assert Image.open(io.BytesIO(encode_image(result, ".jpg", **options))).size == (40, 24)
