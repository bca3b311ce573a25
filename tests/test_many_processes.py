"""Two processes that train together: the gradients, the shares of the data, one set of files, going on."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from nst_fast.loss.loss_networks import VGG, freeze
from nst_fast.loss.perceptual_loss import BalancedLoss, split_name, style_target
from nst_fast.training.content_images import BundledImages, ContentImages, Forever
from nst_fast.training.networks import create_network
from nst_fast.training.style_transfer import Recipe, StyleTransfer

pytestmark = pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")

SIZE = 32
LAYERS = {"relu1_1": 0.5, "relu2_1": 0.5}
STEPS = 2


@pytest.mark.parametrize(("start", "batch_size", "processes"), [(0, 2, 2), (12, 3, 2), (5, 1, 3), (0, 4, 1)])
def test_processes_share_every_batch_without_repetition(start, batch_size, processes):
    batches = 4
    shares = [
        torch.tensor(list(islice(Forever(start, batch_size, rank, processes), batches * batch_size)))
        for rank in range(processes)
    ]
    together = torch.stack([share.reshape(batches, batch_size) for share in shares], dim=1)
    assert together.flatten().tolist() == list(range(start, start + batches * batch_size * processes))


class Watch(pl.Callback):
    """Keep each step's batch and gradients in a file of each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        gradients = {name: p.grad.clone() for name, p in module.network.named_parameters()}
        seen = {"batch": batch.clone(), "gradients": gradients}
        torch.save(seen, self.folder / f"{trainer.world_size}_{trainer.global_rank}_{batch_idx}.pt")


def train_in_float64(folder: Path, processes: int, batch_size: int) -> list[list[dict[str, Any]]]:
    """Train two steps and return what every process saw at every step."""
    torch.manual_seed(7)
    loss_network = freeze(VGG([[8], [12]]))
    loss = BalancedLoss(loss_network, {"relu2_1": 1.0}, LAYERS, 1.0, 10.0, 1.0)
    painting = torch.rand(1, 3, 48, 40)
    features = loss_network(painting, loss.layers)
    targets = {n: style_target(loss_network, n, features[split_name(n)[1]]) for n in loss.style_target_names}
    recipe = Recipe(STEPS, 1e-2, 1e30, 500.0, 20.0, own_style=0.25)
    module = StyleTransfer(create_network("fast", 8, 1), loss, [targets], recipe, {"config": {}})
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        precision="64-true",
        max_steps=STEPS,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[Watch(folder)],
    )
    trainer.fit(module, ContentImages(BundledImages(SIZE, 0, 0.5), batch_size, 0, SIZE))
    files = [[folder / f"{processes}_{rank}_{step}.pt" for step in range(STEPS)] for rank in range(processes)]
    return [[torch.load(path, weights_only=True) for path in steps] for steps in files]


@pytest.mark.slow  # new processes load Lightning
def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(tmp_path):
    first, second = train_in_float64(tmp_path, processes=2, batch_size=2)
    (alone,) = train_in_float64(tmp_path, processes=1, batch_size=4)
    for step in range(STEPS):
        assert torch.equal(torch.cat([first[step]["batch"], second[step]["batch"]]), alone[step]["batch"])
        for name, expected in alone[step]["gradients"].items():
            assert expected.dtype == torch.float64
            assert expected.abs().max() > 0
            for got in (first, second):
                assert (got[step]["gradients"][name] - expected).abs().max() < 1e-10
