"""Damaged pictures: each gives a picture or a UserError of one line, in bounded time and memory."""

import faulthandler
import io
import itertools
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from nst_fast.errors import UserError
from nst_fast.stylizing.images import encode_image
from nst_fast.stylizing.jobs import Job, open_picture
from nst_fast.stylizing.looks import Looks, stylize_picture
from nst_fast.stylizing.stylizer import Stylizer

PICTURES, SECONDS, BYTES = 2000, 60, 4 << 30


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def originals() -> list[bytes]:
    """Small pictures of every format: plain, animated, with alpha, metadata, a palette or other compressions."""
    frames = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (3, 9, 14, 4), dtype=np.uint8)]
    picture, rgb = frames[0], frames[0].convert("RGB")
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "A. Person"
    exif.get_ifd(0x8769)[0x9003] = "2020:02:29 12:34:56"
    extra = {"exif": exif.tobytes()}
    profile = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    return [
        *(encoded(picture, "PNG", **options) for options in (extra, profile, animated)),
        *(encoded(rgb.convert(mode), "PNG") for mode in ("P", "L", "1")),
        *(encoded(rgb, "JPEG", **options) for options in (extra, profile, {"progressive": True})),
        encoded(rgb.convert("CMYK"), "JPEG"),
        *(encoded(picture, "GIF", **options) for options in ({}, animated)),
        *(encoded(picture, "WEBP", **options) for options in (extra, {"lossless": True}, animated)),
        *(encoded(rgb, "TIFF", **options) for options in (extra, {"compression": "jpeg"}, {"compression": "tiff_lzw"})),
        encoded(rgb.convert("P"), "TIFF", compression="packbits"),
        encoded(rgb.convert("1"), "TIFF", compression="group4"),
    ]


def png_chunks(content: bytes) -> list[bytes]:
    chunks, at = [content[:8]], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        chunks.append(content[at:end])
        at = end
    return chunks


def with_checksums(content: bytes) -> bytes:
    """A PNG whose damage is not told by its checksums."""
    first, *chunks = png_chunks(content)
    return first + b"".join(c[:-4] + struct.pack(">I", zlib.crc32(c[4:-4])) if len(c) >= 12 else c for c in chunks)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    way, is_png = rng.integers(4), content.startswith(b"\x89PNG")
    if way == 0:
        flipped = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 8)):
            flipped[place] ^= 1 << int(rng.integers(8))
        content = bytes(flipped)
    elif way == 1:
        return content[: rng.integers(len(content))]
    elif way == 2:
        place = rng.integers(len(content))
        content = content[:place] + rng.bytes(rng.integers(1, 20)) + content[place:]
    else:
        cuts = [0, *sorted(rng.integers(0, len(content), 4)), len(content)]
        pieces = png_chunks(content) if is_png else [content[a:b] for a, b in itertools.pairwise(cuts)]
        one, other = rng.integers(1, len(pieces), 2)
        pieces[one], pieces[other] = pieces[other], pieces[one]
        content = b"".join(pieces)
    return with_checksums(content) if is_png and rng.integers(4) else content


def fuzz(model: str, folder: Path) -> None:
    """Stylize damaged pictures in this process, whose memory is limited; a file gets a line each, null or the error."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    stylizer, looks = Stylizer(model, threads=1), Looks(max_side=20)
    sources, path = originals(), folder / "picture"
    with (folder / "errors").open("w", buffering=1) as errors:
        for number in range(PICTURES):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            rng = np.random.default_rng(number)
            path.write_bytes(damaged(sources[number % len(sources)], rng))
            suffix = str(rng.choice([".png", ".jpg", ".webp", ".gif", ".tif", ".bmp"]))
            job, said = Job(path, path.with_suffix(suffix)), None
            try:
                with open_picture(job) as image:
                    stylized, options = stylize_picture(job.name, image, stylizer, looks, suffix, keep_gps=True)
                with Image.open(io.BytesIO(encode_image(stylized, suffix, **options))) as result:
                    result.load()
            except UserError as error:
                said = str(error)
            errors.write(json.dumps(said) + "\n")
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    import torch  # not in the process with limited memory

    from nst_fast.training.networks import create_network
    from nst_fast.training.onnx_export import export

    torch.manual_seed(0)
    return export(create_network("fast", 8, 1), tmp_path_factory.mktemp("model") / "tiny.onnx", {})


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits a process's memory")
def test_damaged_pictures_are_stylized_or_refused_in_one_line(exported, tmp_path):
    command = [sys.executable, "-W", "ignore", __file__, str(exported), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    errors = [json.loads(line) for line in (tmp_path / "errors").read_text().splitlines()]
    assert done.returncode == 0, f"picture {len(errors)}: {done.stderr[-3000:]}"
    said = [error for error in errors if error is not None]
    assert len(errors) == PICTURES
    assert PICTURES / 10 < len(said) < PICTURES * 9 / 10
    for error in said:
        assert error.startswith(str(tmp_path / "picture"))
        assert "\n" not in error
        assert not error.endswith(": ")


if __name__ == "__main__":
    fuzz(sys.argv[1], Path(sys.argv[2]))
