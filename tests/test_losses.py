"""Loss terms against hand-written loops, the closed forms of Gatys et al. and the formulas of pytorch/examples."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from nst_fast.commands.configuration import load_config
from nst_fast.commands.perceptual_loss import create_perceptual_loss
from nst_fast.errors import UserError
from nst_fast.loss.loss_networks import VGG, NormalisedLossNetwork, SlimVGG
from nst_fast.loss.perceptual_loss import (
    CONTENT_FLOOR,
    ENERGY,
    GRAM,
    LOSSES,
    SLICED_FLOOR,
    BalancedLoss,
    GatysLoss,
    JohnsonLoss,
    blend,
    gather,
    split_name,
    style_target,
)
from nst_fast.loss.terms import (
    QUANTILES,
    SLICES,
    SLICES_A_PICTURE,
    WEAVE_FLOOR,
    content_representation,
    gram_matrix,
    layer_gram_matrix,
    pixel_grid,
    pixel_weave,
    saturated_share,
    total_variation,
)
from nst_fast.reference.comparison import perceptual_losses
from nst_fast.reference.image_optimizer import optimize_image

CONTENT = {"relu2_1": 1.0}
STYLE = {"relu1_1": 0.25, "relu2_1": 0.5, "conv3_1": 2.0}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_loss(kind=GatysLoss, weights=(1.0, 1.0, 1.0), content=CONTENT, style=STYLE):
    """Return a loss on a small random VGG in float64; the seed keeps the weights the same from call to call."""
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,), (5,))).double().requires_grad_(False)
    return kind(network, content, style, *weights)


def targets_of(loss, painting):
    """Return all of the style targets that a loss needs of a painting (1, 3, H, W)."""
    features = loss.loss_network(painting, loss.layers)
    return {n: style_target(loss.loss_network, n, features[split_name(n)[1]]) for n in loss.style_target_names}


def loss_with_style(kind=GatysLoss, weights=(1.0, 1.0, 1.0), **layers):
    """Return a loss, a random painting and the painting's targets."""
    loss, painting = make_loss(kind, weights, **layers), random(1, 3, 20, 24, seed=9).sigmoid()
    return loss, painting, targets_of(loss, painting)


# Gram matrices


def test_gram_matrix_equals_a_triple_loop():
    features = random(2, 3, 4, 5)
    expected = torch.zeros(2, 3, 3, dtype=torch.float64)
    for n in range(2):
        for i in range(3):
            for j in range(3):
                for row in range(4):
                    for column in range(5):
                        expected[n, i, j] += features[n, i, row, column] * features[n, j, row, column] / 20
    result = gram_matrix(features)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


def test_gram_matrix_of_tiled_features_is_that_of_one_tile():
    features = random(1, 3, 4, 5)
    torch.testing.assert_close(gram_matrix(features.tile(1, 1, 2, 3)), gram_matrix(features))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_gram_matrix_is_float32_of_half_precision_features(dtype, autocast):
    features = (100 * random(1, 4, 30, 30)).to(dtype)  # sums of squares exceed float16's 65504
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = gram_matrix(features)
    exact = features.double()[0].flatten(1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[0].double(), exact @ exact.T / 900, rtol=1e-5, atol=1e-2)


def test_gram_matrix_of_float32_features_stays_exact_inside_autocast():
    features = random(1, 4, 30, 30, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = gram_matrix(features)
    assert result.dtype == torch.float32
    exact = features.double()[0].flatten(1)
    torch.testing.assert_close(result[0].double(), exact @ exact.T / 900, rtol=1e-5, atol=1e-6)


# Total variation


def test_total_variation_of_a_checkerboard():
    board = (torch.arange(6)[:, None] + torch.arange(7)) % 2
    image = (0.5 * board).expand(2, 3, 6, 7)
    # Every neighbour differs by a half, across and down: two means of a quarter.
    torch.testing.assert_close(total_variation(image), torch.tensor([0.5, 0.5]))


def test_total_variation_of_stripes_counts_one_direction():
    stripes = (torch.arange(7) % 2).float().expand(1, 3, 6, 7)
    torch.testing.assert_close(total_variation(stripes), torch.ones(1))
    torch.testing.assert_close(total_variation(stripes.mT), torch.ones(1))


def test_total_variation_equals_a_loop():
    image = random(2, 3, 4, 5)
    for n in range(2):
        across, down = [], []
        for c in range(3):
            across += [(image[n, c, y, x + 1] - image[n, c, y, x]) ** 2 for y in range(4) for x in range(4)]
            down += [(image[n, c, y + 1, x] - image[n, c, y, x]) ** 2 for y in range(3) for x in range(5)]
        expected = sum(across) / len(across) + sum(down) / len(down)
        torch.testing.assert_close(total_variation(image)[n], expected)


def test_total_variation_of_pictures_without_neighbours():
    assert total_variation(torch.rand(2, 3, 1, 1)).tolist() == [0.0, 0.0]
    row = torch.tensor([0.0, 1.0, 0.0, 3.0]).expand(1, 3, 1, 4)  # squares 1, 1, 9
    torch.testing.assert_close(total_variation(row), torch.tensor([11 / 3]))
    torch.testing.assert_close(total_variation(row.mT), torch.tensor([11 / 3]))


def test_total_variation_of_a_flat_picture_has_a_finite_gradient():
    image = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    total_variation(image).sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))


# Gatys et al. 2016


def test_gatys_content_term_is_equation_1():
    features, target = random(2, 3, 4, 5, seed=1), random(2, 3, 4, 5, seed=2)
    result = make_loss().content_term(features, target, torch.ones(1))
    for n in range(2):
        expected = 0.0
        for i in range(3):
            for j in range(20):
                f, p = features[n, i].flatten()[j], target[n, i].flatten()[j]
                expected += 0.5 * (f - p) ** 2
        torch.testing.assert_close(result[n], expected)


def test_gatys_style_term_is_equation_4_where_both_have_equally_many_positions():
    features, painting = random(2, 3, 4, 5, seed=1).relu(), random(1, 3, 5, 4, seed=2).relu()
    n_filters, positions = 3, 20
    result = make_loss().style_term(gram_matrix(features), gram_matrix(painting))
    a = painting[0].flatten(1)
    for n in range(2):
        f, expected = features[n].flatten(1), 0.0
        for i in range(n_filters):
            for j in range(n_filters):
                gram_ij = sum(f[i, k] * f[j, k] for k in range(positions))  # equation 3, not normalised
                target_ij = sum(a[i, k] * a[j, k] for k in range(positions))
                expected += (gram_ij - target_ij) ** 2 / (4 * n_filters**2 * positions**2)
        torch.testing.assert_close(result[n], expected)


def test_gradient_of_gatys_content_term_is_equation_2():
    x = random(1, 3, 4, 5, seed=1).requires_grad_()
    target = random(1, 3, 4, 5, seed=2).relu()
    features = x.relu()
    make_loss().content_term(features, target, torch.ones(1)).sum().backward()
    expected = torch.where(features > 0, features - target, 0.0)
    assert (features == 0).any()
    torch.testing.assert_close(x.grad, expected)


def test_gradient_of_gatys_style_term_is_equation_6():
    x = random(1, 3, 4, 5, seed=1).requires_grad_()
    painting = random(1, 3, 4, 5, seed=2).relu()
    features = x.relu()
    make_loss().style_term(gram_matrix(features), gram_matrix(painting)).sum().backward()
    f, a = features[0].flatten(1).detach(), painting[0].flatten(1)
    n_filters, positions = f.shape
    closed = (f.T @ (f @ f.T - a @ a.T)).T / (n_filters**2 * positions**2)
    expected = torch.where(f > 0, closed, 0.0).reshape(x.shape)
    torch.testing.assert_close(x.grad, expected)


# Johnson et al. 2016


def test_johnson_content_term_is_the_mean_squared_error():
    features, target = random(2, 3, 4, 5, seed=1), random(2, 3, 4, 5, seed=2)
    result = make_loss(JohnsonLoss).content_term(features, target, torch.ones(1))
    torch.testing.assert_close(result.mean(), F.mse_loss(features, target))


def test_johnson_style_term_is_that_of_pytorch_examples():
    features, painting = random(2, 3, 4, 5, seed=1), random(1, 3, 7, 6, seed=2)

    def gram(y):  # pytorch/examples, fast_neural_style: over C H W
        b, c, h, w = y.shape
        flat = y.view(b, c, h * w)
        return flat.bmm(flat.transpose(1, 2)) / (c * h * w)

    result = make_loss(JohnsonLoss).style_term(gram_matrix(features), gram_matrix(painting))
    expected = F.mse_loss(gram(features), gram(painting).expand(2, -1, -1))
    torch.testing.assert_close(result.mean(), expected)


# A narrow network's taps and metric


# experiment=johnson2016 as a whole, against the formulas of pytorch/examples' fast_neural_style on torchvision's VGG-16

EXAMPLES_TAPS = {3: "relu1_2", 8: "relu2_2", 15: "relu3_3", 22: "relu4_3"}  # places in torchvision's sequence


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """Return torchvision's VGG-16 with random weights that float16 holds, and a file of them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        features = torchvision.models.vgg16().features
    features = features.to_empty(device="cpu").eval().requires_grad_(False)
    for name, parameter in features.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(parameter, -0.1, 0.1)
        else:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        parameter.copy_(parameter.half())
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.pth"
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, path)
    yield features, path
    path.unlink()


def examples_loss(features, stylized, photographs, painting):
    """Return {term: unweighted} of pictures (N, 3, H, W) in [0, 255], the painting's (1, 3, H, W)."""

    def tapped(pictures):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x, found = (pictures / 255 - mean[:, None, None]) / std[:, None, None], {}
        for place, layer in enumerate(features[: max(EXAMPLES_TAPS) + 1]):
            x = layer(x.clone())  # torchvision rectifies in place
            if place in EXAMPLES_TAPS:
                found[EXAMPLES_TAPS[place]] = x
        return found

    def gram(x):
        return torch.einsum("nchw,ndhw->ncd", x, x) / (x.shape[1] * x.shape[2] * x.shape[3])

    ours, theirs, painted = tapped(stylized), tapped(photographs), tapped(painting)
    terms = {name: F.mse_loss(gram(x), gram(painted[name]).expand(len(x), -1, -1)) for name, x in ours.items()}
    return terms | {"content": F.mse_loss(ours["relu2_2"], theirs["relu2_2"])}


def relative_difference(result, expected):
    return float(((result - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("seed", range(2))
def test_every_term_of_johnson2016_is_that_of_pytorch_examples(vgg16, seed):
    """The reading in float64: in float32 its own gradient was 7e-4 from that on one processor, ours 2e-6."""
    features, path = vgg16
    cfg = load_config("train", ["style=starry_night", "experiment=johnson2016", f"loss_network.weights={path}"])
    loss, features = create_perceptual_loss(cfg), copy.deepcopy(features).double()
    shapes = {"stylized": (2, 3, 48, 64), "photographs": (2, 3, 48, 64), "painting": (1, 3, 80, 56)}
    given = {
        name: random(*shape, seed=10 * seed + n, dtype=torch.float32).sigmoid()
        for n, (name, shape) in enumerate(shapes.items())
    }
    exact = {name: picture.double() for name, picture in given.items()}
    exact["stylized"].requires_grad_(True)
    expected = examples_loss(features, **{name: 255 * picture for name, picture in exact.items()})
    style = sum(expected[layer] for layer in EXAMPLES_TAPS.values())
    total = 1e5 * expected["content"] + 1e10 * style
    (gradient,) = torch.autograd.grad(total, exact["stylized"])

    for dtype in (torch.float32, torch.float64):
        loss, pictures = loss.to(dtype), {name: picture.to(dtype) for name, picture in given.items()}
        pictures["stylized"].requires_grad_(True)
        style_targets = targets_of(loss, pictures["painting"])
        content_targets = loss.content_targets(pictures["photographs"])
        result = loss(pictures["stylized"], content_targets, style_targets)
        assert relative_difference(result["content"], expected["content"]) < 1e-5, dtype
        assert relative_difference(result["style"], style) < 1e-5, dtype
        assert relative_difference(result["total"], total) < 1e-5, dtype
        (ours,) = torch.autograd.grad(result["total"], pictures["stylized"])
        assert relative_difference(ours, gradient) < 1e-5, dtype
        for layer in EXAMPLES_TAPS.values():
            alone = JohnsonLoss(loss.loss_network, {"relu2_2": 1.0}, {layer: 1.0}, 0.0, 1.0, 0.0)
            term = alone(pictures["stylized"], content_targets, style_targets)["style"]
            assert relative_difference(term, expected[layer]) < 1e-5, (layer, dtype)


@pytest.mark.parametrize("kind", LOSSES.values())
def test_the_style_of_a_picture_among_others_is_that_of_the_mixed_gram_matrices_over_its_share(kind):
    loss, _, targets = loss_with_style(kind)
    painted, content = random(2, 3, 16, 20, seed=1).sigmoid(), random(2, 3, 16, 20, seed=2).sigmoid()
    grams = {n: gram_matrix(f) for n, f in loss.loss_network(painted, list(loss.style_layers)).items()}
    means = {layer: random(*gram.shape, seed=3) for layer, gram in grams.items()}
    got = loss.each(painted, loss.content_targets(content), targets, means=means, own=0.3)
    expected = torch.zeros(2, dtype=torch.float64)
    for layer, weight in loss.style_layers.items():
        for n in range(2):
            mixed = 0.3 * grams[layer][n : n + 1] + 0.7 * means[layer][n : n + 1]
            expected[n] += weight / 0.3**2 * loss.style_term(mixed, targets[layer])[0]
        torch.testing.assert_close(got[GRAM + layer], grams[layer])
    torch.testing.assert_close(got["style"], expected)


@pytest.mark.parametrize("kind", LOSSES.values())
def test_a_picture_among_perfect_ones_counts_as_it_does_alone(kind):
    loss, _, targets = loss_with_style(kind)
    painted, content = random(1, 3, 16, 20, seed=1).sigmoid(), random(1, 3, 16, 20, seed=2).sigmoid()
    perfect = {layer: targets[layer] for layer in loss.style_layers}
    among = loss.each(painted, loss.content_targets(content), targets, means=perfect, own=0.1)
    alone = loss.each(painted, loss.content_targets(content), targets)
    assert among["total"].item() == pytest.approx(alone["total"].item(), rel=1e-9)


@pytest.mark.parametrize("kind", [GatysLoss, JohnsonLoss, BalancedLoss])
def test_loss_on_narrow_taps_is_that_on_the_estimates_which_they_stand_for(kind):
    torch.manual_seed(0)
    narrow = SlimVGG(((4, 4), (6,)), {"relu1_1": 24, "relu2_1": 20}).requires_grad_(False)
    narrow.set_metrics()
    picture, content, painting = (random(1, 3, 16, 20, seed=s, dtype=torch.float32).sigmoid() for s in (1, 2, 3))
    loss = kind(narrow, {"relu2_1": 1.0}, {"relu1_1": 0.5, "relu2_1": 0.5}, 1.0, 1.0, 0.0)
    seen, photograph, painted = (narrow.estimates(x, loss.layers) for x in (picture, content, painting))
    targets = {layer: gram_matrix(f) for layer, f in painted.items()}
    result = loss(picture, loss.content_targets(content), targets_of(loss, painting))
    energy = targets["relu2_1"].diagonal(dim1=1, dim2=2).sum(1)  # in `forward` a mean over 6 channels, here over 20
    expected = loss.content_term(seen["relu2_1"], photograph["relu2_1"], energy / 20)
    torch.testing.assert_close(result["content"], expected[0], rtol=1e-3, atol=0)
    style = sum(0.5 * loss.style_term(gram_matrix(seen[layer]), targets[layer])[0] for layer in loss.layers)
    torch.testing.assert_close(result["style"], style, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", LOSSES.values())
@pytest.mark.parametrize("narrow", [False, True])
def test_loss_at_an_octave_is_that_of_smaller_pictures(kind, narrow):
    torch.manual_seed(0)
    network = SlimVGG(((4, 4), (6,)), {"relu1_1": 24, "relu2_1": 20}) if narrow else VGG(((4, 4), (6,)))
    network.double().requires_grad_(False)
    if narrow:
        network.set_metrics()
    pictures = [random(1, 3, 24, 36, seed=s).sigmoid() for s in (1, 2, 3)]
    results = []
    for suffix in ("@4", ""):
        image, content, painting = pictures
        loss = kind(network, {"relu2_1" + suffix: 1.0}, {"relu1_1" + suffix: 0.5, "relu2_1" + suffix: 2.0}, 3, 5, 0)
        results.append(loss(image, loss.content_targets(content), targets_of(loss, painting)))
        pictures = [F.interpolate(x, scale_factor=1 / 4, mode="area") for x in pictures]
    for term in ("content", "style", "total"):
        torch.testing.assert_close(results[0][term], results[1][term])
    assert results[0]["style"] > 0


def test_a_metric_is_applied_in_float32_under_autocast():
    torch.manual_seed(0)
    narrow = SlimVGG(((4, 4), (6,)), {"relu2_1": 20}).requires_grad_(False)
    narrow.set_metrics()
    features = random(1, 6, 8, 9, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        gram = layer_gram_matrix(narrow, "relu2_1", features)
        content = content_representation(narrow, "relu2_1", features)
    metric = narrow.metric("relu2_1").double()
    flat = features[0].flatten(1).double()
    torch.testing.assert_close(gram[0].double(), metric @ (flat @ flat.T / 72) @ metric, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(content[0].double().flatten(1), metric @ flat, rtol=1e-4, atol=1e-6)


# Pixel grid


def test_pixel_grid_equals_a_loop_over_phases():
    """Fine detail, averaged over the cells of a window phase by phase; its variance over the 16 phases."""
    picture, size = random(1, 3, 34, 34, seed=3).sigmoid(), 32
    blur = torch.zeros(3, size, size, dtype=torch.float64)
    for dy, wy in enumerate((0.25, 0.5, 0.25)):
        for dx, wx in enumerate((0.25, 0.5, 0.25)):
            blur += wy * wx * picture[0, :, dy : dy + size, dx : dx + size]
    detail = picture[0, :, 1:-1, 1:-1] - blur
    expected = 0.0
    for channel in range(3):
        phases = torch.stack([detail[channel, y::4, x::4].mean() for y in range(4) for x in range(4)])
        expected += float(phases.var(correction=0)) / 3
    assert pixel_grid(picture).item() == pytest.approx(expected, rel=1e-9)


def test_pixel_grid_sees_a_lattice_of_its_period_and_no_other():
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    lattice = [0.1 * ((y % p == 0) & (x % p == 0)).double().expand(1, 3, -1, -1) for p in (4, 5)]
    assert pixel_grid(lattice[0]).item() > 100 * pixel_grid(lattice[1]).item()
    assert pixel_grid(lattice[1], period=5).item() > 100 * pixel_grid(lattice[1]).item()


def test_pixel_grid_is_0_for_gradients_and_for_pictures_smaller_than_a_window():
    ramp = torch.linspace(0, 1, 100, dtype=torch.float64).expand(2, 3, 80, 100)
    torch.testing.assert_close(pixel_grid(ramp), torch.zeros(2, dtype=torch.float64), atol=1e-20, rtol=0)
    assert pixel_grid(random(2, 3, 20, 20)).tolist() == [0, 0]


# Pixel weave


def test_pixel_weave_equals_a_loop_over_distances():
    """Σ R² / R₀ of the fine detail with two pixels of nothing round it, R at 3 to 5 pixels, round the edges."""
    picture, size = random(1, 3, 14, 16, seed=3).sigmoid(), (12, 14)
    blur = torch.zeros(3, *size, dtype=torch.float64)
    for dy, wy in enumerate((0.25, 0.5, 0.25)):
        for dx, wx in enumerate((0.25, 0.5, 0.25)):
            blur += wy * wx * picture[0, :, dy : dy + size[0], dx : dx + size[1]]
    detail = torch.zeros(3, 14, 16, dtype=torch.float64)
    detail[:, :12, :14] = picture[0, :, 1:-1, 1:-1] - blur
    repeated = 0.0
    for down in range(-5, 6):
        for across in range(-5, 6):
            if max(abs(down), abs(across)) >= 3:
                repeated += float((detail * detail.roll((down, across), (1, 2))).sum() / (3 * 12 * 14)) ** 2
    expected = repeated / (float(detail.square().sum()) / (3 * 12 * 14) + WEAVE_FLOOR)
    assert pixel_weave(picture, near=3, far=5).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("direction", [0.0, 0.3, 1.2])
def test_pixel_weave_sees_a_wave_and_not_noise_of_the_same_energy(direction):
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    phase = 2 * np.pi / 2.8 * (x * np.cos(direction) + y * np.sin(direction))
    wave = 0.5 + 0.1 * torch.sin(phase).expand(1, 3, -1, -1)
    noise = 0.5 + 0.1 * random(1, 1, 128, 128, seed=1).float().expand(-1, 3, -1, -1) / 2**0.5
    assert pixel_weave(wave).item() > 50 * pixel_weave(noise).item()


def test_pixel_weave_is_0_for_gradients_and_for_pictures_smaller_than_twice_its_distance():
    ramp = torch.linspace(0, 1, 100, dtype=torch.float64).expand(2, 3, 80, 100)
    torch.testing.assert_close(pixel_weave(ramp), torch.zeros(2, dtype=torch.float64), atol=1e-20, rtol=0)
    assert pixel_weave(random(2, 3, 20, 40)).tolist() == [0, 0]


@pytest.mark.parametrize("term", [pixel_grid, pixel_weave])
def test_fine_detail_is_measured_in_float32_under_autocast(term):
    picture = random(1, 3, 64, 64, seed=2).float().sigmoid()
    with torch.autocast("cpu", torch.bfloat16):
        got = term(picture)
    torch.testing.assert_close(got, term(picture), rtol=1e-6, atol=0)


# Balanced


def balanced_terms(features, target, painting):
    """Return content and style term with the painting's mean square as energy."""
    loss, style = make_loss(BalancedLoss), gram_matrix(painting)
    content = loss.content_term(features, target, painting.square().mean()[None])
    return content, loss.style_term(gram_matrix(features), style)


def test_balanced_terms_are_0_at_a_perfect_match():
    features = random(1, 3, 4, 5, seed=1)
    content, style = balanced_terms(features, features.clone(), features.clone())
    assert content.item() == 0
    assert style.item() == 0


def test_balanced_style_term_of_a_picture_without_features_is_1():
    nothing, target, painting = torch.zeros(1, 3, 4, 5).double(), random(1, 3, 4, 5, seed=1), random(1, 3, 6, 7, seed=2)
    content, style = balanced_terms(nothing, target, painting)
    torch.testing.assert_close(style, torch.ones(1).double())
    own = target.square().mean()
    torch.testing.assert_close(content, (own / (own + CONTENT_FLOOR * painting.square().mean()))[None])


def test_balanced_terms_are_gatys_terms_over_their_targets_energy():
    features, target, painting = (random(1, 3, 4, 5, seed=s) for s in (1, 2, 3))
    content, style = balanced_terms(features, target, painting)
    gatys, energy = make_loss(GatysLoss), painting.square().mean()
    half_energy = 0.5 * (target.square().sum() + CONTENT_FLOOR * target.numel() * energy)
    torch.testing.assert_close(content, gatys.content_term(features, target, energy) / half_energy)
    # β = 4 N² M² / Σ A², with the paper's A, which is not divided by M.
    flat = painting[0].flatten(1)
    n_filters, positions = flat.shape
    beta = 4 * n_filters**2 * positions**2 / (flat @ flat.T).square().sum()
    grams = gram_matrix(features), gram_matrix(painting)
    torch.testing.assert_close(style, beta * gatys.style_term(*grams))


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e3])
def test_balanced_terms_do_not_depend_on_the_scale_of_features(scale):
    pictures = [random(1, 3, 4, 5, seed=s) for s in (1, 2, 3)]
    plain, scaled = balanced_terms(*pictures), balanced_terms(*(scale * p for p in pictures))
    torch.testing.assert_close(scaled, plain)


def test_content_floor_keeps_the_loss_of_a_flat_picture_finite():
    painting = random(1, 3, 4, 5, seed=3)
    features, flat = random(1, 3, 4, 5, seed=1).requires_grad_(), torch.zeros(1, 3, 4, 5).double()
    content, _ = balanced_terms(features, flat, painting)
    content.sum().backward()
    expected = features.square().mean() / (CONTENT_FLOOR * painting.square().mean())
    torch.testing.assert_close(content[0], expected)
    assert features.grad.isfinite().all()


def test_balanced_content_energy_in_forward_is_the_paintings_mean_square():
    layers = {"content": {"relu2_1": 1.0, "conv3_1": 0.5}, "style": {"relu1_1": 1.0}}
    loss, painting, style = loss_with_style(BalancedLoss, **layers)
    image, content = random(1, 3, 16, 16, seed=1).sigmoid(), random(1, 3, 16, 16, seed=2).sigmoid()
    expected = 0.0
    for layer, weight in {"relu2_1": 1.0, "conv3_1": 0.5}.items():
        f, p, s = (loss.loss_network(x, [layer])[layer] for x in (image, content, painting))
        expected += weight * (f - p).square().mean() / (p.square().mean() + CONTENT_FLOOR * s.square().mean())
    torch.testing.assert_close(loss(image, loss.content_targets(content), style)["content"], expected)


# The whole loss

KINDS = list(LOSSES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_total_is_the_weighted_sum_of_layers_and_terms(kind):
    loss, painting, style = loss_with_style(kind, weights=(3.0, 5.0, 7.0))
    image, content = random(1, 3, 16, 16, seed=1).sigmoid(), random(1, 3, 16, 16, seed=2).sigmoid()
    result = loss(image, loss.content_targets(content), style)
    assert set(result) == {"content", "style", "tv", "total"}
    expected_style = 0.0
    for layer, weight in STYLE.items():
        grams = [gram_matrix(loss.loss_network(x, [layer])[layer]) for x in (image, painting)]
        expected_style += weight * loss.style_term(*grams)[0]
    torch.testing.assert_close(result["style"], expected_style)
    torch.testing.assert_close(result["tv"], total_variation(image)[0])
    total = 3.0 * result["content"] + 5.0 * result["style"] + 7.0 * result["tv"]
    torch.testing.assert_close(result["total"], total)
    assert min(v.item() for v in result.values()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_matches_cost_nothing(kind):
    loss, painting, style = loss_with_style(kind)
    content = random(1, 3, 16, 16, seed=2).sigmoid()
    assert loss(content, loss.content_targets(content), style)["content"].item() == 0
    assert loss(painting, loss.content_targets(painting), style)["style"].item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_means_over_the_batch(kind):
    loss, _, style = loss_with_style(kind)
    image, content = random(2, 3, 16, 16, seed=1).sigmoid(), random(2, 3, 16, 16, seed=2).sigmoid()
    both = loss(image, loss.content_targets(content), style)
    single = [loss(image[n : n + 1], loss.content_targets(content[n : n + 1]), style) for n in range(2)]
    for name, value in both.items():
        torch.testing.assert_close(value, (single[0][name] + single[1][name]) / 2)
        assert single[0][name] != single[1][name]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_total_equals_finite_differences(kind):
    loss, _, style = loss_with_style(kind)
    image, content = random(1, 3, 8, 8, seed=1).sigmoid().requires_grad_(), random(1, 3, 8, 8, seed=2).sigmoid()
    targets = loss.content_targets(content)
    loss(image, targets, style)["total"].backward()
    direction, step = random(1, 3, 8, 8, seed=3), 1e-6
    with torch.no_grad():
        ahead, behind = (loss(image + s * step * direction, targets, style)["total"] for s in (1, -1))
    torch.testing.assert_close((image.grad * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-9)


def test_content_targets_carry_no_gradient():
    loss, _, _ = loss_with_style()
    features = loss.content_targets(random(1, 3, 8, 8).sigmoid().requires_grad_())
    assert set(features) == set(CONTENT)
    assert not any(f.requires_grad for f in features.values())


@pytest.mark.parametrize("kind", KINDS)
def test_terms_of_bfloat16_features_are_computed_in_float32(kind):
    loss, _, style = loss_with_style(kind)
    loss, style = loss.float(), {name: target.float() for name, target in style.items()}
    image, content = random(1, 3, 16, 16, seed=1).sigmoid().float(), random(1, 3, 16, 16, seed=2).sigmoid().float()
    with torch.autocast("cpu", torch.bfloat16):
        features, targets = loss.loss_network(image, loss.layers), loss.content_targets(content)
        result = loss(image, targets, style)
    assert features["conv3_1"].dtype == targets["relu2_1"].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in result.values())
    style = {name: target.double() for name, target in style.items()}
    energy = style["relu2_1"].diagonal(dim1=1, dim2=2).mean(1)
    expected_content = loss.content_term(features["relu2_1"].double(), targets["relu2_1"].double(), energy)[0]
    terms = [w * loss.style_term(gram_matrix(features[layer].double()), style[layer])[0] for layer, w in STYLE.items()]
    torch.testing.assert_close(result["content"].double(), expected_content, rtol=1e-5, atol=0)
    torch.testing.assert_close(result["style"].double(), sum(terms), rtol=1e-4, atol=0)
    torch.testing.assert_close(result["tv"].double(), total_variation(image.double())[0], rtol=1e-5, atol=0)


# Distributions


def sliced_by_hand(features: np.ndarray, painted: np.ndarray, start: int | None) -> float:
    """Features and painting (C, positions), as many positions as a multiple of QUANTILES."""
    directions = np.random.default_rng(0).standard_normal((SLICES, len(features)))
    directions /= np.sqrt((directions**2).sum(1, keepdims=True))
    ours, theirs = (np.sort(directions @ x, axis=1).reshape(SLICES, QUANTILES, -1).mean(2) for x in (features, painted))
    scales = theirs.var(1) + SLICED_FLOOR * (theirs**2).mean(1)
    errors = ((ours - theirs) ** 2).mean(1)
    if start is not None:
        errors = errors[(np.arange(SLICES) - start) % SLICES < SLICES_A_PICTURE]
    return float(errors.mean() / scales.mean())


def sliced_loss(layers, kind=BalancedLoss):
    """Return a loss whose style is the distribution alone, a painting, 32 × 64, and its targets."""
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,), (5,))).double().requires_grad_(False)
    loss, painting = kind(network, CONTENT, {}, 1.0, 10.0, 0.0, layers), random(1, 3, 32, 64, seed=9).sigmoid()
    return loss, painting, targets_of(loss, painting)


@pytest.mark.parametrize("kind", LOSSES.values())
def test_sliced_style_is_that_of_sorted_projections(kind):
    loss, painting, style = sliced_loss({"rgb@2": 0.5, "relu1_1": 2.0}, kind)
    image, content = random(1, 3, 32, 32, seed=1).sigmoid(), random(1, 3, 32, 32, seed=2).sigmoid()
    start = int(np.round(255 * content.numpy()).astype(int).sum()) % SLICES
    smaller = [x.reshape(3, 16, 2, -1, 2).mean((2, 4)) for x in (image[0], painting[0])]
    seen = [loss.loss_network(x, ["relu1_1"])["relu1_1"][0] for x in (image, painting)]
    colours, features = ([x.reshape(len(x), -1).numpy() for x in pair] for pair in (smaller, seen))
    expected = 0.5 * sliced_by_hand(*colours, start) + 2 * sliced_by_hand(*features, start)
    terms = loss(image, loss.content_targets(content), style)
    assert float(terms["style"]) == pytest.approx(expected, rel=1e-9)
    assert float(terms["total"] - terms["content"]) == pytest.approx(10 * expected, rel=1e-9)


def test_an_optimised_picture_is_compared_in_all_directions():
    """In some of them alone, the others would be free for the optimiser."""
    loss, painting, style = sliced_loss({"rgb": 0.5, "relu1_1": 2.0})
    content, start = random(2, 3, 32, 32, seed=2).sigmoid(), random(2, 3, 32, 32, seed=1).sigmoid()
    _, trace = optimize_image(content, loss, style, start=start, iterations=0)
    expected = 0.0
    for picture in start:
        for weight, layer in ((0.5, "rgb"), (2.0, "relu1_1")):
            pair = [loss.loss_network(x, [layer])[layer][0].flatten(1).numpy() for x in (picture[None], painting)]
            expected += 0.5 * weight * sliced_by_hand(*pair, None)
    assert trace[0]["style"] == pytest.approx(expected, rel=1e-9)
    assert perceptual_losses(loss, style, start, content)["style"] == pytest.approx(expected, rel=1e-9)


def test_sliced_style_does_not_see_where_colours_are_and_sees_mixtures_that_gram_matrices_do_not():
    loss, painting, style = sliced_loss({"rgb": 1.0})
    content = loss.content_targets(painting)
    order = torch.randperm(32 * 64, generator=torch.Generator().manual_seed(0))
    shuffled = painting.flatten(2)[:, :, order].reshape(painting.shape)
    assert float(loss(shuffled, content, style)["style"]) == pytest.approx(0, abs=1e-20)

    # Half black and half white; a grey with the same mean square.
    halves, grey = torch.zeros(1, 3, 16, 32, dtype=torch.float64), torch.full((1, 3, 16, 32), 0.5**0.5).double()
    halves[..., 16:] = 1
    torch.testing.assert_close(gram_matrix(halves), gram_matrix(grey))
    style, content = targets_of(loss, halves), content | {"relu2_1": random(1, 6, 8, 16)}
    assert float(loss(halves, content, style)["style"]) == pytest.approx(0, abs=1e-20)
    # Along any direction it is the distance of √½ from 0 and from 1, over the variance of ½ and ½ and the floor.
    distance = (0.5 * 0.5 + 0.5 * (1 - 0.5**0.5) ** 2) / (0.25 + SLICED_FLOOR * 0.5)
    found = float(loss(grey, content, style)["style"])
    start = content["slices"] + torch.arange(SLICES_A_PICTURE)
    sums = np.random.default_rng(0).standard_normal((SLICES, 3))
    sums = ((sums / np.linalg.norm(sums, axis=1, keepdims=True)).sum(1)) ** 2
    assert found == pytest.approx(distance * sums[start % SLICES].mean() / sums.mean(), rel=1e-6)


def test_pictures_of_a_batch_are_compared_in_directions_of_their_own_and_always_the_same():
    loss, _, style = sliced_loss({"relu2_1": 1.0})
    image, content = random(2, 3, 32, 32, seed=1).sigmoid(), random(2, 3, 32, 32, seed=2).sigmoid()
    targets = loss.content_targets(content)
    assert len(set(targets["slices"].tolist())) == 2
    alone = [loss(i[None], loss.content_targets(c[None]), style)["style"] for i, c in zip(image, content, strict=True)]
    together = loss(image, targets, style)["style"]
    torch.testing.assert_close(together, sum(alone) / 2)
    assert torch.equal(together, loss(image, loss.content_targets(content), style)["style"])


def test_gradient_of_sliced_style_equals_finite_differences():
    loss, _, style = sliced_loss({"rgb@2": 0.5, "relu2_1": 1.0})
    image, targets = random(1, 3, 12, 16, seed=1).sigmoid(), loss.content_targets(random(1, 3, 12, 16).sigmoid())
    image.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, style)["style"], image, fast_mode=True)


@pytest.mark.parametrize("brightness", [0.0, 0.5])
def test_sliced_style_of_a_painting_of_one_colour_is_finite_and_0_for_that_colour(brightness):
    loss, painting, _ = sliced_loss({"rgb": 1.0, "relu2_1": 1.0})
    painting[:] = brightness
    style, content = targets_of(loss, painting), loss.content_targets(painting)
    assert float(loss(painting, content, style)["style"]) == pytest.approx(0, abs=1e-12)
    image = random(1, 3, 32, 64, seed=1).sigmoid().requires_grad_(True)
    terms = loss(image, content, style)
    terms["style"].backward()
    assert terms["style"] > 0
    assert image.grad.isfinite().all()


def test_descent_on_sliced_style_gives_a_picture_the_paintings_colours():
    loss, painting, _ = sliced_loss({"rgb": 1.0})
    painting[:] = (painting > 0.6).double()  # eight colours, in shares of their own
    style = targets_of(loss, painting)
    image = random(1, 3, 32, 64, seed=1).sigmoid().requires_grad_(True)
    optimizer = torch.optim.Adam([image], 0.02)
    for step in range(300):
        content = {"relu2_1": random(1, 6, 16, 32), "slices": torch.tensor([37 * step % SLICES])}
        optimizer.zero_grad()
        loss(image, content, style)["style"].backward()
        optimizer.step()
    near = (image - image.round()).abs().max(1).values < 0.15
    assert near.double().mean() > 0.9
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[:, None, None]
    counts = [torch.bincount((weights * x[0].clamp(0, 1).round()).sum(0).long().flatten(), minlength=8)
              for x in (image.detach(), painting)]  # fmt: skip
    assert (counts[0] - counts[1]).abs().sum() < 0.1 * 32 * 64


# A painting for each picture, and mixtures

MANY = {"rgb@2": 0.5, "relu1_1": 2.0}  # sliced


def loss_by_hand(kind, network, image, content, painting):
    """Return content and style of one picture by loops over channels, as the formulas of the three losses say."""

    def seen(picture, layer):
        if layer == "rgb@2":
            return picture[0].reshape(3, picture.shape[2] // 2, 2, -1, 2).mean((2, 4)).flatten(1).numpy()
        return network(picture, [layer])[layer][0].flatten(1).numpy()

    def gram(f):
        return np.array([[np.dot(f[i], f[j]) / f.shape[1] for j in range(len(f))] for i in range(len(f))])

    content_loss = style_loss = 0.0
    for layer, weight in CONTENT.items():
        f, p, s = (seen(x, layer) for x in (image, content, painting))
        floor = CONTENT_FLOOR * (s**2).mean()
        term = {
            GatysLoss: 0.5 * ((f - p) ** 2).sum(),
            JohnsonLoss: ((f - p) ** 2).mean(),
            BalancedLoss: ((f - p) ** 2).mean() / ((p**2).mean() + floor),
        }[kind]
        content_loss += weight * term
    for layer, weight in STYLE.items():
        g, a = (gram(seen(x, layer)) for x in (image, painting))
        error, n = ((g - a) ** 2).sum(), len(g)
        scale = {GatysLoss: 4 * n**2, JohnsonLoss: n**4}.get(kind, (a**2).sum())
        style_loss += weight * error / scale
    start = int(np.round(255 * content.numpy()).astype(int).sum()) % SLICES
    for layer, weight in MANY.items():
        style_loss += weight * sliced_by_hand(seen(image, layer), seen(painting, layer), start)
    return content_loss, style_loss


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_with_a_painting_for_each_picture_is_the_mean_of_its_pictures(kind):
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,), (5,))).double().requires_grad_(False)
    loss = kind(network, CONTENT, STYLE, 3.0, 5.0, 7.0, MANY)
    images, contents = (random(4, 3, 16, 16, seed=s).sigmoid() for s in (1, 2))
    # Of unlike contrasts, so that a painting taken for another would show.
    paintings = [((1 + n) * random(1, 3, 32, 32, seed=9 + n)).sigmoid() for n in range(3)]
    targets, chosen = [targets_of(loss, x) for x in paintings], [2, 0, 2, 1]
    style = gather(targets, torch.tensor(chosen))
    assert {name: target.shape for name, target in style.items()} == {
        name: (4, *target.shape[1:]) for name, target in targets[0].items()
    }
    result = loss(images, loss.content_targets(contents), style)

    pairs = list(zip(images.split(1), contents.split(1), chosen, strict=True))
    single = [loss(i, loss.content_targets(c), targets[n]) for i, c, n in pairs]
    for name, value in result.items():
        torch.testing.assert_close(value, sum(one[name] for one in single) / 4, rtol=1e-10, atol=0)
    by_hand = [loss_by_hand(kind, network, i, c, paintings[n]) for i, c, n in pairs]
    assert float(result["content"]) == pytest.approx(np.mean([content for content, _ in by_hand]), rel=1e-9)
    assert float(result["style"]) == pytest.approx(np.mean([style for _, style in by_hand]), rel=1e-9)
    wrong = loss(images, loss.content_targets(contents), gather(targets, torch.tensor([0, 2, 2, 1])))
    assert abs(float(wrong["style"] / result["style"]) - 1) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_batch_with_a_painting_for_each_picture_are_those_of_its_pictures(kind):
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,), (5,))).double().requires_grad_(False)
    loss = kind(network, CONTENT, STYLE, 3.0, 5.0, 7.0, MANY)
    images, contents = (random(3, 3, 16, 16, seed=s).sigmoid() for s in (1, 2))
    targets, chosen = [targets_of(loss, random(1, 3, 32, 32, seed=9 + n).sigmoid()) for n in range(2)], [1, 0, 1]
    images.requires_grad_()
    loss(images, loss.content_targets(contents), gather(targets, torch.tensor(chosen)))["total"].backward()
    for number, painting in enumerate(chosen):
        alone = images[number : number + 1].detach().requires_grad_()
        loss(alone, loss.content_targets(contents[number : number + 1]), targets[painting])["total"].backward()
        torch.testing.assert_close(images.grad[number : number + 1], alone.grad / 3, rtol=1e-9, atol=1e-15)


def test_gather_takes_whole_targets_in_the_order_asked_for():
    paintings = [{"a": torch.full((1, 2, 2), float(n)), "energy:b": torch.tensor([10.0 + n])} for n in range(3)]
    got = gather(paintings, torch.tensor([2, 2, 0, 1, 2]))
    assert got["a"].shape == (5, 2, 2)
    assert got["a"].mean((1, 2)).tolist() == [2, 2, 0, 1, 2]
    assert got["energy:b"].tolist() == [12, 12, 10, 11, 12]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [3.0, 1.0], [0.2, 0.0, 0.6]])
def test_blend_is_the_weighted_mean(weights):
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,), (5,))).double().requires_grad_(False)
    loss = GatysLoss(network, CONTENT, STYLE, 1.0, 1.0, 1.0, {"rgb": 1.0})
    paintings = [targets_of(loss, random(1, 3, 20, 24, seed=n).sigmoid()) for n in range(len(weights))]
    mixed = blend(paintings, weights)
    assert set(mixed) == set(loss.style_target_names)
    for name, target in mixed.items():
        expected = np.average([p[name].numpy() for p in paintings], axis=0, weights=weights)
        np.testing.assert_allclose(target.numpy(), expected, rtol=1e-12, atol=1e-15)


def test_blend_needs_a_weight_for_each_painting():
    painting = {"relu1_1": torch.eye(4)[None]}
    with pytest.raises(ValueError, match="zip"):
        blend([painting, painting], [1.0])


# Targets


@pytest.mark.parametrize("lost", ["conv3_1", "energy:relu2_1", "sliced:rgb"])
def test_style_targets_that_lack_one_are_a_user_error(lost):
    torch.manual_seed(0)
    network = VGG(((4, 4), (6,), (5,))).double().requires_grad_(False)
    loss = GatysLoss(network, CONTENT, STYLE, 1.0, 1.0, 1.0, {"rgb": 1.0})
    painting = random(1, 3, 20, 24).sigmoid()
    style = targets_of(loss, painting)
    assert set(style) == {*STYLE, "energy:relu2_1", "sliced:rgb"}
    del style[lost]
    for refuse in (loss.check, lambda targets: loss(painting, loss.content_targets(painting), targets)):
        with pytest.raises(UserError, match=f"lack {lost}; they have relu1_1, relu2_1") as caught:
            refuse(style)
        assert "\n" not in str(caught.value)


def test_a_layer_of_content_alone_needs_no_gram_matrix():
    loss, painting, style = loss_with_style(content={"conv2_1": 1.0}, style={"relu1_1": 1.0})
    assert set(style) == {"relu1_1", "energy:conv2_1"}
    mean_square = np.mean(loss.loss_network(painting, ["conv2_1"])["conv2_1"].numpy() ** 2)
    np.testing.assert_allclose(style["energy:conv2_1"].numpy(), [mean_square], rtol=1e-12)


@pytest.mark.parametrize("narrow", [False, True])
def test_energy_of_a_target_is_the_mean_over_the_diagonal_of_its_gram_matrix(narrow):
    torch.manual_seed(0)
    network = SlimVGG(((4, 4), (6,)), {"relu2_1": 20}) if narrow else VGG(((4, 4), (6,)))
    network.requires_grad_(False)
    if narrow:
        network.set_metrics()
    features = network(random(1, 3, 16, 20, seed=1, dtype=torch.float32).sigmoid(), ["relu2_1"])["relu2_1"]
    gram = style_target(network, "relu2_1", features)
    energy = style_target(network, ENERGY + "relu2_1", features)
    assert gram.shape == (1, 6, 6)
    assert energy.shape == (1,)
    metric = network.metric("relu2_1") if narrow else torch.eye(6)
    seen = metric.numpy() @ features[0].flatten(1).numpy()
    np.testing.assert_allclose(energy.numpy(), [np.mean(seen**2)], rtol=1e-4)
    np.testing.assert_allclose(np.trace(gram[0].numpy()) / 6, energy.item(), rtol=1e-5)


@pytest.mark.parametrize("where", ["content", "style"])
def test_layer_that_the_network_lacks_is_a_user_error(where):
    with pytest.raises(UserError, match="relu9_1") as caught:
        make_loss(**{where: {"relu9_1": 1.0}})
    assert "relu1_1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_keeps_nothing_of_a_painting():
    loss, _, style = loss_with_style()
    own, before = {name for name, _ in loss.named_buffers()}, set(loss.state_dict())
    image, targets = random(1, 3, 16, 16, seed=1).sigmoid(), loss.content_targets(random(1, 3, 16, 16).sigmoid())
    first, other = loss(image, targets, style), loss(image, targets, targets_of(loss, image))
    assert first["style"] > 0
    assert other["style"].item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(loss(image, targets, style), first, rtol=0, atol=0)
    assert {name for name, _ in loss.named_buffers()} == own
    assert set(loss.state_dict()) == before
    assert not any("style" in name for name in before | own)


def test_balanced_loss_is_the_same_on_a_normalised_network():
    """Terms are relative, so one factor for all filters of a layer cancels."""
    plain, painting, _ = loss_with_style(BalancedLoss)
    widths = {"relu1_1": 4, "relu2_1": 6, "relu3_1": 5}
    factors = {layer: torch.full((n,), 0.1 * n, dtype=torch.float64) for layer, n in widths.items()}
    scaled = BalancedLoss(NormalisedLossNetwork(plain.loss_network, factors), CONTENT, STYLE, 1.0, 1.0, 1.0)
    image, content = random(1, 3, 16, 16, seed=1).sigmoid(), random(1, 3, 16, 16, seed=2).sigmoid()
    expected, result = (x(image, x.content_targets(content), targets_of(x, painting)) for x in (plain, scaled))
    torch.testing.assert_close(result, expected)


def test_saturated_share_counts_squares_of_blown_out_pixels_as_a_hand_loop_does():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.uniform(0.05, 0.95, (2, 3, 24, 31)))
    image[0, :, 3:14, 5:17] = torch.tensor([1.0, 0.0, 0.9995]).view(3, 1, 1).double()
    image[0, :, 16:23, 20:31] = 1.0  # seven rows: no square fits
    image[1, :2, :, :] = 0.0  # one channel is left
    expected = []
    for picture in image.numpy():
        covered = np.zeros((24, 31), bool)
        for top in range(24 - 7):
            for left in range(31 - 7):
                square = picture[:, top : top + 8, left : left + 8]
                if ((square <= 1 / 255) | (square >= 254 / 255)).all():
                    covered[top : top + 8, left : left + 8] = True
        expected.append(covered.mean())
    assert expected == [11 * 12 / (24 * 31), 0]
    torch.testing.assert_close(saturated_share(image).tolist(), expected)
    assert saturated_share(torch.ones(1, 3, 7, 40)).tolist() == [0]
