"""Release trained models: ship each with a card that says what it is, how it was made and how good it is.

python scripts/release_models.py runs/release/*                      # ship these runs' models, write every card
python scripts/release_models.py runs/gallery --paintings FOLDER     # likewise of the gallery; its paintings are there
python scripts/release_models.py                                     # write the cards again

A run is a folder that `train` left behind. The figures are kept in benchmarks/released_models.json, the cards are
checkpoints/README.md; everything else comes from the models' own metadata.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from nst_fast.assets import GALLERY, INT8, shipped, shipped_models
from nst_fast.commands.configuration import load_config
from nst_fast.commands.export import export_in_8_bits
from nst_fast.downloads import file_hash
from nst_fast.loss.style_targets import find_paintings
from nst_fast.loss.tensors import to_image
from nst_fast.stylizing.images import load_image
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.checkpoints import upgraded
from nst_fast.training.photographs import centre_crop

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FIGURES = ROOT / "benchmarks" / "released_models.json"
CARDS = ROOT / "checkpoints" / "README.md"
JUDGED = (
    *("content_vgg16", "style_vgg16", "painting_size_vgg16"),
    *("style_vgg19", "painting_size", "palette", "tv"),
)
HEAD = """# Released models

`stylize --model NAME photo.jpg` paints with them. The judge's figures are relative distances on photographs never
trained on: 0 is a perfect match. The judge shares no code with us. It sees with VGG-16, on which the models learned
last, and with parts of VGG-19, on which none learned. `scripts/release_models.py` wrote this page.

The six single models go on from the gallery, 700 steps each: starry_night, the_scream and great_wave from the one
before, the others from today's. [How the gallery was trained](../docs/research/gallery.md#training). `train` does not
know movement and isles_of_shoals by name: get the painting from the card's address.

The weights of the six are rounded to 14 bits of mantissa, so that they pack better. On a photograph no value of a
picture changed by more than 1 of 255.

`photos` is a folder of 1,760 photographs that we may not hand on. 1,402 are of BSDS500 and ImageNet (research use), 132
of Urban100 and Sun-Hays80 (Creative Commons, research use), 226 of Unsplash, Pexels and other collections (their own
licences, CC0, CC BY-SA; of 147 we do not know each picture's licence).
"""
GALLERY_JUDGED = """The judge's figures are of six photographs at 256 px, each in the painting's style. Most style
distances are larger than the previous gallery's. Likely why: this one learned larger paintings, and pictures together,
so that one picture may lack what others have. Viewers prefer its starry night: [votes](../docs/measured.md#votes)."""
TRAINING = ("steps", "seconds", "images_per_second", "device", "precision", "validation_losses", "versions")
SIZES = (256, 720)  # px, of the judge's photographs
COUNTS = {256: 6, 720: 3}  # of them


def painting_of(model: Path) -> Path:
    """Return the painting that a model learned, where it lies: as the file it was trained from, or as its address."""
    style = json.loads(Stylizer(model).metadata["config"])["style"]
    name = Path(style["image"] or style["url"]).name
    return next(file for folder in ("styles", "paintings") if (file := SHARED / folder / name).exists())


def photographs(size: int) -> list[Path]:
    """Return the files that the judge takes at a size."""
    return sorted((SHARED / "content" / "val").glob("*.jpg"))[: COUNTS[size]]


def ask_judge(painting: Path, size: int, options: Sequence[str]) -> dict[str, float]:
    """Return what the judge says of pictures that are to be like a painting."""
    command = [sys.executable, str(SHARED / "judge.py"), *options, "--style", str(painting), "--size", str(size)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {name: answer[name] for name in JUDGED}


def judge(painting: Path, size: int, paint: Callable[[Image.Image], Image.Image]) -> dict[str, float]:
    """Return the outside judge's figures of what is made of photographs never trained on."""
    with tempfile.TemporaryDirectory() as folder:
        for file in photographs(size):
            picture = to_image(centre_crop(load_image(file), size)[None] / 255)
            picture.save(Path(folder) / f"{file.stem}.content.png")
            paint(picture).save(Path(folder) / f"{file.stem}.stylized.png")
        return ask_judge(painting, size, ["--pairs", folder])


def write_short(source: Path, model: Path) -> None:
    """Write a model with weights rounded to 14 bits of mantissa: a wheel packs them in a fifth less, pictures stay."""
    short = onnx.load(source)
    for tensor in short.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            bits = numpy_helper.to_array(tensor).view(np.uint32).astype(np.uint64)
            rounded = ((bits + 0x100) & 0xFFFFFE00).astype(np.uint32).view(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(short, model)


def release(run: Path) -> dict[str, Any]:
    """Ship a run's model and return its figures."""
    summary = json.loads((run / "summary.json").read_text())
    style = summary["style"]
    model = ROOT / "checkpoints" / f"{style}.onnx"
    write_short(run / f"{style}.onnx", model)
    export_in_8_bits(model, model.with_suffix(f"{INT8}.onnx"))
    painting = painting_of(model)
    return {
        "training": {key: summary[key] for key in TRAINING} | {"machine": platform.machine()},
        "judge": {str(size): judge(painting, size, Stylizer(model)) for size in SIZES},
        "untouched": {str(size): judge(painting, size, lambda picture: picture) for size in SIZES},
    }


def release_gallery(run: Path, folder: Path) -> dict[str, Any]:
    """Ship a run's model of many paintings, which lie in a folder, and return its figures."""
    summary = json.loads((run / "summary.json").read_text())
    model = ROOT / "checkpoints" / f"{GALLERY}.onnx"
    shutil.copyfile(run / f"{GALLERY}.onnx", model)
    export_in_8_bits(model, model.with_suffix(f"{INT8}.onnx"))
    stylizer = Stylizer(model)
    files = {told["name"]: file for file, told in find_paintings(folder).items()}
    judged = {name: judge(files[name], 256, partial(stylizer, style=name)) for name in stylizer.paintings}
    return {"training": {key: summary[key] for key in TRAINING} | {"machine": platform.machine()}, "judge": judged}


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by dotted name; a mapping of layers is one value."""
    if not isinstance(config, dict) or prefix in ("loss.content_layers.", "loss.style_layers.", "loss.sliced_layers."):
        return {prefix[:-1]: config}
    return {name: value for key, part in config.items() for name, value in leaves(part, f"{prefix}{key}.").items()}


def as_option(value: Any) -> str:
    """Return a value of a config as `train` reads it on the command line."""
    if isinstance(value, dict):
        return "'{" + ",".join(f"{name}:{weight}" for name, weight in value.items()) + "}'"
    if isinstance(value, str) and not re.fullmatch(r"[\w./:@-]+", value):
        return f"\"'{value}'\""  # for the shell, and for Hydra
    return "null" if value is None else str(value)


def command_of(config: dict[str, Any]) -> str:
    """Return the `train` command that composes a model's config."""
    from omegaconf import OmegaConf

    groups = {"loss": "balanced", "loss_network": "auto", "network": "fast", "data": "bundled"}
    style = config["style"]["name"]
    chosen = [f"style={style if (shipped('configs') / 'style' / f'{style}.yaml').exists() else 'custom'}"]
    chosen += [f"{g}={config[g]['name']}" for g, usual in groups.items() if config[g]["name"] != usual]
    placeholders = [
        f"{key}=x"
        for key in ("data.root", "style.images", "loss_network.shallow", "loss_network.deep")
        if leaves(config).get(key)
    ]
    default = leaves(OmegaConf.to_container(load_config("train", [*chosen, *placeholders]), resolve=True))
    automatic = (
        *("trainer.accelerator", "trainer.precision", "loss_network.name"),
        *("data.num_workers", "network.paintings"),
    )
    differ = {k: v for k, v in leaves(config).items() if k not in automatic and default.get(k) != v}
    return " ".join(
        [
            "train",
            *chosen,
            *(f"{name}={as_option(value)}" for name, value in differ.items()),
        ]
    )


def card(name: str, model: Path, figures: dict[str, Any]) -> str:
    """Return a model's card."""
    told = Stylizer(model).metadata
    config = upgraded(json.loads(told["config"]))
    style, data = config["style"], config["data"]
    training = figures["training"]
    command = command_of(config)
    integers = shipped_models(int8=True)[f"{name}{INT8}"]
    kept = ("style", "style.image", "style.size", "loss", "loss.style_layers", "loss.style_weight", "network.margin")
    kept += ("trainer.own_style", "trainer.max_steps")
    options = [option for option in command.split() if option.split("=")[0] in kept]
    everyone = " ".join(["train", options[0], "loss_network=vgg19 data=coco", *options[1:]])
    rows = {
        "painting": f"[{told['title']}]({style['url']}), {told['artist']}, {style['year']}; {told['licence']}",
        "painting's sha256": f"`{told['image_sha256']}`",
        "file": f"{model.stat().st_size / 1e6:.2f} MB, sha256 `{file_hash(model)}`",
        "in 8-bit integers": f"`{name}{INT8}`, {integers.stat().st_size / 1e6:.2f} MB, sha256 `{file_hash(integers)}`; "
        f"at least {Stylizer(integers).metadata['int8_psnr']} dB from the file above on photographs",
        "made by": f"`{command}`",
        "nearest for everyone": f"`{everyone}`",
        "data": f"{data['name']} {data.get('root') or ''}, {told['steps']} steps of {data['batch_size']} at "
        f"{data['size']} px, seed {config['seed']}",
        "loss network": f"`{told['loss_network']}`",
        "network": told["network"],
        "training": f"{training['seconds'] / 60:.1f} minutes on {training['device']} ({training['machine']}), "
        f"{training['precision']}, torch {training['versions']['torch']}",
        "validation losses": ", ".join(f"{k[4:-5]} {float(told[k]):.3g}" for k in sorted(told) if k.startswith("val_")),
        **{
            f"judge at {size} px": ", ".join(f"{k} {v:.3g}" for k, v in found.items())
            + f"; photographs untouched: style_vgg16 {figures['untouched'][size]['style_vgg16']:.2g}, "
            f"palette {figures['untouched'][size]['palette']:.2g}"
            for size, found in figures["judge"].items()
        },
        "commit, date": f"`{told['commit']}`, {told['date']}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    picture = f"![photographs, the model, the slow optimiser](../docs/images/{name}.jpg)"
    return f"## {name}\n\n{picture}\n\n| | |\n|---|---|\n{table}\n"


def gallery_card(model: Path, figures: dict[str, Any]) -> str:
    """Return the gallery's card: how it was made, and a row a painting."""
    told, training = Stylizer(model).metadata, figures["training"]
    integers = shipped_models(int8=True)[f"{GALLERY}{INT8}"]
    rows = {
        "file": f"{model.stat().st_size / 1e6:.2f} MB, sha256 `{file_hash(model)}`",
        "in 8-bit integers": f"`{GALLERY}{INT8}`, {integers.stat().st_size / 1e6:.2f} MB, sha256 "
        f"`{file_hash(integers)}`; at least {Stylizer(integers).metadata['int8_psnr']} dB from the file above on "
        "photographs, in every style and two blends",
        "made by": f"`{command_of(upgraded(json.loads(told['config'])))}`",
        "loss network": f"`{told['loss_network']}`",
        "network": told["network"],
        "training": f"{training['seconds'] / 60:.0f} minutes on {training['device']} ({training['machine']}), "
        f"{training['precision']}, torch {training['versions']['torch']}",
        "commit, date": f"`{told['commit']}`, {told['date']}",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    lines += ["", GALLERY_JUDGED, ""]
    lines += ["| style | painting | style_vgg16 | palette | content_vgg16 |", "|---|---|---|---|---|"]
    for name, painting in Stylizer(model).paintings.items():
        found = figures["judge"][name]
        about = ", ".join(painting[key] for key in ("title", "artist", "year", "licence") if key in painting)
        shown = " | ".join(f"{found[key]:.2g}" for key in ("style_vgg16", "palette", "content_vgg16"))
        lines.append(f"| `{name}` | {about} | {shown} |")
    table = "\n".join(lines)
    return (
        f"## {GALLERY}\n\n![one photograph in every style](../docs/images/gallery.jpg)\n\n| | |\n|---|---|\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders that `train` left behind")
    parser.add_argument("--paintings", type=Path, help="the gallery's, with their manifest.json")
    options = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for run in options.runs:
        name = json.loads((run / "summary.json").read_text())["style"]
        figures[name] = release_gallery(run, options.paintings) if name == GALLERY else release(run)
        FIGURES.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
        print(name, json.dumps(figures[name]["judge"]), flush=True)
    shipped = {name: model for name, model in shipped_models().items() if name in figures}
    cards = [gallery_card(model, figures[GALLERY]) for name, model in shipped.items() if name == GALLERY]
    cards += [card(name, model, figures[name]) for name, model in shipped.items() if name != GALLERY]
    CARDS.write_text(HEAD + "\n" + "\n".join(cards))
    print(CARDS)


if __name__ == "__main__":
    main()
