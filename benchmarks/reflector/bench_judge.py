"""Judging by reading only new frames, against the paper's way, which reads 32 frames again for every judged one."""

from functools import cache

import numpy as np
import pytest
import torch

from worldenv.assemble import load
from worldenv.evaluation.measure import held_out
from worldenv.evaluation.truth import act_in_true, judge_trajectories, starts_of
from worldenv.nn.int8 import is_allowed

EPISODES, TIMED, SAMPLES, K = 50, 8, 32, 4
CONTEXTS = [2, 12, 32, *range(33, 42)]  # up to SAMPLES both must say the same
parts = cache(load)


@cache
def true_episodes():
    suite = parts().suite
    return act_in_true(parts().policy, suite, *held_out(suite, 0, EPISODES), "test")


@cache
@torch.no_grad()
def judged(precision: str) -> tuple[np.ndarray, np.ndarray]:
    """The reward with CONTEXTS frames so far, [N, C] each: read once, and read again."""
    reflector, episodes = parts().to_imagine(precision).reflector, true_episodes()
    again = []
    for first in range(0, EPISODES, TIMED):
        frames, seen, read = given(episodes[first : first + TIMED], reflector)
        frames, words = frames[:, :, 0], read[seen.text]
        again.append(torch.stack([reflector.judge_again(frames[:, :t], words, SAMPLES) for t in CONTEXTS], dim=1))
    once = judge_trajectories(reflector, episodes)[0][:, [t - 2 for t in CONTEXTS]]
    return once, torch.cat(again).numpy()


def given(episodes, reflector):
    """Frames [N, T + 1, 1, H, W, 3], the first observations, and the instructions as the reflector has read them."""
    starts = starts_of(episodes)
    return torch.from_numpy(np.stack([t.frames for t in episodes])), starts.seen, reflector.read(starts.texts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@torch.no_grad()
def bench_judge(versus, precision, threads):
    if precision == "int8" and not is_allowed():
        pytest.skip("8 bits are slow on this CPU")
    torch.set_num_threads(2)
    once, again = judged(precision)
    short = [t <= SAMPLES for t in CONTEXTS]
    np.testing.assert_allclose(once[:, short], again[:, short], rtol=0, atol=1e-3)
    torch.set_num_threads(threads)

    reflector = parts().to_imagine(precision).reflector
    once, again = once[:, np.invert(short)], again[:, np.invert(short)]
    same = (once > reflector.config.threshold) == (again > reflector.config.threshold)
    frames, seen, read = given(true_episodes()[:TIMED], reflector)
    words, begun = read[seen.text], reflector.begin(seen, read)
    reflector.judge(frames[:, 1 : SAMPLES + 1], begun)
    result = versus(
        lambda: reflector.judge(frames[:, SAMPLES + 1 : SAMPLES + 1 + K], begun.each(torch.clone)),
        {
            "again": lambda: [
                reflector.judge_again(frames[:, : t + 1, 0], words, SAMPLES)
                for t in range(SAMPLES + 1, SAMPLES + 1 + K)
            ]
        },
        rounds=4,
        threads=threads,
        judged=same.size,
        same_decision=float(same.mean()),
        largest_difference=float(np.abs(once - again).max()),
    )
    result["ms_per_judged_frame"] = {name: 1e3 * s / (TIMED * K) for name, s in result["median_s"].items()}
    assert result["speedup_over"]["again"] > 5 and result["same_decision"] >= 0.99
