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
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from nst_fast.loss.loss_networks import VGG
from nst_fast.loss.pretrained import load_slim_vgg

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "distill_loss_network.py"
LAYERS = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1"]
FILTERS = {"relu4_1": 20, "relu5_1": 24}  # of the full-width network that the narrow teacher estimates


@pytest.fixture(scope="module")
def distillation():
    spec = importlib.util.spec_from_file_location("distill_loss_network", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random teacher with maps to a wider network, photographs and paintings."""
    folder = tmp_path_factory.mktemp("distillation")
    torch.manual_seed(0)
    teacher = VGG(((6, 6), (8, 8), (10, 10), (12, 12), (12,)))
    tensors = {k.replace("convolutions.", "conv"): v.contiguous() for k, v in teacher.state_dict().items()}
    for layer, filters in FILTERS.items():
        tensors[f"to_vgg19.conv{layer[4:]}.weight"] = torch.randn(filters, 12, 1, 1)
        tensors[f"to_vgg19.conv{layer[4:]}.bias"] = torch.randn(filters)
    save_file(tensors, folder / "teacher.safetensors")
    pictures = {
        "photographs": (skimage.data.chelsea(), skimage.data.coffee()),
        "validation": (skimage.data.rocket(),),
        "paintings": (skimage.data.colorwheel(),),
    }
    for name, arrays in pictures.items():
        (folder / name).mkdir()
        for index, array in enumerate(arrays):
            Image.fromarray(array).resize((96, 80)).save(folder / name / f"{index}.png")
    return folder


def options(folder, **more):
    """Return the script's config for the small teacher."""
    small = {
        "teachers": [{"path": str(folder / "teacher.safetensors"), "layers": LAYERS}],
        "widths": [[4, 4], [5, 4], [6, 6], [8, 7, 6], [9]],
        "batches": [[2, 32], [2, 48]],
        "short_side": 96,
        "style_network_width": 8,
        "precision": "float32",
        **{name: str(folder / name) for name in ("photographs", "validation", "paintings")},
    }
    return small | more


def test_errors_are_those_of_the_features_and_gram_matrices_that_the_heads_make(distillation, folder):
    cfg = OmegaConf.merge(
        OmegaConf.load(ROOT / "configs" / "distill_loss_network.yaml"), OmegaConf.create(options(folder))
    )
    teachers = distillation.Teachers(cfg, torch.device("cpu"))
    mixture = distillation.Mixture(cfg)
    student = distillation.new_student(cfg, teachers, mixture)
    images = mixture.batch(3, 48, np.random.default_rng(0))
    errors = distillation.matching_errors(student, teachers, images)
    assert set(errors["feature"]) == set(errors["gram"]) == set(LAYERS)
    assert set(errors["full_width"]) == set(FILTERS)
    with torch.no_grad():
        truth, seen = teachers.network(images, LAYERS), student.trunk(images, LAYERS)
        for layer in LAYERS:
            t = truth[layer]
            scale = student.get_buffer("scale_" + layer)
            s = student.heads[layer](seen[layer]) * scale
            expected = (s - t).square().mean((1, 2, 3)) / (t.square().mean((1, 2, 3)) + 1e-2)
            torch.testing.assert_close(errors["feature"][layer], expected, rtol=1e-3, atol=1e-5)
            for index in range(len(images)):
                grams = [x[index].flatten(1) @ x[index].flatten(1).T for x in (s, t)]
                expected = (grams[0] - grams[1]).square().sum() / grams[1].square().sum()
                torch.testing.assert_close(errors["gram"][layer][index], expected, rtol=1e-3, atol=1e-5)
        for layer in FILTERS:
            weight, bias = teachers.maps[layer]
            wide = F.relu(F.conv2d(truth[layer], weight, bias))
            off = (student.full_width[layer](seen[layer]) - wide).square().mean((1, 2, 3))
            expected = off / student.get_buffer("variance_" + layer)
            torch.testing.assert_close(errors["full_width"][layer], expected, rtol=1e-4, atol=0)
    folded = student.folded()
    for layer, estimate in folded.estimates(images, LAYERS).items():
        torch.testing.assert_close(estimate, student.heads[layer](seen[layer]) * student.get_buffer("scale_" + layer))


def test_a_student_that_is_taken_over_gives_the_same_estimates_with_more_filters(distillation, folder, tmp_path):
    base = OmegaConf.load(ROOT / "configs" / "distill_loss_network.yaml")
    cfg = OmegaConf.merge(base, OmegaConf.create(options(folder)))
    teachers, mixture = distillation.Teachers(cfg, torch.device("cpu")), distillation.Mixture(cfg)
    student = distillation.new_student(cfg, teachers, mixture).folded()
    file = tmp_path / "student.safetensors"
    factors = {layer: torch.ones(head.out_channels) for layer, head in student.heads.items()}
    distillation.save_slim_vgg(student, file, {}, factors)
    cfg.widths = [[6, 4], [5, 7], [6, 9], [8, 8, 6], [10]]
    again = distillation.new_student(cfg, teachers, mixture, load_slim_vgg(file)).folded()
    assert [len(again.trunk.convolutions[name].weight) for name in ("1_1", "2_2", "4_2", "5_1")] == [6, 7, 8, 10]
    images = mixture.batch(2, 48, np.random.default_rng(3))
    with torch.no_grad():
        expected = load_slim_vgg(file).estimates(images, LAYERS)  # as rounded in the file
        for layer, estimate in again.estimates(images, LAYERS).items():
            torch.testing.assert_close(estimate, expected[layer], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_distil_a_student_and_a_finished_run_is_not_trained_again(folder, tmp_path):
    (tmp_path / "docs").mkdir()
    given = options(
        folder,
        steps=4,
        prune_below=0,
        prune_batches=2,
        cycles=[{}, {"steps": 2, "widths": [[7, 4], [5, 4], [6, 6], [8, 9, 6], [9]], "tap_filters": 0}],
        tap_filters=3,
        tap_steps=2,
        save_every=2,
        run=str(tmp_path / "run"),
        output=str(tmp_path / "student.safetensors"),
        report=str(tmp_path / "docs" / "report.json"),
    )
    arguments = [f"{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in given.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    made = []
    for _ in range(2):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        made.append(load_file(tmp_path / "student.safetensors"))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())
    logs = [(run / "log.jsonl").read_text().splitlines() for run in sorted((tmp_path / "run").iterdir())]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps == [[2, 4], [2]]
    report = json.loads((tmp_path / "docs" / "report.json").read_text())
    assert (report["steps"], report["processes"]) == ([4, 2], 2)
    assert set(report["fidelity_r2"]) == set(LAYERS)
    assert "4 and 2 steps" in (tmp_path / "docs" / "report.md").read_text()
    network = load_slim_vgg(tmp_path / "student.safetensors")
    assert network.layers == tuple(LAYERS)
    assert [network.trunk.filters[layer] for layer in LAYERS] == [4 + 3, 5, 6, 8, 9, 9]
    first = load_slim_vgg(tmp_path / "run" / "1" / "student.safetensors")
    assert not first.trunk.convolutions["1_2"].weight[:, 4:].any()  # they are for the tap alone
