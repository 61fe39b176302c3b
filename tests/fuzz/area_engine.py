"""Engines under random settings, modes of torch and changes of weights: they imagine what a plain engine does."""

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from cases import Case, Silent
from torch import nn

from worldenv.assemble import Parts, load
from worldenv.evaluation.measure import practice_starts
from worldenv.interfaces.observation import Starts
from worldenv.nn.int8 import is_allowed
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.episodes import Rollouts

NEAR = 2e-3  # of actions and rewards in floats; what is farther apart did not come from rounding
Change = Callable[[nn.Module], None]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable] = {
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "default bfloat16": partial(default_dtype, torch.bfloat16),
    "default float64": partial(default_dtype, torch.float64),
    "default device meta": partial(torch.device, "meta"),
}


def new_values(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach() * 1.05 + 1e-3


@torch.no_grad()
def in_place(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.copy_(new_values(parameter))


def through_data(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data.copy_(new_values(parameter))


def other_data(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.data = new_values(parameter)


def other_parameters(network: nn.Module) -> None:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(new_values(parameter)))


def load_state(network: nn.Module, assign: bool) -> None:
    network.load_state_dict({n: new_values(p) for n, p in network.state_dict().items()}, assign=assign)


CHANGES: dict[str, Change] = {
    "in place": in_place,
    "through .data": through_data,
    "other .data": other_data,
    "other parameters": other_parameters,
    "load_state_dict": partial(load_state, assign=False),
    "load_state_dict, assigned": partial(load_state, assign=True),
}


@cache
def given() -> tuple[Parts, Starts]:
    parts = load()
    return parts, practice_starts(parts.suite, 0).pick(torch.arange(40))


def engine(parts: Parts, precision: str, horizon: int, **config: int | None) -> Engine:
    imagining = parts.to_imagine(precision)
    return Engine(imagining.policy, imagining.world, imagining.reflector, EngineConfig(horizon, **config))


def check(mine: Rollouts, other: Rollouts, precision: str) -> None:
    """Raise Silent unless both are the same: exactly in 8 bits, up to rounding in floats."""
    for name in ("action", "log_prob", "reward", "stop", "stopped", "chunks", "broken", "video"):
        a, b = getattr(mine, name), getattr(other, name)
        if name in ("stop", "stopped", "chunks", "video") and precision != "int8":
            continue  # a reward near the threshold, or a pixel near a half, may round to either side
        if a.dtype != b.dtype or a.shape != b.shape:
            raise Silent(f"{name} is {a.dtype} {list(a.shape)} instead of {b.dtype} {list(b.shape)}")
        apart = float((a.double() - b.double()).abs().max().nan_to_num(nan=torch.inf))
        if apart > (0.0 if precision == "int8" else NEAR * max(1.0, float(b.double().abs().max()))):
            raise Silent(f"{name} is apart by {apart}")


def cases(rng: random.Random) -> Iterator[Case]:
    given()  # once, before processes are forked
    while True:
        chosen = {
            "precision": rng.choice(["int8", "float32"]) if is_allowed() else "float32",
            "horizon": rng.choice([1, 3, 4, 6]),  # a chunk has 4 actions
            "count": rng.randint(1, 3),
            "siblings": rng.randint(1, 2),
            "seed": rng.choice([0, 1, -1, 2**40, -(2**63), 2**63 - 1]),
            "first_episode": rng.choice([0, 5, 2**33]),
            "threads": rng.choice([1, 2]),
            "capacity": rng.choice([None, 1, 2, 3]),
            "batch": rng.choice([None, 1, 2]),
            "modes": sorted(rng.sample(sorted(MODES), rng.choice([0, 1, 1, 2, 3]))),
            "change": rng.choice([None, *CHANGES]),
            "part": rng.choice(["policy", "world", "reflector"]),
            "together": rng.random() < 0.3,
        }
        yield Case(", ".join(f"{name} {value}" for name, value in chosen.items()), partial(_act, **chosen))


def _act(
    folder: Path,
    precision: str,
    horizon: int,
    count: int,
    siblings: int,
    seed: int,
    first_episode: int,
    threads: int,
    capacity: int | None,
    batch: int | None,
    modes: list[str],
    change: str | None,
    part: str,
    together: bool,
) -> None:
    warnings.simplefilter("ignore")
    parts, starts = given()[0], given()[1].pick(torch.arange(count))  # of this process: a change stays in it
    run = partial(Engine.run, siblings=siblings, seed=seed, first_episode=first_episode, stop=False, video=True)
    ours = [engine(parts, precision, horizon, capacity=capacity, batch=batch) for _ in range(1 + together)]
    if change is not None:
        for one in ours:
            run(one, starts)  # with the weights before the change
        CHANGES[change](parts.networks()[part])
    expected = run(engine(parts, precision, horizon), starts)
    found: dict[int, Rollouts] = {}

    def work(number: int) -> None:
        torch.set_num_threads(threads)
        with ExitStack() as stack:
            for name in modes:
                stack.enter_context(MODES[name]())
            found[number] = run(ours[number], starts)

    if together:
        both = [threading.Thread(target=work, args=[number]) for number in range(len(ours))]
        [thread.start() for thread in both]
        [thread.join() for thread in both]
    else:
        work(0)
    if len(found) < len(ours):
        raise Silent("an engine failed in its thread")
    for out in found.values():
        check(out, expected, precision)
