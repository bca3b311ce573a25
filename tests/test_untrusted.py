"""Files that mean harm, given to every command that takes one: refused in one line; nothing is run, read, written."""

import copy
import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from nst_fast.assets import VGG16_SLIM, shipped_models
from nst_fast.commands import compare, export, optimize, stylize, train
from nst_fast.commands.configuration import load_config, stored
from nst_fast.errors import UserError
from nst_fast.training.checkpoints import CHECKPOINT_KEY
from nst_fast.training.networks import create_network, for_inference
from nst_fast.training.onnx_export import export as export_network
from nst_fast.weights import MOST_UNPACKED, read_torch

pytestmark = pytest.mark.filterwarnings("ignore:Sparse:UserWarning")

COMMANDS = {
    "train": train.main,
    "nst-optimize": optimize.main,
    "nst-compare": compare.main,
    "nst-export": export.main,
    "stylize": stylize.main,
}
SECRET = "a value of the environment"
HUGE = 10**12


class Result(NamedTuple):
    """What a command said."""

    code: Any
    out: str
    err: str


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs a command in a folder of its own, beside a picture and a secret."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("NST_SECRET", SECRET)
    Image.new("RGB", (40, 30), "red").save("photo.png")
    Path("..", "secret.bin").write_bytes(np.arange(3, dtype=np.float32).tobytes())

    def run(command: str, *arguments: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as end:
            COMMANDS[command]()
        return Result(end.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def refused(call: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a command, checks that it refuses its file, and returns the line that it says."""

    def run(command: str, *arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = call(command, *arguments)
        lines = result.err.splitlines()
        assert (result.code, result.out, len(lines)) == (1, "", 1), result
        assert lines[0].startswith(f"{command}: ")
        assert len(lines[0]) < 1500
        assert SECRET not in lines[0]
        assert lines[0].isprintable()
        assert sorted(tmp_path.rglob("*")) == before  # the mark of the malicious would lie here
        return lines[0]

    return run


class Malicious:
    """Unpickling it runs a command of the shell that leaves a mark."""

    def __reduce__(self) -> Any:
        return os.system, ("touch mark",)


def trained(config: Any = None, ours: Any = None, weights: Any = None) -> dict[str, Any]:
    """A checkpoint as `train` writes it, but for what is given: {path of keys: value}."""
    network = create_network("fast", 8, 1)
    checkpoint = {
        "state_dict": {f"network.{k}": v for k, v in network.state_dict().items()},
        CHECKPOINT_KEY: {
            "config": {
                "style": {
                    **{"name": "mine", "title": "Mine", "artist": "me", "licence": "none", "image": None},
                    **{"targets": None, "size": 64, "weight": 1.0, "strength": None},
                },
                "loss": {"name": "balanced", "style_weight": 7.0},
                "loss_network": {"name": "vgg16_slim", "weights": None},
                "network": {"name": "fast", "width": 8, "blocks": 1},
                "data": {"name": "bundled"},
                "trainer": {"max_steps": 4},
                "seed": 0,
            },
            **{"image_sha256": "0" * 64, "loss_network": "vgg16_slim@0", "version": "0", "step": 4},
            **{"batches_seen": 4, "skipped_steps": 0, "seconds": 1.0, "style_weight": 7.0},
            "validation_losses": {"val/total_loss": 1.0},
        },
        "epoch": 0,
        "global_step": 4,
        "pytorch-lightning_version": "2.5.0",
        "loops": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "callbacks": {},
    }
    changes = [(checkpoint[CHECKPOINT_KEY]["config"], config), (checkpoint[CHECKPOINT_KEY], ours)]
    for place, given in [*changes, (checkpoint["state_dict"], weights)]:
        for key, value in (given or {}).items():
            *path, last = key.split("/") if place is not checkpoint["state_dict"] else [key]
            inner = place
            for step in path:
                inner = inner[step]
            inner[last] = value
    return checkpoint


def zip_bomb(path: Path) -> None:
    """Repack a checkpoint with compression: 40 MB of zeros from a file of some 40 kB."""
    whole = io.BytesIO()
    torch.save(trained(weights={"network.stem.0.weight": torch.zeros(10_000_000)}), whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in source.infolist():
            bomb.writestr(member.filename, source.read(member))
    assert path.stat().st_size < 200_000


def overlapping_bomb(path: Path) -> None:
    """A stored archive whose directory names one member's bytes a hundred times."""
    content = io.BytesIO()
    torch.save(trained(), content)
    with zipfile.ZipFile(content, "a") as archive:
        large = max(archive.infolist(), key=lambda m: m.file_size)
        for number in range(100):
            again = zipfile.ZipInfo(f"archive/data/{1000 + number}")
            again.header_offset, again.CRC = large.header_offset, large.CRC
            again.file_size = again.compress_size = large.file_size
            archive.filelist.append(again)
        archive._didModify = True
    path.write_bytes(content.getvalue())


def lying_bomb(path: Path) -> None:
    """A compressed archive whose directory says that nothing grows."""
    zip_bomb(path)
    with zipfile.ZipFile(path) as archive:
        large = max(archive.infolist(), key=lambda m: m.file_size)
    sizes = struct.pack("<II", large.compress_size, large.file_size)
    lie = struct.pack("<II", large.compress_size, large.compress_size)
    assert sizes in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(sizes, lie))


def legacy_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({CHECKPOINT_KEY: Malicious()}, protocol=2))


BY_HAND: dict[str, tuple[Callable[[Path], None], str]] = {
    "zip bomb": (zip_bomb, "perhaps a bomb"),
    "overlapping bomb": (overlapping_bomb, "perhaps a bomb"),
    "lying bomb": (lying_bomb, "no PyTorch file"),
    "malicious pickle": (legacy_pickle, "no PyTorch file"),
    "another project's": (lambda path: torch.save({"state_dict": {}}, path), "another project"),
    "half": (lambda path: (torch.save(trained(), path), os.truncate(path, 3000))[-1], "no PyTorch file"),
}
COLOURS = ("style_target_colours", "style_mean_colours")
FIRST = "network.stem.0.weight"  # of shape (8, 3, 12, 12)
TAMPERED: dict[str, dict[str, Any]] = {
    "malicious": {"config": {"style/title": Malicious()}},
    "malicious weights": {"weights": {FIRST: Malicious()}},
    "a network without end": {"config": {"network/blocks": HUGE}},
    "a network of any width": {"config": {"network/width": HUGE}},
    "a network wider than memory": {"config": {"network/width": 4 * 10**8}},
    "a network of no width": {"config": {"network/width": 0}},
    "a width in words": {"config": {"network/width": "8"}},
    "a network of no name": {"config": {"network/name": ["fast"]}},
    "an unknown network": {"config": {"network/name": "faster"}},
    "a network with more to it": {"config": {"network/_target_": "os.system"}},
    "no network": {"config": {"network": None}},
    "weights of another network": {"config": {"network/width": 16}},
    "a weight that is missing": {"weights": {FIRST: None}},
    "a weight larger than memory": {"weights": {FIRST: torch.zeros(1).expand(HUGE)}},
    "a weight of no numbers": {"weights": {FIRST: torch.full((8, 3, 12, 12), float("nan"))}},
    "a weight of whole numbers": {"weights": {FIRST: torch.ones(8, 3, 12, 12, dtype=torch.int)}},
    "a weight on no device": {"weights": {FIRST: torch.empty(8, 3, 12, 12, device="meta")}},
    "a sparse weight": {"weights": {FIRST: torch.zeros(8, 3, 12, 12).to_sparse()}},
    "colours of another shape": {"weights": dict.fromkeys(COLOURS, torch.zeros(4, 3))},
    "colours of two paintings": {"weights": dict.fromkeys(COLOURS, torch.zeros(2, 4, 3))},
    "colours that are none": {"weights": dict.fromkeys(COLOURS, torch.full((1, 4, 3), 1e30))},
    "colours of the pictures alone": {"weights": {COLOURS[1]: torch.zeros(1, 4, 3)}},
    "no colours": {"weights": dict.fromkeys(COLOURS)},
    "sparse colours": {"weights": dict.fromkeys(COLOURS, torch.zeros(1, 4, 3).to_sparse())},
    "no mean": {"weights": {"style_mean_relu1_2": None}},
    "a sparse mean": {"weights": {"style_mean_relu1_2": torch.zeros(1, 4, 4).to_sparse()}},
    "a mean that is none": {"weights": {"style_mean_relu1_2": torch.full((1, 4, 4), torch.nan)}},
    "steps in words": {"ours": {"step": "four"}},
    "negative batches": {"ours": {"batches_seen": -4}},
    "seconds in words": {"ours": {"seconds": "1"}},
    "style weight in words": {"ours": {"style_weight": "7"}},
    "losses in a list": {"ours": {"validation_losses": [1.0]}},
    "a config in words": {"ours": {"config": "fast"}},
}


@pytest.mark.parametrize("kind", [*BY_HAND, *TAMPERED])
@pytest.mark.parametrize("command", ["nst-export", "train"])
def test_a_checkpoint_that_means_harm_is_refused(command, kind, refused):
    if kind in BY_HAND:
        write, words = BY_HAND[kind]
        write(Path("last.ckpt"))
    else:
        words = "last.ckpt"
        torch.save(trained(**TAMPERED[kind]), "last.ckpt")
    options = ["style=custom", "style.image=photo.png", "trainer=smoke", "network.width=8", "network.blocks=1"]
    line = refused(command, *(["last.ckpt"] if command == "nst-export" else [*options, "resume=last.ckpt"]))
    assert "last.ckpt" in line
    assert words in line


def test_the_bombs_would_go_off_where_nothing_looks(tmp_path):
    zip_bomb(tmp_path / "bomb")
    grown = torch.load(tmp_path / "bomb", weights_only=True)["state_dict"][FIRST]
    assert grown.nbytes > 100 * (tmp_path / "bomb").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "mark").exists()


def test_what_torch_writes_never_looks_like_a_bomb(tmp_path):
    for number, saved in enumerate((trained(), {}, torch.zeros(3), {"a": torch.zeros(1)}, [1] * 10_000)):
        torch.save(saved, tmp_path / "f")
        with zipfile.ZipFile(tmp_path / "f") as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        assert unpacked < MOST_UNPACKED * (tmp_path / "f").stat().st_size, number
        read_torch(tmp_path / "f")
    torch.save(trained(), tmp_path / "legacy", _use_new_zipfile_serialization=False)
    assert read_torch(tmp_path / "legacy").keys() == trained().keys()


CONFIGS: dict[str, Any] = {
    "style without a strength": {"style": {"name": "mine", "title": "", "artist": "", "licence": "", "size": 64}},
    "style without a title": {"style": {"name": "mine"}},
    "style in words": {"style": "mine"},
    "no seed": {"seed": {1, 2}},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_cannot_describe_a_model_is_refused(kind, refused):
    torch.save(trained(config=CONFIGS[kind]), "last.ckpt")
    assert "last.ckpt is not as `train` wrote it" in refused("nst-export", "last.ckpt")
    torch.save(trained(ours={"validation_losses": {"val/total_loss": "low"}}), "last.ckpt")
    assert "last.ckpt is not as `train` wrote it" in refused("nst-export", "last.ckpt")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", ".", ""])
def test_a_style_called_like_a_path_writes_nothing_elsewhere(name, refused, call):
    torch.save(trained(config={"style/name": name}), "last.ckpt")
    refused("nst-export", "last.ckpt")
    assert call("nst-export", "last.ckpt", "-o", "mine.onnx").out == "mine.onnx\n"


def metadata(path: str) -> dict[str, str]:
    return {p.key.removeprefix("nst_fast."): p.value for p in onnx.load(path).metadata_props}


def test_a_stored_config_is_text_and_neither_read_nor_run(call):
    evil = {"_target_": "os.system", "_args_": ["touch mark"], "_recursive_": True}
    given = {"style/title": "${oc.env:NST_SECRET}", "style/artist": "${oc.decode:'1'}", "data": {"name": "x", **evil}}
    torch.save(trained(config=given), "last.ckpt")
    result = call("nst-export", "last.ckpt")
    assert (result.code, result.out) == (0, "mine.onnx\n")
    assert metadata("mine.onnx")["title"] == "${oc.env:NST_SECRET}"
    assert metadata("mine.onnx")["artist"] == "${oc.decode:'1'}"
    assert json.loads(metadata("mine.onnx")["config"])["data"] == {"name": "x", **evil}
    assert SECRET.encode() not in Path("mine.onnx").read_bytes()
    assert not Path("mark").exists()


@pytest.mark.parametrize(
    "value", ["${oc.env:NST_SECRET}", "\\${oc.env:NST_SECRET}", "${trainer}", "???", "${", "a${b}"]
)
def test_a_run_is_not_compared_with_what_its_config_looks_up(value, refused):
    torch.save(trained(config={"trainer/max_steps": value}), "last.ckpt")
    options = ["style=custom", "style.image=photo.png", "trainer=smoke", "network.width=8", "network.blocks=1"]
    assert "trainer.max_steps" in refused("train", *options, "resume=last.ckpt")


def test_stored_gives_back_the_very_values():
    config = {"a": {"b": ["${oc.env:NST_SECRET}", 1, None, True]}, "c": "\\${x}", "_target_": "os.system", "d": {}}
    kept = stored(config)
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(kept, resolve=True) == config
    for wrong in ({"a": {1, 2}}, {"a": Malicious()}, [1], "text", None, {"a": torch.zeros(1)}):
        with pytest.raises(UserError) as caught:
            stored(wrong)
        assert "\n" not in str(caught.value)


SMALL = ["style=custom", "style.image=photo.png", "style.size=64", "network.width=8", "network.blocks=1"]
SMALL += ["data.size=64", "data.batch_size=1", "data.num_workers=0", "trainer=smoke", "trainer.accelerator=cpu"]
FROM_NOTHING = ["init_from=null", "network.width=8", "network.blocks=1"]  # soon made, where no network is looked at
ENGINE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no loops": lambda c: c.update(loops={}),
    "loops in a list": lambda c: c.update(loops=[1]),
    "no version": lambda c: c.pop("pytorch-lightning_version"),
    "an optimizer of nothing": lambda c: c.update(optimizer_states=[{}]),
    "an optimizer of words": lambda c: c["optimizer_states"][0]["state"].update({0: {"step": "x"}}),
    "momentum of another shape": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)),
    "momentum of one number": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(())),
    "no step": lambda c: c["optimizer_states"][0]["state"][0].pop("step"),
    "callbacks in a list": lambda c: c.update(callbacks=[1]),
}


@pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
def test_what_the_engine_keeps_of_itself_may_be_tampered_with(call):
    assert call("train", *SMALL, "output=run").code == 0
    whole = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    whole[CHECKPOINT_KEY]["config"]["trainer"]["max_steps"] = 6
    for number, (kind, tamper) in enumerate(ENGINE.items()):
        checkpoint = copy.deepcopy(whole)
        tamper(checkpoint)
        torch.save(checkpoint, "last.ckpt")
        result = call("train", *SMALL, "trainer.max_steps=6", "resume=last.ckpt", f"output={number}")
        lines = [line for line in result.err.splitlines() if not line.startswith("style ")]
        assert (result.code, result.out, len(lines)) == (1, "", 1), (kind, result)
        assert re.search(r"cannot go on from \S*last\.ckpt \(", lines[0])


# ONNX files


def model(*nodes: onnx.NodeProto, initializers: Any = (), said: Any = None, shape: Any = ("N", "H", "W", 3)) -> bytes:
    """A model of uint8 pictures that says it is ours; without nodes it gives the picture back."""
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("image", "stylized")]
    nodes = nodes or (helper.make_node("Identity", ["image"], ["stylized"]),)
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {"nst_fast.min_size": "16", **(said or {})})
    return made.SerializeToString()


def external(location: str, key: str = "location") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = key, location
    return tensor


def adds(source: TensorProto, constant: bool = False) -> bytes:
    """A model that adds three floats from a tensor to its pictures."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "w"], ["s"]),
        helper.make_node("Cast", ["s"], ["stylized"], to=TensorProto.UINT8),
    ]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=source))
    return model(*nodes, initializers=[] if constant else [source])


def overlong(content: bytes) -> bytes:
    """The same protobuf message with a key in an encoding that no writer uses; lengths around it are made to fit."""
    made = onnx.load_from_string(content)
    raw = made.graph.initializer[0].SerializeToString()
    entry = made.graph.initializer[0].external_data[0].SerializeToString()
    longer = entry.replace(b"\x0a\x08location", b"\x8a\x00\x88\x80\x00location")
    tensor = raw.replace(bytes([len(entry)]) + entry, bytes([len(longer)]) + longer)
    assert len(tensor) < 128
    del made.graph.initializer[:]
    graph = made.graph.SerializeToString() + b"\x2a" + bytes([len(tensor)]) + tensor
    made.ClearField("graph")
    size = bytes([len(graph) % 128 | 128, len(graph) // 128])
    return made.SerializeToString() + b"\x3a" + size + graph


def folded_weights() -> dict[str, np.ndarray]:
    """The weights of a small network, as models have them."""
    torch.manual_seed(0)
    return {k: v.numpy() for k, v in for_inference(create_network("fast", 8, 1)).state_dict().items()}


SECRET_FILE = external("../secret.bin")
BOMB = [
    helper.make_node("ConstantOfShape", ["n"], ["b"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
    helper.make_node("ReduceMean", ["b"], ["m"], keepdims=0),
    helper.make_node("Cast", ["m"], ["c"], to=TensorProto.UINT8),
    helper.make_node("Add", ["image", "c"], ["stylized"]),
]
MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "data above its folder": (lambda: adds(SECRET_FILE), "in other files"),
    "data anywhere": (lambda: adds(external(str(Path("../secret.bin").resolve()))), "in other files"),
    "data beside it": (lambda: adds(external("photo.png")), "in other files"),
    "data above its folder, in a constant": (lambda: adds(SECRET_FILE, constant=True), "in other files"),
    "data above its folder, written oddly": (lambda: overlong(adds(SECRET_FILE)), "in other files"),
    "data in memory": (lambda: adds(external("*/_ORT_MEM_ADDR_/*")), "in other files"),
    "data nowhere": (lambda: adds(external("x", key="place")), "no ONNX model"),
    "another project's": (lambda: adds(external("x")).replace(b"nst_fast.min_size", b"abc_fast.min_size"), ""),
    "more memory than there is": (
        lambda: model(*BOMB, initializers=[helper.make_tensor("n", TensorProto.INT64, [1], [HUGE])]),
        "cannot stylize",
    ),
    "a negative size": (lambda: model(said={"nst_fast.min_size": "-1"}), "min_size"),
    "no least size": (lambda: model(said={"nst_fast.min_size": "0"}), "min_size"),
    "a least size larger than memory": (lambda: model(said={"nst_fast.min_size": str(10**9)}), "min_size"),
    "a least size without end": (lambda: model(said={"nst_fast.min_size": "9" * 5000}), "min_size"),
    "a least size in words": (lambda: model(said={"nst_fast.min_size": "16 px"}), "min_size"),
    "one size larger than memory": (lambda: model(shape=(1, 10**6, 10**6, 3)), "no sensible size"),
    "pictures of another shape": (
        lambda: model(helper.make_node("Concat", ["image", "image"], ["stylized"], axis=1)),
        "no style model",
    ),
    "a graph that fails": (
        lambda: model(
            helper.make_node("Reshape", ["image", "n"], ["stylized"]),
            initializers=[helper.make_tensor("n", TensorProto.INT64, [4], [1, 7, 7, 3])],
        ),
        "cannot stylize",
    ),
    "onnxruntime's own format": (lambda: b"\x10\x00\x00\x00ORTM" + bytes(1000), "no ONNX model"),
    "nothing": (lambda: b"", "no ONNX model"),
    "noise": (lambda: np.random.default_rng(0).bytes(5000), "no ONNX model"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_means_harm_is_refused(kind, refused):
    make, words = MODELS[kind]
    Path("mine.onnx").write_bytes(make())
    line = refused("stylize", "--model", "mine.onnx", "photo.png", "-o", "out.png")
    assert "mine.onnx" in line
    assert words in line


def test_the_models_above_would_work_without_what_is_wrong(call):
    Path("mine.onnx").write_bytes(adds(helper.make_tensor("w", TensorProto.FLOAT, [3], [0.0, 1.0, 2.0])))
    assert call("stylize", "--model", "mine.onnx", "photo.png", "-o", "out.png").code == 0
    assert np.asarray(Image.open("out.png"))[0, 0].tolist() == [255, 1, 2]
    assert onnx.load_from_string(overlong(adds(SECRET_FILE))).graph.initializer[0].external_data[0].key == "location"


def test_a_style_may_be_called_location(call):
    said = {"nst_fast.title": "location", "nst_fast.location": "location", "nst_fast.style": "my location"}
    Path("mine.onnx").write_bytes(model(said=said))
    assert call("stylize", "--model", "mine.onnx", "photo.png", "-o", "out.png").code == 0


def test_what_a_model_says_cannot_steer_the_terminal(call):
    said = {"nst_fast.title": "\x1b]0;title\x07\x1b[2J\r\u202eeltit", "nst_fast.\x1b[31m": "red"}
    Path("mine.onnx").write_bytes(model(said=said))
    result = call("stylize", "--model", "mine.onnx", "--info")
    assert result.code == 0
    assert result.out.replace("\n", "").isprintable()
    assert "\\x1b[31m: red" in result.out


LOSS = {
    **{"name": "balanced", "content_layers": {"relu4_2": 1.0}, "style_layers": {"relu1_1": 1.0}},
    **{"content_weight": 1.0, "style_weight": 7.0, "tv_weight": 1.0, "pooling": "max", "normalise": False},
}
STYLE = {"name": "starry_night", "size": 256, "weight": 1.0}
TRAINED = {"style": STYLE, "loss": LOSS, "loss_network": {"name": "auto"}}
LOOKUP = "${oc.env:NST_SECRET}"
SAID: dict[str, Any] = {
    "no JSON": "{",
    "a list": [],
    "JSON without end": "[" * 100_000,
    "no loss": {k: v for k, v in TRAINED.items() if k != "loss"},
    "no such loss": {**TRAINED, "loss": {**LOSS, "name": "hinge"}},
    "no such loss network": {**TRAINED, "loss_network": {"name": "vgg"}},
    "a size that is looked up": {**TRAINED, "style": {**STYLE, "size": LOOKUP}},
    "a weight that is looked up": {**TRAINED, "loss": {**LOSS, "tv_weight": LOOKUP}},
    "a pooling that is looked up": {**TRAINED, "loss": {**LOSS, "pooling": LOOKUP}},
    "a layer that is looked up": {**TRAINED, "loss": {**LOSS, "style_layers": {LOOKUP: 1.0}}},
    "a layer's weight that is looked up": {**TRAINED, "loss": {**LOSS, "style_layers": {"relu1_1": LOOKUP}}},
    "a layer that is more options": {**TRAINED, "loss": {**LOSS, "style_layers": {"x: 1}, loss: {y": 1.0}}},
    "an octave that is more options": {**TRAINED, "loss": {**LOSS, "sliced_layers": {"rgb@2: 1}, loss: {y": 1.0}}},
    "a loss that is looked up": {**TRAINED, "loss": {**LOSS, "name": LOOKUP}},
    "infinite weights": {**TRAINED, "loss": {**LOSS, "tv_weight": float("inf")}},
    "a size without end": {**TRAINED, "style": {**STYLE, "size": 10**30}},
    "layers in a list": {**TRAINED, "loss": {**LOSS, "style_layers": ["relu1_1"]}},
}


@pytest.mark.parametrize("kind", SAID)
def test_a_models_own_config_that_means_harm_is_refused(kind, refused):
    said = SAID[kind] if isinstance(SAID[kind], str) else json.dumps(SAID[kind])
    Path("mine.onnx").write_bytes(model(said={"nst_fast.style": "starry_night", "nst_fast.config": said}))
    refused("nst-compare", "--model", "mine.onnx", "--content", ".", "--iterations", "1")


def test_a_model_of_a_style_called_like_a_lookup_needs_its_painting(refused):
    config = json.dumps({**TRAINED, "style": {**STYLE, "name": LOOKUP}})
    Path("mine.onnx").write_bytes(model(said={"nst_fast.style": LOOKUP, "nst_fast.config": config}))
    assert "style.image=FILE" in refused("nst-compare", "--model", "mine.onnx", "--content", ".")
    Path("mine.onnx").write_bytes(model(said={"nst_fast.style": LOOKUP}))
    assert LOOKUP in refused("nst-compare", "--model", "mine.onnx", "--content", ".")


NETWORK: dict[str, Any] = {"name": "fast", "width": 8, "blocks": 1, "grain": "noise"}
NO_STARTS: dict[str, Any] = {
    "no JSON": ("{", {}),
    "JSON without end": ("[" * 100_000, {}),
    "no network": ({}, {}),
    "a network in words": ({"network": "fast"}, {}),
    "a network without a width": ({"network": {"name": "fast"}}, {}),
    "more blocks than weights": ({"network": {**NETWORK, "blocks": 10**6}}, {}),
    "more than memory": ({"network": {**NETWORK, "width": 4 * HUGE}}, {}),
    "a margin of no network": ({"network": {**NETWORK, "margin": 10**9}}, {}),
    "a margin in words": ({"network": {**NETWORK, "margin": "wide"}}, {}),
    "an option that no network has": ({"network": {**NETWORK, "depth": 3}}, {}),
    "no weights": ({"network": NETWORK}, dict.fromkeys(folded_weights(), None)),
    "a weight that is no number": ({"network": NETWORK}, {"stem.0.bias": np.full(8, np.nan, np.float32)}),
    "a weight of another shape": ({"network": NETWORK}, {"stem.0.bias": np.zeros(9, np.float32)}),
    "a folded weight of another shape": ({"network": NETWORK}, {"body.1.weight": np.zeros(9, np.float32)}),
    "a weight of another type": ({"network": NETWORK}, {"stem.0.bias": np.zeros(8, np.int64)}),
    "texts for a weight": ({"network": NETWORK}, {"stem.0.bias": np.array(["x"] * 8, object)}),
}


@pytest.mark.parametrize("kind", NO_STARTS)
def test_a_model_that_no_training_can_start_from_is_refused(kind, refused):
    said, changes = NO_STARTS[kind]
    tensors = [
        numpy_helper.from_array(array, f"network.{name}")
        for name, array in {**folded_weights(), **changes}.items()
        if array is not None
    ]
    said = said if isinstance(said, str) else json.dumps(said)
    Path("mine.onnx").write_bytes(model(initializers=tensors, said={"nst_fast.config": said}))
    options = ["style=custom", "style.image=photo.png", *SMALL, "network.width=8", "network.blocks=1"]
    assert "mine.onnx" in refused("train", *options, "init_from=mine.onnx", "output=run")


# Loss networks and style targets


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header, true or not."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + body


def tensor(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def slim_with(**changes: Any) -> bytes:
    """The shipped loss network with tensors of no bytes in place of its own: their shapes are what a header says."""
    content = VGG16_SLIM.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    return safetensors({**header, **{k: tensor(v, len(body), len(body)) for k, v in changes.items()}}, body)


FORMAT = {"__metadata__": {"format": "nst_fast style targets 1"}}
LIES: dict[str, Callable[[], bytes]] = {
    "a header without end": lambda: safetensors({}, length=2**63),
    "a header larger than the file": lambda: safetensors({}, length=10**7),
    "a header that is no JSON": lambda: safetensors(b"{" * 50),
    "a header that is a list": lambda: safetensors([1]),
    "JSON without end": lambda: safetensors(b'{"a":' * 100_000),
    "bytes that are not there": lambda: safetensors({"256.relu1_1": tensor([HUGE], 0, 4 * HUGE), **FORMAT}),
    "bytes before the first": lambda: safetensors({"256.relu1_1": tensor([1], -4, 0), **FORMAT}),
    "bytes twice": lambda: safetensors(
        {"256.a": tensor([1], 0, 4), "256.b": tensor([1], 0, 4), **FORMAT}, struct.pack("f", 1.0)
    ),
    "a shape that overflows": lambda: safetensors({"256.a": tensor([2**40, 2**40], 0, 4), **FORMAT}, bytes(4)),
    "an unknown type": lambda: safetensors({"256.relu1_1": tensor([1], 0, 4, "F99"), **FORMAT}, bytes(4)),
    "a name without a size": lambda: safetensors({"relu1_1": tensor([1], 0, 4), **FORMAT}, bytes(4)),
    "a name of dots": lambda: safetensors({"..": tensor([1], 0, 4), **FORMAT}, bytes(4)),
    "a size in words": lambda: safetensors({"big.relu1_1": tensor([1], 0, 4), **FORMAT}, bytes(4)),
    "a size of 5,000 digits": lambda: safetensors({"9" * 5000 + ".a": tensor([1], 0, 4), **FORMAT}, bytes(4)),
    "no half of a matrix": lambda: safetensors({"256.relu1_1": tensor([2], 0, 8), **FORMAT}, bytes(8)),
    "a matrix that is no vector": lambda: safetensors({"256.relu1_1": tensor([1, 1], 0, 4), **FORMAT}, bytes(4)),
    "a single number": lambda: safetensors({"256.relu1_1": tensor([], 0, 4), **FORMAT}, bytes(4)),
    "no numbers": lambda: safetensors({"256.a": tensor([1], 0, 4), **FORMAT}, struct.pack("f", float("nan"))),
    "nothing in it": lambda: safetensors(FORMAT),
    "a pickle": lambda: pickle.dumps(Malicious()),
}


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize("command", ["train", "nst-optimize"])
def test_style_targets_that_mean_harm_are_refused(command, kind, refused):
    Path("mine.safetensors").write_bytes(LIES[kind]())
    more = ["content=photo.png"] if command == "nst-optimize" else FROM_NOTHING
    refused(command, *more, "style=custom", "style.targets=mine.safetensors", "loss_network=vgg16_slim")


WEIGHTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    **{name: ("vgg16_slim", make) for name, make in LIES.items()},
    "vgg19: bytes that are not there": ("vgg19", LIES["bytes that are not there"]),
    "a convolution wider than memory": ("vgg16_slim", lambda: slim_with(**{"conv1_1.weight": [HUGE, 0]})),
    "filters wider than memory": ("vgg16_slim", lambda: slim_with(**{"conv1_1.weight": [HUGE, 3, 3, 0]})),
    "a head wider than memory": ("vgg16_slim", lambda: slim_with(**{"head_relu1_1.weight": [HUGE, 24, 1, 0]})),
    "a head of nothing": ("vgg16_slim", lambda: slim_with(**{"head_relu1_1.weight": [0, 24, 1, 1]})),
    "a head of another layer": ("vgg16_slim", lambda: slim_with(**{"head_relu9_9.weight": [0, 24, 1, 1]})),
    "a head of dots": ("vgg16_slim", lambda: slim_with(**{"head_a.b.weight": [0, 24, 1, 1]})),
    "blocks out of order": ("vgg16_slim", lambda: slim_with(**{"conv0_2.weight": [0, 3, 3, 3]})),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_loss_network_that_means_harm_is_refused(kind, refused):
    name, make = WEIGHTS[kind]
    Path("mine.safetensors").write_bytes(make())
    options = ["style=custom", "style.image=photo.png", "style.size=32", *FROM_NOTHING]
    line = refused("train", *options, f"loss_network={name}", "loss_network.weights=mine.safetensors")
    assert "mine.safetensors" in line or "has no layer" in line


@pytest.mark.parametrize("kind", ["a convolution wider than memory", "filters wider than memory", "a head of nothing"])
def test_teachers_that_mean_harm_are_refused(kind, refused):
    Path("mine.safetensors").write_bytes(WEIGHTS[kind][1]().replace(b"head_relu1_1", b"conv1_1_more"))
    options = ["style=custom", "style.image=photo.png", "loss_network=teachers", *FROM_NOTHING]
    for role, other in (("shallow", "deep"), ("deep", "shallow")):
        paths = [f"loss_network.{role}=mine.safetensors", f"loss_network.{other}={VGG16_SLIM}"]
        refused("train", *options, *paths)


@pytest.mark.parametrize("kind", ["malicious", "zip bomb", "a weight larger than memory", "keys that are no names"])
def test_vgg19_as_a_pickle_that_means_harm_is_refused(kind, refused):
    whole = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    if kind == "zip bomb":
        zip_bomb(Path("vgg.pth"))
    elif kind == "malicious":
        torch.save({**whole, "features.2.weight": Malicious()}, "vgg.pth")
    elif kind == "a weight larger than memory":
        torch.save({**whole, "features.0.weight": torch.zeros(1, dtype=torch.half).expand(HUGE)}, "vgg.pth")
    else:
        torch.save({0: torch.zeros(1), None: torch.zeros(1)}, "vgg.pth")
    options = ["style=custom", "style.image=photo.png", "loss_network=vgg19", "loss_network.weights=vgg.pth"]
    options += FROM_NOTHING
    assert "vgg.pth" in refused("train", *options)


# Damage of any kind


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, most of them where a file says how it is made, cut, or repeat a piece."""
    way, changed = rng.integers(4), bytearray(content)
    if way < 2:
        span = len(content) if way else min(len(content), 2000)
        for place in rng.integers(0, span, rng.integers(1, 8)):
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    start, end = sorted(rng.integers(0, len(content), 2))
    return content[:start] if way == 2 else content[:end] + content[start:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    torch.save(trained(), folder / "last.ckpt")
    export_network(create_network("fast", 8, 1), folder / "mine.onnx", {"style": "mine"})
    save_file(
        {"16.relu1_1": torch.ones(6), "16.relu2_1": torch.ones(10)},
        folder / "mine.safetensors",
        {"format": "nst_fast style targets 1", "loss_network": "vgg16_slim@0", "image_sha256": "0"},
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["last.ckpt", "mine.onnx", "mine.safetensors"])
def test_damaged_files_are_used_or_refused_in_one_line(name, whole, call):
    Path("photo.png").unlink()
    Image.new("RGB", (17, 18), "red").save("photo.png")
    targets = ["style=custom", "style.targets=mine.safetensors", "loss_network=vgg16_slim"]
    commands = {
        "last.ckpt": [["nst-export", "last.ckpt", "-o", "out.onnx"]],
        "mine.onnx": [["stylize", "--model", "mine.onnx", "photo.png", "-o", "out.png", "--overwrite"]],
        "mine.safetensors": [
            ["nst-optimize", "content=photo.png", *targets, "size=32", "iterations=1"],
            ["train", *targets, *FROM_NOTHING],  # reads them at more sizes, and is slow
        ],
    }
    refusals = Counter[str]()
    for number in range(25):
        Path(name).write_bytes(damaged(whole[name], np.random.default_rng(number)))
        for command in commands[name][: 2 if number < 5 else 1]:
            result = call(*command)
            if result.code:
                refusals[command[0]] += 1
                assert (result.code, result.out, len(result.err.splitlines())) == (1, "", 1), (number, result)
    assert all(refusals[command[0]] > (5, 0)[place] for place, command in enumerate(commands[name]))


def test_the_config_on_the_command_line_is_the_users_own(monkeypatch):
    monkeypatch.setenv("NST_SECRET", SECRET)
    assert load_config("train", ["style=custom", "style.title=${oc.env:NST_SECRET}"]).style.title == SECRET
    assert shipped_models()
