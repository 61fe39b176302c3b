"""How a policy is measured: the fields of `--eval.*`."""

from dataclasses import dataclass
from pathlib import Path

from worldenv.evaluation.perceptual import present
from worldenv.fields import MOST, Within, check_fields

MOST_EPISODES = 100_000  # held in memory at a time; more would reach into the start states of the next start seed


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation in the true environment on held-out start states."""

    episodes: int = 500  # true episodes, spread evenly over the tasks
    imagined: int = 200  # imagined episodes of the same policy from the same starts
    quality: int = 64  # true episodes replayed in imagination for PSNR and SSIM
    videos: int = 4
    every: int = 0  # iterations of practice between two looks at true and imagined success; 0: none
    weights: Path | None = None  # folder with any of the files in perceptual.py: LPIPS, FID, FVD too

    def __post_init__(self) -> None:
        some = Within(1, MOST_EPISODES)
        check_fields(
            self,
            episodes=Within(10, MOST_EPISODES),
            imagined=some,
            quality=some,
            videos=Within(0, MOST_EPISODES),
            every=Within(0, MOST),
        )
        if self.weights is not None:
            present(self.weights)
