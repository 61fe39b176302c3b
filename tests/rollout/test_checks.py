"""What is wrong with arguments, and with what models return, is said in one line before work is lost."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import worldenv
from worldenv.errors import UserError
from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.interfaces.slots import Slots
from worldenv.rollout.checks import check_suite, given_tensor
from worldenv.rollout.replay import replay

SEED = 5


@dataclass
class Rows(Slots):
    rows: object


class Altered:
    """A model like another one, but for what is given."""

    def __init__(self, part, **members):
        self.__dict__.update(members, part=part)

    def __getattr__(self, name):
        return getattr(self.__dict__["part"], name)


def returning(part, method, change, after=0):
    """A model whose method returns change(what it should), from a call on."""
    calls = []

    def altered(*given):
        calls.append(given)
        out = getattr(part, method)(*given)
        return change(out, given) if len(calls) > after else out

    return Altered(part, **{method: altered})


def run(tiny, **models):
    engine = tiny.engine(horizon=8, **models)
    return engine.run(tiny.starts(3), 1, SEED)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"siblings": 1.5}, "siblings is 1.5; it should be a whole number"),
        ({"siblings": True}, "siblings is True"),
        ({"seed": True}, "seed is True; it should be an integer of 64 bits"),
        ({"seed": None}, "seed is None"),
        ({"first_episode": -1}, r"first_episode is -1; it should be a whole number, from 0 to 2\^62"),
        ({"first_episode": 2**62}, "first_episode is 4611686018427387904"),
        ({"first_episode": 1.0}, "first_episode is 1.0"),
        ({"explore": "no"}, "explore is 'no'; it should be True or False"),
        ({"stop": 0}, "stop is 0; it should be True or False"),
        ({"video": None}, "video is None; it should be True or False"),
        ({"starts": None}, "starts is a NoneType; it should be Starts"),
    ],
)
def test_arguments_of_a_run_that_are_of_another_kind_are_refused(tiny, arguments, why):
    with pytest.raises(UserError, match=why):
        tiny.engine(horizon=8).run(**{"starts": tiny.starts(3), "siblings": 1, "seed": SEED} | arguments)


def test_numbers_of_numpy_are_taken(tiny):
    engine, starts = tiny.engine(horizon=8), tiny.starts(3)
    one, other = engine.run(starts, 2, 3, 5), engine.run(starts, np.int32(2), np.int64(3), np.int64(5))
    assert torch.equal(one.action, other.action)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda seen: replace(seen, frames=seen.frames.numpy()), "frames of the starts is uint8 .*; it should be"),
        (lambda seen: replace(seen, frames=None), "frames of the starts is a NoneType; it should be a tensor"),
        (lambda seen: replace(seen, frames=seen.frames.sum()), "there are no starts"),
        (lambda seen: replace(seen, camera=seen.camera * math.nan), "camera of the starts has numbers that are not"),
        (lambda seen: replace(seen, proprio=seen.proprio.to_sparse()), "proprio of the starts is torch.float32"),
    ],
)
def test_starts_of_another_kind_are_refused_by_everything_that_takes_them(tiny, change, why):
    good = tiny.starts(3)
    starts, parts = Starts(change(good.seen), good.texts), tiny.parts()
    for use in (
        lambda: tiny.engine().run(starts, 1, SEED),
        lambda: tiny.engine().bytes_per_episode(starts),
        lambda: worldenv.make_env(parts, starts, worldenv.EnvConfig(envs=2)),
        lambda: replay(parts.world, starts, torch.zeros(3, 4, 7), SEED),
    ):
        with pytest.raises(UserError, match=why):
            use()


@pytest.mark.parametrize("texts", ["put it in the tray", None, (1, 2, 3), ("put", " ", "push"), 3])
def test_table_of_instructions_that_is_none_is_refused(tiny, texts):
    with pytest.raises(UserError, match="the table of instructions (is|holds)"):
        tiny.engine().run(Starts(tiny.starts(3).seen, texts), 1, SEED)


def test_rows_of_starts_that_do_not_exist_are_refused(tiny):
    starts = tiny.starts(3)
    for index, why in (
        (torch.tensor([3]), "index has rows 3 to 3; there are 3 starts"),
        (torch.tensor([-1]), "index has rows -1"),
        (torch.tensor([0.0]), r"index is torch.float32 \[1\]; it should be a tensor torch.int64 \[M\]"),
        ([0], "index is a list"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), "index is on meta, the starts are on cpu"),
    ):
        with pytest.raises(UserError, match=why):
            starts.pick(index)
    for given in ("put it", [1], None):
        with pytest.raises(UserError, match="instructions is .*; it should be a sequence of strings"):
            table_of(given)


def test_given_tensor_is_a_number_and_has_no_gradient():
    cpu = torch.device("cpu")
    assert not given_tensor("action", torch.ones(2, requires_grad=True), cpu, torch.float32).requires_grad
    assert given_tensor("action", np.ones(2), cpu, torch.float32).dtype == torch.float32
    for wrong in ("x", None, {}, np.array(["a"]), torch.ones(2).bool(), torch.ones(2) * 1j):
        with pytest.raises(UserError, match="action is"):
            given_tensor("action", wrong, cpu, torch.float32)


@pytest.mark.parametrize(
    ("actions", "why"),
    [
        (torch.zeros(2, 4, 7), r"actions is \[2, 4, 7\]; it should be \[3, T, 7\]"),
        (torch.zeros(3, 4, 6), r"actions is \[3, 4, 6\]"),
        (torch.zeros(3, 28), r"actions is \[3, 28\]"),
        (torch.full((3, 4, 7), math.nan), "actions has numbers that are not finite"),
        (None, "actions is a NoneType"),
        (torch.zeros(3, 4, 7).bool(), "actions is torch.bool"),
    ],
)
def test_actions_that_cannot_be_replayed_are_refused(tiny, actions, why):
    with pytest.raises(UserError, match=why):
        replay(tiny.world(), tiny.starts(3), actions, SEED)


# What models return.


def in_place(change):
    return lambda out, given: (change(*given), out)[1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out, _: replace(out, action=out.action.int()), "the policy decided in torch.int32"),
        (lambda out, _: replace(out, record=[1]), "the policy's record is a list; it should be a dataclass"),
        (lambda out, _: replace(out, record=Rows(3)), "the policy returned as record a int; it should be tensors of"),
        (lambda out, _: replace(out, record=out.record[:0]), r"returned as record torch.float32 \[0, 64\]"),
        (lambda out, _: replace(out, action=out.action.to("meta")), "the policy returned action on meta"),
        (in_place(lambda seen, *_: seen.frames.add_(1)), "the policy's `act` changed its input in place"),
    ],
)
def test_decision_that_is_none_is_refused(tiny, change, why):
    with pytest.raises(UserError, match=why):
        run(tiny, policy=returning(tiny.policy(), "act", change))


def test_decisions_in_other_floats_are_taken(tiny):
    expected = run(tiny)
    found = run(tiny, policy=returning(tiny.policy(), "act", lambda out, _: replace(out, action=out.action.double())))
    assert torch.equal(found.action, expected.action) and found.action.dtype == torch.float32


@pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("begin", lambda out, _: None, "the world model's `begin` returned a NoneType"),
        ("begin", lambda out, _: out[:0], "the world model's `begin` returned torch.uint8"),
        ("imagine", lambda out, _: (1, 2), "the world model's `imagine` returned a tuple; it should be Imagined"),
        ("imagine", lambda out, _: replace(out, frames=None), "the world model imagined frames a NoneType"),
        ("imagine", lambda out, _: replace(out, finite=out.finite.to("meta")), "imagined finite on meta"),
        ("imagine", lambda out, _: replace(out, proprio=out.proprio * math.nan), "proprio that is not finite, in"),
        ("imagine", in_place(lambda memory, seen, action, key: action.add_(1)), "`imagine` changed its input in place"),
        ("imagine", in_place(lambda memory, *_: setattr(memory, "first", memory.first + 0)), "put new tensors into"),
    ],
)
def test_world_model_that_does_not_do_what_it_should_is_refused(tiny, method, change, why):
    with pytest.raises(UserError, match=why):
        run(tiny, world=returning(tiny.world(), method, change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out, _: out[0], "the reflector's `judge` returned torch.float32 .*; it should be reward and stop"),
        (lambda out, _: (None, out[1]), "the reflector returned reward a NoneType"),
        (lambda out, _: (out[0] + 1, out[1]), "the reflector returned rewards from .*; every"),
        (lambda out, _: (out[0] - 1, out[1]), "the reflector returned rewards from -.*; every"),
        (in_place(lambda frames, state: frames.zero_()), "the reflector's `judge` changed its input in place"),
        (in_place(lambda frames, state: setattr(state, "total", state.total + 0)), "`judge` put new tensors"),
    ],
)
def test_reflector_that_does_not_judge_as_it_should_is_refused(tiny, change, why):
    with pytest.raises(UserError, match=why):
        run(tiny, reflector=returning(tiny.reflector(), "judge", change))


def test_reward_outside_its_bounds_is_seen_at_the_end_where_it_came_late(tiny):
    late = returning(tiny.reflector(), "judge", lambda out, _: (out[0] + 1, torch.zeros_like(out[1])), after=1)
    with pytest.raises(UserError, match="the reflector returned rewards from .*; every"):
        run(tiny, reflector=late)


def test_reward_that_is_not_finite_breaks_its_episode_and_is_no_error(tiny):
    spoilt = returning(tiny.reflector(), "judge", lambda out, _: (out[0] * math.nan, out[1]))
    assert run(tiny, reflector=spoilt).broken.all()


def test_memory_that_is_a_view_of_the_observation_is_as_good_as_a_copy_in_a_replay(tiny):
    def replayed(how):
        world = returning(tiny.world(), "begin", lambda out, given: replace(out, first=how(given[0].frames[:, 0])))
        return replay(world, tiny.starts(3), torch.full((3, 8, 7), 0.5), SEED)

    assert torch.equal(replayed(lambda frames: frames), replayed(torch.clone))


def writing(part, method, change):
    """A model whose method changes what it was given."""

    def altered(*given):
        out = getattr(part, method)(*given)
        change(*given)
        return out

    return Altered(part, **{method: altered})


@pytest.mark.parametrize(
    ("role", "method", "change"),
    [
        ("policy", "act", lambda seen, read, *_: read.mul_(0.9)),
        ("reflector", "begin", lambda seen, read: read.mul_(0.9)),
        ("reflector", "begin", lambda seen, read: seen.proprio.mul_(0.9)),
        ("world", "begin", lambda seen, chunk: seen.proprio.mul_(0.9)),
    ],
)
def test_models_that_change_what_others_read_are_refused(tiny, role, method, change):
    models = {"policy": tiny.policy(), "world": tiny.world(), "reflector": tiny.reflector()}
    with pytest.raises(UserError, match=f"`{method}` changed its input in place; it should work on a copy"):
        run(tiny, **{role: writing(models[role], method, change)})


# Suites.


@dataclass(frozen=True)
class Task:
    name: object
    instructions: object = ("put it",)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"tasks": (Task("a/b"),)}, "is called 'a/b'; it should be printable, without /"),
        ({"tasks": (Task(""),)}, "is called ''"),
        ({"tasks": (Task(".."),)}, "is called '..'"),
        ({"tasks": (Task("a\nb"),)}, "is called 'a"),
        ({"tasks": (Task(3),)}, "is called 3"),
        ({"tasks": (Task("a"), Task("a"))}, "two tasks of the suite tabletop are called 'a'"),
        ({"tasks": (Task("a", ()),)}, "the task a of the suite tabletop has no instruction"),
        ({"tasks": (Task("a", "put it"),)}, "the table of instructions is a str"),
        ({"tasks": (Task("a", ("",)),)}, "the table of instructions holds ''"),
        ({"tasks": ()}, "the suite tabletop has no tasks"),
        ({"tasks": (None,)}, "a task of the suite tabletop has no name or no instructions"),
        ({"horizon": 2.5}, "horizon of the suite is 2.5; it should be a positive integer"),
        ({"views": "agentview"}, "the suite has the views 'agentview'; they should be a tuple of distinct names"),
        ({"robot": None}, "robot of the suite is a NoneType; it should be worldenv.Robot"),
        ({"step": None}, "step of the suite Altered should be a method"),
    ],
)
def test_suite_that_cannot_be_used_is_refused(tiny, members, why):
    suite = tiny.parts().suite
    check_suite(suite)
    with pytest.raises(UserError, match=why):
        check_suite(Altered(suite, **members))


def changed(**changes):
    def change(out, _):
        return Starts(replace(out.seen, **{n: f(getattr(out.seen, n)) for n, f in changes.items()}), out.texts)

    return change


@pytest.mark.parametrize(
    ("method", "change", "why"),
    [
        ("reset", lambda out, _: None, "starts is a NoneType"),
        ("reset", changed(proprio=lambda x: x.double()), "proprio of the starts is torch.float64 .*; the suite should"),
        ("reset", changed(text=lambda x: x + 9), "text of the starts names rows outside the table"),
        ("reset", changed(frames=lambda x: x[:1]), "frames of the starts is torch.uint8"),
        ("step", lambda out, _: (out[0], out[1].astype(int)), r"`step` returned done int64 \[2\]; it should be"),
        ("step", lambda out, _: (out[0][:1], out[1]), "`step` returned an observation that is not finite, or of other"),
        ("step", lambda out, _: (replace(out[0], camera=None), out[1]), "`step` returned an observation"),
    ],
)
def test_suite_that_returns_something_else_is_refused(tiny, method, change, why):
    parts = tiny.parts()
    suite = returning(parts.suite, method, change)
    with pytest.raises(UserError, match=why):
        worldenv.act_in_true(parts.policy, suite, parts.suite.tasks[:2], [0, 1], "test")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"tasks": ["a", "b"]}, "tasks is .*; it should be a sequence of tasks of the suite"),
        ({"tasks": []}, "there are 0 tasks"),
        ({"starts": [0]}, r"there are 2 tasks, and starts is \[0\]; it should be an integer for every task"),
        ({"starts": [0.5, 1]}, "there are 2 tasks"),
        ({"split": None}, "unknown split None"),
        ({"perturb": math.nan}, "perturb is nan; it should be a finite number"),
        ({"perturb": torch.zeros(3)}, "perturb is tensor"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"policy": None}, "the policy NoneType lacks"),
        ({"suite": 3}, "the suite int lacks"),
    ],
)
def test_wrong_arguments_of_acting_in_the_true_suite_are_refused(tiny, arguments, why):
    parts = tiny.parts()
    given = {"policy": parts.policy, "suite": parts.suite, "tasks": parts.suite.tasks[:2], "starts": [0, 1]}
    with pytest.raises(UserError, match=why) as found:
        worldenv.act_in_true(**given | {"split": "test"} | arguments)
    assert "\n" not in str(found.value)


def test_observation_is_no_starts(tiny):
    seen = tiny.starts(2).seen
    assert isinstance(seen, Observation)
    with pytest.raises(UserError, match="starts is a Observation; it should be Starts of an Observation"):
        tiny.engine().run(seen, 1, SEED)
