"""Video files in and out, on PyAV: frames as pictures at their times, sound and subtitles as packets."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, VideoReformatter
from PIL import Image

from nst_fast.errors import UserError, one_line
from nst_fast.stylizing.images import fill_hidden

logger = logging.getLogger(__name__)

# What is read; playlists, which could name any file or address, are not.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg"
SWSCALE = 0x4 | 0x2000 | 0x40000  # bicubic, full chroma, exact rounding: PyAV 17 has no names for these
# Matrices of H.273, and swscale's numbers for them.
BT709, UNSPECIFIED, BT601 = 1, 2, 5
MATRICES = {BT709: BT709, 4: 4, BT601: BT601, 6: BT601, 7: 7, 9: 9}
HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
OWN_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder"})


@dataclass(frozen=True)
class Encoder:
    """How a format's videos are written.

    Attributes:
        container, codec: FFmpeg's names.
        quality: the codec's options for it, and their value at 1 and at 100.
        options: of the codec.
        muxing: of the container.
        pixels: the format of frames.
        tagged: whether the file says what its numbers mean as colours.
        step: s, of which times are multiples; 0: the mean distance of frames; None: as in the source.
    """

    container: str
    codec: str
    quality: tuple[str, float, float] = ("", 0, 0)
    options: dict[str, str] = field(default_factory=dict)
    muxing: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    tagged: bool = True
    step: Fraction | None = None

    def options_at(self, quality: int) -> dict[str, str]:
        """Return the codec's options at a quality, 1 to 100."""
        names, worst, best = self.quality
        value = round(worst + (best - worst) * (quality - 1) / 99)
        return self.options | dict.fromkeys(names.split(), str(value))


# Slower presets take the cores from the network: medium three times as long, for 1.3 dB.
X264 = ("libx264", ("crf", 51, 16), {"preset": "veryfast"})
VP9 = ("libvpx-vp9", ("crf", 63, 27), {"deadline": "realtime", "cpu-used": "5", "row-mt": "1"})
WEB = {"movflags": "faststart"}
ENCODERS = {
    "MP4": Encoder("mp4", *X264, muxing=WEB),
    "QuickTime": Encoder("mov", *X264, muxing=WEB),
    "Matroska": Encoder("matroska", *X264),
    "WebM": Encoder("webm", *VP9),
    # H.264 would be shown a frame late.
    "AVI": Encoder("avi", "mpeg4", ("qmin qmax", 31, 2), tagged=False, step=Fraction(0)),
    "GIF": Encoder("gif", "gif", pixels="pal8", tagged=False, step=Fraction(1, 100)),
    "WEBP": Encoder(
        "webp",
        "libwebp_anim",
        ("quality", 1, 100),
        muxing={"loop": "0"},
        pixels="bgra",
        tagged=False,
        step=Fraction(1, 1000),
    ),
}


@dataclass(frozen=True)
class Colours:
    """What numbers mean, as H.273 counts it: 2 is unspecified; of the range 1 is limited, 2 full, 0 unspecified."""

    matrix: int = BT709
    range: int = int(ColorRange.MPEG)
    primaries: int = BT709
    transfer: int = BT709

    def conversion(self, side: str, width: int, height: int) -> dict[str, Any]:
        """Return swscale's options for frames of a size, px, on a side, "src" or "dst", of a conversion.

        A matrix that is unspecified is guessed by the size, as players do.
        """
        guess = BT709 if width >= 1280 or height > 576 else BT601
        full = self.range == ColorRange.JPEG
        return {
            f"{side}_colorspace": MATRICES.get(self.matrix, guess),
            f"{side}_color_range": ColorRange.JPEG if full else ColorRange.MPEG,
        }


@dataclass(frozen=True)
class Frame:
    """A picture of a clip.

    Attributes:
        picture: upright RGB.
        alpha: of its size; None: nothing is hidden.
        time, duration: s.
    """

    picture: Image.Image
    alpha: Image.Image | None
    time: Fraction
    duration: Fraction


@dataclass
class Clip:
    """What the result of a clip has as the clip has it.

    Attributes:
        step: s, of which times are multiples.
        rate: frames/s, the mean.
        aspect: width over height of a pixel.
        colours: of its frames.
        streams: its sound and subtitles.
        metadata: of the file.
    """

    step: Fraction
    rate: Fraction
    aspect: Fraction = Fraction(1)
    colours: Colours = Colours()
    streams: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Report FFmpeg's errors as a UserError that names the video."""
    try:
        yield
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise UserError(f"{name} cannot be read as a video: it is damaged, or of a kind that is not read") from error
    except av.FFmpegError as error:
        raise UserError(f"{name} cannot be read as a video: {one_line(error)}") from error


class VideoReader:
    """The frames and packets of a video file, or of a span of it.

    Args:
        path: the file.
        span: its first and last second.
        threads: for decoding; 0 takes every core.

    Attributes:
        size: width and height of its frames as they are stored, px.
        clip: what its result has as it has it; aspect and colours are known from the first frame on.
        expected: how many frames there are, as far as the file says.
        length: s, of the span, as far as the file says; 0 where it does not.
        damaged: how many could not be decoded, or not fully.

    Raises UserError where it cannot be read, or has no video.
    """

    def __init__(self, path: Path, span: tuple[float, float] = (0, math.inf), threads: int = 0) -> None:
        self.name, self.damaged, self.end = str(path), 0, Fraction(0)
        with reading(self.name):  # "file:" keeps a name from being an address
            allowed = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
            self.container: Any = av.open(f"file:{path}", container_options=allowed, metadata_errors="replace")
        self.stream = stream = self.find_stream()
        self.size = stream.width, stream.height
        stream.codec_context.thread_count, stream.codec_context.thread_type = threads, "AUTO"
        stream.codec_context.flags |= Flags.output_corrupt  # as players do: until a key frame comes it is all there is
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        others = [*self.container.streams.audio, *self.container.streams.subtitles]
        self.clip = Clip(stream.time_base, rate, streams=others, metadata=dict(self.container.metadata))
        begin = Fraction(self.container.start_time or 0, av.time_base)
        self.shift = Fraction(span[0]).limit_denominator(1000)
        self.first = begin + self.shift if span[0] else None
        self.last = begin + Fraction(span[1]).limit_denominator(1000) if span[1] < math.inf else None
        length = (self.container.duration or 0) / av.time_base
        shown = max(0, min(span[1], length) - span[0]) if length else 0
        self.expected = round(shown * rate) if shown < length else stream.frames or round(length * rate)
        self.length = shown or (span[1] - span[0] if span[1] < math.inf else 0.0)
        self.reformatter = VideoReformatter()
        self.begun, self.turn = False, (1, 0, 0, 1)

    def find_stream(self) -> Any:
        """Return the stream of frames; raises UserError where there is none, it cannot be decoded or is a bomb."""
        videos = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            raise UserError(f"{self.name} holds no video")
        if len(videos) > 1:
            logger.warning("%s holds %d videos; the first alone is stylized", self.name, len(videos))
        stream, most = videos[0], Image.MAX_IMAGE_PIXELS
        if stream.codec_context is None or not stream.width or not stream.height:
            raise UserError(f"{self.name} cannot be read as a video: its codec, or the size of its frames, is unknown")
        if most is not None and stream.width * stream.height > most:
            size = f"{stream.width}×{stream.height}"
            raise UserError(f"{self.name} claims a huge size, perhaps a bomb; --huge opens it: frames of {size}")
        return stream

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def __iter__(self) -> Iterator[Frame | av.Packet]:
        """Yield frames, and the packets of other streams, in the order of the file; the span begins at 0.

        Damaged frames are counted; a file that is cut off ends there, with a warning.
        """
        ended: set[int] = set()
        needed = {self.stream.index, *(stream.index for stream in self.container.streams.audio)}
        if self.first is not None:
            with reading(self.name):
                self.container.seek(int(self.first * av.time_base))
        for packet in self.packets():
            index = self.stream.index if packet is None else packet.stream.index
            if index in ended:
                continue
            for item, time in self.decode(packet) if index == self.stream.index else [(packet, time_of(packet))]:
                if self.last is not None and time >= self.last:
                    ended.add(index)
                elif self.first is None or time >= self.first:
                    yield self.shifted(item)
            if ended >= needed:
                return

    def packets(self) -> Iterator[Any]:
        """Yield the file's packets up to where it is cut off, then None."""
        packets, reached = self.container.demux([self.stream, *self.clip.streams]), Fraction(0)
        announced = Fraction((self.container.start_time or 0) + (self.container.duration or 0), av.time_base)
        try:
            for packet in packets:
                if packet.size and (packet.dts is not None or packet.stream is self.stream):
                    reached = max(reached, Fraction(0) if packet.dts is None else time_of(packet))
                    yield packet  # without a time there is no place for sound
        except av.FFmpegError as error:
            logger.warning("%s is damaged at %.1f s and ends there: %s", self.name, reached, one_line(error))
        else:
            if reached + 1 < announced:
                logger.warning("%s ends at %.1f of %.1f s: it may be cut off", self.name, reached, announced)
        yield None

    def decode(self, packet: av.Packet | None) -> Iterator[tuple[Frame, Fraction]]:
        """Yield the frames that a packet completes, what remains for None, each with its time."""
        try:
            frames = self.stream.decode(packet)
        except av.error.EOFError:
            return
        except av.FFmpegError:
            self.damaged += 1
            return
        for frame in frames:
            time = self.end if frame.pts is None else frame.pts * self.clip.step
            duration = frame.duration * self.clip.step if frame.duration else 1 / self.clip.rate
            self.end = time + duration
            if self.first is None or time >= self.first:  # what comes before is not converted
                self.damaged += frame.is_corrupt
                yield Frame(*self.picture(frame), time, duration), time

    def shifted(self, item: Any) -> Any:
        """Return a frame or a packet as it is timed where the span begins at 0."""
        if not self.shift:
            return item
        if isinstance(item, Frame):
            return replace(item, time=item.time - self.shift)
        ticks = round(self.shift / item.time_base)
        item.dts -= ticks
        if item.pts is not None:
            item.pts -= ticks
        return item

    def picture(self, frame: av.VideoFrame) -> tuple[Image.Image, Image.Image | None]:
        """Return a frame as an upright RGB picture and its alpha or None; raises UserError for unknown colours."""
        if not frame.format.is_rgb and frame.colorspace not in {*MATRICES, UNSPECIFIED, 0, 3}:
            raise UserError(f"{self.name} has colours of a kind that is not read: matrix {frame.colorspace} of H.273")
        if not self.begun:
            self.begin(frame)
        clear = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
        options: dict[str, Any] = {"format": "rgba" if clear else "rgb24", "interpolation": SWSCALE}
        if not frame.format.is_rgb:
            own = Colours(frame.colorspace, frame.color_range)
            options |= own.conversion("src", frame.width, frame.height)
        if frame.color_trc in HDR:
            options |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
        with reading(self.name):
            pixels = self.reformatter.reformat(frame, dst_color_range=ColorRange.JPEG, **options).to_ndarray()
        picture = Image.fromarray(np.ascontiguousarray(upright(pixels, self.turn)))
        if not clear:
            return picture, None
        alpha = picture.getchannel("A")
        return fill_hidden(picture.convert("RGB"), alpha), alpha

    def begin(self, frame: av.VideoFrame) -> None:
        """Note how the first frame is turned, its aspect and colours, and say what the result has no place for."""
        self.begun = True
        self.turn = display_matrix(frame)  # not asked of every frame: PyAV would keep them all in memory
        context, aspect = self.stream.codec_context, self.stream.sample_aspect_ratio or Fraction(1)
        self.clip.aspect = 1 / aspect if abs(self.turn[1]) > abs(self.turn[0]) else aspect
        bits = max(part.bits for part in frame.format.components)
        if frame.color_trc in HDR:
            if int(av.__version__.split(".")[0]) < 18:
                raise UserError(f"{self.name} is HDR, which needs PyAV 18 and so Python 3.11; here is {av.__version__}")
            logger.warning(
                "%s is HDR (%s) of %d bits; its result is SDR of 8: what shines brighter than white paper is white",
                *(self.name, HDR[frame.color_trc], bits),
            )
        elif bits > 8:
            logger.warning("%s has %d bits a colour; its result has 8", self.name, bits)
        if frame.color_trc not in HDR and not frame.format.is_rgb:
            self.clip.colours = Colours(  # a container's word comes before its codec's
                context.colorspace if context.colorspace != UNSPECIFIED else frame.colorspace,
                context.color_range or frame.color_range,
                *(context.color_primaries, context.color_trc),
            )


def time_of(packet: Any) -> Fraction:
    """Return when a packet is shown or heard, s."""
    return (packet.dts if packet.pts is None else packet.pts) * packet.time_base


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c and d of x' = a x + c y, y' = b x + d y, which shows a frame upright."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d


def upright(pixels: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """Return pixels (H, W, channels) turned by multiples of 90° and mirrored as a display matrix says."""
    a, b, c, d = turn
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class VideoWriter:
    """A video file that grows frame by frame.

    Args:
        path: the file, of any name.
        encoder: how it is written.
        clip: what it has as its source has it.
        quality: 1 to 100.
        threads: for encoding; 0 takes every core.

    Attributes:
        frames: how many there are.
        size: width and height, px, from the first one on.
        end: s, where the last one ends.
    """

    def __init__(self, path: Path, encoder: Encoder, clip: Clip, quality: int = 95, threads: int = 0) -> None:
        self.encoder, self.clip, self.quality, self.threads = encoder, clip, quality, threads
        self.container: Any = av.open(f"file:{path}", "w", format=encoder.container, options=encoder.muxing)
        self.frames, self.size, self.end, self.ticks = 0, (0, 0), Fraction(0), -math.inf
        self.early: list[av.Packet] = []
        self.colours = Colours(UNSPECIFIED, 0, UNSPECIFIED, UNSPECIFIED)
        self.copies: dict[int, Any] = {}
        self.stream: Any = None
        self.reformatter = VideoReformatter()

    def write(self, picture: Image.Image, time: Fraction, duration: Fraction) -> None:
        """Add an RGB picture from a time, s, on, unless the one before has that time; it is brought to their size."""
        if self.stream is None:
            self.begin(*picture.size)
        step = self.stream.codec_context.time_base
        ticks = round(time / step)
        if ticks <= self.ticks:
            return
        frame = self.to_frame(picture)
        frame.pts, frame.time_base, frame.duration = ticks, step, max(1, round(duration / step))
        self.container.mux(self.stream.encode(frame))
        self.frames, self.ticks, self.end = self.frames + 1, ticks, time + duration

    def begin(self, width: int, height: int) -> None:
        """Add the streams, once the size of the first frame is known, and what has come before it."""
        clip, encoder = self.clip, self.encoder
        step = clip.step if encoder.step is None else encoder.step or 1 / clip.rate
        rate, options = clip.rate.limit_denominator(1 << 15), encoder.options_at(self.quality)
        self.stream = self.container.add_stream(encoder.codec, rate=rate, options=options, time_base=step)
        context = self.stream.codec_context
        if encoder.pixels == "yuv420p":
            context.sample_aspect_ratio = clip.aspect
            self.size = max(2, width // 2 * 2), max(2, height // 2 * 2)
        else:  # which knows square pixels alone
            self.size = max(1, round(width * clip.aspect)), height
        context.width, context.height = self.size
        context.pix_fmt, context.flags = encoder.pixels, context.flags | Flags.frame_duration
        context.thread_count, context.thread_type = self.threads, "AUTO"
        if encoder.tagged:
            self.colours = clip.colours
        context.colorspace, context.color_range = self.colours.matrix, self.colours.range
        context.color_primaries, context.color_trc = self.colours.primaries, self.colours.transfer
        self.container.metadata.update({k: v for k, v in clip.metadata.items() if k not in OWN_TAGS})
        self.copies = {other.index: copy for other in clip.streams if (copy := self.copied(other)) is not None}
        for packet in self.early:
            self.copy(packet)

    def copied(self, stream: Any) -> Any:
        """Return the stream of the result for one of the source's sound or subtitles; None where it has no place."""
        try:
            copy = self.container.add_stream_from_template(stream)
        except ValueError:
            name = stream.codec_context.codec.canonical_name if stream.codec_context else "of an unknown codec"
            place = self.encoder.container
            logger.warning("%s (%s) has no place in %s and is left out; .mkv has one", stream.type, name, place)
            return None
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        return copy

    def copy(self, packet: av.Packet) -> None:
        """Add a packet of the source's sound or subtitles as it is."""
        if self.stream is None:
            self.early.append(packet)
        elif packet.stream.index in self.copies:
            packet.stream = self.copies[packet.stream.index]
            self.container.mux(packet)

    def to_frame(self, picture: Image.Image) -> av.VideoFrame:
        """Return an RGB picture as a frame for the encoder; of an odd side the last row or column is left out."""
        if all(0 <= side - kept <= 1 for side, kept in zip(picture.size, self.size, strict=True)):
            picture = picture.crop((0, 0, *self.size))
        if self.encoder.pixels == "pal8":
            return with_palette(picture if picture.size == self.size else picture.resize(self.size))
        frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        options = self.colours.conversion("dst", *self.size) if self.encoder.pixels == "yuv420p" else {}
        return self.reformatter.reformat(
            frame, *self.size, self.encoder.pixels, src_color_range=ColorRange.JPEG, interpolation=SWSCALE, **options
        )

    def flush(self) -> None:
        """Write the frames that the encoder still holds."""
        self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Close the file, which plays from then on."""
        self.container.close()


def with_palette(picture: Image.Image) -> av.VideoFrame:
    """Return an RGB picture as a frame of 256 colours of its own."""
    indexed = picture.quantize(256)
    colours = np.reshape(indexed.getpalette() or [], (-1, 3))
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    palette[: len(colours), 1:] = colours
    pair: Any = (np.asarray(indexed), palette)
    return av.VideoFrame.from_ndarray(pair, format="pal8")
