"""Command lines with odd and hostile words: refused in one line, or what is parsed is what was typed, and sane."""

import io
import json
import math
import os
import random
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cases import PACKAGE, Case, Silent

import worldenv.commands.options  # noqa: F401 -- a case would import it
from worldenv.commands import cli, job
from worldenv.commands.saved import document, resolved
from worldenv.config import EvaluateConfig, TrainConfig, presets
from worldenv.errors import UserError
from worldenv.records.run_folder import RunFolder

COMMANDS = {"worldenv-train": cli.train, "worldenv-eval": cli.evaluate}
MAY_BE_ZERO = {"seed", "start_seed", "videos", "max_skipped", "window", "signal", "warmup", "weight_decay"}
MAY_BE_ZERO |= {"save_every_s", "perturb", "again_noise", "every", "guard", "workers", "max_failures", "stills"}
LOWEST = {"start_seed": -(2**32), "max_failures": -1}  # of all others: 0
LARGEST = 2**32  # of any number that may be accepted
NUMBERS = ["0", "-1", "1", "2", "3", "7", "8", "64", "100", "1000", "0.5", "1e-3", "1e3", "nan", "inf", "-inf", "-0.0"]
NUMBERS += [
    "1e400",
    "1e-400",
    "10**12",
    "1000000000000",
    str(2**31),
    str(2**63),
    str(-(2**63) - 1),
    "9" * 400,
    "9" * 5000,
]
NUMBERS += ["True", "None", "0x10", "1_000", " 5", "5 ", "5.0", "٣", "½", "1,5", "+4", "--4", "", "1/3", "5\n"]
WORDS = [
    "tabletop",
    "Tabletop",
    "small",
    "composer",
    "casual",
    "zero-shot",
    "cpu",
    "cuda",
    "gpu",
    "int8",
    "auto",
    "float16",
]
WORDS += [
    "json:make",
    "nowhere:x",
    ":",
    "a:",
    ":b",
    "..x:y",
    "os:sep",
    "",
    " ",
    "\n",
    "\0",
    "é",
    "\udcff",
    "x" * 5000,
    "None",
]
PATHS = [
    "new",
    "file",
    "file/x",
    "empty",
    "dangling",
    "loop",
    "link",
    "a\0b",
    "x" * 300,
    "x/" * 3000,
    "",
    " ",
    ".",
    "..",
    "/",
]
PATHS += [
    "/dev/null",
    "/dev/full/x",
    "/proc/self/mem",
    "~",
    "~/x",
    "~no-such-user/x",
    "\udcff",
    "é",
    "a\nb",
    "-x",
    "--run",
]
PATHS += [f"{PACKAGE}/new", f"{PACKAGE}/assets/tabletop", "run", "None", "*", "$HOME", "file\t"]


def settings(config: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Option and value of every field, those of the stages included."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name.replace('_', '-')}.")
        else:
            yield f"{prefix}{field.name.replace('_', '-')}", value


KNOWN = {"worldenv-train": dict(settings(TrainConfig())), "worldenv-eval": dict(settings(resolved(EvaluateConfig())))}
PATH_OPTIONS = ("--run", "--models", "--eval.weights", "--vlm", "--data")


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        yield from (typed(rng), typed(rng), continued(rng), edited(rng))


def typed(rng: random.Random) -> Case:
    """A command with some options."""
    program = rng.choice(list(COMMANDS))
    words = pairs(rng, KNOWN[program], rng.randint(1, 4))
    if program == "worldenv-train" and rng.random() < 0.9:
        words.insert(0, rng.choice([*presets(), "tabletop", "tabeltop", ""]))
    return Case(f"{program} {shown(words)}", lambda folder: use(folder, program, words))


def continued(rng: random.Random) -> Case:
    """A run is resumed or evaluated, with some options."""
    program = rng.choice(list(COMMANDS))
    words = ["--resume", "--run", "run"] if program == "worldenv-train" else ["--models", "run"]
    words += pairs(rng, KNOWN[program], rng.randint(0, 2))
    return Case(f"with a run, {program} {shown(words)}", lambda folder: use(folder, program, words))


def edited(rng: random.Random) -> Case:
    """A run whose config.json somebody edited is resumed or evaluated."""
    program = rng.choice(list(COMMANDS))
    words = ["--resume", "--run", "run"] if program == "worldenv-train" else ["--models", "run"]
    option = rng.choice([name for name in KNOWN["worldenv-train"] if not name.startswith("--launch.")])  # not kept
    value = rng.choice(
        [None, True, -1, 0, 1e3, 10**30, math.nan, math.inf, "", "x", "a\0b", [], [1, math.nan], {}, "DROP"]
    )
    return Case(f"{option} edited to {value!r}, {program}", lambda folder: use(folder, program, words, (option, value)))


def shown(words: list[str]) -> str:
    return " ".join(repr(word) if len(word) < 80 else f"{word[:9]!r}*{len(word)}" for word in words)


def pairs(rng: random.Random, known: dict[str, Any], count: int) -> list[str]:
    """Words for some options, of which values show the type."""
    words = []
    for option, value in rng.choices(list(known.items()), k=count):
        if rng.random() < 0.05:
            option = rng.choice([option[:-1], option.upper(), option + ".x", "-" + option[2:], "--"])
        pool = PATHS if option in PATH_OPTIONS else WORDS if isinstance(value, str) else NUMBERS
        given = [rng.choice(pool) for _ in range(rng.randint(1, 3) if isinstance(value, tuple) else 1)]
        if isinstance(value, bool):
            head, dot, name = option[2:].rpartition(".")
            option, given = rng.choice([option, f"--{head}{dot}no-{name}"]), []
        words += [f"{option}={given[0]}"] if given and rng.random() < 0.2 else [option, *given]
    return words


def use(folder: Path, program: str, words: list[str], edit: tuple[str, Any] | None = None) -> None:
    furnish(folder, edit)
    accepted: list[TrainConfig | EvaluateConfig] = []
    job.train = job.evaluate = lambda config, *more: accepted.append(config) or {"run": "run"}
    code, out, err = 0, io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            COMMANDS[program](words)
        except SystemExit as end:
            code = end.code
    said = err.getvalue()
    if code == 2 and not accepted and not out.getvalue():
        refused(program, said)
    elif code or len(accepted) != 1:
        raise AssertionError(f"exit code {code}, {len(accepted)} accepted: {out.getvalue()[:300]!r} {said[:300]!r}")
    else:
        check(accepted[0], program, words)


def furnish(folder: Path, edit: tuple[str, Any] | None) -> None:
    """The files that the words name, and a run."""
    make_files(folder)
    kept = document(TrainConfig(seed=7, start_seed=-3))
    if edit is not None:
        option, value = edit
        *above, name = option[2:].replace("-", "_").split(".")
        place = kept
        for part in above:
            place = place[part]
        place[name] = value
        if value == "DROP":
            del place[name]
    RunFolder.create(folder / "run", document(TrainConfig())).close()
    (folder / "run" / "config.json").write_text(json.dumps(kept))


def make_files(folder: Path) -> None:
    """Those that the words name."""
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    for name, target in (("dangling", "nowhere"), ("loop", "loop"), ("link", "empty")):
        os.symlink(target, folder / name)


def refused(program: str, said: str) -> None:
    """Raises UserError if the refusal is one line of the command, or the box of an option that does not exist."""
    if "For full helptext" in said and "Unrecognized options" in said:
        if "dummy" in said or "Traceback" in said or "Config(" in said:
            raise AssertionError(f"a box of inner types: {said}")
        raise UserError("a box")
    if said.count("\n") != 1 or not said.startswith(f"{program}: ") or len(said) > 1500:
        raise AssertionError(f"not one line: {said!r}")
    raise UserError(said.strip())


def check(config: TrainConfig | EvaluateConfig, program: str, words: list[str]) -> None:
    """Raises Silent if a number is not sane, or differs from what was typed last."""
    have = dict(settings(config))
    for option, value in have.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool | str | Path | None):
                continue
            name = option.rpartition(".")[2].lstrip("-").replace("-", "_")
            if not LOWEST.get(name, 0) <= number <= LARGEST or (number == 0 and name not in MAY_BE_ZERO):
                raise Silent(f"{option} is {number}")
    check_typed(have, KNOWN[program], words)


def check_typed(have: dict[str, Any], known: dict[str, Any], words: list[str]) -> None:
    """Raises Silent if an option is not what was typed last."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option not in known or isinstance(known[option], bool | tuple) or words.count(option) > 1:
            continue
        value, now = value if equals else after, have[option]
        if (
            isinstance(now, bool | None)
            or sum(other.startswith(option + "=") for other in words) + (option in words) > 1
        ):
            continue
        same = float(value) == now if isinstance(now, int | float) else str(now) in (value, os.path.expanduser(value))
        if not same and Path(value) != now:
            raise Silent(f"{option} is {now!r}, typed was {value!r}")
