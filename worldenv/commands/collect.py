"""`worldenv-collect`: demonstrations by a suite's expert, for every task that it solves often enough.

<task>_demo.hdf5     a task that is kept: its demonstrations, in LIBERO's own layout, with states
episodes.jsonl       a line for every episode that was acted out
collection.json      the settings
result.json          what the command printed last
unfinished/          demonstrations of tasks that are not decided yet
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldenv.assemble import SUITES, named
from worldenv.commands.convert import Parser
from worldenv.data.demonstration import Demonstration, load_demonstration, save_demonstration
from worldenv.data.formats.libero import NUMBERS, write_libero
from worldenv.data.paths import as_path
from worldenv.data.trajectories import TrajectoryWriter, part_paths
from worldenv.errors import UserError, nearest
from worldenv.fields import shown
from worldenv.files import cannot_be_written, lock, read_json, remove_temporary, replace_whole, write_text
from worldenv.interfaces.suite import Suite, Task
from worldenv.records.metrics import append_line, read_lines, rewrite
from worldenv.records.progress import Progress, table

FEWEST = 20  # episodes by which a task is judged, if need be
TIMEOUT_S = 1800.0  # an episode is one request here
LIBERO_ONLY = ("size", "views", "pictures", "repeat", "workers")
ROUNDING = 1e-9
SETTINGS, EPISODES, RESULT, UNFINISHED = "collection.json", "episodes.jsonl", "result.json", "unfinished"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Raises UserError, or SystemExit at --help."""
    parser = Parser(
        "worldenv-collect",
        description="Let a suite's expert act out its tasks, and store the demonstrations in files of LIBERO's layout. "
        "After an interruption, the same command continues.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("suite", help="a suite of LIBERO (libero_object, ...), or module:function of your own suite with an expert")
    add("--demos", type=_count, default=5, metavar="N", help="successful demonstrations of each task (default 5)")
    add(
        "--measure",
        type=_count,
        metavar="N",
        help="store no demonstrations: only count successes from start states 0 to N - 1",
    )
    add("--tasks", help="numbers or names of tasks, such as 0,3,7 (default: all)")
    add("--noise", type=_share, default=0.3, help="largest scale of the noise on actions, 0 to 1 (default 0.3)")
    add("--least", type=_share, default=0.9, help="least share of successes; a task below it is left out (default 0.9)")
    add(
        "--split",
        choices=("train", "validation", "test"),
        help="split of the start states (default: train; with --measure: test)",
    )
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the results (default: SUITE_demos; with --measure: SUITE_measured)",
    )
    add("--size", type=_count, help="LIBERO: height and width of a picture in pixels (default 128)")
    add("--views", help="LIBERO: agentview (default), wrist, or agentview,wrist")
    add("--pictures", choices=("fast", "official"), help="LIBERO: how pictures are rendered (default fast)")
    add("--repeat", type=_count, help="LIBERO: how many times each action is carried out (default 1)")
    add("--workers", type=_count, help="LIBERO: processes (default: one for each core)")
    return parser.parse_args(list(words))


def _count(word: str) -> int:
    if not word.isdecimal() or len(word) > 7 or not 0 < int(word) <= 10**6:  # int() takes no word of any length
        raise argparse.ArgumentTypeError(f"{shown(word)} is no positive whole number")
    return int(word)


def _share(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{shown(word)} is no number from 0 to 1")
    return value


@dataclass(frozen=True)
class Rule:
    """When enough episodes of a task have been acted out, and whether it is kept."""

    demos: int
    least: float  # share of successes
    measure: int | None = None  # episodes, whatever comes of them

    @property
    def most(self) -> int:
        """Episodes of a task, at most."""
        return self.measure or max(FEWEST, 2 * self.demos)

    def decided(self, successes: Sequence[bool]) -> tuple[bool, int] | None:
        """Whether a task is kept, and after how many of its episodes, in order, that was clear; None: not yet.

        It is clear once there are enough successes and they are a large enough share, or once so many have failed that
        they cannot become it within `most` episodes.
        """
        done, allowed = 0, int((1 - self.least) * self.most + ROUNDING)
        for count, success in enumerate(successes[: self.most], 1):
            done += success
            is_often = done >= self.least * count - ROUNDING
            if self.measure is not None:
                if count == self.most:
                    return is_often, count
            elif done >= self.demos and is_often:
                return True, count
            elif count - done > allowed or count == self.most:
                return False, count
        return None


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the options say; returns what was found. Raises UserError."""
    rule = Rule(options.demos, options.least, options.measure)
    split = options.split or ("test" if rule.measure else "train")
    suite = _suite(options)
    tasks = _chosen(suite, options.tasks)
    folder = as_path(options.output or f"{suite.name}_{'measured' if rule.measure else 'demos'}").absolute()
    asked = {"suite": options.suite, "demos": None if rule.measure else rule.demos, "noise": options.noise}
    asked |= {"least": rule.least, "split": split, "views": list(suite.views)}
    asked |= {name: getattr(suite, name, None) for name in ("size", "pictures", "repeat")}
    try:
        with _owned(folder, asked):
            collection = Collection(folder, suite, tasks, rule, split, options.noise)
            collection.run()
            result = {"output": str(folder), **asked, **collection.found()}
            result["about"] = suite.about() if hasattr(suite, "about") else {}
            write_text(folder / RESULT, json.dumps(result))
    finally:
        getattr(suite, "close", lambda: None)()
    return result


def _suite(options: argparse.Namespace) -> Suite:
    given = {name: getattr(options, name) for name in LIBERO_ONLY if getattr(options, name) is not None}
    make = named("suite", options.suite, SUITES)
    is_known = options.suite in SUITES
    kind = getattr(make, "func", make) if is_known else None  # LIBERO's are partial
    if given and not is_known:
        raise UserError(f"--{next(iter(given))} is for the suites of LIBERO only; {options.suite} does not take it")
    if kind is None or hasattr(kind, "demonstrate"):
        views = {"views": tuple(given["views"].split(","))} if "views" in given else {}
        suite = make(
            **(
                {"size": 128, "timeout_s": TIMEOUT_S} | getattr(make, "keywords", {}) | given | views
                if is_known
                else {}
            )
        )
        if hasattr(suite, "demonstrate"):
            return suite
    raise UserError(f"the suite {options.suite} has no expert (a method `demonstrate`); LIBERO's suites have one")


def _chosen(suite: Suite, said: str | None) -> list[Task]:
    if said is None:
        return list(suite.tasks)
    by_name = {str(number): task for number, task in enumerate(suite.tasks)} | {task.name: task for task in suite.tasks}
    words = [word.strip() for word in said.split(",")]
    for word in words:
        if word not in by_name:
            raise UserError(
                f"--tasks has {shown(word)}, no task of {suite.name}: numbers are 0 to {len(suite.tasks) - 1}"
                + ("" if word.isdecimal() else f"{nearest(word, [task.name for task in suite.tasks])}")
            )
    return list({by_name[word].name: by_name[word] for word in words}.values())


@contextmanager
def _owned(folder: Path, asked: dict[str, Any]) -> Iterator[None]:
    """Inside, the folder belongs to this process. Raises UserError if it holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        locked = lock(folder / ".lock")
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    if locked is None:
        raise UserError(
            f"{folder}: another worldenv-collect is at work there; wait until it ends, or give another --output"
        )
    try:
        settings = folder / SETTINGS
        if settings.exists():
            before = read_json(settings)
            for name, value in asked.items():
                if before.get(name) != value:
                    raise UserError(
                        f"{folder} was collected with {name} {shown(before.get(name))}, and now it is {shown(value)}: "
                        "give the same value, or another --output"
                    )
        elif left := [path.name for path in folder.iterdir() if path.name != ".lock"]:
            raise UserError(
                f"{folder} holds {shown(left[0])} and no collection of worldenv-collect: give another --output"
            )
        else:
            write_text(settings, json.dumps(asked))
        remove_temporary(folder)
        yield
    finally:
        os.close(locked[0])


class Collection:
    """The episodes of some tasks, in a folder: what has been acted out, and what is to come."""

    def __init__(self, folder: Path, suite: Suite, tasks: Sequence[Task], rule: Rule, split: str, noise: float):
        self.folder, self.suite, self.tasks, self.rule = folder, suite, list(tasks), rule
        self.split, self.noise, self.parts = split, noise, folder / UNFINISHED
        lines, is_torn = read_lines(folder / EPISODES)
        if is_torn:
            rewrite(folder / EPISODES, lines)
        self.episodes: dict[str, dict[int, dict[str, Any]]] = {task.name: {} for task in suite.tasks}
        for line in lines:
            if not isinstance(line.get("success"), bool) or not isinstance(line.get("steps"), int):
                raise UserError(f"{folder / EPISODES} has a line without `success` and `steps`: remove that line")
            self.episodes.setdefault(line["stage"], {})[line["step"]] = line

    def run(self) -> None:
        """Act out episodes until every task is decided. Raises UserError."""
        self.parts.mkdir(exist_ok=True)
        remove_temporary(self.parts)
        self._finish()
        rows: list[Task | None] = [None] * getattr(self.suite, "workers", 1)
        title = f"{'episodes' if self.rule.measure else 'demonstrations'} of {self.suite.name}"
        with Progress(len(self.tasks) * self._each, title, done=self._done()) as progress:
            while wave := self._wave(rows):
                wanted = [self._is_wanted(task, start) for task, start in wave]
                tasks, starts = zip(*wave, strict=True)
                demos = self.suite.demonstrate(tasks, starts, self.split, self.noise, wanted)
                for task, start, demo in zip(tasks, starts, demos, strict=True):
                    self._keep(task, start, demo)
                self._finish()
                outcomes = [line["success"] for task in self.tasks for line in self.episodes[task.name].values()]
                said = {"success": f"{sum(outcomes)}/{len(outcomes)}", "task": tasks[0].name[-40:]}
                progress.advance(self._done() - progress.done, **said)
        if not any(self.parts.iterdir()):
            self.parts.rmdir()

    def found(self) -> dict[str, Any]:
        """What came of every task, also as a table on stderr."""
        tasks, rows = [], []
        for task in self.tasks:
            is_kept, count = self.decided(task)
            lines = [self.episodes[task.name][start] for start in range(count)]
            steps = [line["steps"] for line in lines if line["success"]]
            mean = round(float(np.mean(steps)), 1) if steps else None
            tasks.append({"task": task.name, "kept": is_kept, "success": len(steps), "episodes": count, "steps": mean})
            rows.append((task.name[-70:], f"{len(steps)}/{count}", mean or "", "yes" if is_kept else "no"))
        table(f"The expert of {self.suite.name}", ("task", "success", "steps", "kept"), rows)
        left_out = [task["task"] for task in tasks if not task["kept"]]
        demos = 0 if self.rule.measure else (len(tasks) - len(left_out)) * self.rule.demos
        return {"demonstrations": demos, "tasks": tasks, "left_out": left_out}

    def decided(self, task: Task) -> tuple[bool, int] | None:
        """As `Rule.decided`, of the episodes up to the first that has not been acted out."""
        lines, successes = self.episodes[task.name], []
        while len(successes) in lines:
            successes.append(lines[len(successes)]["success"])
        return self.rule.decided(successes)

    @property
    def _each(self) -> int:
        return self.rule.measure or self.rule.demos

    def _done(self) -> int:
        done = 0
        for task in self.tasks:
            lines = self.episodes[task.name].values()
            some = sum(self.rule.measure is not None or line["success"] for line in lines)
            done += self._each if self.decided(task) else min(some, self._each - 1)
        return done

    def _wave(self, rows: list[Task | None]) -> list[tuple[Task, int]]:
        """An episode for each worker: of the task that it is at, of one that nobody is at, or of any."""
        wave: list[tuple[Task, int]] = []
        for row, before in enumerate(rows):
            left = [task for task in self.tasks if not self.decided(task) and self._next(task, wave) is not None]
            if not left:
                break
            rows[row] = before if before in left else next((task for task in left if task not in rows), left[0])
            wave.append((rows[row], self._next(rows[row], wave)))
        return wave

    def _next(self, task: Task, wave: Sequence[tuple[Task, int]]) -> int | None:
        taken = self.episodes[task.name].keys() | {start for other, start in wave if other == task}
        return next((start for start in range(self.rule.most) if start not in taken), None)

    def _is_wanted(self, task: Task, start: int) -> bool:
        """Whether this episode would be one of the demonstrations."""
        before = sum(line["success"] for number, line in self.episodes[task.name].items() if number < start)
        return not self.rule.measure and before < self.rule.demos

    def _keep(self, task: Task, start: int, demo: Demonstration) -> None:
        if demo.trajectory is not None:
            save_demonstration(self._part(task, start), demo)
        line = {"stage": task.name, "step": start, "success": demo.success, "steps": demo.steps, "told": demo.told}
        append_line(self.folder / EPISODES, line)
        self.episodes[task.name][start] = line

    def _finish(self) -> None:
        """Write the files of the tasks that are decided. What is lost of them has to be acted out again."""
        for task in self.tasks if not self.rule.measure else ():
            verdict, path = self.decided(task), self.folder / f"{task.name}_demo.hdf5"
            if verdict is None:
                continue
            if verdict[0] and not path.exists():
                lines = self.episodes[task.name]
                starts = [start for start in range(verdict[1]) if lines[start]["success"]][: self.rule.demos]
                if lost := [start for start in starts if not self._part(task, start).exists()]:
                    for start in lost:
                        del lines[start]
                    continue
                self._write(path, [self._part(task, start) for start in starts])
            for start in range(self.rule.most):
                self._part(task, start).unlink(missing_ok=True)

    def _write(self, path: Path, parts: Sequence[Path]) -> None:
        demos, about = map(load_demonstration, parts), {"suite": self.suite.name, "noise": str(self.noise)}
        if self.suite.robot.proprio_size == NUMBERS:
            extras = (load_demonstration(part).extras for part in parts)
            write_libero(path, (demo.trajectory for demo in demos), extras, about)
            return

        def write(made: Path) -> None:
            folder = made.with_name("own")
            with TrajectoryWriter(folder, per_file=len(parts)) as writer:
                for demo in demos:
                    writer.write(demo.trajectory)
            part_paths(folder)[0].rename(made)

        replace_whole(path, write)

    def _part(self, task: Task, start: int) -> Path:
        return self.parts / f"{task.name}.{start}.npz"
