"""The slots under engine and environments: which starts they take, what was read, and that nobody's reading moves."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Starts, table_of
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.world import Imagined
from worldenv.rollout.checks import check_seed, check_starts
from worldenv.rollout.runner import Runner, _written_over

SEED = 3


def given(live, read, key, explore):
    return Decision(live.action, live.action.new_zeros(len(live)), None)


def make(tiny, chunk=4, reflector=None, **options):
    return Runner(tiny.world(), reflector or tiny.reflector(), given, chunk, takes_actions=True, **options)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "frames",
            lambda x: x / 127.5 - 1,
            r"frames of the starts is torch.float32 \[3, 1, 16, 16, 3\]; the world model takes torch.uint8 \[3, 1",
        ),
        ("frames", lambda x: x[:, 0], r"frames of the starts is torch.uint8 \[3, 16, 16, 3\]; the world model takes "),
        (
            "frames",
            lambda x: x.repeat(1, 2, 1, 1, 1),
            r"\[3, 2, 16, 16, 3\]; .*: 3 starts, 1 views \(agentview\) of 16 ",
        ),
        ("frames", lambda x: x.repeat(1, 1, 2, 2, 1), r"\[3, 1, 32, 32, 3\]; the world model takes .*16 x 16 pixels"),
        ("proprio", lambda x: x.double(), r"proprio of the starts is torch.float64 \[3, 7\]; .* takes torch.float32"),
        ("proprio", lambda x: x[:2], r"proprio of the starts is torch.float32 \[2, 7\]; .* takes .*: 3 starts"),
        ("proprio", lambda x: x[:, :6], r"proprio of the starts is .* \[3, 6\]; .*, 7 numbers of proprioception"),
        ("proprio", lambda x: x / 0, "proprio of the starts has numbers that are not finite"),
        ("camera", lambda x: x[:, 0], r"camera of the starts is torch.float32 \[3, 3, 4\]; .* \[3, 1, 3, 4\]"),
        (
            "text",
            lambda x: x.int(),
            r"text of the starts is torch.int32 \[3\]; the world model takes torch.int64 \[3\]",
        ),
        ("text", lambda x: x[:, None], r"text of the starts is torch.int64 \[3, 1\]; "),
        ("text", lambda x: x + 1, "text of the starts names rows outside the table, which has 3 instructions"),
        ("text", lambda x: x - 1, "text of the starts names rows outside the table, which has 3 instructions"),
        ("frames", lambda x: x.to("meta"), r"frames of the starts is on meta, .* cpu; move the starts: starts.to\(dev"),
    ],
)
def test_starts_that_nothing_can_go_on_from_are_refused(tiny, name, wrong, message):
    starts = tiny.starts(3)
    setattr(starts.seen, name, wrong(getattr(starts.seen, name)))
    for use in (lambda: tiny.engine().run(starts, 1, SEED), lambda: tiny.env(starts)):
        with pytest.raises(UserError, match=message):
            use()


def test_no_start_at_all_is_refused_and_a_missing_camera_is_for_the_world_model_to_refuse(tiny):
    world, starts = tiny.world(), tiny.starts(2)
    with pytest.raises(UserError, match="there are no starts; at least one is needed"):
        check_starts(starts.pick(torch.arange(0)), world)
    starts.seen.camera = None
    check_starts(starts, world)
    with pytest.raises(UserError, match="the composer draws the gripper through the camera; the observation has no ca"):
        tiny.env(starts).reset()


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, "1", None])
def test_seed_that_is_no_integer_of_64_bits_is_refused(seed):
    with pytest.raises(UserError, match="seed is .*; it should be an integer of 64 bits"):
        check_seed(seed)


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunk_without_an_action_is_refused(tiny, chunk):
    with pytest.raises(UserError, match=f"chunk is {chunk}; a chunk has at least one action"):
        make(tiny, chunk)


def test_step_thinks_and_only_the_models_states_move_until_the_episodes_are_moved_on(tiny):
    runner, starts = make(tiny), tiny.starts(5)
    runner.open(starts)
    rows = torch.arange(5)
    runner.make_slots(5, rows, rows, SEED, False)
    runner.fill(rows, rows, rows)
    live = runner.episodes[:]
    live.action.uniform_(-1, 1)
    before = live.each(torch.clone)
    step = runner.think(live, SEED, False)
    assert torch.equal(step.action, before.action) and step.frames.shape == (5, 4, 1, 16, 16, 3)
    assert torch.equal(live.seen.frames, starts.seen.frames) and not live.chunk.any()
    assert not torch.equal(live.judged.total, before.judged.total)
    live.move_on(step.frames[:, -1], step.proprio[:, -1])
    assert torch.equal(runner.episodes.seen.frames, step.frames[:, -1]) and (runner.episodes.chunk == 1).all()


def test_begun_episodes_are_those_of_their_starts_and_have_their_numbers(tiny):
    runner, starts = make(tiny, chunk=3), tiny.starts(4)
    runner.open(starts)
    ids, rows = torch.tensor([7, 9, 2]), torch.tensor([0, 1, 2])
    new = runner.begin(torch.tensor([3, 0, 3]), ids, rows)
    assert torch.equal(new.row, rows) and torch.equal(new.id, ids) and not new.chunk.any()
    assert torch.equal(new.seen.frames, starts.seen.frames[[3, 0, 3]]) and new.action.shape == (3, 3, 7)
    assert torch.equal(runner.begin(torch.tensor([3]), ids[:1]).row, torch.tensor([3]))


def test_step_that_is_not_finite_is_no_success(tiny):
    runner = make(tiny)
    runner.open(tiny.starts(3))
    rows = torch.arange(3)
    live = runner.begin(rows, rows)
    live.action[1, 2, 0] = torch.nan
    runner.reflector.judge = lambda frames, state: (torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool))
    step = runner.think(live, SEED, False)
    assert step.finite.tolist() == [True, False, True] and step.stop.all(1).tolist() == [True, False, True]


# What was read: CUDA graphs go on reading the tensors that were there when they were recorded.


def test_reading_of_the_same_shapes_is_written_where_the_last_one_is():
    old = (torch.zeros(3, 2), [{"a": torch.zeros(2, dtype=torch.int64)}, None])
    new = (torch.ones(3, 2), [{"a": torch.tensor([4, 5])}, None])
    assert _written_over(old, new)
    assert torch.equal(old[0], new[0]) and torch.equal(old[1][0]["a"], new[1][0]["a"])


@pytest.mark.parametrize(
    "new",
    [
        (torch.ones(4, 2), torch.ones(2)),
        (torch.ones(3, 2), torch.ones(2).double()),
        (torch.ones(3, 2), torch.ones(2, device="meta")),
        (torch.ones(3, 2), [torch.ones(2)]),
        (torch.ones(3, 2), None),
        (torch.ones(3, 2), "two"),
        torch.ones(3, 2),
    ],
    ids=["shape", "dtype", "device", "structure", "nothing", "no tensor", "fewer"],
)
def test_reading_of_another_kind_is_not_written_over_and_the_last_one_stays_as_it_is(new):
    old = (torch.zeros(3, 2), torch.zeros(2))
    assert not _written_over(old, new)
    assert not old[0].any() and not old[1].any()


def test_first_reading_is_kept_as_it_is():
    assert not _written_over((None, None), (torch.ones(2), None))
    assert not _written_over(("a",), ("a",))  # a constant in a graph may be another one now


def test_graphs_are_kept_while_the_reading_has_its_shapes_and_dropped_when_not(tiny):
    engine, starts = tiny.engine(horizon=4), tiny.starts(6)
    engine.run(starts, 1, SEED)
    runner = engine.runner
    graphs, read = runner.graphs, runner.read
    other = Starts(starts.seen, tuple(reversed(starts.texts)))  # three others
    expected = engine.policy.read(other.texts)
    engine.run(other, 1, SEED)
    assert runner.graphs is graphs and runner.read is read and torch.equal(read[0], expected)
    few = starts.pick(torch.tensor([0, 3]))
    few = Starts(few.seen, *_table(few))
    engine.run(few, 1, SEED)
    assert runner.graphs is not graphs and len(runner.read[0]) == 1


def _table(starts):
    texts, starts.seen.text = table_of(starts.instructions)
    return (texts,)


def test_who_reads_nothing_keeps_its_graphs(tiny):
    runner = make(tiny)
    runner.open(tiny.starts(3))
    graphs = runner.graphs
    runner.open(tiny.starts(6))
    assert runner.graphs is graphs


def test_reading_that_is_part_of_a_model_is_not_written_over_with_the_next_one(tiny):
    engine, table = tiny.engine(horizon=4), torch.arange(12.0).view(4, 3)
    rows = iter([slice(0, 2), slice(2, 4)])
    runner = engine.runner
    for expected in (table[:2].clone(), table[2:].clone()):
        runner.open(tiny.starts(3), lambda texts: table[next(rows)])
        assert torch.equal(runner.read[0], expected)
    assert torch.equal(table, torch.arange(12.0).view(4, 3))


# Starts of another kind in the next run.


@dataclass
class Words(Slots):
    words: Tensor  # [E, L]


class Reader:
    """A judge whose state is as long as the longest instruction."""

    def __init__(self):
        self.length = 5

    def read(self, texts):
        return torch.ones(len(texts), self.length)

    def begin(self, seen, read):
        return Words(read[seen.text])

    def judge(self, frames, state):
        return torch.zeros(frames.shape[:2]), torch.zeros(frames.shape[:2], dtype=torch.bool)


def test_instructions_may_be_of_another_length_in_the_next_run(tiny):
    reflector, starts = Reader(), tiny.starts(4)
    engine = tiny.engine(horizon=4, reflector=reflector)
    engine.run(starts, 1, SEED)
    slots = engine.runner.episodes
    engine.run(starts, 1, SEED)
    assert engine.runner.episodes is slots
    reflector.length = 7
    out = engine.run(starts, 2, SEED)
    assert engine.runner.episodes.judged.words.shape[1] == 7 and not out.broken.any()


def test_cameras_may_be_known_in_one_run_and_not_in_the_next(tiny):
    class Blind:
        chunk, views, size, device = 4, ("agentview",), (16, 16), torch.device("cpu")
        robot = tiny.world().robot

        def begin(self, seen, chunk):
            return Words(torch.zeros(len(seen), 2))

        def imagine(self, memory, seen, action, key):
            frames = seen.frames[:, None].expand(-1, 4, -1, -1, -1, -1)
            sound = torch.ones(len(seen), dtype=torch.bool)
            return Imagined(frames, seen.proprio[:, None].expand(-1, 4, -1), sound)

    engine, with_camera, without = tiny.engine(horizon=4, world=Blind()), tiny.starts(3), tiny.starts(3)
    without.seen.camera = None
    for starts in (with_camera, without, with_camera):
        engine.run(starts, 1, SEED)
        assert (engine.runner.episodes.seen.camera is None) == (starts is without)


def test_key_says_all_that_random_numbers_depend_on(tiny):
    runner, keys = make(tiny), []
    runner.decide = lambda live, read, key, explore: keys.append(key) or given(live, read, key, explore)
    runner.open(tiny.starts(3))
    live = runner.begin(torch.arange(3), torch.tensor([5, 6, 9]))
    runner.think(live, SEED, True)
    (key,) = keys
    assert isinstance(key, Key) and key.seed == SEED and key.episode.tolist() == [5, 6, 9] and not key.chunk.any()


def test_idle_slots_name_no_row_outside_a_smaller_table(tiny):
    engine = tiny.engine(horizon=4)
    engine.run(tiny.starts(6), 1, seed=0)
    few = tiny.starts(6).pick(torch.tensor([0, 3]))
    few.texts, few.seen.text[:] = few.texts[:1], 0
    engine.runner.open(few, engine.policy.read)
    engine.runner.think(engine.runner.episodes, 0, False)  # all slots, as a graph of a bucket does


@pytest.mark.parametrize(
    ("part", "method", "wrong", "message"),
    [
        ("world", "imagine", lambda new: replace(new, frames=new.frames.float()), "imagined frames torch.float32"),
        (
            "world",
            "imagine",
            lambda new: replace(new, frames=new.frames[:, :1]),
            r"be torch.uint8 \[5, 4, ",
        ),
        ("world", "imagine", lambda new: replace(new, finite=new.finite[:, None]), "imagined finite torch.bool"),
        ("world", "imagine", lambda new: replace(new, doubt=new.doubt[:2]), r"imagined doubt torch.float32 \[2\]"),
        ("world", "imagine", lambda new: replace(new, doubt=new.doubt + 1.5), "imagined doubt from 1.5 to .*in .0, 1."),
        ("world", "imagine", lambda new: replace(new, doubt=new.doubt - 1.5), "imagined doubt from -1.5 to"),
        ("reflector", "judge", lambda new: (new[0][:, :1], new[1]), r"returned reward torch.float32 \[5, 1\]"),
        ("reflector", "judge", lambda new: (new[0], new[1].float()), "returned stop torch.float32"),
    ],
)
def test_models_that_return_something_else_are_told_at_the_first_chunk(tiny, monkeypatch, part, method, wrong, message):
    engine = tiny.engine(horizon=4)
    model = getattr(engine, part)
    original = getattr(model, method)
    monkeypatch.setattr(model, method, lambda *given: wrong(original(*given)))
    with pytest.raises(UserError, match=message):
        engine.run(tiny.starts(5), 1, seed=0)


def test_doubt_of_the_world_model_reaches_the_rollouts_and_what_cannot_tell_counts_as_sure(tiny, monkeypatch):
    engine = tiny.engine(horizon=8)
    original, doubt = engine.world.imagine, torch.tensor([0.0, 0.5, 1.0, 0.25, 0.75])
    monkeypatch.setattr(engine.world, "imagine", lambda *given: replace(original(*given), doubt=doubt))
    out = engine.run(tiny.starts(5), 1, seed=0, stop=False)
    once = out.stopped & (out.stop <= 4)
    torch.testing.assert_close(out.doubt, torch.where(once, doubt, 1 - (1 - doubt) ** 2))
    monkeypatch.setattr(engine.world, "imagine", lambda *given: replace(original(*given), doubt=None))
    assert not engine.run(tiny.starts(5), 1, seed=0).doubt.any()


def test_episode_whose_doubt_becomes_no_number_is_broken(tiny, monkeypatch):
    engine = tiny.engine(horizon=8)
    original = engine.world.imagine

    def imagine(memory, seen, action, key):
        out = original(memory, seen, action, key)
        doubt = torch.where((key.chunk == 1) & (key.episode == 2), torch.nan, out.doubt)
        return replace(out, doubt=doubt)

    monkeypatch.setattr(engine.world, "imagine", imagine)
    out = engine.run(tiny.starts(5), 1, seed=0, stop=False)
    assert out.broken.tolist() == [False, False, True, False, False] and out.unsure()[2] == 1
    assert out.unsure().isfinite().all()
