"""A policy in shards learns what a whole one learns, and any number of ranks takes up its state."""

import re
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.interfaces.slots import Slots
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.launch.shards import clip_gradients, is_shard, layers_of, sharded_copy, whole
from worldenv.policy.laplace import LaplacePolicy
from worldenv.records.checkpoint import CheckpointError, load_state
from worldenv.records.run_folder import RunFolder
from worldenv.rl import needs as needs_module
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import post_train
from worldenv.rl.needs import needs

WIDTH, LAYERS = 24, 3
CONFIG = PostTrainConfig(iterations=2, starts=5, siblings=4, minibatch=32, accumulate=8, signal=1e-6)


class Layer(nn.Module):
    """Half of it is frozen, in another kind of number; five rows do not divide by two or four."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False).bfloat16()
        self.down, self.up = nn.Linear(WIDTH, 5, bias=False), nn.Linear(5, WIDTH, bias=False)

    def forward(self, x):
        return x + torch.tanh(self.frozen(x.bfloat16()).float() + self.up(self.down(x)))


@dataclass
class Seen(Slots):
    frames: torch.Tensor
    proprio: torch.Tensor


class LargePolicy(LaplacePolicy):
    """The structure of a large one: frozen layers with low-rank parts that learn, and heads."""

    chunk, views = 4, ("agentview",)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.look = nn.Linear(3, WIDTH).requires_grad_(False)
        self.proprio = nn.Linear(7, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.few = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, 2 * self.chunk * 7)
        self.eval()

    def read(self, texts):
        return torch.zeros(len(texts), 1)

    def moment(self, seen, read, key=None):
        return Seen(seen.frames, seen.proprio)

    def distribution(self, record):
        x = self.look(record.frames[:, 0].float().mean((1, 2)) / 255) + self.proprio(record.proprio)
        for layer in self.layers:
            x = layer(x)
        mu, beta = self.head(self.few[0](x)).view(-1, 2, self.chunk, 7).unbind(1)
        return mu, -1.5 + torch.tanh(beta)

    def trainable(self):
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def loss_of(policy, rows):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(256, (8, 1, 6, 6, 3), generator=generator, dtype=torch.uint8)
    proprio, action = torch.randn(8, 7, generator=generator), torch.randn(8, 4, 7, generator=generator)
    return -policy.log_prob(Seen(frames[rows], proprio[rows]), action[rows]).sum()


def test_gradients_and_their_norm_are_those_of_a_whole_policy(begin):
    alone = LargePolicy()
    loss_of(alone, slice(None)).backward()
    norm = nn.utils.clip_grad_norm_(alone.trainable(), 1.0)

    def work(ranks):
        policy = LargePolicy()
        frozen = policy.layers[1].frozen.weight
        frozen.data = frozen.data.t().contiguous().t()  # in another order, as weights of convolutions may be
        policy = sharded_copy(policy, ranks)
        for rows in (ranks.part(4), slice(4 + ranks.part(4).start, 4 + ranks.part(4).stop)):  # gradients add up
            loss_of(policy, rows).backward()
        ranks.add_gradients([p for p in policy.trainable() if not is_shard(p)], torch.zeros(()))
        found = clip_gradients(policy.trainable(), 1.0, ranks)
        held = sum(p.to_local().numel() for layer in policy.layers for p in layer.parameters())
        return found.item(), held, [whole(p.grad) for p in policy.trainable()]

    numbers = sum(p.numel() for p in alone.layers.parameters())
    for count in (2, 4):
        results = begin(count, work).results()
        assert sum(held for _, held, _ in results) == numbers and results[-1][1] < 1.2 * numbers / count
        for found, _, gradients in results:
            assert found == pytest.approx(norm.item(), rel=1e-6)
            for mine, parameter in zip(gradients, alone.trainable(), strict=True):
                torch.testing.assert_close(mine, parameter.grad, rtol=1e-6, atol=1e-6)


def test_openvla_oft_in_shards_has_the_gradients_of_a_whole_one(tiny, writers, tmp_path, begin):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from worldenv.policy.openvla_oft.config import OpenVLAConfig
    from worldenv.policy.openvla_oft.policy import load_openvla_oft

    release = writers("policy/openvla_oft")
    release.write_release(tmp_path / "policy", "tokens")
    policy = load_openvla_oft(tmp_path / "policy", release.Shows("agentview"), OpenVLAConfig(lora=4))
    starts = tiny.starts(4, size=28)
    key = Key(1, torch.arange(4), torch.zeros(4, dtype=torch.int64))
    decision = policy.act(starts.seen, policy.read(starts.texts), key, True)

    def learn(policy, rows):
        record = decision.record.each(lambda tensor: tensor[rows])
        (policy.log_prob(record, decision.action[rows]) * torch.arange(1.0, 5.0)[rows]).sum().backward()
        return policy.trainable()

    def work(ranks):
        copied = sharded_copy(policy, ranks)
        parameters = learn(copied, ranks.part(4))
        ranks.add_gradients([p for p in parameters if not is_shard(p)], torch.zeros(()))
        return sum(map(is_shard, parameters)), [p.grad is not None and whole(p.grad) for p in parameters]

    alone = learn(policy, slice(None))
    for shards, gradients in begin(2, work).results():
        assert shards > 10
        for mine, parameter in zip(gradients, alone, strict=True):
            assert (mine is False) == (parameter.grad is None)
            if parameter.grad is not None:
                torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-5 * parameter.grad.abs().max())


def practise(tiny, path, ranks=ALONE, shard=False, policy=None, **config):
    """Post-train a large policy in a run folder, which is made or resumed; returns its weights."""
    if ranks.first:
        folder = RunFolder.resume(path) if path.exists() else RunFolder.create(path, {})
    ranks.every(None)
    engine = tiny.engine(horizon=8, policy=policy or LargePolicy(), capacity=1, batch=1)
    given = replace(SameRates(**vars(CONFIG)), **config)
    post_train(engine, tiny.starts(6), given, folder if ranks.first else RunFolder(path), 4, ranks=ranks, shard=shard)
    return engine.policy.state_dict()


class SameRates(PostTrainConfig):
    """The learning rates of a whole run."""

    def rate(self, iteration, highest=None):
        return CONFIG.rate(iteration, highest)


def assert_alike(one, other):
    """Adam makes whole steps of gradients as small as their rounding, so few numbers may differ by more."""
    apart = torch.cat([(one[name].float() - other[name].float()).abs().flatten() for name in other])
    assert (apart > 1e-5).float().mean() < 1e-3 and apart.max() < 1e-3


def test_state_in_shards_is_taken_up_by_any_number_of_ranks(tiny, tmp_path, begin):
    alone = practise(tiny, tmp_path / "alone")
    assert max((alone[name] - LargePolicy().state_dict()[name]).abs().max() for name in alone) > 1e-4

    def work(ranks, path, **config):
        return practise(tiny, path, ranks, True, **config)

    path = tmp_path / "shards"
    begin(4, lambda ranks: work(ranks, path, iterations=1)).results()
    state = path / "checkpoints" / "post_train.state.safetensors"
    (folder,) = path.glob("checkpoints/*.shards")
    assert load_state(state)["shards"] == folder.name and len(list(folder.glob("*.safetensors"))) == 4
    other = tmp_path / "other"
    other.mkdir()
    for ranks in (1, 2):
        copied = other / str(ranks)
        shutil.copytree(path, copied)
        if ranks == 1:
            assert_alike(practise(tiny, copied), alone)
            assert not list(copied.glob("checkpoints/*.shards"))  # one process writes one file
        else:
            for weights in begin(2, lambda ranks, at=copied: work(ranks, at)).results():
                assert_alike(weights, alone)
            (again,) = copied.glob("checkpoints/*.shards")
            assert again.name == "post_train.2.shards"


def test_whole_state_is_taken_up_in_shards(tiny, tmp_path, begin):
    alone = practise(tiny, tmp_path / "alone")
    practise(tiny, tmp_path / "run", iterations=1)
    results = begin(2, lambda ranks: practise(tiny, tmp_path / "run", ranks, True)).results()
    assert_alike(results[0], alone)


def test_one_step_off_policy_shards_learn_what_a_whole_policy_does(tiny, tmp_path, begin):
    alone = practise(tiny, tmp_path / "alone", off_policy=True)
    begin(2, lambda ranks: practise(tiny, tmp_path / "run", ranks, True, off_policy=True, iterations=1)).results()
    results = begin(2, lambda ranks: practise(tiny, tmp_path / "run", ranks, True, off_policy=True)).results()
    assert_alike(results[0], alone)


def test_damaged_shards_are_named(tiny, tmp_path, begin):
    path = tmp_path / "run"
    begin(2, lambda ranks: practise(tiny, path, ranks, True, iterations=1)).results()
    (folder,) = path.glob("checkpoints/*.shards")
    cut = sorted(folder.glob("*.safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=f"{folder.name}: missing, damaged, or of another policy"):
        practise(tiny, path)


class Uncalled(LargePolicy):
    """Looks into its layers, and calls none of them."""

    def distribution(self, record):
        x = self.proprio(record.proprio)
        for layer in self.layers:
            x = x + layer.up(layer.down(x))
        return self.head(x).view(-1, 2, self.chunk, 7).unbind(1)


def test_policy_that_does_not_call_its_layers_is_named_before_practice(tiny):
    given = tiny.starts(1), CONFIG, Ranks(0, 2), True
    with pytest.raises(UserError, match="with parts of its `layers` without calling them.* leave out --launch.shard"):
        needs(tiny.engine(horizon=8, policy=Uncalled()), *given)
    assert "each imagines at most 12 of the 20 episodes" in needs(tiny.engine(horizon=8, policy=LargePolicy()), *given)


def test_numbers_in_shards_need_no_sums_in_float64(tiny, monkeypatch):
    monkeypatch.setattr(needs_module, "_mb", lambda count: f"{count:.0f} B")
    engine, given = tiny.engine(horizon=8, policy=LargePolicy()), (tiny.starts(1), CONFIG, Ranks(0, 2))
    learnt = sum(parameter.numel() for parameter in engine.policy.trainable())
    apart = sum(parameter.numel() for parameter in engine.policy.layers.parameters() if parameter.requires_grad)
    for shard, expected in ((False, 28 * learnt), (True, 28 * (learnt - apart) + 16 * apart / 2)):
        assert f"learning {expected:.0f} B" in needs(engine, *given, shard)


def test_one_step_off_policy_needs_a_copy_of_what_learns_and_records_twice(tiny):
    engine = tiny.engine(horizon=8, policy=LargePolicy())
    wide = [replace(CONFIG, siblings=50_000, off_policy=off_policy) for off_policy in (False, True)]
    plain, off = (needs(engine, tiny.starts(1), config, Ranks(0, 2)) for config in wide)
    weights, episodes = (re.compile(rf"{name} ([\d,.]+) MB") for name in ("weights", "episodes"))
    assert numbers(weights, off) == pytest.approx(numbers(weights, plain) + learnt_mb(engine.policy), abs=0.11)
    _, record = engine.bytes_per_episode(tiny.starts(1))
    assert numbers(episodes, off) == pytest.approx(numbers(episodes, plain) + 150_000 * record / 1e6, abs=0.11)


def numbers(pattern, line):
    return float(pattern.search(line)[1].replace(",", ""))


def learnt_mb(policy):
    return sum(p.numel() * p.element_size() for p in policy.trainable()) / 1e6


def test_what_cannot_be_sharded_is_refused():
    plain = nn.Module()
    plain.layer = nn.Linear(3, 3)
    with pytest.raises(UserError, match="no layers to shard: none of its modules is an nn.ModuleList"):
        layers_of(plain)
    plain.parts = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(9, 9)})])
    with pytest.raises(UserError, match="the layers in the policy's parts are of ModuleDict, never called"):
        layers_of(plain)
    plain.parts = nn.ModuleList([nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9).half())])
    with pytest.raises(UserError, match="learns numbers of torch.float16 and torch.float32"):
        layers_of(plain)
    assert layers_of(LargePolicy())[0] == "layers"
