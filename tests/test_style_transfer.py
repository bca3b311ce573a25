"""Training itself: what a step changes, what a checkpoint holds, how a run goes on."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from nst_fast.commands.configuration import load_config
from nst_fast.errors import UserError
from nst_fast.loss.loss_networks import VGG, freeze
from nst_fast.loss.perceptual_loss import BalancedLoss, split_name, style_target
from nst_fast.loss.style_targets import COLOURS
from nst_fast.loss.style_weight import StyleWeightControl
from nst_fast.loss.terms import gram_matrix, pixel_grid, pixel_weave
from nst_fast.training import run
from nst_fast.training.checkpoints import CHECKPOINT_KEY, STYLE_MEAN, read_checkpoint
from nst_fast.training.content_images import BundledImages, ContentImages
from nst_fast.training.interruption import Interruption
from nst_fast.training.motion import motion_difference
from nst_fast.training.networks import create_network
from nst_fast.training.style_transfer import (
    LOG_EVERY,
    MOST_SKIPPED_IN_A_ROW,
    NEWEST,
    STYLE_TARGET,
    Recipe,
    StyleTransfer,
)

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")

SIZE = 32
LAYERS = {"relu1_1": 0.5, "relu2_1": 0.5}


def make_module(
    max_steps: int, seed: int = 0, network: str = "fast", recolours: bool = False, own_style: float = 1.0
) -> StyleTransfer:
    """Return a tiny network on a tiny loss network; the seed is the network's alone."""
    torch.manual_seed(7)
    loss_network = freeze(VGG([[8], [12]]))
    sliced = {"rgb": 0.1} if recolours else {}
    loss = BalancedLoss(loss_network, {"relu2_1": 1.0}, LAYERS, 1.0, 10.0, 1.0, sliced)
    painting = torch.rand(1, 3, 48, 40)
    features = loss_network(painting, loss.layers)
    targets = {n: style_target(loss_network, n, features[split_name(n)[1]]) for n in loss.style_target_names}
    targets |= {COLOURS: torch.rand(1, 4, 3)} if recolours else {}
    torch.manual_seed(seed)
    config = {"network": {"name": network, "width": 8, "blocks": 1}, "note": None}
    description = {"config": config, "image_sha256": "0" * 64, "loss_network": loss_network.identity}
    recipe = Recipe(max_steps, 1e-2, 1.0, 0.0, 0.0, own_style)
    return StyleTransfer(create_network(network, 8, 1), loss, [targets], recipe, description)


def make_trainer(folder: Path, max_steps: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **{"limit_val_batches": 0, **options},
    )


def make_data(moving: bool = False) -> ContentImages:
    return ContentImages(BundledImages(SIZE, 0, 0.5), 2, 0, SIZE, moving=moving)


class AlwaysTheSame(Dataset[Tensor]):
    """Two pictures, whatever the index."""

    def __init__(self) -> None:
        source = BundledImages(SIZE, 0, 0.5)
        self.pictures = [source[0], source[1]]

    def __getitem__(self, index: int) -> Tensor:
        return self.pictures[index % 2]


class NotFinite(pl.Callback):
    """Make the loss of chosen batches NaN or infinite, and keep what training had before and after each batch."""

    def __init__(self, batches: range | list[int], value: float = float("nan")) -> None:
        self.batches, self.value = batches, value
        self.before: dict[int, list[Tensor]] = {}
        self.after: dict[int, list[Tensor]] = {}
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Tensor, batch_idx: int) -> None:
        self.number = module.batches_seen
        module.perceptual_loss.content_weight = self.value if self.number in self.batches else 1.0
        self.before[self.number] = state(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.after[self.number] = state(trainer, module)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class PaintedColours(pl.Callback):
    """Keep the mean and second moments of the colours that each batch is painted in, before its step."""

    def __init__(self) -> None:
        self.moments: list[np.ndarray] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Tensor, batch_idx: int) -> None:
        with torch.no_grad():
            painted = module.stylize(batch.float() / 255, torch.zeros(len(batch), dtype=torch.long)).clamp(0, 1)
        colours = [picture.reshape(3, -1) for picture in painted.numpy().astype(float)]
        of_each = [np.vstack([c.mean(1), c @ c.T / c.shape[1]]) for c in colours]
        self.moments.append(np.mean(of_each, 0))


@pytest.mark.parametrize("own_style", [1.0, 0.25])
def test_the_colours_of_the_newest_pictures_are_followed(own_style, tmp_path):
    """From the painting's own, but for a step without effect."""
    module, painted = make_module(6, recolours=True, own_style=own_style), PaintedColours()
    (painting,) = module.get_buffer(f"{STYLE_TARGET}{COLOURS}")
    expected = painting.numpy()
    make_trainer(tmp_path, 6, NotFinite([3]), painted).fit(module, make_data())
    for number, moments in enumerate(painted.moments):
        kept = 1 if number == 3 else (1 - NEWEST) ** 2  # two pictures a step
        expected = kept * expected + (1 - kept) * moments
    np.testing.assert_allclose(module.get_buffer(f"{STYLE_MEAN}{COLOURS}")[0], expected, rtol=1e-4)
    assert torch.equal(module.get_buffer(f"{STYLE_TARGET}{COLOURS}")[0], painting)


def test_a_loss_that_compares_no_colours_follows_none():
    kept = make_module(2, recolours=True).state_dict()
    assert {name for name in kept if COLOURS in name} == {f"{STYLE_TARGET}{COLOURS}", f"{STYLE_MEAN}{COLOURS}"}
    assert not any(COLOURS in name for name in make_module(2).state_dict())


class StopAt(pl.Callback):
    """Ask Lightning to stop at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def state(trainer: pl.Trainer, module: StyleTransfer) -> list[Tensor]:
    """Return copies of the network's weights and of Adam's memory."""
    memory = [t for entry in trainer.optimizers[0].state.values() for t in entry.values()]
    return [t.detach().clone() for t in (*module.network.parameters(), *memory)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def perceptual_terms(module: StyleTransfer, stylized: Tensor, content: Tensor) -> dict[str, Tensor]:
    loss = module.perceptual_loss
    return loss(stylized, loss.content_targets(content), module.style_targets(torch.zeros(1, dtype=torch.long)))


def total_loss(module: StyleTransfer, batch: Tensor) -> float:
    content = batch.float() / 255
    with torch.no_grad():
        stylized = module.network(content)
        return float(perceptual_terms(module, stylized, content)["total"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Thirty steps on one batch, and what was before."""
    folder = tmp_path_factory.mktemp("trained")
    module, images = make_module(30), AlwaysTheSame()
    batch = torch.stack(images.pictures)
    before = total_loss(module, batch)
    frozen = {k: v.clone() for k, v in module.perceptual_loss.named_parameters()}
    frozen |= {k: v.clone() for k, v in module.perceptual_loss.named_buffers()}
    trainer = make_trainer(folder, 30, val_check_interval=30, check_val_every_n_epoch=None, limit_val_batches=1.0)
    trainer.fit(module, ContentImages(images, 2, 0, SIZE))
    trainer.save_checkpoint(folder / "last.ckpt")
    return {"module": module, "batch": batch, "before": before, "frozen": frozen, "checkpoint": folder / "last.ckpt"}


def test_training_lowers_the_loss_on_a_fixed_batch(trained):
    assert total_loss(trained["module"], trained["batch"]) < 0.5 * trained["before"]


def test_means_of_the_newest_pictures_follow_them_and_one_without_effect_leaves_them(tmp_path):
    """From the painting's own, as if earlier pictures had been perfect."""
    module = make_module(3, own_style=0.25)
    expected = {layer: module.get_buffer(STYLE_MEAN + layer).clone() for layer in LAYERS}
    for layer in LAYERS:
        torch.testing.assert_close(expected[layer], module.get_buffer(STYLE_TARGET + layer))

    class Follow(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Tensor, batch_idx: int) -> None:
            painted = module.network(batch.float() / 255)
            if batch_idx == 1:
                module.network.vectors.data[0, 0] = torch.nan
                return
            for layer, features in module.perceptual_loss.loss_network(painted, list(LAYERS)).items():
                together = gram_matrix(features.detach()).mean(0, keepdim=True)
                kept = (1 - NEWEST) ** len(batch)  # as if they had come one after the other
                expected[layer] = kept * expected[layer] + (1 - kept) * together

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Tensor, batch_idx: int) -> None:
            if batch_idx == 1:
                module.network.vectors.data[0, 0] = 1.0
            for layer in LAYERS:
                torch.testing.assert_close(module.get_buffer(STYLE_MEAN + layer), expected[layer])

    batches = torch.randint(0, 256, (9, 3, SIZE, SIZE), dtype=torch.uint8)
    trainer = make_trainer(tmp_path, 3, Follow())
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=3))
    assert module.skipped_steps == 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert all(torch.equal(kept[STYLE_MEAN + layer], module.get_buffer(STYLE_MEAN + layer)) for layer in LAYERS)
    assert not any(STYLE_MEAN in name for name in make_module(1).state_dict())


@pytest.mark.parametrize(("pictures", "threads"), [(1, 4), (2, 4), (3, 2), (5, 1)])
def test_pictures_shared_among_threads_have_the_gradient_and_the_losses_of_the_whole_batch(pictures, threads, tmp_path):
    module = make_module(1)
    module.recipe = replace(module.recipe, gradient_clip=1e9, grid_weight=10.0, weave_weight=5.0)
    network = copy.deepcopy(module.network)
    batch = torch.randint(0, 256, (pictures, 3, SIZE, SIZE), dtype=torch.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer = make_trainer(tmp_path, 1)
        trainer.fit(module, torch.utils.data.DataLoader(batch, batch_size=pictures))
    finally:
        torch.set_num_threads(before)
    content = batch.float() / 255
    stylized = network(content)
    terms = perceptual_terms(module, stylized, content)
    total = terms["total"] + 10.0 * pixel_grid(stylized, network.stride).mean() + 5.0 * pixel_weave(stylized).mean()
    whole = torch.autograd.grad(total, list(network.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in whole)
    for parameter, expected in zip(module.network.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5 * largest)
    for name in ("content", "style", "tv"):
        logged = trainer.callback_metrics[f"train/{name}_loss"]
        torch.testing.assert_close(logged, terms[name].detach(), rtol=1e-4, atol=0)


def test_pictures_together_shared_among_threads_have_the_gradient_of_the_whole_batch(tmp_path):
    module = make_module(1, own_style=0.25)
    module.recipe = replace(module.recipe, gradient_clip=1e9)
    for layer in LAYERS:
        module.get_buffer(STYLE_MEAN + layer).mul_(0.7)
    network, chosen = copy.deepcopy(module.network), torch.zeros(3, dtype=torch.long)
    batch = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    means = {name: mean.clone() for name, mean in module.style_means(chosen).items()}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_trainer(tmp_path, 1).fit(module, torch.utils.data.DataLoader(batch, batch_size=3))
    finally:
        torch.set_num_threads(before)
    total = module.losses(batch.float() / 255, network(batch.float() / 255), chosen, means)["total"].mean()
    whole = torch.autograd.grad(total, list(network.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in whole)
    for parameter, expected in zip(module.network.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize(("pictures", "threads"), [(3, 2), (2, 1)])
def test_second_views_add_their_difference_to_the_loss_and_the_gradient(pictures, threads, tmp_path):
    module = make_module(1)
    module.recipe = replace(module.recipe, gradient_clip=1e9, motion_weight=20.0)
    network = copy.deepcopy(module.network)
    first, second = torch.randint(0, 256, (2, pictures, 3, SIZE, SIZE), dtype=torch.uint8)
    flow = torch.tensor([3.0, -2.0])[:, None, None].expand(pictures, 2, SIZE, SIZE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer = make_trainer(tmp_path, 1)
        batches = torch.utils.data.TensorDataset(first, second, flow)
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=pictures))
    finally:
        torch.set_num_threads(before)
    content = first.float() / 255
    stylized, again = network(content), network(second.float() / 255)
    motion = motion_difference(stylized, again, flow).mean()
    total = perceptual_terms(module, stylized, content)["total"] + 20.0 * motion
    torch.testing.assert_close(trainer.callback_metrics["train/motion_loss"], motion.detach(), rtol=1e-3, atol=0)
    torch.testing.assert_close(trainer.callback_metrics["train/total_loss"], total.detach(), rtol=1e-3, atol=0)
    whole = torch.autograd.grad(total, list(network.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in whole)
    for parameter, expected in zip(module.network.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-2, atol=1e-4 * largest)


@pytest.mark.parametrize("name", ["fast", "johnson"])
def test_steps_are_those_of_plain_adam(name, tmp_path):
    """With the memory layouts that training has, which fused Adam does not look at."""
    module, images, steps = make_module(3), AlwaysTheSame(), 3
    module.network = create_network(name, 8, 1).to(memory_format=torch.channels_last)
    before, network = copy.deepcopy(module.network), copy.deepcopy(module.network)
    make_trainer(tmp_path, steps).fit(module, ContentImages(images, 2, 0, SIZE))

    optimizer = torch.optim.Adam(network.parameters(), 1e-2, foreach=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps + 1, pct_start=0.1)
    content = (torch.stack(images.pictures).float() / 255).contiguous(memory_format=torch.channels_last)
    for _ in range(steps):
        optimizer.zero_grad()
        perceptual_terms(module, network(content), content)["total"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for old, expected, got in zip(before.parameters(), network.parameters(), module.network.parameters(), strict=True):
        if old.ndim == 4:  # biases before a norm have no gradient but rounding's
            together = torch.cosine_similarity((expected - old).flatten(), (got - old).flatten(), 0)
            assert together > 0.95


def test_gradients_are_cut_and_the_rate_falls_to_nothing(tmp_path):
    module, seen = make_module(20), []
    module.recipe = replace(module.recipe, gradient_clip=1e-4)

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
            norm = sum(float(p.grad.square().sum()) for p in module.network.parameters()) ** 0.5
            seen.append((trainer.optimizers[0].param_groups[0]["lr"], norm))

    make_trainer(tmp_path, 20, Look()).fit(module, make_data())
    rates, norms = zip(*seen, strict=True)
    assert max(norms) == pytest.approx(1e-4, rel=0.01)
    assert max(rates) == pytest.approx(1e-2, rel=0.1)
    assert rates[-1] < 1e-4 * max(rates)


def test_the_fields_optimiser_is_adam_at_one_rate_on_gradients_as_they_are(tmp_path):
    """As experiment=johnson2016 has it."""
    cfg = load_config("train", ["style=starry_night", "experiment=johnson2016"])
    module, data, seen, gradients = make_module(12), AlwaysTheSame(), [], []
    module.recipe = replace(module.recipe, **{key: cfg.trainer[key] for key in ("learning_rate", "one_cycle")})
    module.recipe = replace(module.recipe, gradient_clip=cfg.trainer.gradient_clip)
    content = torch.stack(data.pictures).float() / 255
    loss = perceptual_terms(module, module.network(content), content)["total"]
    expected = torch.autograd.grad(loss, list(module.network.parameters()))
    assert sum(float(gradient.square().sum()) for gradient in expected) > 1

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: StyleTransfer, *_: Any) -> None:
            seen.append([trainer.optimizers[0].param_groups[0][key] for key in ("lr", "betas")])
            gradients.append([parameter.grad.clone() for parameter in module.network.parameters()])

    make_trainer(tmp_path, 12, Look()).fit(module, ContentImages(data, 2, 0, SIZE))
    assert seen == [[1e-3, (0.9, 0.999)]] * 12
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for got, wanted in zip(gradients[0], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("scale", [2.0**10, 2.0**14])
def test_a_float16_step_is_that_of_float32_whatever_the_loss_is_scaled_by(scale, tmp_path):
    """As a GPU takes it, on the CPU: gradients are cut, and logged, as they are without the scale."""
    changes, norms = [], []
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    for plugins in ([scaled], None):
        module = make_module(1)
        before = [p.detach().clone() for p in module.network.parameters()]
        trainer = make_trainer(tmp_path, 1, plugins=plugins)
        trainer.fit(module, make_data())
        changes.append(
            sum(float((p.detach() - b).abs().sum()) for p, b in zip(module.network.parameters(), before, strict=True))
        )
        norms.append(float(trainer.callback_metrics["train/gradient_norm"]))
        assert module.skipped_steps == 0
    assert changes[0] == pytest.approx(changes[1], rel=0.02)
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_training_leaves_the_loss_network_and_the_style_targets_as_they_were(trained):
    loss = trained["module"].perceptual_loss
    now = dict(loss.named_parameters()) | dict(loss.named_buffers())
    assert now.keys() == trained["frozen"].keys()
    assert all(torch.equal(now[k], v) for k, v in trained["frozen"].items())
    assert not any(p.requires_grad for p in loss.parameters())


def test_validation_losses_are_those_of_the_clamped_pictures(trained):
    module = trained["module"]
    content = next(iter(make_data().val_dataloader())).float() / 255
    with torch.no_grad():
        stylized = module.network.eval()(content).clamp(0, 1)
        terms = perceptual_terms(module, stylized, content)
        terms |= {"grid": pixel_grid(stylized).mean(), "weave": pixel_weave(stylized).mean()}
    assert module.validation_losses == pytest.approx({f"val/{k}_loss": float(v) for k, v in terms.items()}, rel=1e-4)


def test_a_checkpoint_has_the_network_and_not_the_loss_network(trained):
    weights = torch.load(trained["checkpoint"], weights_only=True)["state_dict"]
    network = trained["module"].network.state_dict()
    assert weights.keys() == {f"network.{k}" for k in network}
    assert all(torch.equal(weights[f"network.{k}"], v) for k, v in network.items())


def strange(value: Any, where: str = "checkpoint") -> list[str]:
    """Return where a value holds anything but plain types and tensors."""
    if type(value) is dict:
        odd_keys = [f"{where}: key {k!r}" for k in value if not isinstance(k, str | int)]
        return odd_keys + [place for k, v in value.items() for place in strange(v, f"{where}.{k}")]
    if type(value) in (list, tuple):
        return [place for i, v in enumerate(value) for place in strange(v, f"{where}[{i}]")]
    plain = value is None or isinstance(value, Tensor) or type(value) in (str, int, float, bool)
    return [] if plain else [f"{where}: {type(value)}"]


def test_a_checkpoint_holds_plain_types_and_tensors_only(trained):
    checkpoint = torch.load(trained["checkpoint"], weights_only=True)
    assert strange(checkpoint) == []
    assert checkpoint[CHECKPOINT_KEY]["config"] == trained["module"].description["config"]
    assert checkpoint[CHECKPOINT_KEY]["step"] == checkpoint[CHECKPOINT_KEY]["batches_seen"] == 30


def test_read_checkpoint_gives_what_torch_loads(trained):
    assert read_checkpoint(trained["checkpoint"]).keys() == torch.load(trained["checkpoint"], weights_only=True).keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_memory(value, tmp_path):
    module, watch = make_module(5), NotFinite([2], value)
    trainer = make_trainer(tmp_path, 5, watch)
    trainer.fit(module, make_data())
    unchanged = [same(watch.before[i], watch.after[i]) for i in range(5)]
    assert unchanged == [False, False, True, False, False]
    assert len(set(watch.rates)) == 5
    assert (trainer.global_step, module.batches_seen, module.skipped_steps) == (5, 5, 1)
    assert all(torch.isfinite(t).all() for t in watch.after[4])


def test_a_step_without_effect_leaves_the_style_weight_where_it_is(tmp_path):
    """Its content distance is known, but says nothing of what the weight did."""
    module, weights = make_module(5), []
    module.control = StyleWeightControl(0.2, 10.0, 0.1)

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            weights.append(float(module.control.style_weight))

    make_trainer(tmp_path, 5, NotFinite([2]), Watch()).fit(module, make_data())
    assert module.skipped_steps == 1
    moved = [first != second for first, second in itertools.pairwise([10.0, *weights])]
    assert moved == [True, True, False, True, True]


def test_the_style_weight_of_a_run_of_0_1_0_goes_on(tmp_path):
    module = make_module(2)
    module.control = StyleWeightControl(0.2, 10.0, 0.1)
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name in ("control.log_weight", "control.content"):
        checkpoint["state_dict"][name] = checkpoint["state_dict"][name][0]  # a scalar, as then
    torch.save(checkpoint, tmp_path / "old.ckpt")
    again = make_module(2)
    again.control = StyleWeightControl(0.2, 10.0, 0.1)
    make_trainer(tmp_path, 2).fit(again, make_data(), ckpt_path=tmp_path / "old.ckpt", weights_only=True)
    assert torch.equal(again.control.log_weight, module.control.log_weight)
    assert torch.equal(again.control.content, module.control.content)


def test_twenty_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path):
    module, watch = make_module(50), NotFinite(range(3, 50))
    with pytest.raises(UserError, match="20 steps in a row") as refusal:
        make_trainer(tmp_path, 50, watch).fit(module, make_data())
    assert "\n" not in str(refusal.value)
    assert (module.batches_seen, module.skipped_steps) == (23, 20)
    assert all(map(torch.equal, module.network.parameters(), watch.after[2]))


def test_fewer_than_twenty_in_a_row_do_not_end_the_run_however_often(tmp_path):
    almost = MOST_SKIPPED_IN_A_ROW - 1
    bad = [*range(almost), *range(almost + 1, 2 * almost + 1)]
    module = make_module(2 * almost + 2)
    trainer = make_trainer(tmp_path, 2 * almost + 2, NotFinite(bad))
    trainer.fit(module, make_data())
    assert (trainer.global_step, module.skipped_steps) == (2 * almost + 2, 2 * almost)


def test_a_run_without_one_finite_step_is_refused_however_short(tmp_path):
    with pytest.raises(UserError, match="3 steps in a row"):
        make_trainer(tmp_path, 3, NotFinite(range(3)), val_check_interval=100).fit(make_module(3), make_data())


class ReadsFromTheDevice(TorchDispatchMode):
    """Count the tensors whose value the program asks for, which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_waits_for_nothing_unless_it_logs(scaled, tmp_path, monkeypatch):
    module, reads = make_module(12), []
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**7))] if scaled else None
    module.control = StyleWeightControl(0.4, 7.0, 0.03)
    step = StyleTransfer.training_step

    def counted(self: StyleTransfer, batch: Tensor, batch_idx: int) -> None:
        with ReadsFromTheDevice() as mode:
            step(self, batch, batch_idx)
        reads.append(mode.count)

    monkeypatch.setattr(StyleTransfer, "training_step", counted)
    make_trainer(tmp_path, 12, NotFinite([4]), val_check_interval=100, plugins=plugins).fit(module, make_data())
    assert [number for number, count in enumerate(reads) if count] == [LOG_EVERY - 1]
    assert module.skipped_steps == 1
    assert torch.isfinite(module.control.log_weight)


def test_processes_ask_each_other_whether_to_stop_every_ten_steps(monkeypatch):
    monkeypatch.setattr(Interruption, "listen", lambda self: None)
    for processes, asked_at in ((2, [10, 20]), (1, list(range(1, 26)))):
        asked: list[int] = []
        module = SimpleNamespace(batches_seen=0)
        strategy = SimpleNamespace(reduce_boolean_decision=lambda *_, **__: asked.append(module.batches_seen))  # noqa: B023
        trainer, interruption = SimpleNamespace(world_size=processes, strategy=strategy), Interruption()
        for module.batches_seen in range(1, 26):
            interruption.on_train_batch_end(trainer, module, None, None, 0)
        assert asked == asked_at


def test_processes_with_different_loss_networks_do_not_train(tmp_path):
    module = make_module(1)
    trainer = make_trainer(tmp_path, 1)
    trainer.strategy.broadcast = lambda identity: "vgg19@0123"
    with pytest.raises(UserError, match=r"process 0 .* vgg19@0123; loss_network=NAME"):
        trainer.fit(module, make_data())


def test_a_gpu_tries_cudnns_algorithms_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run.pl, "Trainer", lambda **options: asked.append(options["benchmark"]))
    for accelerator in ("cpu", "gpu"):
        run.create_trainer(Recipe(1), run.Engine(accelerator), tmp_path, 0, [])
    assert asked == [None, True]


class CopiesToTheDevice(TorchDispatchMode):
    """Count the tensors that are copied from the CPU to a GPU, which waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        self.count += copies and args[-1].device.type == "cpu" and result.device.type == "cuda"
        return result


@pytest.mark.parametrize("network", ["fast", "johnson"])
def test_on_a_gpu_a_step_copies_nothing_there(network):
    """Without one: torch follows shapes, types and devices of tensors that have no values."""
    module = make_module(1, network=network)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        moved = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
                        is_parameter = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
        content = torch.rand(2, 3, 64, 64, device="cuda")
        with CopiesToTheDevice() as copies:
            chosen = module.next_paintings(len(content))
            module.losses(content, module.stylize(content, chosen), chosen)
        assert copies.count == 0
        with CopiesToTheDevice() as copies:
            content.new_tensor([1.0])
        assert copies.count == 1


def fit(folder: Path, module: StyleTransfer, *callbacks: pl.Callback, resume: Path | None = None) -> pl.Trainer:
    trainer = make_trainer(folder, 6, *callbacks)
    trainer.fit(module, make_data(module.recipe.motion_weight > 0), ckpt_path=resume, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("bad", "motion"), [([], 0.0), ([1], 0.0), ([], 20.0)], ids=["all finite", "one step skipped", "second views"]
)
def test_a_run_stopped_and_resumed_ends_bit_for_bit_as_one_that_went_through(bad, motion, tmp_path):
    def make(seed: int = 0) -> StyleTransfer:
        module = make_module(6, seed)
        module.recipe = replace(module.recipe, motion_weight=motion)
        return module

    through = make()
    through_trainer = fit(tmp_path, through, NotFinite(bad))

    first = make()
    stopped = fit(tmp_path, first, NotFinite(bad), StopAt(3))
    assert stopped.global_step == 3
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make(seed=99)
    resumed_trainer = fit(tmp_path, resumed, NotFinite(bad), resume=tmp_path / "half.ckpt")

    assert resumed_trainer.global_step == through_trainer.global_step == 6
    assert same(state(resumed_trainer, resumed), state(through_trainer, through))
    assert not same(state(stopped, first), state(through_trainer, through))
    assert (resumed.batches_seen, resumed.skipped_steps) == (6, len(bad))


class Pickled:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


def one_line_refusal(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        read_checkpoint(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def test_a_missing_checkpoint_is_refused(tmp_path):
    assert "no checkpoint" in one_line_refusal(tmp_path / "nothing.ckpt")
    assert "no checkpoint" in one_line_refusal(tmp_path)


def test_another_projects_checkpoint_is_refused(tmp_path):
    weights = {"weight": torch.zeros(2)}
    for i, other in enumerate([{"state_dict": weights}, {CHECKPOINT_KEY: {}}, weights, torch.zeros(2), [1, 2]]):
        torch.save(other, tmp_path / f"{i}.ckpt")
        assert "another project" in one_line_refusal(tmp_path / f"{i}.ckpt")


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    whole = trained["checkpoint"].read_bytes()
    damaged = {"text": b"hello\n", "empty": b"", "half": whole[: len(whole) // 2]}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        one_line_refusal(tmp_path / name)


def test_a_checkpoint_that_would_run_code_is_refused_without_running_it(tmp_path):
    target = tmp_path / "ran"
    torch.save({CHECKPOINT_KEY: Pickled(target)}, tmp_path / "hostile.ckpt")
    assert "safely" in one_line_refusal(tmp_path / "hostile.ckpt")
    assert not target.exists()
