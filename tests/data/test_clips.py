"""Batches of many episodes, the same from memory and from disk."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.data.formats import demos
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError

EVERY = torch.arange(10).expand(3, -1)


@pytest.fixture
def clips(tiny):
    return Clips.of([tiny.trajectory(5, 0), tiny.trajectory(9, 1), tiny.trajectory(1, 2)])


@pytest.fixture
def stored(make, tmp_path):
    """Two data sets of many parts and two views, and what is in them."""
    made = [make(i, steps, (5, 6), ("a", "b"), proprio=8) for i, steps in enumerate((40, 3, 17, 90, 1, 33))]
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, part in zip(folders, (made[:4], made[4:]), strict=True):
        with TrajectoryWriter(folder, per_file=1) as writer:
            for trajectory in part:
                writer.write(trajectory)
    return folders, made


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, (count,), generator=generator), torch.randint(95, (count, 9), generator=generator)


def equal(one, other):
    for field in fields(Clips):
        if field.name != "stored":
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_shorter_clips_are_padded_with_their_end(clips):
    frames = clips.frames_at(torch.arange(3), EVERY)
    assert len(clips) == 3 and clips.length.tolist() == [5, 9, 1] and frames.shape == (3, 10, 1, 16, 16, 3)
    assert frames[:, :, 0, 0, 0, 0].tolist() == [
        [0, 1, 2, 3, 4, 5, 5, 5, 5, 5],
        [40, 41, 42, 43, 44, 45, 46, 47, 48, 49],
        [80, 81, 81, 81, 81, 81, 81, 81, 81, 81],
    ]
    torch.testing.assert_close(clips.proprio[0, :, 3] * 1000, torch.tensor([0.0, 1, 2, 3, 4, 5, 5, 5, 5, 5]))
    assert not clips.actions[0, 5:].any() and clips.actions[1, 8, 0].item() == pytest.approx(0.048)
    assert clips.camera.shape == (3, 1, 3, 4) and clips.views == ("agentview",) and clips.frame_shape == (1, 16, 16)


def test_success_belongs_to_the_frame_that_shows_it(clips):
    assert clips.success[0].tolist() == [False, False, False, False, True, True, True, True, True, True]
    assert clips.success[2].tolist() == [False] + [True] * 9  # one step, a success


def test_chunks_repeat_the_last_action_at_the_end(clips):
    chunk = clips.action_chunks(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 3, 7, 0]), 4)
    assert chunk.shape == (4, 4, 7)
    expected = torch.tensor([[0.0, 1, 2, 3], [3, 4, 4, 4], [47, 48, 48, 48], [80, 80, 80, 80]])
    torch.testing.assert_close(chunk[..., 2] * 1000, expected)


def test_clips_from_disk_are_those_from_memory_bit_by_bit(stored):
    folders, made = stored
    disk, memory = Clips.open(folders), Clips.of(made)
    equal(disk, memory)
    equal(disk.in_memory(), memory)
    for count in (1, 50):
        found = [clips.frames_at(*draw(count)) for clips in (memory, disk, disk.in_memory())]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    last = disk.frames_at(torch.tensor([3]), torch.tensor([[95, 0, 90]]))[0]
    assert torch.equal(last, torch.from_numpy(made[3].frames[[-1, 0, -1]]))


def test_picked_clips_are_those_of_the_index(stored):
    folders, made = stored
    index = torch.tensor([5, 0, 5, 3])
    memory, disk = Clips.of(made).pick(index), Clips.open(folders).pick(index)
    equal(memory, disk)
    assert memory.instructions == tuple(made[i].instruction for i in index) and memory.length.tolist() == [
        33,
        40,
        33,
        90,
    ]
    episode, step = draw(20)
    frames = Clips.of(made).frames_at(index[episode % 4], step)
    assert all(torch.equal(clips.frames_at(episode % 4, step), frames) for clips in (memory, disk, disk.in_memory()))


def test_sampled_frames_are_real_ones_each_as_likely_and_depend_on_the_generator(clips):
    def sample(seed):
        drawn = clips.sample_frames(torch.Generator().manual_seed(seed), 9000)
        assert drawn.shape == (9000, 1, 16, 16, 3)
        return drawn[:, 0, 0, 0, 0].long()

    count = torch.bincount(sample(0), minlength=82)
    assert (count > 0).nonzero()[:, 0].tolist() == [*range(6), *range(40, 50), 80, 81]
    assert count[count > 0].min() > 400 and count.max() < 600
    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


def test_clips_go_to_other_processes(stored):
    disk = Clips.open(stored[0])
    expected = disk.frames_at(*draw(20))
    again = pickle.loads(pickle.dumps(disk))
    assert torch.equal(again.frames_at(*draw(20)), expected)
    context = torch.multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        sums = pool.starmap(_sum, [(disk, i) for i in range(8)])
    assert sums == [_sum(disk, i) for i in range(8)]


def _sum(clips, seed):
    return int(clips.frames_at(*draw(20, seed)).sum())


def test_each_chunk_of_a_file_is_read_once_and_runs_are_bounded():
    steps = torch.tensor([0, 5, 9, 15, 40, 41, 60, 64, 100]).numpy()
    found = list(demos._runs(steps, (16, 8, 8, 3)))
    assert [steps[a:b].tolist() for a, b in found] == [[0, 5, 9, 15], [40, 41], [60], [64], [100]]
    assert [steps[a:b].tolist() for a, b in demos._runs(steps, None)][:3] == [[0], [5], [9]]
    assert list(demos._runs(steps[:0], None)) == []
    long = list(demos._runs(torch.arange(200).numpy(), (16, 8, 8, 3)))
    assert long == [(0, 64), (64, 128), (128, 192), (192, 200)]


def test_clips_of_nothing_or_of_several_kinds_are_refused(tiny, make, stored, tmp_path):
    with pytest.raises(ValueError, match="at least one trajectory"):
        Clips.of([])
    with pytest.raises(
        UserError, match=r"trajectory 1 differs from trajectory 0 in picture size: \(8, 8\), not \(16, 16\)"
    ):
        Clips.of([tiny.trajectory(3, size=16), tiny.trajectory(3, size=8)])
    with pytest.raises(UserError, match="in whether a camera is given: False, not True"):
        Clips.of([make(), make(camera=False)])
    with TrajectoryWriter(tmp_path / "other") as writer:
        writer.write(make(0, 3, (5, 6), ("a", "b"), proprio=9))
    with pytest.raises(
        UserError, match=r"other/part-00000\.h5: /data/demo_0 differs from .*in length of proprio: 9, not 8"
    ):
        Clips.open([*stored[0], tmp_path / "other"])


def test_instruction_outside_the_vocabulary_is_named_where_it_is_read(tiny):
    from worldenv.training.finetune import imitation_loss

    clips = Clips.of([replace(tiny.trajectory(3), instruction="fold laundry")])
    with pytest.raises(ValueError, match="instruction 'fold laundry' should have"):
        imitation_loss(tiny.policy(), clips, 4)


def test_batches_of_training_are_the_same_from_disk(tiny, tmp_path):
    from worldenv.robot.kinematics import Kinematics
    from worldenv.robot.robot import moved_gripper
    from worldenv.suites.tabletop.physics import start_state
    from worldenv.suites.tabletop.scenes import TASKS
    from worldenv.suites.tabletop.things import TabletopThings
    from worldenv.training.finetune import imitation_loss
    from worldenv.training.layers import Layers
    from worldenv.training.train_composer import teacher_loss

    def still(clips):
        """Labels of tables on which nothing moves."""
        states = np.tile(start_state(TASKS[0], 0, "train")[0], (*clips.proprio.shape[:2], 1))
        return Layers(clips.proprio, TabletopThings(states, clips.frame_shape[1]), 4, 0.06)

    made = [tiny.trajectory(20, 0), tiny.trajectory(12, 1), tiny.trajectory(17, 2)]
    with TrajectoryWriter(tmp_path / "set", per_file=2) as writer:
        for trajectory in made:
            writer.write(trajectory)
    memory, disk = Clips.of(list(TrajectoryReader(tmp_path / "set"))), Clips.open(tmp_path / "set")
    robot = moved_gripper(Kinematics())
    for make_loss in (
        lambda clips: imitation_loss(tiny.policy(), clips, 16),
        lambda clips: teacher_loss(tiny.simulator(), clips, still(clips), robot, 8),
    ):
        for step in range(2):
            one, other = (make_loss(c)(torch.Generator().manual_seed(step))[0] for c in (memory, disk))
            assert torch.equal(one, other)
