"""EXIF data of a photograph for its result: carried byte for byte, but for what would no longer be true."""

from __future__ import annotations

import io
import logging
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

ORIENTATION, EXIF_IFD, GPS_POSITION, INTEROP_IFD = 0x0112, 0x8769, 0x8825, 0xA005
# Tags that speak of the photograph, not of the file: a TIFF's are its very layout, its profile and its XMP.
CARRIED = frozenset(
    {0x010E, 0x010F, 0x0110, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749}
    | {0x8298, EXIF_IFD, GPS_POSITION, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F}
)
RESOLUTION = (0x011A, 0x011B, 0x0128)
POINTERS = (EXIF_IFD, GPS_POSITION, INTEROP_IFD)
WIDTH, HEIGHT, RELATED_WIDTH, RELATED_HEIGHT = 0xA002, 0xA003, 0x1001, 0x1002
COLOUR_SPACE, INTEROP_INDEX = 0xA001, 1
SRGB, ADOBE_RGB = 1, 2  # what COLOUR_SPACE says
# Bytes of a value of each type of TIFF; 2 is text, 7 anything.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SWAPPED = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}  # bytes of the numbers that they are made of
LONGEST_IN_JPEG = 65_533 - 6  # bytes of a segment, without its name
LONGEST_VALUE = 1 << 24  # bytes; what is longer speaks of no photograph
CARRIED_INFO = "nst_fast.exif"  # where an opened picture keeps it, as no writer of Pillow's looks for it

Entry = tuple[int, int, bytes]  # type, count, the values' bytes
Directory = dict[int, Any]  # {tag: Entry, or the Directory that it points to}


def read_directory(file: BinaryIO) -> tuple[str, Directory]:
    """Return the byte order, < or >, and the first directory of a TIFF or of EXIF data, with those that it points to.

    What is damaged is left out. Raises ValueError or struct.error where nothing can be read.
    """
    head = file.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None:
        raise ValueError("no TIFF structure")
    room = [file.seek(0, io.SEEK_END)]  # values lie apart: together they are no longer than the file
    return order, entries_at(file, order, struct.unpack(f"{order}I", head[4:])[0], room)


def entries_at(file: BinaryIO, order: str, start: int, room: list[int], depth: int = 0) -> Directory:
    """Return the entries of a directory, as far as there is room, bytes, for their values; less of it remains."""
    file.seek(start)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    table = file.read(12 * count)
    found: Directory = {}
    for at in range(0, len(table) - 11, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", table, at)
        length = SIZES.get(kind, 0) * number
        if not 0 < length <= min(LONGEST_VALUE, room[0]):
            continue
        room[0] -= length
        place = table[at + 8 : at + 12]
        if tag in POINTERS:
            if kind in (4, 13) and number == 1 and depth < 2:
                try:
                    found[tag] = entries_at(file, order, struct.unpack(f"{order}I", place)[0], room, depth + 1)
                except (struct.error, ValueError, OSError):
                    continue
            continue
        if length > 4:
            file.seek(struct.unpack(f"{order}I", place)[0])
            place = file.read(length)
        if len(place) >= length:
            found[tag] = (kind, number, place[:length])
    return found


def directory_bytes(entries: Directory, order: str, start: int) -> bytes:
    """Return a directory, the values behind it, as it is written from a place in a file on."""
    table, body = bytearray(struct.pack(f"{order}H", len(entries))), bytearray()
    behind = start + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        value, at = entries[tag], behind + len(body)
        if isinstance(value, dict):
            kind, number, place = 4, 1, struct.pack(f"{order}I", at)
            body += directory_bytes(value, order, at)
        else:
            kind, number, place = value
            if len(place) > 4:
                body += place
                place = struct.pack(f"{order}I", at)
        body += bytes(len(body) % 2)
        table += struct.pack(f"{order}HHI", tag, kind, number) + place.ljust(4, b"\0")
    return bytes(table) + bytes(4) + bytes(body)


def exif_bytes(order: str, entries: Directory) -> bytes:
    """Return EXIF data as files hold them."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + head + directory_bytes(entries, order, 8)


def stored(image: Image.Image) -> tuple[str, Directory]:
    """Return the byte order and the directory of an opened picture's EXIF data, empty where it has none."""
    if CARRIED_INFO in image.info:
        return image.info[CARRIED_INFO]
    content = image.info.get("exif")
    try:
        if not content and isinstance(text := image.info.get("Raw profile type exif"), str):  # ImageMagick's
            content = bytes.fromhex("".join(text.split("\n")[3:]))
        if not content:
            content = image.getexif().tobytes()
        return read_directory(io.BytesIO(content.removeprefix(b"Exif\0\0")))
    except Exception:  # damaged metadata is no reason to refuse a picture
        return "<", {}


def is_adobe_rgb(image: Image.Image) -> bool:
    """Return whether a picture's EXIF data say that its colours are Adobe RGB, as cameras do (DCF 2.0, 3.4)."""
    order, entries = stored(image)
    inner = entries.get(EXIF_IFD, {})
    kind, _, value = inner.get(COLOUR_SPACE, (0, 0, b""))
    space = struct.unpack(f"{order}H", value[:2])[0] if kind == 3 else None
    index = inner.get(INTEROP_IFD, {}).get(INTEROP_INDEX, (0, 0, b""))[2]
    return space == ADOBE_RGB or (space != SRGB and index.startswith(b"R03"))


def carried(image: Image.Image, size: tuple[int, int], keep_gps: bool) -> tuple[str, Directory]:
    """Return the byte order and the directory of a photograph's EXIF data for its result.

    The result is upright, in sRGB and of a size, (width, height) px, and says so where the photograph says it. The
    position is left out unless asked for, a preview always.
    """
    order, entries = stored(image)
    kept = CARRIED if keep_gps else CARRIED - {GPS_POSITION}
    entries = {tag: value for tag, value in entries.items() if tag in kept and value}

    def correct(directory: Directory, tag: int, value: int) -> None:
        if tag in directory:
            kind = 4 if value > 65535 else 3
            directory[tag] = (kind, 1, struct.pack(f"{order}{'I' if kind == 4 else 'H'}", value))

    correct(entries, ORIENTATION, 1)
    if isinstance(inner := entries.get(EXIF_IFD), dict):
        entries[EXIF_IFD] = inner = dict(inner)
        correct(inner, WIDTH, size[0])
        correct(inner, HEIGHT, size[1])
        correct(inner, COLOUR_SPACE, 1)
        if isinstance(interop := inner.get(INTEROP_IFD), dict):
            inner[INTEROP_IFD] = interop = dict(interop)
            correct(interop, RELATED_WIDTH, size[0])
            correct(interop, RELATED_HEIGHT, size[1])
            if INTEROP_INDEX in interop:
                interop[INTEROP_INDEX] = (2, 4, b"R98\0")
    return order, entries


def fit(entries: Directory, most: int, name: str) -> Directory:
    """Return EXIF data of no more than so many bytes, without its longest values where need be, and tell of those."""
    size = len(directory_bytes(entries, "<", 8)) + 8
    inner = entries.get(EXIF_IFD, {})
    values = [(d, tag, v[2]) for d in (entries, inner) for tag, v in d.items() if not isinstance(v, dict)]
    dropped = []
    for directory, tag, value in sorted(values, key=lambda value: -len(value[2])):
        if size <= most:
            break
        size -= 12 + (len(value) + len(value) % 2 if len(value) > 4 else 0)
        dropped.append((directory is inner, tag))
    if size > most:
        return {}
    if dropped:
        tags = ", ".join(f"0x{tag:04X}" for _, tag in dropped[:5]) + (" and others" if len(dropped) > 5 else "")
        logger.warning("%s: left out of its EXIF data, as a JPEG has no place for so much: %s", name, tags)
    gone = set(dropped)
    kept = {tag: value for tag, value in entries.items() if (False, tag) not in gone}
    if EXIF_IFD in kept:
        kept[EXIF_IFD] = {tag: value for tag, value in inner.items() if (True, tag) not in gone}
    return kept


def reordered(entries: Directory, order: str, wanted: str) -> Directory:
    """Return a directory with its numbers in another byte order; text stays as it is."""
    if order == wanted:
        return entries
    swapped: Directory = {}
    for tag, value in entries.items():
        if isinstance(value, dict):
            swapped[tag] = reordered(value, order, wanted)
        else:
            kind, number, place = value
            if kind in SWAPPED:
                place = np.frombuffer(place, f"u{SWAPPED[kind]}").byteswap().tobytes()
            swapped[tag] = (kind, number, place)
    return swapped


def into_tiff(content: bytes, exif: bytes) -> bytes:
    """Return a TIFF of one picture with EXIF data among its tags, of which none but the resolution replaces its own."""
    own, layout = read_directory(io.BytesIO(content))
    order, entries = read_directory(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
    entries = reordered(entries, order, own)
    merged = entries | layout | {tag: entries[tag] for tag in RESOLUTION if tag in entries}
    content += bytes(len(content) % 2)
    return content[:4] + struct.pack(f"{own}I", len(content)) + content[8:] + directory_bytes(merged, own, len(content))
