"""Labels of layers against the true states of short scripted episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.data.frames import StoredFrames
from worldenv.records.kept import Kept
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.detector import nearest_color
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.suites.tabletop.things import HELD, TabletopThings, act_out, coverage, movable, occlusion
from worldenv.training import layers as drawing
from worldenv.training.layers import HIDDEN_LEVEL, MOVED_M, Layers, made_of, with_wanted_opening

K = 4
EIGHT = torch.arange(8)


@pytest.fixture(scope="module")
def clips(shown):
    return shown


@pytest.fixture(scope="module")
def layers(clips):
    return Layers(clips.proprio, TabletopThings.of(clips), K, CLEAR_M)


@pytest.fixture(scope="module")
def states(clips):
    starts = [demo.labels["start"] for demo in clips.stored.demos]
    return act_out(clips.tasks, starts, "train", clips.actions.numpy())


def place_of(states, thing):  # [..., 79] -> [..., 3]
    row = states[..., 15 + 8 * thing : 23 + 8 * thing]
    return np.stack([row[..., 2], row[..., 3], row[..., 4] + row[..., 7] / 2], axis=-1)


def everywhere(clips):
    return [(e, t) for e in range(len(clips)) for t in range(int(clips.length[e]) - K + 1)]


def label(layers, e, t):
    found = layers.at(torch.tensor([e]), torch.tensor([t]))
    return int(found.clear), found.mask[0].numpy(), found.places[0].numpy()


def test_the_clear_frame_is_the_last_from_above_with_nothing_held_of_those_with_which_chunks_begin(
    clips, layers, states
):
    seen = set()
    for e, t in everywhere(clips):
        steps = [s for s in range(t % K, t + 1, K) if states[e, s, 2] > CLEAR_M and states[e, s, HELD] < 0]
        expected = steps[-1] if steps else 0
        assert label(layers, e, t)[0] == expected, (e, t)
        seen.add(t - expected)
    assert 0 in seen and max(seen) >= 8  # something is carried for two chunks


def test_the_layer_is_the_thing_that_moves_and_its_places_are_the_true_ones(clips, layers, states):
    moving = 0
    for e, t in everywhere(clips):
        clear, mask, places = label(layers, e, t)
        thing = int(states[e, 0, 13])  # only the task's object is moved by an expert
        true = place_of(states[e, [clear, *range(t, t + K + 1)]], thing)
        away = np.linalg.norm(true[1:] - true[0], axis=1).max()
        assert bool(layers.moves()[e, t]) == bool(mask.any()) == (away > MOVED_M), (e, t)
        if away > MOVED_M:
            moving += 1
            np.testing.assert_allclose(places, true, atol=1e-6)
            assert np.array_equal(mask, coverage(states[e, [clear]], np.array([thing]), 64)[0])
    assert 50 < moving < len(everywhere(clips)) - 30


def test_what_nearer_things_hide_is_known_after_each_action_of_a_chunk_that_moves_something(clips, states):
    crowded, found, object_ = states.copy(), 0, states[:, 0, 13].astype(int)
    for e, thing in enumerate(object_):  # another thing stands in front of where the object comes to lie
        other = next(i for i in np.nonzero(movable(states[e, 0]))[0] if i != thing)
        rows = crowded[e, :, 15:].reshape(-1, 8, 8)  # a view
        rows[:, other, 2:4] = rows[-1, thing, 2:4] - np.array([0, 0.035])
    layers = Layers(clips.proprio, TabletopThings(crowded, 64), K, CLEAR_M)
    for e, t in everywhere(clips):
        hidden = layers.at(torch.tensor([e]), torch.tensor([t])).hidden[0].numpy()
        after = occlusion(crowded[e, t + 1 : t + K + 1], object_[[e] * K], 64)[1]
        expected = after * (after > HIDDEN_LEVEL).any((1, 2))[:, None, None] * bool(layers.moves()[e, t])
        assert np.array_equal(hidden, expected), (e, t)
        found += hidden.any()
    assert 10 < found < len(everywhere(clips)) / 2


def test_the_mask_covers_the_object_as_the_detector_sees_it_in_the_clear_frame(clips, layers, states):
    seen = 0
    for e in range(len(clips)):
        clear, mask, _ = label(layers, e, int(layers.moves()[e].nonzero()[0]))
        thing, colours = int(states[e, 0, 13]), states[e, 0, 16::8].tolist()
        if colours.count(colours[thing]) > 1:
            continue  # a goal has its colour, too
        frame = clips.frames_at(torch.tensor([e]), torch.tensor([[clear]]))[0, 0, 0].numpy()
        is_object, sure = nearest_color(frame) == colours[thing] + 1, mask == 255
        assert is_object.sum() > 10 and sure[is_object].mean() > 0.9, clips.tasks[e]
        assert not is_object[mask == 0].any() and mask.astype(float).sum() / 255 < 2 * is_object.sum() + 20
        seen += 1
    assert seen >= 4


def test_past_the_end_of_an_episode_the_last_place_is_repeated(clips, layers, states):
    end = states.shape[1] - 1
    places = layers.at(torch.tensor([0]), torch.tensor([end])).places
    assert (places[0, 1:] == places[0, 1]).all()


def test_without_a_thing_that_moves_the_mask_is_empty(clips, states):
    still = np.repeat(states[:, :1], 6, axis=1)
    layers = Layers(clips.proprio[:, :6], TabletopThings(still, 64), K, CLEAR_M)
    assert (
        not layers.moves().any() and not layers.at(torch.arange(len(clips)), torch.ones(len(clips)).long()).mask.any()
    )


def test_what_was_moved_stays_the_layer_while_it_lies_still_until_the_gripper_has_been_above(clips, states):
    moved, proprio = np.repeat(states[:1, :1], 16, axis=1), clips.proprio[:1, :16].clone()
    moved[0, 2:, 15 + 8 * int(moved[0, 0, 13]) + 2] += 0.05
    proprio[:, :, 2], proprio[:, 9:, 2] = CLEAR_M - 0.01, CLEAR_M + 0.01
    layers = Layers(proprio, TabletopThings(moved, 64), K, CLEAR_M)
    assert layers.moves()[0].tolist() == [t < 9 for t in range(16)]
    assert (
        layers.at(torch.tensor([0]), torch.tensor([7])).places[0, :, 0].diff().abs().gt(0.01).tolist()
        == [True] + [False] * K
    )


def test_what_the_moved_thing_pushes_is_the_other_thing_with_its_mask_and_its_places(clips, states):
    pushed, proprio = np.repeat(states[:1, :1], 12, axis=1), clips.proprio[:1, :12].clone()
    things, proprio[:, :, 2] = pushed[0, :, 15:].reshape(-1, 8, 8), CLEAR_M - 0.01  # a view
    thing = int(pushed[0, 0, 13])
    other = next(i for i in np.nonzero(movable(pushed[0, 0]))[0] if i != thing)
    things[2:, thing, 2] += 0.05
    things[5:, other, 3] += 0.02
    layers = Layers(proprio, TabletopThings(pushed, 64), K, CLEAR_M)
    found = layers.at(torch.zeros(3).long(), torch.tensor([0, 2, 7]))
    assert layers.thing[0, [0, 2, 7]].tolist() == [thing] * 3 and layers.other[0, [0, 2, 7]].tolist() == [
        -1,
        other,
        other,
    ]
    assert not found.other_mask[0].any()
    assert np.array_equal(found.other_mask[1:].numpy(), coverage(pushed[0, [0, 0]], np.array([other] * 2), 64))
    ways = found.other_places[1:, 1:, 1] - found.other_places[1:, :1, 1]
    torch.testing.assert_close(ways, torch.tensor([[0, 0.02], [0.02, 0.02]]))  # at the chunk's start, at its end


def test_a_held_thing_is_the_layer_even_if_another_one_has_come_farther(clips, states):
    moved, proprio = np.repeat(states[:1, :1], 12, axis=1), clips.proprio[:1, :12].clone()
    things, proprio[:, :, 2] = moved[0, :, 15:].reshape(-1, 8, 8), CLEAR_M - 0.01  # a view
    pushed, held = np.nonzero(movable(moved[0, 0]))[0][:2]
    things[2:, pushed, 2] += 0.05
    things[6:, held, 2] += 0.01
    moved[0, 6:10, HELD] = held
    layers = Layers(proprio, TabletopThings(moved, 64), K, CLEAR_M)
    assert layers.thing[0].tolist() == [pushed] * 2 + [held] * 8 + [pushed] * 2
    assert layers.other[0].tolist() == [-1] * 2 + [pushed] * 8 + [held] * 2


def test_the_opening_is_what_the_kinematics_say_and_poses_are_as_recorded(clips):
    robot, stuck = moved_gripper(Kinematics(aperture_rate=0.25)), clips.proprio.clone()
    stuck[:, 1:, 6] = 0.7  # a thing between the fingers
    wanted = with_wanted_opening(replace(clips, proprio=stuck), robot).proprio
    assert torch.equal(wanted[..., :6], stuck[..., :6]) and torch.equal(wanted[:, 0], stuck[:, 0])
    for e in range(len(clips)):
        opening, length = float(stuck[e, 0, 6]), int(clips.length[e])
        for t in range(clips.actions.shape[1]):
            if t < length:
                opening = min(max(opening + (-0.25 if clips.actions[e, t, 6] > 0 else 0.25), 0), 1)
            assert wanted[e, t + 1, 6] == pytest.approx(opening), (e, t)
    same = with_wanted_opening(clips, moved_gripper(Kinematics())).proprio
    assert torch.equal(same, clips.proprio)  # the suite's gripper closes whatever is between


def test_a_goal_that_is_shifted_is_no_layer(clips, states):
    shifted = np.repeat(states[:, :1], 6, axis=1)
    goal = int(shifted[0, 0, 14])
    shifted[0, 2:, 15 + 8 * goal + 2] += 0.05
    layers = Layers(clips.proprio[:, :6], TabletopThings(shifted, 64), K, CLEAR_M)
    assert not layers.moves().any()  # pads and trays are no things that a gripper moves


class Counted(TabletopThings):
    """Counts the pictures that are drawn, and dies when there were to be more than `most`."""

    drawn, most = 0, 10**9

    def coverage(self, *which):
        self.count(which)
        return super().coverage(*which)

    def occlusion(self, *which):
        self.count(which)
        return super().occlusion(*which)

    def count(self, which):
        if self.drawn + len(which[0]) > self.most:
            raise KeyboardInterrupt
        self.drawn += len(which[0])


def test_layers_whose_drawing_is_interrupted_draw_the_rest_and_then_are_read_and_the_same(
    clips, states, tmp_path, monkeypatch
):
    monkeypatch.setattr(drawing, "AT_ONCE", 20)
    crowded = states.copy()
    for e, thing in enumerate(states[:, 0, 13].astype(int)):  # another thing stands in front
        other = next(i for i in np.nonzero(movable(states[e, 0]))[0] if i != thing)
        rows = crowded[e, :, 15:].reshape(-1, 8, 8)  # a view
        rows[:, other, 2:4] = rows[-1, thing, 2:4] - np.array([0, 0.035])
    whole, kept = Counted(crowded, 64), Kept(tmp_path / "labels", made_of(clips, K, CLEAR_M))
    expected = Layers(clips.proprio, whole, K, CLEAR_M)
    first, second, third = (Counted(crowded, 64) for _ in range(3))
    first.most = whole.drawn - 50
    with pytest.raises(KeyboardInterrupt):
        Layers(clips.proprio, first, K, CLEAR_M, kept)
    for things, drawn in ((second, whole.drawn - first.drawn), (third, 0)):
        found = Layers(clips.proprio, things, K, CLEAR_M, kept)
        assert things.drawn == drawn < whole.drawn / 2
        assert np.array_equal(found.row, expected.row) and torch.equal(found.masks, expected.masks)
        assert np.array_equal(found.hidden_keys, expected.hidden_keys) and torch.equal(found.hidden, expected.hidden)
    assert len(found.hidden) > 10 and first.drawn > 100


def test_labels_are_of_the_same_episodes_only_if_all_is_the_same(clips):
    longer, demos = clips.length.clone(), clips.stored.demos
    longer[3] -= 1

    def begun(**labels):
        other = [replace(demo, labels=demo.labels | labels) for demo in demos[:1]] + list(demos[1:])
        return replace(clips, stored=StoredFrames(other, clips.stored._files))

    same = made_of(Clips.open(demos[0].path.parent), K, CLEAR_M)
    others = [replace(clips, length=longer), *(begun(**one) for one in ({"start": 77}, {"split": "a"}, {"task": "b"}))]
    others += [replace(clips, **{name: getattr(clips, name) + 1e-6}) for name in ("proprio", "actions")]
    found = [made_of(other, K, CLEAR_M) for other in others]
    found += [made_of(clips, K + 1, CLEAR_M), made_of(clips, K, CLEAR_M + 0.01), made_of(clips.pick(EIGHT), K, CLEAR_M)]
    assert same == made_of(clips, K, CLEAR_M) and len({same, *found}) == len(found) + 1
