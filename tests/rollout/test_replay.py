"""Open-loop replay: true actions imagined from the first frame on, the same as the engine imagined them."""

import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.world import Imagined
from worldenv.rollout.replay import replay

SEED = 11


@pytest.fixture(scope="module")
def engine(tiny):
    return tiny.engine(horizon=16)


@pytest.fixture(scope="module")
def starts(tiny):
    return tiny.starts(7)


@pytest.fixture(scope="module")
def rollouts(engine, starts):
    return engine.run(starts, 1, SEED, stop=False, video=True)


def near(one, other):
    return ((one.int() - other.int()).abs() <= 1).float().mean()


def test_replay_of_the_actions_of_a_rollout_shows_its_frames(engine, starts, rollouts):
    actions = rollouts.action.flatten(1, 2)
    shown = replay(engine.world, starts, actions, SEED)
    assert shown.shape == rollouts.video.shape == (7, 17, 1, 16, 16, 3)
    assert torch.equal(shown[:, 0], starts.seen.frames)
    assert near(shown, rollouts.video) > 0.999
    other = actions.clamp(-1, 1)
    other[:, 0, :3] += torch.where(other[:, 0, :3] > 0, -0.9, 0.9)  # 3 cm off from then on
    assert near(replay(engine.world, starts, other, SEED), rollouts.video) < 0.999


def test_what_is_left_of_a_whole_pass_is_not_imagined(engine, starts, rollouts):
    actions = rollouts.action.flatten(1, 2)
    shown = replay(engine.world, starts, actions[:, :15], SEED)
    assert torch.equal(shown, replay(engine.world, starts, actions[:, :12], SEED)) and shown.shape[1] == 13
    assert torch.equal(replay(engine.world, starts, actions[:, :3], SEED)[:, 0], starts.seen.frames)


def test_replay_changes_no_start_and_none_of_its_inputs(engine, starts, rollouts):
    before, actions = starts.seen.each(torch.clone), rollouts.action.flatten(1, 2)
    kept = actions.clone()
    replay(engine.world, starts, actions, SEED)
    assert all(torch.equal(a, b) for a, b in zip(starts.seen.tensors(), before.tensors(), strict=True))
    assert torch.equal(actions, kept)


def test_replay_in_inference_mode_and_on_many_threads_is_the_same(engine, tiny):
    starts = tiny.starts(70)
    actions = 2 * torch.rand(70, 8, 7, generator=torch.Generator().manual_seed(1)) - 1
    expected = replay(engine.world, starts, actions, SEED)
    torch.set_num_threads(3)
    try:
        with torch.inference_mode():
            assert near(replay(engine.world, starts, actions, SEED), expected) > 0.999
    finally:
        torch.set_num_threads(1)


def test_no_thread_of_a_replay_keeps_a_gradient(engine, tiny):
    class Watched:
        """A world model that leaves it to its caller whether there is a gradient."""

        chunk, views, size, robot = 4, engine.world.views, engine.world.size, engine.world.robot
        device, modes = engine.world.device, []

        def begin(self, seen, chunk):
            return seen.each(torch.clone)

        def imagine(self, memory, seen, action, key):
            self.modes.append(torch.is_grad_enabled())
            frames = seen.frames[:, None].expand(-1, 4, -1, -1, -1, -1)
            return Imagined(frames, seen.proprio[:, None].expand(-1, 4, -1), torch.ones(len(action), dtype=torch.bool))

    torch.set_num_threads(2)
    try:
        replay(Watched(), tiny.starts(6), torch.zeros(6, 8, 7), SEED)
    finally:
        torch.set_num_threads(1)
    assert Watched.modes and not any(Watched.modes)


def test_starts_that_nothing_can_go_on_from_are_refused(engine, tiny):
    with pytest.raises(UserError, match=r"frames of the starts is .* \[2, 1, 32, 32, 3\]; the world model takes"):
        replay(engine.world, tiny.starts(2, size=32), torch.zeros(2, 4, 7), SEED)
