"""An evaluation on several ranks: the episodes, and so the figures, of one process."""

from dataclasses import replace

import numpy as np
import pytest

from worldenv.evaluation import measure as module
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import measure, validate
from worldenv.launch.ranks import ALONE

CONFIG = EvalConfig(episodes=11, imagined=5, quality=3, videos=0)


def assert_alike(one, other):
    """Numbers to rounding, all else equal."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list):
        for mine, its in zip(one, other, strict=True):
            assert_alike(mine, its)
    else:
        assert one == (pytest.approx(other, abs=1e-3) if isinstance(other, float) else other)


def test_measurement_is_that_of_one_process(tiny, begin):
    parts = tiny.parts()
    engine = tiny.engine(horizon=8)

    def work(ranks, config=CONFIG):
        return measure(parts.suite, parts.policy, parts.reflector, engine, config, 0, 3, "small", ranks)

    alone = work(ALONE)
    assert len(alone.trajectories) == 11 and len(alone.imagined) == 5 and alone.quality["episodes"] == 3
    first, *others = begin(3, work).results()
    assert others == [None, None]
    assert [t.start for t in first.trajectories] == [t.start for t in alone.trajectories]
    for mine, other in zip(first.trajectories, alone.trajectories, strict=True):
        assert mine.task == other.task and abs(mine.actions - other.actions).max() < 1e-4
    np.testing.assert_allclose(first.true.reward, alone.true.reward, atol=1e-3)
    assert abs(first.imagined.reward - alone.imagined.reward).max() < 1e-3
    for figures in ("quality", "consistency"):
        assert_alike(getattr(first, figures), getattr(alone, figures))
    assert_alike(first.document(), alone.document())
    few = replace(CONFIG, imagined=1, quality=1)  # some ranks have nothing to imagine
    assert_alike(begin(3, lambda ranks: work(ranks, few)).results()[0].quality, work(ALONE, few).quality)


def test_validation_is_that_of_one_process(tiny, begin, monkeypatch):
    monkeypatch.setattr(module, "VALIDATION_EPISODES", 20)
    parts, engine = tiny.parts(), tiny.engine(horizon=8)

    def work(ranks):
        return validate(parts.suite, parts.policy, engine, 0, 3, ranks)

    assert begin(2, work).results() == [work(ALONE), {}]


def test_replays_are_numbered_as_in_one_process(tiny):
    """Their noise depends on the number, and not on who replays them."""
    from worldenv.evaluation.replayed import replay_episodes

    engine, episodes = tiny.engine(), [tiny.trajectory(8, i) for i in range(3)]
    whole, (last,) = replay_episodes(engine, episodes, 1).frames, replay_episodes(engine, episodes[2:], 1, 2).frames
    apart = (whole[2].int() - last.int()).abs()
    assert apart.max() <= 1 and (replay_episodes(engine, episodes[2:], 1, 0).frames[0] != last).any()
