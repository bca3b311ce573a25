"""Recolouring: a finished network's pictures get the mean and covariance of the painting's colours."""

import numpy as np
import pytest
import torch

from nst_fast.loss.terms import colour_moments
from nst_fast.training.networks import NETWORKS, create_network, for_inference
from nst_fast.training.recolouring import LARGEST, colour_map, recolour


def pixels(seed: int, spread: float) -> np.ndarray:
    """Colours around a grey, (n, 3), that depend on each other."""
    rng = np.random.default_rng(seed)
    return (0.5 + spread * rng.standard_normal((5000, 3)) @ (0.5 * np.eye(3) + rng.uniform(0.1, 0.3, (3, 3)))).clip(
        0, 1
    )


def moments(colours: np.ndarray) -> torch.Tensor:
    return colour_moments(torch.from_numpy(colours.T[None, :, None].astype(np.float32)))[0]


def test_moments_are_mean_and_second_moments_of_clamped_pixels():
    image = torch.rand(2, 3, 9, 7, generator=torch.manual_seed(0)) * 2 - 0.5
    for got, one in zip(colour_moments(image), image.numpy(), strict=True):
        colours = one.clip(0, 1).reshape(3, -1)
        np.testing.assert_allclose(got[0], colours.mean(1), rtol=1e-5)
        np.testing.assert_allclose(got[1:], colours @ colours.T / colours.shape[1], rtol=1e-5)


def test_moments_have_full_precision_under_autocast():
    image = torch.full((1, 3, 64, 64), 0.7) + 0.01 * torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        got = colour_moments(image)
    mean = got[0, 0].double()
    covariance = got[0, 1:].double() - mean[:, None] * mean
    np.testing.assert_allclose(covariance, np.cov(image.reshape(3, -1).numpy(), bias=True), atol=1e-6)


def test_moments_that_no_colours_have_give_a_map_all_the_same():
    """Second moments below the squared mean, as rounding or a meddled checkpoint may leave them."""
    wrong = torch.full((4, 3), 0.5)
    wrong[1:] = 0.1
    matrix, offset = colour_map(moments(pixels(0, 0.2)), wrong)
    assert matrix.isfinite().all()
    assert offset.isfinite().all()


def test_the_map_gives_pictures_the_mean_and_covariance_of_the_painting():
    painting, pictures = pixels(0, 0.2), pixels(1, 0.15)
    matrix, offset = (part.numpy() for part in colour_map(moments(painting), moments(pictures)))
    mapped = pictures @ matrix.T + offset
    np.testing.assert_allclose(mapped.mean(0), painting.mean(0), atol=1e-4)
    np.testing.assert_allclose(np.cov(mapped.T), np.cov(painting.T), atol=3e-4)
    # Of all maps that do so, Monge's is symmetric, and has no negative eigenvalue.
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_pictures_that_have_the_paintings_colours_stay_as_they_are():
    matrix, offset = colour_map(moments(pixels(0, 0.2)), moments(pixels(0, 0.2)))
    torch.testing.assert_close(matrix, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(offset, torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("painting", "picture"), [(0.5, 0.001), (0.001, 0.5), (0.0, 0.0), (0.5, 0.0)])
def test_no_contrast_changes_by_more_than_the_largest_factor(painting, picture):
    """Nor where one of them has a single colour, or next to none."""
    matrix, offset = colour_map(moments(pixels(0, painting)), moments(pixels(1, picture)))
    factors = np.linalg.eigvalsh(matrix.numpy())
    assert 1 / LARGEST - 1e-6 <= factors.min() <= factors.max() <= LARGEST + 1e-6
    assert offset.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 3), torch.full((4, 3), torch.nan), torch.full((4, 3), 1e30), torch.zeros(4)]
)
def test_what_is_no_moments_is_refused(wrong):
    with pytest.raises(ValueError, match="moments of colours"):
        colour_map(moments(pixels(0, 0.2)), wrong)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recoloured_network_paints_the_mapped_colours(name):
    torch.manual_seed(0)
    network, image = create_network(name, 8, 1).eval(), torch.rand(1, 3, 48, 40)
    matrix, offset = torch.tensor([[1.2, -0.1, 0], [0.2, 0.8, 0.1], [0, -0.3, 1.5]]), torch.tensor([0.1, -0.2, 0.05])
    with torch.no_grad():
        before = network(image)
        kept = {name: weight.clone() for name, weight in network.state_dict().items()}
        shared = dict(network.state_dict())
        recolour(network, matrix[None], offset[None])
        assert all(torch.equal(shared[name], weight) for name, weight in kept.items())  # a checkpoint's stay
        expected = torch.stack([sum(matrix[i, j] * before[:, j] for j in range(3)) + offset[i] for i in range(3)], 1)
        torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(for_inference(network)(image), expected, atol=1e-5, rtol=1e-4)


def test_each_painting_of_a_gallery_has_a_map_of_its_own():
    torch.manual_seed(0)
    network, image = create_network("fast", 8, 1, paintings=3).eval(), torch.rand(1, 3, 48, 40)
    paintings = torch.stack([moments(pixels(seed, 0.2)) for seed in range(3)])
    pictures = torch.stack([moments(pixels(seed, 0.15)) for seed in range(3, 6)])
    with torch.no_grad():
        before = [network(image, network.vectors[number : number + 1]) for number in range(3)]
        recolour(network, *colour_map(paintings, pictures))
        for number, one in enumerate(before):
            matrix, offset = colour_map(paintings[number], pictures[number])
            expected = (one[0].permute(1, 2, 0).double() @ matrix.T + offset).permute(2, 0, 1)
            got = network(image, network.vectors[number : number + 1])[0].double()
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
