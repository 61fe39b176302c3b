"""`worldenv-reflector` with odd words: refused in one line, or what is parsed is what was typed, and sane."""

import random
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from area_commands import LARGEST, PATHS, check_typed, make_files, pairs, shown
from called import called
from cases import Case, Silent

import worldenv.commands.options  # noqa: F401 -- a case would import it
from worldenv.commands import cli
from worldenv.training import train_vlm

NEEDED = {"--vlm": "empty", "--data": "empty", "--run": "new"}
MAY_BE_ZERO = {"--seed", "--lora", "--negatives", "--warmup", "--weight-decay", "--save-every-s"}


def settings(kind: Any) -> Iterator[tuple[str, Any]]:
    """Option and value, of a configuration or by default; the command's options have no prefixes."""
    for field in fields(kind):
        value = getattr(kind, field.name, field.default)
        if value is MISSING:
            value = field.default_factory() if field.default_factory is not MISSING else None
        if is_dataclass(value) or field.name == "ask":
            yield from settings(train_vlm.VlmConfig if value is None else value)
        else:
            yield f"--{field.name.replace('_', '-')}", value


KNOWN = dict(settings(train_vlm.VlmTraining))


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        words = [word for option, value in NEEDED.items() for word in (option, _needed(rng, value))]
        words += ["--mode", rng.choice(["language", "features", "zero-shot"]), *pairs(rng, KNOWN, rng.randint(0, 4))]
        yield Case(f"worldenv-reflector {shown(words)}", lambda folder, words=words: use(folder, words))


def _needed(rng: random.Random, usual: str) -> str:
    return usual if rng.random() < 0.8 else rng.choice(PATHS)


def use(folder: Path, words: list[str]) -> None:
    make_files(folder)
    accepted = []
    train_vlm.train_vlm = lambda config: accepted.append(config) or {"reflector": "vlm:new"}
    called(cli.reflector, "worldenv-reflector", words)
    have = dict(settings(accepted[0]))
    for option, value in have.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (not 0 <= value <= LARGEST or (value == 0 and option not in MAY_BE_ZERO)):
            raise Silent(f"{option} is {value}")
    check_typed(have, {name: value for name, value in KNOWN.items() if name != "--data"}, words)
