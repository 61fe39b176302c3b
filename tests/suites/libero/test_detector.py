"""The detector finds LIBERO Object's things where the simulator has them."""

from contextlib import closing

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.evaluation.consistency import has_detector
from worldenv.suites.libero.detector import KINDS, find_things, what_pixels_show
from worldenv.suites.libero.suite import LiberoSuite
from worldenv.suites.libero.tasks import LiberoTask, thing_of
from worldenv.suites.parts import find_parts

MILK = KINDS.index("milk")
TASK = LiberoTask(
    "pick_up_the_milk_and_place_it_in_the_basket", 7, "pick up the milk", 50, ("milk", "butter", "basket")
)


@pytest.fixture(scope="module")
def labelled(libero):
    """The suite with two tasks; for each of them eight states of an episode, as the simulator labels them."""
    with closing(LiberoSuite("libero_object", (1, 7), size=64, repeat=2, shuffled=True, workers=1)) as suite:
        parts = []
        for task in suite.tasks:
            (demo,) = suite.demonstrate([task], [30], "validation", 0.2)
            states = np.asarray(demo.extras["states"])
            some = states[np.linspace(0, len(states) - 1, 8).astype(int)]
            parts += suite.ask("label", [(task.name, 30, "validation")], [(some, [0])])
        yield suite, parts


def test_labels_are_of_these_pictures(labelled):
    """What is labelled as a thing differs from the mean of what stands there in other pictures of the scene."""
    _, parts = labelled
    for part in parts:
        assert part.shown.dtype == np.uint8 and part.shown.shape == (8, len(part.names), 64, 64)
        assert (part.shown.astype(int).sum(1) <= 256).all()  # a pixel is not given twice
        floor = np.median(part.frames, axis=0)
        for i in range(8):
            whole = part.shown[i].max(0) > 200
            apart = np.abs(part.frames[i] - floor).mean(-1)
            assert apart[whole].mean() > 3 * apart[part.shown[i].max(0) == 0].mean()


def test_every_second_state_has_its_things_elsewhere(labelled):
    _, parts = labelled
    for part in parts:
        _, centre = find_parts(_shows(part), len(part.names))
        moved = np.linalg.norm(centre[:, :, 0] - centre[0, :, 0], axis=-1)
        assert np.nanmedian(moved[2::2], axis=1).max() < 2 < np.nanmedian(moved[1::2], axis=1).min()


def test_things_are_found_where_the_simulator_shows_them(labelled):
    suite, parts = labelled
    for task, part in zip(suite.tasks, parts, strict=True):
        found = suite.find_things(part.frames[None, :, None], [task])
        assert KINDS[found.aim[0]] == thing_of(task.name)
        columns = [KINDS.index(name.rpartition("_")[0]) for name in part.names]
        assert found.known[0, columns].all() and found.known.sum() == len(columns)
        area, centre = find_parts(_shows(part), len(columns))
        use = area[:, :, 0] >= 12
        share = found.area[0][:, columns].sum(-1)[use] / area.sum(-1)[use]
        apart = np.linalg.norm(found.centre[0][:, columns, 0] - centre[:, :, 0], axis=-1)[use]
        assert (np.abs(share - 1) < 0.3).mean() > 0.85 and np.nanmedian(apart) < 1


def _shows(part) -> np.ndarray:
    return np.where(part.shown.max(1) > 127, part.shown.argmax(1) + 1, 0).astype(np.uint8)


def test_only_libero_object_has_a_detector_and_only_for_the_camera_it_was_made_for(libero):
    wrist = {"views": ("wrist", "agentview"), "workers": 1}
    with closing(LiberoSuite("libero_spatial", workers=1)) as spatial, closing(LiberoSuite(**wrist)) as other:
        assert not has_detector(spatial) and not has_detector(other)
    with closing(LiberoSuite("libero_object", workers=1)) as suite:
        assert has_detector(suite)
        assert {thing for task in suite.listed for thing in task.things} == {*KINDS, "basket"}
        assert {thing_of(task.name) for task in suite.listed} == set(KINDS)


class Bright(torch.nn.Module):
    """Says milk where a picture is bright."""

    def forward(self, picture):
        return F.one_hot((picture.mean(1) > 0.5).long() * (MILK + 1), 1 + len(KINDS)).movedim(-1, 1).float()


def test_what_the_network_says_is_given_by_kind_and_scaled_to_the_picture():
    frames = np.zeros((1, 2, 1, 128, 128, 3), dtype=np.uint8)
    frames[0, 1, 0, 32:48, 64:96] = 255
    found = find_things(frames, [TASK], Bright())
    assert found.area[0, :, MILK, 0].tolist() == [0, 512] and found.area.sum() == 512
    np.testing.assert_allclose(found.centre[0, 1, MILK, 0], [80, 40])
    assert found.aim.tolist() == [MILK] and np.flatnonzero(found.known[0]).tolist() == [KINDS.index("butter"), MILK]


def test_many_pictures_are_read_as_one_at_a_time():
    pictures = np.random.default_rng(0).integers(0, 255, (300, 64, 64, 3), dtype=np.uint8)
    one = np.concatenate([what_pixels_show(picture[None], Bright()) for picture in pictures[250:260]])
    assert np.array_equal(what_pixels_show(pictures, Bright())[250:260], one) and len(np.unique(one)) == 2


@pytest.mark.parametrize("shape", [(2, 1, 1, 8, 8, 3), (1, 1, 8, 8, 3), (1, 1, 1, 8, 8, 4)])
def test_frames_of_another_kind_are_refused(shape):
    with pytest.raises(UserError, match="it should be uint8"):
        find_things(np.zeros(shape, dtype=np.uint8), [TASK])
