import pytest
import torch

from worldenv.kernels.reward_head import reward_head
from worldenv.ops.reward_head import reward_head_reference


def inputs(draw, b, k, d, d1, d2):
    shapes = [(3 * d,), (3 * d,), (d1, 3 * d), (d1,), (d2, d1), (d2,), (1, d2), (1,)]
    gain, shift, *layers = (draw(*shape) / max(shape[-1], 4) ** 0.5 for shape in shapes)
    count = torch.arange(b, device=gain.device)[:, None].float() * 3
    return [draw(b, k, d), draw(b, d), draw(b, d) * count, count, gain + 1, shift, *layers]


def both(arguments, threshold=0.5):
    """Reward and stop of face and reference, and the sums and counts that each leaves."""
    mine, other = (arguments[:2] + [t.clone() for t in arguments[2:4]] + arguments[4:] for _ in range(2))
    return (*reward_head(*mine, threshold), *mine[2:4]), (*reward_head_reference(*other, threshold), *other[2:4])


@pytest.mark.parametrize(
    ("b", "k", "d", "d1", "d2"),
    [(1, 1, 2, 1, 1), (5, 4, 33, 65, 17), (3, 3, 64, 32, 16), (2, 20, 40, 70, 5), (9, 4, 256, 256, 64)],
)
def test_face_equals_the_reference(draw, b, k, d, d1, d2):
    actual, expected = both(inputs(draw, b, k, d, d1, d2))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert actual[1].dtype == torch.bool


def test_frame_stops_where_its_reward_is_above_the_threshold(draw):
    arguments = inputs(draw, 6, 4, 32, 16, 8)
    rewards = both(arguments)[0][0].flatten()
    reward, stop, _, _ = both(arguments, rewards.median().item())[0]
    assert torch.equal(stop, reward > rewards.median()) and stop.any() and not stop.all()


def test_reward_that_is_not_a_number_stops_nothing_and_stays_in_its_episode(draw):
    arguments = inputs(draw, 3, 4, 32, 16, 8)
    clean = both(arguments)[0]
    arguments[0][1, 2, 5] = float("nan")
    reward, stop, total, _ = both(arguments, 0.0)[0]
    assert reward[1, 2:].isnan().all() and not stop[1, 2:].any() and stop[1, :2].all()
    assert torch.equal(reward[[0, 2]], clean[0][[0, 2]]) and torch.equal(total[[0, 2]], clean[2][[0, 2]])


def test_sizes_that_a_program_cannot_hold_are_refused(draw):
    with pytest.raises(ValueError, match="feature has 1 frames and weight2 300 rows; .* at most 256"):
        reward_head(*inputs(draw, 1, 1, 4, 4, 300), 0.5)
