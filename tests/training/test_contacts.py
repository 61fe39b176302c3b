"""What the contact network is shown: chunks as recorded, and the same chunks tried again after an offset."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.true_things import Shiftable
from worldenv.ops.unpatchify import to_frames
from worldenv.records.kept import Kept
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.suites.tabletop.things import HELD, TabletopThings, movable
from worldenv.training import contacts as module
from worldenv.training.contacts import HIDDEN_LEVELS, PICTURE_LEVELS, UNKNOWN, record_contacts
from worldenv.training.layers import MOVED_M, Layers
from worldenv.training.train_composer import clean_background
from worldenv.worlds.composer.contact import Scene, channels, numbers
from worldenv.worlds.composer.layer import SIZE

K = 4


@pytest.fixture(scope="module")
def layers(shown):
    return Layers(shown.proprio, TabletopThings.of(shown), K, CLEAR_M)


@pytest.fixture(scope="module")
def scene(shown):
    plate = clean_background(shown.sample_frames(torch.Generator().manual_seed(0), 300)[:, 0])
    return Scene(to_frames(plate[None, :, :, None])[0, 0], moved_gripper(Kinematics(), clear_m=CLEAR_M))


@pytest.fixture
def all_chunks(monkeypatch):
    monkeypatch.setattr(module, "SHARES", (1.0,) * 4)
    monkeypatch.setattr(module, "SHARES_BESIDE", (1.0, 0.0, 0.0, 0.0))  # those that close


def replace_plate(scene, level):
    return scene._replace(plate=torch.full_like(scene.plate, level))


def chunks(layers, shown):  # (episode, step) in which the gripper is low or holds something
    found = []
    for e in range(len(shown)):
        for t in range(int(shown.length[e]) - K + 1):
            low = shown.proprio[e, t : t + K + 1, 2].min() < CLEAR_M
            if low or layers.held[e, t] >= 0:
                found.append((e, t))
    return found


def test_chunks_as_recorded_are_labelled_with_what_was_recorded(shown, layers, scene, all_chunks):
    contacts, rows = record_contacts(shown, layers, scene, 0, 0), chunks(layers, shown)
    m = len(rows)
    assert len(contacts) == m and contacts.pictures.shape == (m, channels(K), SIZE, SIZE)
    assert contacts.numbers.shape == (m, numbers(K)) and contacts.rest.shape == (m, K, 3)
    held = np.stack([layers.held[e, t : t + K + 1] >= 0 for e, t in rows])
    assert np.array_equal(contacts.grasps.numpy(), held[:, 1:]) and 10 < held[:, 1:].all(1).sum() < m - 10
    for i, (e, t) in enumerate(rows):
        way = layers.centre[e, t : t + K + 1] - layers.centre[e, t]
        goes = np.linalg.norm(way, axis=-1).max() > MOVED_M
        assert contacts.moves[i].item() == bool(goes or held[i].any()), (e, t)
        closing = shown.proprio[e, t : t + K + 1, 6].diff() < -1e-4
        assert not contacts.closes[i].any() or (closing.any() and not held[i, 0])
    assert contacts.pictures.abs().max() <= PICTURE_LEVELS


def test_each_chunk_may_be_alone_even_where_nothing_moves(shown, layers, scene, all_chunks, monkeypatch):
    whole = record_contacts(shown, layers, scene, 0, 0)
    assert not whole.moves.all()
    monkeypatch.setattr(module, "AT_ONCE", 1)
    parts = record_contacts(shown, layers, scene, 0, 0)
    assert all(torch.equal(one, other) for one, other in zip(whole.tensors(), parts.tensors(), strict=True))


def test_the_rest_is_how_far_a_thing_comes_besides_what_it_is_carried(shown, layers, scene, all_chunks):
    contacts, rows = record_contacts(shown, layers, scene, 0, 0), chunks(layers, shown)
    carried_all, pushed = 0, 0
    for i, (e, t) in enumerate(rows):
        held = layers.held[e, t : t + K + 1]
        if (held >= 0).all():
            carried_all += 1
            assert contacts.rest[i].abs().max() < 2e-3  # the thing is in the fingers
        elif not (held >= 0).any() and contacts.moves[i]:
            pushed += 1
            way = layers.centre[e, t + 1 : t + K + 1] - layers.centre[e, t]
            far = np.linalg.norm(way, axis=-1).max(0).argmax()
            np.testing.assert_allclose(contacts.rest[i].numpy(), way[:, far], atol=1e-5)
    assert carried_all > 10 and pushed > 3


def test_masks_cover_the_thing_that_is_to_be_grasped(shown, layers, scene, all_chunks):
    contacts = record_contacts(shown, layers, scene, 0, 0)
    closing = contacts.closes.any(1) & contacts.moves
    area = (contacts.mask[closing] > 127).sum((1, 2))
    offset = torch.arange(SIZE) - (SIZE - 1) / 2
    mask = contacts.mask[closing].float()
    middle = torch.stack([(mask.sum(1) * offset).sum(1), (mask.sum(2) * offset).sum(1)]) / mask.sum((1, 2))
    assert len(area) >= 6 and (area > 12).all() and (area < 200).all() and middle.abs().max() < 6  # 3.6 cm


def test_what_is_hidden_is_labelled_where_the_thing_is_and_unknown_only_close_to_it(
    shown, layers, scene, all_chunks, monkeypatch
):
    places = []

    def half(things, *which):  # all things are hidden at the left of the picture
        (is_there, _), size = occlusion(things, *which), things.size[1]
        hidden = np.zeros(is_there.shape, dtype=np.uint8)
        hidden[:, :, : size // 2] = 255
        places.append(is_there)
        return is_there, hidden * is_there

    occlusion = TabletopThings.occlusion
    monkeypatch.setattr(TabletopThings, "occlusion", half)
    contacts = record_contacts(shown, layers, scene, 0, 0)
    assert (contacts.hidden[~contacts.moves] == UNKNOWN).all()  # and nothing has been moved before
    hidden, there = contacts.hidden[contacts.moves].flatten(0, 1), torch.from_numpy(np.concatenate(places))
    left, right = (there[:, :, part].sum((1, 2)) for part in (slice(0, 32), slice(32, 64)))
    said = (hidden == HIDDEN_LEVELS).sum((1, 2))
    assert (said[left == 0] == 0).all() and (said[(right == 0) & (left > 8)] > 4).all()
    known = (hidden != UNKNOWN).sum((1, 2)).float()
    assert 10 < known.median() < 200 and not known[(left == 0) & (right == 0)].any()


def test_of_a_thing_that_lies_still_where_it_was_put_it_is_labelled_too_what_is_hidden(shown, scene, all_chunks):
    states, proprio = TabletopThings.of(shown).states[:, [0] * 12], shown.proprio[:, :12].clone()
    for e, thing in enumerate(states[:, 0, 13].astype(int)):
        other = next(i for i in np.nonzero(movable(states[e, 0]))[0] if i != thing)
        rows = states[e, :, 15:].reshape(-1, 8, 8)  # a view
        rows[2:, thing, 2] += 0.05
        rows[:, other, 2:4] = rows[-1, thing, 2:4] - np.array([0, 0.035])  # in front of where it is put
        proprio[e, :, :2] = torch.from_numpy(rows[-1, thing, 2:4])
    proprio[:, :, 2] = CLEAR_M - 0.01
    layers = Layers(proprio, TabletopThings(states, 64), K, CLEAR_M)
    clips = replace(shown, proprio=proprio, length=shown.length.clamp(max=11), actions=shown.actions[:, :11])
    contacts = record_contacts(clips, layers, scene, 0, 0)
    every = [(e, t) for e in range(len(shown)) for t in range(int(clips.length[e]) - K + 1)]
    still = ~contacts.moves & torch.tensor([bool(layers.moves()[e, t]) for e, t in every])
    is_hidden = (contacts.hidden != UNKNOWN) & (contacts.hidden > HIDDEN_LEVELS / 2)
    assert still.sum() > len(shown) and is_hidden[still].flatten(2).any(2).float().mean() > 0.9


def test_another_thing_that_is_moved_is_labelled_with_its_way_and_shown_where_it_is_now(shown, scene, all_chunks):
    states, proprio = TabletopThings.of(shown).states[:, [0] * 9], shown.proprio[:, :9].clone()
    others = []
    for e, thing in enumerate(states[:, 0, 13].astype(int)):
        others.append(next(i for i in np.nonzero(movable(states[e, 0]))[0] if i != thing))
        rows = states[e, :, 15:].reshape(-1, 8, 8)  # a view
        rows[:, others[-1], 2:4] = rows[0, thing, 2:4] + np.array([0, 0.05])
        rows[1:, thing, 2] += 0.06
        rows[3:, others[-1], 2] += 0.02
        proprio[e, :, :2] = torch.from_numpy(rows[0, thing, 2:4])
    proprio[:, :, 2] = CLEAR_M - 0.01
    layers = Layers(proprio, TabletopThings(states, 64), K, CLEAR_M)
    clips = replace(shown, proprio=proprio, length=shown.length.clamp(max=8), actions=shown.actions[:, :8])
    contacts = record_contacts(clips, layers, scene, 0, 0)
    steps = torch.tensor([t for _ in shown.tasks for t in range(5)])
    pushes = steps == 0  # the chunks in which both are moved
    assert torch.equal(contacts.pushes, pushes) and pushes.sum() >= len(shown)
    expected = torch.tensor((0.02, 0, 0)).expand(int(pushes.sum()), 3)
    torch.testing.assert_close(contacts.pushed[pushes], expected)
    assert not contacts.pushed[~pushes].any() and not contacts.pushed_mask[~pushes].any()
    assert ((contacts.pushed_mask[pushes] > 127).sum((1, 2)) > 12).all()
    at, thing = np.array([0]), states[:1, 0, 13].astype(int)
    (first, second), painted = before(layers, 4)
    assert painted == thing
    for found, which, far in ((first, thing, 0.06), (second, np.array(others[:1]), 0.02)):
        torch.testing.assert_close(found.place - found.origin, torch.tensor([[far, 0, 0]]))
        assert np.array_equal(found.mask.numpy(), layers.things.coverage(at, at, which))
    nothing, painted = before(layers, 0)  # nothing has come far yet
    assert painted == -1 and not any(found.mask.any() for found in nothing)


def before(layers, step, episode=0):
    rows = np.array([[episode, step]])
    label, held = layers.at(*torch.from_numpy(rows).unbind(1)), layers.held[[episode], step]
    return module._before(layers, label, rows, layers.centre[[episode], step], held)


def test_the_view_does_not_tell_which_thing_the_chunk_will_grasp(shown):
    states, proprio = TabletopThings.of(shown).states[:1, [0] * 9].copy(), shown.proprio[:1, :9].clone()
    pushed, grasped = np.nonzero(movable(states[0, 0]))[0][:2]
    things = states[0, :, 15:].reshape(-1, 8, 8)  # a view
    things[1:, pushed, 2] += 0.05
    things[7:, grasped, 3] += 0.01
    states[0, 6:, HELD] = grasped
    proprio[:, :, 2] = CLEAR_M - 0.01
    layers = Layers(proprio, TabletopThings(states, 64), K, CLEAR_M)
    for step, first in ((4, pushed), (6, grasped)):  # of the composer's labels, the grasped one is the layer at both
        assert layers.thing[0, step] == grasped
        (one, other), painted = before(layers, step)
        assert painted == (pushed if step == 4 else -1)  # what is held has not been moved yet
        assert one.mask.any() == (first == pushed) and other.mask.any() == (first == grasped)


def test_the_network_sees_imagined_poses_and_its_labels_say_what_the_simulator_did(shown, layers, scene, all_chunks):
    arm = moved_gripper(Kinematics(translation_step=0.03), clear_m=CLEAR_M)  # the true one moves further
    for beside in (0, 1):
        exact, lagging = (record_contacts(shown, layers, one, beside, 0) for one in (scene, scene._replace(robot=arm)))
        assert (exact.numbers - lagging.numbers).abs().max() > 0.1  # 5 mm
        for name in ("moves", "closes", "grasps", "rest", "pushes", "pushed"):
            assert torch.equal(getattr(exact, name), getattr(lagging, name)), name


def test_arm_that_coasts_goes_on_from_its_last_true_move(shown):
    diagonal = {name: tuple(map(tuple, size * np.eye(7))) for name, size in (("step", 0.02), ("after", 0.01))}
    inertia = tuple(map(tuple, 0.3 * np.eye(7)))
    fitted = FittedKinematics(**diagonal, inertia=inertia, drift=(0.0,) * 7, opening=(0.0, 1.0))
    arm = replace(moved_gripper(Kinematics()), kinematics=fitted)
    begin = shown.proprio[:, 0]
    whole, _ = arm.kinematics.follow(begin, arm.kinematics.rest(begin), shown.actions)
    first, recorded = K, replace(shown, proprio=torch.cat([begin[:, None], whole], dim=1))
    motion = module._motions(recorded, arm)
    part = module._imagined(whole[:, first - 1, None], motion[:, first], shown.actions[:, first : first + K], arm)
    torch.testing.assert_close(part, whole[:, first - 1 : first + K], atol=1e-5, rtol=0)
    assert motion.shape == shown.actions.shape
    recorded.proprio[:, first] = recorded.proprio[:, first - 1]  # something has stopped it in the action before
    pushed = 0.01 * shown.actions[:, first - 1, :3].clamp(-1, 1)
    torch.testing.assert_close(module._motions(recorded, arm)[:, first, :3], pushed, atol=1e-6, rtol=0)


def test_a_gripper_that_stays_above_its_plan_is_stopped_there_and_a_held_thing_asks_for_nothing(shown):
    planned = torch.zeros(3, K + 1, 7)
    planned[:, :, 2] = torch.linspace(0.1, 0.06, K + 1)
    true = planned.clone()
    true[0, 3:, 2] = 0.08  # stopped after the second action
    held = torch.tensor([False, False, True])
    chunks = module._Chunks(None, true, planned, None, None, None)
    stop, is_stopped = module._stops(chunks, held)
    assert is_stopped.tolist() == [True, False, False]
    torch.testing.assert_close(stop, torch.tensor([0.02, 0.0, torch.inf]))


def test_openings_are_labelled_as_recorded_where_something_is_held_after_the_chunk(shown, layers, scene, all_chunks):
    opening = torch.rand(shown.proprio.shape[:2], generator=torch.Generator().manual_seed(0))
    contacts, rows = record_contacts(shown, layers, scene, 0, 0, opening), chunks(layers, shown)
    expected = torch.tensor([opening[e, t + K] if layers.held[e, t + K] >= 0 else -1.0 for e, t in rows])
    assert torch.equal(contacts.opening, expected) and 10 < (expected > 0).sum() < len(rows)


@pytest.mark.parametrize(("away", "share"), [(0.0, (0.9, 1.0)), (0.06, (0.0, 0.0))])
def test_grasps_from_beside_are_labelled_as_they_went_there(shown, layers, scene, all_chunks, monkeypatch, away, share):
    def offsets(random, count):
        angle = random.uniform(0, 2 * np.pi, count)
        return away * np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1)

    monkeypatch.setattr(module, "_offsets", offsets)
    recorded = record_contacts(shown, layers, scene, 0, 0)
    contacts = record_contacts(shown, layers, scene, 1, 0)
    beside = contacts[torch.arange(len(recorded), len(contacts))]
    assert beside.closes.any(1).sum() >= 6 and recorded.grasps[recorded.closes.any(1)].any(1).float().mean() > 0.5
    good = recorded.closes.any(1) & recorded.grasps.any(1)
    grasped = beside.grasps[beside.closes.any(1)].any(1).float().mean().item()
    as_good = good.float().sum().item() / recorded.closes.any(1).sum().item()
    assert share[0] * as_good <= grasped <= share[1], (grasped, as_good)
    if away:
        assert not beside.grasps.any() and beside.rest[~beside.moves].abs().max() <= MOVED_M + 1e-6


@pytest.fixture
def close_chunks(shown, layers, monkeypatch):
    """Chunks close to another thing alone are drawn, all of them, after an offset. Of each: whether a thing is held."""
    monkeypatch.setattr(module, "SHARES", (0.0,) * 4)
    monkeypatch.setattr(module, "SHARES_BESIDE", (0.0, 1.0, 0.0, 0.0))
    monkeypatch.setattr(module, "CLOSE_M", 0.2)
    _, closes, close, _, held = module._chunks(shown, layers)
    return held[close & ~closes]


def test_close_to_other_things_chunks_with_a_held_thing_are_tried_beside_too_and_push(
    shown, layers, scene, close_chunks
):
    contacts = record_contacts(shown, layers, scene, 3, 0)
    assert len(contacts) == 3 * len(close_chunks) and close_chunks.sum() > 10
    assert contacts.grasps.all(1).float().mean() > 0.3 and contacts.pushes.any()


def test_half_of_the_grasps_from_beside_miss_and_the_same_seed_gives_the_same(shown, layers, scene, all_chunks):
    contacts, again = (record_contacts(shown, layers, scene, 6, 3) for _ in range(2))
    recorded = len(record_contacts(shown, layers, scene, 0, 3))
    beside = contacts[torch.arange(recorded, len(contacts))]
    hit = beside.grasps[beside.closes.any(1)].any(1).float().mean().item()
    assert 0.2 < hit < 0.7
    assert torch.equal(contacts.pictures, again.pictures) and torch.equal(contacts.grasps, again.grasps)
    other = record_contacts(shown, layers, scene, 6, 4)
    assert not torch.equal(beside.numbers, other.numbers[recorded:][: len(beside)])


def test_kept_chunks_are_read_again_and_others_are_made_anew(shown, layers, scene, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "AT_ONCE", 30)
    monkeypatch.setattr(layers, "kept", Kept(tmp_path))
    made, label = [], module._labelled
    monkeypatch.setattr(module, "_labelled", lambda *given: made.append(len(given[4])) or label(*given))
    first = record_contacts(shown, layers, scene, 1, 0)
    parts = len(made)
    assert parts > 3 and sum(made) == len(first)
    (tmp_path / "contacts_00001.npz").unlink()  # as if the run had ended before
    again = record_contacts(shown, layers, scene, 1, 0)
    assert len(made) == parts + 1
    assert all(torch.equal(one, other) for one, other in zip(first.tensors(), again.tensors(), strict=True))
    grippers = replace(scene.robot, gripper=scene.robot.gripper._replace(tip_closed_m=0.02))
    moved = replace(shown, proprio=shown.proprio + 1e-4)
    arms = moved_gripper(Kinematics(translation_step=0.03), clear_m=CLEAR_M)
    others = (replace_plate(scene, 0.2), *(scene._replace(robot=robot) for robot in (grippers, arms)))
    for clips, other in (*((shown, other) for other in others), (moved, scene)):
        made.clear()
        record_contacts(clips, layers, other, 1, 0)
        assert len(made) == parts
    made.clear()
    record_contacts(moved, layers, scene, 1, 1)  # another seed draws other chunks
    assert made


def test_chunks_after_an_offset_are_made_task_by_task_and_stay_the_same(shown, layers, scene, all_chunks, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 10)
    as_before, made, label = record_contacts(shown, layers, scene, 1, 0), [], module._labelled
    clips = replace(shown, tasks=tuple("ab"[i % 2] for i in range(len(shown))))

    def noted(clips, layers, scene, motion, rows, offset):
        made.extend((clips.tasks[episode], episode) for episode in rows[:, 0] if offset is not None)
        return label(clips, layers, scene, motion, rows, offset)

    monkeypatch.setattr(module, "_labelled", noted)
    found = record_contacts(clips, layers, scene, 1, 0)
    assert made == sorted(made) and {task for task, _ in made} == {"a", "b"}
    assert all(torch.equal(one, other) for one, other in zip(found.tensors(), as_before.tensors(), strict=True))


def test_chunks_in_which_nothing_happens_are_taken_less_often(shown, layers, scene, monkeypatch):
    monkeypatch.setattr(module, "SHARES", (1.0, 0.0, 0.0, 0.0))
    closing = record_contacts(shown, layers, scene, 0, 0)
    monkeypatch.setattr(module, "SHARES", (0.0, 1.0, 1.0, 0.0))
    moving = record_contacts(shown, layers, scene, 0, 0)
    assert closing.closes.any(1).all() and not moving.closes.any() and moving.moves.float().mean() > 0.6


class Elsewhere:
    """The true things of a simulator that cannot move the gripper by an offset, with a column that has no thing."""

    def __init__(self, things):
        self.held, self.size, self.coverage, self.occlusion = (
            things.held,
            things.size,
            things.coverage,
            things.occlusion,
        )
        self.centre = np.concatenate([things.centre, np.zeros_like(things.centre[:, :, :1])], axis=2)
        self.movable = np.concatenate([things.movable, np.zeros_like(things.movable[:, :1])], axis=1)


def test_a_simulator_without_offsets_gives_the_same_labels_of_recorded_chunks(shown, layers, scene):
    things = Elsewhere(layers.things)
    assert isinstance(layers.things, Shiftable) and not isinstance(things, Shiftable)
    found = record_contacts(shown, Layers(shown.proprio, things, K, CLEAR_M), scene, 0, 0)
    expected = record_contacts(shown, layers, scene, 0, 0)
    assert all(torch.equal(one, other) for one, other in zip(found.tensors(), expected.tensors(), strict=True))


def test_recordings_without_a_chunk_near_a_thing_are_refused_with_a_message(shown, layers, scene, monkeypatch):
    monkeypatch.setattr(module, "SHARES", (0.0,) * 4)
    with pytest.raises(UserError, match="nothing to learn from: .* give a larger --scratch.exploration"):
        record_contacts(shown, layers, scene, 0, 0)


def test_a_chunk_that_begins_with_a_held_thing_is_not_tried_where_the_thing_would_not_follow(
    shown, layers, scene, close_chunks, monkeypatch
):
    monkeypatch.setattr(TabletopThings, "held_follows", False)
    contacts = record_contacts(shown, layers, scene, 1, 0)
    assert len(contacts) == (~close_chunks).sum() < len(close_chunks)
