from dataclasses import replace

import pytest
import torch

from worldenv.ops.action_map import Gripper, action_map
from worldenv.ops.patchify import PATCH
from worldenv.ops.transport import moves
from worldenv.robot.camera import tabletop_camera
from worldenv.worlds.composer.network import MEMORY_FRAMES, ComposerConfig, ComposerNetwork


def condition(batch, chunk, size):
    generator = torch.Generator().manual_seed(3)
    pictures = MEMORY_FRAMES + moves(chunk)
    pictures = torch.rand(batch, size // 2, size // 2, pictures, PATCH, generator=generator) * 2 - 1
    poses = torch.randn(batch, chunk + 1, 7, generator=generator) * 0.1
    return pictures, poses, torch.from_numpy(tabletop_camera(size).projection).repeat(batch, 1, 1, 1), Gripper()


def noise(batch, chunk, size):
    return torch.randn(batch, size // 2, size // 2, chunk, PATCH)


def last(pictures, chunk):  # the last memory frame, once for each frame of a chunk
    return pictures[:, :, :, MEMORY_FRAMES - 1, None].expand(-1, -1, -1, chunk, -1)


@pytest.mark.parametrize(("chunk", "size"), [(2, 64), (4, 32), (4, 64), (1, 8)])
def test_untrained_network_begins_near_the_last_memory_frame(tiny, chunk, size):
    network, given = ComposerNetwork(tiny.simulator_config(size, chunk)), condition(3, chunk, size)
    frames = network.denoise(noise(3, chunk, size), torch.ones(3), network.see(*given))
    assert frames.shape == (3, size // 2, size // 2, chunk, PATCH)
    apart = (frames - last(given[0], chunk)).abs()
    assert apart.max() < 0.4 and apart.mean() < 0.1


def test_what_all_sources_agree_on_is_kept_before_any_training(tiny):
    network, (pictures, *gripper) = ComposerNetwork(tiny.simulator_config(16)), condition(3, 4, 16)
    picture = pictures[:1, :, :, :1]
    network.plate.data = picture[0, :, :, 0].clone()
    seen = network.see(picture.expand_as(pictures), *gripper)
    frames = network.denoise(noise(3, 4, 16), torch.ones(3), seen)
    torch.testing.assert_close(frames, picture.expand_as(frames), rtol=0, atol=1e-6)


def test_exact_network_with_so_many_sources_that_all_shares_may_be_dropped_is_refused():
    assert ComposerConfig(chunk=5, exact=True).sources == 19 and ComposerConfig(chunk=6).sources == 25
    with pytest.raises(ValueError, match="a chunk of 6 has 25: take a shorter chunk"):
        ComposerConfig(chunk=6, exact=True)


def test_exact_network_copies_a_pixel_that_it_is_sure_of_exactly(tiny):
    pictures, *gripper = condition(2, 4, 16)
    network = ComposerNetwork(replace(tiny.simulator_config(16), exact=True))
    seen = network.see(pictures, *gripper)
    noisy, t = noise(2, 4, 16), torch.ones(2)
    network.prefer.data[MEMORY_FRAMES - 1] = 5.6  # 0.95, and 0.004 for every other source
    network.compose.bias.data[:] = 0.0
    network.compose.bias.data[: 3 * 16] = 0.019  # the first corrections, too small to count
    frames = network.denoise(noisy, t, seen)
    assert torch.equal(frames, last(pictures, 4))
    network.compose.bias.data[: 3 * 16] = 0.5
    assert not torch.equal(network.denoise(noisy, t, seen), frames)


def test_every_input_moves_the_prediction(tiny):
    network, given = tiny.simulator(), list(condition(2, 4, 16))
    noisy, t = torch.zeros(2, 8, 8, 4, PATCH), torch.full((2,), 0.5)
    base = network.denoise(noisy, t, network.see(*given))
    assert not torch.allclose(base, network.denoise(noisy + 1, t, network.see(*given)))
    assert not torch.allclose(base, network.denoise(noisy, t + 0.3, network.see(*given)))
    for i, place in ((0, 0), (0, 1), (0, 2), (0, 6), (0, 12), (1, 2), (2, 0)):
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
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("bad", [{"image_size": 60}, {"widths": (8, 12, 32)}, {"heads": 3}])
def test_sizes_that_do_not_divide_are_refused(bad):
    with pytest.raises(ValueError, match="multiples of 8"):
        ComposerConfig(**{"widths": (8, 16, 32), "layers": 1, "heads": 2, **bad})
