"""The command `nst-compare`: how many iterations of the slow optimiser is a model worth?"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from nst_fast import __version__
from nst_fast.assets import find_model, shipped
from nst_fast.commands import require_training_packages, run, tune_torch
from nst_fast.errors import UserError
from nst_fast.files import refuse_existing
from nst_fast.stylizing.folders import find_pictures
from nst_fast.stylizing.images import load_image, resize_long_side
from nst_fast.stylizing.stylizer import Stylizer

USAGE = """
usage: nst-compare --model FILE_OR_NAME [--model ...] --content FOLDER [options] [key=value ...]

Compare models with the per-image optimiser on one loss: after how many iterations does it pass them?

  --model FILE_OR_NAME  an .onnx file or the name of a shipped model; may be given several times. Models of one style
                        are compared by loss, others by picture and time only
  --content FOLDER      photographs that the model was not trained on
  --style NAME          the style (default: the first model's)
  --size PX             long side of the photographs (default 256)
  --count N             at most N photographs, spread over the folder (default 8)
  --iterations N        of each optimisation (default 200)
  --methods M [M ...]   lbfgs adam (default: both)
  --starts S [S ...]    content noise (default: both)
  --pixel-range 1|255   for another project's model with float input: what it calls white; --bgr for its channel order
  -o, --output FOLDER   for report.html and report.json (default: comparison)
  --overwrite           replace an earlier report
  key=value             of the loss, to differ from the model's own: style.size=362 loss.style_weight=5 …
  --version             print the version

The loss is computed on VGG-19 or VGG-16 if one of them is on this machine and the model was trained on a small network.

examples:
  nst-compare --model starry_night --content holiday/
  nst-compare --model a.onnx --model b.onnx --content holiday/ --starts content loss.style_weight=5
"""


# What a loss is made of, beside its layers.
LOSS_OPTIONS = ("content_weight", "style_weight", "tv_weight", "pooling", "normalise")


# What may be given as key=value: what the loss is, and how it is optimised.
OF_THE_LOSS = ("style", "loss", "loss_network", "learning_rate", "device", "seed")


def plain(value: Any) -> str:
    """Return a number, a truth value or a name as Hydra reads it; ValueError for anything else that a file may hold."""
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.isidentifier()):
        return str(value)
    raise ValueError(f"{value!r} is neither a number nor a name")


def plain_layer(layer: str) -> str:
    """Return a layer's name, with its octave if it has one, as Hydra reads it; ValueError for anything else."""
    name, at, octave = layer.partition("@")
    if at and not octave.isdecimal():
        raise ValueError(f"{layer!r} is no layer")
    return plain(name) + at + octave


def loss_arguments(stylizer: Stylizer, style: str, overrides: list[str]) -> list[str]:
    """Return the options of `nst-optimize` that give the loss a model was trained on, overrides last.

    Raises UserError where the config in the model has been tampered with.
    """
    from nst_fast.loss.pretrained import LOSS_NETWORKS, TORCHVISION, is_kept
    from nst_fast.training.checkpoints import upgraded

    try:
        trained: dict[str, Any] = upgraded(json.loads(stylizer.metadata.get("config", "{}")))
        if trained.get("style", {}).get("name") != style:
            return [f"style={style}", *overrides]
        known = {path.stem for path in (shipped("configs") / "style").glob("*.yaml")}
        # A painting of the user's own has to be given again: style.image=FILE.
        arguments = [f"style={style if style in known else 'custom'}"]
        # A small network flatters what it trained, the teachers are files of whoever trained the model, a real network
        # or an earlier version's may not be here: unless it is given again, the reference's own takes its place.
        given = any(option.startswith("loss_network") for option in overrides)
        network = plain(trained["loss_network"]["name"])
        usable = network in LOSS_NETWORKS if given else network in TORCHVISION and is_kept(network)
        network = network if usable else "auto"
        arguments += [f"loss={plain(trained['loss']['name'])}", f"loss_network={network}"]
        arguments.append(f"style.size={plain(trained['style']['size'])}")
        if trained["style"].get("content_distance") is not None:  # the weight that training arrived at
            trained["loss"]["style_weight"] = float(stylizer.metadata["style_weight"])
        arguments += [f"loss.{key}={plain(trained['loss'][key])}" for key in LOSS_OPTIONS]
        trained["loss"].setdefault("sliced_layers", {})  # models from before it have none
        for key in ("content_layers", "style_layers", "sliced_layers"):
            layers = [f"{plain_layer(layer)}: {plain(weight)}" for layer, weight in trained["loss"][key].items()]
            arguments.append(f"loss.{key}={{{', '.join(layers)}}}")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the model's own config cannot be used ({type(error).__name__}: {error})") from error
    return arguments + overrides


def place(text: str) -> Path:
    """Return a path of the command line; an empty one, as an unset variable of the shell leaves it, is none."""
    if not text:
        raise argparse.ArgumentTypeError("a path is needed, this one is empty")
    return Path(text)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of a command line, and those of the loss; UserError for values out of range."""
    parser = argparse.ArgumentParser(
        "nst-compare", usage=USAGE.split("\n\n")[0].removeprefix("\nusage: "), add_help=False
    )
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--content", type=place, required=True)
    parser.add_argument("--style")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=("lbfgs", "adam"), default=["lbfgs", "adam"])
    parser.add_argument("--starts", nargs="+", choices=("content", "noise"), default=["content", "noise"])
    parser.add_argument("--pixel-range", type=int, choices=(1, 255))
    parser.add_argument("--bgr", action="store_true")
    parser.add_argument("-o", "--output", type=place, default=Path("comparison"))
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("stray", nargs="*")
    # key=value may stand anywhere, also where argparse would take it for another start or method.
    valued = ("model", "content", "style", "size", "count", "iterations", "pixel-range", "output")
    takes_value = {"-o"} | {f"--{option}" for option in valued}
    previous = ["", *arguments[:-1]]
    overrides = [
        a
        for a, before in zip(arguments, previous, strict=True)
        if "=" in a and not a.startswith("-") and before not in takes_value
    ]
    options = parser.parse_args([a for a in arguments if a not in overrides])
    overrides += options.stray
    for override in overrides:
        key = override.partition("=")[0]
        if key == "style":
            raise UserError(f"{override}: here say --style {override.partition('=')[2]}")
        if "=" in override and key.partition(".")[0] not in OF_THE_LOSS:
            raise UserError(f"{override} is no option of the loss; the other options have dashes, see --help")
    for name, least, most in (("size", 32, 32768), ("count", 1, 10**6), ("iterations", 1, 10**6)):
        if not least <= getattr(options, name) <= most:
            raise UserError(f"--{name} is {getattr(options, name)}; at least {least} and at most {most} is needed")
    return options, overrides


def load_models(options: argparse.Namespace, device: str = "auto") -> tuple[dict[str, Stylizer], str, list[str]]:
    """Return the models by name, the style, and the names of those that are of that style."""
    models: dict[str, Stylizer] = {}
    for given in options.model:
        path = find_model(given)
        name = path.stem if path.stem not in models else str(path)
        models[name] = Stylizer(path, device=device, pixel_range=options.pixel_range, bgr=options.bgr)
    style = options.style or next((m.metadata["style"] for m in models.values() if "style" in m.metadata), None)
    if style is None:
        raise UserError("no model names its style: give --style NAME")
    return models, style, [name for name, model in models.items() if model.metadata.get("style") == style]


def choose_photographs(options: argparse.Namespace) -> list[Path]:
    """Return the photographs to compare on, once the report's folder is there; raises UserError."""
    paths = find_pictures(options.content)
    if not options.overwrite:
        refuse_existing((options.output / f"report.{kind}" for kind in ("json", "html")), "--overwrite")
    try:  # before hours of work
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {options.output}: {error.strerror}") from error
    count = min(options.count, len(paths))
    return [paths[round(i * (len(paths) - 1) / max(count - 1, 1))] for i in range(count)]


def compare_photographs(
    paths: list[Path], options: argparse.Namespace, compare: Callable[..., Any], console: Console
) -> tuple[dict[str, Any], list[str]]:
    """Return the comparison of each photograph by name, and why others are left out; Ctrl-C ends with what is there."""
    from rich.progress import Progress

    comparisons, left_out = {}, []
    optimizations = len(options.methods) * len(options.starts)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(paths) * optimizations * options.iterations)
        for number, path in enumerate(paths):
            done: dict[str, int] = {}

            def show(
                name: str, iteration: int, path: Path = path, done: dict[str, int] = done, n: int = number
            ) -> None:
                done[name] = iteration
                completed = n * optimizations * options.iterations + sum(done.values())
                progress.update(bar, completed=completed, description=f"{path.name}: {name}")

            try:
                photograph = resize_long_side(load_image(path), options.size)
                comparisons[str(path.relative_to(options.content))] = compare(photograph, on_progress=show)
            except UserError as error:  # the others count without it
                left_out.append(str(error) if str(path) in str(error) else f"{path}: {error}")
                continue
            except KeyboardInterrupt:
                if not comparisons:
                    raise
                console.print(f"interrupted: {len(comparisons)} of {len(paths)} pictures are in the report")
                break
            if not console.is_terminal:
                console.print(f"{path.name}: {number + 1} of {len(paths)}")
    return comparisons, left_out


def write_report(report: dict[str, Any], comparisons: dict[str, Any], judged: list[str], output: Path) -> None:
    """Write report.json and report.html into a folder; raises UserError where that is not possible."""
    from nst_fast.reference.report import report_html

    try:
        (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        (output / "report.html").write_text(report_html(report, comparisons, judged), "utf-8", "replace")
    except OSError as error:
        raise UserError(f"cannot write into {output}: {error.strerror}") from error


def compare_command(arguments: list[str]) -> int:
    """Run the comparison that a command line asks for and write its report; return 1 where a picture is not in it."""
    options, overrides = parse(arguments)
    try:
        from omegaconf import OmegaConf

        from nst_fast.commands.configuration import load_config
        from nst_fast.commands.optimize import resolve
        from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_sizes, find_style
        from nst_fast.commands.progress import download_progress
        from nst_fast.reference.comparison import compare
        from nst_fast.reference.report import summarise
    except ModuleNotFoundError as error:
        require_training_packages(error)

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    models, style, judged = load_models(options)
    first = models[judged[0]] if judged else next(iter(models.values()))
    cfg = load_config("optimize", ["content=photograph", *loss_arguments(first, style, overrides)])
    warning = resolve(cfg)
    if cfg.device == "cpu" and first.device != "cpu":
        models, *_ = load_models(options, "cpu")  # both sides are timed on one device
    models_on = next(iter(models.values())).device
    if models_on != cfg.device:
        console.print(
            f"models ran on {models_on}, the optimiser on {cfg.device}: their times do not compare", style="yellow"
        )
    with download_progress(console) as fetching:
        perceptual_loss = create_perceptual_loss(cfg, fetching).to(cfg.device)
        style_targets, sha256 = find_style(cfg.style, perceptual_loss, progress=fetching)
        painting_sizes = find_sizes(cfg, perceptual_loss) if judged else {}
    if judged and first.metadata.get("image_sha256", sha256) != sha256:
        console.print(
            f"{judged[0]} was trained on another picture of {style}; style.image=FILE gives it", style="yellow"
        )
    paths = choose_photographs(options)
    compare_one = partial(
        compare,
        models=models,
        perceptual_loss=perceptual_loss,
        style_targets=style_targets,
        painting_sizes=painting_sizes,
        methods=options.methods,
        starts=options.starts,
        iterations=options.iterations,
        learning_rate=cfg.learning_rate,
        seed=cfg.seed,
    )
    comparisons, left_out = compare_photographs(paths, options, compare_one, console)
    if not comparisons:
        with contextlib.suppress(OSError):
            options.output.rmdir()
        raise UserError(left_out[0])
    for reason in left_out:
        console.print(f"left out: {reason}", style="yellow", soft_wrap=True)
    report = {
        "style": style,
        "loss": OmegaConf.to_container(cfg.loss, resolve=True),
        "style_size": cfg.style.size,
        "loss_network": perceptual_loss.loss_network.identity,
        "size": options.size,
        "iterations": options.iterations,
        "models_on": models_on,
        **machine(cfg.device),
        **summarise(comparisons, judged, options.iterations),
    }
    write_report(report, comparisons, judged, options.output)
    if warning:
        console.print(warning, style="yellow", soft_wrap=True)
    trained_on = first.metadata.get("loss_network") if judged else None
    if trained_on not in (None, report["loss_network"]):
        used = report["loss_network"].partition("@")[0]
        console.print(f"compared on {used}; {judged[0]} was trained on another loss network", style="yellow")
    tell(report)
    print(options.output / "report.html")
    return 0 if len(comparisons) == len(paths) else 1


def machine(device: str) -> dict[str, Any]:
    """Return what a report says of the machine, the versions and the day."""
    import torch

    from nst_fast.training.onnx_export import source_commit

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device.upper(),
        "threads": torch.get_num_threads(),
        "versions": {"nst_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "date": date.today().isoformat(),
    }


def tell(report: dict[str, Any]) -> None:
    """Print how many iterations each model is worth."""
    from nst_fast.reference.report import told

    count = len(report["photographs"])
    for model, entry in report["models"].items():
        if "painting_size" in entry:
            print(f"{model}: strokes of the painting at {entry['painting_size']:.0f} px")
        for name, passed in entry.get("passed_by", {}).items():
            n = passed["iterations"]
            more = f"; not reached on {n['not_reached']} of {count} photographs" if n["not_reached"] else ""
            print(f"{model} = {told(n, count)} iterations of {name} ({n['least']:g}–{n['most']:g}{more})")


def main() -> None:
    """Entry point."""
    tune_torch()
    run(lambda arguments: compare_command(arguments), "nst-compare", USAGE)


if __name__ == "__main__":
    main()
