"""What a preset needs, from headers alone, against what is there once the parts are loaded."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import worldenv
from worldenv import ops
from worldenv.assemble import costs
from worldenv.commands import fits, info
from worldenv.config import TrainConfig
from worldenv.interfaces.observation import Key
from worldenv.nn.cost import Cost
from worldenv.records.released import Release
from worldenv.reflector.rlinf_resnet import Judged, load_rlinf_reflector, rlinf_reflector_cost
from worldenv.rollout.fit import WORK_SHARE, Card, Work, fit
from worldenv.worlds.causal.cost import causal_cost
from worldenv.worlds.composer.cost import composer_cost

GIVEN = ["--card-gb", "80", "--tflops", "800", "--share", "0.5"]


@pytest.fixture(scope="module")
def loaded(pair_names):
    """The tiny pair on the tabletop: its parts, first observations, and what is told of it beforehand."""
    parts = worldenv.load(**pair_names)
    starts = parts.suite.reset(parts.suite.tasks[:1], [0], "train")
    with pytest.MonkeyPatch.context() as patch:
        vlm, (text,) = parts.reflector.vlm, starts.texts
        patch.setattr("worldenv.policy.openvla_oft.cost.PROMPT", parts.policy.read([text]).shape[1] - 1)
        patch.setattr("worldenv.reflector.vlm.cost.PROMPT", len(vlm.prompt(text)) + len(vlm.question))
        found = costs(TrainConfig(**pair_names))[1]
    return SimpleNamespace(parts=parts, starts=starts, costs=found)


def attention(query, key, value, *given, out_shape=None, **named):
    """FLOPs from shapes, for the op of the CPU, of which torch has no formula."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def counted(call):
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    own[torch.ops.aten.bmm] = lambda *given, **named: 0  # our resizing of pictures: much only beside models so tiny
    with FlopCounterMode(display=False, custom_mapping=own) as flops:
        call()
    return flops.get_total_flops()


def test_parameters_and_bytes_are_those_of_the_parts_that_are_loaded(loaded):
    for role, part in loaded.parts.networks().items():
        parameters = sum(p.numel() for p in part.parameters())
        assert loaded.costs[role].parameters == parameters and loaded.costs[role].weight_bytes == 4 * parameters, role
    assert loaded.costs["policy"].learns == sum(p.numel() for p in loaded.parts.policy.trainable())
    assert loaded.costs["policy"].chunk == loaded.parts.policy.chunk


def test_flops_and_bytes_of_an_episode_are_those_that_are_counted_while_it_runs(loaded):
    policy, world, judge = loaded.parts.policy, loaded.parts.world, loaded.parts.reflector
    seen, key = loaded.starts.seen, Key(0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    read, heard = policy.read(loaded.starts.texts), judge.read(loaded.starts.texts)
    decision, memory, watched = policy.act(seen, read, key, True), world.begin(seen, 8), judge.begin(seen, heard)
    imagined = world.imagine(memory, seen, decision.action, key)
    assert loaded.costs["world"].slot_bytes == memory.bytes_each()
    apart = 8 * len(judge.vlm.question) + 12  # the question is counted with the prompt; age and reward are not
    assert loaded.costs["reflector"].slot_bytes == pytest.approx(watched.bytes_each(), abs=apart)
    assert loaded.costs["policy"].record_bytes == pytest.approx(decision.record.bytes_each(), rel=0.05)
    ways = {
        "policy": lambda: policy.act(seen, read, key, True),
        "world": lambda: world.imagine(memory, seen, decision.action, key),
        "reflector": lambda: judge.judge(imagined.frames, watched),
    }
    ran = {role: counted(way) for role, way in ways.items()}
    for role, flops in ran.items():
        assert loaded.costs[role].chunk_flops == pytest.approx(flops, rel=0.2), (role, ran)


@pytest.fixture(scope="module", params=["pi0", "smolvla"])
def flowing(request, writers, tmp_path_factory):
    """A flow policy that looks at one view, and a video-diffusion U-Net with its encoders."""
    path, kind = tmp_path_factory.mktemp("flowing"), request.param
    release = writers("policy/flow").write_release(path / kind, kind)
    release.write_json("worldenv.json", {"lora": 4})
    names = {"policy": f"{kind}:{release.path}"}
    names["world"] = f"svd:{writers('worlds/video').write_pipeline(path / 'svd')}"
    parts = worldenv.load(**names)
    starts = parts.suite.reset(parts.suite.tasks[:1], [0], "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldenv.policy.flow.cost.PROMPT", parts.policy.read(starts.texts).shape[1])
        found = costs(TrainConfig(**names))[1]
    return SimpleNamespace(parts=parts, starts=starts, costs=found)


def test_flow_policies_and_the_unet_are_counted_as_they_run(flowing):
    policy, world = flowing.parts.policy, flowing.parts.world
    seen, key = flowing.starts.seen, Key(0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    for role, part in (("policy", policy), ("world", world.network)):
        parameters = sum(p.numel() for p in part.parameters())
        assert flowing.costs[role].parameters == parameters and flowing.costs[role].weight_bytes == 4 * parameters
    assert flowing.costs["policy"].learns == sum(p.numel() for p in policy.trainable())
    read, memory = policy.read(flowing.starts.texts), world.begin(seen, policy.chunk)
    decision = policy.act(seen, read, key, True)
    assert flowing.costs["policy"].chunk == policy.chunk and flowing.costs["world"].slot_bytes == memory.bytes_each()
    assert flowing.costs["policy"].record_bytes == decision.record.bytes_each()
    ran = {
        "policy": counted(lambda: policy.act(seen, read, key, True)),
        "world": counted(lambda: world.imagine(memory, seen, decision.action, key)),
    }
    for role, flops in ran.items():
        assert flowing.costs[role].chunk_flops == pytest.approx(flops, rel=0.05), role
    learnt = counted(lambda: policy.log_prob(decision.record, decision.action).sum().backward())
    assert flowing.costs["policy"].update_flops == pytest.approx(learnt, rel=0.15)


@pytest.mark.parametrize("decode", ["all", "last"])
def test_the_world_in_latents_is_counted_as_it_runs(writers, tmp_path, decode):
    name = f"causal-latents:{writers('worlds/causal').write_latents(tmp_path)}"
    (tmp_path / "worldenv.json").write_text(json.dumps({"decode": decode}))
    parts = worldenv.load(world=name)
    starts, world = parts.suite.reset(parts.suite.tasks[:1], [0], "train"), parts.world
    cost = costs(TrainConfig(world=name))[1]["world"]
    networks = world.network, world.network.tokenizer.frames
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    assert cost.parameters == parameters and cost.weight_bytes == 4 * parameters
    memory, key = world.begin(starts.seen, 4), Key(0, *torch.zeros(2, 1, dtype=torch.int64))
    assert cost.slot_bytes == memory.bytes_each()
    causal = causal_cost(world.network.config, world.levels, 4).chunk_flops  # its ops are compiled: torch counts none
    frames = world.network.tokenizer.frames
    with pytest.MonkeyPatch.context() as patch:
        ran = []
        patch.setattr(frames, "pixels", lambda latents, call=frames.pixels: ran.append(latents) or call(latents))
        imagined = world.imagine(memory, starts.seen, torch.zeros(1, 4, 7), key)
    assert imagined.finite.all() and [len(latents) for latents in ran] == [4 if decode == "all" else 1]
    assert cost.chunk_flops - causal == counted(lambda: frames.pixels(ran[0])) > 0


@pytest.mark.parametrize("reflector", ["small", "zero-shot"])
def test_small_parts_are_counted_as_they_run(reflector, monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")  # torch counts nothing of compiled ops
    everyone = "worldenv.worlds.composer.contact.rows_with"
    monkeypatch.setattr(everyone, lambda mask: torch.arange(len(mask)))  # as on a GPU
    parts, cost = worldenv.load(reflector=reflector), costs(TrainConfig(reflector=reflector))[1]
    policy, world, judge = parts.policy, parts.world, parts.reflector
    starts, key = parts.suite.reset(parts.suite.tasks[:1], [0], "train"), Key(0, *torch.zeros(2, 1, dtype=torch.int64))
    seen, read, heard = starts.seen, policy.read(starts.texts), judge.read(starts.texts)
    decision, memory, watched = policy.act(seen, read, key, True), world.begin(seen, 4), judge.begin(seen, heard)
    frames = world.imagine(memory, seen, decision.action, key).frames
    for role, part in parts.networks().items():
        parameters = sum(p.numel() for p in part.parameters())
        assert cost[role].parameters == parameters and cost[role].weight_bytes == 4 * parameters, role
    assert cost["policy"].learns == sum(p.numel() for p in policy.trainable()) and cost["policy"].chunk == policy.chunk
    assert cost["policy"].record_bytes == decision.record.bytes_each()
    assert cost["world"].slot_bytes == memory.bytes_each() and cost["reflector"].slot_bytes == watched.bytes_each()
    ran = {
        "policy": counted(lambda: policy.act(seen, read, key, True)),
        "world": counted(lambda: world.imagine(memory, seen, decision.action, key)),
        "reflector": counted(lambda: judge.judge(frames, watched)),
    }
    for role, flops in ran.items():
        assert cost[role].chunk_flops == pytest.approx(flops, rel=0.001), role
    learnt = counted(lambda: policy.log_prob(decision.record, decision.action).sum().backward())
    assert cost["policy"].update_flops == pytest.approx(learnt, rel=0.001)
    longer, six = world.begin(seen, 6), composer_cost(world, 6)  # chunks that end within a pass
    assert six.slot_bytes == longer.bytes_each() > memory.bytes_each()
    again = counted(lambda: world.imagine(longer, seen, torch.zeros(1, 6, 7), key))
    assert six.chunk_flops == pytest.approx(again, rel=0.001)


@pytest.mark.parametrize("size", [64, 100])
def test_the_reward_network_of_rlinf_is_counted_as_it_runs(pair_names, size):
    folder = pair_names["world"].partition(":")[2]
    judge, cost = load_rlinf_reflector(folder, None), rlinf_reflector_cost(folder, size, 3)
    parameters = sum(p.numel() for p in judge.parameters())
    assert cost.parameters == parameters and cost.weight_bytes == 4 * parameters
    judged = Judged(torch.zeros(1, dtype=torch.int64))
    assert cost.slot_bytes == judged.bytes_each()
    frames = torch.zeros(1, 3, 1, size, size, 3, dtype=torch.uint8)
    assert cost.chunk_flops == pytest.approx(counted(lambda: judge.judge(frames, judged)), rel=0.001)
    assert (
        costs(TrainConfig(**pair_names | {"reflector": pair_names["world"]}))[1]["reflector"].parameters == parameters
    )


def test_a_card_is_filled_up_to_its_last_episode_and_hours_follow_from_flops():
    policy = Cost(11, 1000, 10, 8, 0, 5, chunk_flops=1e12, update_flops=2e12, update_bytes=30)
    world = Cost(7, 2000, slot_bytes=40, chunk_flops=3e12)
    work = Work(episodes=6, chunks=2, iterations=9, epochs=5, at_once=4, frame_bytes=10)
    needed = 1000 + 2000 + 28 * 10 + 4 * 30 + 6 * 2 * 5
    for resident in (0, 3, 6):
        card = Card((needed + 50 * resident + 2) / 0.9 / 1e9, 2.0, 0.5)
        found = fit(policy, [world], card, work)
        assert found.resident == resident and found.slot_bytes == 50 and found.idle_bytes == 2000
    assert found.rollout_hours == pytest.approx(9 * 6 * 2 * 4 / 3600)
    assert found.update_hours == pytest.approx(9 * 6 * 2 * 5 * 2 / 3600)
    assert found.apart_s == pytest.approx(2 * 2000 / 10e9)
    more = fit(policy, [world], card, replace(work, off_policy=True))  # a copy that acts, and records once more
    assert found.room_bytes - more.room_bytes == 4 * 10 + 6 * 2 * 5
    unknown = fit(policy, [Cost(7, 2000)], card, work)
    assert unknown.rollout_hours is None and unknown.update_hours == found.update_hours


@pytest.mark.parametrize(
    ("short", "update", "resident"),
    [(0, 120, 6), (120, 120, 6), (121, 120, 5), (320, 120, 2), (371, 120, 0), (2300, 2400, 6), (2301, 2400, 0)],
)
def test_idle_weights_and_slots_make_room_for_an_update(short, update, resident):
    """Bytes that a card lacks for all at a time, and the update's; 2000 are idle weights, 50 a slot."""
    policy = Cost(11, 1000, 10, 8, 0, 5, chunk_flops=1e12, update_flops=2e12, update_bytes=update // 4)
    world = Cost(7, 2000, slot_bytes=40, chunk_flops=3e12)
    work = Work(episodes=6, chunks=2, iterations=9, epochs=5, at_once=4, frame_bytes=10)
    whole = 1000 + 2000 + 28 * 10 + update + 6 * 2 * 5 + 6 * 50
    found = fit(policy, [world], Card((whole - short + 0.5) / 0.9 / 1e9, 2.0, 0.5, link=4.0), work)
    assert found.apart_resident == resident and found.resident == max(0, 6 - -(-short // 50))
    assert found.apart_s == pytest.approx(2 * 2000 / 4e9)


@pytest.fixture
def on_a_card(pair_names, monkeypatch):
    """Whether a run of the pair would offload, on a card with some share of what it needs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 0)
    config = TrainConfig(**pair_names, device="cuda")
    found = fits.plan(config, Card(1.0, None, 1.0)).fit
    needed = (1e9 * (1 - WORK_SHARE) - found.room_bytes + found.slot_bytes) / (1 - WORK_SHARE)

    def asked(more, **rl):
        monkeypatch.setattr(fits, "free_bytes", lambda device: int(needed + more))
        return fits.offload(replace(config, rl=replace(config.rl, **rl)))

    return asked


def test_idle_parts_wait_in_host_memory_where_the_card_is_too_small_for_all(on_a_card, capsys):
    assert on_a_card(1000) == "off" and not capsys.readouterr().err
    assert on_a_card(-1000) == "on"
    assert "wait in host memory while the policy learns: the card is too small for all" in capsys.readouterr().err
    assert on_a_card(-1000, offload="off") == "off" and on_a_card(1000, offload="on") == "on"
    assert on_a_card(-1e12) == "off"  # it would not help
    assert on_a_card(-1000, off_policy=True) == "off"  # nothing is idle then
    assert fits.offload(TrainConfig()) == "off"


def test_preset_is_told_without_a_weight_being_read_and_without_libero(pair_names, capsys, monkeypatch):
    monkeypatch.setattr(Release, "fill", lambda *_: pytest.fail("weights were read"))
    words = [word for role, name in pair_names.items() for word in (f"--{role}", name)]
    info.main(["rlinf-wan-libero", *GIVEN, "--json", *words])
    document = json.loads(capsys.readouterr().out)
    assert document["suite"] == {"name": "libero_spatial-official", "horizon": 220, "size": 256, "views": ["agentview"]}
    assert document["work"]["episodes"] == document["fit"]["resident"] == 64 and document["work"]["chunks"] == 28
    info.main(["rlinf-wan-libero", *GIVEN, *words])
    printed = capsys.readouterr().out
    assert "yes, with all 64 episodes of an iteration at a time" in printed and "800.0 TFLOP/s (given)" in printed
    info.main(["rlinf-wan-libero", *GIVEN, *words, "--reflector", pair_names["world"]])
    assert capsys.readouterr().out.count("not counted") == 1  # where the last line explains it
    info.main(["rlinf-wan-libero", "--card-gb", "0.001", *words])
    printed = capsys.readouterr().out
    assert "  fits if offloaded   no: " in printed and "--rl.offload auto    they stay on the card" in printed
    info.main(["rlinf-wan-libero", "--rl.offload", "on", "--link-gbs", "4", *GIVEN, *words])
    assert "at 4 GB/s\n  --rl.offload on      they are offloaded" in capsys.readouterr().out
    assert "fits                  no: " in printed and "hours are not predicted: give --tflops" in printed


def own_reflector(models, suite):
    return torch.nn.Linear(3, 2)


def test_small_parts_are_told_and_your_own_as_far_as_they_are_counted(capsys):
    info.main(["tabletop-quick", "--card-gb", "1", "--measure"])
    printed = capsys.readouterr().out
    assert "rollout not counted" not in printed and "(measured)" in printed and "yes, with all 16 episodes" in printed
    info.main(["tabletop-quick", "--card-gb", "1", "--tflops", "0.002", "--share", "0.1"])
    known = re.search(r"2 iterations: rollout \d+ min \d\d s, (update [.\d]+ s), at 10%", capsys.readouterr().out)
    words = ["--card-gb", "1", "--tflops", "0.002", "--share", "0.1", "--reflector", f"{__name__}:own_reflector"]
    info.main(["tabletop-quick", *words])
    printed = capsys.readouterr().out
    assert (
        f"2 iterations: rollout not counted, {known[1]}, at 10%" in printed and "reflector               8 " in printed
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["paper-libero"], "give --policy openvla-oft:FOLDER --world svd:FOLDER --reflector vlm:FOLDER, each"),
        (["tabeltop"], "unknown preset 'tabeltop'"),
        (["tabletop", "--card-gb", "-1"], "--card-gb is -1.0; it should be a positive number"),
        (["tabletop", "--link-gbs", "0"], "--link-gbs is 0.0; it should be a positive number"),
        (["tabletop", "--tflops", "1", "--measure"], "both say what the peak is"),
        (
            ["tabletop", "--policy", "pi0:/nowhere/at/all"],
            "/nowhere/at/all is not there; give the folder of a released model",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as end:
        info.main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and line in said and said.count("\n") == 1
