"""The two jobs of the command line: measure - practise in imagination - measure again, and measuring alone."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.data.trajectories import Trajectory
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError
from worldenv.evaluation.truth import (
    EvalConfig,
    Outcome,
    act_in_true,
    judge_outcome,
    judge_trajectories,
    simulator_quality,
    starts_of,
)
from worldenv.nn.instruction import tokenize
from worldenv.records.model_files import Models, load_model, save_model, shipped
from worldenv.records.progress import Progress, human_seconds, table
from worldenv.records.run_folder import RunFolder, default_run_path
from worldenv.records.video import side_by_side, write_video
from worldenv.rl.loop import STAGE, post_train
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.episodes import Rollouts, Starts
from worldenv.suites.tabletop.physics import HORIZON
from worldenv.suites.tabletop.scenes import TASKS, Task
from worldenv.training.pipeline import Pipeline
from worldenv.worlds.composer.world import World

PRACTICE_STARTS = 960  # start states of the training split to practise from
PRACTICE_FIRST = 2_000_000  # numbers that neither demonstrations nor exploration used
FPS = 6


@dataclass
class Measurement:
    """One policy, measured in the true environment and in imagination from the same held-out starts."""

    true: Outcome
    trajectories: list[Trajectory]
    imagined: Rollouts
    quality: dict

    @property
    def imagined_success(self) -> float:
        return self.imagined.stopped.float().mean().item()

    @property
    def imagined_minus_true(self) -> float:
        """Both over the same starts and as many steps: done at some time, by the reflector in imagination and by an
        oracle in truth."""
        count, steps = len(self.imagined.stopped), min(self.imagined.reward[0].numel(), HORIZON)
        imagined = self.imagined.stopped & (self.imagined.stop <= steps)
        true = np.array([t.success[:steps].any() for t in self.trajectories[:count]])
        return imagined.float().mean().item() - float(true.mean())

    def document(self) -> dict:
        """True success by rule, and per task also what the reflector says of the imagined episodes."""
        out = self.true.document({task.name: task.instructions[0] for task in TASKS})
        stopped = self.imagined.stopped.numpy()
        for name, part in out["per_task"].items():
            rows = np.array(self.true.tasks[: len(stopped)]) == name
            part["imagined"] = float(stopped[rows].mean()) if rows.any() else None
        return out


def held_out(config: EvalConfig, start_seed: int, count: int) -> tuple[list[Task], list[int]]:
    """`count` (task, start) pairs of the test split, the tasks in turn; every start_seed gives other starts."""
    numbers = range(count)
    return [TASKS[i % len(TASKS)] for i in numbers], [start_seed * 100_003 + i // len(TASKS) for i in numbers]


def measure(models: Models, engine: Engine, config: EvalConfig, start_seed: int, seed: int, title: str) -> Measurement:
    """The mean action in the true environment up to the horizon, and in imagination until the reflector stops it."""
    models.policy.eval()
    tasks, starts = held_out(config, start_seed, config.episodes)
    with Progress(4, title) as progress:
        trajectories = act_in_true(models.policy, tasks, starts, "test")
        progress.advance()
        reward = judge_trajectories(models.reflector, trajectories)
        outcome = judge_outcome(trajectories, reward, models.reflector.config.threshold)
        progress.advance(success=f"{100 * outcome.success['oracle'].mean():.1f} %")
        few = trajectories[: config.quality]
        quality = simulator_quality(engine, few, outcome.success["oracle"][: len(few)], seed, config.weights)
        progress.advance()
        n = min(config.imagined, config.episodes)
        first = starts_of(tasks[:n], starts[:n], "test").to(engine.world.device)
        imagined = engine.run(first, 1, seed, explore=False).to("cpu")
        progress.advance()
    return Measurement(outcome, trajectories, imagined, quality)


def make_engine(
    models: Models,
    config: EngineConfig,
    policy: nn.Module | None = None,  # acts instead of the models' own, see `Engine`
    chunk: int | None = None,
    precision: str = "auto",  # float32, int8, or auto: int8 where the CPU is made for it
) -> Engine:
    """The engine of the embedded suite."""
    imagining = models.to_imagine(precision)
    if policy is None:
        policy, own = imagining.policy, (models.policy.config.chunk, models.simulator.config.chunk)
        if own[0] != own[1]:  # a horizon in chunks would not be that of the true environment
            raise UserError(f"policy acts in chunks of {own[0]}, the simulator in chunks of {own[1]}")
    return Engine(policy, _world(imagining), imagining.reflector, Kinematics(), config, chunk)


def make_env(models: Models, starts: Starts, config: EnvConfig, precision: str = "auto") -> WorldModelEnv:
    """The embedded suite, imagined, for somebody else's training loop; `precision` as in `make_engine`."""
    imagining = models.to_imagine(precision)
    return WorldModelEnv(_world(imagining), imagining.reflector, starts, config)


def _world(models: Models) -> World:
    return World(models.simulator, tabletop_camera(models.simulator.config.image_size), models.levels)


def practice_starts(seed: int) -> Starts:
    """First frames of the training split, the tasks in turn."""
    numbers = range(PRACTICE_STARTS)
    tasks = [TASKS[i % len(TASKS)] for i in numbers]
    return starts_of(tasks, [PRACTICE_FIRST + seed * PRACTICE_STARTS + i for i in numbers], "train")


def write_videos(
    folder: RunFolder, engine: Engine, measurement: Measurement, config: EvalConfig, seed: int, name: str
) -> None:
    """Imagined and true episode of the same policy from the same start, with reward curve and stop."""
    if not config.videos:
        return
    shown = measurement.trajectories[: config.videos]
    starts = Starts(
        torch.from_numpy(np.stack([t.frames[0, 0] for t in shown])),
        torch.from_numpy(np.stack([t.proprio[0] for t in shown])),
        tokenize([t.instruction for t in shown]),
    )
    imagined = engine.run(starts.to(engine.world.device), 1, seed, explore=False, stop=False, video=True).to("cpu")
    for i, trajectory in enumerate(shown):
        stops = [
            int(imagined.stop[i]) if imagined.stopped[i] else None,
            int(measurement.true.stop[i]) if measurement.true.stopped[i] else None,
        ]
        curves = [
            np.concatenate([[0.0], curve])
            for curve in (imagined.reward[i].flatten().numpy(), measurement.true.reward[i])
        ]
        frames = side_by_side([imagined.video[i].numpy(), trajectory.frames[:, 0]], ["imagined", "true"], curves, stops)
        ending = "success" if measurement.true.success["own_stop"][i] else "failure"
        caption = f"{name}: {trajectory.instruction} (true: {ending})"
        write_video(folder.videos / f"{name}-{i}-{trajectory.task}.webp", frames, FPS, caption=caption)


def train(config: TrainConfig, command: str) -> dict:
    """The main job; returns the document that is also the last line of stdout and result.json."""
    began = time.monotonic()
    folder = _open(config) if config.from_scratch else None
    found = Pipeline(folder, config.scratch, config.seed).run() if folder else config.models or shipped()
    models = Models.load(found, config.zero_shot_judge).to(config.device)
    engine = make_engine(models, config.engine, precision=config.precision)
    folder = folder or _open(config)  # after them: a wrong path or precision leaves no folder behind
    loaded = time.monotonic() - began  # from scratch: made
    before = measure(models, engine, config.eval, config.start_seed, config.seed, "before")
    write_videos(folder, engine, before, config.eval, config.seed, "before")
    measured = time.monotonic() - began
    starts = practice_starts(config.seed).to(engine.world.device)
    counts = post_train(engine, starts, config.post, folder, config.seed)
    made = {"command": command, "seed": config.seed}
    save_model(folder.checkpoints / "policy.safetensors", models.policy, made, torch.float32)
    practised = time.monotonic() - began
    after = measure(models, engine, config.eval, config.start_seed, config.seed, "after")
    write_videos(folder, engine, after, config.eval, config.seed, "after")
    result = {
        "success_before": before.document(),
        "success_after": after.document(),
        "imagined_success": _pair(before, after, lambda m: m.imagined_success) | {"n": len(after.imagined.stopped)},
        "imagined_minus_true": _pair(before, after, lambda m: m.imagined_minus_true),
        "false_stop": _pair(before, after, lambda m: m.true.false_stop),
        "missed_stop": _pair(before, after, lambda m: m.true.missed_stop),
        "simulator": after.quality,
        "counts": counts,
        "time_shares": _shares(folder, loaded, measured - loaded + time.monotonic() - began - practised),
        "wall_s": time.monotonic() - began,
        "seed": config.seed,
        "start_seed": config.start_seed,
        "run": str(folder.path),
        "command": command,
    }
    return _finish(folder, result)


def evaluate(config: EvaluateConfig, command: str) -> dict:
    """Measure the models of a folder; returns the document that is also the last line of stdout and result.json."""
    began = time.monotonic()
    models = _models_of(config).to(config.device)
    engine = make_engine(models, config.engine, precision=config.precision)
    folder = RunFolder.create(config.run or default_run_path("eval"), {"command": command})
    measured = measure(models, engine, config.eval, config.start_seed, config.seed, "evaluation")
    write_videos(folder, engine, measured, config.eval, config.seed, "evaluation")
    result = {
        "success": measured.document(),
        "imagined_success": measured.imagined_success,
        "imagined_minus_true": measured.imagined_minus_true,
        "false_stop": measured.true.false_stop,
        "missed_stop": measured.true.missed_stop,
        "simulator": measured.quality,
        "wall_s": time.monotonic() - began,
        "seed": config.seed,
        "start_seed": config.start_seed,
        "run": str(folder.path),
        "command": command,
    }
    return _finish(folder, result)


def _models_of(config: EvaluateConfig) -> Models:
    """A run folder gives its post-trained policy, and the simulator and reflector that it practised with."""
    given = config.models or shipped()
    if not (given / "checkpoints").is_dir():
        return Models.load(given, config.zero_shot_judge)
    made = given / "models"
    if not (made / "reflector.safetensors").exists():
        made = Path(RunFolder(given).config.get("models") or shipped())
    policy, _ = load_model(given / "checkpoints" / "policy.safetensors", "policy")
    return replace(Models.load(made, config.zero_shot_judge), policy=policy)


def _open(config: TrainConfig) -> RunFolder:
    saved = _saved(config)
    path = config.run or default_run_path("tabletop")
    return RunFolder.resume(path, saved) if config.resume else RunFolder.create(path, saved)


def _saved(config: TrainConfig) -> dict:
    fields = asdict(config)
    for name in ("run", "resume", "device"):  # a run may be continued elsewhere
        fields.pop(name)
    return json.loads(json.dumps(fields, default=str))


def _pair(before: Measurement, after: Measurement, figure) -> dict[str, float]:
    return {"before": figure(before), "after": figure(after)}


def _shares(folder: RunFolder, models: float, evaluate: float) -> dict[str, float]:
    """Of the run's time (s): loading or making the models, the two evaluations, and what practising consisted of."""
    lines = folder.metrics(STAGE)
    parts = {name: sum(line[f"{name}_s"] for line in lines) for name in ("rollout", "update")}
    parts |= {"evaluate": evaluate, "models": models}
    whole = max(sum(parts.values()), 1e-9)
    return {name: part / whole for name, part in parts.items()}


def _finish(folder: RunFolder, result: dict) -> dict:
    from worldenv.records.report import write_report  # loads matplotlib, which nothing before needs

    folder.write_result(result)
    report = write_report(folder)
    _print_table(result)
    print(f"report: {report}   ({human_seconds(result['wall_s'])})", file=sys.stderr)
    folder.close()
    return folder.result()


def _print_table(result: dict) -> None:
    columns = [
        ("before", result.get("success_before")),
        ("after", result.get("success_after")),
        ("success", result.get("success")),
    ]
    columns = [(name, part) for name, part in columns if part]
    rows: list[Sequence[str]] = []
    for rule, label in (("oracle", "oracle stop"), ("own_stop", "own stop"), ("no_stop", "no stop")):
        rows.append([label, *(_with_interval(part, rule) for _, part in columns)])
    for task in columns[-1][1]["per_task"]:
        rows.append([task, *(f"{100 * part['per_task'][task]['own_stop']:.0f} %" for _, part in columns)])
    table("True success on held-out starts (tasks: own stop)", ["", *(name for name, _ in columns)], rows)


def _with_interval(part: dict, rule: str) -> str:
    low, high = part["intervals"][rule]
    return f"{100 * part[rule]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
