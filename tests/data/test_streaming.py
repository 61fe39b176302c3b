"""Training on more frames than memory holds."""

import os

import h5py
import pytest

from worldenv.data.trajectories import TrajectoryWriter

PARTS, DEMOS, STEPS, SIZE = 90, 2, 320, 256
ROOM = 2**30  # bytes of address space beyond what imports and a warm-up take

SET_UP = f"""
import resource
import torch
from worldenv.data.clips import Clips
from worldenv.data.trajectories import TrajectoryReader
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.training.train_causal import causal_loss
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork

torch.set_num_threads(1)
config = CausalConfig(
    image_size={SIZE}, patch=32, map_shrink=16, channels=12, chunk=2, window=4, width=32, layers=2, heads=2, key_heads=1
)

def train(clips, steps):
    network = CausalNetwork(config)
    loss = causal_loss(network, moved_gripper(Kinematics()), clips, 4, 2)
    for step in range(steps):
        value, _ = loss(torch.Generator().manual_seed(step))
        value.backward()
        assert torch.isfinite(value)

train(Clips.of([make_trajectory(0, 6, ({SIZE}, {SIZE}))]), 1)  # warm-up
taken = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (taken + {ROOM}, taken + {ROOM}))
"""


@pytest.fixture(scope="module")
def large(make, tmp_path_factory):
    """One part of frames in a single colour, under many names."""
    folder = tmp_path_factory.mktemp("large") / "set"
    with TrajectoryWriter(folder, per_file=DEMOS) as writer:
        for seed in range(DEMOS):
            trajectory = make(seed, STEPS, (SIZE, SIZE))
            trajectory.frames[...] = 7
            writer.write(trajectory)
    for number in range(1, PARTS):
        os.link(folder / "part-00000.h5", folder / f"part-{number:05d}.h5")
    return folder


def test_frames_of_the_data_set_are_more_than_10_gib(large):
    total = 0
    for path in large.glob("part-*.h5"):
        with h5py.File(path) as file:
            for demo in file["data"].values():
                total += demo["obs/agentview_rgb"].nbytes + demo["final_obs/agentview_rgb"].nbytes
    assert total >= 10 * 2**30 and len(list(large.glob("part-*.h5"))) == PARTS


def test_training_on_them_needs_the_memory_of_a_batch(large, python):
    result = python(SET_UP + "train(Clips.open(path), 2)\nprint('trained')", large)
    assert result.stdout == "trained\n", result.stderr


def test_loading_them_all_does_not_fit(large, python):
    result = python(SET_UP + "Clips.of(list(TrajectoryReader(path)))", large)
    assert result.returncode == 1 and "MemoryError" in result.stderr.splitlines()[-1], result.stderr
