"""Calls of the public interface with wrong arguments, and parts of the user's own that return wrong things."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from altered_parts import WRONG_PARTS, WRONG_SUITES, parts_of, suite_of
from api_values import VALUES
from cases import Case, Silent
from sound_models import TINY, sound_files, write_files

import worldenv

SEED = 5
STARTS = TINY.starts(3)
NO_COUNT = [None, 0, -1, 1.5, "2", True, math.nan, math.inf, [1], torch.tensor(1.5), 10**30]
NO_INTEGER = [1.5, "0", True, [], math.nan, math.inf, 2**63, -(2**63) - 1, 10**30, None]
NO_FLAG = [None, 0, 1, "no", [], torch.tensor(True)]
NO_TENSOR = [None, 3, "x", [[0]], {}, object()]


def cases(rng: random.Random) -> Iterator[Case]:
    """Wrong calls of every kind in turn."""
    kinds = (loading, making, run_arguments, starts, environments, adapters, replaying, true_acting, values, own, modes)
    while True:
        for kind in kinds:
            name, act = kind(rng)
            yield Case(f"{kind.__name__}: {name}", act)


def refused(call: Callable[[], Any]) -> Callable[[Path], None]:
    """The act of a call that should raise."""

    def act(_: Path) -> None:
        raise Silent(f"returned {str(call())[:200]}")

    return act


def run(parts: worldenv.Parts, given: worldenv.Starts = STARTS, **arguments: Any) -> worldenv.Rollouts:
    engine = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=8))
    return engine.run(given, **{"siblings": 2, "seed": SEED} | arguments)


def environment(**config: Any) -> worldenv.WorldModelEnv:
    return worldenv.make_env(parts_of(), STARTS, worldenv.EnvConfig(**{"envs": 3, "horizon": 8} | config))


def loading(rng: random.Random) -> tuple[str, Callable]:
    names = [
        3,
        "",
        ":",
        "a:b",
        "tabletop:",
        "no_such_module:f",
        "json:__doc__",
        "json:loads",
        None,
        [],
        "builtins:list",
    ]
    wrong = {
        "models": [3, b"models", [], "", " ", "nowhere", "a\0b", "models/policy.safetensors", {}, "a" * 300, math.nan],
        "suite": [*names, "builtins:int"],
        "policy": names,
        "world": names,
        "reflector": names,
        "device": ["gpu", "cuda", "cuda:99", "meta", 3, None, "", "cpu:x", "mps", [], torch.device("meta"), 10**30],
    }
    argument = rng.choice(list(wrong))
    value = rng.choice(wrong[argument])

    def act(folder: Path) -> None:
        (folder / "models").mkdir()
        write_files(folder / "models", sound_files())
        worldenv.load(**{"models": "models", argument: value})
        raise Silent("loaded")

    return f"load {argument}={value!r}", act


def making(rng: random.Random) -> tuple[str, Callable]:
    parts = parts_of()
    wrong_parts = [
        None,
        {},
        "parts",
        parts.policy,
        *(replace(parts, **{r: None}) for r in ("suite", "policy", "world")),
    ]
    engine, env = worldenv.EngineConfig(horizon=8), worldenv.EnvConfig(envs=2)
    calls = {
        "make_engine": lambda given, config, precision: worldenv.make_engine(given, config, precision),
        "make_env": lambda given, config, precision: worldenv.make_env(given, STARTS, config, precision),
    }
    name = rng.choice(list(calls))
    right = engine if name == "make_engine" else env
    wrong = rng.choice(["parts", "config", "precision"])
    given = {"parts": parts, "config": right, "precision": "auto"}
    choices = {
        "parts": wrong_parts,
        "config": [None, 3, {}, env if name == "make_engine" else engine, "config"],
        "precision": [None, "fp8", 8, "INT8", torch.float32, [], ""],
    }
    number = rng.randrange(len(choices[wrong]))
    given[wrong] = choices[wrong][number]
    return f"{name} {wrong} {number}", refused(lambda: calls[name](*given.values()))


def run_arguments(rng: random.Random) -> tuple[str, Callable]:
    wrong = {
        "siblings": NO_COUNT,
        "seed": NO_INTEGER,
        "first_episode": [*NO_INTEGER, -1, 2**62, 2**63 - 3],
        "explore": NO_FLAG,
        "stop": NO_FLAG,
        "video": NO_FLAG,
    }
    argument = rng.choice(list(wrong))
    value = rng.choice(wrong[argument])
    return f"run {argument}={value!r}", refused(lambda: run(parts_of(), **{argument: value}))


def starts(rng: random.Random) -> tuple[str, Callable]:
    """Starts with a field of another kind, used everywhere that takes starts."""
    name, given = _altered_starts(rng)
    uses = {
        "run": lambda: run(parts_of(), given),
        "env": lambda: worldenv.make_env(parts_of(), given, worldenv.EnvConfig(envs=2)).reset(),
        "replay": lambda: worldenv.replay(parts_of().world, given, torch.zeros(3, 4, 7), SEED),
        "bytes": lambda: worldenv.make_engine(parts_of()).bytes_per_episode(given),
    }
    use = rng.choice(list(uses))
    return f"{use} {name}", refused(uses[use])


def _altered_starts(rng: random.Random) -> tuple[str, Any]:
    field = rng.choice(["frames", "proprio", "camera", "text", "texts", "starts", "seen"])
    if field in ("starts", "seen"):
        value = rng.choice([*NO_TENSOR, STARTS.seen, [STARTS], STARTS.seen.frames])
        if field == "seen":
            value = worldenv.Starts(None if isinstance(value, worldenv.Observation) else value, STARTS.texts)
        return f"{field} {type(value).__name__}", value
    if field == "texts":
        texts = rng.choice(
            [None, (), "put it", [1, 2, 3], ("", " ", "put"), 3, (None,) * 3, ("put",), {"put", "it", "a"}]
        )
        return f"texts {texts!r}", worldenv.Starts(STARTS.seen, texts)
    tensor = getattr(STARTS.seen, field)
    changes = {
        "double": lambda x: x.double(),
        "bool": lambda x: x.bool(),
        "complex": lambda x: x.to(torch.complex64),
        "int32": lambda x: x.int(),
        "meta": lambda x: x.to("meta"),
        "numpy": lambda x: x.numpy(),
        "list": lambda x: x.tolist(),
        "one more dimension": lambda x: x[None],
        "flat": lambda x: x.flatten()[:, None],
        "scalar": lambda x: x.flatten()[0],
        "fewer": lambda x: x[:2],
        "none": lambda x: x[:0],
        "sparse": lambda x: x.to_sparse(),
        "wider": lambda x: torch.cat([x, x], dim=-1) if x.ndim > 1 else x[:1],
        "None": lambda x: None,
        "not finite": lambda x: x * math.nan if x.is_floating_point() else x.float() * math.nan,
        "infinite": lambda x: x / 0.0 if x.is_floating_point() else x + 2.0**40,
        "negative": lambda x: x - 10 if x.dtype == torch.int64 else x.short() - 300,
        "a row too much": lambda x: x + 3 if x.dtype == torch.int64 else x.half(),
    }
    how = rng.choice(list(changes))
    return f"{field} {how}", worldenv.Starts(replace(STARTS.seen, **{field: changes[how](tensor)}), STARTS.texts)


def environments(rng: random.Random) -> tuple[str, Callable]:
    action = torch.zeros(3, 4, 7)
    actions = {
        **{str(i): value for i, value in enumerate(NO_TENSOR)},
        "shape": action[:2],
        "flat": action.flatten(),
        "short": action[:, :3],
        "narrow": action[..., :6],
        "complex": action.to(torch.complex64),
        "bool": action.bool(),
        "meta": action.to("meta"),
        "objects": np.full((3, 4, 7), None),
        "strings": np.full((3, 4, 7), "a"),
    }
    masks = [3, "x", [1, 0, 1], [True], torch.ones(3), torch.ones(2, dtype=torch.bool), {}, torch.tensor(True)]
    rows = [3, "x", [], [[0]], [0.5], [-1], [3], [2**40], {}, torch.zeros(0, dtype=torch.int64), torch.tensor([True])]
    kind = rng.choice(["step", "too early", "mask", "rows", "seed", "bounds", "part first"])
    number = rng.randrange(1000)
    how = list(actions)[number % len(actions)]

    def use() -> Any:
        env = environment()
        if kind == "too early":
            return (env.observe, env.info, lambda: env.step(action))[number % 3]()
        if kind == "part first":
            return env.reset(torch.tensor([True, False, True]))
        if kind == "seed":
            return env.seed(NO_INTEGER[number % (len(NO_INTEGER) - 1)])
        env.reset()
        calls = {
            "step": lambda: env.step(actions[how]),
            "mask": lambda: env.reset(masks[number % len(masks)]),
            "rows": lambda: env.reset(starts=rows[number % len(rows)]),
            "bounds": lambda: env.bounds(["reward", "", None, 3, "Frames"][number % 5]),
        }
        return calls[kind]()

    return f"env {kind} {how if kind == 'step' else number}", refused(use)


def adapters(rng: random.Random) -> tuple[str, Callable]:
    kind = rng.choice(["options", "seed", "action", "after close", "torchrl action", "torchrl rows"])
    number = rng.randrange(1000)
    options = [3, {"start": [0]}, {"starts": [7]}, {"reset_mask": [1, 1, 1]}, {"starts": "x"}, [1], {"reset_mask": 3}]
    actions = [None, "x", torch.zeros(2, 4, 7), np.zeros((3, 4, 6)), [[0]], torch.zeros(3, 4, 7).bool()]

    def use() -> Any:
        if kind.startswith("torchrl"):
            env = worldenv.TorchRLWorldModelEnv(environment())
            env.set_seed(0)
            if kind == "torchrl rows":
                return env.reset(starts=torch.tensor([[9], [-1], [0.5]][number % 3]))
            return env._step(
                env.reset().set("action", torch.zeros(3, 4, 7, dtype=[torch.bool, torch.complex64][number % 2]))
            )
        envs = worldenv.WorldModelVectorEnv(environment())
        if kind == "seed":
            return envs.reset(seed=[1.5, "a", 2**63, True, [], -(2**70)][number % 6])
        if kind == "options":
            return envs.reset(options=options[number % len(options)])
        envs.reset(seed=0)
        if kind == "after close":
            envs.close()
            return envs.step(torch.zeros(3, 4, 7)) if number % 2 else envs.reset()
        return envs.step(actions[number % len(actions)])

    return f"{kind} {number}", refused(use)


def replaying(rng: random.Random) -> tuple[str, Callable]:
    sound = torch.zeros(3, 4, 7)
    actions = {
        "fewer": sound[:2],
        "narrow": sound[..., :6],
        "flat": sound.flatten(),
        "not finite": sound / 0,
        "None": None,
        "text": "x",
        "bool": sound.bool(),
        "complex": sound.to(torch.complex64),
        "meta": sound.to("meta"),
        "seed": sound,
        "world": sound,
    }
    how = rng.choice(list(actions))
    seed = rng.choice(NO_INTEGER) if how == "seed" else SEED
    world = parts_of().world if how != "world" else rng.choice([None, 3, parts_of().policy])
    return f"replay {how} {seed}", refused(lambda: worldenv.replay(world, STARTS, actions[how], seed))


def true_acting(rng: random.Random) -> tuple[str, Callable]:
    tasks = list(suite_of().tasks[:2])
    given = {"policy": parts_of().policy, "suite": suite_of(), "tasks": tasks, "starts": [0, 1], "split": "test"}
    given |= {"perturb": 0.0, "seed": 0}
    wrong = {
        "tasks": [[], ["a", "b"], tasks[:1], None, 3, tasks[0], "ab", [None, None]],
        "starts": [[], [0], [0.5, 1.5], "ab", None, 3, [None, 1], [True, "x"], [[0], [1]]],
        "split": ["", "Test", None, 3, [], "train "],
        "perturb": [math.nan, math.inf, "x", None, torch.zeros(3), torch.zeros(2, 2), [], True, 1j],
        "seed": NO_INTEGER,
        "policy": [None, 3, parts_of().reflector],
        "suite": [None, 3, parts_of().policy],
    }
    argument = rng.choice([*wrong, "practice"])
    if argument == "practice":
        seed = rng.choice(NO_INTEGER)
        suite = suite_of() if rng.random() < 0.8 else rng.choice([None, 3])
        return f"practice_starts {seed!r}", refused(lambda: worldenv.practice_starts(suite, seed))
    value = rng.choice(wrong[argument])
    name = f"act_in_true {argument}={str(value)[:60]}"
    return name, refused(lambda: worldenv.act_in_true(**given | {argument: value}))


def values(rng: random.Random) -> tuple[str, Callable]:
    """What is refused as it is made: descriptions of robots and cameras, tables, keys of random numbers."""
    name = rng.choice(list(VALUES))
    call, wrong = VALUES[name]
    number = rng.randrange(len(wrong))
    return f"{name} {str(wrong[number])[:60]}", refused(lambda: call(wrong[number]))


def own(rng: random.Random) -> tuple[str, Callable]:
    """A policy, world model, reflector or suite of the user's own that does not keep to its interface."""
    if rng.random() < 0.3:
        name = rng.choice(list(WRONG_SUITES))
        use = rng.choice(["act_in_true", "practice_starts"])

        def act_true() -> Any:
            suite = WRONG_SUITES[name]()
            if use == "practice_starts":
                suite.practising = True
                return worldenv.practice_starts(suite, 0)
            return worldenv.act_in_true(parts_of().policy, suite, suite_of().tasks[:2], [0, 1], "test")

        if use == "practice_starts" and name.startswith("step"):
            use = "act_in_true"
        return f"suite {name} {use}", refused(act_true)
    name = rng.choice(list(WRONG_PARTS))
    use = rng.choice(["run", "env", "replay"] if name.startswith(("imagine", "world")) else ["run"])
    acted = torch.zeros(3, 4, 7)

    def wrong() -> Any:
        parts = WRONG_PARTS[name]()
        if use == "replay":
            return worldenv.replay(parts.world, STARTS, acted, SEED)
        if use == "run":
            return run(parts)
        env = worldenv.make_env(parts, STARTS, worldenv.EnvConfig(envs=3, horizon=8))
        env.reset()
        return env.step(acted)

    return f"{name} {use}", refused(wrong)


def modes(rng: random.Random) -> tuple[str, Callable]:
    """Sound calls in a mode of the caller's, or with tensors that have gaps or gradients: the same as ever."""
    mode = rng.choice(
        ["inference_mode", "no_grad", "enable_grad", "requires_grad", "gaps", "numpy seed", "made in inference"]
    )

    def act(_: Path) -> None:
        expected, given, seed = run(parts_of()), STARTS, SEED
        if mode == "requires_grad":
            given = worldenv.Starts(
                replace(STARTS.seen, proprio=STARTS.seen.proprio.clone().requires_grad_()), STARTS.texts
            )
        elif mode == "gaps":
            twice = [torch.stack([x, x], dim=-1)[..., 0] for x in STARTS.seen.tensors()]
            given = worldenv.Starts(worldenv.Observation(*twice), STARTS.texts)
        elif mode == "made in inference":
            with torch.inference_mode():
                given = worldenv.Starts(STARTS.seen.each(torch.clone), STARTS.texts)
        elif mode == "numpy seed":
            seed = np.int64(SEED)
        manager = getattr(torch, mode) if mode in ("inference_mode", "no_grad", "enable_grad") else torch.enable_grad
        with manager():
            found = run(parts_of(), given, seed=seed)
        for mine, other in zip(found.tensors(), expected.tensors(), strict=True):
            if not torch.equal(mine, other) or mine.requires_grad or mine.is_inference():
                raise Silent("other rollouts, or tensors that have a gradient or belong to inference mode")

    return mode, act
