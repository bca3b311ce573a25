"""What benchmarks of pictures share: train a model unless it is there, and ask the outside judge."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch is left to those that ask the judge here
    import torch
    from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = ["data=folder", f"data.root={SHARED / 'content' / 'train'}"]
TEACHERS = [
    "loss_network=teachers",
    f"loss_network.shallow={SHARED / 'teachers' / 'vgg19_normalised_to_conv3_1.safetensors'}",
    f"loss_network.deep={SHARED / 'teachers' / 'vgg19_quarter_width_to_conv5_1.safetensors'}",
]


def trained(style: Path, run: Path, options: list[str], data: Sequence[str] = DATA) -> tuple[Any, Path]:
    """Train a painting with these options of `train`, unless its model is in the run already.

    Returns the run's summary and the model.
    """
    model = run / f"{style.stem}.onnx"
    if not model.exists():
        command = [sys.executable, "-m", "nst_fast.commands.train", "style=custom", f"style.image={style}", *data]
        last = run / "checkpoints" / "last.ckpt"
        given = [f"resume={last}"] if last.exists() else [*options, f"output={run}"]
        subprocess.run([*command, *given], check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "summary.json").read_text()), model


def painting_of(style: Mapping[str, Any]) -> Path:
    """Return where the painting of a model's style config lies in the shared data."""
    name = Path(style["image"] or style["url"]).name
    return next(file for folder in ("styles", "paintings") if (file := SHARED / folder / name).exists())


def ask_judge(model: Path, style: Path, photographs: int | None = None, options: Sequence[str] = ()) -> Any:
    """Return the figures of the judge, a script that prints JSON for --model and --style, on so many photographs."""
    command = [sys.executable, str(SHARED / "judge.py"), "--model", str(model), "--style", str(style), *options]
    limit = ["--limit", str(photographs)] if photographs else []
    return json.loads(subprocess.run([*command, *limit], check=True, capture_output=True, text=True).stdout)


def judged(style: Path, run: Path, options: list[str]) -> tuple[Any, Any, Path]:
    """Train as `trained` does and return the judge's figures, the run's summary and the model."""
    summary, model = trained(style, run, options)
    return ask_judge(model, style), summary, model


Grams = Mapping[str, "torch.Tensor"]


@functools.cache
def outside_judge() -> tuple[Any, Any]:
    """Return the judge's module, and its VGG-16."""
    sys.path.insert(0, str(SHARED))
    import judge

    return judge, judge.Teacher("vgg16_features.safetensors")


class Judge:
    """The outside judge's VGG-16 for one painting, at sizes in px of its short side that do not enlarge it.

    Without sizes, those of the judge.
    """

    def __init__(self, painting: Path, sizes: Iterable[int] | None = None) -> None:
        self.judge, self.network = outside_judge()
        self.painting, load = painting, self.judge.load
        longest = min(load(painting).size)
        self.paintings = {s: self.grams(load(painting, s)) for s in sizes or self.judge.SWEEP if s <= longest}

    def features(self, picture: Image.Image, layers: list[str]) -> Grams:
        """Return features of a picture by layer."""
        return self.network(self.judge.tensor(picture), layers)  # type: ignore[no-any-return]

    def grams(self, picture: Image.Image) -> Grams:
        """Return Gram matrices of a picture by layer."""
        return {name: self.judge.gram(f) for name, f in self.features(picture, self.judge.JOHNSON).items()}

    def style(self, pictures: Iterable[Grams]) -> dict[int, float]:
        """Return style_vgg16 of pictures at each size of the painting."""
        made = list(pictures)
        return {
            size: statistics.fmean(
                float(((gram[name] - wanted) ** 2).sum() / (wanted**2).sum())
                for gram in made
                for name, wanted in painting.items()
            )
            for size, painting in self.paintings.items()
        }

    @functools.cached_property
    def colours(self) -> Any:
        """The painting's, as the judge samples them."""
        return self.judge.quantiles(self.judge.load(self.painting, 512))

    def palette(self, picture: Image.Image) -> float:
        """Return how far a picture's colours are from the painting's."""
        return float(((self.judge.quantiles(picture) - self.colours) ** 2).mean() ** 0.5)
