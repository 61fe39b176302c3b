"""Parts by name: this package's, the user's own, and names that lead nowhere; and which of them imagine in 8 bits."""

import json

import pytest
import torch

import worldenv
from worldenv import assemble
from worldenv.assemble import POLICIES, REFLECTORS, SUITES, WORLDS, Parts, load, make_engine, make_env, named
from worldenv.config import RELEASED, TrainConfig, released
from worldenv.envs.world_model_env import EnvConfig
from worldenv.errors import UserError
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.suite import Suite
from worldenv.interfaces.world import WorldModel
from worldenv.nn import int8
from worldenv.nn.int8 import Int8
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.model_files import save_model, save_ranges
from worldenv.rollout.engine import EngineConfig
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.world import ComposerWorld


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    tiny.save(path, size=16, levels=(1.0, 0.5))
    causal = CausalNetwork(CausalConfig(image_size=16, width=32, layers=1, heads=2, key_heads=1, channels=4))
    save_model(path / "causal.safetensors", causal, "causal", {}, levels=(1.0,))
    ranges = {"policy": {"encoder.stem.1": [-1.0, 1.0]}, "world": {}, "reflector": {}}
    (path / "ranges.json").write_text(json.dumps(ranges))
    return path


@pytest.fixture
def parts(folder):
    return load(folder)


# By name.


def test_every_kind_of_released_model_is_known_where_names_are_read_and_where_parts_are_built():
    built = {*POLICIES, *WORLDS, *REFLECTORS}
    assert {f"{kind}:FOLDER" for kind in RELEASED} == {name for name in built if ":" in name}
    assert released("openvla-oft:a:b") == ("openvla-oft", "a:b")
    assert released("openvla-oft") is None and released("module:function") is None


def test_parts_of_a_folder_are_those_that_the_names_say(folder, parts):
    assert parts.suite.name == "tabletop" and not parts.reflector.zero_shot
    assert isinstance(parts.world, ComposerWorld) and parts.world.levels == (1.0, 0.5)
    other = load(folder, world="causal", reflector="zero-shot")
    assert isinstance(other.world, CausalWorld) and other.world.levels == (1.0,) and other.reflector.zero_shot
    assert parts.world.robot is parts.suite.robot and parts.world.views == parts.suite.views


@pytest.mark.parametrize("world", ["composer", "causal"])
def test_parts_are_what_the_interfaces_ask_for(folder, world):
    parts = load(folder, world=world)
    assert isinstance(parts.suite, Suite) and isinstance(parts.policy, Policy)
    assert isinstance(parts.world, WorldModel) and isinstance(parts.reflector, Reflector)


def test_a_loaded_folder_acts_like_the_models_it_was_made_of(parts, tiny):
    starts, policy = tiny.starts(3), tiny.policy()
    with torch.no_grad():
        seen = [one.see(starts.seen, one.read(starts.texts)) for one in (policy, parts.policy)]
        mine, loaded = (
            policy.heads(seen[0], starts.seen.proprio)[0],
            parts.policy.heads(seen[1], starts.seen.proprio)[0],
        )
    torch.testing.assert_close(loaded, mine, rtol=0.02, atol=2e-3)


def test_missing_model_is_named_and_a_model_of_another_kind_refused(folder, tmp_path):
    (tmp_path / "policy.safetensors").symlink_to(folder / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"composer.safetensors: there is no such file"):
        load(tmp_path)
    (tmp_path / "composer.safetensors").symlink_to(folder / "causal.safetensors")
    with pytest.raises(CheckpointError, match=r"composer.safetensors holds a causal; a composer was expected"):
        load(tmp_path)


def test_unknown_name_is_refused_with_the_nearest_or_all():
    with pytest.raises(UserError, match="unknown policy 'smal' — did you mean \"small\"[?]; for your own: module:func"):
        named("policy", "smal", POLICIES)
    with pytest.raises(
        UserError, match="unknown suite 'moon' — valid names: libero_10, .*, tabletop; for your own: module:function"
    ):
        named("suite", "moon", SUITES)
    for role in ("suite", "policy", "world", "reflector"):
        with pytest.raises(UserError, match=f"unknown {role} 'xxxx'"):
            load(**{role: "xxxx"})


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module_anywhere:make", "No module named 'no_such_module_anywhere'"),
        ("json:no_such_function", "has no attribute 'no_such_function'"),
        ("json:", "json:' cannot be found"),
        (":make", "Empty module name"),
        (".parts:make", "relative import"),
    ],
)
def test_module_or_function_that_is_missing_is_told(name, why):
    with pytest.raises(UserError, match="(?s)policy '.*' cannot be found: .*It should be module:function") as found:
        named("policy", name, POLICIES)
    assert why in str(found.value)


def test_module_of_the_working_directory_is_found(folder, tmp_path, monkeypatch):
    (tmp_path / "my_own_parts_7.py").write_text(
        "from worldenv.policy.small import SmallPolicy\nfrom worldenv.reflector.small import SmallReflector\n"
        "from worldenv.suites.tabletop.suite import TabletopSuite\n"
        "def suite(): return TabletopSuite(16)\n"
        "def policy(models, suite):\n"
        "    policy = SmallPolicy.load(models / 'policy.safetensors')\n"
        "    policy.told = suite.name\n"
        "    return policy\n"
        "def reflector(models, suite): return SmallReflector.load(models / 'reflector.safetensors')\n"
    )
    monkeypatch.chdir(tmp_path)
    own = {role: f"my_own_parts_7:{role}" for role in ("suite", "policy", "reflector")}
    parts = load(folder, **own)
    assert parts.policy.told == "tabletop" and parts.suite.physics.image_size == 16
    assert parts.ranges.keys() == {"world"}  # the others were not measured
    assert load(folder).ranges.keys() == {"policy", "world", "reflector"}
    assert load(folder, world="causal").ranges is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"models": 3}, "models is 3; it should be the path of a folder"),
        ({"models": ""}, "models is ''"),
        ({"models": "a" * 300}, "cannot be read: File name too long"),
        ({"device": "gpu"}, "device is 'gpu'; it should be cpu or cuda"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"device": 3}, "device is 3"),
        ({"policy": None}, "policy is None; it should be a name, or module:function"),
        ({"policy": "json:loads"}, "policy 'json:loads' cannot be called: .*; it should take the folder of the models"),
        ({"suite": "json:loads"}, "suite 'json:loads' cannot be called: .*; it should take no argument"),
        ({"world": "os:sep"}, "world 'os:sep' is a str; it should be a function that builds the world"),
        ({"suite": "builtins:int"}, "the suite int lacks"),
        ({"device": "cuda:99", "world": "causal"}, "device is cuda:99; torch finds . CUDA devices here"),
    ],
)
def test_wrong_arguments_of_load_are_refused_in_one_line(folder, arguments, why):
    with pytest.raises(UserError, match=why):
        load(**{"models": folder} | arguments)


def test_file_is_no_folder_of_models(folder):
    with pytest.raises(UserError, match="policy.safetensors, which is no folder; give the folder of the models"):
        load(folder / "policy.safetensors")


def test_ranges_of_other_weights_are_refused_as_the_folder_is_loaded(folder, tiny, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    parts = load(tmp_path)
    save_ranges(tmp_path / "ranges.json", parts.ranges, parts.networks())
    assert load(tmp_path).ranges == parts.ranges
    save_model(tmp_path / "policy.safetensors", tiny.policy(seed=1), "policy", {})
    with pytest.raises(CheckpointError, match="ranges.json is damaged, or was measured with other weights of the pol"):
        load(tmp_path)


@pytest.mark.parametrize("make", [make_engine, lambda parts, *more: make_env(parts, None, *more)])
def test_engine_and_environment_are_made_of_parts_and_a_configuration_of_their_own(parts, make):
    with pytest.raises(UserError, match="parts is a dict; it should be worldenv.Parts"):
        make({})
    with pytest.raises(UserError, match="config is a dict; it should be of type E"):
        make(parts, {})
    parts.policy.views = "agentview"
    with pytest.raises(UserError, match="the policy has the views 'agentview'; they should be a tuple"):
        make(parts)
    parts.policy.views, parts.policy.chunk = ("agentview",), 4.0
    with pytest.raises(UserError, match="chunk of the policy is 4.0; it should be a positive integer"):
        make(parts)
    parts.policy = None
    with pytest.raises(UserError, match="the policy NoneType lacks"):
        make(parts)


def test_parts_are_moved_where_a_part_can_be(parts):
    networks = parts.networks()
    assert networks == {"policy": parts.policy, "world": parts.world.network, "reflector": parts.reflector}

    class Thing:
        network = None

    assemble._move(Thing(), "meta")  # has nothing to move
    assemble._move(parts.world, "meta")
    assert parts.world.device == torch.device("meta") and next(parts.policy.parameters()).device.type == "cpu"


# Engine and environment.


def test_horizon_of_the_engine_is_the_suites_if_nothing_else_is_asked_for(parts):
    assert make_engine(parts).config.horizon == parts.suite.horizon == 40 and make_engine(parts).horizon == 10
    assert make_engine(parts, EngineConfig(horizon=6, batch=3)).horizon == 2
    assert make_engine(parts, EngineConfig(batch=3)).config.batch == 3


def test_environment_imagines_with_the_parts(parts, tiny):
    env = make_env(parts, tiny.starts(3), EnvConfig(envs=2), precision="float32")
    assert env.world is parts.world and env.runner.reflector is parts.reflector and env.config.envs == 2
    env.reset()
    env.step(torch.zeros(2, 4, 7))


def test_public_names_are_found_and_the_parts_of_the_package_imagine():
    assert worldenv.load is load and worldenv.Parts is Parts and worldenv.make_engine is make_engine
    parts = worldenv.load()
    starts = parts.suite.reset(parts.suite.tasks[:2], [500, 501], "train")
    out = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=4)).run(starts, 1, 0)
    assert out.action.shape == (2, 1, 4, 7) and not out.broken.any()


def test_every_public_name_is_there():
    for name in dir(worldenv):
        assert getattr(worldenv, name) is not None
    with pytest.raises(AttributeError, match="module 'worldenv' has no attribute 'nothing'"):
        _ = worldenv.nothing


def test_slot_and_records_of_a_shipped_episode_take_no_more_than_60_000_bytes():
    parts = load()
    starts = parts.suite.reset(parts.suite.tasks[:1], [0], "train")
    slot, record = make_engine(parts).bytes_per_episode(starts)
    assert slot + record <= 60_000 and record < 20_000


# In 8 bits.


def kinds(model):
    return {type(m) for m in model.modules()}


@pytest.mark.parametrize(
    ("precision", "fast", "small"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("int8", True, True),
        ("int8", False, True),
        ("float32", True, False),
    ],
)
def test_8_bits_are_used_where_wanted_and_where_the_cpu_is_made_for_them(parts, monkeypatch, precision, fast, small):
    monkeypatch.setattr(assemble, "is_fast", lambda: fast)
    monkeypatch.setattr(int8, "is_allowed", lambda: True)
    imagining = parts.to_imagine(precision)
    assert (Int8 in kinds(imagining.policy)) == small and Int8 not in kinds(parts.policy)
    assert imagining.world.levels == parts.world.levels and imagining.suite is parts.suite
    assert (imagining is parts) == (not small)


def test_twins_in_8_bits_share_all_parameters_and_the_world_model_keeps_its_network(parts, monkeypatch):
    monkeypatch.setattr(int8, "is_allowed", lambda: True)
    network, small = parts.world.network, parts.to_imagine("int8")
    assert parts.world.network is network and small.world is not parts.world
    for one, other in zip(parts.networks().values(), small.networks().values(), strict=True):
        shared = dict(other.named_parameters())
        assert all(shared[name] is parameter for name, parameter in one.named_parameters())


def test_8_bits_that_cannot_be_had_are_refused_with_the_reason(parts, monkeypatch):
    with pytest.raises(UserError, match="precision is 'fp8'; it should be one of auto, float32, int8"):
        parts.to_imagine("fp8")
    with monkeypatch.context() as slow:
        slow.setattr(int8, "is_allowed", lambda: False)
        for use in (parts.to_imagine, lambda precision: TrainConfig(precision=precision)):
            with pytest.raises(UserError, match="int8 is slow on a CPU without AVX2, such as this one"):
                use("int8")
    monkeypatch.setattr(int8, "is_allowed", lambda: True)
    ranges = parts.ranges
    for wrong in ({"stem": [0.0, 1.0]}, {"": None}):
        parts.ranges = ranges | {"world": wrong}
        with pytest.raises(UserError, match="ranges.json belongs to another world: it names 1 layers"):
            parts.to_imagine("int8")
    parts.ranges = None
    with pytest.raises(UserError, match="the models have no ranges.json, which --precision int8 needs"):
        parts.to_imagine("int8")
    assert parts.to_imagine("auto") is parts


def test_models_on_another_device_imagine_in_floats(parts, monkeypatch):
    monkeypatch.setattr(assemble, "is_fast", lambda: True)
    monkeypatch.setattr(int8, "is_allowed", lambda: True)
    assemble._move(parts.world, "meta")
    assert parts.to_imagine("auto") is parts
    with pytest.raises(UserError, match="the models are on meta; --precision int8 is for the CPU"):
        parts.to_imagine("int8")


def test_a_world_model_without_gpu_kernels_is_refused_on_a_gpu_with_the_one_to_take(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = "no GPU kernels for known_pictures, map_features, compose, unpatchify; on a GPU .*causal"
    with pytest.raises(UserError, match=message):
        assemble.load(device="cuda")


@pytest.mark.skipif(not int8.is_fast(), reason="this CPU has no instructions for 8 bits")
def test_a_policy_of_the_users_own_takes_the_place_of_the_shipped_one_and_keeps_its_floats():
    class Own(torch.nn.Linear):
        chunk, views = 4, ("agentview",)

    parts = load()
    parts.policy = Own(1, 1)
    imagining = parts.to_imagine("auto")
    assert imagining.policy is parts.policy
    assert any(isinstance(module, Int8) for module in imagining.world.network.modules())


def test_parts_that_lack_a_member_or_see_other_views_are_refused(parts):
    class Idle(torch.nn.Module):
        chunk, views = 4, ("agentview",)

        def act(self, *given): ...

    parts.policy, policy = Idle(), parts.policy
    with pytest.raises(UserError, match="the policy Idle lacks read, log_prob, trainable: see worldenv.Policy"):
        assemble._check_parts(parts)
    parts.policy, parts.world.views = policy, ("wrist",)
    with pytest.raises(UserError, match="the suite shows the views agentview, the world model imagines wrist"):
        assemble._check_parts(parts)


def test_causal_world_model_without_weights_says_how_to_make_them():
    with pytest.raises(
        UserError, match="no weights of the causal world model: `worldenv-train tabletop-causal` trains"
    ):
        load(world="causal")


def test_sizes_of_a_run_from_scratch_are_told_whatever_models_it_is_given(tmp_path):
    suite, found = assemble.costs(TrainConfig(from_scratch=True, models=tmp_path))
    _, shipped = assemble.costs(TrainConfig())
    assert suite.name == "tabletop" and found == shipped
