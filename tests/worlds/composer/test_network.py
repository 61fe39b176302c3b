from dataclasses import replace

import pytest
import torch

from worldenv.ops.action_map import Gripper, action_map
from worldenv.ops.known_pictures import pictures as count_pictures
from worldenv.ops.patchify import PATCH
from worldenv.robot.camera import tabletop_camera
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork


def condition(batch, chunk, size):
    generator = torch.Generator().manual_seed(3)
    shape = batch, size // 2, size // 2, count_pictures(chunk), PATCH
    pictures = torch.rand(shape, generator=generator) * 2 - 1
    poses = torch.randn(batch, chunk + 1, 7, generator=generator) * 0.1
    return pictures, poses, torch.from_numpy(tabletop_camera(size).projection).repeat(batch, 1, 1, 1), Gripper()


def noise(batch, chunk, size):
    return torch.randn(batch, size // 2, size // 2, chunk, PATCH)


def guesses(pictures, chunk):  # the present frame with the thing where it will be after each action
    return pictures[:, :, :, 1 + 2 * chunk : 1 + 3 * chunk]


@pytest.mark.parametrize(("chunk", "size"), [(2, 64), (4, 32), (4, 64), (1, 8)])
def test_untrained_network_begins_near_the_present_frame_with_the_thing_where_it_will_be(tiny, chunk, size):
    network, given = ComposerNetwork(tiny.simulator_config(size, chunk)), condition(3, chunk, size)
    frames = network.denoise(noise(3, chunk, size), torch.ones(3), network.see(*given))
    assert frames.shape == (3, size // 2, size // 2, chunk, PATCH)
    apart = (frames - guesses(given[0], chunk)).abs()
    assert apart.max() < 0.45 and apart.mean() < 0.15


def test_what_all_sources_agree_on_is_kept_before_any_training(tiny):
    network, (pictures, *gripper) = ComposerNetwork(tiny.simulator_config(16)), condition(3, 4, 16)
    picture = pictures[:1, :, :, :1]
    network.plate.data = picture[0, :, :, 0].clone()
    seen = network.see(picture.expand_as(pictures), *gripper)
    frames = network.denoise(noise(3, 4, 16), torch.ones(3), seen)
    torch.testing.assert_close(frames, picture.expand_as(frames), rtol=0, atol=1e-6)


def test_exact_network_with_so_many_sources_that_all_shares_may_be_dropped_is_refused():
    assert ComposerConfig(chunk=4, exact=True).sources == 18 and ComposerConfig(chunk=5).sources == 22
    with pytest.raises(ValueError, match="a chunk of 5 has 22: take a shorter chunk"):
        ComposerConfig(chunk=5, exact=True)


def test_exact_network_copies_a_pixel_that_it_is_sure_of_exactly(tiny):
    pictures, *gripper = condition(2, 4, 16)
    network = ComposerNetwork(replace(tiny.simulator_config(16), exact=True))
    seen = network.see(pictures, *gripper)
    noisy, t = noise(2, 4, 16), torch.ones(2)
    network.prefer.data.zero_()
    network.prefer.data[0] = 5.9  # the present frame: 0.96, and 0.003 for every other source
    network.compose.bias.data[:] = 0.0
    network.compose.bias.data[: 3 * 16] = 0.019  # the first corrections, too small to count
    frames = network.denoise(noisy, t, seen)
    assert torch.equal(frames, pictures[:, :, :, :1].expand_as(frames))
    network.compose.bias.data[: 3 * 16] = 0.5
    assert not torch.equal(network.denoise(noisy, t, seen), frames)


def test_every_input_moves_the_prediction(tiny):
    network, given = tiny.simulator(), list(condition(2, 4, 16))
    noisy, t = torch.zeros(2, 8, 8, 4, PATCH), torch.full((2,), 0.5)
    base = network.denoise(noisy, t, network.see(*given))
    assert not torch.allclose(base, network.denoise(noisy + 1, t, network.see(*given)))
    assert not torch.allclose(base, network.denoise(noisy, t + 0.3, network.see(*given)))
    for i, place in ((0, 0), (0, 1), (0, 5), (0, 9), (0, 13), (0, 16), (1, 2), (2, 0)):
        other = [x.clone() for x in given[:3]]
        other[i].select((3, 1, 2)[i], place).add_(0.5)
        other.append(given[3])
        assert not torch.allclose(base, network.denoise(noisy, t, network.see(*other))), (i, place)
    wide = network.see(*given[:3], Gripper(hand_half_m=0.1))
    assert not torch.allclose(base, network.denoise(noisy, t, wide))


def test_map_is_seen_alike_with_a_gradient_and_without(tiny):
    network, (pictures, poses, camera, gripper) = tiny.simulator(), condition(2, 4, 16)
    maps = action_map(poses.flatten(0, 1), camera.repeat_interleave(5, 0), gripper, 16, 16).view(2, -1, 16, 16)
    expected = network.see_map(maps).permute(0, 2, 3, 1)
    expected = network.see_pictures(pictures.flatten(3), onto=expected)
    with_gradient = network.see(pictures, poses, camera, gripper).features
    with torch.no_grad():
        without = network.see(pictures, poses, camera, gripper).features
    assert with_gradient.requires_grad and torch.equal(with_gradient, expected)
    torch.testing.assert_close(without, expected.detach(), rtol=1e-5, atol=1e-5)


def test_an_episode_does_not_see_its_neighbours(tiny):
    network, given = tiny.simulator(), condition(5, 4, 16)
    noisy, t = noise(5, 4, 16), torch.linspace(0.2, 1, 5)
    together = network.denoise(noisy, t, network.see(*given))
    alone = network.denoise(noisy[3:4], t[3:4], network.see(*(x[3:4] for x in given[:3]), given[3]))
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(tiny):
    network, given = tiny.simulator(), condition(2, 4, 16)
    network.denoise(noise(2, 4, 16), torch.ones(2), network.see(*given)).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == [f"contact.{name}" for name, _ in network.contact.named_parameters()]  # it learns by itself


def test_corrections_and_choices_of_a_new_network_learn(tiny):
    network, given = ComposerNetwork(tiny.simulator_config(16)), condition(2, 4, 16)
    network.denoise(noise(2, 4, 16), torch.ones(2), network.see(*given)).square().sum().backward()
    assert network.compose.bias.grad.ne(0).all() and network.compose.weight.grad.ne(0).all()


@pytest.mark.parametrize("bad", [{"image_size": 60}, {"widths": (8, 12, 32)}, {"heads": 3}])
def test_sizes_that_do_not_divide_are_refused(bad):
    with pytest.raises(ValueError, match="multiples of 8"):
        ComposerConfig(**{"widths": (8, 16, 32), "layers": 1, "heads": 2, **bad})
