"""The inference session: exact sizes, small pictures, foreign files, and no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from nst_fast.errors import UserError
from nst_fast.stylizing.jobs import find_jobs, stylize_jobs
from nst_fast.stylizing.looks import Looks
from nst_fast.stylizing.stroke import grain, restore_edges
from nst_fast.stylizing.stylizer import Stylizer, among
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export

REAL_SESSION = onnxruntime.InferenceSession
PEERS = Path(__file__).resolve().parents[2] / "shared" / "peers"


def random_pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)


def identity_model(kind: int, shape: list) -> onnx.ModelProto:
    """A model of another project: its output is its input."""
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("image", "stylized")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["stylized"])], "other", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = create_network("fast", 8, 1)
    with torch.no_grad():
        list(network.parameters())[-1].add_(0.5)
    return export(network, tmp_path_factory.mktemp("model") / "tiny.onnx", {"style": "tiny", "title": "Ťiny"})


@pytest.fixture(scope="module")
def stylizer(model):
    return Stylizer(model, threads=1)


def offer(monkeypatch, *providers: str, starts: bool | Exception = True, runs: Exception | None = None) -> list[tuple]:
    """Let onnxruntime offer providers, which start and run or not; what sessions were asked for comes into the list."""
    asked = []

    class Session(REAL_SESSION):
        def __init__(self, content, options, providers, **more):
            asked.append(([provider for provider, _ in providers], options))
            self.names = [provider for provider, _ in providers]
            if self.names[0] != "CPUExecutionProvider" and isinstance(starts, Exception):
                raise starts
            super().__init__(content, options, providers=["CPUExecutionProvider"], **more)

        def run(self, *given):
            if self.names[0] != "CPUExecutionProvider" and runs is not None:
                raise runs
            return super().run(*given)

        def get_providers(self):
            return self.names if starts is True else ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


def test_auto_is_cuda_or_the_processor_and_nothing_else(model, monkeypatch, caplog):
    asked = offer(monkeypatch, "CoreMLExecutionProvider", "DmlExecutionProvider")
    assert Stylizer(model).device == "cpu"
    assert Stylizer(model, device="coreml").device == "coreml"
    assert [names[0] for names, _ in asked] == ["CPUExecutionProvider", "CoreMLExecutionProvider"]
    offer(monkeypatch, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert Stylizer(model).device == "cuda"
    assert caplog.messages == []


FAILURE = RuntimeError("CUDA failure 35\nat line 3")


@pytest.mark.parametrize(
    ("starts", "runs"), [(False, None), (FAILURE, None), (True, FAILURE)], ids=["silent", "raises", "at its first run"]
)
def test_a_device_that_does_not_start_is_said(starts, runs, model, tmp_path, monkeypatch, caplog):
    offer(monkeypatch, "CUDAExecutionProvider", starts=starts, runs=runs)
    stylizer = Stylizer(model, threads=1)
    assert stylizer.device == "cpu"
    (told,) = caplog.messages
    assert ("cannot start cuda" in told, "CUDA failure 35" in told) == (True, starts is not False)
    assert stylizer.stylize_array(random_pictures(1, 20, 20)).shape == (1, 20, 20, 3)
    with pytest.raises(UserError, match="cannot start cuda") as refusal:
        Stylizer(model, device="cuda")
    assert "\n" not in str(refusal.value)
    (tmp_path / "words.onnx").write_text("words")
    with pytest.raises(UserError, match="is no ONNX model"):
        Stylizer(tmp_path / "words.onnx")


@pytest.mark.parametrize("shape", [["N", 3, "H", "W"], [None] * 4, [1, 3, 40, 72], ["N", "H", "W", 3]], ids=str)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
def test_any_model_that_takes_pictures_is_tried_on_a_device(tmp_path, monkeypatch, caplog, kind, shape):
    onnx.save(identity_model(kind, shape), tmp_path / "other.onnx")
    offer(monkeypatch, "CUDAExecutionProvider")
    given = {} if kind == TensorProto.UINT8 else {"pixel_range": 255}
    assert Stylizer(tmp_path / "other.onnx", device="cuda", **given).device == "cuda"
    assert caplog.messages == []


def test_a_model_that_takes_no_pictures_is_not_the_devices_fault(tmp_path, monkeypatch):
    onnx.save(identity_model(TensorProto.FLOAT, ["N", 3]), tmp_path / "other.onnx")
    offer(monkeypatch, "CUDAExecutionProvider")
    with pytest.raises(UserError, match="is no style model"):
        Stylizer(tmp_path / "other.onnx", device="cuda", pixel_range=255)


def test_directml_runs_one_picture_at_a_time(model, monkeypatch):
    asked = offer(monkeypatch, "DmlExecutionProvider")
    assert Stylizer(model, threads=8, device="directml").runs_at_once == 1
    assert Stylizer(model, threads=8).runs_at_once == 3
    assert [options.enable_mem_pattern for _, options in asked] == [False, True]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux lists a process's threads there")
@pytest.mark.parametrize(("threads", "runs"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 3)])
def test_runs_beside_each_other_have_so_many_threads_in_all(model, threads, runs):
    stylizer = Stylizer(model, threads=threads)
    before = len(list(Path("/proc/self/task").iterdir()))
    several = among(stylizer, 40 * 56)
    workers = len(list(Path("/proc/self/task").iterdir())) - before if several is not stylizer else 0
    assert (stylizer.runs_at_once, workers + runs) == (runs, threads)
    pictures = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), np.uint8)
    np.testing.assert_array_equal(several.stylize_array(pictures), stylizer.stylize_array(pictures))


@pytest.mark.parametrize(
    ("sizes", "shared"), [([(40, 40)], False), ([(40, 40), (48, 40)], True), ([(1500, 1500), (1500, 1500)], False)]
)
def test_threads_are_shared_by_pictures_that_run_beside_each_other(model, sizes, shared, tmp_path):
    stylizer = Stylizer(model, threads=2)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (90, 120, 30)).save(tmp_path / f"{number}.png")
    jobs = find_jobs([str(tmp_path / f"{number}.png") for number in range(len(sizes))], f"{tmp_path}/out/", "x", None)
    assert [result.error for result in stylize_jobs(jobs, stylizer)] == [None] * len(sizes)
    assert ("several" in vars(stylizer)) == shared


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for the driver's program")
@pytest.mark.parametrize(("told", "megapixels"), [("8192\n24576\n", 4.3), ("81920\n", 43), ("[N/A]\n", 4)])
def test_a_gpu_tiles_what_its_memory_does_not_hold(told, megapixels, model, tmp_path, monkeypatch):
    """Three pictures at once, 500 bytes a pixel, three quarters of what is free."""
    offer(monkeypatch, "CUDAExecutionProvider")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{told}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    stylizer, processor = Stylizer(model, threads=4), Stylizer(model, threads=4, device="cpu")
    side = (megapixels * 1e6) ** 0.5
    assert not stylizer.needs_tiles(int(0.99 * side), int(0.99 * side))
    assert stylizer.needs_tiles(int(1.01 * side), int(1.01 * side))
    assert processor.needs_tiles(2010, 2010)


def test_as_many_threads_run_as_were_asked_for(model):
    asked = [Stylizer(model, threads=threads).session.get_session_options().intra_op_num_threads for threads in (1, 3)]
    assert asked == [1, 3]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (15, 16), (16, 16), (101, 75)])
def test_output_has_exactly_the_size_of_the_input(stylizer, size):
    pictures = random_pictures(2, *size)
    stylized = stylizer.stylize_array(pictures)
    assert stylized.shape == pictures.shape
    assert stylized.dtype == np.uint8
    image = Image.fromarray(pictures[0])
    assert (stylizer(image).size, stylizer(image).mode) == (image.size, "RGB")


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 40), (40, 15), (15, 16)])
def test_small_picture_is_padded_by_its_edges_and_cropped_back(stylizer, model, size):
    pictures = random_pictures(1, *size)
    least = int(stylizer.metadata["min_size"])
    starts = [max(0, least - length) // 2 for length in size]
    rows, columns = (
        np.clip(np.arange(max(length, least)) - start, 0, length - 1)
        for length, start in zip(size, starts, strict=True)
    )
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    whole = session.run(None, {"image": pictures[:, rows][:, :, columns]})[0]
    expected = whole[:, starts[0] : starts[0] + size[0], starts[1] : starts[1] + size[1]]
    np.testing.assert_array_equal(stylizer.stylize_array(pictures), expected)


def test_a_picture_and_its_array_give_the_same(stylizer):
    pictures = random_pictures(1, 33, 50)
    stylized = np.asarray(stylizer(Image.fromarray(pictures[0])))
    np.testing.assert_array_equal(stylized, stylizer.stylize_array(pictures)[0])
    assert stylized.std() > 1


def test_orientation_and_alpha_are_resolved_before_stylizing(stylizer, tmp_path):
    pixels, exif = random_pictures(20, 30), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.dstack([pixels, np.full((20, 30), 255, np.uint8)])).save(tmp_path / "photo.png", exif=exif)
    upright = np.rot90(pixels, -1)
    with Image.open(tmp_path / "photo.png") as image:
        got = np.asarray(stylizer(image))
    np.testing.assert_array_equal(got, stylizer.stylize_array(upright[None].copy())[0])


def test_a_file_and_its_bytes_give_what_the_opened_picture_gives(stylizer, tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((50, 40), 60).convert("RGB").save(path)
    expected = np.asarray(stylizer(Image.open(path)))
    for given in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(np.asarray(stylizer(given)), expected)
    with pytest.raises(UserError, match=r"no picture at nowhere\.png"):
        stylizer("nowhere.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_looks_take_pictures_of_any_mode_and_orientation(stylizer, mode, tmp_path):
    picture = Image.effect_noise((60, 40), 60).convert(mode)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    picture.save(path := tmp_path / f"photo.{'jpg' if mode == 'CMYK' else 'png'}", exif=exif)
    painted = Looks(strength=0.5).apply(stylizer, Image.open(path))
    assert (painted.mode, painted.size) == ("RGB", (40, 60))
    np.testing.assert_array_equal(np.asarray(painted), np.asarray(stylizer(Image.open(path), strength=0.5)))


@pytest.mark.parametrize("given", [{"strength": 2}, {"strength": float("nan")}, {"stroke": 0}, {"stroke": -1}])
def test_what_is_out_of_its_range_is_refused_in_one_line(stylizer, given):
    picture = Image.new("RGB", (40, 40))
    ((name, value),) = given.items()
    for paint in (lambda: stylizer(picture, **given), lambda: Looks(**given).apply(stylizer, picture)):
        with pytest.raises(UserError, match=f"the {name} is {value}; it must be") as raised:
            paint()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("threads", [-1, 1.5])
def test_threads_are_a_whole_number(model, threads):
    with pytest.raises(UserError, match=f"threads is {threads}; it must be a whole number"):
        Stylizer(model, threads)


def test_a_picture_that_pillow_would_warn_of_is_read_in_silence(tmp_path):
    Image.new("1", (10_000, 9_500)).save(path := tmp_path / "large.png")
    read = f"import nst_fast.stylizing.images as images; print(images.load_image({str(path)!r}).size)"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(10000, 9500)\n", "")


@pytest.fixture(scope="module")
def layering(model):
    """The same network, which says that it paints over a first layer."""
    told = onnx.load(model)
    told.metadata_props.add(key="nst_fast.underpainting", value="0.25")
    onnx.save(told, path := model.with_name("layering.onnx"))
    return Stylizer(path)


def test_a_model_paints_over_what_it_painted_of_the_picture_made_smaller(stylizer, layering):
    pictures = random_pictures(2, 48, 64)
    for picture, painted in zip(pictures, layering.stylize_array(pictures), strict=True):
        photograph = Image.fromarray(picture)
        small = (picture.reshape(24, 2, 32, 2, 3).mean((1, 3)) + 0.5).astype(np.uint8)
        small = (small + grain()[:24, :32]).clip(0, 255).astype(np.uint8)
        coarse, grey = stylizer.stylize_array(small[None])[0], [0.299, 0.587, 0.114]
        changed = (coarse - (small @ grey)[..., None]).astype(np.float32)
        up = [Image.fromarray(changed[..., c]).resize((64, 48), Image.Resampling.BICUBIC) for c in range(3)]
        layer = (np.stack(up, -1) + (picture @ grey)[..., None]).clip(0, 255)
        seen = (0.75 * picture + 0.25 * layer).round() + grain()[:48, :64]
        expected = stylizer.stylize_array(seen.clip(0, 255).astype(np.uint8)[None])[0].astype(int)
        assert np.abs(painted - expected).mean() < 0.1  # rounding of halves
        np.testing.assert_array_equal(np.asarray(layering(photograph)), painted)
        np.testing.assert_array_equal(np.asarray(Looks().apply(layering, photograph)), painted)
        assert np.abs(painted - stylizer.stylize_array(picture[None])[0].astype(int)).mean() > 1


def test_a_stroke_makes_both_layers_larger(layering):
    photograph = Image.fromarray(random_pictures(1, 48, 64)[0])
    small = photograph.resize((32, 24), Image.Resampling.LANCZOS)
    expected = restore_edges(photograph, small, layering(small))
    np.testing.assert_array_equal(np.asarray(layering(photograph, stroke=2)), np.asarray(expected))


def test_an_underpainting_can_be_left_out(layering, stylizer):
    pictures = random_pictures(1, 48, 64)
    once = Stylizer(layering.path, underpainting=0)
    np.testing.assert_array_equal(once.stylize_array(pictures), stylizer.stylize_array(pictures))
    twice = Stylizer(stylizer.path, underpainting=0.25)
    np.testing.assert_array_equal(twice.stylize_array(pictures), layering.stylize_array(pictures))
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="underpainting is"):
            Stylizer(stylizer.path, underpainting=share)


@pytest.mark.parametrize("told", ["2", "-1", "nan", "1e9", "", "0.", "١"])
def test_a_model_that_tells_no_share_of_its_underpainting_is_refused_in_one_line(model, tmp_path, told):
    changed = onnx.load(model)
    changed.metadata_props.add(key="nst_fast.underpainting", value=told)
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(UserError, match=r"is not as it was exported: nst_fast\.underpainting is"):
        Stylizer(tmp_path / "changed.onnx")


def test_metadata_is_read_without_its_prefix(stylizer):
    assert stylizer.metadata == {"style": "tiny", "title": "Ťiny", "min_size": "16"}


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((1, 20, 20, 3), np.float32),
        np.zeros((20, 20, 3), np.uint8),
        np.zeros((1, 3, 20, 20), np.uint8),
        np.zeros((1, 20, 20, 4), np.uint8),
        np.zeros((0, 20, 20, 3), np.uint8),
        np.zeros((1, 0, 20, 3), np.uint8),
    ],
    ids=lambda pictures: f"{pictures.dtype} {pictures.shape}",
)
def test_wrong_type_or_shape_is_a_value_error(stylizer, pictures):
    with pytest.raises(ValueError, match="is needed"):
        stylizer.stylize_array(pictures)


def assert_refused(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        Stylizer(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_missing_model_is_refused_in_one_line(tmp_path):
    assert_refused(tmp_path / "missing.onnx")
    assert_refused(tmp_path)
    assert_refused(tmp_path / ("x" * 300 + ".onnx"))


def test_damaged_model_is_refused_in_one_line(tmp_path, model):
    content = model.read_bytes()
    for number, damaged in enumerate((b"", b"just words\n" * 50, content[: len(content) // 2], content[100:])):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(damaged)
        assert_refused(path)


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        (TensorProto.FLOAT, ["N", "H", "W", 3], "--pixel-range"),
        (TensorProto.FLOAT, [1, 1, "H", "W"], "(1, 1, 'H', 'W')"),
        (TensorProto.FLOAT, ["N", 3], "('N', 3)"),
        (TensorProto.INT64, [1, 3, "H", "W"], "int64"),
        (TensorProto.UINT8, ["N", "H", "W", 4], "'W', 4"),
    ],
)
def test_model_of_another_project_is_refused_with_what_it_takes(tmp_path, kind, shape, reason):
    onnx.save(identity_model(kind, shape), tmp_path / "other.onnx")
    assert reason in assert_refused(tmp_path / "other.onnx")


AXES = [
    ["N", 3, "H", "W"],
    ["batch", "channels", "height", "width"],
    [None] * 4,
    [1, 3, None, None],
    ["N", "H", "W", 3],
    ["a", "b", "c", 3],
]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
def test_axes_of_a_foreign_model_may_be_called_anything(tmp_path, kind, axes):
    onnx.save(identity_model(kind, axes), tmp_path / "other.onnx")
    pixels = random_pictures(21, 34)
    given = {} if kind == TensorProto.UINT8 else {"pixel_range": 255}
    np.testing.assert_array_equal(Stylizer(tmp_path / "other.onnx", **given)(pixels), pixels)


def negative(kind: int, *around: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """255 − x, between nodes that change the size; the first takes x, the last gives y."""
    ends = [helper.make_tensor_value_info(name, kind, [1, 3, *size]) for name, size in (("x", "hw"), ("y", "HW"))]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array(255, np.float32), "white"))
    graph = helper.make_graph(list(around), "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [([4, 3, "H", "W"], "index: 0 Got: 1 Expected: 4"), ([1, 3, 128, "W"], "index: 2 Got: 176 Expected: 128")],
)
def test_a_size_that_a_foreign_model_does_not_take_is_refused_with_what_it_takes(tmp_path, shape, reason):
    onnx.save(identity_model(TensorProto.FLOAT, shape), tmp_path / "other.onnx")
    with pytest.raises(UserError, match=reason):
        Stylizer(tmp_path / "other.onnx", pixel_range=255)(random_pictures(176, 240))


def test_a_model_that_onnxruntime_is_too_old_for_is_refused_with_both_versions(tmp_path):
    model = identity_model(TensorProto.FLOAT, ["N", 3, "H", "W"])
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "other.onnx")
    assert "Opset 99" in assert_refused(tmp_path / "other.onnx")


@pytest.mark.parametrize("tile", [False, True])
def test_a_model_that_gives_no_numbers_is_told_not_black(tmp_path, tile):
    node = helper.make_node("Div", ["x", "zero"], ["y"])
    model = negative(TensorProto.FLOAT, node, zero=np.zeros(1, np.float32))
    onnx.save(model, tmp_path / "nan.onnx")
    stylizer, pixels = Stylizer(tmp_path / "nan.onnx", pixel_range=255, tile=tile), random_pictures(16, 20)
    assert stylizer(pixels + 1 - pixels // 255).min() == 255  # infinity is white
    pixels[3, 4, 1] = 0
    with pytest.raises(UserError, match="no numbers"):
        stylizer(pixels)


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("size", [(20, 30), (21, 33), (5, 64)])
def test_what_a_foreign_model_enlarges_is_made_smaller_again(tmp_path, times, size):
    nodes = [
        helper.make_node("Sub", ["white", "x"], ["small"]),
        helper.make_node(
            "Resize", ["small", "", "times"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
    ]  # fmt: skip
    model = negative(TensorProto.FLOAT, *nodes, times=np.array([1, 1, times, times], np.float32))
    onnx.save(model, tmp_path / "larger.onnx")
    pixels = random_pictures(*size)
    np.testing.assert_array_equal(Stylizer(tmp_path / "larger.onnx", pixel_range=255)(pixels), 255 - pixels)


@pytest.mark.parametrize("block", [2, 4, 8])
@pytest.mark.parametrize("size", [(32, 64), (33, 65), (31, 47), (3, 5)])
@pytest.mark.parametrize("way", ["rounds down", "refuses"])
def test_a_foreign_model_that_needs_a_multiple_gets_it(tmp_path, way, block, size):
    """Average pooling rounds down; SpaceToDepth takes whole blocks alone. Pictures are of flat blocks."""
    if way == "refuses":
        nodes = [
            helper.make_node("SpaceToDepth", ["n"], ["d"], blocksize=block),
            helper.make_node("DepthToSpace", ["d"], ["y"], blocksize=block),
        ]
    else:
        nodes = [
            helper.make_node("AveragePool", ["n"], ["d"], kernel_shape=[block] * 2, strides=[block] * 2),
            helper.make_node(
                "Resize", ["d", "", "times"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
        ]  # fmt: skip
    weights = {"times": np.array([1, 1, block, block], np.float32)} if way != "refuses" else {}
    first = helper.make_node("Sub", ["white", "x"], ["n"])
    onnx.save(negative(TensorProto.FLOAT, first, *nodes, **weights), tmp_path / "blocks.onnx")
    rows, columns = -(-size[0] // block), -(-size[1] // block)
    pixels = random_pictures(rows, columns).repeat(block, 0).repeat(block, 1)[: size[0], : size[1]]
    np.testing.assert_array_equal(Stylizer(tmp_path / "blocks.onnx", pixel_range=255)(pixels), 255 - pixels)


def test_a_foreign_model_whose_output_is_of_no_such_size_is_refused_with_both(tmp_path):
    nodes = [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[5, 5])]
    onnx.save(negative(TensorProto.FLOAT, *nodes), tmp_path / "less.onnx")
    with pytest.raises(UserError, match="26×16 of a picture of 30×20"):
        Stylizer(tmp_path / "less.onnx", pixel_range=255)(random_pictures(20, 30))


def test_float_variant_of_ours_makes_the_same_picture(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 45, 61, 3), np.uint8)
    network = create_network("fast", 8, 1)
    variants = [export(network, tmp_path / f"{f}.onnx", {}, float_nchw=f) for f in (False, True)]
    plain, floating = (Stylizer(path).stylize_array(pictures).astype(int) for path in variants)
    assert np.abs(plain - floating).max() <= 1


@pytest.mark.skipif(not PEERS.is_dir(), reason="the peers' models in shared/peers are not here")
def test_models_of_peers_are_refused_in_one_line():
    peers = sorted(PEERS.glob("*.onnx"))
    assert peers
    for path in peers:
        assert_refused(path)


@pytest.mark.skipif(not PEERS.is_dir(), reason="the peers' models in shared/peers are not here")
@pytest.mark.parametrize(("name", "bgr"), [("gnsmrky_candy_nc16_256", False), ("winml_candy_720", True)])
def test_a_peers_model_runs_as_it_does_by_hand(name, bgr):
    path = PEERS / f"{name}.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[2]
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    order = [2, 1, 0] if bgr else [0, 1, 2]
    fed = picture.astype(np.float32).transpose(2, 0, 1)[None, order]
    expected = session.run(None, {session.get_inputs()[0].name: fed})[0][0, order].transpose(1, 2, 0)
    stylized = Stylizer(path, pixel_range=255, bgr=bgr)(picture)
    assert np.abs(stylized - expected.clip(0, 255)).max() <= 0.5 + 1e-3


def foreign_model(path: Path, nodes: list, size: tuple = ("H", "W"), **weights: np.ndarray) -> Path:
    """Another project's model, float pictures from x to y."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, *size]) for name in "xy"]
    ends[1].type.tensor_type.shape.dim[2].ClearField("dim_param")
    ends[1].type.tensor_type.shape.dim[3].ClearField("dim_param")
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("bgr", [False, True])
def test_a_foreign_models_range_and_channels_are_as_it_is_told(tmp_path, white, bgr):
    """It halves its first channel, whatever that is, and goes beyond white in its second."""
    gain = np.array([0.5, 2.0, 1.0], np.float32).reshape(1, 3, 1, 1)
    path = foreign_model(tmp_path / "gain.onnx", [helper.make_node("Mul", ["x", "gain"], ["y"])], gain=gain)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    got = Stylizer(path, pixel_range=white, bgr=bgr)(pixels)
    order = gain.ravel()[::-1] if bgr else gain.ravel()
    np.testing.assert_allclose(got, (pixels * order).clip(0, 255), atol=0.5 + 1e-3)


def test_a_foreign_model_of_one_size_may_be_no_square(tmp_path):
    path = foreign_model(tmp_path / "same.onnx", [helper.make_node("Identity", ["x"], ["y"])], size=(40, 72))
    flat = np.full((31, 45, 3), 90, np.uint8)
    np.testing.assert_array_equal(Stylizer(path, pixel_range=1)(flat), flat)


def test_what_a_foreign_model_rounds_up_is_cut_off(tmp_path):
    halved = helper.make_node("MaxPool", ["x"], ["half"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    doubled = helper.make_node("Resize", ["half", "", "twice"], ["y"], mode="nearest")
    twice = np.array([1, 1, 2, 2], np.float32)
    flat = np.full((31, 45, 3), 90, np.uint8)
    path = foreign_model(tmp_path / "even.onnx", [halved, doubled], twice=twice)
    np.testing.assert_array_equal(Stylizer(path, pixel_range=1)(flat), flat)


@pytest.mark.skipif(not PEERS.is_dir(), reason="the peers' models in shared/peers are not here")
def test_a_model_of_fixed_size_gives_back_the_pictures_own_size():
    stylize = Stylizer(PEERS / "gnsmrky_mosaic_nc16_256.onnx", pixel_range=255)
    assert stylize(Image.new("RGB", (301, 77))).size == (301, 77)


@pytest.mark.parametrize(
    "script",
    [
        "import nst_fast.stylizing.stylizer",
        "from nst_fast.commands.stylize import stylize; assert stylize(sys.argv[1:]) == 0",
    ],
    ids=["import", "command"],
)
def test_stylizing_a_picture_imports_neither_the_training_packages_nor_rich(tmp_path, model, script):
    Image.fromarray(random_pictures(20, 20)).save(tmp_path / "photo.png")
    unused = ["torch", "torchvision", "pytorch_lightning", "hydra", "omegaconf", "onnx", "skimage", "safetensors"]
    unused += ["matplotlib", "rich"]
    script = f"import sys; {script}; print('imported:', [m for m in {unused} if m in sys.modules])"
    command = [sys.executable, "-c", script, "--model", str(model), str(tmp_path / "photo.png"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"
