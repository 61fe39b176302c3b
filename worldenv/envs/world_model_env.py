"""Imagined episodes as an environment for another training loop: tensors in and out, a batch of episodes per step.

`gymnasium_env.py` and `torchrl_env.py` adapt it to those libraries. If the policy implements `worldenv.Policy`, use
`Engine`: it takes the policy through whole episodes and records them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.fields import COUNT, check_fields
from worldenv.interfaces.observation import Key, Starts
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.world import WorldModel
from worldenv.rollout.checks import (
    check_config,
    check_members,
    check_rewards,
    check_seed,
    check_starts,
    given_tensor,
)
from worldenv.rollout.episodes import Episodes, Step
from worldenv.rollout.memory import free_bytes, out_of_memory_says
from worldenv.rollout.runner import Runner

BOUNDED = ("frames", "proprio", "text", "action")
SLOTS_SHARE = 0.8  # of what is free, for the slots at most; the rest is for observations and activations


@dataclass(frozen=True)
class EnvConfig:
    envs: int = 32  # E, episodes at a time
    chunk: int | None = None  # k, actions per step; None: the frames of one pass of the world model
    horizon: int | None = None  # actions after which an episode is truncated; None: the suite's
    # final: R at the stop or at the horizon, 0 before. progress: the rise of R in this step, where R begins at 0. Both
    # add up to the same R over an episode, one scalar in [0, 1] (World-Env, arXiv 2509.24948, reward).
    reward: Literal["final", "progress"] = "final"
    frame_dtype: torch.dtype = torch.uint8  # of the frames handed out: uint8 in [0, 255], or a float dtype in [-1, 1]
    batch: int | None = None  # episodes per network pass; None: what a CPU's cache holds, what a GPU has room for
    graphs: bool = True  # on a GPU: replay what was recorded instead of launching every kernel

    def __post_init__(self) -> None:
        check_fields(self, envs=COUNT, chunk=COUNT, horizon=COUNT, batch=COUNT)
        if self.frame_dtype != torch.uint8 and not self.frame_dtype.is_floating_point:
            raise UserError(f"frame_dtype is {self.frame_dtype}; it should be torch.uint8 or a floating-point dtype")


@dataclass
class Standing(Slots):
    """The state of each episode as the caller sees it."""

    steps: Tensor  # [E] int64, actions carried out, up to the reflector's stop
    score: Tensor  # [E] float32 in [0, 1], R: the reflector's judgement of the frame that is shown; 0 before any action
    terminated: Tensor  # [E] bool, the reflector stopped it
    truncated: Tensor  # [E] bool, it reached the horizon, or is broken
    broken: Tensor  # [E] bool, a number was not finite: no reward, and the frame before is still shown

    @property
    def done(self) -> Tensor:  # [E] bool
        return self.terminated | self.truncated

    @classmethod
    def new(cls, count: int, device: torch.device) -> "Standing":
        steps = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(steps, steps.float(), *(steps.bool() for _ in range(3)))


class WorldModelEnv:
    """E imagined episodes, each in a slot. `reset` begins some or all of them, `step` carries out k actions in each.

    An episode that has ended keeps showing its last frame until the caller begins a new one with `reset(done)`; more
    steps neither change it nor give reward. Episodes are numbered in the order in which they begin. They begin at the
    starts in an order that the seed shuffles, and after the last start at the first again. What is imagined depends
    only on (seed, number, start, actions), not on the slot or the other episodes: exactly in 8 bits, up to rounding in
    floats.

    All tensors live on the device of `starts`, where the models must be.
    """

    def __init__(self, world: WorldModel, reflector: Reflector, starts: Starts, config: EnvConfig):
        check_starts(starts, world)
        check_members("reflector", reflector, Reflector)
        check_config(config, EnvConfig)
        if config.horizon is None:
            raise UserError("the environment needs a horizon: EnvConfig(horizon=...), in actions")
        self.config, self.device = config, starts.device
        self.chunk = config.chunk or world.chunk
        self.runner = Runner(
            world, reflector, _given, self.chunk, config.batch, graphs=config.graphs, takes_actions=True
        )
        with self.runner.alone():
            self.runner.open(Starts(starts.seen.each(torch.clone), tuple(starts.texts)))  # the caller's may change
            self.standing = Standing.new(config.envs, self.device)
        self._order: Tensor | None = None  # [M] int64, rows of `starts`; None until there is a seed
        self._next_seed: int | None = None  # from the next reset on

    @property
    def world(self) -> WorldModel:
        return self.runner.world

    @property
    def starts(self) -> Starts:
        return self.runner.starts

    def seed(self, seed: int | None) -> None:
        """Use this seed from the next reset on, which must be of all episodes; they are then numbered from 0 again.

        The seed decides the random numbers and the order of the starts. None takes back a seed that no reset has used.
        """
        if seed is not None:
            check_seed(seed)
        self._next_seed = seed

    def _take_seed(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(self.starts), generator=generator, device="cpu")
        self._seed, self._next_seed, self._begun, self._place = seed, None, 0, 0

    def reset(
        self,
        mask: Tensor | None = None,  # [E] bool, which slots begin a new episode; None: all
        starts: Tensor | None = None,  # [M] int64, rows of the starts; from now on episodes begin there, in turn
    ) -> dict[str, Tensor]:
        """Begin episodes and return `observe()`. If no seed was given, one is drawn from torch's generator.

        Raises UserError if the first reset, or the first after `seed`, is not of all episodes, or if a row does not
        exist.
        """
        with self._turn():
            slots = self._slots_to_begin(mask, starts)
            if len(slots):
                with self._whole():
                    self._begin(slots)
            return self.observe()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with out_of_memory_says("take fewer envs: EnvConfig(envs=...)"), self.runner.alone():
            yield

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Where something fails, episodes may be half moved on: from then on there are none."""
        try:
            yield
        except BaseException:
            self.runner.give_up_slots()
            raise

    def _slots_to_begin(self, mask: Tensor | None, starts: Tensor | None) -> Tensor:  # [M] int64
        e = self.config.envs
        mask = torch.ones(e, dtype=torch.bool, device=self.device) if mask is None else mask
        mask = given_tensor("mask", mask, self.device)
        if mask.shape != (e,) or mask.dtype != torch.bool:
            raise UserError(f"mask is {mask.dtype} {list(mask.shape)}; it should be torch.bool [{e}]")
        slots, rows = mask.nonzero()[:, 0], None if starts is None else self._rows(starts)
        if (self.runner.episodes is None or self._next_seed is not None) and len(slots) < e:
            raise UserError(
                f"the first reset, or the first with a new seed, begins {len(slots)} of {e} episodes; begin "
                "them all: reset()"
            )
        if self._order is None and self._next_seed is None:
            self._next_seed = int(torch.randint(2**31, (), device="cpu"))
        if self._next_seed is not None:
            self._take_seed(self._next_seed)
        if rows is not None:
            self._order, self._place = rows, 0
        return slots

    def _rows(self, starts: Tensor) -> Tensor:
        rows = given_tensor("starts", starts, torch.device("cpu"))
        if rows.ndim != 1 or rows.dtype != torch.int64 or not len(rows):
            raise UserError(f"starts is {rows.dtype} {list(rows.shape)}; it should be torch.int64 [M], M >= 1")
        if int(rows.min()) < 0 or int(rows.max()) >= len(self.starts):
            raise UserError(f"starts has rows {int(rows.min())} to {int(rows.max())}; there are {len(self.starts)}")
        return rows.clone()

    def _begin(self, slots: Tensor) -> None:
        number = torch.arange(len(slots), device="cpu")
        rows, ids = self._order[(self._place + number) % len(self._order)], self._begun + number
        self._place, self._begun = self._place + len(slots), self._begun + len(slots)
        if self.runner.episodes is None:
            self._check_memory()
            self.runner.make_slots(self.config.envs, rows, ids, self._seed, False)
        self.runner.fill(slots.cpu(), rows, ids)
        self.standing.put(slots, Standing.new(len(slots), self.device))

    def _check_memory(self) -> None:
        """Raise UserError if the slots do not fit the memory that is free."""
        row = torch.zeros(1, dtype=torch.int64, device=self.device)
        each, free = self.runner.begin(row, row).bytes_each(), free_bytes(self.device)
        if self.config.envs * each > SLOTS_SHARE * free:
            raise UserError(
                f"{self.config.envs:,} envs of {each:,} bytes take {self.config.envs * each / 1e9:.2f} GB; "
                f"{free / 1e9:.2f} GB are free, of which at most {100 * SLOTS_SHARE:.0f} % may go there: take fewer, "
                f"EnvConfig(envs={max(1, int(SLOTS_SHARE * free / each))})"
            )

    def bounds(self, name: str) -> tuple[Tensor, Tensor]:
        """The least and the greatest value of each entry of one episode's frames, proprio, text or action.

        The bounds of proprio cover the starts and what the robot can report.
        """
        seen, robot = self.starts.seen, self.world.robot
        if name not in BOUNDED:
            raise UserError(f"there are no bounds of {name!r}; there are bounds of {', '.join(BOUNDED)}")
        if name == "frames":
            low, high = (0, 255) if self.config.frame_dtype == torch.uint8 else (-1, 1)
            one = seen.frames[0].to(self.config.frame_dtype)
            return torch.full_like(one, low), torch.full_like(one, high)
        if name == "action":
            one = seen.proprio.new_ones(self.chunk, robot.action_size)
            return -one, one
        if name == "text":
            return torch.zeros_like(seen.text[0]), torch.full_like(seen.text[0], len(self.starts.texts) - 1)
        low, high = seen.proprio.amin(0), seen.proprio.amax(0)
        return torch.minimum(low, low.new_tensor(robot.low)), torch.maximum(high, high.new_tensor(robot.high))

    def observe(self) -> dict[str, Tensor]:
        """The present observation of every episode, in new tensors.

        frames [E, V, H, W, 3] `frame_dtype` · proprio [E, P] float32 · text [E] int64, row of `starts.texts`
        """
        seen, dtype = self._live().seen, self.config.frame_dtype
        frames = seen.frames.clone() if dtype == torch.uint8 else (seen.frames.float() / 127.5 - 1).to(dtype)
        return {"frames": frames, "proprio": seen.proprio.clone(), "text": seen.text.clone()}

    def info(self) -> dict[str, Tensor]:
        """Of each episode its number `id`, the row `start` of its start, and steps, score, broken of `Standing`."""
        live, now = self._live(), self.standing
        tensors = {"id": live.id, "start": live.row, "steps": now.steps, "score": now.score, "broken": now.broken}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def step(
        self,
        action: Tensor,  # [E, k, A], limited to [-1, 1]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:  # observation; [E] float32, [E] bool, [E] bool
        """Carry out a chunk of actions: observation, reward, terminated, truncated. No new episode begins.

        Raises UserError before the first reset, on an action of another shape, and for a reflector whose reward
        lies outside [0, 1].
        """
        live, wanted = self._live(), (self.config.envs, self.chunk, self.world.robot.action_size)
        action = given_tensor("action", action, self.device, torch.float32)
        if action.shape != wanted:
            raise UserError(f"action is {list(action.shape)}; it should be {list(wanted)}: a chunk for every episode")
        with self._turn(), self._whole():
            live.action.copy_(action)
            reward = torch.cat(self.runner.advance(len(live), self._seed, False, self._stand))
            check_rewards(self.standing.score)
            return self.observe(), reward, self.standing.terminated.clone(), self.standing.truncated.clone()

    def _live(self) -> Episodes:
        if self.runner.episodes is None:
            raise UserError("there are no episodes yet; call reset() first")
        return self.runner.episodes

    def _stand(self, slots: slice, live: Episodes, new: Step) -> Tensor:  # [B] float32, the reward
        """Move each episode to its stop, the horizon, or the end of the chunk; returns the reward."""
        before = self.standing[slots]
        left = (self.config.horizon - before.steps).clamp(1, self.chunk)  # frames of the chunk that count
        over = new.stop & (torch.arange(self.chunk, device=self.device) < left[:, None])
        stopped = over.any(1)
        last = torch.where(stopped, over.int().argmax(1), left - 1)
        row = torch.arange(len(last), device=self.device)
        now = Standing(
            before.steps + torch.where(new.finite, last + 1, 0),
            torch.where(new.finite, new.reward[row, last], before.score),
            stopped,
            ~stopped & (~new.finite | (before.steps + self.chunk >= self.config.horizon)),
            ~new.finite,
        )
        frozen = before.done
        gain = now.score - before.score if self.config.reward == "progress" else torch.where(now.done, now.score, 0.0)
        reward = torch.where(frozen | now.broken, 0.0, gain)
        kept = (frozen | now.broken)[:, None]
        frames = torch.where(kept[..., None, None, None], live.seen.frames, new.frames[row, last])
        camera = new.camera
        if camera is not None:
            camera = torch.where(kept[..., None, None], live.seen.camera, camera[row, last])
        live.move_on(frames, torch.where(kept, live.seen.proprio, new.proprio[row, last]), camera)
        for mine, value in zip(before.tensors(), now.tensors(), strict=True):
            mine.copy_(torch.where(frozen, mine, value))
        return reward


def _given(live: Episodes, read: object, key: Key, explore: bool) -> Decision:
    return Decision(live.action, torch.zeros_like(live.action[:, 0, 0]), None)


def check_env(env: object) -> None:
    """Raise UserError unless an adapter is given the environment that it adapts."""
    if not isinstance(env, WorldModelEnv):
        raise UserError(f"env is a {type(env).__name__}; it should be a WorldModelEnv, as worldenv.make_env returns")
