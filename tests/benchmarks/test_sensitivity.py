"""The benchmark of sensitivity: what is done to the pictures is what the words say, and its effect is counted."""

import altered
import numpy as np
import pytest
import sensitivity
import torch

from worldenv.interfaces.observation import Key


@pytest.fixture(scope="module")
def parts(tiny):
    return tiny.parts(size=64)


def test_the_policy_sees_frames_as_they_are_altered(parts):
    starts = parts.suite.reset(parts.suite.tasks[:2], [0, 1], "train")
    shown, policy = [], parts.policy

    def alter(frames):
        shown.append(frames)
        return 255 - frames

    key, read = Key(0, torch.arange(2), torch.zeros(2, dtype=torch.int64)), policy.read(starts.instructions)
    decided = altered.Altered(policy, alter).act(starts.seen, read, key, False)
    assert torch.equal(shown[0], starts.seen.frames)
    clean = policy.act(starts.seen, read, key, False)
    assert not torch.equal(decided.action, clean.action)


def test_changes_are_those_of_the_words():
    frames = torch.tensor([[[[[100, 100, 100], [200, 0, 50]]]]], dtype=torch.uint8)  # [E, V, H, W, 3]
    assert (altered.grey(frames) == altered.GREY).all()
    assert altered.brightness(1.2)(frames).tolist() == [[[[[120, 120, 120], [240, 0, 60]]]]]
    assert altered.brightness(2)(frames).max() == 255
    luma = 0.299 * 200 + 0.114 * 50
    dull = altered.saturation(0.5)(frames)[0, 0, 0].tolist()
    assert dull == [[100] * 3, [round(luma + 0.5 * (level - luma)) for level in (200, 0, 50)]]
    mean = (100 + luma) / 2
    flat = altered.contrast(0.8)(frames)[0, 0, 0].tolist()
    assert flat == [[round(mean + 0.8 * (level - mean)) for level in pixel] for pixel in ([100] * 3, [200, 0, 50])]
    for same in (altered.brightness, altered.contrast, altered.saturation):
        assert torch.equal(same(1.0)(frames), frames)


def test_noise_has_the_deviation_that_was_asked_for_and_differs_from_picture_to_picture():
    frames, alter = torch.full((2, 1, 64, 64, 3), 127, dtype=torch.uint8), altered.noise(8.0, 0)
    first, second = alter(frames), alter(frames)
    assert first.float().std() == pytest.approx(8, rel=0.05) and not torch.equal(first, second)
    assert torch.equal(altered.noise(8.0, 0)(frames), first)


def test_outcomes_that_a_change_alters_are_counted(parts, monkeypatch):
    given = iter([[5, 9, 1, 3], [5, 9, 2, 0], [0] * 4])  # actions until the task is done; 0: it is not
    monkeypatch.setattr(sensitivity, "steps_to_success", lambda *_: np.array(next(given)))
    changes = sensitivity.changes([2.0], [], 0) | {"dark": altered.brightness(0.8)}
    found = sensitivity.sensitivity(parts, parts.policy, 4, changes)
    assert found["success"] == 1.0
    assert [(name, one["success"], one["agreement"]) for name, one in found["changes"].items()] == [
        ("noise 2", 0.75, 0.75),
        ("dark", 0.0, 0.0),
    ]


def test_all_changes_are_named():
    names = list(sensitivity.changes([2.0, 81.0], [0.8, 1.2], 0))
    assert names[:2] == ["noise 2", "noise 81"] and len(names) == 8
    assert names[2:4] == ["brightness x 0.8", "brightness x 1.2"] and names[-1] == "saturation x 1.2"
