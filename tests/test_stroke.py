"""Strokes of the size that is asked for: by hand, strips against the whole, sizes that grow."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst_fast.errors import UserError
from nst_fast.stylizing.looks import Looks
from nst_fast.stylizing.stroke import GRAIN, PERIOD, add_grain, grain, paint, restore_edges, stroke_size
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.photographs import bundled_photographs

PEERS = Path(__file__).resolve().parents[2] / "shared" / "peers"
RNG = np.random.default_rng(7)


def photograph(width: int = 150, height: int = 100) -> Image.Image:
    return Image.fromarray(bundled_photographs(True)[1]).resize((width, height), Image.Resampling.LANCZOS)


def negative(picture: Image.Image) -> Image.Image:
    """A model that turns light into dark."""
    return Image.fromarray(255 - np.asarray(picture))


@pytest.fixture(scope="module")
def stylizer():
    return Stylizer("starry_night", threads=1)


def cubic(distance):
    """Bicubic interpolation's weight (Keys 1981, a = -0.5, which is Pillow's)."""
    x = abs(distance)
    return (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def weights(small, large):
    """By how much each of so many small pixels counts for each of so many large ones."""
    centres = (np.arange(large) + 0.5) * small / large - 0.5
    found = np.array([[cubic(centre - i) for i in range(small)] for centre in centres])
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("share", [1, 0.3, 0])
@pytest.mark.parametrize("size", [(90, 60), (91, 67), (41, 30)])
def test_what_the_model_changed_is_laid_over_the_full_picture(size, share):
    full = photograph(*size)
    small = full.resize((40, 30), Image.Resampling.LANCZOS)
    coarse = Image.fromarray(RNG.integers(0, 256, (30, 40, 3), np.uint8))
    grey, small_grey = (np.asarray(p).astype(float) @ [0.299, 0.587, 0.114] for p in (full, small))
    rows, columns = weights(30, size[1]), weights(40, size[0])
    channels = [rows @ (np.asarray(coarse)[..., c] - small_grey) @ columns.T + grey for c in range(3)]
    expected = share * np.stack(channels, -1).clip(0, 255) + (1 - share) * np.asarray(full)
    np.testing.assert_allclose(np.asarray(restore_edges(full, small, coarse, share)), expected, rtol=0, atol=0.51)


def test_grain_fits_itself_on_all_sides_and_prefers_no_direction():
    tile = grain()[..., 0].astype(float)
    assert tile.shape == (PERIOD, PERIOD)
    assert abs(tile.mean()) < 0.1
    assert tile.std() == pytest.approx(GRAIN, rel=0.1)
    for axis in (0, 1):  # what meets at an edge differs no more than neighbours elsewhere
        steps = (np.diff(tile, axis=axis, append=tile.take([0], axis)) ** 2).mean(1 - axis)
        assert steps[-1] < 2 * np.median(steps)
    power = np.abs(np.fft.fft2(tile)) ** 2
    frequency = np.fft.fftfreq(PERIOD, 1 / PERIOD)
    angle = np.arctan2(frequency[:, None], frequency[None]) % np.pi
    shares = np.histogram(angle, 4, (0, np.pi), weights=power)[0] / power.sum()
    assert shares.min() > 0.15


@pytest.mark.parametrize(("size", "strip"), [((300, 600), 1), ((70, 40), 10**9), ((257, 513), 257 * 300)])
def test_grain_is_added_to_each_place(size, strip):
    picture = Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), np.uint8))
    tiles = np.pad(grain(), ((0, 3 * PERIOD), (0, 3 * PERIOD), (0, 0)), "wrap")[: size[1], : size[0]]
    expected = (np.asarray(picture).astype(int) + tiles).clip(0, 255)
    add_grain(picture, strip)
    np.testing.assert_array_equal(np.asarray(picture), expected)


@pytest.mark.parametrize("strip", [1, 700, 150 * 33])
@pytest.mark.parametrize("stroke", [1.3, 2, 7.7])
def test_strips_are_the_whole_picture(strip, stroke):
    full = photograph()
    small = full.resize((round(150 / stroke), round(100 / stroke)), Image.Resampling.LANCZOS)
    coarse = negative(small)
    whole, strips = (np.asarray(restore_edges(full, small, coarse, strip=s)).astype(int) for s in (10**9, strip))
    assert np.abs(whole - strips).max() <= 1  # where rounding takes another turn
    assert (whole != strips).mean() < 0.01


@pytest.mark.parametrize("stroke", [1.5, 2, 4])
def test_a_model_that_leaves_the_picture_as_it_is_gives_it_back(stroke):
    full = photograph(240, 160)
    got = np.asarray(paint(lambda small: small, full, stroke)).astype(float)
    enlarged = full.resize((round(240 / stroke), round(160 / stroke)), Image.Resampling.LANCZOS)
    enlarged = np.asarray(enlarged.resize(full.size, Image.Resampling.BICUBIC)).astype(float)
    error, without = (np.square(p @ [0.299, 0.587, 0.114] - np.asarray(full.convert("L"))) for p in (got, enlarged))
    assert error.mean() < 0.25 * without.mean()


def test_a_flat_picture_takes_no_edge():
    grey = Image.new("RGB", (60, 40), (90, 120, 30))
    assert np.asarray(paint(negative, grey, 2)).tolist() == np.asarray(negative(grey)).tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (5, 3)])
@pytest.mark.parametrize("stroke", [0.5, 2, 64])
def test_pictures_of_any_size_keep_it(size, stroke, stylizer):
    assert stylizer(photograph(*size), stroke=stroke).size == size


@pytest.mark.parametrize("name", ["starry_night", "starry_night.int8"])
def test_a_stroke_of_1_is_the_model_to_the_bit(name):
    model, picture = Stylizer(name, threads=1), photograph()
    expected = model.stylize_array(np.asarray(picture)[None])[0]
    for stroke in (1, 1.0, "auto"):  # the picture is smaller than what auto enlarges strokes for
        np.testing.assert_array_equal(np.asarray(model(picture, stroke=stroke)), expected)
        np.testing.assert_array_equal(np.asarray(Looks(stroke=stroke).apply(model, picture)), expected)
        np.testing.assert_array_equal(model(np.asarray(picture), stroke=stroke), expected)


def test_auto_is_the_short_side_over_512_and_never_below_1():
    assert [stroke_size("auto", size) for size in [(200, 100), (512, 900), (1920, 1080), (2160, 3840)]] == [
        *(1, 1, 1080 / 512, 2160 / 512)
    ]
    assert stroke_size("auto", (1440, 1440), 720) == 2
    assert (stroke_size(0.5, (9, 9)), stroke_size(3, (9, 9))) == (0.5, 3)


def test_the_model_sees_as_many_pixels_as_the_stroke_leaves():
    seen = []

    def run(picture):
        seen.append(picture.size)
        return picture

    for stroke in (0.5, 1, 2, 4):
        assert paint(run, photograph(160, 100), stroke).size == (160, 100)
    assert seen == [(320, 200), (160, 100), (80, 50), (40, 25)]
    assert Looks(stroke=2).pixels(1600, 1000) == 400_000
    assert Looks(stroke=0.5).pixels(1600, 1000) == 6_400_000
    assert Looks(stroke=50).pixels(1600, 1000) == 1600 * 1000 / 8


# starry_night and composition_vii lay patches over noise that are larger than their strokes.
@pytest.mark.parametrize("name", ["the_scream", "movement"])
def test_strokes_grow_with_what_is_asked_for(name):
    """The distance over which what the model adds is alike: where its autocorrelation falls to a half."""
    flat = Image.new("RGB", (400, 400), (110, 130, 150))
    noise = np.asarray(flat) + np.random.default_rng(0).normal(0, 12, (400, 400, 1))
    picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((400, 400), Image.Resampling.BOX)
    once, widths = Stylizer(name, threads=1, underpainting=0), []
    for stroke in (0.5, 1, 1.5, 2, 3, 4):
        painted = np.asarray(paint(once.stylize, picture, stroke)).astype(float) @ [0.299, 0.587, 0.114]
        painted -= painted.mean()
        spectrum = np.abs(np.fft.fft2(painted)) ** 2
        alike = np.fft.ifft2(spectrum).real
        ring = np.hypot(*np.meshgrid(*[np.minimum(np.arange(400), 400 - np.arange(400))] * 2)).round().astype(int)
        mean = np.bincount(ring.ravel(), alike.ravel()) / np.bincount(ring.ravel()) / alike[0, 0]
        below = int(np.argmax(mean < 0.5))
        widths.append(below - (0.5 - mean[below]) / (mean[below - 1] - mean[below]))
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[1]


def test_a_peer_of_one_size_takes_auto_and_refuses_a_number():
    model = PEERS / "gnsmrky_candy_nc16_256.onnx"
    if not model.exists():
        pytest.skip("no peer's model at hand")
    peer, picture = Stylizer(model, threads=1, pixel_range=255), photograph(600, 512)
    with pytest.raises(UserError, match="strokes are of one size"):
        peer(picture, stroke=2)
    plain, auto = (np.asarray(peer(picture, stroke=stroke).convert("L")).astype(float) for stroke in (1, "auto"))
    sharpness = [np.abs(np.diff(values, axis=1)).mean() for values in (plain, auto)]
    assert sharpness[1] > sharpness[0]


def test_memory_for_strips_does_not_grow_with_the_picture():
    peaks = []
    for height in (1000, 4000):
        full = photograph(1500, height)
        small = full.resize((150, height // 10))
        tracemalloc.start()
        restore_edges(full, small, small)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
