"""Export a transformation network to one self-describing ONNX file, and check it against torch."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn

from nst_fast import __version__
from nst_fast.assets import PACKAGE
from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.stylizing.stylizer import METADATA_PREFIX, Stylizer
from nst_fast.training.checkpoints import CHECKPOINT_KEY, kept_colours, trained_network, upgraded
from nst_fast.training.networks import TransformationNetwork, for_inference, in_words, read_network
from nst_fast.training.recolouring import colour_map, recolour

OPSET = 18
# Options whose values are paths.
PATHS = {
    "style": ("image", "targets", "images"),
    "data": ("root", "validation"),
    "loss_network": ("weights", "shallow", "deep"),
}
PARITY_SIZES = ((37, 53), (64, 64), (101, 75))  # height, width in pixels: odd ones on purpose


class Uint8Network(nn.Module):
    """uint8 (N, H, W, 3) RGB in and out: scaling, clamping and rounding belong to the graph.

    Beside the pictures it may be handed what `TransformationNetwork.blend` takes.
    """

    def __init__(self, network: TransformationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, *style: Tensor) -> Tensor:
        """Return the stylized pictures: clipped, then rounded."""
        vectors = self.network.blend(*style) if style else None
        stylized = self.network(image.permute(0, 3, 1, 2).float() / 255, vectors)
        return (stylized.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


class FloatNetwork(nn.Module):
    """float32 (N, 3, H, W) RGB in [0, 1] in and out, for hosts that want it."""

    def __init__(self, network: TransformationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, *style: Tensor) -> Tensor:
        """Return the stylized pictures, clipped."""
        return self.network(image, self.network.blend(*style) if style else None).clamp(0, 1)


def to_onnx(network: TransformationNetwork, metadata: Mapping[str, str], float_nchw: bool = False) -> onnx.ModelProto:
    """Return the checked graph ``image`` → ``stylized`` with N, H and W free and the metadata in it.

    Of several paintings it takes ``style_weights`` (S,), the first painting where they are not given, and
    ``style_vector`` (V,), zeros.
    """
    module = (FloatNetwork if float_nchw else Uint8Network)(for_inference(network)).eval()
    if float_nchw:
        example, axes = torch.rand(2, 3, 64, 80), {0: "N", 2: "H", 3: "W"}
    else:
        example, axes = torch.zeros(2, 64, 80, 3, dtype=torch.uint8), {0: "N", 1: "H", 2: "W"}
    paintings, length = network.vectors.shape
    style = {} if paintings == 1 else {"style_weights": torch.eye(paintings)[0], "style_vector": torch.zeros(length)}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter keeps each instance norm one InstanceNormalization node, which tiling relies on;
        # torch warns that the other one is newer.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example, *style.values()),
            buffer,  # type: ignore[arg-type]
            input_names=["image", *style],
            output_names=["stylized"],
            dynamic_axes={"image": axes, "stylized": axes},
            opset_version=OPSET,
            dynamo=False,
        )
    model = optimizer.optimize(onnx.load_from_string(buffer.getvalue()))
    del model.graph.value_info[:]  # shapes that anyone can infer
    # An initializer of an input's name makes it optional.
    model.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in style.items())
    told = {**metadata, "trunk": trunk(model)} if style else metadata
    for key, value in told.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_PREFIX + key, str(value)
    onnx.checker.check_model(model, full_check=True)
    return model


def trunk(model: onnx.ModelProto) -> str:
    """Return the identity of what a model's paintings share, which a .style file's vector belongs to."""
    own = {"network.vectors", *(i.name for i in model.graph.input)}
    shared = sorted((w.name, numpy_helper.to_array(w).tobytes()) for w in model.graph.initializer if w.name not in own)
    return hashlib.sha256(b"".join(content for _, content in shared)).hexdigest()[:16]


def check_parity(network: TransformationNetwork, path: str | Path) -> int:
    """Return how far the file on onnxruntime is from torch at most, in steps of 1/255; more than 1 raises."""
    stylizer, worst = Stylizer(path, device="cpu"), 0
    module = Uint8Network(network).eval()
    rng = np.random.default_rng(0)
    for height, width in PARITY_SIZES:
        pictures = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        weights = rng.dirichlet(np.ones(len(network.vectors)))  # a blend of all paintings
        style = (torch.from_numpy(weights).float(), torch.zeros(network.vectors.shape[1]))
        with torch.no_grad():
            expected = module(torch.from_numpy(pictures), *style).numpy()
        got = stylizer.run_once(pictures, dict(zip(stylizer.paintings, weights, strict=False)) or None)
        if got.shape != expected.shape:
            raise RuntimeError(f"the exported model gave {got.shape} for {expected.shape}")
        worst = max(worst, int(np.abs(got.astype(int) - expected).max()))
    if worst > 1:
        raise RuntimeError(f"the exported model differs from torch by {worst}/255; at most 1/255 is allowed")
    return worst


def export(
    network: TransformationNetwork, path: str | Path, metadata: Mapping[str, str], float_nchw: bool = False
) -> Path:
    """Write the network as one ONNX file, after `onnx.checker` and the parity check, and return its path.

    Raises UserError where the place cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise UserError(f"cannot export to {path}: the name must end in .onnx")
    network = network.cpu().float().eval()
    metadata = {**metadata, "min_size": str(network.min_size)}
    content = to_onnx(network, metadata, float_nchw).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder) / "checked.onnx"
        checked.write_bytes(content)
        check_parity(network, checked)
    write_atomically(path, content)
    return path


def import_network(path: str | Path) -> TransformationNetwork:
    """Return the network of a model that `export` wrote, recoloured as it is there, to go on with.

    Raises UserError where the file is missing, is another project's or has been altered.
    """
    metadata = Stylizer(path, device="cpu").metadata  # refuses what is no model, or keeps data in other files
    if "int8_psnr" in metadata:
        raise UserError(
            f"{path} has 8-bit integers: training cannot start from them; give the model that it was made of"
        )
    model = onnx.load_from_string(Path(path).read_bytes())
    try:
        config = upgraded(json.loads(metadata["config"]))["network"]
        weights = {
            tensor.name.removeprefix("network."): torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in model.graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not say what its network is; a model that `train` wrote is needed") from error
    return read_network(config, weights, path, folded=True)


def source_commit() -> str:
    """Return the commit of the clone that runs, or ``unknown`` for an installed wheel."""
    if not (PACKAGE.parent / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a run's config belongs into a model that is handed on: where its user keeps files does not."""
    told = {key: dict(config[key]) for key in ("style", "loss", "loss_network", "network", "data", "trainer")}
    for group, key in ((group, key) for group, keys in PATHS.items() for key in keys):
        if told[group].get(key) is not None:
            told[group][key] = Path(told[group][key]).name
    start = config.get("init_from")
    return {**told, "seed": config["seed"], "init_from": start and Path(start).name}


def describe(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Return everything that a checkpoint says of its network, as a model's metadata.

    Raises KeyError, TypeError, ValueError or AttributeError where it has been tampered with.
    """
    ours = checkpoint[CHECKPOINT_KEY]
    config = ours["config"]
    style, network = config["style"], config["network"]
    metadata = {
        "version": __version__,
        "style": style["name"],
        "title": style["title"],
        "artist": style["artist"],
        "licence": style["licence"],
        "image_sha256": ours["image_sha256"],
        **({"paintings": json.dumps(ours["paintings"], ensure_ascii=False)} if ours.get("paintings") else {}),
        "style_size": style["size"],
        "underpainting": f"{round(style.get('underpainting', 0), 3):g}",
        "style_weight": f"{ours['style_weight']:.6g}",
        **({} if style["content_distance"] is None else {"content_distance": style["content_distance"]}),
        "loss": config["loss"]["name"],
        "loss_network": ours["loss_network"],
        "network": in_words(network),
        "data": config["data"]["name"],
        "steps": ours["step"],
        **{k.replace("/", "_"): f"{v:.6g}" for k, v in ours["validation_losses"].items()},
        "config": json.dumps(without_folders(config)),
        "commit": source_commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    return {k: str(v) for k, v in metadata.items()}


def model_name(style: str, kind: str, source: str | Path) -> str:
    """Return what a style's model of a kind is called; UserError, which names its source, where that is no file's."""
    if Path(style).name != style:
        raise UserError(f"the style of {source} is called {style!r}, which cannot be a file name here: say -o FILE")
    return f"{style}{kind}.onnx"


def described_network(
    checkpoint: dict[str, Any], source: str | Path = "it"
) -> tuple[TransformationNetwork, dict[str, str]]:
    """Return a checkpoint's network, recoloured where it is to be, and all that is known of it as a model's metadata.

    Raises UserError, which names the ``source`` of the checkpoint, where that is not as `train` wrote it.
    """
    network = trained_network(checkpoint, source)
    if (colours := kept_colours(checkpoint)) is not None:
        if len(colours[0]) != len(network.vectors):
            raise UserError(f"{source} is not as `train` wrote it: it has colours of {len(colours[0])} paintings")
        recolour(network, *colour_map(*colours))
    try:
        return network, describe(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{source} is not as `train` wrote it, its config cannot be read ({reason})") from error


def export_checkpoint(checkpoint: dict[str, Any], path: str | Path, float_nchw: bool = False) -> Path:
    """Write a checkpoint's network as ONNX with everything that is known of it in the metadata, and return its path.

    Raises UserError where it is not as `train` wrote it, or the place cannot be written.
    """
    network, metadata = described_network(checkpoint)
    return export(network, path, metadata, float_nchw)
