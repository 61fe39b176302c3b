"""Episodes that a caller gives up: over after that chunk, as failures, and no others change."""

import torch


def test_given_up_episodes_end_after_that_chunk_and_leave_the_others_alone(tiny):
    engine, starts = tiny.engine(horizon=16, capacity=5), tiny.starts(4)
    asked = []

    def odd_ones_after_their_second_chunk(before, step):
        asked.append(len(step.reward))
        return (before.chunk == 1) & (before.id % 2 == 1)

    whole = engine.run(starts, 3, 11, stop=False)
    ended = engine.run(starts, 3, 11, stop=False, give_up=odd_ones_after_their_second_chunk)
    assert ended.chunks.tolist() == [4, 2] * 6 and whole.chunks.tolist() == [4] * 12
    assert sum(asked) == 6 * 4 + 6 * 2
    torch.testing.assert_close(ended.action[::2], whole.action[::2], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ended.reward[1::2, :2], whole.reward[1::2, :2], rtol=1e-3, atol=3e-3)
    failed = ~ended.stopped & (ended.chunks == 2)
    assert failed.any() and not ended.final_reward()[failed].any()
    assert not ended.broken.any()
