"""Which tasks can be done without looking? Success of a run's fine-tuned policy, and of two that see only grey.

    python benchmarks/blind.py RUN [--episodes 120] [--steps N] [--solved 0.3] [--output FOLDER]

RUN is a run of worldenv-train --from-scratch, at least up to its fine-tuned policy. `sees` is this policy on test
starts, `grey` the same one on grey pictures, and `blind` one that was fine-tuned on grey pictures, from the same base
and demonstrations. A task is named if `grey` or `blind` solves at least the share --solved of its episodes: success at
it says little about a policy that looks. The last line of stdout is one JSON document, also in blind.json of --output.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from altered import Altered, grey

from worldenv.commands.saved import saved_config
from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.errors import UserError
from worldenv.evaluation.measure import held_out
from worldenv.evaluation.truth import groups_of, steps_to_success
from worldenv.files import write_text
from worldenv.policy.small import SmallPolicy
from worldenv.records.intervals import wilson_interval
from worldenv.records.progress import Progress, table
from worldenv.records.run_folder import RunFolder
from worldenv.training.finetune import imitation_loss
from worldenv.training.fit import fit
from worldenv.training.pipeline import Pipeline

ROWS = ("sees", "grey", "blind")


def blinded(clips: Clips) -> Clips:
    """The same episodes with grey frames."""
    kept = clips.in_memory().stored
    return replace(clips, stored=MemoryFrames(grey(kept.rows), kept.begin))


def without_looking(pipeline: Pipeline, folder: RunFolder, steps: int) -> SmallPolicy:
    """Fine-tuned as the policy of the run, on grey pictures."""
    policy, schedule = pipeline.base().policy, replace(pipeline.config.finetune, steps=steps)
    loss = imitation_loss(policy, blinded(pipeline.recorded("demonstrations")), schedule.batch)
    fit(policy, loss, schedule, "blind", folder, pipeline.seed)
    return policy


def found(done: dict[str, np.ndarray], names: Sequence[str], solved: float) -> dict:
    """Success by row and task, with Wilson 95 % intervals, and the tasks that are done blind."""
    tasks = {}
    for name in dict.fromkeys(names):
        rows = np.array([other == name for other in names])
        counts = {row: (int(done[row][rows].sum()), int(rows.sum())) for row in ROWS}
        tasks[name] = {
            row: {"success": k / n, "interval": list(wilson_interval(k, n))} for row, (k, n) in counts.items()
        }
        tasks[name]["n"] = int(rows.sum())
    blind = [name for name, part in tasks.items() if max(part[row]["success"] for row in ROWS[1:]) >= solved]
    lines = [(name[-60:], *(f"{100 * part[row]['success']:.0f} %" for row in ROWS)) for name, part in tasks.items()]
    table("Success (oracle stop)", ("task", *ROWS), lines)
    return {"tasks": tasks, "solved_blind": blind, **{row: float(done[row].mean()) for row in ROWS}}


def compare(given: argparse.Namespace) -> dict:
    """Train the blind policy, act with all three, and keep what was found in --output. Raises UserError."""
    run = RunFolder(given.run)
    config = saved_config(run)
    pipeline = Pipeline(run, config.scratch, config.seed, config.world, suite=config.suite)
    suite, steps = pipeline.suite, given.steps or config.scratch.finetune.steps
    with closing(suite) if hasattr(suite, "close") else nullcontext():
        sees = SmallPolicy.load(pipeline.models / "finetuned.safetensors")
        output = given.output or given.run.with_name(f"{given.run.name}-blind")
        with RunFolder.create(output, {"blind": steps}) as folder:
            policies = {"sees": sees, "grey": Altered(sees, grey)}
            policies["blind"] = Altered(without_looking(pipeline, folder, steps), grey)
            tasks, starts = held_out(suite, config.start_seed, given.episodes)
            done = {}
            for row, policy in policies.items():
                with Progress(len(groups_of(suite, tasks)), f"episodes: {row}") as progress:
                    steps_to = steps_to_success(policy, suite, tasks, starts, "test", config.seed, progress)
                    done[row] = steps_to > 0
            out = found(done, [task.name for task in tasks], given.solved) | {"run": str(given.run), "steps": steps}
            out |= {"suite": suite.about()} if hasattr(suite, "about") else {}
            write_text(folder.path / "blind.json", json.dumps(out))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run of worldenv-train --from-scratch")
    parser.add_argument("--episodes", type=int, default=120, help="of each policy, all tasks together (120)")
    parser.add_argument("--steps", type=int, help="of the blind fine-tuning (default: those of the run)")
    parser.add_argument("--solved", type=float, default=0.3, help="share from which on a task is named (0.3)")
    parser.add_argument("--output", type=Path, help="new folder for blind policy and result (default: RUN-blind)")
    given = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    try:
        print(json.dumps(compare(given)))
    except UserError as error:
        sys.exit(f"blind: {error}")


if __name__ == "__main__":
    main()
