import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.worlds.causal.network import LIBERO_BASE, CausalConfig, CausalNetwork
from worldenv.worlds.causal.tokenizer import PatchTokenizer
from worldenv.worlds.causal.world import CausalWorld

CONFIG = CausalConfig(image_size=32, patch=8, channels=6, chunk=2, window=4, width=48, layers=3, heads=3, key_heads=1)
POSE = torch.tensor([0.0, 0.05, 0.1, 0.0, 0.0, 0.0, 0.5])


def make(config=CONFIG, seed=0, levels=(1.0, 0.5)):
    torch.manual_seed(seed)
    network = CausalNetwork(config).eval().requires_grad_(False)
    for parameter in network.parameters():  # tables and gates far from their small beginnings
        parameter.add_(0.1 * torch.randn_like(parameter))
    return CausalWorld(network, moved_gripper(Kinematics()), levels)


def camera(count, size=CONFIG.image_size):  # [count, 1, 3, 4]
    return torch.from_numpy(tabletop_camera(size).projection).repeat(count, 1, 1, 1)


def begin(world, episodes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (episodes, 1, *world.size, 3), generator=draw, dtype=torch.uint8)
    proprio = POSE + 0.02 * torch.randn(episodes, 7, generator=draw)
    return Observation(frames, proprio, camera(episodes), torch.zeros(episodes, dtype=torch.int64))


def action(ids, chunk):  # [E], [E] -> [E, K, 7], another one for every episode and chunk
    step = torch.arange(CONFIG.chunk)[None, :, None] + 0.5 * chunk[:, None, None] + ids[:, None, None]
    return (0.7 * step + torch.arange(7)).sin()


def imagine(world, memory, seen, ids, chunk, seed=0):
    out = world.imagine(memory, seen, action(ids, chunk), Key(seed, ids, chunk))
    return out.frames[:, :, 0], out.proprio, out.finite


def walk(world, seen, chunks, ids=None, seed=0):
    """Frames [E, chunks, K, H, W, 3] and the memory after `chunks` chunks along fixed actions."""
    seen, out = seen.each(torch.clone), []
    memory = world.begin(seen, world.chunk)
    ids = torch.arange(len(seen)) if ids is None else ids
    for chunk in range(chunks):
        frames, proprio, finite = imagine(world, memory, seen, ids, torch.full_like(ids, chunk), seed)
        assert finite.all()
        out.append(frames)
        seen.frames, seen.proprio = frames[:, -1:], proprio[:, -1]
    return torch.stack(out, dim=1), memory


def conditions(world, poses):  # [E, N, 7]
    return world.condition(poses, camera(len(poses)))


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 5])  # the ring has room for three, then it goes round
def test_reading_the_ring_gives_what_reading_all_frames_again_gives(chunks):
    world, (e, k, tokens) = make(), (2, CONFIG.chunk, CONFIG.tokens)
    draw = torch.Generator().manual_seed(1)
    n = 1 + (chunks + 1) * k
    latents = torch.randn(e, n, tokens, CONFIG.channels, generator=draw)
    poses = POSE + 0.02 * torch.randn(e, n, 7, generator=draw)
    t = torch.zeros(e, n)
    t[:, -k:] = 0.7
    with torch.no_grad():
        seen = conditions(world, poses)
        expected = world.network.velocity_of_all(latents, t, seen)[:, -k:].flatten(1, 2)

        ring, seen = world.network.new_ring(e), seen.view(e, n, tokens, -1)
        zero = torch.zeros(e, dtype=torch.int32)
        world.network.remember(latents[:, 0], seen[:, 0], ring, zero, zero, zero + tokens)
        for chunk in range(chunks + 1):
            here = slice(1 + chunk * k, 1 + (chunk + 1) * k)
            rooms = CONFIG.window // k + 1
            place, length = chunk % rooms, min(chunk + 1, rooms)
            where = (zero + tokens * (1 + place * k), zero + here.start, zero + tokens * (1 + length * k))
            args = (latents[:, here].flatten(1, 2), seen[:, here].flatten(1, 2), ring, *where)
            if chunk < chunks:
                world.network.remember(*args)
        found = world.network.velocity(args[0], torch.full((e,), 0.7), *args[1:])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_episode_is_the_same_alone_and_among_others():
    world = make()
    seen = begin(world)
    together, _ = walk(world, seen, 5)
    alone, _ = walk(world, seen[1:2], 5, ids=torch.tensor([1]))
    assert (alone[0].int() - together[1].int()).abs().max() <= 1


def test_episodes_at_different_chunks_share_a_pass():
    world = make()
    seen, ids = begin(world, 2), torch.arange(2)
    expected, _ = walk(world, seen, 3)
    memory, first, other = world.begin(seen, world.chunk), torch.tensor([0, 0]), torch.tensor([1, 0])
    ahead, proprio, _ = imagine(world, memory[:1], seen[:1], ids[:1], first[:1])  # the first is a chunk ahead
    seen.frames[0, 0], seen.proprio[0] = ahead[0, -1], proprio[0, -1]
    frames, *_ = imagine(world, memory, seen, ids, other)
    assert (frames[0].int() - expected[0, 1].int()).abs().max() <= 1
    assert (frames[1].int() - expected[1, 0].int()).abs().max() <= 1


def test_the_past_is_seen_as_far_as_the_window_and_the_first_frame_always():
    world = make()
    n, tokens, k = 1 + 5 * CONFIG.chunk, CONFIG.tokens, CONFIG.chunk
    latents = torch.randn(1, n, tokens, CONFIG.channels, requires_grad=True)
    poses = POSE.expand(1, n, 7)
    # One layer sees no further than the window; several hand on what lies before it. So look at one.
    world.network.layers = world.network.layers[:1]
    out = world.network.velocity_of_all(latents, torch.zeros(1, n), conditions(world, poses))
    out[0, 1 + 3 * k].square().sum().backward()
    touched = latents.grad.abs().sum((0, 2, 3)) > 0
    expected = [frame == 0 or 1 + 1 * k <= frame < 1 + 4 * k for frame in range(n)]
    assert touched.tolist() == expected


def test_eight_bits_in_the_ring_change_little():
    config = CausalConfig(**{**CONFIG.__dict__, "cache": "int8"})
    exact, small = make(), make(config)
    small.network.load_state_dict(exact.network.state_dict())
    seen = begin(exact)
    (a, ring), (b, other) = walk(exact, seen, 4), walk(small, seen, 4)
    assert (a.float() - b.float()).abs().mean() < 2.0
    assert other.bytes_each() < 0.5 * ring.bytes_each()


@pytest.mark.parametrize("cache", ["float", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_the_precision_changes_little_and_places_stay_exact(dtype, cache):
    exact, half = make(), make(CausalConfig(**{**CONFIG.__dict__, "cache": cache}))
    half.network.load_state_dict(exact.network.state_dict())
    half.network.to(dtype)
    assert torch.equal(half.network.time_angle, exact.network.time_angle)
    assert torch.equal(half.network.space_angle, exact.network.space_angle)
    seen = begin(exact)
    (a, _), (b, ring) = walk(exact, seen, 4), walk(half, seen, 4)
    assert ring.keys.dtype == (dtype if cache == "float" else torch.int8)
    assert 0 < (a.float() - b.float()).abs().mean() < 2.0


def test_other_noise_gives_other_frames():
    world = make()
    seen = begin(world)
    assert not torch.equal(walk(world, seen, 1)[0], walk(world, seen, 1, seed=1)[0])


def test_broken_episode_is_told_and_spoils_no_other():
    world = make()
    seen, ids = begin(world), torch.arange(3)
    clean, _ = walk(world, seen, 1)
    memory = world.begin(seen, world.chunk)
    memory.values[1, 0, 0, 3, 0] = float("nan")
    frames, _, finite = imagine(world, memory, seen, ids, torch.zeros_like(ids))
    assert finite.tolist() == [True, False, True]
    assert torch.equal(frames[0], clean[0, 0]) and torch.equal(frames[2], clean[2, 0])


def test_network_has_a_gradient_everywhere():
    world = make()
    network = world.network.requires_grad_(True)
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
        network = CausalNetwork(LIBERO_BASE)
        ring = network.new_ring(1)
    assert 3.8e8 < sum(p.numel() for p in network.parameters()) < 4.4e8
    assert ring.bytes_each() < 8e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": 7}, "image_size is 32; it should be a multiple of patch, 7"),
        ({"window": 3}, "window is 3; it should be a multiple of chunk, 2"),
        ({"heads": 5}, "width is 48; it should be a multiple of 8 heads, 40"),
        ({"heads": 6, "key_heads": 4}, "heads is 6; it should be a multiple of key_heads, 4"),
        ({"heads": 0}, "heads is 0; it should be a whole number from 1"),
        ({"layers": 10**9}, "layers is 1000000000; it should be a whole number from 1"),
        ({"layers": 1000, "width": 48_000}, "width is 48000 and layers 1000, which no memory holds"),
        ({"patch": 0}, "patch is 0"),
        ({"map_shrink": 0}, "map_shrink is 0"),
        ({"window": -2}, "window is -2; it should be a whole number from 0"),
        ({"channels": 193}, "channels is 193; a patch has only 192 numbers"),
        ({"cache": "int4"}, "cache is 'int4'; it should be float or int8"),
    ],
)
def test_impossible_configuration_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        CausalConfig(**{**CONFIG.__dict__, **wrong})
