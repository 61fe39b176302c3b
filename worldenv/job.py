"""The two jobs of the command line. `train`: measure, practise in imagination, measure again. `evaluate`: measure."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldenv.assemble import Parts, check_names, load, make_engine
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import Measurement, measure, practice_starts
from worldenv.evaluation.truth import starts_of
from worldenv.records.checkpoint import load_weights, save_weights
from worldenv.records.model_files import shipped
from worldenv.records.progress import human_seconds, table
from worldenv.records.run_folder import RunFolder, default_run_path
from worldenv.records.video import side_by_side, write_video
from worldenv.rl.loop import STAGE, post_train
from worldenv.rollout.engine import Engine

FPS = 6
PARTS = ("suite", "policy", "world", "reflector")


def write_videos(
    folder: RunFolder, engine: Engine, measurement: Measurement, config: EvalConfig, seed: int, name: str
) -> None:
    """Imagined and true episode of the same policy from the same start, with reward curve and stop."""
    if not config.videos:
        return
    shown = measurement.trajectories[: config.videos]
    starts = starts_of(shown)
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
        frames = side_by_side(
            [_wide(imagined.video[i].numpy()), _wide(trajectory.frames)], ["imagined", "true"], curves, stops
        )
        ending = "success" if measurement.true.success["own_stop"][i] else "failure"
        caption = f"{name}: {trajectory.instruction} (true: {ending})"
        write_video(folder.videos / f"{name}-{i}-{trajectory.task}.webp", frames, FPS, caption=caption)


def _wide(video: np.ndarray) -> np.ndarray:  # [T, V, H, W, 3] -> [T, H, V W, 3]
    """The views next to each other."""
    return np.concatenate(list(np.moveaxis(video, 1, 0)), axis=2)


def train(config: TrainConfig, command: str = "") -> dict:
    """The main job; returns the document that is also the last line of stdout and result.json."""
    began = time.monotonic()
    check_names(*(getattr(config, name) for name in PARTS))  # before hours of training
    folder = _open(config) if config.from_scratch else None
    found = _made_from_scratch(config, folder) if folder else config.models or shipped()
    parts = load(found, **{name: getattr(config, name) for name in PARTS}, device=config.device)
    engine = make_engine(parts, config.engine, config.precision)
    folder = folder or _open(config)  # after loading, so that a wrong path or precision leaves no folder behind
    loaded = time.monotonic() - began  # from scratch: made
    before = _measured(parts, engine, config, folder, "before")
    measured = time.monotonic() - began
    starts = practice_starts(parts.suite, config.seed).to(engine.world.device)
    counts = post_train(engine, starts, config.rl, folder, config.seed)
    _save_policy(folder, parts.policy, config, command)
    practised = time.monotonic() - began
    after = _measured(parts, engine, config, folder, "after")
    result = {
        "success_before": before.document(),
        "success_after": after.document(),
        "imagined_success": _pair(before, after, lambda m: m.imagined_success) | {"n": len(after.imagined.stopped)},
        "imagined_minus_true": _pair(before, after, lambda m: m.imagined_minus_true),
        "false_stop": _pair(before, after, lambda m: m.true.false_stop),
        "missed_stop": _pair(before, after, lambda m: m.true.missed_stop),
        "world_model": after.quality,
        "counts": counts,
        "time_shares": _shares(folder, loaded, measured - loaded + time.monotonic() - began - practised),
        "wall_s": time.monotonic() - began,
        "seed": config.seed,
        "start_seed": config.start_seed,
        "run": str(folder.path),
        "command": command,
    }
    return _finish(folder, result)


def evaluate(config: EvaluateConfig, command: str = "") -> dict:
    """Measure the models of a folder; returns the document that is also the last line of stdout and result.json."""
    began = time.monotonic()
    parts = _parts_of(config)
    engine = make_engine(parts, config.engine, config.precision)
    folder = RunFolder.create(config.run or default_run_path("eval"), _saved(config) | {"command": command})
    measured = _measured(parts, engine, config, folder, "evaluation")
    result = {
        "success": measured.document(),
        "imagined_success": measured.imagined_success,
        "imagined_minus_true": measured.imagined_minus_true,
        "false_stop": measured.true.false_stop,
        "missed_stop": measured.true.missed_stop,
        "world_model": measured.quality,
        "wall_s": time.monotonic() - began,
        "seed": config.seed,
        "start_seed": config.start_seed,
        "run": str(folder.path),
        "command": command,
    }
    return _finish(folder, result)


def _measured(
    parts: Parts, engine: Engine, config: TrainConfig | EvaluateConfig, folder: RunFolder, title: str
) -> Measurement:
    given = parts.suite, parts.policy, parts.reflector, engine, config.eval
    measured = measure(*given, config.start_seed, config.seed, title)
    write_videos(folder, engine, measured, config.eval, config.seed, title)
    return measured


def _made_from_scratch(config: TrainConfig, folder: RunFolder) -> Path:
    from worldenv.training.pipeline import Pipeline  # imports h5py, which nothing else here needs

    return Pipeline(folder, config.scratch, config.seed, config.world, config.device).run()


def _save_policy(folder: RunFolder, policy: nn.Module, config: TrainConfig, command: str) -> None:
    about = {"kind": "policy", "made": {"command": command, "seed": config.seed}}
    if hasattr(policy, "config"):
        about["config"] = asdict(policy.config)
    save_weights(folder.checkpoints / "policy.safetensors", policy, about)


def load_run(
    run: Path | str,
    device: torch.device | str = "cpu",
    **others: str,  # suite, policy, world or reflector: a name that replaces the run's own
) -> Parts:
    """The parts that a training run used, with its post-trained policy.

    Raises UserError if the folder is not a training run or the run is not complete, CheckpointError for a damaged file.
    """
    path = Path(run).expanduser()
    used, policy = RunFolder(path).config, path / "checkpoints" / "policy.safetensors"
    if "suite" not in used:
        raise UserError(f"{path} is no training run of this version: its config.json names no suite")
    if not policy.exists():
        raise UserError(
            f"the run {path} is not complete, it has no {policy.name} yet: go on with --resume --run {path}"
        )
    made = path / "models"
    if not made.is_dir():
        made = Path(used.get("models") or shipped())
    parts = load(made, **{name: used[name] for name in PARTS if name in used} | others, device=device)
    load_weights(policy, parts.policy)
    return parts


def _parts_of(config: EvaluateConfig) -> Parts:
    """The parts of a folder of models, or of a run folder."""
    given = Path(config.models or shipped()).expanduser()
    chosen = {name: getattr(config, name) for name in PARTS if getattr(config, name) is not None}
    read = load_run if (given / "checkpoints").is_dir() else load
    return read(given, **chosen, device=config.device)


def _open(config: TrainConfig) -> RunFolder:
    saved = _saved(config)
    path = config.run or default_run_path(config.suite.rpartition(":")[2])
    return RunFolder.resume(path, saved) if config.resume else RunFolder.create(path, saved)


def _saved(config: TrainConfig | EvaluateConfig) -> dict:
    fields = asdict(config)
    if config.models is not None:  # the run may be evaluated from another folder
        fields["models"] = config.models.expanduser().resolve()
    for name in ("run", "resume", "device"):  # these may differ when a run is resumed
        fields.pop(name, None)
    return json.loads(json.dumps(fields, default=str))


def _pair(before: Measurement, after: Measurement, figure) -> dict[str, float]:
    return {"before": figure(before), "after": figure(after)}


def _shares(folder: RunFolder, models: float, evaluate: float) -> dict[str, float]:
    """Shares of the run's time: rollout, update, evaluation, and loading or making the models."""
    lines = folder.metrics(STAGE)
    parts = {name: sum(line[f"{name}_s"] for line in lines) for name in ("rollout", "update")}
    parts |= {"evaluate": evaluate, "models": models}
    whole = max(sum(parts.values()), 1e-9)
    return {name: part / whole for name, part in parts.items()}


def _finish(folder: RunFolder, result: dict) -> dict:
    from worldenv.records.report import write_report  # imports matplotlib, which nothing else here needs

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
