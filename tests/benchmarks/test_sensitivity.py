"""The benchmark of sensitivity: noise on the pictures changes outcomes, and nothing else does."""

import math

import pytest
import sensitivity
import torch


@pytest.fixture(scope="module")
def parts(tiny):
    return tiny.parts(size=64)


def test_the_policy_sees_frames_with_as_much_noise_as_asked_for(parts):
    starts = parts.suite.reset(parts.suite.tasks[:2], [0, 1], "train")
    read = parts.policy.read(starts.instructions)
    clean = parts.policy.see(starts.seen, read)
    features = [sensitivity.noisy(parts.policy, level, 0).see(starts.seen, read) for level in (0.0, 8.0)]
    assert torch.equal(features[0], clean) and not torch.equal(features[1], clean)


def test_outcomes_that_noise_changes_are_counted(parts, monkeypatch):
    episode = lambda done: type("Episode", (), {"success": torch.tensor([False, done])})  # noqa: E731
    given = iter([[True] * 4, [True, True, True, False], [False] * 4])
    monkeypatch.setattr(sensitivity, "act_in_true", lambda *_: [episode(done) for done in next(given)])
    found = sensitivity.sensitivity(parts, parts.policy, 4, [2.0, 8.0], 0)
    assert [one["agreement"] for one in found] == [0.75, 0.0] and [one["success"] for one in found] == [0.75, 0.0]
    assert found[0]["psnr_db"] == pytest.approx(20 * math.log10(255 / 2))
    assert found[1]["success_without"] == 1.0
