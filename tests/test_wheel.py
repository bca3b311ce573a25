"""The wheel: it carries what the package needs, and works where it is installed."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def files_below(folder: str, suffix: str = "") -> set[str]:
    """Return the files of a folder of the repository, as paths from the root; nothing that Python leaves behind."""
    found = (p.relative_to(ROOT) for p in (ROOT / folder).rglob(f"*{suffix}") if p.is_file())
    return {p.as_posix() for p in found if "__pycache__" not in p.parts and not p.name.startswith(".")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and nothing else installed in it; by uv where the environment has no pip."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["uv", "pip"]
    done = subprocess.run([*pip, "install", "--no-deps", "--target", folder, wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def python(installed: Path, cwd: Path, *arguments: str) -> str:
    """Run Python where the installed wheel wins over the clone; return its output."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_the_package_its_assets_configs_and_models(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    expected = files_below("nst_fast")
    expected |= {f"nst_fast/{name}" for folder in ("configs", "checkpoints") for name in files_below(folder)}
    assert names == expected
    assert "nst_fast/configs/train.yaml" in names
    assert "nst_fast/assets/vgg16_slim.safetensors" in names


def test_the_wheel_is_no_larger_than_12_mb(wheel):
    assert wheel.stat().st_size <= 12e6


def test_the_wheel_carries_licence_and_notice(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for name in ("LICENSE", "NOTICE"):
            (path,) = (n for n in archive.namelist() if n.endswith(f".dist-info/licenses/{name}"))
            assert archive.read(path) == (ROOT / name).read_bytes()


def test_the_wheel_declares_the_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
        lines = archive.read(path).decode().split("\n")
    commands = {line.split(" = ")[0] for line in lines if " = " in line}
    others = {"nst-batch", "nst-optimize", "nst-preview", "nst-compare", "nst-export"}
    assert commands == {"train", "nst-train", "stylize", "nst-stylize"} | others


def test_the_installed_wheel_wins_over_the_clone_and_finds_its_configs(installed, tmp_path):
    script = "import nst_fast; from nst_fast.assets import shipped; print(nst_fast.__file__); print(shipped('configs'))"
    package, configs = python(installed, tmp_path, "-c", script).splitlines()
    assert Path(package).is_relative_to(installed)
    assert Path(configs).is_relative_to(installed)


def test_the_installed_wheel_prints_a_config(installed, tmp_path):
    printed = python(installed, tmp_path, "-m", "nst_fast.commands.train", "--cfg", "style=starry_night")
    config = yaml.safe_load(printed)
    assert config["style"] == yaml.safe_load((ROOT / "configs" / "style" / "starry_night.yaml").read_text())
    assert {"loss", "network", "data", "trainer"} < config.keys()


def test_the_installed_wheel_stylizes_without_importing_torch(installed, tmp_path):
    script = "import sys, nst_fast.commands.stylize; print(sorted({'torch', 'pytorch_lightning'} & set(sys.modules)))"
    assert python(installed, tmp_path, "-c", script) == "[]\n"


def test_the_installed_wheel_paints_in_a_style_of_the_gallery(installed, tmp_path):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    python(installed, tmp_path, "-m", "nst_fast.commands.stylize", "--style", "starry_night", "photo.png")
    painted, photo = (np.asarray(Image.open(tmp_path / f"photo{end}.png"), int) for end in (".starry_night", ""))
    assert painted.shape == photo.shape
    assert np.abs(painted - photo).mean() > 5
