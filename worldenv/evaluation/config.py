"""How a policy is measured: the fields of `--eval.*`."""

from dataclasses import dataclass
from pathlib import Path

from worldenv.errors import UserError
from worldenv.evaluation.perceptual import present


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation in the true environment on held-out start states."""

    episodes: int = 500  # true episodes, spread evenly over the tasks
    imagined: int = 200  # imagined episodes of the same policy from the same starts
    quality: int = 64  # true episodes replayed in imagination for PSNR and SSIM
    videos: int = 4
    weights: Path | None = None  # folder with any of the files in perceptual.py: LPIPS, FID, FVD too

    def __post_init__(self) -> None:
        if self.weights is not None:
            present(self.weights)
        if self.episodes < 10 or self.imagined < 1 or self.quality < 1 or self.videos < 0:
            raise UserError(
                "--eval.episodes must be at least 10, --eval.imagined and --eval.quality at least 1, "
                "--eval.videos not negative"
            )
