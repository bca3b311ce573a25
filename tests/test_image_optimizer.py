"""Single images: gradients against the paper's closed forms, optimisers against scipy, torch and known solutions."""

import math
from itertools import islice, pairwise

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.optimize import minimize

from nst_fast.assets import VGG16_SLIM
from nst_fast.errors import UserError
from nst_fast.loss.loss_networks import VGG
from nst_fast.loss.perceptual_loss import BalancedLoss, GatysLoss, split_name, style_target
from nst_fast.loss.pretrained import create_loss_network
from nst_fast.loss.style_targets import painting_targets
from nst_fast.loss.tensors import to_image, to_tensor
from nst_fast.reference.image_optimizer import METHODS, adam, lbfgs, optimize_image, optimize_picture, white_noise
from nst_fast.stylizing.images import keep_colours, resize_long_side

LAYER = "relu2_1"
FILTERS = 6  # of that layer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of(loss, painting):
    """Return all of the style targets that a loss needs of a painting (1, 3, H, W)."""
    features = loss.loss_network(painting, loss.layers)
    return {n: style_target(loss.loss_network, n, features[split_name(n)[1]]) for n in loss.style_target_names}


def gatys_loss(content_weight=1.0, style_weight=1.0, painting=(8, 8)):
    """Return a Gatys loss on one layer of a small random VGG in float64, a random painting and its targets."""
    torch.manual_seed(0)
    network = VGG(((4, 4), (FILTERS,))).double().requires_grad_(False)
    loss = GatysLoss(network, {LAYER: 1.0}, {LAYER: 1.0}, content_weight, style_weight, 0.0)
    picture = random(1, 3, *painting, seed=9).sigmoid()
    return loss, picture, targets_of(loss, picture)


def features_of(loss, image):
    return loss.loss_network(image, [LAYER])[LAYER]


def closed_gradient(loss, painting, image, content):
    """Return dL/dF of equations 2 and 6, weighted, for sums A over as many positions M as F has."""
    f, p, a = (features_of(loss, x)[0].flatten(1) for x in (image, content, painting))
    m = f.shape[1]
    content_part = f - p
    style_part = (f.T @ (f @ f.T - a @ a.T * (m / a.shape[1]))).T / (FILTERS**2 * m**2)
    sum_of_parts = loss.content_weight * content_part + loss.style_weight * style_part
    return torch.where(f > 0, sum_of_parts, 0.0).reshape(features_of(loss, image).shape)


# Gradients


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 30.0)], ids=["content", "style", "both"])
@pytest.mark.parametrize("painting", [(8, 8), (12, 20)], ids=["as many positions", "more positions"])
def test_gradient_at_the_features_is_equation_2_and_equation_6(weights, painting):
    loss, picture, style = gatys_loss(*weights, painting)
    image, content = (random(1, 3, 8, 8, seed=s).sigmoid() for s in (1, 2))
    taps = []
    # The rectification may work in place: it gets a copy.
    loss.loss_network.convolutions["2_1"].register_forward_hook(lambda *call: taps.append(call[-1]) or call[-1].clone())
    expected = closed_gradient(loss, picture, image, content)
    targets = loss.content_targets(content)
    total = loss(image.requires_grad_(), targets, style)["total"]
    (gradient,) = torch.autograd.grad(total, taps[-1])  # before the rectification: 0 where F is 0
    assert 0 < (expected == 0).sum() < expected.numel()
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["content", "style"])
def test_closed_gradient_at_every_pixel_equals_finite_differences(weights):
    loss, picture, style = gatys_loss(*weights)
    image, content = (random(1, 3, 6, 6, seed=s).sigmoid() for s in (1, 2))
    targets, step = loss.content_targets(content), 1e-6
    differences = torch.zeros_like(image)
    for i in range(image.numel()):
        nudge = torch.zeros(image.numel(), dtype=image.dtype).index_fill_(0, torch.tensor(i), step).view_as(image)
        ahead, behind = (loss(image + s * nudge, targets, style)["total"] for s in (1, -1))
        differences.view(-1)[i] = (ahead - behind) / (2 * step)
    at_features = closed_gradient(loss, picture, image, content)
    image.requires_grad_()
    (pulled_back,) = torch.autograd.grad(features_of(loss, image), image, at_features)
    scale = differences.abs().max().item()
    torch.testing.assert_close(pulled_back, differences, rtol=0, atol=1e-6 * scale)


def test_first_step_goes_down_the_closed_gradient():
    loss, picture, style = gatys_loss(1.0, 10.0)
    start, content = (0.4 + 0.2 * random(1, 3, 8, 8, seed=s).sigmoid() for s in (1, 2))
    at_features = closed_gradient(loss, picture, start, content)
    pixels = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(features_of(loss, pixels), pixels, at_features)
    image, trace = optimize_image(content, loss, style, start=start, iterations=1)
    assert trace[1]["total"] < trace[0]["total"]
    moved = start - image
    torch.testing.assert_close(moved / moved.abs().max(), gradient / gradient.abs().max(), rtol=0, atol=1e-9)


# L-BFGS on problems with known solutions


def quadratic(matrix, target):
    """Return ½ (x − target)ᵀ matrix (x − target) as an objective."""

    def objective(pixels):
        difference = pixels.double().flatten() - target
        slope = matrix @ difference
        return {"total": float(difference @ slope) / 2}, slope.to(pixels.dtype).reshape(pixels.shape)

    return objective


def coupled_problem(seed):
    """Return a matrix that couples 48 pixels, its unbounded optimum, partly beyond the bounds, and a start."""
    root = random(48, 48, seed=seed)
    matrix = root @ root.T / 48 + 0.01 * torch.eye(48, dtype=torch.float64)
    return matrix, 0.5 + 0.8 * random(48, seed=100 + seed), random(1, 3, 4, 4, seed=200 + seed).sigmoid()


def assert_never_rises_and_stays_within_bounds(iterates):
    totals = [losses["total"] for _, losses in iterates]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(totals))
    assert all(pixels.min() >= 0 and pixels.max() <= 1 for pixels, _ in iterates)


def test_lbfgs_solves_a_diagonal_problem_by_clipping():
    target, start = 0.5 + random(48, seed=1), random(1, 3, 4, 4, seed=2).sigmoid()
    curvatures = torch.logspace(-1, 1, 48, dtype=torch.float64)
    iterates = list(islice(lbfgs(quadratic(curvatures.diag(), target), start), 100))
    assert ((target < 0) | (target > 1)).sum() > 10
    torch.testing.assert_close(iterates[-1][0].flatten(), target.clamp(0, 1), rtol=0, atol=1e-6)
    assert_never_rises_and_stays_within_bounds(iterates)


@pytest.mark.parametrize("seed", range(5))
def test_lbfgs_solves_a_coupled_problem_as_scipy_does(seed):
    matrix, target, start = coupled_problem(seed)
    objective = quadratic(matrix, target)

    def flat(x):
        losses, slope = objective(torch.from_numpy(x))
        return losses["total"], slope.numpy()

    options = {"ftol": 1e-16, "gtol": 1e-10, "maxiter": 5000}
    exact = minimize(flat, start.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 48, options=options)
    assert 5 < np.isin(exact.x, (0, 1)).sum() < 43
    iterates = list(islice(lbfgs(objective, start), 100))
    np.testing.assert_allclose(iterates[-1][0].flatten().numpy(), exact.x, atol=1e-5)
    assert_never_rises_and_stays_within_bounds(iterates)


def test_lbfgs_stops_in_a_corner():
    target = torch.where(random(48, seed=1) > 0, 1.7, -0.7).double()
    iterates = list(islice(lbfgs(quadratic(torch.eye(48).double(), target), torch.full((1, 3, 4, 4), 0.4)), 100))
    assert len(iterates) < 100
    assert torch.equal(iterates[-1][0].flatten().double(), target.clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lbfgs_stops_by_itself_at_an_optimum_between_the_bounds(dtype):
    for seed in range(10):
        matrix, target, start = coupled_problem(seed)
        iterates = list(islice(lbfgs(quadratic(matrix, target), start.to(dtype)), 1000))
        assert len(iterates) < 1000, f"still going on at seed {seed}"


def test_lbfgs_that_starts_at_the_optimum_yields_the_start_alone():
    target = 0.5 + 0.1 * random(48)
    (only,) = lbfgs(quadratic(torch.eye(48).double(), target), target.reshape(1, 3, 4, 4))
    assert torch.equal(only[0].flatten(), target)


# Adam


def test_adam_is_torchs_with_half_a_cosine_and_clamping():
    matrix, target, start = coupled_problem(0)
    objective, steps = quadratic(matrix, target), 20
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], betas=(0.9, 0.99))
    iterates = list(islice(adam(objective, start.clone(), 0.06, steps), steps + 1))
    for step, (pixels, losses) in enumerate(iterates):
        torch.testing.assert_close(pixels, x.detach(), rtol=0, atol=1e-12)
        expected, x.grad = objective(x.detach())
        assert losses["total"] == pytest.approx(expected["total"])
        optimizer.param_groups[0]["lr"] = 0.06 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
        x.data.clamp_(0, 1)
    assert (iterates[-1][0] == 0).any()
    assert (iterates[-1][0] == 1).any()


# The shipped loss


@pytest.fixture(scope="module")
def picture_loss():
    """Return a loss on the shipped network, the targets of a picture, and a photograph of 48 pixels."""
    network = create_loss_network("vgg16_slim", weights=VGG16_SLIM)
    loss = BalancedLoss(network, {"relu2_2": 1.0}, {"relu1_2": 0.5, "relu2_2": 0.5}, 1.0, 2.0, 3.0)
    style = painting_targets(Image.fromarray(skimage.data.astronaut()), network, loss.style_target_names, 128)
    return loss, style, to_tensor(Image.fromarray(skimage.data.coffee()).resize((48, 48)))


@pytest.mark.parametrize("start", ["content", "noise"])
def test_lbfgs_keeps_up_with_scipy_on_the_shipped_loss(picture_loss, start):
    loss, style, content = picture_loss
    start = content if start == "content" else white_noise(content, 0)
    targets = loss.content_targets(content)

    def flat(x):
        pixels = torch.from_numpy(x).float().reshape(content.shape).requires_grad_()
        total = loss(pixels, targets, style)["total"]
        return total.item(), torch.autograd.grad(total, pixels)[0].double().numpy().ravel()

    options = {"maxiter": 30, "maxcor": 10, "ftol": 0, "gtol": 0}
    bounds = [(0, 1)] * content.numel()
    theirs = minimize(flat, start.double().numpy().ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    images = []
    _, trace = optimize_image(
        content, loss, style, start=start, iterations=30, on_iteration=lambda i: images.append((i.image, i.losses))
    )
    assert theirs.nit == 30
    assert trace[30]["total"] < 1.05 * theirs.fun
    assert trace[30]["total"] < trace[20]["total"] < trace[10]["total"] < trace[0]["total"] / 2
    assert_never_rises_and_stays_within_bounds(images)


@pytest.mark.slow  # hundreds of iterations
def test_adam_ends_near_lbfgs_on_the_shipped_loss(picture_loss):
    loss, style, content = picture_loss
    traces = {method: optimize_image(content, loss, style, method=method, iterations=200)[1] for method in METHODS}
    lowest = {method: min(row["total"] for row in trace) for method, trace in traces.items()}
    assert lowest["adam"] == pytest.approx(lowest["lbfgs"], rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_runs_are_identical_bit_for_bit(picture_loss, method):
    loss, style, content = picture_loss
    options = {"start": white_noise(content, 3), "method": method, "iterations": 8}
    runs = [optimize_image(content, loss, style, **options) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    first, second = ([{k: v for k, v in row.items() if k != "seconds"} for row in trace] for _, trace in runs)
    assert first == second


# optimize_image


def test_trace_counts_iterations_and_seconds_and_holds_the_terms_of_every_iterate():
    loss, _, style = gatys_loss(2.0, 3.0)
    content, seen = random(1, 3, 8, 8).sigmoid(), []
    _, trace = optimize_image(
        content, loss, style, iterations=5, start=white_noise(content, 0).double(), on_iteration=seen.append
    )
    targets = loss.content_targets(content)
    assert [row["iteration"] for row in trace] == [i.number for i in seen] == list(range(6))
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(trace))
    for row, iteration in zip(trace, seen, strict=True):
        terms = loss(iteration.image, targets, style)
        for name in ("content", "style", "tv", "total"):
            assert row[name] == iteration.losses[name] == pytest.approx(terms[name].item(), rel=1e-9)


def test_best_image_is_returned_though_the_last_is_worse():
    loss, _, style = gatys_loss()
    content = random(1, 3, 8, 8).sigmoid()
    image, trace = optimize_image(
        content,
        loss,
        style,
        start=white_noise(content, 0).double(),
        method="adam",
        learning_rate=0.5,
        iterations=1000,
        on_iteration=lambda i: i.number == 6,
    )
    totals = [row["total"] for row in trace]
    assert len(totals) == 7  # where the callback said stop
    assert min(totals) < totals[-1]
    recomputed = loss(image, loss.content_targets(content), style)["total"].item()
    assert recomputed == pytest.approx(min(totals), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_no_iterations_give_the_start_clipped_and_leave_it_as_it_was(method):
    loss, _, style = gatys_loss()
    content, start = random(1, 3, 8, 8).sigmoid(), 2 * random(1, 3, 8, 8, seed=5)
    before = start.clone()
    image, trace = optimize_image(content, loss, style, start=start, method=method, iterations=0)
    assert torch.equal(image, before.clamp(0, 1))
    assert torch.equal(start, before)
    assert [row["iteration"] for row in trace] == [0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "sgd"}, "'sgd'.*lbfgs, adam"),
        ({"start": torch.zeros(1, 3, 8, 9)}, r"\(1, 3, 8, 9\).*\(1, 3, 8, 8\)"),
        ({"start": torch.full((1, 3, 8, 8), float("nan")).double()}, "nan at iteration 0"),
    ],
    ids=["method", "shape", "start that is not finite"],
)
def test_mistakes_are_user_errors_in_one_line(options, words):
    loss, _, style = gatys_loss()
    with pytest.raises(UserError, match=words) as caught:
        optimize_image(random(1, 3, 8, 8).sigmoid(), loss, style, **{"iterations": 3, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_user_error_in_one_line(method, weight):
    loss, _, style = gatys_loss(content_weight=weight)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at iteration 0") as caught:
        optimize_image(random(1, 3, 8, 8).sigmoid(), loss, style, method=method, iterations=3)
    assert "\n" not in str(caught.value)


def test_style_targets_that_lack_one_are_a_user_error_in_one_line():
    loss, _, style = gatys_loss()
    with pytest.raises(UserError, match=f"lack energy:{LAYER}") as caught:
        optimize_image(random(1, 3, 8, 8).sigmoid(), loss, {LAYER: style[LAYER]}, iterations=3)
    assert "\n" not in str(caught.value)


# optimize_picture: coarse to fine


@pytest.fixture
def coarse_to_fine():
    """Return a loss in float32, a photograph of 60×40 pixels and targets of unlike paintings for three scales."""
    loss, _, _ = gatys_loss(1.0, 10.0)
    loss = loss.float()
    photograph = Image.fromarray(skimage.data.coffee()).resize((60, 40))
    paintings = {long_side: random(1, 3, 20, 24, seed=long_side).sigmoid().float() for long_side in (12, 24, 48)}
    return loss, photograph, {long_side: targets_of(loss, painting) for long_side, painting in paintings.items()}


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("order", [(12, 24, 48), (48, 12, 24)], ids=["rising", "as given"])
@pytest.mark.parametrize("method", METHODS)
def test_each_scale_goes_on_from_the_one_before(coarse_to_fine, order, method):
    loss, photograph, scales = coarse_to_fine
    seen, options = [], {"method": method, "iterations": 3, "learning_rate": 0.02}
    image, trace = optimize_picture(
        photograph, loss, {s: scales[s] for s in order}, on_iteration=lambda s, i: seen.append((s, i)), **options
    )
    start, rows, iterates = None, [], []
    for long_side in order:  # a loop of its own: Pillow's resizing, torch's cubic
        size = (long_side, long_side * 2 // 3)
        content = to_tensor(photograph.resize(size, Image.Resampling.LANCZOS))
        if start is not None:
            start = torch.nn.functional.interpolate(start, size[::-1], mode="bicubic", align_corners=False)
        start, own = optimize_image(content, loss, scales[long_side], start=start, **options)
        rows += [{"size": long_side, **row} for row in own]
        iterates += [(long_side, row["iteration"]) for row in own]
    assert torch.equal(image, start)
    assert image.shape == (1, 3, order[-1] * 2 // 3, order[-1])
    assert image.min() >= 0
    assert image.max() <= 1
    assert without_seconds(trace) == without_seconds(rows)
    assert [(s, i.number) for s, i in seen] == iterates == [(s, n) for s in order for n in range(4)]
    for (scale, iteration), row in zip(seen, trace, strict=True):
        assert max(iteration.image.shape) == scale == row["size"]
        assert {k: row[k] for k in iteration.losses} == iteration.losses
    for a, b in pairwise(trace):
        assert a["seconds"] <= b["seconds"] or a["size"] != b["size"]


def test_of_one_scale_it_is_optimize_image(coarse_to_fine):
    loss, photograph, scales = coarse_to_fine
    content = to_tensor(photograph.resize((24, 16), Image.Resampling.LANCZOS))
    expected, rows = optimize_image(content, loss, scales[24], iterations=4)
    image, trace = optimize_picture(photograph, loss, {24: scales[24]}, iterations=4)
    assert torch.equal(image, expected)
    assert without_seconds(trace) == [{"size": 24, **row} for row in without_seconds(rows)]


def test_it_starts_from_the_photograph_from_noise_or_from_a_picture_and_only_at_the_first_scale(coarse_to_fine):
    loss, photograph, scales = coarse_to_fine
    other = Image.fromarray(skimage.data.chelsea()).resize((90, 70))
    content = to_tensor(photograph.resize((12, 8), Image.Resampling.LANCZOS))
    starts = {
        "content": ("content", content),
        "noise": ("noise", white_noise(content, 5)),
        "picture": (other, to_tensor(other.resize((12, 8), Image.Resampling.LANCZOS))),
    }
    assert not torch.equal(white_noise(content, 5), white_noise(content, 0))
    images = {}
    for name, (start, expected) in starts.items():
        seen = []
        options = {"start": start, "seed": 5, "iterations": 2, "on_iteration": lambda s, i, to=seen: to.append((s, i))}
        images[name], _ = optimize_picture(photograph, loss, {12: scales[12], 24: scales[24]}, **options)
        firsts = [i.image for _, i in seen if i.number == 0]
        assert torch.equal(firsts[0], expected), name
        last_coarse = [i.image for s, i in seen if s == 12][-1]
        larger = torch.nn.functional.interpolate(last_coarse, (16, 24), mode="bicubic", align_corners=False)
        torch.testing.assert_close(firsts[1], larger.clamp(0, 1), rtol=0, atol=1e-6)
    assert not torch.equal(images["content"], images["noise"])
    assert not torch.equal(images["content"], images["picture"])


def test_noise_belongs_to_its_seed(coarse_to_fine):
    loss, photograph, scales = coarse_to_fine
    options = {"start": "noise", "iterations": 2}
    first, again, other = (
        optimize_picture(photograph, loss, {12: scales[12], 24: scales[24]}, seed=seed, **options)[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("scale", "number"), [(12, 0), (12, 2), (24, 0), (24, 1), (48, 3)])
def test_stopping_ends_it_all_with_the_image_of_that_scale(coarse_to_fine, scale, number):
    loss, photograph, scales = coarse_to_fine
    stop = lambda s, i: (s, i.number) == (scale, number)  # noqa: E731
    image, trace = optimize_picture(photograph, loss, scales, iterations=3, on_iteration=stop)
    done = [(s, n) for s in (12, 24, 48) for n in range(4)]
    done = done[: done.index((scale, number)) + 1]
    assert [(row["size"], row["iteration"]) for row in trace] == done
    assert max(image.shape) == scale
    content = to_tensor(photograph.resize((scale, scale * 2 // 3), Image.Resampling.LANCZOS))
    total = loss(image, loss.content_targets(content), scales[scale])["total"].item()
    assert total == pytest.approx(min(row["total"] for row in trace if row["size"] == scale), rel=1e-5)


def test_a_callback_that_returns_nothing_stops_nothing(coarse_to_fine):
    loss, photograph, scales = coarse_to_fine
    _, trace = optimize_picture(photograph, loss, scales, iterations=1, on_iteration=lambda *_: None)
    _, silent = optimize_picture(photograph, loss, scales, iterations=1)
    assert [row["size"] for row in trace] == [row["size"] for row in silent] == [12, 12, 24, 24, 48, 48]


def test_mistakes_at_any_scale_are_user_errors_in_one_line(coarse_to_fine):
    loss, photograph, scales = coarse_to_fine
    for wrong, words in (
        ({"method": "sgd"}, "'sgd'.*lbfgs, adam"),
        ({"iterations": -1}, "iterations is -1"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            optimize_picture(photograph, loss, scales, **wrong)
        assert "\n" not in str(caught.value)
    for poor in ({12: {}}, {12: scales[12], 24: {}}):
        with pytest.raises(UserError, match=f"lack {LAYER}"):
            optimize_picture(photograph, loss, poor, iterations=1)


# White noise


def test_white_noise_is_faint_and_belongs_to_its_seed():
    like = torch.empty(2, 3, 50, 60)
    noise = white_noise(like, 1)
    assert noise.shape == like.shape
    assert torch.equal(noise, white_noise(like, 1))
    assert not torch.equal(noise, white_noise(like, 2))
    steps = 255 * (noise - 0.5)
    assert abs(float(steps.mean())) < 0.05
    assert float(steps.std()) == pytest.approx(1, abs=0.05)
    beside = steps[..., 1:] * steps[..., :-1]
    assert abs(float(beside.mean())) < 0.05  # white: neighbours know nothing of each other


# Pictures


def test_keep_colours_takes_luminance_of_one_and_chroma_of_the_other():
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 156, (2, 30, 40, 3), dtype=np.uint8)  # mild: no colour leaves the gamut
    got = np.asarray(keep_colours(*(Image.fromarray(p) for p in pixels)), float)
    # ITU-R BT.601.
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    chroma = pixels[1].astype(float)[..., [2, 0]] - luminance[1][..., None]  # B − Y, R − Y
    blue, red = luminance[0] + chroma[..., 0], luminance[0] + chroma[..., 1]
    green = (luminance[0] - 0.299 * red - 0.114 * blue) / 0.587
    np.testing.assert_allclose(got, np.stack([red, green, blue], 2), atol=4)  # 8-bit chroma


def test_keep_colours_of_a_picture_with_its_own_colours_changes_nothing_much():
    cat = Image.fromarray(skimage.data.chelsea())
    difference = np.abs(np.asarray(keep_colours(cat, cat), int) - np.asarray(cat))
    assert difference.max() <= 4


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 1000), (5000, 7), (64, 64)])
@pytest.mark.parametrize("long_side", [16, 37, 700])
def test_resizing_sets_the_long_side_and_keeps_proportions(size, long_side):
    got = resize_long_side(Image.new("L", size), long_side).size
    assert max(got) == long_side
    for before, after in zip(size, got, strict=True):
        assert after == 1 or abs(after * max(size) - before * long_side) <= max(size) / 2


def test_to_image_rounds_to_the_nearest_step_and_clips():
    steps = torch.arange(256.0).reshape(1, 1, 16, 16)
    for shift in (-0.49, 0.0, 0.49):
        picture = to_image(((steps + shift) / 255).expand(1, 3, -1, -1))
        assert (picture.mode, picture.size) == ("RGB", (16, 16))
        np.testing.assert_array_equal(np.asarray(picture)[..., 1], np.arange(256).reshape(16, 16))
    beyond = torch.tensor([-3.0, 7.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    np.testing.assert_array_equal(np.asarray(to_image(beyond)), [[[0] * 3, [255] * 3]])


def test_picture_to_tensor_and_back_is_the_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    tensor = to_tensor(Image.fromarray(pixels))
    assert tensor[0, 2, 3, 4].item() == pytest.approx(pixels[3, 4, 2] / 255)
    np.testing.assert_array_equal(np.asarray(to_image(tensor)), pixels)
