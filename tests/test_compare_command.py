"""The command `nst-compare`: its figures against the traces behind them, its page, and one line for every mistake."""

import base64
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.measure import block_reduce

from nst_fast.assets import ASSETS, VGG16_SLIM, shipped_models
from nst_fast.commands import compare as compare_command
from nst_fast.commands.compare import loss_arguments
from nst_fast.commands.configuration import load_config
from nst_fast.loss.perceptual_loss import BalancedLoss
from nst_fast.loss.pretrained import create_loss_network, file_identity, kept_files
from nst_fast.loss.style_targets import StyleTargets
from nst_fast.loss.tensors import to_tensor
from nst_fast.reference.comparison import perceptual_losses
from nst_fast.stylizing.images import load_image, resize_long_side
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export

BIN = Path(sys.executable).parent
PEERS = Path(__file__).resolve().parents[2] / "shared" / "peers"
OPTIMIZERS = ["lbfgs from content", "adam from content", "lbfgs from noise", "adam from noise"]
TERMS = ("content", "style", "tv", "total")
SIZE, ITERATIONS = 96, 20  # of the comparison that most tests look at
QUICK = ["--size", "48", "--iterations", "2", "--methods", "lbfgs", "--starts", "content"]


def save_photographs(folder: Path) -> None:
    folder.mkdir(parents=True)
    Image.fromarray(skimage.data.chelsea()).save(folder / "cat <1>.png")
    Image.fromarray(skimage.data.coffee()).save(folder / "cup.png")


def save_painting(path: Path) -> None:
    Image.fromarray(skimage.data.astronaut()[:200, :240]).save(path)


def make_model(path: Path, seed: int = 0, **metadata: Any) -> Path:
    """Export a small network that was never trained."""
    torch.manual_seed(seed)
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return export(create_network("fast", 8, 1), path, told)


def trained_config(style: str, **loss: Any) -> dict[str, Any]:
    """Return what `train` writes into a model about its loss, changed by the user."""
    cfg = load_config("train", ["style=custom", "loss_network=vgg16_slim"])
    own = {key: dict(value) if key.endswith("layers") else value for key, value in cfg.loss.items()}
    own |= {"style_weight": 3.0, "pooling": "max"}  # in place of auto
    return {
        "style": {"name": style, "size": 256, "content_distance": None},
        "loss": {**own, **loss},
        "loss_network": {"name": "vgg16_slim"},
    }


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def nst_compare(folder: Path, *arguments: object) -> Result:
    """Run `nst-compare` in this process in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["nst-compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            compare_command.main()
    return Result(end.value.code or 0, out.getvalue(), err.getvalue())


def read_report(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)


class Run(NamedTuple):
    """A finished comparison."""

    folder: Path
    result: Result
    report: dict[str, Any]
    page: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shipped model, an untrained one of the same style and one of another on two photographs."""
    cwd = tmp_path_factory.mktemp("finished")
    save_photographs(cwd / "photos")
    make_model(cwd / "same.onnx", style="starry_night")
    make_model(cwd / "other.onnx", 1, style="the_scream")
    models = ["--model", "starry_night", "--model", "same.onnx", "--model", "other.onnx"]
    result = nst_compare(cwd, *models, "--content", "photos", "--size", SIZE, "--iterations", ITERATIONS)
    assert result.code == 0, result.err
    folder = cwd / "comparison"
    return Run(folder, result, read_report(folder), (folder / "report.html").read_text())


# The figures


def test_a_comparison_leaves_a_report_and_a_page(finished):
    assert {p.name for p in finished.folder.iterdir()} == {"report.json", "report.html"}
    assert {p.name for p in finished.folder.parent.iterdir()} == {"photos", "same.onnx", "other.onnx", "comparison"}


def test_report_says_under_which_conditions(finished):
    report = finished.report
    assert (report["style"], report["style_size"], report["size"], report["iterations"]) == (
        "starry_night",
        362,
        SIZE,
        ITERATIONS,
    )
    # The teachers that it was trained on are not handed on with it.
    assert report["loss_network"] == file_identity("vgg16_slim", VGG16_SLIM)
    assert (report["loss"]["name"], report["loss"]["style_weight"], report["threads"]) == (
        "balanced",
        3,
        torch.get_num_threads(),
    )
    assert report["models_on"] in ("cpu", "cuda")
    assert torch.cuda.is_available() or (report["device"], report["models_on"]) == ("CPU", "cpu")
    assert set(report["photographs"]) == {"cat <1>.png", "cup.png"}
    assert list(report["models"]) == ["starry_night", "same", "other"]


def test_traces_hold_every_iteration_of_every_optimiser(finished):
    for photograph in finished.report["photographs"].values():
        assert list(photograph["optimizers"]) == OPTIMIZERS
        for trace in photograph["optimizers"].values():
            assert [row["iteration"] for row in trace] == list(range(ITERATIONS + 1))
            assert all(set(row) == {"iteration", "seconds", *TERMS} for row in trace)


def test_losses_of_the_model_are_those_of_its_pictures_on_the_shipped_targets(finished):
    layers = ({"relu2_2": 1.0}, {"relu1_2": 0.1, "relu2_2": 0.3, "relu3_3": 0.6})
    loss = BalancedLoss(create_loss_network("vgg16_slim"), *layers, 1.0, 3.0, 4.0, sliced_layers={"rgb@4": 0.06})
    targets = StyleTargets.load(ASSETS / "style_targets" / "starry_night.safetensors").sizes[362]
    stylize = Stylizer(shipped_models()["starry_night"])
    for name, photograph in finished.report["photographs"].items():
        small = resize_long_side(load_image(finished.folder.parent / "photos" / name), SIZE)
        expected = perceptual_losses(loss, targets, to_tensor(stylize(small)), to_tensor(small))
        assert photograph["models"]["starry_night"]["losses"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model", ["starry_night", "same"])
def test_summary_agrees_with_the_traces(finished, model):
    entry, photographs = finished.report["models"][model], finished.report["photographs"].values()
    own = [p["models"][model] for p in photographs]
    assert entry["seconds"] == statistics.median(m["seconds"] for m in own)
    for term in TERMS:
        assert entry["losses"][term] == pytest.approx(sum(m["losses"][term] for m in own) / len(own))
    for name, passed in entry["passed_by"].items():
        iterations, seconds, not_reached = [], [], 0
        for photograph in photographs:
            trace, total = photograph["optimizers"][name], photograph["models"][model]["losses"]["total"]
            first = min((row["iteration"] for row in trace if row["total"] <= total), default=None)
            not_reached += first is None
            iterations.append(ITERATIONS if first is None else first)
            seconds.append(trace[-1 if first is None else first]["seconds"])
        expected = {"median": sum(iterations) / 2, "least": min(iterations), "most": max(iterations)}
        assert passed["iterations"] == {**expected, "not_reached": not_reached}
        assert passed["seconds"] == pytest.approx(sum(seconds) / 2)
        times = [s / m["seconds"] for s, m in zip(seconds, own, strict=True)]
        assert passed["times_faster"] == pytest.approx(sum(times) / 2)


def test_a_trained_model_has_a_lower_loss_than_an_untrained_one(tmp_path):
    """By the loss of each picture alone; pictures that are compared together are worth no iterations by it."""
    save_photographs(tmp_path / "photos")
    make_model(tmp_path / "untrained.onnx", style="composition_vii")
    models = ["--model", "composition_vii", "--model", "untrained.onnx"]
    assert nst_compare(tmp_path, *models, "--content", "photos", "--size", SIZE, "--iterations", 1).code == 0
    report = read_report(tmp_path / "comparison")
    trained, untrained = (report["models"][name] for name in ("composition_vii", "untrained"))
    assert trained["losses"]["total"] < untrained["losses"]["total"]


def test_a_model_of_another_style_is_timed_and_not_judged(finished):
    assert set(finished.report["models"]["other"]) == {"seconds"}
    assert not re.search(r"^other = ", finished.result.out, re.MULTILINE)
    assert "<tr><td>other" not in finished.page


def test_losses_of_a_model_of_another_style_stay_out_of_the_report(finished):
    assert all(set(p["models"]["other"]) == {"seconds"} for p in finished.report["photographs"].values())


def test_stdout_has_a_line_for_each_model_and_optimiser_and_the_page(finished):
    *lines, last = finished.result.out.splitlines()
    assert last == str(Path("comparison", "report.html"))
    sizes = [line.partition(":")[0] for line in lines if re.fullmatch(r".*: strokes of the painting at \d+ px", line)]
    assert sizes == ["starry_night", "same"]
    lines = [line for line in lines if "strokes of the painting" not in line]
    expected = [(model, name) for model in ("starry_night", "same") for name in OPTIMIZERS]
    assert len(lines) == len(expected)
    for line, (model, name) in zip(lines, expected, strict=True):
        n = finished.report["models"][model]["passed_by"][name]["iterations"]
        missed = f"; not reached on {n['not_reached']} of 2 photographs" if n["not_reached"] else ""
        median = f"{'at least ' if n['not_reached'] else ''}{n['median']:g}"  # of two photographs, one is enough
        assert line.startswith(f"{model} = {median} iterations of {name} ({n['least']:g}–{n['most']:g}{missed})")


# The page


class Page(HTMLParser):
    """Collects what a browser would load, the pictures and the cells of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.pictures: list[Image.Image] = []
        self.cells: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if tag == "img" and name == "src":
                kind, _, data = str(value).partition(";base64,")
                assert kind == "data:image/jpeg"
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append(str(value))
            self.links += re.findall(r"url\(([^)]*)\)", value or "")
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data
        assert "@import" not in data


def test_the_page_needs_nothing_from_outside(finished):
    page = Page(finished.page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "image"} & set(page.tags)
    assert page.links  # glyphs and clipping paths of the curves
    assert all(link.startswith("#") for link in page.links)
    assert page.tags.count("svg") == 2


def test_the_page_shows_every_picture(finished):
    pictures = Page(finished.page).pictures
    assert len(pictures) == 2 * (1 + 3 + len(OPTIMIZERS))
    for picture, name in zip(pictures[:: len(pictures) // 2], ("cat <1>.png", "cup.png"), strict=True):
        photo = resize_long_side(load_image(finished.folder.parent / "photos" / name), SIZE)
        assert picture.size == photo.size
        assert np.abs(np.asarray(picture, int) - np.asarray(photo)).mean() < 6  # JPEG
    shown = [np.asarray(p, int)[:32] for p in pictures[1:8]]
    differences = [np.abs(a - b).mean() for i, a in enumerate(shown) for b in shown[:i]]
    assert min(differences) > 1  # all of them different


def test_the_page_has_the_reports_figures_and_names_photographs_as_they_are(finished):
    cells = [cell.strip() for cell in Page(finished.page).cells]
    for model in ("starry_night", "same"):
        for passed in finished.report["models"][model]["passed_by"].values():
            assert any(cell.split()[:1] == [f"{passed['iterations']['median']:g}"] for cell in cells)
        for photograph in finished.report["photographs"].values():
            assert f"{photograph['models'][model]['losses']['total']:.4f}" in cells
    assert "<h2>cat &lt;1&gt;.png</h2>" in finished.page


# Which loss


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"content_weight": 0.5, "style_weight": 11.0, "tv_weight": 0.25},
        {"style_layers": {"relu1_1": 0.5, "relu3_1": 0.5}},
        {"style_layers": {"relu1_1": 0.5, "relu3_1@4": 0.5}, "sliced_layers": {"rgb@2": 0.1, "relu2_1": 2.0}},
    ],
    ids=["as shipped", "weights", "layers", "octaves and distributions"],
)
def test_the_loss_is_the_one_that_the_model_was_trained_on(loss, tmp_path):
    config = trained_config("starry_night", **loss)
    stylizer = Stylizer(make_model(tmp_path / "model.onnx", style="starry_night", config=config))
    arguments = loss_arguments(stylizer, "starry_night", ["loss.tv_weight=9"])
    cfg = load_config("optimize", ["content=x", *arguments])
    assert cfg.loss == {**config["loss"], "tv_weight": 9}
    assert (cfg.style.size, cfg.loss_network.name) == (256, "auto")  # the real network, where there is one


@pytest.mark.parametrize(
    ("trained", "overrides", "judged"),
    [
        ("vgg16_slim", [], "auto"),
        ("teachers", [], "auto"),
        ("vgg16", [], "auto"),  # it is not on this machine
        ("vgg16_slim", ["loss_network=vgg16_slim"], "vgg16_slim"),
        ("teachers", ["loss_network=vgg16"], "vgg16"),
    ],
)
def test_a_small_network_is_no_reference_unless_it_is_asked_for(trained, overrides, judged, tmp_path):
    config = trained_config("starry_night") | {"loss_network": {"name": trained}}
    stylizer = Stylizer(make_model(tmp_path / "model.onnx", style="starry_night", config=config))
    cfg = load_config("optimize", ["content=x", *loss_arguments(stylizer, "starry_night", overrides)])
    assert cfg.loss_network.name == judged


def test_a_real_network_that_is_on_this_machine_judges_what_it_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    path = next(iter(kept_files("vgg16")))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    config = trained_config("starry_night") | {"loss_network": {"name": "vgg16"}}
    stylizer = Stylizer(make_model(tmp_path / "model.onnx", style="starry_night", config=config))
    assert "loss_network=vgg16" in loss_arguments(stylizer, "starry_night", [])


def test_the_loss_of_a_model_from_before_has_the_product_of_its_two_weights(tmp_path):
    config = trained_config("starry_night", style_weight=5.0)
    config["style"] = {"name": "starry_night", "size": 256, "weight": 1.5, "strength": None}
    stylizer = Stylizer(make_model(tmp_path / "model.onnx", style="starry_night", config=config))
    cfg = load_config("optimize", ["content=x", *loss_arguments(stylizer, "starry_night", [])])
    assert cfg.loss.style_weight == 7.5


def test_the_loss_of_a_model_from_before_distributions_has_none(tmp_path):
    config = trained_config("starry_night")
    del config["loss"]["sliced_layers"]
    stylizer = Stylizer(make_model(tmp_path / "model.onnx", style="starry_night", config=config))
    cfg = load_config("optimize", ["content=x", *loss_arguments(stylizer, "starry_night", [])])
    assert cfg.loss == {**config["loss"], "sliced_layers": {}}


def test_a_model_of_ones_own_style_is_judged_on_its_painting(tmp_path):
    save_photographs(tmp_path / "photos")
    Image.fromarray(block_reduce(skimage.data.astronaut(), (4, 4, 1), np.max)).save(tmp_path / "mine.png")
    make_model(tmp_path / "mine.onnx", style="mine", config=trained_config("mine"))
    done = nst_compare(
        tmp_path, "--model", "mine.onnx", "--content", "photos", *QUICK, "--count", 1, "style.image=mine.png"
    )
    assert done.code == 0, done.err
    assert "losses" in read_report(tmp_path / "comparison")["models"]["mine"]


# Options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_photographs(tmp_path / "photos")
    return tmp_path


def test_options_choose_methods_starts_count_size_and_place(folder):
    save_painting(folder / "painting.png")
    more = ("style.image=painting.png", "style.size=40", "--count", 1, "-o", "a/b")
    done = nst_compare(folder, "--model", "starry_night", "--content", "photos", *QUICK, *more)
    assert done.code == 0, done.err
    report = read_report(folder / "a" / "b")
    (photograph,) = report["photographs"].values()
    assert {k: len(v) for k, v in photograph["optimizers"].items()} == {"lbfgs from content": 3}
    assert (report["style_size"], report["size"]) == (40, 48)
    assert max(Page((folder / "a" / "b" / "report.html").read_text()).pictures[0].size) == 48


def test_options_of_the_loss_may_follow_the_starts(folder):
    save_painting(folder / "painting.png")
    more = ("style.image=painting.png", "style.size=40")
    done = nst_compare(folder, "--model", "starry_night", "--content", "photos", *QUICK, *more)
    assert done.code == 0, done.err
    assert read_report(folder / "comparison")["style_size"] == 40


def test_photographs_of_one_name_in_two_folders_are_both_compared(folder):
    save_photographs(folder / "photos" / "deep")
    assert nst_compare(folder, "--model", "starry_night", "--content", "photos", *QUICK).code == 0
    assert len(read_report(folder / "comparison")["photographs"]) == 4


def test_fewer_photographs_are_spread_over_the_folder(folder):
    for i in range(5):
        Image.new("RGB", (48, 48), (40 * i, 100, 200)).save(folder / "photos" / f"{i}.png")
    assert nst_compare(folder, "--model", "starry_night", "--content", "photos", *QUICK, "--count", 4).code == 0
    chosen = list(read_report(folder / "comparison")["photographs"])
    assert len(chosen) == 4
    assert max(chosen) > "4.png"  # and not the first four of seven


def test_models_of_one_file_name_keep_apart(folder):
    (folder / "mine").mkdir()
    make_model(folder / "mine" / "starry_night.onnx", style="starry_night")
    models = ["--model", "starry_night", "--model", "mine/starry_night.onnx"]
    assert nst_compare(folder, *models, "--content", "photos", *QUICK, "--count", 1).code == 0
    report = read_report(folder / "comparison")["models"]
    assert list(report) == ["starry_night", "mine/starry_night.onnx"]
    assert report["starry_night"]["losses"] != report["mine/starry_night.onnx"]["losses"]


@pytest.mark.skipif(not PEERS.is_dir(), reason="the peers' models in shared/peers are not here")
def test_a_peers_model_is_listed_with_its_time_and_without_losses(folder):
    peer = PEERS / "gnsmrky_candy_nc16_256.onnx"
    arguments = ["--model", "starry_night", "--model", peer, "--pixel-range", 255, "--content", "photos", *QUICK]
    done = nst_compare(folder, *arguments, "--count", 1)
    assert done.code == 0, done.err
    report, page = read_report(folder / "comparison"), (folder / "comparison" / "report.html").read_text()
    assert set(report["models"][peer.stem]) == {"seconds"}
    assert report["models"][peer.stem]["seconds"] > 0
    captions = re.findall(rf"<figcaption>{peer.stem}: (.*?)</figcaption>", page)
    assert [bool(re.fullmatch(r"[\d.]+ s", caption)) for caption in captions] == [True]
    assert len(Page(page).pictures) == 4


# Mistakes


def assert_one_line(done: Result, *words: str) -> None:
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("nst-compare: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


MINE = ["--model", "starry_night", "--content", "photos", "--size", 32, "--iterations", 1, "--count", 1]
MISTAKES: dict[str, tuple[list[object], list[str]]] = {
    "the style as an option of the loss": ([*MINE, "style=the_scream"], ["--style the_scream"]),
    "the size as an option of the loss": ([*MINE, "size=512"], ["size=512 is no option of the loss"]),
    "another optimiser": ([*MINE, "method=adam"], ["method=adam is no option of the loss"]),
    "unknown model": (["--model", "stary_nigt", "--content", "photos"], ["stary_nigt", "did you mean starry_night?"]),
    "text for a model": (["--model", "text.onnx", "--content", "photos"], ["text.onnx", "no ONNX model"]),
    "missing folder": (["--model", "starry_night", "--content", "nowhere"], ["no folder at nowhere"]),
    "folder without pictures": (["--model", "starry_night", "--content", "empty"], ["no pictures in empty"]),
    "broken photograph": ([*MINE, "--content", "broken"], ["a.png", "cannot be read"]),
    "photograph too low": ([*MINE, "--content", "low"], []),
    "unknown style": ([*MINE, "--style", "stary_night"], ["unknown style", "did you mean starry_night?"]),
    "no style": (["--model", "plain.onnx", "--content", "photos"], ["--style"]),
    "too small": ([*MINE, "--size", 4], ["--size is 4", "at least 32"]),
    "no iterations": ([*MINE, "--iterations", 0], ["--iterations is 0"]),
    "no photographs": ([*MINE, "--count", 0], ["--count is 0"]),
    "unknown option": ([*MINE, "loss.style_wait=3"], ["did you mean loss.style_weight?"]),
    "argument without =": ([*MINE, "starry_night"], ["'starry_night'", "key=value"]),
    "place below a file": ([*MINE, "-o", "text.onnx/report"], ["cannot write into"]),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, words, folder):
    (folder / "text.onnx").write_text("no model")
    for name in ("empty", "broken", "low"):
        (folder / name).mkdir()
    (folder / "broken" / "a.png").write_text("no picture")
    Image.new("RGB", (400, 20)).save(folder / "low" / "a.png")
    if "plain.onnx" in arguments:
        make_model(folder / "plain.onnx")
    before = sorted(folder.rglob("*"))
    done = nst_compare(folder, *arguments)
    err = done.err.replace("a.png: 1 of 1\n", "").replace("cat <1>.png: 1 of 1\n", "")  # what was done before
    assert_one_line(done._replace(err=err), *words)
    assert sorted(folder.rglob("*")) == before


def test_a_broken_photograph_is_named_and_the_rest_is_compared(folder):
    """Whatever a file is called."""
    (folder / "some").mkdir()
    Image.fromarray(skimage.data.chelsea()).save(folder / "some" / os.fsdecode(b"caf\xe9.png"))
    (folder / "some" / "z.png").write_text("no picture")
    done = nst_compare(folder, "--model", "starry_night", "--content", "some", *QUICK)
    assert done.code == 1
    assert "left out" in done.err
    assert "z.png" in done.err
    assert len(read_report(folder / "comparison")["photographs"]) == 1
    assert "caf" in (folder / "comparison" / "report.html").read_text("utf-8")


def test_a_model_of_another_picture_than_the_styles_own_is_told_of(folder):
    make_model(folder / "mine.onnx", style="starry_night", image_sha256="0" * 64)
    done = nst_compare(folder, "--model", "mine.onnx", "--content", "photos", "--count", 1, *QUICK)
    assert done.code == 0, done.err
    assert "mine was trained on another picture of starry_night" in done.err


def test_help_shows_an_example_and_the_console_script_knows_its_version(tmp_path):
    done = nst_compare(tmp_path, "--help")
    assert (done.code, done.err) == (0, "")
    usage, example = done.out.split("examples:\n")
    assert usage.startswith("usage: nst-compare ")
    assert example.startswith("  nst-compare --model ")
    version = subprocess.run([BIN / "nst-compare", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("nst-compare (nst_fast) ")
