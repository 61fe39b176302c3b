"""From noise to frames: the Euler sampler of the flow, one pure function of plain arguments."""

from collections.abc import Sequence

from torch import Tensor

from worldenv.worlds.composer.network import ComposerNetwork, Seen

TEACHER_LEVELS = (1.0, 0.75, 0.5, 0.25)  # noise levels t of the multi-step teacher
STUDENT_LEVELS = (1.0,)  # the distilled student: one pass


def sample(
    network: ComposerNetwork,
    seen: Seen,
    noise: Tensor,  # [B, ...] float32, standard normal
    levels: Sequence[float],  # falling, in (0, 1], the first is 1
) -> Tensor:  # [B, ...] float32
    """Integrate the flow x_t = (1 - t) x_0 + t noise from t = 1 to 0 by Euler steps.

        x <- x + (t_next - t) * (x - clean(x, t)) / t

    With one level this is the student: a single pass.
    """
    x = noise
    for t, t_next in zip(levels, (*levels[1:], 0.0), strict=True):
        clean = network.denoise(x, x.new_full((len(x),), t), seen)
        x = clean if t_next == 0 else clean + (t_next / t) * (x - clean)
    return x
