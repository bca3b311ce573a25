"""Every option of every command with absurd values: a clear line, no traceback, nothing left behind."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nst_fast.commands import compare, export, optimize, preview, stylize, train
from nst_fast.commands.configuration import PATH_OPTIONS, load_config, option_names
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export as export_network

ABSURD = [
    *("-1", "nan", "inf", "1e30", "1" + "0" * 30, "0.5", "text", "", "[1,2]", "{a: 1}", "null", "true", "'\x1b[31m'"),
    *("${nope}", "${oc.env:NST_NOPE}", "${oc.decode:'['}", "???", "\udcff", "a\nb", "x" * 5000, "/nowhere/x", "'", "{"),
]
TEXTS = {f"style.{key}" for key in ("name", "title", "artist", "year", "licence", "url", "sha256")}
# Values that are as good as any: the picture that is missing is then what the line is about.
FINE = {
    "loss.normalise": {"true"},
    "float_nchw": {"true"},
    **{key: {"true"} for key in ("keep_colours", "overwrite")},
    **{key: {"true"} for key in ("network.grain", "network.contrast", "trainer.one_cycle")},
    "trainer.gradient_clip": {"null"},
    "data.num_workers": {"null"},
    **{key: {"null"} for key in ("trainer.max_steps", "trainer.minutes")},
    **{key: {"null"} for key in ("size", "scales")},
    "style.content_distance": {"null"},
    "content_distances": {"[1,2]"},
    "snapshot_every": {"null"},
    **{key: {value for value in ABSURD if not set(value) & set(",$?")} for key in TEXTS},
}
BASES = {
    "train": (train.main, ["style=custom", "style.image=missing.png", "loss_network=vgg16_slim"]),
    "nst-preview": (preview.main, ["style=custom", "style.image=missing.png", "loss_network=vgg16_slim"]),
    "nst-optimize": (
        optimize.main,
        ["style=custom", "style.image=missing.png", "loss_network=vgg16_slim", "content=photo.png"],
    ),
}
OPTIONS = [
    (command, option)
    for command, root in (("train", "train"), ("nst-preview", "preview"), ("nst-optimize", "optimize"))
    for option in option_names(load_config(root, [*BASES[command][1], *(["data=coco"] if root == "train" else [])]))
]
# Each option of one command, which takes turns where several have it: they share what checks it.
HAVE = {option: [command for command, other in OPTIONS if other == option] for _, option in OPTIONS}
ONCE = [(commands[turn % len(commands)], option) for turn, (option, commands) in enumerate(HAVE.items())]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export_network(create_network("fast", 8, 1), tmp_path_factory.mktemp("model") / "mine.onnx", {})


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs a command, and gives its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (18, 17, 3), np.uint8)
    Image.fromarray(noise).save("photo.png")

    def run(main: Callable[[], None], command: str, *arguments: str) -> tuple[Any, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capfd.readouterr()

    return run


def check_option(call: Callable[..., Any], command: str, option: str, values: list[str]) -> None:
    main, base = BASES[command]
    more = []
    if command == "train":
        more += ["data=coco"] if option.startswith("data.") and option != "data.dead_leaves" else []
        # Where the network is not in question, the gallery that it would start from need not be read each time.
        more += [] if option.startswith("network.") else ["init_from=null"]
    for value in values:
        code, out, err = call(main, command, *base, *more, f"{option}={value}")
        told = (option, value, code, out, err)
        assert (code, out, len(err.splitlines())) == (1, "", 1), told
        assert err.startswith(f"{command}: "), told
        assert len(err) < 1500, told
        assert err.rstrip("\n").isprintable(), told
        if option in PATH_OPTIONS or value in FINE.get(option, ()) or value == "0.5":
            continue
        # Layers are named by their loss network, a painting by its file.
        assert option.split(".")[-1] in err or "has no layer" in err or "unknown style" in err or "UTF-8" in err, told
    assert [path.name for path in Path().iterdir()] == ["photo.png"]


def drawn(option: str) -> list[str]:
    """Return the two values that an option is given each time that tests run."""
    return ABSURD[sum(map(ord, option)) % 12 :: 12]


@pytest.mark.parametrize(("command", "option"), ONCE)
def test_an_absurd_value_of_an_option_is_one_line(command, option, call):
    check_option(call, command, option, drawn(option))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), ONCE)
def test_every_other_absurd_value_of_an_option_is_one_line(command, option, call):
    check_option(call, command, option, [value for value in ABSURD if value not in drawn(option)])


@pytest.mark.parametrize("value", ABSURD[::2])
@pytest.mark.parametrize("command", BASES)
def test_an_absurd_argument_or_choice_is_one_line(command, value, call):
    main, base = BASES[command]
    for argument in (value, f"{value}=1", f"loss={value}", f"experiment={value}"):
        if argument == "experiment=null":
            continue
        code, out, err = call(main, command, *base, argument)
        assert (code, out, len(err.splitlines())) == (1, "", 1), (argument, code, out, err)
        assert err.startswith(f"{command}: ")
        assert err.rstrip("\n").isprintable()


STYLIZE = (
    "--model",
    "-o",
    "--format",
    "--quality",
    "--strength",
    "--steady",
    "--max-side",
    "--stroke",
    "--underpainting",
    "--device",
    "--threads",
)
FROM_NOTHING = ("--threads", "--strength", "--steady", "--underpainting")
COMPARE = ("--model", "--content", "--style", "--size", "--count", "--iterations", "--methods", "--starts")
FEW = ["-1", "0", "nan", "inf", "1e30", "1" + "0" * 30, "text", "", "[1,2]", "\udcff", "a\nb", "x" * 300, "/nowhere/x"]


def check_refusal(command: str, result: tuple[Any, str, str], *told: str) -> None:
    """Check for one line, below argparse's usage where the command line itself is wrong."""
    code, out, err = result
    assert (code, out) in ((1, ""), (2, "")), (told, result)
    lines = err.splitlines()
    assert len(lines) == 1 or code == 2, (told, result)
    assert any(line.startswith(f"{command}: ") for line in lines), (told, result)


@pytest.mark.parametrize("option", STYLIZE)
def test_an_absurd_value_of_stylize_is_one_line(option, model, call):
    for value in FEW:
        given = ["--model", str(model), "photo.png", f"{option}={value}" if option != "-o" else f"-o{value}"]
        result = call(stylize.main, "stylize", *given)
        if (option in FROM_NOTHING and value == "0") or (option == "-o" and result[0] == 0):
            assert (result[0], result[2]) == (0, "")
            continue
        check_refusal("stylize", result, option, value)


def test_an_absurd_input_of_stylize_is_one_line(model, call):
    for value in FEW:
        check_refusal("stylize", call(stylize.main, "stylize", "--model", str(model), value), value)


@pytest.mark.parametrize("option", COMPARE)
def test_an_absurd_value_of_nst_compare_is_one_line(option, model, call):
    for value in FEW:
        given = {"--model": "starry_night", "--content": "nowhere", "--style": "starry_night", option: value}
        arguments = [f"{key}={v}" for key, v in given.items()]
        check_refusal("nst-compare", call(compare.main, "nst-compare", *arguments), option, value)


def test_an_absurd_argument_of_nst_export_is_one_line(call):
    for value in (*FEW, "photo.png", "."):
        check_refusal("nst-export", call(export.main, "nst-export", f"./{value}"), value)
        check_refusal("nst-export", call(export.main, "nst-export", "photo.png", "-o", value), value)
        check_refusal("nst-export", call(export.main, "nst-export", "photo.png", value), value)


@pytest.mark.parametrize("name", [b"\xff.png", b"a\nb.png", b"\x1b[31m.png", b"-1.png", "é ☺.png".encode()])
def test_a_picture_of_any_name_is_stylized(name, model, call):
    Path("photo.png").rename(os.fsdecode(name))
    code, _, err = call(stylize.main, "stylize", "--model", str(model), f"./{os.fsdecode(name)}")
    assert (code, err) == (0, "")
    assert len(list(Path().iterdir())) == 2
