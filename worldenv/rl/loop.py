"""LOOP: rollout -> advantage -> update, entirely inside the world model (World-Env, arXiv 2509.24948)."""

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch

from worldenv.errors import Terminated, UserError
from worldenv.interfaces.observation import Starts
from worldenv.interfaces.policy import Policy
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.records.progress import Progress
from worldenv.records.resumption import identity
from worldenv.records.run_folder import RunFolder
from worldenv.rl.advantage import group_advantage
from worldenv.rl.checks import check_names, check_practice, check_saveable
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.critic import Critic
from worldenv.rl.learner import Learner
from worldenv.rl.needs import check_enough_groups
from worldenv.rl.off_policy import REMEDY, Ahead, Imagined
from worldenv.rl.practice_state import STAGE, resume, save
from worldenv.rollout.engine import Engine


def post_train(
    engine: Engine,
    starts: Starts,
    config: PostTrainConfig,
    folder: RunFolder,
    seed: int,
    validate: Callable[[], dict[str, float]] | None = None,  # figures of the present policy
    every: int = 0,  # iterations between two calls of it; 0: never
    renew: Callable[[int], Engine | None] | None = None,
    ranks: Ranks = ALONE,
    shard: bool = False,
) -> dict[str, int]:
    """Improve `engine.policy` in imagination, in place; resumable after any iteration. Returns the run's counts.

    Of several ranks, each imagines its part of the starts with all their siblings, and rank 0 writes the folder, which
    all can read. An episode has the same number, and so the same randomness, on any number of ranks. SIGTERM then ends
    all of them once the iteration is saved (Terminated). With `shard`, what learns is shared out as well
    (worldenv/launch/shards.py). With config.off_policy, an iteration is imagined while the policy learns from the one
    before; a copy of the policy as it was before that update acts. `renew` may then return no engine.

    The figures of `validate` are logged with those of the iteration; nothing else depends on them. config.offload
    "auto" means "off" here: which card there is, is known to whoever calls. `renew` is called
    with the number of each iteration before it begins, in a resumed run with that of its first one; an engine of the
    same policy that it returns imagines from then on.

    A resumed run needs the policy that it began with: its weights are checked, and then replaced by those of the
    state. Raises UserError for a policy whose weights cannot be saved. Raises CheckpointError, before anything is
    changed, if the state is damaged or is not of this run, and UserError if metrics.jsonl lacks iterations that the
    state has.
    """
    check_saveable(engine.policy)
    check_practice(engine.policy, engine.world, config)
    check_enough_groups(ranks.count, config)
    learner, names = _learner(engine.policy, config, ranks, shard), engine.policy.state_dict().keys()
    critic = Critic(engine.policy, config, seed, starts.device, ranks) if config.critic else None
    run = identity(seed, engine.policy)
    asked = None if config.off_policy else critic  # off policy: the critic learns while an iteration is imagined
    imagine = partial(_imagine, config, ranks, starts, seed, asked)
    ahead = Ahead(engine, imagine, config.iterations) if config.off_policy else None
    first, counts = resume(folder, learner, run, ahead, critic)
    ranks.every(None)  # all have read the folder
    if ranks.first:
        folder.truncate(STAGE, first)
    progress = Progress(config.iterations, "practising in imagination", done=first)
    with progress, ranks.between_saves(), ahead or nullcontext():
        for iteration in range(first, config.iterations):
            renewed, refresh = _renewed(renew, iteration, ahead)
            engine = renewed or engine
            figures = _iterate(engine, learner, critic, imagine, ahead, iteration, counts) | refresh
            check_names(engine.policy, names)
            if every and validate is not None and (iteration + 1) % every == 0:
                began = time.monotonic()
                figures |= validate() | {"validate_s": time.monotonic() - began}
            if ranks.first:
                folder.log(STAGE, iteration, **figures)
            save(folder, learner, run, iteration + 1, counts, ahead, critic)
            progress.advance(reward=figures["reward"], success=f"{100 * figures['imagined_success']:.0f} %")
            if ranks.to_end():
                raise Terminated
    return counts


def _learner(policy: Policy, config: PostTrainConfig, ranks: Ranks, shard: bool) -> Learner:
    if not shard:
        return Learner(policy, config, ranks)
    from worldenv.rl.sharded_learner import ShardedLearner  # imports FSDP, which only large policies need

    return ShardedLearner(policy, config, ranks)


def _renewed(
    renew: Callable[[int], Engine | None] | None, iteration: int, ahead: Ahead | None
) -> tuple[Engine | None, dict[str, float]]:
    """The new engine that `renew` gives for an iteration, or None, and how many seconds it took."""
    began = time.monotonic()
    renewed = renew(iteration) if renew is not None else None
    if renewed is not None and ahead is not None:
        raise UserError(f"`renew` gives another engine, but the old one has already imagined this iteration: {REMEDY}")
    return renewed, {} if renewed is None else {"refresh_s": time.monotonic() - began}


def _imagine(
    config: PostTrainConfig,
    ranks: Ranks,
    starts: Starts,
    seed: int,
    critic: Critic | None,
    engine: Engine,
    iteration: int,
) -> Imagined:
    """This rank's rollouts of an iteration."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration)
    picked = torch.randint(len(starts), (config.starts,), generator=generator).to(starts.device)
    part = ranks.part(config.starts)  # whole groups
    first = (iteration * config.starts + part.start) * config.siblings
    asked = {} if critic is None else {"give_up": partial(critic.gives_up, engine.horizon)}
    rollouts = engine.run(starts.pick(picked[part]), config.siblings, seed, first, **asked)
    if config.needs_hold:
        rollouts.fail(~rollouts.held)
    return rollouts, generator


def _iterate(
    engine: Engine,
    learner: Learner,
    critic: Critic | None,
    imagine: Callable[[Engine, int], Imagined],
    ahead: Ahead | None,
    iteration: int,
    counts: dict[str, int],
) -> dict[str, float]:
    config, ranks = learner.config, learner.ranks
    began, meanwhile = time.monotonic(), {}
    if ahead is None:
        rollouts, generator = imagine(engine, iteration)
    else:
        (rollouts, generator), seconds = ahead.take(iteration)
        meanwhile = {"ahead_s": seconds}
    advantage, flat = group_advantage(rollouts, config.siblings, config.signal, config.guard)
    by_chunk, known = (None, {}) if critic is None else critic.step(rollouts)
    own = rollouts.broken, rollouts.final_reward(), rollouts.stopped, rollouts.unsure(), rollouts.stop
    broken, reward, stopped, unsure, stop = ranks.gather(*own)
    finite, flat = ~broken, sum(ranks.every(flat))
    if not finite.any():
        raise UserError(f"in iteration {iteration + 1} no imagined episode was finite: nothing can be learnt")
    if flat == config.starts:
        warnings.warn(
            f"iteration {iteration + 1} taught nothing: in no group did the rewards of siblings differ by --rl.signal, "
            f"{config.signal}; lower it for a reflector whose rewards lie close together",
            stacklevel=2,
        )
    if ahead is not None:
        ahead.begin(iteration + 1)
    learner.set_rates(iteration)
    imagined, is_apart = time.monotonic(), config.offload == "on"
    with engine.set_aside() if is_apart else nullcontext():
        ready = time.monotonic()
        figures = learner.update(rollouts, advantage if by_chunk is None else by_chunk, generator) | known
        learnt = time.monotonic()
    offload = {"offload_s": ready - imagined + time.monotonic() - learnt} if is_apart else {}
    counts["groups"] += config.starts
    counts["groups_without_signal"] += flat
    counts["broken_episodes"] += int(broken.sum())
    counts["skipped_steps"] = learner.skipped
    return {
        "reward": reward[finite].mean().item(),
        "imagined_success": stopped[finite].float().mean().item(),
        "unsure": unsure[finite].mean().item(),
        "steps_to_stop": stop[finite].float().mean().item(),
        **figures,
        "groups_without_signal": flat,
        "broken_episodes": int(broken.sum()),
        "skipped_steps": learner.skipped,
        "rollout_s": imagined - began,
        "update_s": learnt - ready,
        **offload,
        **meanwhile,
    }
