"""The transformation networks: sizes, norms, padding and names."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nst_fast.errors import UserError
from nst_fast.training.checkpoints import upgraded
from nst_fast.training.networks import (
    NETWORKS,
    Contrast,
    FastNetwork,
    Grain,
    JohnsonNetwork,
    Norm,
    OutputConv,
    PhasePixels,
    UpsampleConv,
    create_network,
    for_inference,
)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_network(name, 8, 1)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_johnson_has_the_published_number_of_parameters():
    assert parameters(JohnsonNetwork()) == 1_679_235


def test_fast_is_less_than_a_third_of_johnson():
    assert 3 * parameters(FastNetwork()) < parameters(JohnsonNetwork())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (33, 64), (50, 41), (19, 18)])
def test_output_has_exactly_the_shape_of_the_input(name, size):
    image = torch.rand(2, 3, *size)
    assert small(name)(image).shape == image.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_of_min_size_gives_finite_numbers(name):
    network = small(name)
    image = torch.rand(1, 3, network.min_size, network.min_size)
    assert torch.isfinite(network(image)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_no_norm_follows_the_last_convolution(name):
    network, image = small(name).double(), torch.rand(1, 3, 24, 24, dtype=torch.float64)
    before = network(image)
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.mul_(2)
        last.bias.mul_(2).add_(7)
    torch.testing.assert_close(network(image), 2 * before + 7)  # a norm would undo both


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_pads_by_reflection_to_keep_its_size(name):
    convolutions = [m for m in create_network(name, 32, 5).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) >= 13
    for convolution in convolutions:
        assert convolution.padding_mode == "reflect"
        kernel, stride, padding = convolution.kernel_size[0], convolution.stride[0], convolution.padding[0]
        assert (64 + 2 * padding - kernel) // stride + 1 == 64 // stride
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in create_network(name, 32, 5).modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_no_norm_keeps_statistics_of_earlier_pictures(name):
    network = small(name)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in network.modules())
    assert network.norms()
    assert not any(list(m.buffers()) for m in network.norms())
    images = torch.rand(3, 3, 24, 28)
    network.train()
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shift_by_the_stride_shifts_the_output(name):
    network = small(name).double().eval()
    for module in list(network.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, Norm):  # its statistics are the one thing that is not local
                setattr(module, child_name, nn.Identity())
            if isinstance(child, Grain):  # and its map stays where it is
                nn.init.zeros_(child.scale)
    image = torch.rand(1, 3, 132, 132, dtype=torch.float64)
    step, border = network.stride, 48
    with torch.no_grad():
        still, shifted = network(image[:, :, :-step, :-step]), network(image[:, :, step:, step:])
    inner = still[:, :, border:-border, border:-border]
    moved = shifted[:, :, border - step : -border - step, border - step : -border - step]
    torch.testing.assert_close(moved, inner)
    assert inner.std() > 0


def test_upsampling_and_convolution_in_one_are_bilinear_upsampling_then_a_convolution():
    torch.manual_seed(0)
    both, small_map = UpsampleConv(5, 7).double(), torch.rand(2, 5, 9, 12, dtype=torch.float64)
    upsampled = F.interpolate(small_map, scale_factor=2, mode="bilinear", align_corners=False)
    expected = F.conv2d(upsampled, both.weight, both.bias, padding=1)
    got = F.pixel_shuffle(both(small_map), 2)
    torch.testing.assert_close(got[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2])
    torch.testing.assert_close(both.fold()(small_map), both(small_map))


def test_the_convolution_from_phases_to_phases_is_one_of_the_large_map():
    torch.manual_seed(0)
    convolution, large_map = OutputConv(5, 3).double(), torch.rand(2, 5, 18, 24, dtype=torch.float64)
    phases = F.pixel_unshuffle(large_map, 2)
    expected = F.conv2d(large_map, convolution.weight, convolution.bias, padding=2)
    got = F.pixel_shuffle(convolution(phases), 2)
    torch.testing.assert_close(got[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2])
    torch.testing.assert_close(convolution.fold()(phases), convolution(phases))


def test_every_phase_has_its_own_mean_and_deviation_and_its_paintings_scale_and_bias():
    torch.manual_seed(0)
    layer, phases = Norm(3, 4), 5 + 2 * torch.randn(2, 12, 10, 14)
    vectors = torch.tensor([[1.0, 2, 3, 0, 10, 20], [4, 5, 6, 30, 40, 50]])
    large_map = F.pixel_shuffle(layer(phases, vectors), 2).numpy()
    for row, column in np.ndindex(2, 2):
        phase = large_map[:, :, row::2, column::2]
        np.testing.assert_allclose(phase.mean((2, 3)), [[0, 10, 20], [30, 40, 50]], atol=1e-5)
        np.testing.assert_allclose(phase.std((2, 3)), [[1, 2, 3], [4, 5, 6]], rtol=1e-4)
    for number in range(2):
        alone = layer(phases[number : number + 1], vectors[number : number + 1])
        torch.testing.assert_close(layer.fold(vectors[number])(phases)[number : number + 1], alone)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_norms_of_a_painting_are_torchs_with_its_slices_of_the_vector(name):
    torch.manual_seed(0)
    network = create_network(name, 8, 2, paintings=3)
    with torch.no_grad():
        network.vectors.normal_()
    seen, first = {}, 0

    def see(module: nn.Module, given: tuple, made: torch.Tensor) -> None:
        seen[module] = given[0], made

    for norm in network.norms():
        norm.register_forward_hook(see)
    network(torch.rand(3, 3, 40, 44), network.vectors[[2, 0, 1]])
    for norm in network.norms():
        given, made = seen[norm]
        width = given.shape[1] // norm.phases
        for picture, painting in enumerate([2, 0, 1]):
            scale, bias = network.vectors[painting, first : first + 2 * width].chunk(2)
            plain = nn.InstanceNorm2d(given.shape[1], affine=True)
            plain.weight.data, plain.bias.data = (t.detach().repeat_interleave(norm.phases) for t in (scale, bias))
            torch.testing.assert_close(plain(given[picture][None])[0], made[picture])
        first += 2 * width
    assert first == network.vectors.shape[1]


def test_pictures_of_several_paintings_in_a_batch_are_what_each_alone_is():
    torch.manual_seed(0)
    network, images = create_network("fast", 8, 2, paintings=3), torch.rand(4, 3, 40, 44)
    with torch.no_grad():
        network.vectors.add_(0.3 * torch.randn_like(network.vectors))
    chosen = torch.tensor([2, 0, 2, 1])
    together = network(images, network.vectors[chosen])
    for picture, painting in enumerate(chosen):
        alone = network(images[picture][None], network.vectors[painting][None])
        torch.testing.assert_close(together[picture][None], alone)


def test_laying_phases_out_as_a_transposed_convolution_is_pixel_shuffle():
    phases = torch.randn(2, 12, 5, 7)
    assert torch.equal(PhasePixels(3).fold()(phases), F.pixel_shuffle(phases, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_for_inference_the_same_figures_come_from_plain_convolutions(name):
    network, image = small(name).eval(), torch.rand(1, 3, 37, 50)
    folded = for_inference(network)
    assert not any(hasattr(m, "fold") for m in folded.modules())
    torch.testing.assert_close(folded(image), network(image), rtol=1e-4, atol=1e-5)
    assert network.training is False


def test_grain_has_as_much_energy_in_every_octave():
    grain = Grain(1).grain.double().numpy()
    power = np.abs(np.fft.fft2(grain)) ** 2 / grain.size**2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size) for size in grain.shape]))
    lowest = 1 / Grain.LARGEST
    octaves = [power[(frequency >= low) & (frequency < 2 * low)].sum() for low in (lowest, 2 * lowest)]
    np.testing.assert_allclose(octaves, np.mean(octaves), rtol=0.15)
    np.testing.assert_allclose((grain.mean(), grain.std()), (0, 1), atol=1e-6)


def test_outside_training_grain_starts_at_the_corner_and_repeats():
    layer = Grain(3).eval()
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1))
        added = layer(torch.ones(2, 3, 300, 141), torch.rand(2, 3, 8, 8))[1] - 1
    rows, columns = np.arange(300) % Grain.PERIOD, np.arange(141) % Grain.PERIOD
    for channel in range(3):
        expected = channel * layer.grain.numpy()[np.ix_(rows, columns)]
        np.testing.assert_allclose(added[channel].numpy(), expected, atol=1e-6)


def test_in_training_every_picture_has_a_part_of_the_grain_that_follows_from_it_alone():
    layer, images = Grain(1), torch.randint(0, 256, (6, 3, 32, 32)) / 255
    with torch.no_grad():
        parts = (layer(torch.zeros(6, 1, 40, 50), images) / Grain.START)[:, 0]
        alone = (layer(torch.zeros(1, 1, 40, 50), images[4:5]) / Grain.START)[0, 0]
    assert torch.equal(alone, parts[4])
    # a corner's value is nearly unique in the map
    corners = [tuple(np.argwhere(np.isclose(layer.grain, part[0, 0], rtol=1e-6))[0]) for part in parts]
    assert len(set(corners)) == 6
    for (row, column), part in zip(corners, parts, strict=True):
        expected = np.roll(layer.grain.numpy(), (-row, -column), (0, 1))[:40, :50]
        np.testing.assert_allclose(part.numpy(), expected, atol=1e-6)


def test_contrast_is_each_octave_of_brightness_over_its_deviation_there():
    image = torch.rand(2, 3, 80, 96, generator=torch.Generator().manual_seed(0)) ** 3
    layer = Contrast(3).double()
    with torch.no_grad():
        layer.scale.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0])).view(3, 3, 1, 1))  # an octave for each channel
        added = (layer(torch.ones(2, 3, 20, 24).double(), image.double()) - 1).numpy()

    def box(map_: np.ndarray, side: int) -> np.ndarray:
        reach, (height, width) = side // 2, map_.shape
        means = np.empty_like(map_)
        for row, column in np.ndindex(height, width):
            rows, columns = (slice(max(i - reach, 0), i + reach + 1) for i in (row, column))
            means[row, column] = map_[rows, columns].mean()
        return means

    for pixels, found in zip(image.double().numpy(), added, strict=True):
        brightness = pixels.mean(0).reshape(20, 4, 24, 4).mean((1, 3))
        levels = [box(box(brightness, side), side) for side in (3, 7, 15, 31)]
        for number, side in enumerate((15, 31, 63)):
            octave = levels[number] - levels[number + 1]
            expected = octave / (np.sqrt(box(box(octave**2, side), side)) + Contrast.FAINT)
            np.testing.assert_allclose(found[number], (number + 1) * expected, atol=1e-9)


def test_contrast_brings_a_faint_pattern_up_to_nearly_a_strong_one_s_level_and_leaves_flats_flat():
    rng = np.random.default_rng(0)
    levels = {}
    layer = Contrast(1)
    with torch.no_grad():
        for octave in range(3):
            side = 8 * 2**octave  # squares of a size that it sees
            squares = rng.standard_normal((1, 1, 320 // side, 320 // side)).repeat(side, 2).repeat(side, 3)
            pattern = torch.from_numpy(squares).float().repeat(1, 3, 1, 1)
            layer.scale[:] = torch.eye(3)[octave].view(3, 1, 1, 1)
            for depth in (0.0, 0.03, 0.15):
                levels[depth] = float(layer(torch.zeros(1, 1, 80, 80), 0.5 + depth * pattern).std())
            assert levels[0.0] < 1e-3
            assert levels[0.03] > 0.8 * levels[0.15]
            assert 0.9 < levels[0.15] < 1.1


@pytest.mark.parametrize("name", ["fast", "johnson"])
def test_strokes_follow_a_faint_pattern_where_they_grow_from_contrast(name):
    """A faint pattern in the left half of a picture changes it more than where strokes grow from grain."""
    pattern = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).repeat(16, 2).repeat(16, 3)  # as large as strokes
    image = torch.full((1, 3, 96, 192), 0.5)
    image[..., 96:] += 0.3 * torch.from_numpy(pattern).float()
    faint = image.clone()
    faint[..., :96] += 0.02 * torch.from_numpy(pattern).float()

    def moved(grown_from: str) -> float:
        """Mean over six networks, whose scales are drawn at random as before training."""
        changes = []
        for seed in range(6):
            torch.manual_seed(seed)
            options = {"grain": grown_from == "grain", "contrast": grown_from == "contrast"}
            network = create_network(name, 16, 1, **options).eval()
            with torch.no_grad():
                scale = network.get_parameter(f"{grown_from}.scale")
                scale.copy_(torch.randn(scale.shape))
                changes.append(float((network(faint) - network(image))[..., 16:80].std()))
        return float(np.mean(changes))

    assert moved("contrast") > 3 * moved("grain")


def test_strokes_may_grow_from_both_or_from_neither():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pictures = {}
    for options in ((False, False), (True, False), (False, True), (True, True)):
        torch.manual_seed(0)
        network = create_network("fast", 16, 1, grain=options[0], contrast=options[1]).eval()
        names = {name.partition(".")[0] for name in network.state_dict()} - {"stem", "body", "vectors"}
        assert names == {name for name, on in zip(("grain", "contrast"), options, strict=True) if on}
        with torch.no_grad():
            pictures[options] = network(image)
    for a, b in itertools.combinations(pictures.values(), 2):
        assert (a - b).abs().max() > 0.01


@pytest.mark.parametrize(("option", "kept"), [("noise", {"grain"}), ("contrast", {"contrast"}), ("none", set())])
def test_a_network_of_an_earlier_version_says_what_its_strokes_grow_from(option, kept):
    network = upgraded({"network": {"name": "fast", "width": 16, "blocks": 1, "grain": option}})["network"]
    assert {key for key in ("grain", "contrast") if network[key]} == kept
    assert network["margin"] == 8  # which was the only one
    assert upgraded({"trainer": {}})["trainer"]["own_style"] == 1


@pytest.mark.parametrize("name", ["fast", "tiny"])
def test_with_grain_a_flat_picture_does_not_come_out_flat_or_with_the_network_s_own_period(name):
    network = create_network(name, 16, 2, grain=True).eval()
    with torch.no_grad():
        stylized = network(torch.full((1, 3, 128, 128), 0.5))
    assert stylized.std() > 0.01
    shifted = stylized[..., network.stride :, network.stride :] - stylized[..., : -network.stride, : -network.stride]
    assert shifted.std() > 0.1 * stylized.std()


def test_without_grain_a_flat_picture_comes_out_flat():
    """A convolution with reflection makes a constant of a constant, a norm its shift."""
    network = create_network("johnson", 16, 2).eval()
    with torch.no_grad():
        stylized = network(torch.full((1, 3, 61, 64), 0.5))
    assert (stylized.amax((2, 3)) - stylized.amin((2, 3))).max() < 1e-5


def test_unknown_network_is_a_user_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"'jonson'.*did you mean johnson\?.*fast, johnson"):
        create_network("jonson", 32, 5)


@pytest.mark.parametrize("margin", [0, 8, 24])
def test_outside_training_the_fast_network_sees_the_picture_continued_by_reflection(margin):
    network = create_network("fast", 16, 1, margin=margin)
    image = torch.rand(1, 3, 33, 46, generator=torch.Generator().manual_seed(0))
    around = ((0, 0), (0, 0), (margin, margin + 3), (margin, margin + 2))  # and on to multiples of the stride
    continued = torch.from_numpy(np.pad(image.numpy(), around, "reflect"))
    with torch.no_grad():
        expected = network.train()(continued)[:, :, margin : margin + 33, margin : margin + 46]
        torch.testing.assert_close(network.eval()(image), expected)
        least = network.min_size
        assert network(image[:, :, :least, :least]).shape == (1, 3, least, least)


@pytest.mark.parametrize("margin", [-4, 6, 28])
def test_a_margin_is_a_multiple_of_the_stride_up_to_24(margin):
    with pytest.raises(UserError, match=rf"network.margin is {margin}; a multiple of 4 from 0 to 24"):
        create_network("fast", 16, 1, margin=margin)


def test_making_a_copy_for_inference_leaves_the_network_as_it_is():
    network = small("fast")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for_inference(network)
    assert network.training
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
