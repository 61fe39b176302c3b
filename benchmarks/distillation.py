"""What distillation costs a causal world model in latents: a teacher of 20 steps, its students of 2 and 1, same data.

    python benchmarks/distillation.py --run FOLDER [--steps 2000] [--student-steps 150] [--name NAME]

Records true episodes of tabletop with the shipped policy, half of them with noise; trains an autoencoder of diffusers
on their frames, a teacher in its latents, and students of the teacher by both methods of worldenv-distill: with
trajectory, one student for each number of steps; with consistency, one student that is tested with each number. A
stopped run continues. Then the policy acts on validation starts; teacher and students imagine the same episodes, along
its true actions and with the policy acting in imagination, and so does the teacher itself in as few steps as the
students. The last line of stdout is one JSON document; with --name it is also in
benchmarks/results/distillation-NAME.json.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worldenv.assemble import Parts, load, make_engine
from worldenv.data.clips import Clips
from worldenv.data.trajectory import Trajectory
from worldenv.evaluation.consistency import consistency
from worldenv.evaluation.measure import in_turn, world_quality
from worldenv.evaluation.pictures import psnr
from worldenv.evaluation.replayed import replay_episodes
from worldenv.evaluation.truth import act_in_true, judge_outcome, judge_trajectories, starts_of
from worldenv.interfaces.observation import Key
from worldenv.records.progress import table
from worldenv.records.released import library
from worldenv.records.run_folder import RunFolder
from worldenv.rollout.memory import keep_freed_memory
from worldenv.training.fit import Schedule, fit
from worldenv.training.train_causal import causal_loss, distillation_loss
from worldenv.worlds.causal.latents import LatentCausalNetwork, LatentCausalWorld, save_causal_latents
from worldenv.worlds.causal.network import CausalConfig
from worldenv.worlds.tokenizers import FrameTokenizer

STEPS = 20  # of the teacher
STUDENTS = {2: (1.0, 0.5), 1: (1.0,)}  # noise levels of their passes
FIRST_TRAIN, FIRST_TEST = 3_000_000, 30_000  # start states that nothing else uses
NOISE = 2.0  # largest scale of the noise on the policy's actions
CHUNKS, BATCH, SHOWN = 3, 8, 256  # in a row when training; clips of a step; frames by which latents are scaled
AT_ONCE, ROUNDS = 32, 5  # episodes of a timed chunk; times that it is timed
ONES = (1,) * 4  # blocks of each level of the autoencoder: 8 x 8 pixels become 4 numbers


class Teacher(LatentCausalWorld):
    """A world model that takes Euler steps, as the students' targets do; students go on with fresh noise."""

    def _onward(self, noisy: Tensor, velocity: Tensor, t: float, t_next: float, key: Key, step: int) -> Tensor:
        return noisy + (t_next - t) * velocity


def recorded(parts: Parts, episodes: int, seed: int) -> list[Trajectory]:
    """True episodes, the tasks in turn; the second half with noise on the actions, more and more of it."""
    tasks = in_turn(parts.suite, episodes)
    starts = [FIRST_TRAIN + i // len(parts.suite.tasks) for i in range(episodes)]
    noise = NOISE * torch.linspace(-1, 1, episodes).clamp(min=0)
    return act_in_true(parts.policy, parts.suite, tasks, starts, "train", noise, seed)


def pixels(frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [N, 3, H, W] float32
    return frames.movedim(-1, 1).float() / 127.5 - 1


def autoencoder(folder: RunFolder, clips: Clips, schedule: Schedule, width: int, seed: int) -> nn.Module:
    """diffusers' AutoencoderTiny, trained to give frames back, with latents of variance 1 as others will read them."""
    torch.manual_seed(seed)
    sizes = {f"{side}_block_out_channels": (width,) * len(ONES) for side in ("encoder", "decoder")}
    counts = {"num_encoder_blocks": ONES, "num_decoder_blocks": ONES}
    model = library("diffusers").AutoencoderTiny(**sizes, **counts, latent_channels=4)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = pixels(clips.sample_frames(generator, schedule.batch)[:, 0])
        error = (model.decode(model.encode(x).latents).sample - x).square().mean()
        return error, {"mse": error.item()}

    fit(model, loss, schedule, "autoencoder", folder, seed)
    with torch.no_grad():
        some = clips.sample_frames(torch.Generator().manual_seed(seed), SHOWN)[:, 0]
        model.register_to_config(scaling_factor=1 / model.encode(pixels(some)).latents.std().item())
    return model


def trained(folder: RunFolder, parts: Parts, given: argparse.Namespace) -> dict[str, LatentCausalWorld]:
    """Teacher and students as world models; each is also kept as a folder that `--world causal-latents:` takes."""
    robot, clips = parts.suite.robot, Clips.of(recorded(parts, given.episodes, given.seed))
    tokenizer = autoencoder(
        folder, clips, Schedule(given.autoencoder_steps, 32, 3e-3), given.autoencoder_width, given.seed
    )
    config = CausalConfig(patch=16, channels=16, width=given.width, layers=given.layers)
    torch.manual_seed(given.seed)
    teacher = LatentCausalNetwork(config, FrameTokenizer(tokenizer))
    loss = causal_loss(teacher, robot, clips, BATCH, CHUNKS)
    fit(teacher, loss, Schedule(given.steps, BATCH, 1e-3), "teacher", folder, given.seed)
    teacher.eval().requires_grad_(False)
    levels = tuple(1 - i / STEPS for i in range(STEPS))
    ways = {f"teacher, {STEPS} steps": (teacher, levels)}

    def student(stage: str, steps: int, few: tuple[float, ...], method: str) -> LatentCausalNetwork:
        made = copy.deepcopy(teacher).requires_grad_(True)
        loss = distillation_loss(made, teacher, robot, clips, BATCH, CHUNKS, few, STEPS, method=method)
        fit(made, loss, Schedule(steps, BATCH, 3e-4), stage, folder, given.seed)
        return made.eval().requires_grad_(False)

    consistent = student("consistency", given.consistency_steps, max(STUDENTS.values(), key=len), "consistency")
    for steps, few in STUDENTS.items():
        ways[f"student, {steps} steps"] = student(f"student_{steps}", given.student_steps, few, "trajectory"), few
        ways[f"consistency, {steps} steps"] = consistent, few
        ways[f"teacher, {steps} steps"] = teacher, few
    for name, (network, few) in ways.items():
        path = folder.path / name.replace(", ", "-").replace(" ", "-")
        tokenizer.save_pretrained(path / "vae")
        save_causal_latents(path, network, {"steps": given.steps, "seed": given.seed}, few)
    view = parts.suite.views[0]
    return {
        name: (Teacher if network is teacher else LatentCausalWorld)(network, robot, few, view)
        for name, (network, few) in ways.items()
    }


def measure(parts: Parts, worlds: dict[str, LatentCausalWorld], tests: int, seed: int) -> dict:
    """Quality by chunk, permanence of things, imagined against true, and seconds of a chunk, of each world model."""
    suite, tasks = parts.suite, in_turn(parts.suite, tests)
    starts = [FIRST_TEST + i // len(suite.tasks) for i in range(tests)]
    acted = act_in_true(parts.policy, suite, tasks, starts, "validation")
    true = judge_outcome(acted, *judge_trajectories(parts.reflector, acted))
    found, likely = {}, getattr(parts.reflector, "likely", None)
    for name, world in worlds.items():
        engine = make_engine(replace(parts, world=world, ranges=None), precision="float32")
        replayed = replay_episodes(engine, acted, seed)
        imagined = engine.run(starts_of(acted), 1, seed, explore=False, stop=False, video=True)
        looked = consistency(suite, tasks, acted, true, imagined, replayed, seed, likely)
        success = {
            "imagined": imagined.succeeded(likely).float().mean().item(),
            "true": float(true.success["oracle"].mean()),
        }
        quality = world_quality(replayed, true.success["oracle"], world.chunk)
        found[name] = {"quality": quality, "success": success, **looked}
    for name, seconds in timed(worlds, starts_of(acted).pick(torch.arange(min(AT_ONCE, tests)))).items():
        found[name]["chunk_s"] = seconds
    frames = torch.cat([torch.from_numpy(t.frames[:, 0]) for t in acted])
    frames = frames[:: -(-len(frames) // SHOWN)]
    tokenizer = next(iter(worlds.values())).network.tokenizer
    with torch.no_grad():
        again = tokenizer.decode(tokenizer.encode(frames), frames.shape[2])
    return {"ways": found, "autoencoder_psnr": psnr(again, frames).mean().item()}


def timed(worlds: dict[str, LatentCausalWorld], starts) -> dict[str, dict[str, float]]:
    """Median and extremes of the seconds that a chunk of some episodes takes, the world models in turn."""
    n, took = len(starts), {name: [] for name in worlds}
    key = Key(0, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    for _ in range(ROUNDS):
        for name, world in worlds.items():
            memory = world.begin(starts.seen, world.chunk)
            action = torch.zeros(n, world.chunk, world.robot.action_size)
            began = time.perf_counter()
            world.imagine(memory, starts.seen, action, key)
            took[name].append(time.perf_counter() - began)
    return {
        name: {"median": statistics.median(all_of), "least": min(all_of), "most": max(all_of), "episodes": n}
        for name, all_of in took.items()
    }


def show(found: dict) -> None:
    """A row for each world model."""
    ways, rows = found["ways"], []
    for name, way in ways.items():
        levels, moved = way["quality"]["psnr"], way["things"]["moved_thing"]
        cells = [levels[0], levels[len(levels) // 2], levels[-1]]
        gone = [moved[column]["below_60"] for column in ("replayed", "imagined")]
        rows.append(
            [
                name,
                *(f"{cell:.1f}" for cell in cells),
                *("-" if share is None else f"{100 * share:.0f} %" for share in gone),
                f"{100 * (way['success']['imagined'] - way['success']['true']):+.0f}",
                f"{100 * way['agreement']['share']:.0f} %",
                f"{1000 * way['chunk_s']['median']:.0f} ms",
            ]
        )
    columns = ["dB, first", "middle", "last", "< 60 %", "imagined"]
    table("Distillation", ["", *columns, "gap", "agree", "chunk"], rows)
    print(
        "dB: PSNR of a replayed chunk; < 60 %: frames that show less than that of the moved thing, replayed and then "
        "imagined; gap: imagined minus true success, points",
        file=sys.stderr,
    )
    print(f"the autoencoder alone gives frames back with {found['autoencoder_psnr']:.1f} dB", file=sys.stderr)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training; made, or continued")
    parser.add_argument("--autoencoder-steps", type=int, default=1500, help="of its training")
    parser.add_argument("--steps", type=int, default=2000, help="of the teacher's training")
    parser.add_argument("--student-steps", type=int, default=150, help="of the training of each trajectory student")
    parser.add_argument("--consistency-steps", type=int, default=600, help="of the training of the consistency student")
    parser.add_argument("--episodes", type=int, default=600, help="true ones, to learn from")
    parser.add_argument("--tests", type=int, default=100, help="true ones, to be imagined")
    parser.add_argument("--width", type=int, default=128, help="of the transformer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--autoencoder-width", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="write benchmarks/results/distillation-NAME.json")
    given = parser.parse_args(words)
    settings = {name: value for name, value in vars(given).items() if name not in ("run", "name", "tests")}
    if min(value for name, value in settings.items() if name != "seed") < 1 or given.tests < 1:
        parser.error("all numbers but --seed should be at least 1")
    keep_freed_memory()
    folder = RunFolder.resume(given.run) if given.run.is_dir() else RunFolder.create(given.run, settings)
    with folder:
        if folder.config != settings:
            kept = json.dumps(folder.config)
            parser.error(f"{given.run} was begun with other settings, {kept}: give these, or another --run")
        parts = load()
        worlds = trained(folder, parts, given)
    found = measure(parts, worlds, given.tests, given.seed)
    config = asdict(next(iter(worlds.values())).network.config)
    found |= {"settings": settings | {"tests": given.tests, "teacher_steps": STEPS}, "network": config}
    show(found)
    if given.name:
        path = Path(__file__).parent / "results" / f"distillation-{given.name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
