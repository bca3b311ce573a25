"""scripts/distill_loss_network.py: its errors against direct computation, and a run of two processes to the end."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load, save_file

from nst_fast.loss.loss_networks import VGG, LowRankConvolution
from nst_fast.loss.pretrained import load_slim_vgg

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "distill_loss_network.py"
LAYERS = ["relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_3", "relu4_1", "relu4_2", "relu4_3", "relu5_1"]
FILTERS = [6, 6, 8, 8, 10, 10, 12, 12, 12, 14]


@pytest.fixture(scope="module")
def distillation():
    spec = importlib.util.spec_from_file_location("distill_loss_network", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random teacher without preprocessing, photographs and paintings, some of them held out."""
    folder = tmp_path_factory.mktemp("distillation")
    torch.manual_seed(0)
    teacher = VGG(((6, 6), (8, 8), (10, 10, 10), (12, 12, 12), (14,)))
    save_file(
        {"conv" + k: v.contiguous() for k, v in teacher.convolutions.state_dict().items()}, folder / "vgg16.safetensors"
    )
    pictures = {
        "photographs": (skimage.data.chelsea(), skimage.data.coffee()),
        "more": (skimage.data.astronaut(),),
        "validation": (skimage.data.rocket(),),
        "paintings": (skimage.data.colorwheel(), skimage.data.cat()),
    }
    for name, arrays in pictures.items():
        (folder / name).mkdir()
        for index, array in enumerate(arrays):
            Image.fromarray(array).resize((96, 80)).save(folder / name / f"{name}{index}.png")
    held_out = {"photographs": ["photographs1.png"], "paintings": ["paintings1.png"]}
    (folder / "held_out.json").write_text(json.dumps(held_out))
    return folder


def options(folder, **more):
    """Return the script's config for the small teacher."""
    small = {
        "teacher": str(folder / "vgg16.safetensors"),
        "widths": [[4, 4], [5, [5, 4, 4]], [[3, 4, 6], [4, 4, 6], 5], [[4, 5, 8], 7, 6], [9]],
        "earlier": None,
        "batches": [[2, 32], [2, 48]],
        "short_side": 96,
        "style_network_width": 8,
        "precision": "float32",
        "photographs": [str(folder / "photographs"), str(folder / "more")],
        "validation": str(folder / "validation"),
        "paintings": [str(folder / "paintings")],
        "held_out": str(folder / "held_out.json"),
    }
    return small | more


def configured(folder):
    base = OmegaConf.load(ROOT / "configs" / "distill_loss_network.yaml")
    return OmegaConf.merge(base, OmegaConf.create(options(folder)))


def started(distillation, folder):
    """Return teacher, mixture and a student that was fitted to a few pictures."""
    cfg = configured(folder)
    teacher, mixture = distillation.load_teacher(cfg), distillation.Mixture(cfg)
    student = distillation.ScaledSlimVGG(cfg.widths, {layer: teacher.filters[layer] for layer in cfg.layers})
    student.start(mixture.batch(6, 64, np.random.default_rng(1)), teacher, None)
    return teacher, mixture, student


def test_a_file_without_preprocessing_is_read_as_torchvisions(distillation, folder):
    teacher = distillation.load_teacher(configured(folder))
    picture = torch.rand(1, 3, 8, 8)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (picture - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(teacher.preprocess(picture), expected)


def test_pictures_that_are_held_out_are_not_read(distillation, folder):
    mixture = distillation.Mixture(configured(folder))
    assert (len(mixture.photographs), len(mixture.paintings)) == (2, 1)


def test_errors_are_those_of_the_features_and_gram_matrices_that_the_heads_make(distillation, folder):
    teacher, mixture, student = started(distillation, folder)
    images = mixture.batch(3, 48, np.random.default_rng(0))
    errors = distillation.matching_errors(student, teacher, images)
    assert set(errors["feature"]) == set(errors["gram"]) == set(LAYERS)
    with torch.no_grad():
        truth, seen = teacher(images, LAYERS), student.trunk(images, LAYERS)
        for layer in LAYERS:
            t = truth[layer]
            s = student.heads[layer](seen[layer]) * student.get_buffer("scale_" + layer)
            floor = 1e-2 * student.get_buffer("energy_" + layer)
            expected = (s - t).square().sum(1).mean((1, 2)) / (t.square().sum(1).mean((1, 2)) + floor)
            torch.testing.assert_close(errors["feature"][layer], expected, rtol=1e-3, atol=1e-5)
            for index in range(len(images)):
                grams = [x[index].flatten(1) @ x[index].flatten(1).T for x in (s, t)]
                expected = (grams[0] - grams[1]).square().sum() / grams[1].square().sum()
                torch.testing.assert_close(errors["gram"][layer][index], expected, rtol=1e-3, atol=1e-5)
    folded = student.folded()
    for layer, estimate in folded.estimates(images, LAYERS).items():
        torch.testing.assert_close(estimate, student.heads[layer](seen[layer]) * student.get_buffer("scale_" + layer))


def test_a_new_student_imitates_the_teachers_first_layers(distillation, folder):
    teacher, mixture, student = started(distillation, folder)
    images = mixture.batch(4, 48, np.random.default_rng(2))
    errors = distillation.matching_errors(student, teacher, images)["feature"]
    assert errors["relu1_1"].mean() < 0.2
    assert errors["relu1_2"].mean() < 0.3


def test_a_convolution_of_low_rank_imitates_one_of_that_rank_exactly(distillation):
    torch.manual_seed(0)
    wide = LowRankConvolution(6, 3, 2, 5)
    x = torch.randn(4, 6, 12, 12)
    with torch.no_grad():
        answers = wide(x)
        made = LowRankConvolution(6, 3, 2, 5)
        distillation.imitate(made, x, answers)
        chosen = distillation.choose_filters(
            (t := distillation.to_positions(answers.relu())).T.double() @ t.double() / len(t), 5
        )
        expected = answers[:, chosen] / answers[:, chosen].square().mean((0, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(made(x), expected, rtol=0, atol=2e-3)


def test_a_convolution_of_low_rank_is_the_best_of_its_rank(distillation):
    """By numpy's least squares and singular values: no regression of a lower rank is nearer (Eckart & Young 1936)."""
    torch.manual_seed(0)
    x, answers = torch.randn(6, 4, 10, 10), torch.nn.Conv2d(4, 5, 3, padding=1)(torch.randn(6, 4, 10, 10)).detach()
    answers = answers + torch.nn.Conv2d(4, 5, 3, padding=1)(x).detach()
    made = LowRankConvolution(4, 4, 2, 5)
    distillation.imitate(made, x, answers)
    t = distillation.to_positions(answers.relu()).double()
    chosen = distillation.choose_filters(t.T @ t / len(t), 5)
    y = answers[:, chosen].permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    patches = torch.nn.functional.unfold(x, 3, padding=1).permute(0, 2, 1).reshape(-1, 36).double().numpy()
    patches = np.concatenate([patches, np.ones((len(patches), 1))], 1)
    weights = np.linalg.lstsq(patches, y, rcond=None)[0]
    seen = patches[:, :-1] @ weights[:-1]
    best = np.linalg.svd(seen, full_matrices=False)
    least = ((y - weights[-1] - (best[0][:, :2] * best[1][:2]) @ best[2][:2]) ** 2).mean()
    scale = np.sqrt((y**2).mean(0))
    got = made(x).detach().permute(0, 2, 3, 1).reshape(-1, 5).double().numpy() * scale
    assert ((y - got) ** 2).mean() == pytest.approx(least, rel=1e-3)


def test_a_student_keeps_the_first_convolutions_of_an_earlier_one_of_the_same_widths(distillation, folder):
    cfg = configured(folder)
    teacher, mixture, earlier = started(distillation, folder)
    cfg.widths[1][1] = [5, 3, 4]
    student = distillation.ScaledSlimVGG(cfg.widths, {layer: teacher.filters[layer] for layer in cfg.layers})
    student.start(mixture.batch(6, 64, np.random.default_rng(3)), teacher, earlier)
    kept = {
        name
        for name, convolution in student.trunk.convolutions.items()
        if all(
            one.shape == other.shape and torch.equal(one, other)
            for one, other in zip(convolution.parameters(), earlier.trunk.convolutions[name].parameters(), strict=True)
        )
    }
    assert kept == {"1_1", "1_2", "2_1"}


def test_chosen_filters_explain_the_others(distillation):
    torch.manual_seed(0)
    basis = torch.randn(1000, 3).double()
    features = torch.cat([basis * torch.tensor([3.0, 2.0, 1.0]), basis @ torch.randn(3, 2).double() * 1e-2], 1)
    few = features[:, distillation.choose_filters(features.T @ features, 3)]
    torch.testing.assert_close(few @ torch.linalg.lstsq(few, features).solution, features)
    assert distillation.choose_filters(features.T @ features, 1).tolist() == [0]


def test_the_learning_rate_comes_down_to_nothing_in_every_cycle(distillation):
    cycles = [[300, 2.0], [600, 1.0]]
    rates = [distillation.learning_rate(cycles, step) for step in range(900)]
    assert max(rates[:300]) == rates[10] == pytest.approx(2)
    assert max(rates[300:]) == rates[320] == pytest.approx(1)
    assert rates[0] == pytest.approx(0.2)
    assert max(rates[299], rates[899]) < 0.01


@pytest.mark.slow
def test_two_processes_distil_a_student_and_a_finished_run_goes_on_where_it_stopped(folder, tmp_path):
    given = options(
        folder,
        save_every=2,
        run=str(tmp_path / "run"),
        output=str(tmp_path / "student.safetensors"),
        report=str(tmp_path / "docs" / "report.json"),
    )
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    made = []
    # One process is enough where nothing is left to do.
    for launcher, cycles in ((two, [[4, 1e-3]]), ([], [[4, 1e-3]]), (two, [[4, 1e-3], [2, 1e-3]])):
        arguments = [
            f"{k}={json.dumps(v) if isinstance(v, list | None) else v}" for k, v in (given | {"cycles": cycles}).items()
        ]
        command = [sys.executable, *launcher, str(SCRIPT), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        made.append(load((tmp_path / "student.safetensors").read_bytes()))  # the file is overwritten next time
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())
    assert any(not torch.equal(tensor, made[2][name]) for name, tensor in made[0].items())
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4, 6]
    report = json.loads((tmp_path / "docs" / "report.json").read_text())
    assert (report["steps"], report["processes"]) == (6, 2)
    assert set(report["fidelity_r2"]) == set(LAYERS)
    assert "6 steps" in (tmp_path / "docs" / "report.md").read_text()
    network = load_slim_vgg(tmp_path / "student.safetensors")
    assert network.identity.startswith("vgg16_slim@")
    assert network.layers == tuple(LAYERS)
    assert list(network.filters.values()) == FILTERS
    assert [network.trunk.filters[layer] for layer in LAYERS] == [4, 4, 5, 4, 6, 5, 8, 7, 6, 9]
