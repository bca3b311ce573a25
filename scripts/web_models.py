"""Make what the page in web/ loads of the shipped models: python scripts/web_models.py

onnxruntime-web takes no value for an initializer that is also an input, so these become plain inputs, with their
defaults in models.json. Each model comes whole, in 8-bit integers where such a file ships, and cut into stages for
tiles, as `nst_fast.stylizing.tiling` cuts it. Every style gets a thumbnail: the page's photograph, painted.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps

from nst_fast.assets import INT8
from nst_fast.errors import UserError
from nst_fast.stylizing.receptive_field import GRAIN
from nst_fast.stylizing.stylizer import METADATA_PREFIX, Stylizer
from nst_fast.stylizing.tiling import Stage, TiledModel

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "web" / "public" / "cat.jpg"
SEEN, THUMBNAIL = 256, 128  # px, of a thumbnail when it is painted and when it is shown
HALF = "{}/half"  # a map on its way from stage to stage, in half the bytes


def optional_inputs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the defaults of the inputs that a caller may leave out, by name."""
    names = {i.name for i in model.graph.input}
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer if w.name in names}


def with_plain_inputs(model: onnx.ModelProto, defaults: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a model that has to be given what had defaults."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    kept = [w for w in model.graph.initializer if w.name not in defaults]
    found = {w.name for w in model.graph.initializer} & defaults.keys()
    declared = {i.name for i in model.graph.input}
    del plain.graph.initializer[:]
    plain.graph.initializer.extend(kept)
    for name in sorted(found - declared):  # a stage knows them as weights alone
        kind = helper.np_dtype_to_tensor_dtype(defaults[name].dtype)
        plain.graph.input.append(helper.make_tensor_value_info(name, kind, defaults[name].shape))
    return plain


def with_norms_apart(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose instance norms only standardise: scales and biases, computed or not, follow as nodes.

    The statistics of tiles are then all that a norm needs from outside.
    """
    shapes = {v.name: v.type.tensor_type.shape for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    apart, nodes = onnx.ModelProto(), []
    apart.CopyFrom(model)
    apart.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 1, 1]), "norm/shape"))
    for number, node in enumerate(model.graph.node):
        if node.op_type != "InstanceNormalization":
            nodes.append(node)
            continue
        x, *parameters = node.input
        one, zero, scale, bias, standard, scaled = (f"norm/{number}/{i}" for i in range(6))
        channels = shapes[x].dim[1].dim_value
        for name, value in ((one, np.ones), (zero, np.zeros)):
            apart.graph.initializer.append(numpy_helper.from_array(value(channels, np.float32), name))
        nodes += [
            helper.make_node("Reshape", [parameter, "norm/shape"], [name])
            for parameter, name in zip(parameters, (scale, bias), strict=True)
        ]
        norm = onnx.NodeProto()
        norm.CopyFrom(node)
        norm.input[:], norm.output[:] = [x, one, zero], [standard]
        nodes += [norm, helper.make_node("Mul", [standard, scale], [scaled])]
        nodes += [helper.make_node("Add", [scaled, bias], list(node.output))]
    del apart.graph.node[:]
    apart.graph.node.extend(nodes)
    return apart


def recording_session(content: bytes) -> Any:
    """Return an onnxruntime session that still has its file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what may be left out
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    session.content = content
    return session


def with_halves(model: onnx.ModelProto, maps: set[str]) -> onnx.ModelProto:
    """Return a stage that takes and gives its maps as 16-bit floats."""
    graph, before, after = model.graph, [], []
    for values, casts, kind in ((graph.input, before, TensorProto.FLOAT), (graph.output, after, TensorProto.FLOAT16)):
        for value in (value for value in values if value.name in maps):
            names = [HALF.format(value.name), value.name]
            casts.append(helper.make_node("Cast", names[:1] if casts is before else names[1:], [], to=kind))
            casts[-1].output.append(names[casts is before])
            value.name, value.type.tensor_type.elem_type = names[0], TensorProto.FLOAT16
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def describe(stage: Stage, halves: set[str], defaults: dict[str, np.ndarray]) -> tuple[bytes, dict[str, Any]]:
    """Return a stage's file, and what the page has to know of it."""
    model = with_halves(with_plain_inputs(onnx.load_from_string(stage.session.content), defaults), halves)

    def named(names: Iterable[str]) -> list[str]:
        return sorted(HALF.format(name) if name in halves else name for name in names)

    told: dict[str, Any] = {"inputs": [i.name for i in model.graph.input], "lives": named(stage.lives)}
    if stage.windows:
        told["axes"] = [{"step": float(w.step), "centre": float(w.first + w.last) / 2} for w in stage.windows]
    return model.SerializeToString(), told


def cut(model: onnx.ModelProto, defaults: dict[str, np.ndarray]) -> tuple[bytes, dict[str, Any]] | None:
    """Return a model's stages, one file after the other, and how they are run; None where it cannot be cut."""
    if any(weight.name == GRAIN for weight in model.graph.initializer):
        return None
    try:
        tiled = TiledModel(with_norms_apart(model).SerializeToString(), recording_session)
    except UserError:
        return None
    lives, halves = set().union(*(stage.lives for stage in tiled.stages)), set[str]()
    for stage in tiled.stages:
        outputs = onnx.load_from_string(stage.session.content).graph.output
        halves |= {o.name for o in outputs if o.name in lives and o.type.tensor_type.elem_type == TensorProto.FLOAT}
    content, stages = b"", []
    for stage in tiled.stages:
        file, told = describe(stage, halves, defaults)
        stages.append(told | {"start": len(content), "end": len(content) + len(file)})
        content += file
    epsilon = [next((a.f for a in s.norm.attribute if a.name == "epsilon"), 1e-5) for s in tiled.stages if s.norm]
    shape = {"halo": tiled.halo, "stride": tiled.stride, "bytesPerPixel": tiled.bytes_per_pixel / 2}
    return content, shape | {"epsilon": epsilon[0] if epsilon else 0, "stages": stages}


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return what a model says of itself."""
    return {p.key.removeprefix(METADATA_PREFIX): p.value for p in model.metadata_props}


def styles_of(name: str, metadata: dict[str, str]) -> list[dict[str, Any]]:
    """Return name, title, artist, year and licence of every style of a model, from its metadata."""
    keys = ("name", "title", "artist", "year", "licence")
    if "paintings" in metadata:
        return [{key: style.get(key, "") for key in keys} for style in json.loads(metadata["paintings"])]
    own = json.loads(metadata.get("config", "{}")).get("style", {})
    known = {"name": metadata.get("style", name), "title": name} | own | metadata
    return [{key: known.get(key, "") for key in keys}]


def thumbnail(stylizer: Stylizer, style: str) -> bytes:
    """Return the page's photograph as a model paints it in a style: a small WebP file."""
    photograph, file = ImageOps.fit(Image.open(PHOTOGRAPH).convert("RGB"), (SEEN, SEEN)), io.BytesIO()
    painted = stylizer(photograph, style if stylizer.paintings else None)
    painted.resize((THUMBNAIL, THUMBNAIL)).save(file, "WEBP", quality=70, method=6)
    return file.getvalue()


def make(path: Path, output: Path) -> dict[str, Any]:
    """Write the files of a model and return its entry in models.json."""

    def write(content: bytes, ending: str) -> str:
        """Write a file whose name changes with its content, so that it can be cached for ever."""
        name = f"{path.stem}.{hashlib.sha256(content).hexdigest()[:8]}{ending}"
        (output / name).write_bytes(content)
        return name

    model = onnx.load(path)
    metadata = metadata_of(model)
    (image,) = (i for i in model.graph.input if i.name == "image")
    if image.type.tensor_type.elem_type != TensorProto.UINT8:
        raise UserError(f"{path} does not take uint8 (N, H, W, 3); `nst-export` writes such models")
    defaults, styles = optional_inputs(model), styles_of(path.stem, metadata)
    content = with_plain_inputs(model, defaults).SerializeToString()
    stylizer = Stylizer(path, device="cpu")
    for style in styles:
        style["thumbnail"] = write(thumbnail(stylizer, style["name"]), f".{style['name']}.webp")
    entry = {
        "name": path.stem,
        "file": write(content, ".onnx"),
        "minSize": int(metadata.get("min_size", 1)),
        "underpainting": float(metadata.get("underpainting", 0)),
        "inputs": {name: value.ravel().tolist() for name, value in defaults.items()},
        "photograph": {n: [float(f"{x:.5g}") for x in v] for n, v in stylizer.photograph_feeds.items()},
        "styles": styles,
    }
    quick = path.with_suffix(f"{INT8}.onnx")
    if quick.exists():
        entry["quick"] = write(with_plain_inputs(onnx.load(quick), defaults).SerializeToString(), f"{INT8}.onnx")
    if stages := cut(model, defaults):
        entry["tiles"] = {"file": write(stages[0], ".stages"), **stages[1]}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "checkpoints", help="folder with .onnx files")
    parser.add_argument("--output", type=Path, default=ROOT / "web" / "public" / "models")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    paths = [path for path in sorted(options.models.glob("*.onnx")) if not path.stem.endswith(INT8)]
    told = {path: metadata_of(onnx.load(path)) for path in paths}
    in_galleries = {s["sha256"] for of in told.values() for s in json.loads(of.get("paintings", "[]")) if "sha256" in s}
    paths = [path for path in paths if told[path].get("image_sha256") not in in_galleries]  # no painting twice
    try:
        entries = [make(path, options.output) for path in paths]
    except UserError as error:
        sys.exit(f"error: {error}")
    (options.output / "models.json").write_text(json.dumps(entries, ensure_ascii=False, separators=(",", ":")))
    print(f"{len(entries)} models → {options.output}")


if __name__ == "__main__":
    main()
