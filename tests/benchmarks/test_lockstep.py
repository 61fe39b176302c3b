"""The engine's rival computes what the engine computes: only then does a ratio of their times say anything."""

import torch
from lockstep import Half, Lockstep, in_bfloat16

from worldenv.nn.instruction import tokenize

SEED = 5


def test_the_loop_imagines_the_engines_episodes(tiny):
    engine, starts = tiny.engine(horizon=12), tiny.starts(4)
    expected = engine.run(starts, 1, SEED, stop=False, video=True)
    video, reward, action = Lockstep(engine).run(starts, SEED)
    torch.testing.assert_close(action, expected.action, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(reward, expected.reward.flatten(1), rtol=0, atol=3e-3)
    assert ((video.int() - expected.video.int()).abs() > 1).float().mean() < 0.001
    other, *_ = Lockstep(engine).run(starts, SEED + 1)
    assert ((other.int() - expected.video.int()).abs() > 1).float().mean() > 0.01


def test_every_layer_multiplies_in_bfloat16_and_little_changes(tiny):
    parts = tiny.parts()
    half = in_bfloat16(parts)
    kinds = [type(m).__name__ for network in half.networks().values() for m in network.modules()]
    assert "Conv" not in kinds and kinds.count(Half.__name__) > 10
    assert all("Half" not in {type(m).__name__ for m in net.modules()} for net in parts.networks().values())
    frame = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    given = frame, torch.zeros(2, 7), tokenize(tiny.starts(2).instructions)
    with torch.no_grad():
        (mu, beta), (near, near_beta) = parts.policy(*given), half.policy(*given)
    assert 0 < (mu - near).abs().max() < 0.05 and (beta - near_beta).abs().max() < 0.05
