"""A clip in, a stylized clip out: its frames through the model, several at once, in bounded memory."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any

import av
from av.codec.codec import UnknownCodecError
from PIL import Image

from nst_fast.errors import UserError, one_line
from nst_fast.files import replacing
from nst_fast.stylizing.images import over_white
from nst_fast.stylizing.looks import WHOLE, Looks, Saving, read_frames
from nst_fast.stylizing.stylizer import TILED_ABOVE, Painter, among
from nst_fast.stylizing.video import Clip, Encoder, Frame, VideoReader, VideoWriter

logger = logging.getLogger(__name__)


class AnimationReader:
    """The frames of an animated picture, as `VideoReader` gives those of a video.

    Args:
        name: what messages call it.
        image: opened; raises UserError where it is of one frame.
        span: its first and last second.

    Attributes:
        length: s, of the span, if all frames are shown as long as the first.
    """

    damaged = 0

    def __init__(self, name: str, image: Image.Image, span: tuple[float, float]) -> None:
        self.name, self.image, self.span = name, image, span
        self.expected, self.size = getattr(image, "n_frames", 1), image.size
        if self.expected == 1:
            image.close()
            raise UserError(f"{name} is a single picture; only a video or an animation becomes a video")
        self.clip = Clip(Fraction(1, 1000), 1000 / Fraction(image.info.get("duration") or 100).limit_denominator(1000))
        self.length = min(span[1], float(self.expected / self.clip.rate)) - span[0]

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames of the span, which begins at 0."""
        time, (first, last) = Fraction(0), self.span
        for picture, alpha, milliseconds in read_frames(self.name, self.image, every=True):
            duration = Fraction(milliseconds or 100).limit_denominator(1000) / 1000  # as browsers show no time at all
            if first <= time < last:
                # A copy: Pillow puts the next frame in the same place.
                yield Frame(picture.copy(), alpha, time - Fraction(first).limit_denominator(1000), duration)
            time += duration

    def close(self) -> None:
        """Close the file."""
        self.image.close()


def in_order(
    items: Iterable[Any], work: Callable[[Frame], Image.Image], at_once: int
) -> Iterator[tuple[Any, Image.Image | None]]:
    """Yield frames with what work makes of them, several at once, and packets with None, all in their order."""
    waiting: deque[tuple[Any, Future[Image.Image] | None]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item) if isinstance(item, Frame) else None))
            # One more than run, so that no thread waits for the decoder.
            while waiting and (sum(f is not None for _, f in waiting) > at_once + 1 or is_done(waiting[0][1])):
                first, future = waiting.popleft()
                yield first, None if future is None else future.result()
        for first, future in waiting:
            yield first, None if future is None else future.result()


def is_done(future: Future[Any] | None) -> bool:
    """Return whether nothing has to be waited for."""
    return future is None or future.done()


def stylize_clip(
    reader: VideoReader | AnimationReader,
    target: Path,
    encoder: Encoder,
    stylizer: Painter,
    looks: Looks,
    saving: Saving,
    watch: Callable[[int, int], None] = lambda done, expected: None,
    stop: threading.Event | None = None,
) -> VideoWriter:
    """Stylize a clip and return the closed writer of its result, which knows its size and number of frames.

    Args:
        reader: of the clip.
        target: a file, which appears once it is whole.
        encoder: how it is written.
        stylizer: the model.
        looks: what happens around it.
        saving: how it is written.
        watch: is told after each frame how many are done and how many there are, as far as is known.
        stop: once set, the clip ends after the frames that are under way.

    Raises UserError where it cannot be read, stylized or written.
    """
    pixels = looks.pixels(*reader.size)
    at_once = max(1, min(stylizer.runs_at_once, int(TILED_ABOVE / pixels)))
    painter = among(stylizer, pixels)
    halt = stop or threading.Event()
    steady = None
    if looks.steady:
        from nst_fast.stylizing.steadying import Steadying  # here: OpenCV, which nothing else needs

        steady = Steadying(looks.steady, stylizer.threads)
    if not saving.keep_gps:
        reader.clip.metadata = {k: v for k, v in reader.clip.metadata.items() if "location" not in k.lower()}

    if looks.to_style is not None and not reader.length:
        raise UserError(f"{reader.name} does not say how long it is, which --to-style needs: give --to, its end")
    end = reader.length - 1 / float(reader.clip.rate)  # when its last frame begins

    def apply(frame: Frame) -> Image.Image:
        share = min(1.0, float(frame.time) / end) if end > 0 else 1.0
        stylized = looks.at(share).apply(painter, frame.picture)
        return stylized if frame.alpha is None else over_white(stylized, frame.alpha.resize(stylized.size))

    try:
        with (
            replacing(target, saving.overwrite) as temporary,
            contextlib.closing(
                VideoWriter(temporary, encoder, reader.clip, saving.quality, stylizer.threads)
            ) as writer,
        ):
            for item, stylized in in_order(takewhile(lambda _: not halt.is_set(), reader), apply, at_once):
                if stylized is None:
                    writer.copy(item)
                    continue
                if steady is not None:
                    stylized = steady(item.picture, stylized)
                writer.write(stylized, item.time, item.duration)
                watch(writer.frames, reader.expected)
            if not writer.frames:
                within = "" if saving.span == WHOLE else " between these times"
                raise UserError(
                    f"{reader.name} gives no frame" + (" before the interruption" if halt.is_set() else within)
                )
            writer.flush()
    except (av.FFmpegError, UnknownCodecError) as error:
        raise UserError(f"cannot write {target}: {one_line(error)}") from error
    if reader.damaged:
        logger.warning("%s: damaged frames: %d of %d", reader.name, reader.damaged, max(reader.expected, writer.frames))
    if halt.is_set():
        logger.warning("%s was interrupted: it plays %.2f s, %d frames", target, writer.end, writer.frames)
    return writer
