"""Recorded episodes of the suite, short and few, that several tests share."""

import pytest

from worldenv.data.clips import Clips
from worldenv.data.trajectories import TrajectoryWriter
from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS


@pytest.fixture(scope="session")
def shown(tmp_path_factory) -> Clips:
    """An expert's episode of each task, in a folder of the suite's own format."""
    folder = tmp_path_factory.mktemp("shown") / "demonstrations"
    with TrajectoryWriter(folder) as writer:
        for trajectory in demonstrate(TASKS, range(len(TASKS)), "train"):
            writer.write(trajectory)
    return Clips.open(folder)
