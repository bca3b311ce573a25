"""Any painting: whitening and coloring against their definitions, and pictures and commands end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from conftest import Result, run_main
from PIL import Image

from nst_fast.commands import stylize as stylize_command
from nst_fast.errors import UserError
from nst_fast.stylizing.any_painting import BORDER, AnyPainting, padded
from nst_fast.stylizing.whitening import (
    FLOOR,
    Moments,
    Statistics,
    adain,
    mixed,
    power,
    whitening_coloring,
)


def features(channels: int, seed: int, weak: int = 0) -> np.ndarray:
    """Return correlated features (channels, 40, 50), of which some directions vary by far less than the floor."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    deviations = np.concatenate([np.full(weak, 1e-3), rng.uniform(0.5, 3, channels - weak)])
    values = (directions * deviations) @ rng.standard_normal((channels, 2000)) + rng.standard_normal((channels, 1))
    return values.reshape(channels, 40, 50)


def statistics(values: np.ndarray) -> Statistics:
    moments = Moments(len(values))
    moments.add(values)
    return moments.statistics()


def through(change, values: np.ndarray) -> np.ndarray:
    return np.einsum("dc,chw->dhw", change.matrix, values) + change.offset[:, None, None]


def painting(path: Path, size: tuple[int, int] = (96, 80), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photograph() -> Image.Image:
    y, x = np.mgrid[:75, :101]
    pixels = np.stack([x * 2, y * 3, 128 + 100 * np.sin(x / 7) * np.cos(y / 9)], 2).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def test_moments_of_parts_are_the_whole_pictures():
    values = features(6, 0)
    parts = Moments(6)
    for part in (values[:, :13, :], values[:, 13:, :7], values[:, 13:, 7:]):
        parts.add(part)
    flat = values.reshape(6, -1)
    np.testing.assert_allclose(parts.statistics().mean, flat.mean(1), atol=1e-12)
    np.testing.assert_allclose(parts.statistics().covariance, np.cov(flat, bias=True), atol=1e-10)


def test_whitened_features_have_the_identity_above_the_floor():
    values = features(12, 1, weak=3)
    found = statistics(values)
    whitened = power(found.covariance, -0.5, FLOOR) @ (values.reshape(12, -1) - found.mean[:, None])
    variances, directions = np.linalg.eigh(np.cov(values.reshape(12, -1), bias=True))
    strong = directions[:, variances > FLOOR]
    assert strong.shape[1] == 9
    np.testing.assert_allclose(strong.T @ np.cov(whitened, bias=True) @ strong, np.eye(9), atol=1e-6)
    weak = directions[:, variances <= FLOOR]  # are not amplified past 1 / √floor
    np.testing.assert_allclose(
        np.diag(weak.T @ np.cov(whitened, bias=True) @ weak), variances[variances <= FLOOR] / FLOOR, atol=1e-9
    )


def test_colored_features_have_the_paintings_mean_and_covariance():
    content, style = features(12, 2), features(12, 3, weak=2)
    colored = through(whitening_coloring(statistics(content), statistics(style)), content).reshape(12, -1)
    np.testing.assert_allclose(colored.mean(1), style.reshape(12, -1).mean(1), atol=1e-9)
    np.testing.assert_allclose(np.cov(colored, bias=True), np.cov(style.reshape(12, -1), bias=True), atol=1e-4)


def test_adain_is_its_hand_formula():
    content, style = features(5, 4), features(5, 5)
    got = through(adain(statistics(content), statistics(style)), content)
    for c in range(5):
        expected = style[c].std() * (content[c] - content[c].mean()) / content[c].std() + style[c].mean()
        np.testing.assert_allclose(got[c], expected, atol=1e-9)


def test_adain_is_the_diagonal_case():
    content, style = (Statistics(np.arange(3.0), np.diag(v)) for v in ([1.0, 4.0, 0.5], [9.0, 0.25, 2.0]))
    for one, other in zip(adain(content, style), whitening_coloring(content, style), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_maps_are_mixed_by_weight():
    content, styles = features(4, 6), [features(4, seed) for seed in (7, 8)]
    maps = [whitening_coloring(statistics(content), statistics(style)) for style in (*styles, content)]
    np.testing.assert_allclose(through(mixed(maps, [0, 0, 1]), content), content, atol=1e-9)
    half = 0.3 * through(maps[0], content) + 0.2 * through(maps[1], content) + 0.5 * content
    np.testing.assert_allclose(through(mixed(maps, [0.3, 0.2, 0.5]), content), half, atol=1e-9)


def test_tiles_are_the_whole_picture(tmp_path, photograph):
    photograph = photograph.resize((333, 250))
    file = painting(tmp_path / "a.png")
    whole, tiled = (np.asarray(AnyPainting({file: 1}, tile=t).stylize(photograph), int) for t in (1024, 96))
    assert whole.shape == (250, 333, 3)
    assert np.abs(whole - tiled).max() <= 1


def test_pictures_beside_each_other_are_the_same(tmp_path, photograph):
    stylizer = AnyPainting({painting(tmp_path / "a.png"): 1}, threads=2)
    beside = stylizer.several
    np.testing.assert_array_equal(*(np.asarray(one.stylize(photograph)) for one in (stylizer, beside)))


def test_strength_0_is_the_photograph_and_the_reconstruction_is_near(tmp_path):
    photograph = Image.fromarray(skimage.data.astronaut()).resize((160, 160))
    stylizer = AnyPainting({painting(tmp_path / "a.png"): 1})
    assert np.array_equal(np.asarray(stylizer.stylize(photograph, strength=0)), np.asarray(photograph))
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"the strength is .*; it must be from 0"):
            stylizer.stylize(photograph, strength=strength)
    pixels = padded(photograph)
    given_back = stylizer.decode(pixels, stylizer.statistics(pixels), 0.0)
    kept = given_back[:, BORDER : BORDER + 160, BORDER : BORDER + 160].transpose(1, 2, 0)
    error = kept.astype(float) - np.asarray(photograph)
    assert np.sqrt((error**2).mean()) < 30  # of 255


def test_weights_are_shares_and_one_painting_is_its_own_blend(tmp_path, photograph):
    a, b = painting(tmp_path / "a.png", seed=1), painting(tmp_path / "b.png", seed=2)
    once, twice = AnyPainting({a: 0.6, b: 0.4}), AnyPainting({a: 3, b: 2})
    assert np.array_equal(np.asarray(once.stylize(photograph)), np.asarray(twice.stylize(photograph)))
    nearly = np.asarray(AnyPainting({a: 1, b: 1e-9}).stylize(photograph), int)
    assert np.abs(nearly - np.asarray(AnyPainting({a: 1}).stylize(photograph), int)).max() <= 1


@pytest.mark.parametrize("mode", ["grey", "one colour", "tiny", "long", "alpha", "one pixel"])
def test_odd_paintings_give_a_picture(tmp_path, photograph, mode):
    rng, file = np.random.default_rng(0), tmp_path / "odd.png"
    made = {
        "grey": Image.fromarray(rng.integers(0, 256, (60, 80), dtype=np.uint8)),
        "one colour": Image.new("RGB", (64, 64), (200, 30, 40)),
        "tiny": Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)),
        "long": Image.fromarray(rng.integers(0, 256, (10, 150, 3), dtype=np.uint8)),
        "alpha": Image.fromarray(rng.integers(0, 256, (40, 40, 4), dtype=np.uint8)),
        "one pixel": Image.new("RGB", (1, 1), (9, 9, 9)),
    }
    made[mode].save(file)
    stylized = np.asarray(AnyPainting({file: 1}).stylize(photograph))
    assert stylized.shape == (75, 101, 3)
    if mode == "one colour":  # its features are the colour's
        assert np.abs(stylized.reshape(-1, 3).mean(0) - (200, 30, 40)).max() < 40


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (9, 300), (8, 8)])
def test_pictures_of_any_size(tmp_path, size):
    picture = painting(tmp_path / "photo.png", size, seed=3)
    stylizer = AnyPainting({painting(tmp_path / "a.png"): 1})
    assert stylizer.stylize(Image.open(picture).convert("RGB")).size == size


def test_a_picture_of_one_colour_stays_calm(tmp_path):
    stylized = AnyPainting({painting(tmp_path / "a.png"): 1}).stylize(Image.new("RGB", (64, 64), "grey"))
    assert np.isfinite(np.asarray(stylized, float)).all()


def test_a_painting_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is 170×10 px; one side may be 16 times the other: crop it"):
        AnyPainting({painting(tmp_path / "long.png", (170, 10)): 1})


def stylize(*arguments: object) -> Result:
    """The command in this process."""
    return run_main(stylize_command.main, "stylize", *arguments, folder=Path.cwd())


def test_command(tmp_path, photograph):
    photograph.save(tmp_path / "photo.png")
    a, b = painting(tmp_path / "a,=1.png", seed=1), painting(tmp_path / "b.png", seed=2)
    given = [sys.executable, "-m", "nst_fast.commands.stylize", "--painting", a, tmp_path / "photo.png"]
    done = subprocess.run(given, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'photo.a,=1.png'}\n"), done.stderr
    expected = np.asarray(AnyPainting({a: 1}).stylize(photograph))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "photo.a,=1.png")), expected)
    c = painting(tmp_path / "c.png", seed=1)
    done = stylize(
        "--painting", f"{c}=0.6,{b}=0.4", "--strength", 0.5, tmp_path / "photo.png", "-o", tmp_path / "o.png"
    )
    assert done.code == 0, done.err
    expected = np.asarray(AnyPainting({c: 0.6, b: 0.4}).stylize(photograph, strength=0.5))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o.png")), expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--painting", "missing.jpg", "photo.png"], "no picture at missing.jpg"),
        (["--painting", "photo.png=0,b=1", "photo.png"], "0 is no weight above 0; FILE=0.6,FILE=0.4 is needed"),
        (
            ["--painting", "photo.png", "--model", "starry_night", "photo.png"],
            "leave --model or --painting out",
        ),
        (["--painting", "photo.png", "--style", "starry_night", "photo.png"], "--painting and --style exclude"),
        (["--method", "wct", "--style", "starry_night", "photo.png"], "--method is of --painting"),
        (["--painting", "photo.png", "--underpainting", "0", "photo.png"], "--painting and --underpainting exclude"),
        (["--painting", "photo.png", "--info"], "--painting and --info exclude each other"),
        (["--painting", "text.png", "photo.png"], "text.png cannot be read as a picture"),
    ],
)
def test_faults_are_one_line(tmp_path, photograph, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    photograph.save("photo.png")
    Path("text.png").write_text("no picture")
    done = stylize(*arguments)
    assert done.code != 0
    assert said in done.err
    assert "Traceback" not in done.err
