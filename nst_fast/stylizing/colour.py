"""What colours a picture's numbers mean, and their sRGB: by ICC profile, by EXIF, by code points, by gAMA and cHRM."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

from nst_fast.stylizing.formats import NotSupportedError

SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue: x and y, as in cHRM
ADOBE_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # Adobe RGB (1998), 4.3.1
ADOBE_GAMMA = 563 / 256
SRGB_GAMMA = 1 / 0.45455  # what PNG's authors write for sRGB
# Code points of ITU-T H.273 whose colours are not sRGB's: by their primaries, by their transfer.
PRIMARIES = {
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # cinemas' P3
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # screens' P3
}
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
HDR = {16: "PQ", 18: "HLG"}
CODE_POINTS = "nst_fast.code_points"  # where an opened picture keeps them
D50 = np.array([0.9642, 1.0, 0.8249])
# Bradford's matrix: white points are adapted in it (ICC.1:2022, annex E).
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(image: Image.Image, info: dict, adobe: bool = False) -> Image.Image:
    """Return a picture of mode L, RGB, CMYK or LAB with its numbers in sRGB, as far as something says what they are.

    Raises NotSupportedError where they are of a picture for HDR.

    Args:
        image: its numbers, 8 bits each.
        info: of the picture as it was opened: a profile that is broken, or for another mode, counts for nothing.
        adobe: whether its EXIF data say that it is in Adobe RGB, which counts where there is no profile.
    """
    try:
        if image.mode == "LAB":
            return convert(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
        if image.mode not in ("RGB", "CMYK", "L"):
            return image
        if info.get("icc_profile"):
            return convert(image, ImageCms.ImageCmsProfile(io.BytesIO(info["icc_profile"])))
        described = (ADOBE_PRIMARIES, ADOBE_GAMMA) if adobe else of_code_points(info) or of_png(info)
        if described is None or image.mode == "CMYK":
            return image
        return convert(image.convert("RGB"), ImageCms.ImageCmsProfile(io.BytesIO(matrix_profile(*described))))
    except (ImageCms.PyCMSError, OSError, ValueError, np.linalg.LinAlgError):
        return image  # the numbers are the best guess there is


def convert(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    """Return a picture in sRGB, given the profile of its numbers."""
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    converted.info.pop("icc_profile", None)  # sRGB's, by which it would be converted once more
    return converted


def of_code_points(info: dict) -> tuple[tuple[float, ...], float | None] | None:
    """Return primaries and gamma of a picture by its code points; None where it has none, or sRGB's."""
    primaries, transfer = info.get(CODE_POINTS) or (1, 13)
    if transfer in HDR:
        raise NotSupportedError(f"it is a picture for HDR ({HDR[transfer]}), which is not read here; export it as sRGB")
    if primaries not in PRIMARIES and transfer not in GAMMAS:
        return None
    return PRIMARIES.get(primaries, SRGB_PRIMARIES), GAMMAS.get(transfer)


def of_png(info: dict) -> tuple[tuple[float, ...], float] | None:
    """Return primaries and gamma of a PNG by its gAMA and cHRM; None where it has none, an sRGB chunk, or sRGB's."""
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or info.get(CODE_POINTS) or not gamma:
        return None
    if primaries is None or np.allclose(primaries, SRGB_PRIMARIES, atol=0.002):
        primaries = SRGB_PRIMARIES
        if abs(gamma - 1 / SRGB_GAMMA) < 0.005:
            return None
    return tuple(primaries), 1 / gamma


def matrix_profile(primaries: tuple[float, ...], gamma: float | None) -> bytes:
    """Return an ICC profile, version 2, of an RGB space.

    Args:
        primaries: x and y of white, red, green and blue.
        gamma: the exponent from numbers to light; None: sRGB's curve.

    Raises ValueError or LinAlgError where no light is of these numbers.
    """
    if not 0.1 <= (gamma or 2.4) <= 20 or min(primaries[1::2]) <= 0:
        raise ValueError(f"no colour space has primaries {primaries} and gamma {gamma}")
    white, *columns = (
        np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    )
    light = np.stack(columns, 1)
    light = light * np.linalg.solve(light, white)
    light = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD @ light
    numbers = (gamma,) if gamma else (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1
    curve = struct.pack(">4s4xH2x", b"para", 0 if gamma else 3)
    curve += b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)
    tags = {b"wtpt": xyz(D50), b"desc": b"desc\0\0\0\0\0\0\0\x02p\0" + bytes(80), b"cprt": b"text\0\0\0\0p\0\0\0"}
    for number, name in enumerate((b"r", b"g", b"b")):
        tags |= {name + b"XYZ": xyz(light[:, number]), name + b"TRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI", 132 + 12 * len(tags) + len(body), 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return head + bytes(28) + xyz(D50)[8:] + bytes(48) + table + body


def xyz(values: np.ndarray) -> bytes:
    """Return a colour as ICC writes it."""
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(v) * 65536) for v in values))
