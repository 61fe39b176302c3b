import pytest
import torch

from worldenv.ops.action_map import Gripper, action_map
from worldenv.robot.camera import tabletop_camera
from worldenv.worlds.causal.network import LIBERO_BASE, Causal, CausalConfig
from worldenv.worlds.causal.tokenizer import PatchTokenizer
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.world import World

CONFIG = CausalConfig(image_size=32, patch=8, channels=6, chunk=2, window=4, width=48, layers=3, heads=3, key_heads=1)
POSE = torch.tensor([0.0, 0.05, 0.1, 0.0, 0.0, 0.0, 0.5])


def make(config=CONFIG, seed=0, levels=(1.0, 0.5)):
    torch.manual_seed(seed)
    network = Causal(config).eval().requires_grad_(False)
    for parameter in network.parameters():  # tables and gates far from their small beginnings
        parameter.add_(0.1 * torch.randn_like(parameter))
    return CausalWorld(network, tabletop_camera(config.image_size), levels)


def begin(world, episodes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (episodes, world.size, world.size, 3), generator=draw, dtype=torch.uint8)
    proprio = POSE + 0.02 * torch.randn(episodes, 7, generator=draw)
    return frames, proprio


def walk(world, frames, proprio, chunks, ids=None, seed=0):
    """Frames [E, chunks, K, H, W, 3] and the memory after `chunks` chunks along fixed poses."""
    memory, out = world.begin(frames, proprio), []
    ids = torch.arange(len(frames)) if ids is None else ids
    for chunk in range(chunks):
        step = 0.01 * torch.arange(world.chunk + 1)[None, :, None] + 0.01 * ids[:, None, None]
        poses = proprio[:, None] + step + 0.02 * chunk
        pictures, finite = world.imagine(memory, frames, poses, seed, ids, torch.full_like(ids, chunk))
        assert finite.all()
        out.append(pictures)
    return torch.stack(out, dim=1), memory


def conditions(world, poses):  # [E, N, 7]
    size = world.size // CONFIG.map_shrink
    camera = world.projection.expand(poses[..., 0].numel(), 1, 3, 4)
    maps = action_map(poses.flatten(0, 1), camera, Gripper(), size, size)[:, 0].unflatten(0, poses.shape[:2])
    return world.simulator.condition(maps, poses)


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 5])  # the ring has room for three, then it goes round
def test_reading_the_ring_gives_what_reading_all_frames_again_gives(chunks):
    world, (e, k, tokens) = make(), (2, CONFIG.chunk, CONFIG.tokens)
    frames, proprio = begin(world, e)
    draw = torch.Generator().manual_seed(1)
    n = 1 + (chunks + 1) * k
    latents = torch.randn(e, n, tokens, CONFIG.channels, generator=draw)
    poses = POSE + 0.02 * torch.randn(e, n, 7, generator=draw)
    t = torch.zeros(e, n)
    t[:, -k:] = 0.7
    with torch.no_grad():
        seen = conditions(world, poses)
        expected = world.simulator.velocity_of_all(latents, t, seen)[:, -k:].flatten(1, 2)

        ring, seen = world.simulator.new_ring(e), seen.view(e, n, tokens, -1)
        zero = torch.zeros(e, dtype=torch.int32)
        world.simulator.remember(latents[:, 0], seen[:, 0], ring, zero, zero, zero + tokens)
        for chunk in range(chunks + 1):
            here = slice(1 + chunk * k, 1 + (chunk + 1) * k)
            rooms = CONFIG.window // k + 1
            place, length = chunk % rooms, min(chunk + 1, rooms)
            where = (zero + tokens * (1 + place * k), zero + here.start, zero + tokens * (1 + length * k))
            args = (latents[:, here].flatten(1, 2), seen[:, here].flatten(1, 2), ring, *where)
            if chunk < chunks:
                world.simulator.remember(*args)
        found = world.simulator.velocity(args[0], torch.full((e,), 0.7), *args[1:])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_episode_is_the_same_alone_and_among_others():
    world = make()
    frames, proprio = begin(world)
    together, _ = walk(world, frames, proprio, 5)
    alone, _ = walk(world, frames[1:2], proprio[1:2], 5, ids=torch.tensor([1]))
    assert (alone[0].int() - together[1].int()).abs().max() <= 1


def test_episodes_at_different_chunks_share_a_pass():
    world = make()
    frames, proprio = begin(world, 2)
    expected, _ = walk(world, frames, proprio, 3)
    memory, ids = world.begin(frames, proprio), torch.arange(2)

    def poses(chunk):  # [2]
        step = 0.01 * torch.arange(world.chunk + 1)[None, :, None] + 0.01 * ids[:, None, None]
        return proprio[:, None] + step + 0.02 * chunk[:, None, None]

    first, other = torch.tensor([0, 0]), torch.tensor([1, 0])
    world.imagine(memory[:1], frames[:1], poses(first)[:1], 0, ids[:1], first[:1])  # the first is a chunk ahead
    pictures, _ = world.imagine(memory, frames, poses(other), 0, ids, other)
    assert (pictures[0].int() - expected[0, 1].int()).abs().max() <= 1
    assert (pictures[1].int() - expected[1, 0].int()).abs().max() <= 1


def test_the_past_is_seen_as_far_as_the_window_and_the_first_frame_always():
    world = make()
    frames, proprio = begin(world, 1)
    n, tokens, k = 1 + 5 * CONFIG.chunk, CONFIG.tokens, CONFIG.chunk
    latents = torch.randn(1, n, tokens, CONFIG.channels, requires_grad=True)
    poses = POSE.expand(1, n, 7)
    # One layer sees no further than the window; several hand on what lies before it. So look at one.
    world.simulator.layers = world.simulator.layers[:1]
    out = world.simulator.velocity_of_all(latents, torch.zeros(1, n), conditions(world, poses))
    out[0, 1 + 3 * k].square().sum().backward()
    touched = latents.grad.abs().sum((0, 2, 3)) > 0
    expected = [frame == 0 or 1 + 1 * k <= frame < 1 + 4 * k for frame in range(n)]
    assert touched.tolist() == expected


def test_eight_bits_in_the_ring_change_little():
    config = CausalConfig(**{**CONFIG.__dict__, "cache": "int8"})
    exact, small = make(), make(config)
    small.simulator.load_state_dict(exact.simulator.state_dict())
    frames, proprio = begin(exact)
    (a, ring), (b, other) = walk(exact, frames, proprio, 4), walk(small, frames, proprio, 4)
    assert (a.float() - b.float()).abs().mean() < 2.0
    assert other.bytes_each() < 0.5 * ring.bytes_each()


@pytest.mark.parametrize("cache", ["float", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_the_precision_changes_little_and_places_stay_exact(dtype, cache):
    exact, half = make(), make(CausalConfig(**{**CONFIG.__dict__, "cache": cache}))
    half.simulator.load_state_dict(exact.simulator.state_dict())
    half.simulator.to(dtype)
    assert torch.equal(half.simulator.time_angle, exact.simulator.time_angle)
    assert torch.equal(half.simulator.space_angle, exact.simulator.space_angle)
    frames, proprio = begin(exact)
    (a, _), (b, ring) = walk(exact, frames, proprio, 4), walk(half, frames, proprio, 4)
    assert ring.keys.dtype == (dtype if cache == "float" else torch.int8)
    assert 0 < (a.float() - b.float()).abs().mean() < 2.0


def test_other_noise_gives_other_frames():
    world = make()
    frames, proprio = begin(world)
    assert not torch.equal(walk(world, frames, proprio, 1)[0], walk(world, frames, proprio, 1, seed=1)[0])


def test_broken_episode_is_told_and_spoils_no_other():
    world = make()
    frames, proprio = begin(world)
    clean, memory = walk(world, frames, proprio, 1)
    memory = world.begin(frames, proprio)
    memory.values[1, 0, 0, 3, 0] = float("nan")
    ids = torch.arange(3)
    poses = proprio[:, None] + 0.01 * torch.arange(world.chunk + 1)[None, :, None] + 0.01 * ids[:, None, None]
    pictures, finite = world.imagine(memory, frames, poses, 0, ids, torch.zeros_like(ids))
    assert finite.tolist() == [True, False, True]
    assert torch.equal(pictures[0], clean[0, 0]) and torch.equal(pictures[2], clean[2, 0])


def test_network_has_a_gradient_everywhere():
    world = make()
    network = world.simulator.requires_grad_(True)
    n = 1 + CONFIG.chunk
    seen = conditions(world, POSE.expand(1, n, 7))
    out = network.velocity_of_all(torch.randn(1, n, CONFIG.tokens, CONFIG.channels), torch.rand(1, n), seen)
    out.square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("tokenizer.") for name in without)


def test_tokenizer_gives_back_what_its_channels_can_hold():
    tokenizer = PatchTokenizer(4, 48)
    frames = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        latents = tokenizer.encode(frames)
        assert latents.shape == (2, 24, 48)
        assert (tokenizer.decode(latents, 24).int() - frames.int()).abs().max() <= 1


def test_full_size_has_400_million_parameters_and_an_episode_fits_8_mb():
    with torch.device("meta"):
        network = Causal(LIBERO_BASE)
        ring = network.new_ring(1)
    assert 3.8e8 < sum(p.numel() for p in network.parameters()) < 4.4e8
    assert ring.bytes_each() < 8e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": 7}, "image_size must be a multiple of patch"),
        ({"window": 3}, "window of chunk"),
        ({"heads": 5}, "width must be a multiple of 8 heads"),
        ({"heads": 6, "key_heads": 4}, "heads of key_heads"),
        ({"heads": 0}, "all but window must be positive"),
        ({"layers": 0}, "all but window must be positive"),
        ({"patch": 0}, "all but window must be positive"),
        ({"map_shrink": 0}, "all but window must be positive"),
        ({"window": -2}, "all but window must be positive, and that not negative"),
        ({"cache": "int4"}, "cache is 'int4'; it should be 'float' or 'int8'"),
    ],
)
def test_impossible_configuration_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CausalConfig(**{**CONFIG.__dict__, **wrong})


@pytest.mark.parametrize("kind", ["composing", "causal"])
def test_camera_of_another_size_and_levels_that_lead_nowhere_are_refused(tiny, kind):
    network, make = (tiny.simulator(size=32), World) if kind == "composing" else (Causal(CONFIG), CausalWorld)
    with pytest.raises(ValueError, match="the camera has 64 x 64 pixels; the simulator imagines 32 x 32"):
        make(network, tabletop_camera(64), (1.0,))
    for levels in ((), (0.5,), (1.0, 1.0), (1.0, 0.0), (1.0, 0.5, 0.7), (float("nan"),), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="levels is .*; they should begin with 1.0 and fall, all above 0"):
            make(network, tabletop_camera(32), levels)
