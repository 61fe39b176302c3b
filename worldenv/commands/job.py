"""The two jobs of the command line. `train`: measure, practise in imagination, measure again. `evaluate`: measure."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldenv.assemble import Parts, check_names, load, make_engine
from worldenv.commands.fits import offload
from worldenv.commands.ranked import check_ranks, opened_by
from worldenv.commands.saved import (
    POLICY,
    check_unchanged,
    document,
    find_modules,
    is_run,
    resolved,
    saved_config,
    settled,
)
from worldenv.config import PARTS, EvaluateConfig, TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation.consistency import has_detector
from worldenv.evaluation.measure import Measurement, held_out, measure, practice_starts, validate
from worldenv.evaluation.videos import file_name, write_videos
from worldenv.interfaces.observation import Starts
from worldenv.interfaces.suite import Suite
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.records.checkpoint import load_weights, save_weights
from worldenv.records.metrics import LONGEST_S
from worldenv.records.model_files import shipped
from worldenv.records.progress import human_seconds, table
from worldenv.records.result import read_result
from worldenv.records.run_folder import RunFolder
from worldenv.records.stage_times import stage_seconds
from worldenv.rl.checks import check_practice, check_saveable, trainable
from worldenv.rl.loop import post_train
from worldenv.rl.needs import most_episodes, needs
from worldenv.rl.practice_state import STAGE
from worldenv.rollout.checks import check_config
from worldenv.rollout.engine import Engine
from worldenv.rollout.memory import free_bytes
from worldenv.training.config import round_name

REPORT = "report.html"
WRITTEN_BACK = "policy"  # folder of a run: its policy in the layout of those who released it
COMPARED = ("imagined_success", "imagined_minus_true", "false_stop", "missed_stop", "consistency")  # before and after
COPIES = 2  # of the frames of true episodes: as they come, and by episode


def train(config: TrainConfig, command: str = "", ranks: Ranks = ALONE) -> dict | None:
    """The main job; returns the document that is also the last line of stdout and result.json, at rank 0.

    To resume a run that has ended, without more iterations, changes nothing and returns its result. Raises UserError if
    a run to resume was made with other settings.
    """
    check_config(config, TrainConfig)
    began, config = time.monotonic(), settled(config)
    check_ranks(config, ranks)
    if config.resume and (ended := ranks.from_first(_ended(config, ranks))) is not None:
        return ended
    check_names(*(getattr(config, name) for name in PARTS))  # before hours of training
    with ExitStack() as opened:
        found, folder = config.models or shipped(), None
        if config.from_scratch:
            folder = opened.enter_context(_noted(opened_by(ranks, lambda: _open(config, config.suite))))
            found = _made_from_scratch(config, folder, ranks)
        parts = load(found, **{name: getattr(config, name) for name in PARTS}, device=config.device)
        engine = make_engine(parts, config.engine, config.precision)
        trainable(parts.policy)  # this and the next two: else said only after minutes of measuring
        check_saveable(parts.policy)
        check_practice(parts.policy, parts.world, config.rl)
        kept = (1 + config.rl.off_policy) * most_episodes(ranks, config.rl)  # off policy: of two iterations
        start = _check_memory(parts, engine, config, kept)
        if ranks.count > 1:
            print(needs(engine, start, config.rl, ranks, config.launch.shard), file=sys.stderr)
        if folder is None:  # after loading, so that a wrong path or precision leaves no folder behind
            folder = opened.enter_context(_noted(opened_by(ranks, lambda: _open(config, parts.suite.name))))
        return _practise(_Rounds(parts, engine, config, folder, found, ranks), began, command)


class _Rounds:
    """Parts and engine of the present round of practice; the policy is one and the same in all rounds."""

    def __init__(self, parts: Parts, engine: Engine, config: TrainConfig, folder: RunFolder, models: Path, ranks=ALONE):
        self.parts, self.engine, self.config, self.folder = parts, engine, config, folder
        self.number, self.models, self.ranks = 0, models, ranks

    def renew(self, iteration: int) -> Engine | None:
        """Go to the round of an iteration: refresh its models or find them. Returns the engine if it is another one."""
        number = self.config.round_of(iteration)
        if number == self.number:
            return None
        from worldenv.training.refresh import Refresh  # imports h5py, which nothing else here needs

        config, made = self.config, self.folder.path / "models"
        before = made / round_name(number - 1) if number > 1 else self.models
        given = self.parts.policy, config.refresh, config.scratch, config.seed, config.suite, self.ranks
        self.number, models = number, _made(Refresh(self.folder, number, before, *given))
        parts = load(models, **{name: getattr(config, name) for name in PARTS}, device=config.device)
        self.parts = replace(parts, suite=self.parts.suite, policy=self.parts.policy)
        self.engine = make_engine(self.parts, config.engine, config.precision)
        return self.engine

    def validate(self) -> dict[str, float]:
        seeds = self.config.start_seed, self.config.seed
        return validate(self.parts.suite, self.parts.policy, self.engine, *seeds, self.ranks)

    def before(self) -> dict | None:
        """The figures of the policy before practice, at rank 0; a resumed run reads those that it has kept."""
        kept = self.ranks.from_first(self.folder.before() if self.ranks.first else None)
        if kept is None:
            measured = self.measure("before")
            kept = measured and measured.figures()
            if kept is not None:
                self.folder.write_before(kept)
        return kept

    def measure(self, title: str) -> Measurement | None:
        return _measured(self.parts, self.engine, self.config, self.folder, title, self.ranks)

    def document(self) -> dict:
        """What the rounds cost, for the result; nothing if there is one."""
        rounds, episodes = self.config.rounds, self.config.refresh.episodes * len(self.parts.suite.tasks)
        return {"rounds": {"rounds": rounds, "true_episodes": (rounds - 1) * episodes}} if rounds > 1 else {}


def _check_memory(parts: Parts, engine: Engine, config: TrainConfig | EvaluateConfig, imagined: int) -> Starts:
    """A start. Raises UserError, before any work, if the records of true or imagined episodes do not fit in memory."""
    suite, episodes = parts.suite, config.eval.episodes
    one, free = suite.reset(*held_out(suite, config.start_seed, 1), "test"), free_bytes(torch.device("cpu"))
    true = COPIES * episodes * (suite.horizon + 1) * one.seen.frames[0].numel()
    if true > free:
        raise UserError(
            f"the frames of {episodes:,} true episodes take {true / 1e9:.2f} GB while they are recorded; "
            f"{free / 1e9:.2f} GB are free: lower --eval.episodes"
        )
    start = one.to(engine.world.device)
    engine.check_memory(start, imagined)
    engine.check_memory(start, min(config.eval.imagined, episodes), video=has_detector(suite))
    return start


def _practise(rounds: _Rounds, began: float, command: str) -> dict | None:
    config, folder, parts, engine, ranks = rounds.config, rounds.folder, rounds.parts, rounds.engine, rounds.ranks
    loaded, earlier_s = time.monotonic() - began, _earlier_s(folder)  # loaded: from scratch, made
    before = rounds.before()
    measured = time.monotonic() - began
    starts = practice_starts(parts.suite, config.seed).to(engine.world.device)
    rl = replace(config.rl, offload=offload(config))
    given = rl, folder, config.seed, rounds.validate, config.eval.every
    counts = post_train(engine, starts, *given, rounds.renew, ranks, config.launch.shard)
    rounds.renew(config.rl.iterations - 1)  # where a resumed run had no iteration left
    if ranks.first:
        _save_policy(folder, parts.policy, config, command)
    practised = time.monotonic() - began
    after = rounds.measure("after")
    if not ranks.first:
        return None
    found = after.figures()
    both = {name: {"before": before[name], "after": found[name]} for name in COMPARED}
    both["imagined_success"]["n"] = len(after.imagined.stopped)
    result = {
        "success_before": before["success"],
        "success_after": found["success"],
        **both,
        "world_model": found["world_model"],
        "counts": counts,
        **rounds.document(),
        **({"stages_s": stage_seconds(folder.path)} if config.from_scratch else {}),
        "time_shares": _shares(folder, loaded, measured - loaded + time.monotonic() - began - practised),
        "wall_s": earlier_s + time.monotonic() - began,
    }
    return _finish(folder, result | _about(config, folder, command, parts.suite))


def evaluate(config: EvaluateConfig, command: str = "", ranks: Ranks = ALONE) -> dict | None:
    """Measure the models of a folder, or of a run with all that the run used and `config` does not say otherwise.

    Returns the document that is also the last line of stdout and result.json, at rank 0.
    """
    check_config(config, EvaluateConfig)
    began, config = time.monotonic(), settled(resolved(config))
    check_ranks(config, ranks)
    parts = _parts_of(config)
    engine = make_engine(parts, config.engine, config.precision)
    _check_memory(parts, engine, config, config.eval.imagined)
    with _noted(_create(config, "eval", {"command": command})) if ranks.first else nullcontext() as folder:
        measured = _measured(parts, engine, config, folder, "evaluation", ranks)
        if measured is None:
            return None
        result = measured.figures() | {"wall_s": time.monotonic() - began}
        return _finish(folder, result | _about(config, folder, command, parts.suite))


def _about(config: TrainConfig | EvaluateConfig, folder: RunFolder, command: str, suite: Suite) -> dict:
    run = str(folder.path.resolve())
    found = {"suite": suite.about()} if hasattr(suite, "about") else {}
    return {"seed": config.seed, "start_seed": config.start_seed, "run": run, "command": command} | found


@contextmanager
def _noted(folder: RunFolder) -> Iterator[RunFolder]:
    """Close the folder in the end; an interruption gets the note which folder holds what is done."""
    with folder:
        try:
            yield folder
        except KeyboardInterrupt as stop:
            stop.add_note(str(folder.path))
            raise


def _measured(
    parts: Parts,
    engine: Engine,
    config: TrainConfig | EvaluateConfig,
    folder: RunFolder | None,  # at rank 0, which writes the videos
    title: str,
    ranks: Ranks,
) -> Measurement | None:
    given = parts.suite, parts.policy, parts.reflector, engine, config.eval
    measured = measure(*given, config.start_seed, config.seed, title, ranks)
    if measured is not None:
        write_videos(folder, engine, measured, config.eval, config.seed, title)
    return measured


def _made_from_scratch(config: TrainConfig, folder: RunFolder, ranks: Ranks) -> Path:
    from worldenv.training.pipeline import Pipeline  # imports h5py, which nothing else here needs

    given = config.scratch, config.seed, config.world, config.device, config.suite, ranks
    return _made(Pipeline(folder, *given, given=config.models))


def _made(pipeline: Any) -> Path:
    """The folder of the models that a `Pipeline` makes."""
    try:
        return pipeline.run()
    finally:
        getattr(pipeline.suite, "close", lambda: None)()  # its processes hold gigabytes, and the run begins its own


def _save_policy(folder: RunFolder, policy: nn.Module, config: TrainConfig, command: str) -> None:
    about = {"kind": "policy", "made": {"command": command, "seed": config.seed}}
    if hasattr(policy, "config"):
        about["config"] = asdict(policy.config)
    save_weights(folder.checkpoints / POLICY, policy, about)
    if hasattr(policy, "write_back"):
        shutil.rmtree(folder.path / WRITTEN_BACK, ignore_errors=True)  # of a run that was shorter, or interrupted here
        policy.write_back(folder.path / WRITTEN_BACK)


def load_run(
    run: Path | str,
    device: torch.device | str = "cpu",
    **others: str,  # suite, policy, world or reflector: a name that replaces the run's own
) -> Parts:
    """The parts that a training run used, with its post-trained policy.

    Raises UserError if the folder is no training run or the run has not ended, CheckpointError for a damaged file.
    """
    path = Path(run).expanduser()
    folder = RunFolder(path)
    used, policy = saved_config(folder, device="cpu", precision="auto"), folder.checkpoints / POLICY
    if not policy.exists():
        raise UserError(f"the run {path} has not ended; continue it with: worldenv-train --resume --run {path}")
    names = {name: getattr(used, name) for name in PARTS}
    find_modules(folder, (name for role, name in names.items() if role not in others))
    made = path / "models"
    found = made if made.is_dir() else used.models or shipped()
    if used.rounds > 1:
        found = made / round_name(used.rounds - 1)
    parts = load(found, **names | others, device=device)
    load_weights(policy, parts.policy)
    return parts


def _parts_of(config: EvaluateConfig) -> Parts:
    """The parts of a folder of models, or of a run folder."""
    read = load_run if is_run(config.models) else load
    return read(config.models or shipped(), **{name: getattr(config, name) for name in PARTS}, device=config.device)


def _ended(config: TrainConfig, ranks: Ranks) -> dict | None:
    """The result of the run to resume, if it has ended and is to have no more iterations; at rank 0."""
    folder = RunFolder(config.run)
    check_unchanged(folder, config)
    find_modules(folder, (getattr(config, name) for name in PARTS))
    result, done = folder.result(), folder.config["rl"]["iterations"]
    is_whole = result is not None and (folder.checkpoints / POLICY).exists()  # its state has the policy, too
    if not is_whole or config.rl.iterations > done or not ranks.first:
        return None
    if not (folder.path / REPORT).exists():  # killed right before
        _report(folder)
    print(
        f"the run {folder.path} has ended after {done} iterations, so there is nothing to do; to add iterations, give "
        "a larger --rl.iterations",
        file=sys.stderr,
    )
    return result


def _open(config: TrainConfig, name: str) -> RunFolder:
    if not config.resume:
        return _create(config, name)
    folder = RunFolder.resume(config.run)
    with ExitStack() as failed:
        failed.callback(folder.close)
        check_unchanged(folder, config)  # again: who had the folder before may have added iterations
        if config.rl.iterations > folder.config["rl"]["iterations"]:
            _add_iterations(folder, config.rl.iterations)
        failed.pop_all()
    return folder


def _create(config: TrainConfig | EvaluateConfig, name: str, about: dict[str, str] | None = None) -> RunFolder:
    kept = document(config) | (about or {})
    return RunFolder.create(config.run, kept) if config.run else RunFolder.begin(file_name(str(name)), kept)


def _add_iterations(folder: RunFolder, iterations: int) -> None:
    """Set the result and the policy of the shorter run aside: until the longer one has ended, there are none."""
    before = folder.config["rl"]["iterations"]
    for path in (folder.path / "result.json", folder.checkpoints / POLICY):
        if path.exists():
            path.rename(path.with_stem(f"{path.stem}-{before}"))
    folder.rewrite_config(folder.config | {"rl": folder.config["rl"] | {"iterations": iterations}})


def _earlier_s(folder: RunFolder) -> float:
    """Seconds that earlier sessions took: to the last line that they logged, or to the result of a shorter run."""
    results = [read_result(path) for path in folder.path.glob("result-*.json")]
    return max([folder.earlier_s, *(result.get("wall_s") or 0.0 for result in results)])


def _shares(folder: RunFolder, models: float, evaluate: float) -> dict[str, float]:
    """Shares of the run's time: rollout, update, offload, refresh (of rounds), evaluation, loading the models."""
    lines = folder.metrics(STAGE)
    seldom = [name for name in ("offload", "refresh") if any(f"{name}_s" in line for line in lines)]
    names = ["rollout", "update", "validate", *seldom]
    parts = {name: sum(_seconds(line.get(f"{name}_s")) for line in lines) for name in names}
    parts |= {"evaluate": evaluate + parts.pop("validate"), "models": models}
    whole = max(sum(parts.values()), 1e-9)
    return {name: part / whole for name, part in parts.items()}


def _seconds(logged: object) -> float:  # the file may have been changed since
    return min(max(logged, 0.0), LONGEST_S) if isinstance(logged, int | float) else 0.0


def _finish(folder: RunFolder, result: dict) -> dict:
    folder.write_result(result)
    report = _report(folder)
    _print_table(result)
    print(f"report: {report}   ({human_seconds(result['wall_s'])})", file=sys.stderr)
    return folder.result()


def _report(folder: RunFolder) -> Path:
    from worldenv.records.report import write_report  # imports matplotlib, which nothing else here needs

    return write_report(folder)


def _print_table(result: dict) -> None:
    names = {"before": "success_before", "after": "success_after", "success": "success"}
    columns = [(name, result[key]) for name, key in names.items() if result.get(key)]
    rows: list[Sequence[str]] = []
    for rule, label in (("oracle", "oracle stop"), ("own_stop", "own stop"), ("no_stop", "no stop")):
        rows.append([label, *(_with_interval(part, rule) for _, part in columns)])
    for task in columns[-1][1]["per_task"]:
        rows.append([task, *(f"{100 * part['per_task'][task]['own_stop']:.0f} %" for _, part in columns)])
    table("True success on held-out starts (tasks: own stop)", ["", *(name for name, _ in columns)], rows)


def _with_interval(part: dict, rule: str) -> str:
    low, high = part["intervals"][rule]
    return f"{100 * part[rule]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
