"""`nst-preview`: a sheet of content distances, and the short training behind it."""

import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nst_fast.assets import ASSETS
from nst_fast.commands import preview
from nst_fast.commands.configuration import load_config
from nst_fast.loss.perceptual_loss import BalancedLoss
from nst_fast.loss.pretrained import create_loss_network
from nst_fast.loss.style_targets import StyleTargets, painting_targets
from nst_fast.loss.tensors import to_image
from nst_fast.training.content_images import BundledImages
from nst_fast.training.networks import create_network
from nst_fast.training.preview import rehearse
from nst_fast.training.sheet import draw_sheet

LAYERS = ["relu1_1", "relu2_1"]


def small_loss(painting):
    loss = BalancedLoss(create_loss_network("vgg16_slim"), {"relu2_1": 1.0}, dict.fromkeys(LAYERS, 0.5), 1.0, 7.0, 0.0)
    return loss, painting_targets(to_image(painting), loss.loss_network, loss.style_target_names, 128)


@pytest.mark.slow  # trains
def test_a_rehearsal_brings_a_network_to_a_content_distance():
    loss, style_targets = small_loss(BundledImages(128, 1, 1.0)[0][None] / 255)
    batches = torch.stack([BundledImages(48, 0, 0.0)[number] for number in range(8)]).split(2)
    content = torch.cat(batches) / 255
    weights = []
    for distance in (0.6, 1.0):
        torch.manual_seed(0)
        network = create_network("fast", 8, 1)
        state = torch.get_rng_state()
        given = {"loss": loss, "style_targets": style_targets, "batches": itertools.cycle(batches)}
        weights.append(rehearse(network, distance, 7.0, 150, **given))
        assert torch.equal(torch.get_rng_state(), state)
        assert not network.training
        with torch.no_grad():
            came = loss(network(content), loss.content_targets(content), style_targets)["content"]
        assert float(came) == pytest.approx(distance, rel=0.15)
    assert weights[0] < 0.5 * weights[1]


def test_a_rehearsal_is_the_same_each_time():
    loss, style_targets = small_loss(BundledImages(128, 1, 1.0)[0][None] / 255)
    batches = torch.stack([BundledImages(48, 0, 0.0)[number] for number in range(8)]).split(2)
    weights, networks = [], []
    for _ in range(2):
        torch.manual_seed(0)
        network = create_network("fast", 8, 1)
        given = {"loss": loss, "style_targets": style_targets, "batches": itertools.cycle(batches)}
        weights.append(rehearse(network, 0.6, 7.0, 12, **given))
        networks.append(network.state_dict())
    assert weights[0] == weights[1] != 7.0
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


def test_the_vector_alone_leaves_the_rest_of_the_network_as_it_was():
    loss, style_targets = small_loss(BundledImages(128, 1, 1.0)[0][None] / 255)
    batches = torch.stack([BundledImages(48, 0, 0.0)[number] for number in range(4)]).split(2)
    torch.manual_seed(0)
    network = create_network("fast", 8, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = {"loss": loss, "style_targets": style_targets, "batches": itertools.cycle(batches)}
    rehearse(network, 0.6, 7.0, 3, vector=True, **given)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"vectors"}


def test_sheet_shows_every_picture_untouched():
    rng = np.random.default_rng(0)
    pictures = [[Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)] for _ in "ab"]
    sheet = np.asarray(draw_sheet(pictures, ["one", "two"], ["a", "b", "c"], "title"))
    places = []
    for row in pictures:
        for picture in row:
            wanted = np.asarray(picture)
            windows = np.lib.stride_tricks.sliding_window_view(sheet, wanted.shape)[:, :, 0]
            ((y, x),) = np.argwhere((windows == wanted).all((2, 3, 4)))
            places.append((y, x))
    assert [y for y, _ in places[:3]] == [places[0][0]] * 3
    assert [x for _, x in places] == [x for _, x in places[:3]] * 2
    assert sorted(set(places)) == places


def run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nst-preview", *arguments])
    with pytest.raises(SystemExit) as end:
        preview.main()
    return end.value.code or 0, capsys.readouterr()


def test_the_command_writes_a_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((80, 60), 60).convert("RGB").save("painting.png")
    options = [
        "style=custom",
        "style.image=painting.png",
        "content_distances=[strong,0.2]",
        "style.size=40",
        "size=96",
    ]
    options += ["vector_steps=2", "steps=2"]
    code, told = run([*options, "loss_network=vgg16_slim", "device=cpu"], monkeypatch, capsys)
    assert code == 0, told.err
    assert told.out.strip() == "painting.preview.jpg"
    assert "loss.style_weight strong: " in told.err
    with Image.open("painting.preview.jpg") as sheet:
        assert sheet.width > 2 * 96
        assert sheet.height > 2 * 64


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("content_distances=medium", "a list is needed"),
        ("content_distances=[]", "1 to 16"),
        ("content_distances=[huge]", "content_distances is 'huge'"),
        ("vector_steps=0", "vector_steps is 0"),
        ("style.content_distance=medium", "content_distances="),
        ("output=sheet.xyz", "xyz"),
        ("loss=gatys", "loss.name"),
        ("content=nothing.jpg", "nothing.jpg"),
        ("size=0", "size is 0"),
        ("size=64", "56 px each way are needed"),
        ("steps=0", "steps is 0"),
        ("output=photo.png", "would replace"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(option, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = []
    if option == "output=photo.png":
        Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
        content = ["content=photo.png"]
    code, told = run(["style=starry_night", *content, option], monkeypatch, capsys)
    assert code == 1
    assert words in told.err
    assert "Traceback" not in told.err
    assert len(list(tmp_path.iterdir())) == len(content)


def test_every_default_of_the_sheet_is_shipped():
    """Offline, without the paintings."""
    cfg = load_config("preview", ["style=starry_night"])
    assert cfg.loss.name == "balanced"
    assert cfg.style.size in StyleTargets.load(ASSETS / "style_targets" / "starry_night.safetensors").sizes
