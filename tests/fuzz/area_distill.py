"""`worldenv-distill` with odd words: refused in one line, or what is parsed is what was typed, and sane."""

import random
from collections.abc import Iterator
from pathlib import Path

from area_commands import LARGEST, PATHS, check_typed, make_files, pairs, shown
from area_reflector import MAY_BE_ZERO, settings
from called import called
from cases import Case, Silent

import worldenv.commands.options  # noqa: F401 -- a case would import it
from worldenv.commands import cli, distill

NEEDED = {"--data": "empty", "--run": "new"}
KINDS = ("svd", "rlinf-wan", "causal-latents")
KNOWN = dict(settings(distill.Distillation))


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        words = ["--world", rng.choice([*(f"{kind}:empty" for kind in KINDS * 5), "composer", "svd", "svd:", "a:b"])]
        for option, value in NEEDED.items():
            words += [option, value if rng.random() < 0.8 else rng.choice(PATHS)]
        words += pairs(rng, KNOWN, rng.randint(0, 4))
        yield Case(f"worldenv-distill {shown(words)}", lambda folder, words=words: use(folder, words))


def use(folder: Path, words: list[str]) -> None:
    make_files(folder)
    accepted = []
    distill.train_student = lambda config: accepted.append(config) or {"world": "svd:new/world"}
    called(cli.distill, "worldenv-distill", words)
    have = dict(settings(accepted[0]))
    for option, value in have.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (not 0 <= value <= LARGEST or (value == 0 and option not in MAY_BE_ZERO)):
            raise Silent(f"{option} is {value}")
    if have["--denoising-steps"] >= have["--teacher-steps"]:
        raise Silent(f"a student of {have['--denoising-steps']} steps of a teacher of {have['--teacher-steps']}")
    check_typed(have, {name: value for name, value in KNOWN.items() if name != "--data"}, words)
