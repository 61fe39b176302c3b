"""Rounds: practice, true episodes, refreshed models, more practice - the same whether it was killed or not."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.assemble import load, make_engine
from worldenv.commands import job
from worldenv.config import TrainConfig
from worldenv.data.trajectories import TrajectoryReader
from worldenv.errors import UserError
from worldenv.evaluation import measure
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import practice_starts
from worldenv.evaluation.truth import act_in_true
from worldenv.policy.small import SmallPolicy
from worldenv.records.checkpoint import CheckpointError, load_state, load_weights
from worldenv.records.model_files import RANGES, save_ranges
from worldenv.records.resumption import identity
from worldenv.records.run_folder import RunFolder
from worldenv.reflector.small import SmallReflector
from worldenv.rl import practice_state
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import STAGE, post_train
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.training import fit as fitting
from worldenv.training import refresh
from worldenv.training.config import RefreshConfig, tiny_scratch
from worldenv.training.fit import Schedule
from worldenv.training.ranges import measure_ranges
from worldenv.training.refresh import ROUND_START, Refresh
from worldenv.training.world_stages import composer

FEW = Schedule(steps=3, batch=4, learning_rate=1e-3, save_every_s=0)
CONFIG = TrainConfig(
    seed=5,
    rounds=3,  # which begin with the iterations 0, 1 and 2
    rl=PostTrainConfig(iterations=4, starts=3, siblings=4, learning_rate=1e-2, signal=1e-9),
    engine=EngineConfig(horizon=8),
    eval=EvalConfig(episodes=10, imagined=2, quality=2, videos=0, every=2),
    refresh=RefreshConfig(episodes=1, contact=FEW, student=FEW, head=FEW),
    scratch=replace(tiny_scratch(), unroll=2),
)
TIMES = ("time_s", "rollout_s", "update_s", "validate_s", "refresh_s")


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "PRACTICE_STARTS", 30)
        patch.setattr(measure, "VALIDATION_EPISODES", 10)
        yield


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    tiny.save(path)
    parts = load(path)
    engine, networks = make_engine(parts, CONFIG.engine), parts.networks()
    ranges = measure_ranges(networks, engine, practice_starts(parts.suite, 0).pick(torch.arange(2)), 0)
    save_ranges(path / RANGES, ranges, networks)
    return path


@pytest.fixture(scope="module")
def ranges():
    """Those of the engines that imagined in the run of `whole`, one after the other."""
    return []


@pytest.fixture(scope="module")
def whole(models, ranges, tmp_path_factory):
    """A run of three rounds that nothing interrupted."""
    config, make = replace(CONFIG, models=models, run=tmp_path_factory.mktemp("rounds") / "run"), job.make_engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "make_engine", lambda parts, *given: ranges.append(parts.ranges) or make(parts, *given))
        job.train(config)
    return RunFolder(config.run)


def figures(folder, stage=STAGE):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in folder.metrics(stage)]


def weights(path):
    return {file.stem: load_weights(file)[0] for file in sorted(path.glob("*.safetensors"))}


def changed(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_every_round_begins_with_models_that_learned_on_from_those_of_the_round_before(whole, models):
    folders = [models, *(whole.path / "models" / f"round-{number}" for number in (1, 2))]
    for before, after in zip(folders, folders[1:], strict=False):
        old, new = weights(before), weights(after)
        assert {"policy", "contact", "composer", "reflector"} == new.keys()
        assert {"contact", "compose", "fine"} <= changed(old["composer"], new["composer"])
        assert changed(old["reflector"], new["reflector"]) == {"head"}
        assert "action_head" in changed(old["policy"], new["policy"])
        for name, weight in new["contact"].items():
            assert torch.equal(new["composer"][f"contact.{name}"], weight.half())
        assert all((after / f"{name}.md").exists() for name in new)
    stages = [f"round_{number}_{stage}" for number in (1, 2) for stage in ("contact", "student", "reflector")]
    assert whole.stages() == [STAGE, *stages]


def test_true_episodes_are_of_the_policy_of_the_round_from_starts_of_its_own(whole):
    rounds = [list(TrajectoryReader(whole.path / "data" / f"round-{number}")) for number in (1, 2)]
    for number, episodes in enumerate(rounds):
        first = ROUND_START + 1_000_000 * number
        assert [(t.task, t.start, t.split) for t in episodes] == [
            (TASKS[i % 10].name, first + i, "train") for i in range(10)
        ]
        policy = SmallPolicy.load(whole.path / "models" / f"round-{number + 1}" / "policy.safetensors")
        seed, suite = 5 + 1_000_000 * number, TabletopSuite()
        noise = CONFIG.scratch.perturb * torch.rand(10, generator=torch.Generator().manual_seed(seed))
        again = act_in_true(policy, suite, suite.tasks, range(first, first + 10), "train", noise, seed)
        assert all(np.array_equal(one.frames, other.frames) for one, other in zip(episodes, again, strict=True))
    assert len(list(TrajectoryReader(whole.path / "data" / "demonstrations"))) in range(5, 11)


def test_networks_begin_with_the_weights_of_the_round_before(whole, models):
    for number, before in ((1, models), (2, whole.path / "models" / "round-1")):
        world = composer(before / "composer.safetensors")
        begun = {
            "contact": copy.deepcopy(world.contact),
            "reflector": SmallReflector.load(before / "reflector.safetensors"),
        }
        load_weights(whole.path / "models" / f"round-{number}" / "contact.safetensors", world.contact)
        for stage, network in (begun | {"student": world}).items():
            state = load_state(whole.checkpoints / f"round_{number}_{stage}.state.safetensors")
            assert state["run"] == identity(5, network) and state["step"] == 3


def test_each_round_learns_from_the_episodes_of_all_rounds_so_far(whole, models):
    scratch = replace(CONFIG.scratch, demonstrations=1)
    sizes = []
    for number in (1, 2):
        made = Refresh(whole, number, models, None, CONFIG.refresh, scratch, 5)
        sizes.append(len(made.clips()))
    demonstrations = len(list(TrajectoryReader(whole.path / "data" / "demonstrations")))
    assert sizes == [demonstrations + 10, demonstrations + 20]


def test_cost_and_time_of_the_rounds_are_told(whole):
    result = whole.result()
    assert result["rounds"] == {"rounds": 3, "true_episodes": 20} and result["time_shares"]["refresh"] > 0
    assert ["refresh_s" in line for line in whole.metrics(STAGE)] == [False, True, True, False]
    assert "with 20 true episodes of the policy" in (whole.path / "report.html").read_text()


def test_ranges_are_measured_again_for_every_round_and_its_engine_imagines_with_them(whole, models, ranges):
    folders = [models, *(whole.path / "models" / f"round-{number}" for number in (1, 2))]
    assert ranges == [load(folder).ranges for folder in folders]
    for before, after in zip(ranges, ranges[1:], strict=False):
        assert all(before[role] != after[role] for role in ("policy", "world")) and before.keys() == after.keys()


def test_run_is_evaluated_with_the_models_of_its_last_round(whole, same_weights):
    parts, last = job.load_run(whole.path), load(whole.path / "models" / "round-2")
    assert same_weights(parts.world.network, last.world.network) and same_weights(parts.reflector, last.reflector)
    practised, _ = load_weights(whole.checkpoints / "policy.safetensors")
    assert same_weights(parts.policy, practised) and not same_weights(last.policy, practised)


def test_last_rounds_models_are_not_replaced_by_others_where_they_are_gone(whole):
    folder = whole.path / "models" / "round-2"
    aside = folder.rename(folder.with_name("aside"))
    try:
        with pytest.raises(CheckpointError, match="round-2/policy.safetensors: there is no such file"):
            job.load_run(whole.path)
    finally:
        aside.rename(folder)


def die_at(patch, owner, name, call, before):
    """Have the call of that number raise KeyboardInterrupt, before it does anything or after it."""
    original, calls = getattr(owner, name), []

    def dying(*given, **named):
        calls.append(1)
        if len(calls) == call and before:
            raise KeyboardInterrupt
        result = original(*given, **named)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(owner, name, dying)


KILLS = (
    (practice_state, "save_state", 1, False),  # the first round has ended
    (Refresh, "explore", 1, False),  # its episodes are recorded
    (fitting, "save_state", 5, False),  # within the training of the first student
    (RunFolder, "truncate", 1, False),  # nothing has been done since
    (refresh, "save_model", 1, False),  # the policy that the second refresh begins with is there, and no more
    (Refresh, "make_reflector", 1, True),  # the second world model is there, its reflector is not
    (practice_state, "save_state", 2, True),  # in the last round
    (job, "_save_policy", 1, True),  # after all practice
)


def test_run_that_is_killed_again_and_again_ends_like_one_that_is_not(
    whole, models, tmp_path, monkeypatch, same_weights
):
    config = replace(CONFIG, models=models, run=tmp_path / "run")
    for i, kill in enumerate(KILLS):
        with monkeypatch.context() as patch:
            die_at(patch, *kill)
            with pytest.raises(KeyboardInterrupt):
                job.train(replace(config, resume=i > 0))
    result, folder = job.train(replace(config, resume=True)), RunFolder(config.run)
    for place in ("models/round-1", "models/round-2"):
        ours, theirs = weights(folder.path / place), weights(whole.path / place)
        assert ours.keys() == theirs.keys() and all(same_weights(ours[name], theirs[name]) for name in ours)
    practised = [load_weights(run.checkpoints / "policy.safetensors")[0] for run in (folder, whole)]
    assert same_weights(*practised)
    for stage in whole.stages():
        assert figures(folder, stage) == figures(whole, stage)
    same = result.keys() - {"time_shares", "wall_s", "run"}
    assert {name: result[name] for name in same} == {name: whole.result()[name] for name in same}


def test_first_round_is_that_of_a_run_of_one_round_which_refreshes_nothing(
    whole, models, tmp_path, monkeypatch, same_weights
):
    monkeypatch.setattr(Refresh, "run", lambda self: pytest.fail("nothing is to be refreshed"))
    config = replace(CONFIG, rounds=1, models=models, run=tmp_path / "run")
    result, one = job.train(config), RunFolder(config.run)
    assert figures(one)[0] == figures(whole)[0] and figures(one)[1] != figures(whole)[1]
    assert "rounds" not in result and "refresh" not in result["time_shares"]
    assert not (one.path / "models").exists() and not (one.path / "data").exists()
    parts, folder = load(models), RunFolder.create(tmp_path / "plain", {})
    engine = make_engine(parts, config.engine)
    assert post_train(engine, practice_starts(parts.suite, 5), config.rl, folder, 5) == result["counts"]
    assert same_weights(parts.policy, load_weights(one.checkpoints / "policy.safetensors")[0])


def test_models_without_ranges_stay_without(models, tmp_path):
    plain = tmp_path / "models"
    plain.mkdir()
    for name in ("policy", "composer", "reflector"):
        (plain / f"{name}.safetensors").symlink_to(models / f"{name}.safetensors")
    given = 1, plain, load(plain).policy, CONFIG.refresh, CONFIG.scratch, 5
    stages = [path.name for path, _ in Refresh(RunFolder.create(tmp_path / "run", {}), *given).stages()]
    assert stages[-1] == "reflector.safetensors" and RANGES not in stages


def test_iterations_are_not_added_to_rounds_that_share_them(whole, models):
    config = replace(CONFIG, models=models, run=whole.path, resume=True)
    assert job.train(config) == whole.result()  # ended
    more = replace(config, rl=replace(config.rl, iterations=8))
    with pytest.raises(UserError, match="cannot be continued with other settings: --rl.iterations is 8, was 4"):
        job.train(more)
