from dataclasses import replace

import pytest
import torch

from worldenv.ops.action_map import Gripper, action_map
from worldenv.ops.patchify import PATCH
from worldenv.ops.transport import moves
from worldenv.robot.camera import tabletop_camera
from worldenv.worlds.composer.network import MEMORY_FRAMES, Simulator, SimulatorConfig


def condition(batch, chunk, size):
    generator = torch.Generator().manual_seed(3)
    pictures = MEMORY_FRAMES + moves(chunk)
    pictures = torch.rand(batch, size // 2, size // 2, pictures, PATCH, generator=generator) * 2 - 1
    poses = torch.randn(batch, chunk + 1, 7, generator=generator) * 0.1
    return pictures, poses, torch.from_numpy(tabletop_camera(size).projection)


def noise(batch, chunk, size):
    return torch.randn(batch, size // 2, size // 2, chunk, PATCH)


def last(pictures, chunk):  # the last memory frame, once for each frame of a chunk
    return pictures[:, :, :, MEMORY_FRAMES - 1, None].expand(-1, -1, -1, chunk, -1)


@pytest.mark.parametrize(("chunk", "size"), [(2, 64), (4, 32), (4, 64), (1, 8)])
def test_untrained_network_begins_near_the_last_memory_frame(tiny, chunk, size):
    simulator, given = Simulator(tiny.simulator_config(size, chunk)), condition(3, chunk, size)
    frames = simulator.denoise(noise(3, chunk, size), torch.ones(3), simulator.see(*given))
    assert frames.shape == (3, size // 2, size // 2, chunk, PATCH)
    apart = (frames - last(given[0], chunk)).abs()
    assert apart.max() < 0.4 and apart.mean() < 0.1


def test_what_all_sources_agree_on_is_kept_before_any_training(tiny):
    simulator, (pictures, *gripper) = Simulator(tiny.simulator_config(16)), condition(3, 4, 16)
    picture = pictures[:1, :, :, :1]
    simulator.plate.data = picture[0, :, :, 0].clone()
    seen = simulator.see(picture.expand_as(pictures), *gripper)
    frames = simulator.denoise(noise(3, 4, 16), torch.ones(3), seen)
    torch.testing.assert_close(frames, picture.expand_as(frames), rtol=0, atol=1e-6)


def test_exact_network_with_so_many_sources_that_all_shares_may_be_dropped_is_refused():
    assert SimulatorConfig(chunk=5, exact=True).sources == 19 and SimulatorConfig(chunk=6).sources == 25
    with pytest.raises(ValueError, match="a chunk of 6 has 25: take a shorter chunk"):
        SimulatorConfig(chunk=6, exact=True)


def test_exact_network_copies_a_pixel_that_it_is_sure_of_exactly(tiny):
    pictures, *gripper = condition(2, 4, 16)
    simulator = Simulator(replace(tiny.simulator_config(16), exact=True))
    seen = simulator.see(pictures, *gripper)
    noisy, t = noise(2, 4, 16), torch.ones(2)
    simulator.prefer.data[MEMORY_FRAMES - 1] = 5.6  # 0.95, and 0.004 for every other source
    simulator.compose.bias.data[:] = 0.0
    simulator.compose.bias.data[: 3 * 16] = 0.019  # the first corrections, too small to count
    frames = simulator.denoise(noisy, t, seen)
    assert torch.equal(frames, last(pictures, 4))
    simulator.compose.bias.data[: 3 * 16] = 0.5
    assert not torch.equal(simulator.denoise(noisy, t, seen), frames)


def test_every_input_moves_the_prediction(tiny):
    simulator, given = tiny.simulator(), list(condition(2, 4, 16))
    noisy, t = torch.zeros(2, 8, 8, 4, PATCH), torch.full((2,), 0.5)
    base = simulator.denoise(noisy, t, simulator.see(*given))
    assert not torch.allclose(base, simulator.denoise(noisy + 1, t, simulator.see(*given)))
    assert not torch.allclose(base, simulator.denoise(noisy, t + 0.3, simulator.see(*given)))
    for i, place in ((0, 0), (0, 1), (0, 2), (0, 6), (0, 12), (1, 2), (2, 0)):
        other = [x.clone() for x in given]
        other[i].select((3, 1, 0)[i], place).add_(0.5)
        assert not torch.allclose(base, simulator.denoise(noisy, t, simulator.see(*other))), (i, place)


def test_map_is_seen_alike_with_a_gradient_and_without(tiny):
    simulator, (pictures, poses, projection) = tiny.simulator(), condition(2, 4, 16)
    maps = action_map(poses.flatten(0, 1), projection.expand(10, 1, 3, 4), Gripper(), 16, 16).view(2, -1, 16, 16)
    expected = simulator.see_map(maps).permute(0, 2, 3, 1)
    expected = simulator.see_pictures(pictures.flatten(3), onto=expected)
    with_gradient = simulator.see(pictures, poses, projection).features
    with torch.no_grad():
        without = simulator.see(pictures, poses, projection).features
    assert with_gradient.requires_grad and torch.equal(with_gradient, expected)
    torch.testing.assert_close(without, expected.detach(), rtol=1e-5, atol=1e-5)


def test_an_episode_does_not_see_its_neighbours(tiny):
    simulator, given = tiny.simulator(), condition(5, 4, 16)
    noisy, t = noise(5, 4, 16), torch.linspace(0.2, 1, 5)
    together = simulator.denoise(noisy, t, simulator.see(*given))
    alone = simulator.denoise(noisy[3:4], t[3:4], simulator.see(*(x[3:4] for x in given[:2]), given[2]))
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(tiny):
    simulator, given = tiny.simulator(), condition(2, 4, 16)
    simulator.denoise(noise(2, 4, 16), torch.ones(2), simulator.see(*given)).square().sum().backward()
    assert [name for name, p in simulator.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("bad", [{"image_size": 60}, {"widths": (8, 12, 32)}, {"heads": 3}])
def test_sizes_that_do_not_divide_are_refused(bad):
    with pytest.raises(ValueError, match="multiples of 8"):
        SimulatorConfig(**{"widths": (8, 16, 32), "layers": 1, "heads": 2, **bad})
