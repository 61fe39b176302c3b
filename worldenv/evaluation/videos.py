"""Videos of a measurement: what was imagined beside what is true."""

import re

import numpy as np

from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import Measurement
from worldenv.evaluation.truth import starts_of
from worldenv.records.run_folder import RunFolder
from worldenv.records.video import side_by_side, write_video
from worldenv.rollout.engine import Engine

FPS = 6
LONGEST_NAME = 60  # characters of a task or suite in the name of a file


def write_videos(
    folder: RunFolder, engine: Engine, measurement: Measurement, config: EvalConfig, seed: int, name: str
) -> None:
    """Imagined and true episode of the same policy from the same start, with reward curve and stop."""
    if not config.videos:
        return
    shown = measurement.trajectories[: config.videos]
    starts = starts_of(shown)
    imagined = engine.run(starts.to(engine.world.device), 1, seed, explore=False, stop=False, video=True).to("cpu")
    for i, trajectory in enumerate(shown):
        stops = [
            int(imagined.stop[i]) if imagined.stopped[i] else None,
            int(measurement.true.stop[i]) if measurement.true.stopped[i] else None,
        ]
        curves = [
            np.concatenate([[0.0], curve])
            for curve in (imagined.reward[i].flatten().numpy(), measurement.true.reward[i])
        ]
        frames = side_by_side(
            [_wide(imagined.video[i].numpy()), _wide(trajectory.frames)], ["imagined", "true"], curves, stops
        )
        ending = "success" if measurement.true.success["own_stop"][i] else "failure"
        caption = f"{name}: {trajectory.instruction} (true: {ending})"
        write_video(folder.videos / f"{name}-{i}-{file_name(trajectory.task)}.webp", frames, FPS, caption=caption)


def file_name(name: str) -> str:
    """A name of the user's own as part of a file's name: ASCII letters, digits and . _ - stay, the others become _."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:LONGEST_NAME] or "unnamed"


def _wide(video: np.ndarray) -> np.ndarray:  # [T, V, H, W, 3] -> [T, H, V W, 3]
    """The views next to each other."""
    return np.concatenate(list(np.moveaxis(video, 1, 0)), axis=2)
