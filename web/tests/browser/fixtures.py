"""Make what the tests of the page look at, and what `stylize` makes of it: python fixtures.py FOLDER"""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import skimage.data
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from nst_fast import Stylizer
from nst_fast.stylizing.images import load_image

STYLES = ("starry_night", "the_scream", "great_wave")
BLEND = {"style_weights": [0.75, 0.0, 0.25], "strength": [0.5], "stroke": [2.0]}
WEB_MODELS = Path(__file__).resolve().parents[3] / "scripts" / "web_models.py"


def gallery() -> onnx.ModelProto:
    """Return a small model with every optional input: three styles, norms whose parameters are computed."""
    random, channels = np.random.default_rng(0), 8
    weights = {
        "style_weights": np.full(3, 1 / 3),
        "style_vector": np.zeros(2 * channels),
        "strength": np.ones(1),
        "stroke": np.ones(1),
        "vectors": random.normal(0.5, 0.6, (3, 2 * channels)),
        "first": random.normal(0, 0.3, (channels, 3, 3, 3)),
        "second": random.normal(0, 0.2, (3, channels, 3, 3)),
        "white": np.array(255.0),
        "zero": np.array(0.0),
        "one": np.array(1.0),
    }
    integers = {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "halves": [channels, channels]}
    nodes = [
        ("Transpose", ["image"], ["turned"], {"perm": [0, 3, 1, 2]}),
        ("Cast", ["turned"], ["cast"], {"to": TensorProto.FLOAT}),
        ("Div", ["cast", "white"], ["x"], {}),
        ("MatMul", ["style_weights", "vectors"], ["blend"], {}),
        ("Add", ["blend", "style_vector"], ["vector"], {}),
        ("Split", ["vector", "halves"], ["scale", "bias"], {"axis": 0}),
        ("Pad", ["x", "pads"], ["padded"], {"mode": "reflect"}),
        ("Conv", ["padded", "first"], ["features"], {}),
        ("InstanceNormalization", ["features", "scale", "bias"], ["normed"], {}),
        ("Relu", ["normed"], ["relu"], {}),
        ("Pad", ["relu", "pads"], ["padded_again"], {"mode": "reflect"}),
        ("Conv", ["padded_again", "second"], ["colours"], {}),
        ("Mul", ["colours", "stroke"], ["stroked"], {}),
        ("Sigmoid", ["stroked"], ["painting"], {}),
        ("Sub", ["painting", "x"], ["difference"], {}),
        ("Mul", ["difference", "strength"], ["part"], {}),
        ("Add", ["x", "part"], ["mixed"], {}),
        ("Clip", ["mixed", "zero", "one"], ["clipped"], {}),
        ("Mul", ["clipped", "white"], ["scaled"], {}),
        ("Round", ["scaled"], ["rounded"], {}),
        ("Cast", ["rounded"], ["bytes"], {"to": TensorProto.UINT8}),
        ("Transpose", ["bytes"], ["stylized"], {"perm": [0, 2, 3, 1]}),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, weights[name].shape)
        for name in ("style_weights", "style_vector", "strength", "stroke")
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, made, **options) for kind, given, made, options in nodes],
        "gallery",
        inputs,
        [helper.make_tensor_value_info("stylized", TensorProto.UINT8, ["N", "H", "W", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array(value), name) for name, value in integers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    styles = [{"name": n, "title": n.title(), "artist": "us", "year": 2026, "licence": "MIT"} for n in ("a", "b", "c")]
    helper.set_model_props(model, {"nst_fast.paintings": json.dumps(styles), "nst_fast.min_size": "16"})
    return model


def photographs() -> dict[str, Image.Image]:
    left, _, _ = skimage.data.stereo_motorcycle()
    found = {"coffee": skimage.data.coffee(), "astronaut": skimage.data.astronaut(), "motorcycle": left}
    pictures = {name: Image.fromarray(array) for name, array in found.items()}
    pictures["large"] = pictures["motorcycle"].resize((1210, 817))  # is run in tiles
    pictures["dot"] = Image.new("RGB", (1, 1), (200, 60, 20))
    return pictures


def main(folder: Path) -> None:
    pictures = photographs()
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90°
    pictures["coffee"].save(folder / "turned.jpg", exif=exif, quality=95)
    deep = np.asarray(pictures["coffee"]).astype(">u2") * 257
    write_16_bits(folder / "deep.png", deep)
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (folder / "notes.png").write_bytes(b"no picture")

    stylizer = Stylizer("gallery", threads=1)
    for style in STYLES:
        names = ("coffee", "astronaut", "motorcycle") + ("large", "dot", "turned", "deep") * (style == STYLES[0])
        for name in names:
            source = folder / (f"{name}.jpg" if name == "turned" else f"{name}.png")
            painted = stylizer.stylize(load_image(source), style)
            painted.save(folder / f"{name}.{style}.png")
            if name == "coffee":
                Image.blend(pictures[name], painted, 0.4).save(folder / f"{name}.{style}.40.png")

    models = folder / "gallery"
    models.mkdir()
    onnx.save(gallery(), models / "gallery.onnx")
    command = [sys.executable, str(WEB_MODELS), "--models", str(models), "--output", str(folder / "models")]
    subprocess.run(command, check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what may be left out
    session = onnxruntime.InferenceSession(models / "gallery.onnx", options, providers=["CPUExecutionProvider"])
    for name in ("coffee", "large"):
        picture = np.asarray(pictures[name])[None]
        inputs = {name: np.array(value, np.float32) for name, value in BLEND.items()}
        inputs["stroke"] *= np.float32(max(1, np.sqrt(picture.size / 3 / 512**2)))  # as the page does
        (painted,) = session.run(None, {"image": picture, **inputs})
        Image.fromarray(painted[0]).save(folder / f"{name}.gallery.png")


def write_16_bits(path: Path, pixels: np.ndarray) -> None:
    """Write an RGB PNG of 16 bits a colour, which Pillow does not."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = {b"IHDR": struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
