"""The pair that users can download, in tiny: RLinf's world model, a one-view token policy, a Qwen as judge."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import worldenv
from worldenv.config import presets
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.records.checksum import checksum
from worldenv.records.run_folder import RunFolder
from worldenv.rl.loop import STAGE, post_train
from worldenv.robot.fitted import FittedKinematics
from worldenv.suites.actors import ask_once
from worldenv.suites.libero.suite import PROGRAM
from worldenv.suites.tabletop.suite import TabletopSuite


@pytest.fixture(scope="module", params=["tabletop", "libero"])
def suite(request):
    if request.param == "tabletop":
        return TabletopSuite()
    try:
        ask_once(PROGRAM, ("describe", "libero_spatial"), 120.0)
    except UserError as error:
        pytest.skip(str(error))
    made = worldenv.LiberoSuite("libero_spatial", workers=2)
    request.addfinalizer(made.close)
    return made


@pytest.fixture(scope="module")
def practised(pair_names, suite, tmp_path_factory):
    """Three iterations of 64 episodes with the settings of the preset, but for a rate at which few steps are seen."""
    module = SimpleNamespace(pair=lambda: suite)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "suite_of_the_pair", module)
        parts = worldenv.load(suite="suite_of_the_pair:pair", **pair_names)
    preset = presets()["rlinf-wan-libero"][1]
    engine = worldenv.make_engine(parts, replace(preset.engine, horizon=16))
    before = {role: checksum({}, network.state_dict()) for role, network in parts.networks().items()}
    rl = replace(preset.rl, iterations=3, learning_rate=1e-2, minibatch=32, accumulate=None)
    starts = suite.reset([suite.tasks[0]] * 4, range(4), "train")
    with RunFolder.create(tmp_path_factory.mktemp("run") / "run", {}) as folder:
        counts = post_train(engine, starts, rl, folder, seed=0)
        return SimpleNamespace(**locals())


def test_64_episodes_are_resident_and_every_iteration_teaches(practised):
    assert len(practised.engine.runner.episodes) == 64
    assert practised.counts["groups"] == 24
    assert practised.counts["broken_episodes"] == practised.counts["skipped_steps"] == 0
    lines = practised.folder.metrics(STAGE)
    assert len(lines) == 3 and all(line["chunks"] > 0 and line["groups_without_signal"] < 8 for line in lines)
    assert len({line["reward"] for line in lines}) == 3  # other episodes, so the judge says something else


def test_the_policy_alone_has_changed(practised):
    after = {role: checksum({}, network.state_dict()) for role, network in practised.parts.networks().items()}
    changed = {role for role, known in after.items() if known != practised.before[role]}
    assert changed == {"policy"}


def test_what_is_written_back_acts_as_the_policy_that_practised(practised, pair_names, tmp_path):
    policy, suite = practised.parts.policy, practised.suite
    again = worldenv.load_openvla_oft(policy.write_back(tmp_path / "policy"), suite)
    untouched = worldenv.load_openvla_oft(pair_names["policy"].partition(":")[2], suite)
    starts = practised.starts
    key = Key(0, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    decision = policy.act(starts.seen, policy.read(starts.texts), key, True)
    with torch.no_grad():
        now, then = (one.log_prob(decision.record, decision.action) for one in (again, untouched))
    torch.testing.assert_close(now, decision.log_prob, atol=1e-2, rtol=0)
    assert (then - decision.log_prob).abs().max() > 0.1


def test_no_kinematics_are_needed_where_nothing_reads_proprioception(pair_names):
    suite = TabletopSuite()
    suite.robot = replace(suite.robot, kinematics=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "suite_of_the_pair", SimpleNamespace(pair=lambda: suite))
        parts = worldenv.load(suite="suite_of_the_pair:pair", **pair_names)
        with pytest.raises(UserError, match="the policy reads proprioception, which this world model does not imagine"):
            worldenv.load(suite="suite_of_the_pair:pair", world=pair_names["world"])
    starts = suite.reset(suite.tasks[:2], range(2), "train")
    out = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=8)).run(starts, 1, 0, stop=False, video=True)
    assert not out.broken.any() and torch.equal(out.proprio, out.proprio[:, :1].expand_as(out.proprio))


def test_an_arm_that_coasts_goes_where_its_fit_says(pair_names):
    """The motion is kept between chunks."""
    suite = TabletopSuite()
    some = torch.zeros(7, 7)
    step, inertia = (0.01 * torch.eye(7)).tolist(), (0.5 * torch.eye(7)).tolist()
    fitted = FittedKinematics(step, some.tolist(), inertia, (0.0,) * 7, (0.0, 1.0))
    suite.robot = replace(suite.robot, kinematics=fitted)
    world = worldenv.load_wan(pair_names["world"].partition(":")[2], suite)
    seen = suite.reset(suite.tasks[:2], range(2), "train").seen
    memory, actions = world.begin(seen, 8), 2 * torch.rand(2, 16, 7) - 1
    poses, now = [], seen
    for chunk in range(2):
        key = Key(0, torch.arange(2), torch.full((2,), chunk))
        poses.append(world.imagine(memory, now, actions[:, 8 * chunk : 8 * chunk + 8], key).proprio)
        now = replace(seen, proprio=poses[-1][:, -1])
    expected, _ = fitted.follow(seen.proprio, fitted.rest(seen.proprio), actions)
    torch.testing.assert_close(torch.cat(poses, 1), expected, atol=1e-6, rtol=0)
