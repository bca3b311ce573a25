"""Many paintings in one network: how it is trained, chosen from, blended, and how a new painting starts from it."""

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import skimage.data
import torch
from conftest import Result, run_main
from PIL import Image

from nst_fast.assets import ASSETS
from nst_fast.commands import stylize as stylize_module
from nst_fast.commands import train as train_module
from nst_fast.commands.configuration import load_config
from nst_fast.commands.perceptual_loss import create_perceptual_loss, find_gallery, find_style
from nst_fast.errors import UserError
from nst_fast.loss.loss_networks import VGG, freeze
from nst_fast.loss.perceptual_loss import BalancedLoss, split_name, style_target
from nst_fast.loss.style_targets import find_paintings
from nst_fast.stylizing.contact_sheet import contact_sheet
from nst_fast.stylizing.looks import Looks
from nst_fast.stylizing.stroke import underpainted
from nst_fast.stylizing.style_file import AS_PAINTED, StyleFile
from nst_fast.stylizing.stylizer import Stylizer, add_lost
from nst_fast.training.checkpoints import STYLE_MEAN, read_checkpoint, trained_network
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import import_network
from nst_fast.training.style_transfer import NEWEST, Recipe, StyleTransfer, chosen_paintings

pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

SMALL = ["data.size=64", "data.batch_size=2", "data.num_workers=0", "style.size=64", "trainer.accelerator=cpu"]
SHORT = [*SMALL, "loss_network=vgg16_slim", "network.width=8", "network.blocks=1", "trainer.max_steps=3"]


def blocks(seed: int, height: int = 90, width: int = 120) -> Image.Image:
    """A picture of coloured blocks."""
    colours = np.random.default_rng(seed).integers(0, 256, (-(-height // 10), -(-width // 10), 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(10, 0).repeat(10, 1)[:height, :width])


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """A folder with a gallery of three paintings that learned for three steps."""
    folder = tmp_path_factory.mktemp("my gallery")
    (folder / "paintings").mkdir()
    for number in range(3):
        blocks(number).save(folder / "paintings" / f"{number}.png")
    told = [{"file": f"{number}.png", "name": name, "artist": "A. Blocks"} for number, name in enumerate("abc")]
    (folder / "paintings" / "manifest.json").write_text(json.dumps(told))
    given = ["style=gallery", f"style.images={folder / 'paintings'}", *SHORT, "init_from=null", f"output={folder}"]
    trained = run_main(train_module.main, "train", *given, folder=folder)
    assert trained.code == 0, trained.err
    (folder / "printed.txt").write_text(trained.out)
    blocks(9, 70, 80).save(folder / "photo.png")
    return folder


@pytest.fixture
def stylize(gallery):
    """The command `stylize` in this process, with the gallery."""

    def call(*arguments: object) -> Result:
        given = ["--model", gallery / "gallery.onnx", "--threads", 1, "--overwrite", *arguments]
        return run_main(stylize_module.main, "stylize", *given, folder=gallery)

    return call


@pytest.mark.parametrize("paintings", [1, 2, 7, 20])
def test_every_round_has_each_painting_once_whatever_the_batches(paintings):
    run = chosen_paintings(range(6 * paintings), paintings)
    for number in range(6):
        assert sorted(run[number * paintings : (number + 1) * paintings]) == list(range(paintings))
    parts = [chosen_paintings(range(first, min(first + 5, len(run))), paintings) for first in range(0, len(run), 5)]
    assert np.array_equal(np.concatenate(parts), run)
    if paintings > 5:
        assert len({tuple(run[number * paintings :][:paintings]) for number in range(6)}) == 6


def test_a_batch_of_several_paintings_has_the_mean_gradient_of_its_pictures():
    torch.manual_seed(0)
    loss_network = freeze(VGG([[8], [12]]))
    loss = BalancedLoss(loss_network, {"relu2_1": 1.0}, {"relu1_1": 0.5, "relu2_1": 0.5}, 1.0, 10.0, 1.0)

    def targets() -> dict[str, torch.Tensor]:
        features = loss_network(torch.rand(1, 3, 48, 40), loss.layers)
        return {n: style_target(loss_network, n, features[split_name(n)[1]]) for n in loss.style_target_names}

    paintings = [targets() for _ in range(3)]
    network = create_network("fast", 8, 1, paintings=3)
    module = StyleTransfer(network, loss, paintings, Recipe(1, grid_weight=0.0, weave_weight=0.0), {"config": {}})
    content, chosen = torch.rand(4, 3, 32, 32), torch.tensor([2, 0, 2, 1])
    together = module.losses(content, module.stylize(content, chosen), chosen)["total"].mean()
    parameters = list(network.parameters())
    got = torch.autograd.grad(together, parameters)
    totals = []
    for picture, painting in zip(content, chosen, strict=True):
        stylized = network(picture[None], network.vectors[painting][None])
        totals.append(loss(stylized, loss.content_targets(picture[None]), paintings[painting])["total"])
    assert together.item() == pytest.approx(sum(totals).item() / 4, rel=1e-5)
    for gradient, expected in zip(got, torch.autograd.grad(sum(totals) / 4, parameters), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_painting_has_the_mean_of_its_own_pictures(tmp_path):
    torch.manual_seed(0)
    loss_network = freeze(VGG([[8]]))
    loss = BalancedLoss(loss_network, {"relu1_1": 1.0}, {"relu1_1": 1.0}, 1.0, 10.0, 1.0)
    features = [loss_network(torch.rand(1, 3, 48, 40), loss.layers)["relu1_1"] for _ in range(3)]
    paintings = [{n: style_target(loss_network, n, f) for n in loss.style_target_names} for f in features]
    recipe = Recipe(1, grid_weight=0.0, weave_weight=0.0, own_style=0.25)
    module = StyleTransfer(create_network("fast", 8, 1, paintings=3), loss, paintings, recipe, {"config": {}})
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    means = module.get_buffer(f"{STYLE_MEAN}relu1_1")
    before, grams = means.clone(), torch.rand(4, 8, 8)
    module.follow({"relu1_1": grams}, torch.tensor([2, 0, 2, 2]), torch.tensor(False))
    assert torch.equal(means[1], before[1])
    for painting, own in ((0, [1]), (2, [0, 2, 3])):
        share = 1 - (1 - NEWEST) ** len(own)
        torch.testing.assert_close(means[painting], before[painting] + share * (grams[own].mean(0) - before[painting]))


def test_a_picture_has_the_style_weight_of_its_painting():
    loss_network = freeze(VGG([[8], [12]]))
    loss = BalancedLoss(loss_network, {"relu2_1": 1.0}, {"relu1_1": 1.0}, 1.0, 10.0, 1.0)
    painted, content, painting = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32), torch.rand(1, 3, 48, 40)
    features = loss_network(painting, loss.layers)
    targets = {n: style_target(loss_network, n, features[split_name(n)[1]]) for n in loss.style_target_names}
    got = loss.each(painted, loss.content_targets(content), targets, torch.tensor([1.0, 5.0, 25.0]))["total"]
    for number, weight in enumerate((1.0, 5.0, 25.0)):
        loss.style_weight = weight
        one = slice(number, number + 1)
        expected = loss(painted[one], loss.content_targets(content[one]), targets)["total"]
        assert got[number].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_content_distance_gives_each_painting_a_style_weight_of_its_own(gallery, tmp_path):
    given = [f"style.images={gallery / 'paintings'}", *SHORT, "init_from=null", "style.content_distance=3"]
    given += [f"output={tmp_path / 'run'}", "trainer.max_steps=12", "trainer.validate_every=6"]
    told = run_main(train_module.main, "train", "style=gallery", *given, folder=tmp_path)
    assert told.code == 0, told.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    weights, losses = summary["style_weights"], summary["validation_losses"]
    assert list(weights) == ["a", "b", "c"]
    assert len(set(weights.values())) == 3
    stored = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    kept = stored["state_dict"]["control.log_weight"].exp().tolist()
    assert kept == pytest.approx(list(weights.values()))
    came = [losses[f"val/{name}_content_loss"] / 0.92 for name in "abc"]  # vgg16_slim shows 0.92 of a distance
    expected = f"style weights of {min(weights.values()):.3g} to {max(weights.values()):.3g} give "
    expected += f"{min(came):.3g} to {max(came):.3g} on validation pictures, 3 is wanted"
    assert expected in told.err
    assert losses["val/content_loss"] == pytest.approx(0.92 * sum(came) / 3, rel=1e-5)


def test_a_gallery_says_what_its_paintings_are(gallery):
    stylizer = Stylizer(gallery / "gallery.onnx")
    assert list(stylizer.paintings) == ["a", "b", "c"]
    assert stylizer.paintings["b"]["artist"] == "A. Blocks"
    summary = json.loads((gallery / "summary.json").read_text())["validation_losses"]
    own = [summary[f"val/{name}_total_loss"] for name in "abc"]
    assert summary["val/total_loss"] == pytest.approx(np.mean(own), rel=1e-5)
    assert len(set(own)) == 3


def train_until_step_2(arguments: list[str]) -> None:
    """Train, and stop after two steps as Ctrl-C does."""
    with pytest.MonkeyPatch.context() as patch:
        step = StyleTransfer.training_step

        def interrupted(self, batch, batch_idx):
            step(self, batch, batch_idx)
            self.trainer.should_stop = self.batches_seen == 2

        patch.setattr(StyleTransfer, "training_step", interrupted)
        with pytest.raises(UserError, match="stopped at step 2"):
            train_module.train_command(arguments)


def test_a_gallery_that_goes_on_is_the_one_that_never_stopped(gallery, tmp_path):
    """Though it validates after every step."""
    common = ["style=gallery", f"style.images={gallery / 'paintings'}", *SHORT, "init_from=null"]
    train_until_step_2([*common, f"output={tmp_path / 'broken'}", "trainer.validate_every=1"])
    resumed = train_module.train_command([f"resume={tmp_path / 'broken'}"])
    first, second = (import_network(path).state_dict() for path in (gallery / "gallery.onnx", resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_of_the_vector_alone_leaves_a_style_for_its_gallery(gallery, stylize, tmp_path, capfd):
    blocks(5).save(tmp_path / "mine.png")
    options = [
        "style=custom",
        f"style.image={tmp_path / 'mine.png'}",
        "trainer.vector_steps=3",
        "trainer.vector_rate=9",
    ]
    model = train_module.train_command(
        [*options, *SHORT, f"init_from={gallery / 'gallery.onnx'}", f"output={tmp_path / 'run'}"]
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    shared, own = import_network(gallery / "gallery.onnx"), trained_network(read_checkpoint(checkpoint), checkpoint)
    shared, own = shared.state_dict(), own.state_dict()
    finished = import_network(model).state_dict()
    mapped = [name for name, weight in finished.items() if not torch.allclose(weight, own[name], rtol=1e-4, atol=1e-5)]
    assert len(mapped) <= 2  # weight and bias of the last convolution, which the map of colours goes into
    for name in shared.keys() - {"vectors"}:
        torch.testing.assert_close(own[name], shared[name], rtol=1e-5, atol=1e-6)
    learned = shared["vectors"].shape[1] - len(AS_PAINTED)
    start = shared["vectors"].mean(0)[:learned]
    assert (own["vectors"][0] - start).abs().max() > 0.01
    file = tmp_path / "run" / "mine.style"
    capfd.readouterr()
    train_module.show_result(model)
    assert capfd.readouterr().out.splitlines() == [str(file), f"stylize --style {file} photo.jpg"]
    assert file.stat().st_size < 20_000
    done = stylize("--style", f"{file}=0.5,a=0.5", "--underpainting", 0, "photo.png", "-o", tmp_path / "blend.png")
    assert (done.code, done.err) == (0, "")
    photograph, painter = Image.open(gallery / "photo.png"), Stylizer(gallery / "gallery.onnx")
    alone = np.asarray(painter(photograph, str(file))).astype(int)
    assert np.abs(alone - np.asarray(Stylizer(model)(photograph))).max() <= 1
    vector = np.array(json.loads(file.read_text())["vector"], np.float32)
    np.testing.assert_allclose(vector[:learned], own["vectors"][0], rtol=1e-5, atol=1e-6)
    blend = 0.5 * vector + 0.5 * shared["vectors"][0].numpy()
    feeds = {"style_weights": np.zeros(3, np.float32), "style_vector": blend}
    expected = painter.session.run(None, {"image": np.asarray(photograph)[None], **feeds})[0][0]
    assert np.abs(np.asarray(Image.open(tmp_path / "blend.png")).astype(int) - expected).max() <= 1


def test_a_run_of_the_vector_alone_that_goes_on_leaves_the_same_style(gallery, tmp_path):
    blocks(5).save(tmp_path / "mine.png")
    common = ["style=custom", f"style.image={tmp_path / 'mine.png'}", "trainer.vector_steps=3", *SHORT]
    common.append(f"init_from={gallery / 'gallery.onnx'}")
    train_module.train_command([*common, f"output={tmp_path / 'whole'}", "trainer.validate_every=1"])
    train_until_step_2([*common, f"output={tmp_path / 'broken'}", "trainer.validate_every=1"])
    train_module.train_command([f"resume={tmp_path / 'broken'}"])
    assert (tmp_path / "broken" / "mine.style").read_text() == (tmp_path / "whole" / "mine.style").read_text()


def test_a_style_of_another_gallery_or_another_file_is_one_line(gallery, stylize, tmp_path):
    trunk = Stylizer(gallery / "gallery.onnx").metadata["trunk"]
    length = import_network(gallery / "gallery.onnx").vectors.shape[1]
    StyleFile("another", {"name": "x"}, [0.0] * length).save(tmp_path / "x.style")
    StyleFile(trunk, {}, [float("nan")] * length).save(tmp_path / "y.style")
    (tmp_path / "z.style").write_text("[]")
    for name, said in {"x": "with the gallery another", "y": "no style", "z": "no style", "w": "No such"}.items():
        done = stylize("--style", tmp_path / f"{name}.style", "photo.png", "-o", tmp_path / "out.png")
        assert done.code == 1
        assert said in done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "out.png").exists()


def test_a_style_without_a_map_of_colours_gets_one_and_a_gallery_without_takes_none(tmp_path):
    numbers = [float(number) for number in range(8)]
    StyleFile("g", {"name": "x"}, numbers).save(tmp_path / "x.style")
    StyleFile("g", {"name": "y"}, [*numbers, *AS_PAINTED]).save(tmp_path / "y.style")
    for name, length, expected in (("x", 20, [*numbers, *AS_PAINTED]), ("y", 8, numbers), ("x", 8, numbers)):
        assert StyleFile.load(tmp_path / f"{name}.style", "g", length).vector == expected
    with pytest.raises(UserError):
        StyleFile.load(tmp_path / "x.style", "g", 9)


def test_a_style_file_is_named_where_its_suffix_is_missing(stylize, gallery):
    (gallery / "newman.style").write_text("")
    done = stylize("--style", "newman", "photo.png")
    (gallery / "newman.style").unlink()
    assert done.code == 1
    assert "did you mean the file newman.style?" in done.err


def test_results_are_called_after_the_style(gallery, stylize):
    assert stylize("--style", "b", "photo.png").code == 0
    assert stylize("--style", "b=1,c=3", "photo.png").code == 0
    painter, photograph = Stylizer(gallery / "gallery.onnx"), Image.open(gallery / "photo.png")
    for name, style in (("b", "b"), ("b+c", {"b": 0.25, "c": 0.75})):
        assert np.array_equal(Image.open(gallery / f"photo.{name}.png"), painter(photograph, style))


def test_the_command_that_training_prints_paints_with_the_gallery(gallery, tmp_path):
    typed = shlex.split((gallery / "printed.txt").read_text().splitlines()[-1])
    assert typed[-1] == "photo.jpg"
    assert " " in str(gallery)  # it is quoted
    given = [*typed[:-1], gallery / "photo.png", "-o", tmp_path / "painted.png"]
    done = run_main(stylize_module.main, *given, folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    with Image.open(tmp_path / "painted.png") as painted:
        assert painted.size == (80, 70)


def test_without_a_style_one_line_says_which_there_are(stylize):
    done = stylize("photo.png")
    assert done.code == 1
    assert done.err == "stylize: which style? say --style NAME; gallery has a, b, c\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--style", "d"], "no style 'd'"),
        (["--style", "a=x"], "NAME=WEIGHT"),
        (["--style", "a=-1,b=2"], "at least 0"),
        (["--style", "a", "--outside", "b"], "--mask"),
        (["--style", "a", "--mask", "nothing.png"], "nothing.png"),
        (["--to-style", "b"], "--style where it begins"),
        (["--style", "a", "--to-style", "nothing"], "no style 'nothing'"),
        (["--sheet"], "-o"),
        (["--style", "a,", "b"], "a style without a name"),
        (["--style", "my.jpg"], "--painting my.jpg"),
        (["--style", "a=0.3"], "--strength 0.3"),
        (["--style", "a=0.3,b"], "give every style a weight"),
        (["--style", "a=0.7", "b=0.3"], "a comma joins several"),
        (["--sheet", "-o", "sheets/", "*.png"], "--sheet needs one picture"),
    ],
)
def test_what_cannot_be_done_is_one_line(stylize, given, said):
    done = stylize(*given, "photo.png")
    assert done.code != 0
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_mask_paints_where_it_is_white_and_another_style_where_it_is_black(gallery, stylize, tmp_path):
    mask = np.zeros((70, 80), np.uint8)
    mask[:, 40:], mask[:10] = 255, 128
    Image.fromarray(mask).save(tmp_path / "mask.png")
    painter, photograph = Stylizer(gallery / "gallery.onnx"), Image.open(gallery / "photo.png")
    share = mask[..., None] / 255
    for options, around in (([], np.asarray(photograph)), (["--outside", "c"], np.asarray(painter(photograph, "c")))):
        out = tmp_path / "out.png"
        assert stylize("--style", "b", "--mask", tmp_path / "mask.png", *options, "photo.png", "-o", out).code == 0
        expected = share * np.asarray(painter(photograph, "b")) + (1 - share) * around
        assert np.abs(np.asarray(Image.open(out)) - expected).max() <= 1


def test_a_sheet_of_a_folder_is_refused_in_one_line(stylize, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    for given, said in ((tmp_path, "is a folder"), (tmp_path / "*.png", "holds 2 pictures")):
        done = stylize("--sheet", given, "-o", f"{tmp_path / 'sheets'}/")
        assert done.code == 1
        assert f"{said}; --sheet needs one picture" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "given", [{"style": {"a": "x"}}, {"stroke": "big"}, {"style": {"a": math.nan}}, {"strength": 2}, {"stroke": 0}]
)
def test_what_cannot_be_painted_is_a_user_error_in_python(gallery, given):
    with pytest.raises(UserError):
        Stylizer(gallery / "gallery.onnx")(Image.new("RGB", (40, 40)), **given)


def test_looks_take_a_mask_of_any_mode_and_no_side_of_0(gallery):
    photograph, painter = Image.open(gallery / "photo.png"), Stylizer(gallery / "gallery.onnx")
    mask = Image.fromarray(np.arange(80, dtype=np.uint8)[None].repeat(70, 0))
    grey, coloured = (Looks(mask=m).apply(painter, photograph) for m in (mask, mask.convert("RGB")))
    assert np.array_equal(grey, coloured)
    with pytest.raises(UserError, match="max_side is 0"):
        Looks(max_side=0)


def test_a_sheet_has_the_picture_in_every_style(gallery, stylize, tmp_path):
    assert stylize("--sheet", "photo.png", "-o", tmp_path / "sheet.png", "--max-side", 80).code == 0
    sheet, painter = np.asarray(Image.open(tmp_path / "sheet.png")), Stylizer(gallery / "gallery.onnx")
    photograph = Image.open(gallery / "photo.png")
    for picture in (photograph, *(painter(photograph, name) for name in "abc")):
        found = np.asarray(picture)
        places = [
            (y, x)
            for y in range(sheet.shape[0] - 69)
            for x in range(sheet.shape[1] - 79)
            if np.array_equal(sheet[y, x], found[0, 0])
        ]
        assert any(np.array_equal(sheet[y : y + 70, x : x + 80], found) for y, x in places)


def test_a_sheet_is_about_twice_as_wide_as_high():
    for count, size in ((8, (300, 20)), (20, (64, 64)), (21, (320, 320)), (40, (20, 200))):
        sheet = contact_sheet({str(number): Image.new("RGB", size) for number in range(count)})
        assert 1 < sheet.width / sheet.height < 4


def test_paintings_are_called_after_their_files_or_as_the_manifest_says(tmp_path):
    with pytest.raises(UserError):
        find_paintings(tmp_path)
    for name in ("one.png", "two.jpg"):
        blocks(1).save(tmp_path / name)
    assert [told["name"] for told in find_paintings(tmp_path).values()] == ["one", "two"]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps([{"file": "two.jpg", "name": "zwei", "year": 1889, "size": [1, 2]}]))
    assert find_paintings(tmp_path) == {tmp_path / "two.jpg": {"name": "zwei", "year": "1889"}}
    twice = [{"file": "one.png", "name": "x"}, {"file": "two.jpg", "name": "x"}]
    sizes = [json.dumps([{"file": "one.png", "style_size": size}]) for size in (8, "192", True, 192.0, None, 1 << 20)]
    for wrong in ("{", "[1]", "[{}]", json.dumps(twice), '[{"file": "one.png", "name": "a,b"}]', "[]", *sizes):
        manifest.write_text(wrong)
        with pytest.raises(UserError):
            find_paintings(tmp_path)


def test_a_manifest_gives_a_painting_a_size_of_its_own(tmp_path):
    for name in ("one.png", "two.png"):
        blocks(1, 120, 160).save(tmp_path / name)
    listed = [{"file": "one.png", "style_size": 48}, {"file": "two.png"}]
    (tmp_path / "manifest.json").write_text(json.dumps(listed))
    cfg = load_config("train", ["style=gallery", f"style.images={tmp_path}", "loss_network=vgg16_slim"])
    cfg.style.size, cfg.loss.pooling = 96, "max"
    loss = create_perceptual_loss(cfg)
    (one, two), told = find_gallery(cfg.style, loss)
    alone = load_config("train", ["style=custom", f"style.image={tmp_path / 'one.png'}"]).style
    for got, size in ((one, 48), (two, 96)):
        expected, _ = find_style(alone, loss, size)
        assert got.keys() == expected.keys()
        for name, target in got.items():
            torch.testing.assert_close(target, expected[name], rtol=1e-4, atol=1e-6)
    assert told[0]["style_size"] == "48"
    assert "style_size" not in told[1]


@pytest.mark.slow  # trains three times
def test_minutes_become_the_steps_that_repeat_the_run(tmp_path, capfd):
    blocks(5).save(tmp_path / "mine.png")
    common = ["style=custom", f"style.image={tmp_path / 'mine.png'}", *SHORT[:-1], "init_from=null"]
    timed = train_module.train_command([*common, "trainer.minutes=0.1", f"output={tmp_path / 'timed'}"])
    (steps,) = re.findall(r"trainer\.max_steps=(\d+) repeats", capfd.readouterr().err)
    counted = train_module.train_command([*common, f"trainer.max_steps={steps}", f"output={tmp_path / 'counted'}"])
    first, second = (import_network(path).state_dict() for path in (timed, counted))
    assert json.loads((tmp_path / "timed" / "summary.json").read_text())["steps"] == int(steps)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_galleries_strength_blends_vectors_and_gives_the_photograph_back():
    painter, photograph = Stylizer("gallery", 1, device="cpu"), np.asarray(skimage.data.chelsea())[100:200, 100:260]
    trunk = painter.metadata["trunk"]
    given_back = StyleFile.load(ASSETS / "photograph" / f"{trunk}.style", trunk, 948)
    own = {"style_weights": np.zeros(20, np.float32), "style_vector": np.array(given_back.vector, np.float32)}
    seen = Image.fromarray(photograph)

    def by_hand(feeds):  # the two layers of the model
        def run(picture):
            return Image.fromarray(painter.run_fed(np.asarray(picture)[None], feeds)[0])

        return np.asarray(run(underpainted(run, seen, painter.underpainting)), float)

    whole = painter(photograph, "great_wave")
    assert np.array_equal(painter(photograph, "great_wave", 1), whole)
    assert np.array_equal(painter(photograph, "great_wave", 0), photograph)
    lost, distances = photograph - by_hand(own), []
    for strength in (0.25, 0.5, 0.75):
        weights = strength * (np.array(list(painter.paintings)) == "great_wave")
        vector = (1 - strength) * own["style_vector"]
        fed = {"style_weights": weights.astype(np.float32), "style_vector": vector.astype(np.float32)}
        expected = (by_hand(fed) + (1 - strength) * lost).clip(0, 255)
        got = painter(photograph, "great_wave", strength)
        assert np.abs(got - expected).max() <= 1
        distances.append(np.abs(got.astype(float) - photograph).mean())
    assert 0 < distances[0] < distances[1] < distances[2] < np.abs(whole.astype(float) - photograph).mean()
    with pytest.raises(UserError, match="the strength is 2; it must be from 0"):
        painter(photograph, "great_wave", 2)
    small = Stylizer("gallery.int8", 1, device="cpu")  # the same vector; eight bits move values by a few steps
    assert (
        np.abs(small(photograph, "great_wave", 0.5).astype(float) - painter(photograph, "great_wave", 0.5)).mean() < 8
    )


def test_what_is_lost_is_added_strip_by_strip():
    painted, photograph, back = (blocks(seed, 50, 37) for seed in range(3))
    values = [np.asarray(picture, float) for picture in (painted, photograph, back)]
    expected = (values[0] + 0.4 * (values[1] - values[2])).clip(0, 255)
    for strip in (1, 200, 1 << 20):
        got = np.asarray(add_lost(painted.copy(), photograph, back, 0.4, strip), float)
        assert np.abs(got - expected).max() <= 0.51


def test_strength_of_another_gallery_is_a_blend_with_the_photograph(gallery):
    painter, photograph = Stylizer(gallery / "gallery.onnx"), np.asarray(Image.open(gallery / "photo.png"))
    whole = painter(photograph, "b").astype(float)
    for strength in (0, 0.25, 1):
        got = painter(photograph, "b", strength)
        assert np.abs(got - (strength * whole + (1 - strength) * photograph)).max() <= 1
    assert np.array_equal(painter(photograph, "b", 0), photograph)


def test_a_video_moves_from_one_style_to_another(gallery, tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed: the extra video")
    photograph, clip, out = Image.open(gallery / "photo.png"), tmp_path / "clip.mp4", tmp_path / "out.mp4"
    with av.open(str(clip), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width, stream.height = photograph.size
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_image(photograph)))
        file.mux(stream.encode())
    styles = ["--style", "starry_night=2,andante=2", "--to-style", "the_scream"]
    done = run_main(stylize_module.main, "stylize", *styles, clip, "-o", out, "--quality", 100, folder=tmp_path)
    assert done.code == 0, done.err
    with av.open(str(out)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(clip)) as file:
        decoded = next(file.decode(video=0)).to_image()
    begin = {"starry_night": 0.5, "andante": 0.5}
    shares = [{name: (1 - s) * weight for name, weight in begin.items()} | {"the_scream": s} for s in np.arange(5) / 4]
    painter = Stylizer("gallery")
    expected = [painter(decoded, style) for style in shares]
    apart = [[np.square(frame.astype(float) - np.asarray(e)).mean() for e in expected] for frame in frames]
    assert [int(np.argmin(row)) for row in apart] == [0, 1, 2, 3, 4]


def test_a_picture_does_not_move_to_another_style(stylize):
    done = stylize("--style", "a", "--to-style", "b", "photo.png")
    assert done.code != 0
    assert "--to-style is the end of a video; photo.png becomes a picture" in done.err
