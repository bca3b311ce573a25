"""What changes in stylized clips that does not change in the photographs: python benchmarks/flicker.py [NAME=MODEL...]

- shifts: photographs moved by whole pixels, right or down; the results, moved back, differ by so much from the first
  (root mean square);
- Sintel: two frames at 640×360 with true flow. The error is ReCoNet's: the root of the sum of squares where both frames
  see the same, over the number of all values;
- clips: the same with DIS optical flow, over 1 and over 10 frames;
- tone: the same over 10 frames of pictures that are blurred by 16 px: whether places change their colour as a whole.

All in [0, 1], each beside the judge's style_vgg16 and the energy of fine detail: what is weak or smeared is steady.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from itertools import islice
from pathlib import Path

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import av
import cv2
import numpy as np
import onnxruntime
import torch
from judging import SHARED, Judge
from PIL import Image, ImageOps
from scipy.ndimage import map_coordinates

from nst_fast.assets import shipped_models
from nst_fast.loss.terms import fine_detail
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.steadying import Steadying
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.onnx_export import source_commit

sys.path.insert(0, str(SHARED))
import judge

Frames = Sequence[np.ndarray]  # uint8 RGB (H, W, 3), one after the other in a clip
Painter = Callable[[Frames], list[np.ndarray]]
SHIFTS = (1, 2, 4, 7)  # px
BORDER = 16  # px, left out of pure shifts: what comes into view changes it
SIDE, SIZE = 512, (640, 360)  # px, of shifted photographs; of Sintel's frames and clips'
LENGTH, APART = 12, (1, 10)  # frames of a clip; between two that are compared
TONE = 16.0  # px, of the blur
START = 20  # frame of a clip
PAINTINGS = {"great_wave": "wave"}
PUBLISHED = {
    "what": "E_stab on MPI Sintel at 640×360, candy, as remembered of their papers: their clips, their styles",
    "ReCoNet 2018": [0.066, 0.086],
    "Huang et al. 2017, of weaker style": [0.030, 0.068],
    "Ruder et al. 2016, the slow optimiser": [0.020, 0.051],
}


@dataclass(frozen=True)
class Method:
    """A way to stylize consecutive frames.

    Attributes:
        paint: frames in, frames of the same size out.
        painting: its file; None: there is none to compare with.
        side: of shifted photographs, px: that of a peer's model which takes one size alone.
    """

    paint: Painter
    painting: Path | None = None
    side: int = SIDE


def one_by_one(stylizer: Stylizer, frames: Frames) -> list[np.ndarray]:
    return [stylizer.stylize_array(frame[None])[0] for frame in frames]


def tied(paint: Painter, frames: Frames) -> list[np.ndarray]:
    """Paint and steady, as `stylize --steady 1` does."""
    steady = Steadying(1.0)
    painted = zip(frames, paint(frames), strict=True)
    return [np.asarray(steady(Image.fromarray(frame), Image.fromarray(picture))) for frame, picture in painted]


def multistyle(session: onnxruntime.InferenceSession, style: int, frames: Frames) -> list[np.ndarray]:
    """Paint with a peer's network of 26 styles, float NCHW in [0, 1]."""
    weights = np.eye(26, dtype=np.float32)[style]
    images = (np.ascontiguousarray(frame.transpose(2, 0, 1)[None], np.float32) / 255 for frame in frames)
    pictures = (session.run(None, {"image": image, "style_weights": weights})[0][0] for image in images)
    return [np.rint(picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0) for picture in pictures]


def methods(given: Sequence[str], painting: str, underpainting: float | None) -> dict[str, Method]:
    """Return the untouched clip, the shipped models, others as NAME=FILE, and the peers'."""
    found = {"untouched": Method(list)}
    for name, file in [*sorted(shipped_models().items()), *(one.split("=", 1) for one in given)]:
        style = name if name in shipped_models() else painting
        picture = SHARED / "styles" / f"{PAINTINGS.get(style, style)}.jpg"
        found[name] = Method(partial(one_by_one, Stylizer(file, underpainting=underpainting)), picture)
        found[f"{name} --steady 1"] = Method(partial(tied, found[name].paint), picture)
    session = onnxruntime.InferenceSession(str(SHARED / "peers" / "multistyle26.onnx"))
    found["multistyle26"] = Method(partial(multistyle, session, 19), SHARED / "styles" / "starry_night.jpg")
    for name, picture in (("candy", SHARED / "styles" / "candy.jpg"), ("la_muse", None)):
        peer = Stylizer(SHARED / "peers" / f"winml_{name}_720.onnx", pixel_range=255, bgr=True)
        found[f"winml {name}"] = Method(partial(one_by_one, peer), picture, 720)
    return found


def warped(picture: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) as seen along a flow (H, W, 2), px: at x what it shows at x + flow, bilinear."""
    rows, columns = np.indices(flow.shape[:2])
    places = [rows + flow[..., 1], columns + flow[..., 0]]
    return np.stack([map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)], axis=2)


def inside(flow: np.ndarray) -> np.ndarray:
    """Return where a flow (H, W, 2) leads into the picture."""
    rows, columns = np.indices(flow.shape[:2])
    height, width = flow.shape[:2]
    y, x = rows + flow[..., 1], columns + flow[..., 0]
    return (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)


def error(first: np.ndarray, second: np.ndarray, flow: np.ndarray, seen: np.ndarray) -> float:
    """Return ReCoNet's error of two frames, uint8: the root of the masked sum of squares over all values."""
    difference = (first / 255 - warped(second / 255, flow)) * seen[..., None]
    return float(np.sqrt((difference**2).mean()))


def dis(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return DIS optical flow (H, W, 2) between two frames, px."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return flow.calc(*(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)), None)


@cache
def clip(file: Path) -> list[np.ndarray]:
    """Return consecutive frames of a clip."""
    with av.open(str(file)) as container:
        frames = list(islice(container.decode(video=0), START, START + LENGTH))
        return [np.asarray(frame.to_image().resize(SIZE, Image.Resampling.LANCZOS)) for frame in frames]


@cache
def along(file: Path, start: int, apart: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the flow between two frames of a clip, and where it agrees with the flow back (Sundaram et al. 2010)."""
    first, second = clip(file)[start], clip(file)[start + apart]
    forward, backward = dis(first, second), dis(second, first)
    there = np.stack([warped(backward[..., [0, 1, 1]], forward)[..., i] for i in (0, 1)], axis=2)
    size = (forward**2).sum(2) + (there**2).sum(2)
    return forward, inside(forward) & (((forward + there) ** 2).sum(2) < 0.01 * size + 0.5)


def sintel(folder: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return frames up to the second of a pair, the true flow between the two, px, and where both see the same."""
    frames = [
        np.asarray(load_image(folder / f"frame_000{i}.png").resize(SIZE, Image.Resampling.LANCZOS)) for i in (1, 2, 3)
    ]
    content = (folder / "frame_0002.flo").read_bytes()
    width, height = np.frombuffer(content, np.int32, 2, 4)
    flow = np.frombuffer(content, np.float32, offset=12).reshape(height, width, 2)
    scaled = cv2.resize(flow, SIZE, interpolation=cv2.INTER_LINEAR) * (SIZE[0] / width, SIZE[1] / height)
    hidden = [
        np.asarray(load_image(folder / f"{kind}_0002.png"))[..., 0].astype(np.float32) for kind in ("occ", "invalid")
    ]
    seen = cv2.resize(np.maximum(*hidden), SIZE, interpolation=cv2.INTER_LINEAR) == 0
    return frames, scaled, seen & inside(scaled)


def shifts(method: Method) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the root mean square difference for each shift, right and down, and the pictures."""
    squares: dict[int, list[float]] = {shift: [] for shift in SHIFTS}
    pictures = []
    for file in sorted((SHARED / "photos").glob("*.jpg")):
        large = np.asarray(ImageOps.fit(load_image(file), (method.side + 8,) * 2, Image.Resampling.LANCZOS))
        moves = [(0, 0), *((shift * down, shift * right) for down, right in ((0, 1), (1, 0)) for shift in SHIFTS)]
        frames = [np.ascontiguousarray(large[y : y + method.side, x : x + method.side]) for y, x in moves]
        first, *others = method.paint(frames)
        for (y, x), second in zip(moves[1:], others, strict=True):
            there = (first[y:, x:] / 255.0)[BORDER:-BORDER, BORDER:-BORDER]
            here = (second[: method.side - y, : method.side - x] / 255.0)[BORDER:-BORDER, BORDER:-BORDER]
            squares[max(y, x)].append(float(((there - here) ** 2).mean()))
        pictures.append(second)  # which `--steady` has tied to all before
    return {f"{shift} px": float(np.sqrt(np.mean(square))) for shift, square in squares.items()}, pictures


@cache
def judge_of(painting: Path) -> Judge:
    return Judge(painting)


@torch.no_grad()
def looks(pictures: Frames, painting: Path | None) -> dict[str, float | None]:
    """Return the judge's style_vgg16 of pictures, at the painting size that fits best, and their fine detail."""
    images = [judge.tensor(picture) for picture in pictures]
    figures = {
        "style_vgg16": None,
        "fine_detail": statistics.fmean(float(fine_detail(i).square().mean()) for i in images),
    }
    if painting is None:
        return figures
    seen = judge_of(painting)
    return figures | {"style_vgg16": min(seen.style(seen.grams(picture) for picture in pictures).values())}


def measured(method: Method) -> dict[str, object]:
    rms, moved = shifts(method)
    figures: dict[str, object] = {"shifts": rms | looks(moved, method.painting)}
    shown = []
    for name in ("easy", "medium"):
        frames, flow, seen = sintel(SHARED / "flow" / f"sintel_{name}")
        _, first, second = method.paint(frames)
        figures[f"sintel {name}"] = error(first, second, flow, seen)
        shown.append(second)
    clips: dict[str, list[float]] = {}
    tones = []
    for file in sorted((SHARED / "video").iterdir()):
        pictures = method.paint(clip(file))
        shown.append(pictures[-1])
        blurred = [cv2.GaussianBlur(pictures[i], (0, 0), TONE) for i in (0, APART[1])]
        tones.append(error(*blurred, *along(file, 0, APART[1])))
        clips[file.stem] = [
            float(np.mean([error(pictures[i], pictures[i + n], *along(file, i, n)) for i in (0, LENGTH - 1 - n)]))
            for n in APART
        ]
    for i, n in enumerate(APART):
        figures[f"clips over {n}"] = statistics.fmean(one[i] for one in clips.values())
    figures["tone"] = statistics.fmean(tones)
    return figures | {"clips": clips, "frames": looks(shown, method.painting)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="others, NAME=FILE")
    parser.add_argument("--painting", default="starry_night", help="of the others")
    parser.add_argument("--underpainting", type=float, help="of all models; default: their own")
    parser.add_argument("--only", nargs="*", help="names; of others the file keeps what it has")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found = methods(options.models, options.painting, options.underpainting)
    kept = json.loads(options.output.read_text())["figures"] if options.only and options.output.exists() else {}
    for name in options.only or found:
        kept[name] = measured(found[name]) | {"commit": source_commit(), "date": date.today().isoformat()}
        print(name, json.dumps(kept[name]), flush=True)
        write(options.output, {name: kept[name] for name in [*found, *kept] if name in kept})


def write(output: Path, figures: dict[str, object]) -> None:
    report = {
        "what": f"shifts of {SIDE} px photographs (winml: 720, its only size), clips of {SIZE[0]}×{SIZE[1]} px",
        "versions": {"onnxruntime": onnxruntime.__version__, "opencv": cv2.__version__, "av": av.__version__},
        "device": f"CPU, {os.cpu_count()} cores",
        "figures": figures,
        "published": PUBLISHED,
    }
    output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
