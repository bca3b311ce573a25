"""Files around their pixels: chunks of PNG, segments of JPEG, boxes of AVIF and HEIC."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_HEAD = 33  # bytes, with its size and mode
# What makes the smallest picture of a file's head.
PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
JPEG_END = bytes.fromhex("ffc0000b080001000101011100 ffda0008010100003f00")
OF_AN_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
LARGEST_TEXT = 1 << 24  # bytes of all texts and profiles of a file, decompressed
PngImagePlugin.MAX_TEXT_CHUNK = LARGEST_TEXT  # Pillow refuses the whole picture for more than one megabyte
MOST_PIECES = 1000
NCLX = re.compile(rb"colrnclx(.{4})", re.DOTALL)
LONGEST_HEAD = 1 << 20  # bytes, in which the boxes of an AVIF or a HEIC that describe it lie

Piece = tuple[int, bytes]  # where it begins, and all of its bytes


def chunks(file: BinaryIO) -> Iterator[Piece]:
    """Yield what a PNG that is read behind its signature holds beside its pixels."""
    while len(head := file.read(8)) == 8:
        at, (length, name) = file.tell() - 8, struct.unpack(">I4s", head)
        if name[:1].islower():
            yield at, head + file.read(length + 4)
        file.seek(at + length + 12)


def segments(file: BinaryIO) -> Iterator[Piece]:
    """Yield what a JPEG that is read behind its first two bytes holds before its pixels: metadata and comments."""
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
        at, (length,) = file.tell() - 4, struct.unpack(">H", head[2:])
        if 0xE0 <= head[1] <= 0xEF or head[1] == 0xFE:
            yield at, head + file.read(max(0, length - 2))
        file.seek(at + (1 if head[1] == 0xFF else 2 + length))


def without_damage(file: BinaryIO) -> io.BytesIO | None:
    """Return a PNG or JPEG without metadata for which Pillow would refuse it; None where there are none.

    They are damaged, or too large. Whether the smallest picture that holds a piece alone can be opened tells.
    """
    file.seek(0)
    start = file.read(PNG_HEAD)
    if start.startswith(PNG):
        file.seek(len(PNG))
        head, end, pieces = start, PNG_END, chunks(file)
    elif start.startswith(JPEG):
        file.seek(len(JPEG))
        head, end, pieces = JPEG, JPEG_END, segments(file)
    else:
        return None
    kind: type[ImageFile.ImageFile] = PngImagePlugin.PngImageFile if head == start else JpegImagePlugin.JpegImageFile
    damaged, room = [], LARGEST_TEXT
    for number, (at, piece) in enumerate(pieces):
        if piece[4:8] in OF_AN_ANIMATION:
            continue
        try:
            if number > MOST_PIECES:
                raise ValueError("no program writes so many")
            with kind(io.BytesIO(head + piece + end)) as smallest:
                size = sum(len(held) for held in smallest.info.values() if isinstance(held, bytes | str))
            if size <= room:
                room -= size
                continue
        except Exception:  # in whatever way it is damaged
            pass
        damaged.append((at, at + len(piece)))
    if not damaged:
        return None
    file.seek(0)
    content, kept, last = file.read(), [], 0
    for at, behind in damaged:
        kept.append(content[last:at])
        last = behind
    return io.BytesIO(b"".join([*kept, content[last:]]))


def code_points(file: BinaryIO) -> tuple[int, int] | None:
    """Return the code points (ITU-T H.273) of the primaries and the transfer that a PNG, AVIF or HEIC names.

    None where it names none, or several: one is then of a map that brightens the picture on other screens.
    """
    file.seek(0)
    start = file.read(12)
    found: set[tuple[int, int]] = set()
    if start.startswith(PNG):
        file.seek(len(PNG))
        found = {(piece[8], piece[9]) for _, piece in chunks(file) if piece[4:8] == b"cICP" and len(piece) == 16}
    elif start[4:8] == b"ftyp":
        found = {struct.unpack(">HH", held) for held in NCLX.findall(file.read(LONGEST_HEAD))}
    return found.pop() if len(found) == 1 else None
