"""The one table of formats of pictures and videos: what is read, found in folders, written, and what each can hold."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from nst_fast.errors import UserError


class NotSupportedError(Exception):
    """A picture that cannot be shown as it is meant; the message says why."""


@dataclass(frozen=True)
class Format:
    """A format of pictures or videos.

    Attributes:
        name: what Pillow calls it, or people where it is of videos.
        suffixes: of its files, in small letters; the first is what new files get.
        alpha: whether it has a place for an alpha channel.
        animated: whether several pictures in it are frames, not pages or previews.
        becomes: the suffix of a result where its photograph is of this format; None: the photograph's own.
        read: whether its files are opened, and found in folders.
        video: whether it is of videos, which are read and written where PyAV is.
    """

    name: str
    suffixes: tuple[str, ...]
    alpha: bool = False
    animated: bool = False
    becomes: str | None = None
    read: bool = True
    video: bool = False

    @property
    def written(self) -> bool:
        """Whether it can be written, a picture by this Pillow."""
        Image.init()
        return self.video or self.name in Image.SAVE


PNG = ".png"  # what a result becomes where its photograph's format says nothing, or cannot be written
TABLE = (
    Format("JPEG", (".jpg", ".jpeg", ".jfif", ".jpe")),
    Format("PNG", (PNG, ".apng"), alpha=True, animated=True),
    Format("WEBP", (".webp",), alpha=True, animated=True),
    Format("AVIF", (".avif", ".avifs"), alpha=True, animated=True),
    Format("TIFF", (".tif", ".tiff"), alpha=True),
    Format("BMP", (".bmp",)),
    Format("GIF", (".gif",), alpha=True, animated=True),
    Format("JPEG2000", (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), alpha=True),
    Format("TGA", (".tga", ".icb", ".vda", ".vst"), alpha=True),
    Format("QOI", (".qoi",), alpha=True),
    Format("SGI", (".sgi", ".rgb", ".rgba"), alpha=True),
    Format("DDS", (".dds",), alpha=True),
    Format("ICO", (".ico",), alpha=True),
    Format("PPM", (".ppm", ".pnm")),
    Format("PCX", (".pcx",)),
    Format("DIB", (".dib",)),
    Format("MPO", (".mpo",)),  # a camera's JPEG with previews: of one picture it is a JPEG
    # What few programs read, and what has no place for colours or this size.
    Format("HEIF", (".heic", ".heif", ".hif"), becomes=".jpg"),
    Format("PPM", (".pgm", ".pbm", ".pfm"), becomes=".ppm"),
    Format("SGI", (".bw",), becomes=".sgi"),
    Format("ICNS", (".icns",), alpha=True, becomes=PNG),
    Format("BLP", (".blp",), becomes=PNG),
    Format("IM", (".im",), becomes=PNG),
    Format("MSP", (".msp",), becomes=PNG),
    Format("XBM", (".xbm",), becomes=PNG),
    # What Pillow does not write.
    Format("PSD", (".psd",), becomes=PNG),
    Format("XPM", (".xpm",), becomes=PNG),
    Format("FITS", (".fits", ".fit"), becomes=PNG),
    Format("FLI", (".fli", ".flc"), becomes=PNG, animated=True),
    Format("CUR", (".cur",), becomes=PNG),
    Format("DCX", (".dcx",), becomes=PNG),
    Format("FTEX", (".ftc", ".ftu"), becomes=PNG),
    Format("GBR", (".gbr",), becomes=PNG),
    Format("PCD", (".pcd",), becomes=PNG),
    Format("PIXAR", (".pxr",), becomes=PNG),
    Format("SUN", (".ras",), becomes=PNG),
    Format("MP4", (".mp4", ".m4v"), animated=True, video=True),
    Format("QuickTime", (".mov", ".qt"), animated=True, video=True),
    Format("Matroska", (".mkv",), animated=True, video=True),
    Format("WebM", (".webm",), animated=True, video=True),
    Format("AVI", (".avi",), animated=True, video=True),
    # What few programs read any more; .ts is more often a program or a translation.
    Format("3GPP", (".3gp", ".3g2"), animated=True, becomes=".mp4", video=True),
    Format("MPEG", (".mpg", ".mpeg", ".vob", ".mts", ".m2ts"), animated=True, becomes=".mkv", video=True),
    Format("ASF", (".wmv", ".asf"), animated=True, becomes=".mkv", video=True),
    Format("Flash", (".flv",), animated=True, becomes=".mkv", video=True),
    Format("Ogg", (".ogv",), animated=True, becomes=".mkv", video=True),
    # Documents, which may be programs.
    Format("PDF", (".pdf",), read=False),
    Format("EPS", (".eps", ".ps"), read=False),
)
OF_SUFFIX = {suffix: kind for kind in TABLE for suffix in kind.suffixes}
OF_NAME = {kind.name: kind for kind in reversed(TABLE)}  # the first of a name is the whole of it

HEIC = OF_NAME["HEIF"].suffixes
SUFFIXES = frozenset(suffix for suffix, kind in OF_SUFFIX.items() if kind.read and not kind.video)
VIDEO_SUFFIXES = frozenset(suffix for suffix, kind in OF_SUFFIX.items() if kind.video)
READ = frozenset(kind.name for kind in TABLE if kind.read and not kind.video)


def choices() -> dict[str, str]:
    """Return what `--format` takes and the suffix that each gives."""
    kinds = [kind for kind in TABLE if kind.becomes is None and kind.read and kind.name != "MPO"]
    return {suffix[1:]: kind.suffixes[0] for kind in kinds for suffix in kind.suffixes}


def format_of(suffix: str, video: bool = False) -> Format:
    """Return the format of pictures, or of videos also, that a suffix is written in; UserError where there is none."""
    kind = OF_SUFFIX.get(suffix.lower())
    if kind is None or (kind.video and not video):
        what = f"{suffix} is no picture format" if suffix else "the name has no suffix"
        raise UserError(f"{what}; use .png or .jpg")
    if kind.video and kind.becomes is not None:
        raise UserError(f"{kind.name} ({suffix}) is not written; use {kind.becomes}")
    if not kind.written:
        raise UserError(f"{kind.name} ({suffix}) cannot be written here; use .png or .jpg")
    return kind


def written_as(suffix: str) -> str:
    """Return the suffix of a result, given that of its photograph; PNG where it tells nothing or cannot be written."""
    kind = OF_SUFFIX.get(suffix.lower())
    if kind is None:
        return PNG
    return kind.becomes or (suffix if kind.written else PNG)


def described() -> str:
    """Return the table of formats in Markdown, as docs/guide/stylize.md has it."""
    lines = ["| format | files | alpha | animation | its result is |", "|---|---|---|---|---|"]
    for kind in TABLE:
        if kind.read:
            files = ", ".join(kind.suffixes)
            held = " | ".join("yes" if holds else "" for holds in (kind.alpha, kind.animated))
            lines.append(f"| {kind.name} | {files} | {held} | {kind.becomes or 'the same'} |")
    return "\n".join(lines)
