"""Paint what a camera or a video file shows, frame by frame, in a window or into a file.

pip install "nst_fast[video]"
python camera.py 0 starry_night                      # the first camera, in a window; close it to stop
python camera.py clip.mp4 the_scream painted.mp4     # `stylize clip.mp4` keeps sound and times, too
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from PIL import Image

from nst_fast import Stylizer
from nst_fast.errors import UserError


def open_source(source: str) -> cv2.VideoCapture:
    """Open a camera by its number, at about 640 px, or a file by its name."""
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not capture.isOpened():
        sys.exit(f"no camera or video {source!r}")
    if source.isdecimal():
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, 640)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # or frames that wait would be shown late
    return capture


def paint(capture: cv2.VideoCapture, style: str) -> Iterator[np.ndarray]:
    """Yield painted frames, uint8 RGB (H, W, 3)."""
    stylizer = Stylizer("gallery")
    while (read := capture.read())[0]:
        yield stylizer(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), style)


def show(frames: Iterable[np.ndarray]) -> None:
    """Show frames in a window until they end or it is closed; the extra's OpenCV has no windows, Python's Tk has."""
    import tkinter

    from PIL import ImageTk

    label = tkinter.Label(tkinter.Tk())
    label.pack()
    with contextlib.suppress(tkinter.TclError):  # it is closed
        for frame in frames:
            picture = ImageTk.PhotoImage(Image.fromarray(frame), master=label)
            label.configure(image=picture)
            label.update()


def write(frames: Iterable[np.ndarray], path: str, rate: float) -> None:
    """Write frames as a video of so many a second."""
    writer = None
    for frame in frames:
        if writer is None:
            writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), rate, frame.shape[1::-1])
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    capture = open_source(sys.argv[1])
    frames = paint(capture, sys.argv[2])
    try:
        if len(sys.argv) == 4:
            write(frames, sys.argv[3], capture.get(cv2.CAP_PROP_FPS) or 25)
        else:
            show(frames)
    except UserError as error:  # no such style
        sys.exit(str(error))
