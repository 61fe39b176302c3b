"""`worldenv-collect` with odd words, and in damaged folders: refused in one line, or what is there then is right.

The suite is one of the case's own, whose expert always succeeds.
"""

import atexit
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path

from area_commands import NUMBERS, WORDS, make_files, shown
from called import TARGETS, called
from cases import Case, Silent

from worldenv.commands import cli
from worldenv.commands.collect import Collection
from worldenv.data.trajectories import TrajectoryReader

SUITE = """
import numpy as np
import worldenv

class Task:
    name, instructions = "wave", ("wave the hand",)

class Suite:
    name, horizon, views, tasks = "waving", 5, ("top",), (Task(),)
    robot = worldenv.Robot(("x m", "y m"), ("dx", "dy"), (-1.0, -1.0), (1.0, 1.0))

    def demonstrate(self, tasks, starts, split, noise, look):
        return [self.one(task, start, split) for task, start in zip(tasks, starts)]

    def one(self, task, start, split):
        frames, path = np.full((4, 1, 8, 8, 3), start % 256, np.uint8), np.zeros((4, 2), np.float32)
        parts = frames, path, path[:3], np.array([False, False, True]), None, ("top",)
        shown = worldenv.Trajectory(*parts, "wave the hand", task.name, start, split, "expert")
        return worldenv.Demonstration(True, 3, "waved", shown)
"""
DEMOS = 3
COUNTS = [number for number in NUMBERS if number not in ("64", "100", "1000")]  # of episodes, which take their time
OPTIONS = {"--demos": COUNTS, "--measure": COUNTS, "--tasks": ["0", "wave", "0,0", "0,", "1", "-1", *WORDS]}
OPTIONS |= {"--noise": NUMBERS, "--least": NUMBERS, "--split": ["train", "test", "trian", *WORDS], "--size": NUMBERS}
OPTIONS |= {"--views": WORDS, "--pictures": ["fast", *WORDS], "--repeat": COUNTS, "--workers": COUNTS}
SUITES = ["waving:Task", "waving:Nothing", "waving", "tabletop", *WORDS]
WRONG = ['{"stage": "wave", "step": -1, "success": true, "steps": 3, "told": ""}', "{}", "[]", "null", "\x00", "x\n"]
WRONG += ['{"stage": "wave", "step": "0", "success": 1, "steps": 3}', '{"stage": [], "step": 0}', "9" * 5000]


def cases(rng: random.Random) -> Iterator[Case]:
    """Endless; the collections that are damaged are made before the first."""
    while True:
        words = ["waving:Suite" if rng.random() < 0.8 else rng.choice(SUITES)]
        for option in rng.sample(list(OPTIONS), rng.randint(0, 3)):
            words += [option, rng.choice(OPTIONS[option])]
        words += ["--output", rng.choice(TARGETS)]
        yield Case(f"worldenv-collect {shown(words)}", lambda folder, words=words: typed(folder, words))
        source, seed = rng.choice([whole, half])(), rng.getrandbits(32)
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        name, damage = rng.choice(names), rng.choice(list(DAMAGES))
        yield Case(
            f"{source.name}: {damage} {name} (seed {seed}), then worldenv-collect",
            lambda folder, given=(source, name, damage, seed): damaged(folder, *given),
        )


def typed(folder: Path, words: list[str]) -> None:
    make_files(folder)
    (folder / "waving.py").write_text(SUITE)
    said = called(cli.collect, "worldenv-collect", words)
    _check(Path(said["output"]), said, said["demos"] or 0)


@cache
def whole() -> Path:
    return _made("whole", 99)


@cache
def half() -> Path:
    """Interrupted after two of three episodes."""
    return _made("half", DEMOS - 1)


def _made(name: str, most: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="collect-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "waving.py").write_text(SUITE)
    keep, left = Collection._keep, [most]

    def interrupted(self, *episode):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        keep(self, *episode)

    Collection._keep = interrupted
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), suppress(SystemExit):
        cli.collect(_words(folder, folder / name))
    Collection._keep = keep
    return folder / name


def _words(folder: Path, output: Path) -> list[str]:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return ["waving:Suite", "--demos", str(DEMOS), "--output", str(output)]


def damaged(folder: Path, source: Path, name: str, damage: str, seed: int) -> None:
    (folder / "waving.py").write_text(SUITE)
    shutil.copytree(source, folder / "demos")
    DAMAGES[damage](random.Random(seed), folder / "demos" / name)
    said = called(cli.collect, "worldenv-collect", _words(folder, folder / "demos"))
    if not name.endswith(".hdf5"):  # a file that is there is not made again, whatever it holds
        _check(folder / "demos", said, DEMOS)


def _check(folder: Path, said: dict, demos: int) -> None:
    """Raises Silent unless there are as many demonstrations as were asked for, of the first start states."""
    if said["demonstrations"] != demos:
        raise Silent(f"{said['demonstrations']} demonstrations, {demos} were asked for")
    if demos:
        with TrajectoryReader(folder / "wave_demo.hdf5") as reader:
            starts = [trajectory.start for trajectory in reader]
        if starts != list(range(demos)):
            raise Silent(f"demonstrations of the start states {starts}")


def _flipped(draw: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes() or b"x")
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _as_folder(draw: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "cut": lambda draw, path: path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size + 1)]),
    "flip a bit of": _flipped,
    "empty": lambda draw, path: path.write_bytes(b""),
    "remove": lambda draw, path: path.unlink(),
    "write over": lambda draw, path: path.write_text(draw.choice(WRONG)),
    "append to": lambda draw, path: path.write_text(path.read_text(errors="replace") + draw.choice(WRONG)),
    "make a folder of": _as_folder,
}
