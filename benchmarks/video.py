"""`stylize clip.mp4` against a plain loop and bare session.run: python benchmarks/video.py

- frames/s end to end, with start and sound, against a script that decodes, runs and encodes frame by frame with the
  same codec and quality, and against session.run on frames that are in memory;
- processor seconds a frame of the three, with their starts: other work on the machine changes them less;
- peak memory for two lengths of the same clip.

All take turns on the same model, clip, machine and threads, once a frame: without an underpainting. Medians and their
ratios are written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from fractions import Fraction
from itertools import islice
from pathlib import Path

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import av
import numpy as np
import onnxruntime
import skimage.data
from PIL import Image

from nst_fast.assets import find_model
from nst_fast.stylizing.video import ENCODERS
from nst_fast.training.onnx_export import source_commit

SESSION = """
import json, sys, time
import av, numpy, onnxruntime
model, source, target, threads, codec, options = sys.argv[1:]
session_options = onnxruntime.SessionOptions()
session_options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])
"""
LOOP = (
    SESSION
    + """
with av.open(source) as clip, av.open(target, "w") as result:
    frames = clip.streams.video[0]
    stream = result.add_stream(codec, rate=frames.average_rate, options=json.loads(options))
    stream.width, stream.height = frames.width, frames.height
    for frame in clip.decode(frames):
        stylized = session.run(None, {"image": frame.to_ndarray(format="rgb24")[None]})[0][0]
        result.mux(stream.encode(av.VideoFrame.from_ndarray(stylized, format="rgb24")))
    result.mux(stream.encode())
"""
)
BARE = (
    SESSION
    + """
with av.open(source) as clip:
    frames = [frame.to_ndarray(format="rgb24")[None] for frame in clip.decode(video=0)]
session.run(None, {"image": frames[0]})
began = time.perf_counter()
for frame in frames:
    session.run(None, {"image": frame})
print(len(frames) / (time.perf_counter() - began))
"""
)
# The peak of a child process, kB, printed by itself; getrusage would have what its parent had when it was forked.
MEASURED = """
import re, sys
from pathlib import Path
from nst_fast.commands.stylize import stylize
stylize(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def make_clip(path: Path, frames: int, source: Path | None) -> None:
    """Write a 720p clip of so many frames with sound: the first ones of another, again and again, or a pan."""
    if source is not None:
        with av.open(str(source)) as clip:
            pictures = [frame.to_ndarray(format="rgb24") for frame in islice(clip.decode(video=0), 60)]
    else:
        photograph = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((1400, 1400)))
        pictures = [photograph[300 : 300 + 720, 2 * i : 2 * i + 1280] for i in range(60)]
    with av.open(str(path), "w") as result:
        stream = result.add_stream("libx264", rate=30, options={"crf": "18"})
        stream.height, stream.width = pictures[0].shape[:2]
        sound = result.add_stream("aac", rate=48_000)
        noise = np.random.default_rng(0).normal(0, 0.1, (2, 1600)).astype(np.float32)
        for i in range(frames):
            picture = np.ascontiguousarray(pictures[i % len(pictures)])
            result.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            heard = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = 48_000, 1600 * i, Fraction(1, 48_000)
            result.mux(sound.encode(heard))
        result.mux(stream.encode())
        result.mux(sound.encode())


def seconds(command: list[str]) -> tuple[float, float, str]:
    """Return how long a command takes, how long on processors, and what it prints."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, told


def peak_gigabytes(arguments: list[str]) -> float:
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starry_night")
    parser.add_argument("--clip", type=Path, help="a 720p clip whose first 60 frames are taken; default: a pan")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--long-frames", type=int, default=600, help="of the longer clip for memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    model, threads = str(find_model(options.model)), str(options.threads)
    encoder = ENCODERS["MP4"]
    codec = [encoder.codec, json.dumps(encoder.options_at(95))]
    base = ["--model", model, "--threads", threads, "--underpainting", "0", "--overwrite"]
    rates: dict[str, list[float]] = {"stylize": [], "plain loop": [], "session.run": []}
    costs: dict[str, list[float]] = {key: [] for key in rates}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, long, result = folder / "clip.mp4", folder / "long.mp4", str(folder / "result.mp4")
        make_clip(clip, options.frames, options.clip)
        make_clip(long, options.long_frames, options.clip)
        for turn in range(options.rounds):
            ours = [sys.executable, "-m", "nst_fast.commands.stylize", *base, str(clip), "-o", result]
            loop = [sys.executable, "-c", LOOP, model, str(clip), result, threads, *codec]
            bare = [sys.executable, "-c", BARE, model, str(clip), result, threads, *codec]
            for key, command in zip(rates, (ours, loop, bare), strict=True):
                wall, processors, told = seconds(command)
                rates[key].append(float(told) if key == "session.run" else options.frames / wall)
                costs[key].append(processors / options.frames)
            print(turn, {key: round(rate[-1], 3) for key, rate in rates.items()}, flush=True)
        peaks = {
            f"{frames} frames": peak_gigabytes([*base, str(path), "-o", result])
            for path, frames in ((clip, options.frames), (long, options.long_frames))
        }
    medians = {key: statistics.median(rate) for key, rate in rates.items()}
    report = {
        "model": options.model,
        "clip": f"{options.clip.name if options.clip else 'a pan'}, 1280×720 with sound, {options.frames} frames",
        "threads": options.threads,
        "load": f"{os.getloadavg()[0]:.1f} processes at the end, on {os.cpu_count()} cores",
        "versions": {"onnxruntime": onnxruntime.__version__, "av": av.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "frames_per_second": medians,
        "all": rates,
        "processor_seconds_per_frame": {key: statistics.median(cost) for key, cost in costs.items()},
        "stylize to plain loop": medians["stylize"] / medians["plain loop"],
        "stylize to session.run": medians["stylize"] / medians["session.run"],
        "peak_GB": peaks,
    }
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
