"""README and docs: links lead somewhere, every command is parsed as the real one is, every example of Python runs."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nst_fast.assets import find_model, is_model
from nst_fast.commands import batch, compare, export, stylize
from nst_fast.commands import train as train_command
from nst_fast.commands.configuration import load_config
from nst_fast.commands.perceptual_loss import resolve_perceptual_loss
from nst_fast.stylizing.style_file import StyleFile
from nst_fast.stylizing.stylizer import Stylizer

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "checkpoints" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:cd|train|stylize|nst-\w+|python|torchrun|node) [^`]+)`")
WEB = json.loads((ROOT / "web" / "package.json").read_text())["scripts"]
EXTRAS = set(
    re.findall(
        r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]")[2], re.MULTILINE
    )
)


def commands(path: Path, inline: bool) -> list[str]:
    """Return the command lines of a page: of its fenced blocks, or those within its text."""
    text = path.read_text()
    if inline:
        return INLINE.findall(FENCE.sub("", text))
    lines = "".join(block for language, block in FENCE.findall(text) if language in ("", "sh")).splitlines()
    return [part.strip() for line in lines if line.split("#")[0].strip() for part in line.split(" && ")]


EXAMPLES = [command for page in GUIDES for command in commands(page, inline=False)]
TABLES = [ROOT / "docs" / "measured.md", ROOT / "docs" / "owed.md", ROOT / "checkpoints" / "README.md"]
MENTIONED = [command for page in TABLES for command in commands(page, inline=True)]
CASES = [
    command for command in dict.fromkeys(EXAMPLES + MENTIONED) if "RUN..." not in command and "NAME " not in command
]


def anchors(path: Path) -> set[str]:
    """Return what links into a page may end in, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        place, _, anchor = link.partition("#")
        if not place.startswith("http"):
            target = (page.parent / place).resolve() if place else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_shows_no_pictures_of_other_hosts():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert not re.search(r"!\[[^]]*\]\(http|<img", text)


def parsed(arguments: list[str]) -> None:
    """Parse a command line with the command's own parser; scripts must be there and know their options."""
    name, *rest = arguments
    if name == "torchrun":
        at = next(i for i, a in enumerate(rest) if a == "-m" or a.endswith(".py"))
        module = rest[at + 1].rpartition(".")[2] if rest[at] == "-m" else ""
        return parsed([module, *rest[at + 2 :]] if module else ["python", *rest[at:]])
    if name == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
        source = (ROOT / rest[0]).read_text()
        for option in (a.partition("=")[0] for a in rest if a.startswith("--")):
            assert f'"{option}"' in source, option
    elif name == "pip":
        extras = {e for a in rest for e in re.findall(r"\.\[(.+)\]", a)}
        assert rest[0] in ("install", "uninstall")
        assert extras <= EXTRAS
    elif name == "npm":
        assert rest[0] in ("ci", "test") or (rest[0] == "run" and rest[1] in WEB)
    elif name == "node":
        assert (ROOT / "web" / rest[0]).is_file()
    elif name == "cd":
        assert (ROOT / rest[0]).is_dir()
    elif name == "stylize":
        options = stylize.parse(rest)
        assert is_model(options.model)
        if not options.model.endswith(".onnx"):
            find_model(options.model)
    elif name == "nst-batch":
        batch.parse(rest)
    elif name == "nst-compare":
        compare.parse(rest)
    elif name in ("train", "nst-optimize", "nst-preview"):
        root = name.removeprefix("nst-")
        named = any(a.startswith("style=") for a in rest)  # a run that goes on has its own
        config = load_config(root, [*([] if named else ["style=custom"]), *(a for a in rest if a != "--cfg")])
        if root == "train":
            train_command.check_options(config)
        if named:
            resolve_perceptual_loss(config, gpu=False, reference=root == "optimize")
    else:
        assert name in ("pytest", "nst-export"), name
    return None


@pytest.mark.parametrize("command", CASES)
def test_a_command_is_parsed(command, tmp_path, monkeypatch, capsys):
    arguments = shlex.split(re.split(r" [<>|] ", command)[0], comments=True)
    if "--help" in arguments:
        return
    monkeypatch.chdir(tmp_path)
    if arguments[0] != "nst-export":
        parsed(arguments)
        return
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        export.main()
    assert end.value.code == 1  # 2: argparse did not understand it
    assert re.search("no (checkpoint|run|model)", capsys.readouterr().err)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with what the examples name: photographs, a mask, a model and a style of one's own."""
    folder = tmp_path_factory.mktemp("pictures")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    for place in ("photo.jpg", "my.jpg", "a.jpg", "b.jpg", "mask.png", "holiday/a.jpg", "photos/b.png"):
        (folder / place).parent.mkdir(exist_ok=True)
        picture.save(folder / place)
    shutil.copy(find_model("starry_night"), folder / "my.onnx")
    gallery = Stylizer("gallery")
    length = next(len(v) for name, v in gallery.feeds("andante").items() if name == "style_vector")
    StyleFile(gallery.metadata.get("trunk", ""), {"name": "my"}, [0.0] * length).save(folder / "my.style")
    return folder


# Foreign models, clips, other devices and standard input are tried elsewhere.
RUN = [c for c in EXAMPLES if re.match("stylize ", c) and not re.search(r"clip|candy|other|--device| - |large", c)]


@pytest.mark.parametrize("command", dict.fromkeys(RUN))
def test_an_example_of_stylize_runs(command, pictures, tmp_path, monkeypatch):
    folder = shutil.copytree(pictures, tmp_path / "here")
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    assert stylize.stylize(shlex.split(command, comments=True)[1:]) == 0
    assert "--list" in command or set(folder.rglob("*")) > before


@pytest.mark.parametrize("page", [p for p in GUIDES if "```python" in p.read_text()], ids=lambda page: page.name)
def test_the_python_of_a_guide_runs(page, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(pictures, tmp_path / "here"))
    names: dict[str, Any] = {}
    for language, block in FENCE.findall(page.read_text()):
        if language == "python":
            exec(compile(block, str(page), "exec"), names)
    for name in names.keys() & {"picture", "larger", "blend", "softer"}:
        assert names[name].size == (64, 48)
    if page.name == "python.md":
        assert len(list(Path("out").iterdir())) == 1
        assert names["stylized"].shape == names["frames"].shape
