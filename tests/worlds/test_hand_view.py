"""A world model of the view of a camera on the hand: action map and observation follow the imagined pose."""

from dataclasses import replace

import pytest
import torch

from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.interfaces.world import Imagined
from worldenv.robot.hand import cameras_after
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.replay import replay
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld, draw_maps
from worldenv.worlds.composer.world import ComposerWorld

CONFIG = CausalConfig(image_size=16, patch=4, map_shrink=2, channels=16, width=32, layers=1, heads=2, key_heads=1)
STILL = moved_gripper(Kinematics(), clear_m=CLEAR_M)
ROBOT = replace(STILL, hand_views=("agentview",))


def world(robot=ROBOT):
    torch.manual_seed(0)
    return CausalWorld(CausalNetwork(CONFIG).eval().requires_grad_(False), robot)


def acted(count, steps):
    return 2 * torch.rand(count, steps, 7, generator=torch.Generator().manual_seed(1)) - 1


def key(count, chunk=0):
    return Key(2, torch.arange(count), torch.full((count,), chunk))


def where(seen, poses):
    return cameras_after(seen.camera, seen.proprio, poses, ("agentview",), ("agentview",))


def test_action_maps_are_drawn_through_the_camera_of_their_frame(tiny, monkeypatch):
    from worldenv.worlds.causal import world as module

    seen, drawn = tiny.starts(3).seen, []
    monkeypatch.setattr(module, "draw_maps", lambda *given: drawn.append(given) or draw_maps(*given))
    made = world()
    imagined = made.imagine(made.begin(seen, 8), seen, acted(3, 8), key(3))
    expected = where(seen, imagined.proprio)
    assert torch.equal(imagined.camera, expected) and not torch.equal(expected[:, 0], expected[:, 7])
    (_, first, *_), (_, second, *_), (_, third, *_) = drawn
    assert first is seen.camera and torch.equal(torch.cat([second, third], dim=1), expected)
    maps = draw_maps(imagined.proprio, expected, ROBOT, CONFIG)
    for j in range(8):
        alone = draw_maps(imagined.proprio[:, j : j + 1], expected[:, j], ROBOT, CONFIG)
        assert torch.equal(maps[:, j], alone[:, 0])


def test_cameras_that_stand_still_are_not_in_what_is_imagined(tiny):
    seen, made = tiny.starts(3).seen, world(STILL)
    assert made.imagine(made.begin(seen, 4), seen, acted(3, 4), key(3)).camera is None


class Watched(CausalWorld):
    """Keeps the observations that it is given."""

    def imagine(self, memory, seen, action, key):
        self.given.append((key.episode.clone(), key.chunk.clone(), seen.each(torch.clone)))
        return super().imagine(memory, seen, action, key)


def test_engine_shows_every_chunk_the_camera_that_the_chunk_before_led_to(tiny):
    starts, made = tiny.starts(4), world()
    made.__class__, made.given = Watched, []
    out = tiny.engine(horizon=12, capacity=3, batch=2, world=made).run(starts, 1, 1, stop=False, video=True)
    moved = 0
    for ids, chunks, seen in made.given[2:]:  # after the trial passes
        for episode, chunk, camera in zip(ids.tolist(), chunks.tolist(), seen.camera, strict=True):
            first = starts.seen[episode : episode + 1]
            expected = where(first, out.proprio[episode, 4 * chunk][None, None])[0, 0] if chunk else first.camera[0]
            torch.testing.assert_close(camera, expected, rtol=0, atol=1e-4)
            moved += not torch.allclose(camera, first.camera[0], atol=1e-2)
    assert moved > 4


def test_environment_moves_the_camera_to_where_the_episode_stopped(tiny):
    starts = tiny.starts(5)
    env = WorldModelEnv(world(), tiny.reflector(), starts, EnvConfig(envs=5, horizon=12))
    env.seed(0)
    env.reset()
    begun = env.runner.episodes.seen.each(torch.clone)
    for chunk in range(3):
        env.step(acted(5, 4) * (1 - 0.2 * chunk))
        now = env.runner.episodes.seen
        expected = where(begun, now.proprio[:, None])[:, 0]
        torch.testing.assert_close(now.camera, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(now.camera, begun.camera, atol=1e-2)


def test_replay_follows_the_hand(tiny):
    starts, made = tiny.starts(3), world()
    made.__class__, made.given = Watched, []
    before = starts.seen.camera.clone()
    replay(made, starts, acted(3, 8), 0)
    _, _, seen = made.given[-1]
    poses, _ = ROBOT.kinematics.follow(starts.seen.proprio, None, acted(3, 8)[:, :4])
    torch.testing.assert_close(seen.camera, where(starts.seen, poses)[:, -1], rtol=0, atol=1e-5)
    assert torch.equal(starts.seen.camera, before)


def test_composer_refuses_the_view_of_the_hand(tiny):
    with pytest.raises(UserError, match="needs a camera that stands still, and agentview is on the hand: take another"):
        ComposerWorld(tiny.simulator(), ROBOT, (1.0,))


class Wrong(CausalWorld):
    """Imagines cameras that are wrong."""

    def imagine(self, memory, seen, action, key):
        out = super().imagine(memory, seen, action, key)
        return Imagined(out.frames, out.proprio, out.finite, camera=self.camera)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (
            torch.zeros(2, 1, 3, 4),
            r"imagined camera torch.float32 \[2, 1, 3, 4\]; it should be torch.float32 \[2, 4, 1, 3",
        ),
        (torch.full((2, 4, 1, 3, 4), torch.nan), "imagined camera that is not finite"),
    ],
)
def test_wrong_cameras_are_refused(tiny, camera, message):
    made = world(STILL)
    made.__class__, made.camera = Wrong, camera
    with pytest.raises(UserError, match=message):
        tiny.engine(horizon=4, world=made, capacity=2, batch=2).run(tiny.starts(2), 1, 0)
