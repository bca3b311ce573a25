"""Second views of training pictures: where they come from, and what is held against a network that sees both."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.utils.data import DataLoader, Dataset

from nst_fast.training.content_images import BundledImages, ContentImages
from nst_fast.training.motion import LARGEST_SHIFT, SecondViews, motion_difference, moved, random_flow

SIZE = 48


class Waves(Dataset[torch.Tensor]):
    """Smooth pictures, other ones at every index."""

    seed = 5

    def __getitem__(self, index: int) -> torch.Tensor:
        y, x = np.mgrid[:SIZE, :SIZE]
        waves = [np.sin(0.3 * x + 0.1 * (channel + index) * y) for channel in range(3)]
        return torch.from_numpy((127 + 100 * np.stack(waves)).round().astype(np.uint8))


def flow_of(right: float, down: float, size: int = SIZE) -> torch.Tensor:
    return torch.tensor([right, down])[None, :, None, None].expand(1, 2, size, size).clone()


def test_a_picture_moved_by_whole_pixels_is_a_piece_of_it():
    image = torch.rand(1, 3, SIZE, SIZE)
    got = moved(image, flow_of(5, -3))
    torch.testing.assert_close(got[:, :, 3:, :-5], image[:, :, :-3, 5:], atol=1e-4, rtol=0)


def test_a_smooth_function_moved_is_that_function_at_the_places_that_the_flow_names():
    def function(x, y):
        return np.sin(0.2 * x) * np.cos(0.15 * y + 1)

    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    flow = random_flow(SIZE, np.random.default_rng(3))
    got = moved(torch.from_numpy(function(x, y))[None, None].float(), flow[None])[0, 0].numpy()
    to_x, to_y = x + flow[0].numpy(), y + flow[1].numpy()
    inside = (to_x > 2) & (to_x < SIZE - 3) & (to_y > 2) & (to_y < SIZE - 3)
    assert inside.mean() > 0.3
    assert np.abs(got - function(to_x, to_y))[inside].max() < 0.02  # half a pixel would be 0.1


def test_flows_are_smooth_and_shift_by_fractions_of_a_pixel_and_by_many():
    rng = np.random.default_rng(0)
    flows = torch.stack([random_flow(SIZE, rng) for _ in range(100)])
    assert flows.diff(dim=2).abs().max() < 1.5
    assert flows.diff(dim=3).abs().max() < 1.5
    middle = flows[:, :, SIZE // 2, SIZE // 2].norm(dim=1)
    assert (middle < 1.5).float().mean() > 0.1
    assert (middle > 8).float().mean() > 0.05
    assert middle.max() < LARGEST_SHIFT + 6
    turned = (flows[:, 0, -1] - flows[:, 0, 0]).mean(1)  # what is below moves to the side of what is above
    assert turned.std() > 0.5


def without_tone(image: np.ndarray) -> np.ndarray:
    """Return a picture (3, H, W) less the mean of means over squares of 5 px, as much of them as is in it."""
    blurred = image
    for _ in range(2):
        before, blurred = blurred, np.empty_like(blurred)
        for y, x in np.ndindex(image.shape[1:]):
            blurred[:, y, x] = before[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].mean((1, 2))
    return image - blurred


def test_the_difference_is_that_of_strokes_that_both_see_over_their_energy():
    first, second = torch.rand(2, 3, 9, 9, dtype=torch.float64), torch.rand(2, 3, 9, 9, dtype=torch.float64)
    flow = torch.cat([flow_of(2, 0, 9), flow_of(0, -3, 9)]).double()
    expected = []
    for n, (right, down) in enumerate(((2, 0), (0, -3))):
        there = np.pad(first[n].numpy(), ((0, 0), (4, 4), (4, 4)), "reflect")
        there = there[:, 4 + down : 13 + down, 4 + right : 13 + right]
        here, there = without_tone(second[n].numpy()), without_tone(there)
        both = [(y, x) for y in range(9) for x in range(9) if 0 <= y + down < 9 and 0 <= x + right < 9]
        squares = sum(((here[:, y, x] - there[:, y, x]) ** 2).sum() for y, x in both)
        energy = sum((here[:, y, x] ** 2 + there[:, y, x] ** 2).sum() for y, x in both)
        expected.append(squares / energy)
    got = motion_difference(first, second, flow)
    torch.testing.assert_close(got, torch.tensor(expected), atol=0, rtol=1e-3)
    torch.testing.assert_close(got, torch.ones(2).double(), atol=0.4, rtol=0)  # as they have nothing in common


def test_fainter_strokes_that_do_not_move_along_are_no_better():
    first, second = torch.rand(2, 1, 3, 32, 32)
    flow = flow_of(2, 1, 32)
    faint = motion_difference(0.5 + 0.2 * (first - 0.5), 0.5 + 0.2 * (second - 0.5), flow)
    torch.testing.assert_close(faint, motion_difference(first, second, flow), atol=0, rtol=0.01)


def test_views_that_share_no_place_differ_in_nothing():
    first, second = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    assert motion_difference(first, second, flow_of(20, 0, 8)).tolist() == [0.0]


def test_a_second_view_is_the_picture_at_the_places_of_the_flow_but_for_exposure_and_noise():
    views = SecondViews(Waves())
    for index in range(8):
        first, second, flow = (tensor.numpy().astype(np.float64) for tensor in views[index])
        rows, columns = np.mgrid[:SIZE, :SIZE]
        y, x = rows + flow[1], columns + flow[0]
        inside = (y > 2) & (y < SIZE - 3) & (x > 2) & (x < SIZE - 3)
        expected = np.stack([map_coordinates(channel, [y, x], order=3) for channel in first])[:, inside]
        seen = second[:, inside]
        exposure = (seen * expected).sum() / (expected**2).sum()
        assert 0.85 < exposure < 1.15
        assert np.abs(seen - exposure * expected).mean() < 3
        assert np.abs(seen - first[:, inside]).mean() > np.abs(seen - exposure * expected).mean()


def test_a_second_view_is_a_function_of_seed_and_index_alone():
    views = SecondViews(BundledImages(SIZE, 1, 0.5))
    there = [views[index] for index in (4, 2)]
    again = SecondViews(BundledImages(SIZE, 1, 0.5))
    for one, index in zip(there, (4, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, again[index], strict=True))
    assert torch.equal(views[4][0], BundledImages(SIZE, 1, 0.5)[4])
    other = SecondViews(BundledImages(SIZE, 2, 0.5))[4]
    assert not torch.equal(there[0][2], other[2])
    assert not torch.equal(there[0][2], there[1][2])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_second_views_come_in_order_for_any_number_of_workers(workers):
    images = BundledImages(SIZE, 1, 0.5)
    batches = iter(ContentImages(images, 2, workers, SIZE, moving=True).train_dataloader())
    views = SecondViews(images)
    for start in (0, 2):
        batch, expected = next(batches), DataLoader([views[start], views[start + 1]], 2)
        assert all(torch.equal(a, b) for a, b in zip(batch, next(iter(expected)), strict=True))
