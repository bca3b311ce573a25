"""Content images: what item i is, which files a folder gives, where a loader starts."""

import os
import pickle
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import skimage.data
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nst_fast.assets import cache_folder
from nst_fast.errors import UserError
from nst_fast.stylizing.folders import find_pictures
from nst_fast.training import content_images as data
from nst_fast.training import photographs
from nst_fast.training.content_images import BundledImages, ContentImages, FolderImages, Forever
from nst_fast.training.photographs import bundled_photographs, centre_crop, dead_leaves, random_window

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
]

SIZE = 32
GREY_16_BIT = 30_000
# One colour a picture, so that a window tells which picture it is from.
COLOURS = {
    "red.jpg": (200, 30, 40),
    "deep/er/grey.png": (77, 77, 77),
    "cmyk.jpg": (0, 102, 204),
    "sixteen.png": (round(GREY_16_BIT / 65535 * 255),) * 3,
    "point.png": (10, 200, 90),
    "thin.png": (250, 240, 20),
}
BROKEN = ("truncated.jpg", "deep/empty.jpg", "text.png")


def make_folder(root: Path) -> Path:
    (root / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (60, 45), COLOURS["red.jpg"]).save(root / "red.jpg", quality=95)
    Image.new("L", (50, 70), COLOURS["deep/er/grey.png"][0]).save(root / "deep/er/grey.png")
    Image.new("CMYK", (64, 64), (255, 153, 51, 0)).save(root / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((40, 41), GREY_16_BIT, np.uint16)).save(root / "sixteen.png")
    Image.new("RGB", (1, 1), COLOURS["point.png"]).save(root / "point.png")
    Image.new("RGB", (2, 3000), COLOURS["thin.png"]).save(root / "thin.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    noise.save(root / "truncated.jpg")
    whole = (root / "truncated.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "deep" / "empty.jpg").touch()
    (root / "text.png").write_text("no picture\n")
    (root / "notes.txt").write_text("not even called a picture\n")
    return root


def items(images: BundledImages | FolderImages, count: int) -> torch.Tensor:
    return torch.stack([images[i] for i in range(count)])


def seen_colours(images: FolderImages, count: int = 80) -> set[str]:
    """Return the names of the pictures that windows come from, each window being of one known colour throughout."""
    names = set()
    for item in items(images, count).int():
        distances = {n: (item - torch.tensor(c)[:, None, None]).abs().max() for n, c in COLOURS.items()}
        names.add(min(distances, key=distances.__getitem__))
        assert min(distances.values()) <= 3, "no window of any of the pictures"
    return names


def test_an_item_is_a_function_of_seed_and_index_alone():
    forwards = items(BundledImages(SIZE, 1, 0.5), 12)
    other = BundledImages(SIZE, 1, 0.5)
    backwards = torch.stack([other[i] for i in reversed(range(12))]).flip(0)
    assert torch.equal(forwards, backwards)


def test_items_of_different_indices_or_seeds_differ():
    both = torch.cat([items(BundledImages(SIZE, seed, 0.5), 12) for seed in (1, 2)])
    assert len({item.numpy().tobytes() for item in both}) == 24


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_bundled_items_are_uint8_of_the_size_asked_for(share):
    for size in (33, 64):
        item = BundledImages(size, 0, share)[5]
        assert item.shape == (3, size, size)
        assert item.dtype == torch.uint8


def test_a_loader_gives_the_same_batches_with_and_without_workers():
    images = BundledImages(SIZE, 3, 0.5)
    expected = items(images, 8).reshape(4, 2, 3, SIZE, SIZE)
    for workers in (0, 2):
        batches = list(islice(DataLoader(images, 2, sampler=Forever(0), num_workers=workers), 4))
        assert torch.equal(torch.stack(batches), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_content_images_give_the_items_in_order_for_any_number_of_workers(workers, tmp_path):
    for images in (BundledImages(SIZE, 3, 0.5), FolderImages(make_folder(tmp_path / "tree"), SIZE, 3)):
        loader = ContentImages(images, 2, workers, SIZE).train_dataloader()
        assert torch.equal(torch.cat(list(islice(loader, 4))), items(images, 8))


def test_held_out_photographs_are_the_cat_and_the_coffee_and_never_trained_on():
    held_out = bundled_photographs(held_out=True)
    for photograph, original in zip(held_out, (skimage.data.chelsea(), skimage.data.coffee()), strict=True):
        assert np.array_equal(photograph, original)
    rows = [{row.tobytes() for p in group for row in p} for group in (held_out, bundled_photographs())]
    assert not rows[0] & rows[1]


def test_training_photographs_are_colour_pictures():
    for photograph in bundled_photographs():
        assert photograph.dtype == np.uint8
        assert photograph.ndim == 3
        assert photograph.shape[2] == 3
        assert np.ptp(photograph.astype(int), axis=2).max() > 30


def test_dead_leaves_have_the_shape_asked_for_and_vary():
    photographs = bundled_photographs()
    pictures = [dead_leaves(48, photographs, np.random.default_rng(i)) for i in range(6)]
    assert {p.shape for p in pictures} == {(48, 48, 3)}
    assert {p.dtype for p in pictures} == {np.dtype(np.uint8)}
    assert all(p.std() > 5 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 6
    assert np.array_equal(pictures[3], dead_leaves(48, photographs, np.random.default_rng(3)))


def test_a_window_as_large_as_the_short_side_is_a_piece_of_the_photograph_mirrored_or_not():
    photograph = np.zeros((40, 90, 3), np.uint8)
    photograph[..., 0], photograph[..., 1] = np.arange(40)[:, None], np.arange(90)
    mirrored, lefts = set(), set()
    for i in range(60):
        window = random_window(photograph, 40, 40, np.random.default_rng(i))
        left = int(window[..., 1].min())
        piece = photograph[:, left : left + 40]
        flipped = window[0, 0, 1] != left
        assert np.array_equal(window[:, ::-1] if flipped else window, piece)
        mirrored.add(bool(flipped))
        lefts.add(left)
    assert mirrored == {True, False}
    assert len(lefts) > 20


def test_windows_are_from_all_over_a_portrait():
    photograph = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 40, 3)).copy()
    tops = [int(random_window(photograph, 40, 40, np.random.default_rng(seed))[0, 0, 0]) for seed in range(300)]
    assert min(tops) < 10
    assert max(tops) > 150


def test_leaves_fall_from_the_largest_to_the_smallest_and_most_are_small(monkeypatch):
    """Lee, Mumford & Huang 2001: radii of density r⁻³, whose median is √2 times the smallest."""
    radii: list[float] = []
    leaf = photographs.leaf
    monkeypatch.setattr(
        photographs, "leaf", lambda count, radius, rng: radii.append(radius) or leaf(count, radius, rng)
    )
    medians = []
    for seed in range(40):
        radii.clear()
        dead_leaves(64, bundled_photographs()[:1], np.random.default_rng(seed))
        assert radii == sorted(radii, reverse=True)
        if len(radii) > 150:
            medians.append(np.median(radii) / min(radii))
    assert np.median(medians) == pytest.approx(2**0.5, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_dead_leaves_is_that_asked_for(share, monkeypatch):
    drawn = []
    monkeypatch.setattr(data, "dead_leaves", lambda *given: drawn.append(1) or dead_leaves(*given))
    images = BundledImages(SIZE, 0, share)
    for index in range(12):
        images[index]
    assert len(drawn) == 12 * share


def test_bundled_photographs_come_in_many_colours():
    images = BundledImages(SIZE, 0, 0.0)
    images.photographs = [np.broadcast_to(np.array([200, 60, 20], np.uint8), (90, 90, 3)).copy()]
    means = torch.stack([images[index].float().mean((1, 2)) for index in range(60)])
    assert means.std(0).min() > 20


def test_a_window_never_shows_less_than_the_smallest_side():
    photograph = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 220, 3))
    spans = []
    for i in range(100):
        window = random_window(photograph, 100, 50, np.random.default_rng(i))
        spans.append(int(window.max()) - int(window.min()) + 1)
    assert 48 <= min(spans) < 60
    assert 180 < max(spans) <= 200


def test_a_folder_gives_windows_of_every_readable_picture_at_any_depth(tmp_path):
    images = FolderImages(make_folder(tmp_path / "my pictures"), SIZE, 0)
    assert images[0].shape == (3, SIZE, SIZE)
    assert images[0].dtype == torch.uint8
    assert seen_colours(images) == set(COLOURS)


@pytest.mark.parametrize("window", [0.8, 0.3])
def test_windows_of_a_folder_are_as_small_as_was_asked_for(window, tmp_path):
    ramp = np.broadcast_to(np.arange(250, dtype=np.uint8)[:, None], (250, 250))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    images = FolderImages(tmp_path, 200, 0, window=window)  # kept at 1.25 times the size: 250 px, as it is
    spans = [int(item.max()) - int(item.min()) + 1 for item in (images[i] for i in range(60))]
    assert 200 * window - 3 <= min(spans) < 200 * window + 12
    assert max(spans) > 235


def test_a_folder_names_the_pictures_that_it_cannot_read_and_why(tmp_path):
    root = make_folder(tmp_path / "tree")
    skipped = FolderImages(root, SIZE, 0).skipped
    assert sorted(path for path, _ in skipped) == sorted(root / name for name in BROKEN)
    reasons = {path.name: reason for path, reason in skipped}
    assert "truncated" in reasons["truncated.jpg"]
    assert "it is empty" in reasons["empty.jpg"]
    assert "it is text" in reasons["text.png"]


def test_heic_is_named_until_its_library_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    flat = Image.new("RGB", (96, 64), (200, 60, 20))
    flat.save(tmp_path / "pictures" / "b.png")
    pytest.importorskip("pillow_heif").from_pillow(flat).save(tmp_path / "pictures" / "a.heic")
    with monkeypatch.context() as without:
        without.delitem(Image.OPEN, "HEIF")
        without.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
        ((path, reason),) = FolderImages(tmp_path / "pictures", 32, 0).skipped
    assert path.name == "a.heic"
    assert "pip install pillow-heif" in reason
    images = FolderImages(tmp_path / "pictures", 32, 0)
    assert (images.skipped, len(images.shapes)) == ([], 2)


@pytest.mark.parametrize("wide", [True, False])
def test_of_a_long_picture_the_middle_is_kept(tmp_path, monkeypatch, wide):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    ramp = np.broadcast_to(np.linspace(0, 255, 900)[None, :, None], (100, 900, 3)).round().astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(ramp if wide else ramp.transpose(1, 0, 2)).save(tmp_path / "pictures" / "long.png")
    images = FolderImages(tmp_path / "pictures", 80, 0)
    assert images.shapes == [(100, 300, 3) if wide else (300, 100, 3)]
    assert float(np.asarray(images.pixels).mean()) == pytest.approx(127.5, abs=2)


def test_a_jpeg_is_not_decoded_smaller_than_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((400, 400), Image.Resampling.NEAREST)
    large.save(tmp_path / "pictures" / "noise.jpg", quality=98)
    images = FolderImages(tmp_path / "pictures", 80, 0)
    kept = np.asarray(images.pixels).reshape(images.shapes[0]).astype(float)
    assert np.abs(kept - pixels).mean() < 25  # a quarter of what an average of neighbours would be off by, and more


def test_folder_items_are_a_function_of_seed_and_index_alone(tmp_path):
    root = make_folder(tmp_path / "tree")
    first, again, other = (items(FolderImages(root, SIZE, seed), 20) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_folder_is_decoded_only_once(tmp_path):
    root = make_folder(tmp_path / "tree")
    shown: list[tuple[int, int]] = []
    first = FolderImages(root, SIZE, 0, lambda done, total: shown.append((done, total)))
    count = len(COLOURS) + len(BROKEN)
    assert shown == [(i, count) for i in range(1, count + 1)]
    for name in COLOURS:
        status = (root / name).stat()
        (root / name).write_bytes(b"\xff" * status.st_size)
        os.utime(root / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = FolderImages(root, SIZE, 0, lambda done, total: shown.append((done, total)))
    assert len(shown) == count
    assert second.skipped == first.skipped
    assert torch.equal(items(first, 20), items(second, 20))


def test_a_changed_folder_is_read_again(tmp_path):
    root = make_folder(tmp_path / "tree")
    before = FolderImages(root, SIZE, 0)
    for name in set(COLOURS) - {"red.jpg"}:
        (root / name).unlink()
    after = FolderImages(root, SIZE, 0)
    assert after.cache != before.cache
    assert seen_colours(after) == {"red.jpg"}


def test_a_picture_replaced_by_one_of_equal_size_is_read_again(tmp_path):
    for i, name in enumerate(("red.jpg", "thin.png")):
        Image.new("RGB", (40, 40), COLOURS[name]).save(tmp_path / "a.bmp")
        os.utime(tmp_path / "a.bmp", ns=(i, i))
        assert seen_colours(FolderImages(tmp_path, SIZE, 0)) == {name}


def test_two_sizes_of_one_folder_do_not_share_a_cache(tmp_path):
    root = make_folder(tmp_path / "tree")
    small, large = FolderImages(root, SIZE, 0), FolderImages(root, 2 * SIZE, 0)
    assert small[0].shape == (3, SIZE, SIZE)
    assert large[0].shape == (3, 2 * SIZE, 2 * SIZE)
    assert seen_colours(small) == seen_colours(large) == set(COLOURS)


def test_a_folder_lies_in_the_cache_folder_and_not_among_the_pictures(tmp_path):
    root = make_folder(tmp_path / "tree")
    before = sorted(root.rglob("*"))
    images = FolderImages(root, SIZE, 0)
    assert images.cache.is_relative_to(os.environ["NST_FAST_CACHE"])
    assert sorted(root.rglob("*")) == before


def test_another_way_to_read_pictures_takes_no_old_pixels(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), COLOURS["red.jpg"]).save(tmp_path / "a.png")
    assert seen_colours(FolderImages(tmp_path, SIZE, 0)) == {"red.jpg"}
    blue = Image.new("RGB", (40, 40), COLOURS["cmyk.jpg"])
    monkeypatch.setattr(data, "to_rgb", lambda image: blue)
    assert seen_colours(FolderImages(tmp_path, SIZE, 0)) == {"red.jpg"}
    monkeypatch.setattr(data, "CACHE_VERSION", data.CACHE_VERSION + 1)
    assert seen_colours(FolderImages(tmp_path, SIZE, 0)) == {"cmyk.jpg"}


def test_of_a_large_folder_jpegs_are_kept_which_look_alike(tmp_path, monkeypatch):
    for name, pixels in (("a", skimage.data.chelsea()), ("b", skimage.data.coffee())):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    raw = FolderImages(tmp_path, 128, 0)
    monkeypatch.setattr(data, "LARGEST_RAW", 1000)
    jpeg = FolderImages(tmp_path, 128, 0)
    assert raw.cache != jpeg.cache
    assert raw.identity == jpeg.identity
    assert len(jpeg.pixels) < data.JPEG_SHARE * len(raw.pixels)
    difference = (items(raw, 10).int() - items(jpeg, 10).int()).abs().float()
    assert difference.mean() < 2
    received = pickle.loads(pickle.dumps(jpeg))
    assert all(torch.equal(received[i], jpeg[i]) for i in range(4))


def test_the_caches_not_used_for_longest_go_and_never_the_one_in_use(tmp_path, monkeypatch):
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    roots = [tmp_path / name for name in "abcd"]
    for number, root in enumerate(roots):
        root.mkdir()
        Image.new("RGB", (40, 40), (number, 0, 0)).save(root / "picture.png")
    first, second = (FolderImages(root, SIZE, 0) for root in roots[:2])
    kept = sum(file.stat().st_size for file in first.cache.iterdir())
    for age, images in ((3, first), (2, second)):
        os.utime(images.cache / "index.json", (1e9 - age, 1e9 - age))
    assert FolderImages(roots[0], SIZE, 0).cache == first.cache  # and so the second is the older one
    left, running = first.cache.parent / "tmpkilled", first.cache.parent / "tmprunning"
    left.mkdir()
    running.mkdir()
    os.utime(left, (1e9, 1e9))
    expected = data.BYTES_PER_PICTURE * 40**2
    monkeypatch.setattr(data, "MOST_CACHED", kept + expected)
    third = FolderImages(roots[2], SIZE, 0)
    assert set(first.cache.parent.iterdir()) == {first.cache, third.cache, running}
    monkeypatch.setattr(data, "MOST_CACHED", 10)
    fourth = FolderImages(roots[3], SIZE, 0)
    assert set(first.cache.parent.iterdir()) == {fourth.cache, running}
    assert fourth[0][0].unique().tolist() == [3]


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "tree")
    monkeypatch.setenv("NST_FAST_CACHE", str(tmp_path / "cache"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 50_000))
    message = one_line_refusal(root)
    assert "0.0 GB free; NST_FAST_CACHE=FOLDER" in message
    assert list((tmp_path / "cache" / "content").iterdir()) == []


def test_without_a_home_the_cache_is_a_temporary_folder(tmp_path, monkeypatch):
    for name in ("NST_FAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().parent == tmp_path
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/nst_fast"))
    assert cache_folder().parent == tmp_path


def test_a_folder_goes_to_another_process_without_its_pixels(tmp_path):
    images = FolderImages(make_folder(tmp_path / "tree"), SIZE, 0)
    sent = pickle.dumps(images)
    assert len(sent) < images.pixels.nbytes / 2
    received = pickle.loads(sent)
    assert all(torch.equal(received[i], images[i]) for i in range(8))


def test_a_folder_may_be_decoded_by_several_at_once(tmp_path):
    root = make_folder(tmp_path / "tree")
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: FolderImages(root, SIZE, 0), range(4)))
    assert len({images.cache for images in several}) == 1
    for images in several:
        assert torch.equal(items(images, 20), items(several[0], 20))
    assert [p.name for p in several[0].cache.parent.iterdir() if not (p / "index.json").exists()] == []


def test_a_picture_that_vanishes_while_the_folder_is_listed_is_skipped(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "tree")
    listed = find_pictures(root)
    (root / "red.jpg").unlink()
    monkeypatch.setattr(data, "find_pictures", lambda _: listed)
    images = FolderImages(root, SIZE, 0)
    assert root / "red.jpg" in {path for path, _ in images.skipped}
    assert seen_colours(images) == set(COLOURS) - {"red.jpg"}


def one_line_refusal(root: Path) -> str:
    with pytest.raises(UserError) as refusal:
        FolderImages(root, SIZE, 0)
    message = str(refusal.value)
    assert "\n" not in message
    assert str(root) in message
    return message


def test_a_missing_folder_is_refused_in_one_line(tmp_path):
    assert "no folder" in one_line_refusal(tmp_path / "nowhere")


def test_an_empty_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    assert "no pictures" in one_line_refusal(tmp_path)


def test_a_folder_of_broken_pictures_is_refused_in_one_line_also_from_the_cache(tmp_path):
    (tmp_path / "a.png").write_text("text")
    (tmp_path / "b.jpg").touch()
    for _ in range(2):
        assert "none of the 2" in one_line_refusal(tmp_path)


def test_the_centre_crop_of_a_wide_picture_is_its_middle():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    crop = centre_crop(Image.fromarray(pixels), 40)
    assert torch.equal(crop, torch.from_numpy(pixels[:, 25:65].copy()).permute(2, 0, 1))


def test_validation_shows_the_held_out_photographs_or_those_of_a_folder(tmp_path):
    images = BundledImages(SIZE, 0, 0.5)
    bundled = next(iter(ContentImages(images, 2, 0, SIZE).val_dataloader()))
    assert bundled.shape == (2, 3, SIZE, SIZE)
    colours = [(20, 40, 60), (200, 100, 50)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (50, 80), colour).save(tmp_path / f"{i}.png")
    own = next(iter(ContentImages(images, 2, 0, SIZE, str(tmp_path)).val_dataloader()))
    assert torch.equal(own, torch.tensor(colours, dtype=torch.uint8)[..., None, None].expand(-1, -1, SIZE, SIZE))


def test_of_a_folder_sixteen_photographs_in_order_are_for_validation(tmp_path):
    for i in range(20):
        Image.new("RGB", (SIZE, SIZE), (10 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    data = ContentImages(BundledImages(SIZE, 0, 0.5), 2, 0, SIZE, str(tmp_path))
    shown = torch.cat(list(data.val_dataloader()))
    assert shown[:, 0, 0, 0].tolist() == [10 * i for i in range(16)]


class Recorder(pl.LightningModule):
    """Keep the batches that Lightning hands over."""

    def __init__(self, batches_seen: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.batches_seen = batches_seen
        self.batches: list[torch.Tensor] = []

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.batches.append(batch)


@pytest.mark.parametrize("seen", [0, 5])
def test_training_data_start_after_the_batches_that_the_run_has_seen(seen, tmp_path):
    images, recorder = BundledImages(SIZE, 0, 0.5), Recorder(seen)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, ContentImages(images, 2, 0, SIZE))
    expected = torch.stack([images[i] for i in range(2 * seen, 2 * seen + 6)])
    assert torch.equal(torch.cat(recorder.batches), expected)


@pytest.mark.parametrize(("length", "workers"), [(60, 2), (75, 0), (120, 0)])
def test_a_temporary_folder_too_long_for_sockets_leaves_out_workers_and_stops_nothing(
    monkeypatch, caplog, length, workers
):
    monkeypatch.setattr(tempfile, "tempdir", f"/{'t' * (length - 1)}")
    images = ContentImages(BundledImages(32, 0, 0.5), 2, 2, 32)
    loader = images.train_dataloader()
    assert (loader.num_workers, bool(caplog.messages)) == (workers, workers == 0)
    if not workers:
        assert next(iter(loader)).shape == (2, 3, 32, 32)
