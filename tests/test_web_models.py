"""scripts/web_models.py: what the page in web/ loads, against the models that it is made of."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nst_fast import Stylizer
from nst_fast.assets import ASSETS

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


web_models = load(ROOT / "scripts" / "web_models.py")
GALLERY = ROOT / "checkpoints" / "gallery.onnx"


def session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 96, 120, 3), np.uint8)


def test_optional_inputs_become_plain_ones_with_the_same_result(picture: np.ndarray) -> None:
    model = onnx.load(GALLERY)
    defaults = web_models.optional_inputs(model)
    assert set(defaults) == {"style_weights", "style_vector"}
    plain = session(web_models.with_plain_inputs(model, defaults).SerializeToString())
    with pytest.raises(ValueError, match="style_vector"):
        plain.run(None, {"image": picture})
    blend = np.zeros_like(defaults["style_weights"])
    blend[[3, 7]] = 0.75, 0.25
    for inputs in ({}, {"style_weights": blend}):
        (expected,) = session(model.SerializeToString()).run(None, {"image": picture, **inputs})
        (found,) = plain.run(None, {"image": picture, **defaults, **inputs})
        np.testing.assert_array_equal(found, expected)


def test_norms_apart_paint_the_same_picture(picture: np.ndarray) -> None:
    model = onnx.load(GALLERY)
    apart = web_models.with_norms_apart(model)
    (expected,) = session(model.SerializeToString()).run(None, {"image": picture})
    (found,) = session(apart.SerializeToString()).run(None, {"image": picture})
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_released_model_comes_with_8_bits_stages_and_what_is_known_of_its_painting(tmp_path: Path) -> None:
    entry = web_models.make(ROOT / "checkpoints" / "starry_night.onnx", tmp_path)
    assert {entry["file"], entry["quick"], entry["tiles"]["file"], entry["styles"][0]["thumbnail"]} == {
        path.name for path in tmp_path.iterdir()
    }
    assert entry["inputs"] == {}
    (style,) = entry["styles"]
    assert (style["title"], style["artist"], style["year"]) == ("The Starry Night", "Vincent van Gogh", 1889)
    norms = sum(n.op_type == "InstanceNormalization" for n in onnx.load(tmp_path / entry["file"]).graph.node)
    assert len(entry["tiles"]["stages"]) == norms + 1
    content = (tmp_path / entry["tiles"]["file"]).read_bytes()
    for stage in entry["tiles"]["stages"]:
        onnx.checker.check_model(onnx.load_from_string(content[stage["start"] : stage["end"]]))


def test_a_stage_of_the_gallery_takes_what_the_page_has(tmp_path: Path) -> None:
    entry, had = web_models.make(GALLERY, tmp_path), {"image"}
    for stage in entry["tiles"]["stages"]:
        given = {name for name in stage["inputs"] if not name.startswith("tiling/")}
        assert given <= had | entry["inputs"].keys()
        had = set(stage["lives"])
    assert "style_vector" in entry["tiles"]["stages"][-1]["inputs"]  # of the map of colours


def test_every_style_of_a_gallery_is_listed_with_a_thumbnail_of_its_own(tmp_path: Path) -> None:
    models, output = tmp_path / "models", tmp_path / "output"
    models.mkdir()
    shutil.copy(GALLERY, models)
    command = [sys.executable, ROOT / "scripts" / "web_models.py", "--models", models, "--output", output]
    subprocess.run(command, check=True)
    (entry,) = json.loads((output / "models.json").read_text())
    assert [style["name"] for style in entry["styles"]] == list(Stylizer(GALLERY).paintings)
    assert len({(output / style["thumbnail"]).read_bytes() for style in entry["styles"]}) == len(entry["styles"])
    assert len(entry["inputs"]["style_weights"]) == len(entry["styles"])
    (file,) = (ASSETS / "photograph").glob("*.style")
    vector = json.loads(file.read_text())["vector"]
    assert entry["photograph"]["style_vector"] == pytest.approx(vector, rel=1e-4)
    assert not any(entry["photograph"]["style_weights"])


def test_a_model_of_other_pixels_is_refused_in_one_line(tmp_path: Path) -> None:
    image, painted = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, "H", "W"]) for n in ("image", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "g", [image], [painted])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    command = [sys.executable, ROOT / "scripts" / "web_models.py", "--models", tmp_path, "--output", tmp_path / "out"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "nst-export" in ended.stderr
