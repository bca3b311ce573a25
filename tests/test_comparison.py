"""Fast against slow: who passes whom, counted by hand; models whose losses are known beforehand."""

import numpy as np
import pytest
import torch
from PIL import Image

from nst_fast.loss.loss_networks import VGG
from nst_fast.loss.painting_size import best_painting_size
from nst_fast.loss.perceptual_loss import BalancedLoss, split_name, style_target
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.reference.comparison import (
    TIMED_RUNS,
    Comparison,
    ModelResult,
    OptimizerResult,
    compare,
    perceptual_losses,
)
from nst_fast.reference.image_optimizer import optimize_image, white_noise
from nst_fast.reference.report import spread, summarise, told

PICTURE = Image.new("RGB", (4, 4))
LAYERS = {"relu1_1": 0.5, "relu2_1": 0.5}


def optimizer(*totals, seconds_each=0.5):
    rows = [{"iteration": i, "seconds": i * seconds_each, "total": total} for i, total in enumerate(totals)]
    return OptimizerResult(PICTURE, rows)


def model(total, seconds):
    return ModelResult(PICTURE, seconds, {"content": total / 4, "total": total})


# Counted by hand


@pytest.mark.parametrize(
    ("total", "iteration"), [(100.0, 0), (8.0, 0), (7.99, 2), (3.0, 2), (2.5, 4), (2.0, 4), (1.99, None)]
)
def test_passes_gives_the_first_row_that_is_not_above_a_figure(total, iteration):
    run = optimizer(8.0, 9.0, 3.0, 4.0, 2.0)
    row = run.passes(total)
    assert row == (None if iteration is None else run.trace[iteration])


def test_spread_of_figures_of_which_some_are_missing():
    assert spread([3, 1, 8], 9) == {"median": 3, "least": 1, "most": 8, "not_reached": 0}
    assert spread([3, None, 1, None], 200) == {"median": 101.5, "least": 1, "most": 200, "not_reached": 2}


@pytest.mark.parametrize(
    ("values", "said"),
    [([3, 1, 8], "3"), ([3, None, 1], "3"), ([3, None], "at least 101.5"), ([None, None, 4], "at least 200")],
)
def test_a_median_that_was_not_reached_is_said_to_be_a_bound(values, said):
    assert told(spread(values, 200), len(values)) == said


def test_summary_of_three_photographs_by_hand():
    comparisons = {
        "a": Comparison(PICTURE, {"m": model(4.0, 0.1), "peer": model(0.1, 3.0)}, {"x": optimizer(9.0, 5.0, 4.0, 1.0)}),
        "b": Comparison(PICTURE, {"m": model(6.0, 0.5), "peer": model(0.1, 1.0)}, {"x": optimizer(9.0, 5.0, 4.0, 1.0)}),
        "c": Comparison(PICTURE, {"m": model(0.5, 0.2), "peer": model(0.1, 2.0)}, {"x": optimizer(9.0, 5.0, 4.0, 1.0)}),
    }
    # Passed after 2, 1 and more than 3 iterations: 1 s, 0.5 s and at least 1.5 s; 10, 1 and 7.5 times the model's time.
    passed = {
        "iterations": {"median": 2, "least": 1, "most": 3, "not_reached": 1},
        "seconds": 1.0,
        "times_faster": pytest.approx(7.5),
    }
    assert summarise(comparisons, ["m"], 3)["models"] == {
        "m": {
            "seconds": 0.2,
            "losses": pytest.approx({"content": 10.5 / 12, "total": 3.5}),
            "passed_by": {"x": passed},
        },
        "peer": {"seconds": 2.0},
    }


# Models that give back the photograph and noise


@pytest.mark.parametrize("best", [200.0, 256.0, 300.0, 411.0])
def test_the_best_painting_size_is_the_least_point_of_a_parabola_over_the_logarithm(best):
    sizes = (128, 181, 256, 362, 512, 640)
    distances = {size: 0.1 + 3 * np.log(size / best) ** 2 for size in sizes}
    assert best_painting_size(distances) == pytest.approx(best)
    fitted = np.polyfit(np.log(sizes), list(distances.values()), 2)
    assert np.log(best_painting_size(distances)) == pytest.approx(-fitted[1] / 2 / fitted[0])


def test_a_painting_size_at_an_end_is_that_of_the_end():
    assert best_painting_size({512: 3.0}) == 512
    assert best_painting_size({512: 3.0, 256: 4.0, 724: 2.5}) == 724
    assert best_painting_size({512: 3.0, 256: 2.0, 724: 2.5}) == 256
    assert best_painting_size({128: 1.0, 256: 1.0, 512: 1.0}) == 128


def test_the_painting_size_of_a_report_is_that_of_the_mean_over_photographs():
    sizes = [{256: 0.3, 362: 0.1, 512: 0.5}, {256: 0.1, 362: 0.2, 512: 0.3}]
    losses = {"content": 1.0, "total": 4.0}
    comparisons = {
        str(n): Comparison(PICTURE, {"m": ModelResult(PICTURE, 1.0, losses, s)}) for n, s in enumerate(sizes)
    }
    found = summarise(comparisons, ["m"], 3)["models"]["m"]
    assert found["painting_sizes"] == pytest.approx({256: 0.2, 362: 0.15, 512: 0.4})
    assert found["painting_size"] == best_painting_size({256: 0.2, 362: 0.15, 512: 0.4})
    assert found["relative_painting_size"] == found["painting_size"] / 4


def test_style_distances_are_the_gram_terms_of_the_style_loss_for_each_size(loss, photograph):
    perceptual_loss, style_targets = loss
    sizes = {256: style_targets, 512: {name: 2 * target for name, target in style_targets.items()}}
    found = compare(photograph, {"m": lambda p: p}, *loss, painting_sizes=sizes, methods=[], starts=[]).models["m"]
    image = to_tensor(photograph)
    assert found.style_distances.keys() == sizes.keys()
    for size, targets in sizes.items():
        terms = perceptual_loss(image, perceptual_loss.content_targets(image, True), targets)
        assert perceptual_loss.sliced_layers == {}  # so that nothing else is in the style loss
        assert found.style_distances[size] == pytest.approx(float(terms["style"]), rel=1e-5)


@pytest.fixture(scope="module")
def loss():
    torch.manual_seed(7)
    network = VGG([[8], [12]]).requires_grad_(False)
    loss = BalancedLoss(network, {"relu2_1": 1.0}, LAYERS, 2.0, 5.0, 1.0)
    painting = torch.rand(1, 3, 40, 30)
    features = network(painting, loss.layers)
    targets = {n: style_target(network, n, features[split_name(n)[1]]) for n in loss.style_target_names}
    return loss, targets


@pytest.fixture(scope="module")
def photograph():
    y, x = np.mgrid[:24, :32]
    return Image.fromarray(np.stack([8 * x, 10 * y, 100 + 3 * x + 2 * y], 2).astype(np.uint8))


def noise_of(image):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def calls():
    return {"model": 0, "progress": []}


@pytest.fixture(scope="module")
def result(loss, photograph, calls):
    """Both models and all optimisers, nine iterations each."""

    def give_back(image):
        calls["model"] += 1
        return image

    def on_progress(name, iterations):
        calls["progress"].append((name, iterations))

    models = {"photograph": give_back, "noise": noise_of}
    return compare(photograph, models, *loss, iterations=9, seed=4, on_progress=on_progress)


def test_model_that_gives_back_the_photograph_has_no_content_loss_and_is_where_the_optimisers_start(result, photograph):
    same = result.models["photograph"]
    assert same.losses["content"] == 0
    assert same.losses["style"] > 0
    np.testing.assert_array_equal(np.asarray(same.image), np.asarray(photograph))
    for method in ("lbfgs", "adam"):
        row = result.optimizers[f"{method} from content"].passes(same.losses["total"] * (1 + 1e-6))
        assert row["iteration"] == 0


def test_losses_of_a_model_are_those_of_its_8_bit_picture(result, loss, photograph):
    picture, content = to_tensor(noise_of(photograph)), to_tensor(photograph)
    perceptual_loss, style_targets = loss
    terms = perceptual_loss(picture, perceptual_loss.content_targets(content), style_targets)
    assert result.models["noise"].losses == pytest.approx({k: v.item() for k, v in terms.items()})
    assert perceptual_losses(*loss, picture, content) == result.models["noise"].losses
    assert result.models["noise"].losses["tv"] > 10 * result.models["photograph"].losses["tv"]


def test_models_are_run_once_to_warm_up_and_then_timed(result, calls):
    assert calls["model"] == 1 + TIMED_RUNS
    assert all(m.seconds >= 0 for m in result.models.values())


def test_every_method_runs_from_every_start_as_optimize_image_does(result, loss, photograph, calls):
    names = ["lbfgs from content", "adam from content", "lbfgs from noise", "adam from noise"]
    assert list(result.optimizers) == names
    assert calls["progress"] == [(name, n) for name in names for n in range(10)]
    content = to_tensor(photograph)
    for name, got in result.optimizers.items():
        method, _, start = name.split()
        begin = content if start == "content" else white_noise(content, 4)
        image, trace = optimize_image(content, *loss, start=begin, method=method, iterations=9)
        assert [row["total"] for row in got.trace] == [row["total"] for row in trace]
        np.testing.assert_array_equal(np.asarray(got.image), np.asarray(to_image(image)))


def test_only_the_methods_and_starts_asked_for_run(loss, photograph):
    got = compare(photograph, {}, *loss, methods=["adam"], starts=["noise"], iterations=1)
    assert list(got.optimizers) == ["adam from noise"]
    assert got.models == {}


def test_the_learning_rate_is_that_of_adam(loss, photograph):
    totals = []
    for rate in (0.01, 0.1):
        found = compare(photograph, {}, *loss, methods=["adam"], starts=["content"], iterations=3, learning_rate=rate)
        (optimizer,) = found.optimizers.values()
        _, trace = optimize_image(to_tensor(photograph), *loss, method="adam", iterations=3, learning_rate=rate)
        totals.append(optimizer.trace[-1]["total"])
        assert totals[-1] == pytest.approx(trace[-1]["total"], rel=1e-4)
    assert totals[0] != pytest.approx(totals[1], rel=1e-3)
