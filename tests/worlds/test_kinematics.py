"""World models of an arm that lags behind: its motion goes from chunk to chunk, its kinematics into its file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.interfaces.observation import Key
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.model_files import save_model
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.world import ComposerWorld
from worldenv.worlds.kinematics import kept_kinematics

SIZE = np.diag([0.03] * 3 + [0.1] * 3 + [0.2])
LAGGING = FittedKinematics(0.5 * SIZE, 0.3 * SIZE, 0.4 * np.eye(7), (0.0,) * 7, (0.0, 1.0))
EXACT = moved_gripper(Kinematics(), clear_m=CLEAR_M)
ROBOT = replace(EXACT, kinematics=LAGGING)
CONFIG = CausalConfig(image_size=16, patch=4, map_shrink=2, channels=16, width=32, layers=1, heads=2, key_heads=1)


def causal():
    torch.manual_seed(0)
    return CausalNetwork(CONFIG).eval().requires_grad_(False)


@pytest.fixture(params=["composer", "causal"])
def make(tiny, request):
    if request.param == "composer":
        return lambda robot: ComposerWorld(tiny.simulator(), robot, (1.0, 0.5))
    return lambda robot: CausalWorld(causal(), robot)


@pytest.mark.parametrize("capacity", [None, 3])
def test_every_episode_of_the_engine_goes_where_its_actions_lead_one_after_the_other(make, tiny, capacity):
    engine, starts = tiny.engine(horizon=12, capacity=capacity, batch=2, world=make(ROBOT)), tiny.starts(5)
    out = engine.run(starts, 2, 1, stop=False, video=True)
    begun = starts.seen.proprio.repeat_interleave(2, 0)
    poses, _ = LAGGING.follow(begun, LAGGING.rest(begun), out.action.flatten(1, 2))
    assert torch.equal(out.proprio[:, 1:], poses)


def test_chunks_that_end_within_a_pass_go_there_too(tiny):
    world, seen = ComposerWorld(tiny.simulator(), ROBOT, (1.0,)), tiny.starts(4).seen
    acted = 2 * torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(1)) - 1
    memory, now, found = world.begin(seen, 3), seen.each(torch.clone), []
    for chunk in range(2):
        key = Key(0, torch.arange(4), torch.full((4,), chunk))
        imagined = world.imagine(memory, now, acted[:, 3 * chunk : 3 * chunk + 3], key)
        now.frames, now.proprio = imagined.frames[:, -1], imagined.proprio[:, -1]
        found.append(imagined.proprio)
    expected, motion = LAGGING.follow(seen.proprio, LAGGING.rest(seen.proprio), acted)
    assert torch.equal(torch.cat(found, dim=1), expected) and torch.equal(memory.motion, motion)


def test_exact_kinematics_take_no_memory(make, tiny):
    seen = tiny.starts(2).seen
    exact, lagging = (make(robot).begin(seen, 4) for robot in (EXACT, ROBOT))
    assert exact.motion is None and lagging.bytes_each() - exact.bytes_each() == 7 * 4


def files(tmp_path, tiny):  # a file of each world model, with the kinematics of ROBOT
    kept = kept_kinematics(ROBOT)
    save_model(tmp_path / "composer", tiny.simulator(), "composer", {}, levels=(1.0,), **kept)
    save_model(tmp_path / "causal", causal(), "causal", {}, levels=(1.0,), **kept)
    return {ComposerWorld: tmp_path / "composer", CausalWorld: tmp_path / "causal"}


def test_kinematics_come_back_with_the_world_model(tmp_path, tiny):
    for world, path in files(tmp_path, tiny).items():
        without = replace(EXACT, kinematics=None)  # as a suite has it, for which there is no formula
        assert world.load(path, without).robot == ROBOT
    repeated = replace(ROBOT, kinematics=replace(LAGGING, repeat=2))
    old = kept_kinematics(ROBOT)["kinematics"]
    old.pop("repeat")  # as files have it from before there was such a number
    for number, (kept, robot) in enumerate([(kept_kinematics(repeated)["kinematics"], repeated), (old, ROBOT)]):
        save_model(tmp_path / f"{number}", tiny.simulator(), "composer", {}, levels=(1.0,), kinematics=kept)
        assert ComposerWorld.load(tmp_path / f"{number}", EXACT).robot == robot
    assert kept_kinematics(EXACT) == {}  # the suite has the formula
    save_model(tmp_path / "exact", tiny.simulator(), "composer", {}, levels=(1.0,), **kept_kinematics(EXACT))
    assert ComposerWorld.load(tmp_path / "exact", EXACT).robot is EXACT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "its kinematics is 3, not the fields of FittedKinematics"),
        ({}, "lacks .*inertia"),
        (kept_kinematics(ROBOT)["kinematics"] | {"drift": [0.0]}, r"drift of the kinematics is \[0.0\]"),
        (kept_kinematics(ROBOT)["kinematics"] | {"step": "x"}, "step of the kinematics is 'x'"),
    ],
)
def test_damaged_kinematics_are_refused_by_the_name_of_the_file(tmp_path, tiny, wrong, message):
    path = tmp_path / "composer.safetensors"
    save_model(path, tiny.simulator(), "composer", {}, levels=(1.0,), kinematics=wrong)
    with pytest.raises(CheckpointError, match=f"{path}: .*{message}"):
        ComposerWorld.load(path, EXACT)
