"""Imagined episodes as an environment that others act in: torch in, torch out, a batch of episodes a step.

`gymnasium_env.py` and `torchrl_env.py` are its faces for those libraries. A policy at hand is taken through whole
rollouts, and these recorded, by `Engine`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.reflector.small import Reflector
from worldenv.robot.kinematics import Kinematics
from worldenv.rollout.episodes import Episodes, Starts
from worldenv.rollout.parallel import in_parts
from worldenv.rollout.runner import advance, begin, check_seed, check_starts
from worldenv.worlds.composer.world import World


@dataclass(frozen=True)
class EnvConfig:
    envs: int = 32  # E, episodes at a time
    chunk: int | None = None  # k, actions per step; None: K, the frames that the simulator makes in a pass
    horizon: int = 40  # actions after which an episode is truncated
    # final: R at the stop or at the horizon, 0 before. progress: how much R has risen in this step, from 0 on. The sum
    # over an episode is the same R, one scalar in [0, 1] (World-Env, arXiv 2509.24948, reward).
    reward: Literal["final", "progress"] = "final"
    frame_dtype: torch.dtype = torch.uint8  # of the frames handed out: uint8 in [0, 255], or a float dtype in [-1, 1]
    batch: int | None = None  # episodes per network pass; None: what a CPU's cache holds, on a GPU all

    def __post_init__(self) -> None:
        if min(n for n in (self.envs, self.horizon, self.batch, self.chunk) if n is not None) < 1:
            raise UserError(f"envs, chunk, horizon and batch must be positive: {self}")
        if self.reward not in ("final", "progress"):
            raise UserError(f"reward is {self.reward!r}; it should be 'final' or 'progress'")
        if self.frame_dtype != torch.uint8 and not self.frame_dtype.is_floating_point:
            raise UserError(f"frame_dtype is {self.frame_dtype}; it should be torch.uint8 or a floating-point dtype")


@dataclass
class Standing(Slots):
    """How each episode stands."""

    steps: Tensor  # [E] int64, actions carried out; those after the reflector's stop do not count
    score: Tensor  # [E] float32 in [0, 1], R: the reflector's judgement of the frame that is shown; 0 before any action
    terminated: Tensor  # [E] bool, the reflector stopped it
    truncated: Tensor  # [E] bool, it came to the horizon, or broke
    broken: Tensor  # [E] bool, something became non-finite: no reward, and it still shows the frame before

    @property
    def done(self) -> Tensor:  # [E] bool
        return self.terminated | self.truncated

    @classmethod
    def new(cls, count: int, device: torch.device) -> "Standing":
        steps = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(steps, steps.float(), *(steps.bool() for _ in range(3)))


class WorldModelEnv:
    """E imagined episodes, each in a slot. `reset` begins some or all of them, `step` moves all on by k actions.

    An episode that ends shows the frame at which it ended until it is begun anew: by the caller, with `reset(done)`.
    Stepped on regardless it stays as it is and gives no more reward. Episodes are numbered as they begin, and begin at
    the starts in an order shuffled by the seed, again and again. What is imagined depends on (seed, number, start,
    actions) alone, not on the slot or on the other episodes: in 8 bits to the last bit, in floats up to rounding.

    All tensors live on the device of `starts`, where the models must be.
    """

    @torch.inference_mode(False)  # as `reset`
    def __init__(
        self,
        world: World,
        reflector: Reflector,
        starts: Starts,
        config: EnvConfig,
        kinematics: Kinematics | None = None,
    ):
        check_starts(starts, world)
        self.world, self.reflector, self.starts, self.config = world, reflector, starts, config
        self.kinematics, self.device = kinematics or Kinematics(), starts.frame.device
        self.chunk = config.chunk or world.chunk
        self.judged = reflector.read(starts.tokens)  # [N, C]
        self.standing = Standing.new(config.envs, self.device)
        self.episodes: Episodes | None = None  # until the first reset
        self._order: Tensor | None = None  # [M] int64, rows of `starts`; None until there is a seed
        self._next_seed: int | None = None  # from the next reset on

    def seed(self, seed: int | None) -> None:
        """From the next reset on, which must be of all, number the episodes from 0 again, in the random world and the
        order of starts of this seed. None takes back a seed that no reset has used."""
        if seed is not None:
            check_seed(seed)
        self._next_seed = seed

    def _take_seed(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(self.starts), generator=generator, device="cpu").to(self.device)
        self._seed, self._next_seed, self._begun, self._place = seed, None, 0, 0

    @torch.inference_mode(False)  # slots that were made in that mode could not be written to outside of it
    def reset(
        self,
        mask: Tensor | None = None,  # [E] bool, which to begin anew; None: all
        starts: Tensor | None = None,  # [M] int64, rows of the starts to begin at from now on, in turn
    ) -> dict[str, Tensor]:
        """Begin episodes, and return `observe()`. Without a seed so far, one is drawn from torch's generator.

        Raises UserError if the first reset, or the first after `seed`, is not of all, or a row does not exist.
        """
        e = self.config.envs
        mask = torch.ones(e, dtype=torch.bool, device=self.device) if mask is None else mask.to(self.device)
        if mask.shape != (e,) or mask.dtype != torch.bool:
            raise UserError(f"mask is {mask.dtype} {list(mask.shape)}; it should be torch.bool [{e}]")
        slots, rows = mask.nonzero()[:, 0], None if starts is None else self._rows(starts)
        if (self.episodes is None or self._next_seed is not None) and len(slots) < e:
            raise UserError(
                f"the first reset, or the first with a new seed, is of {len(slots)} of {e} episodes; begin "
                "them all: reset()"
            )
        if self._order is None and self._next_seed is None:
            self._next_seed = int(torch.randint(2**31, (), device="cpu"))
        if self._next_seed is not None:
            self._take_seed(self._next_seed)
        if rows is not None:
            self._order, self._place = rows, 0
        if len(slots):
            self._begin(slots)
        return self.observe()

    def _rows(self, starts: Tensor) -> Tensor:
        rows = torch.as_tensor(starts, device=self.device)
        if rows.ndim != 1 or rows.dtype != torch.int64 or not len(rows):
            raise UserError(f"starts is {rows.dtype} {list(rows.shape)}; it should be torch.int64 [M], M >= 1")
        if int(rows.min()) < 0 or int(rows.max()) >= len(self.starts):
            raise UserError(f"starts has rows {int(rows.min())} to {int(rows.max())}; there are {len(self.starts)}")
        return rows

    @torch.no_grad()
    def _begin(self, slots: Tensor) -> None:
        number = torch.arange(len(slots), device=self.device)
        row, id = self._order[(self._place + number) % len(self._order)], self._begun + number
        self._place, self._begun = self._place + len(slots), self._begun + len(slots)

        def work(part: slice) -> Episodes:
            new = self.starts.pick(row[part])
            judged = self.judged.index_select(0, row[part])
            return begin(new, row[part], id[part], new.tokens, judged, self.chunk, self.world, self.reflector)

        parts = in_parts(work, len(slots), self.config.batch, self.device)
        if self.episodes is None:
            self.episodes = parts[0].empty(self.config.envs)
        for some, part in zip(slots.split(list(map(len, parts))), parts, strict=True):
            self.episodes.put(some, part)
        self.standing.put(slots, Standing.new(len(slots), self.device))

    def bounds(self, name: str) -> tuple[Tensor, Tensor]:
        """The least and the greatest value of every number of one episode's frame, proprio, instruction or action.

        Of proprio and instruction: of the starts, and where the gripper may go.
        """
        if name == "frame":
            low, high = (0, 255) if self.config.frame_dtype == torch.uint8 else (-1, 1)
            one = self.starts.frame[0].to(self.config.frame_dtype)
            return torch.full_like(one, low), torch.full_like(one, high)
        if name == "action":
            one = self.starts.proprio.new_ones(self.chunk, 7)
            return -one, one
        values = {"proprio": self.starts.proprio, "instruction": self.starts.tokens}[name]
        low, high = values.amin(0), values.amax(0)
        if name == "instruction":
            return torch.full_like(low, low.min()), torch.full_like(high, high.max())
        return (
            torch.minimum(low, low.new_tensor([*self.kinematics.low, 0.0])),
            torch.maximum(high, high.new_tensor([*self.kinematics.high, 1.0])),
        )

    def observe(self) -> dict[str, Tensor]:
        """What the episodes show, in tensors of the caller's own.

        frame [E, H, W, 3] `frame_dtype` · proprio [E, 7] float32 · instruction [E, L] int64, tokens
        """
        live, dtype = self._live(), self.config.frame_dtype
        frame = live.frame.clone() if dtype == torch.uint8 else (live.frame.float() / 127.5 - 1).to(dtype)
        return {"frame": frame, "proprio": live.proprio.clone(), "instruction": live.instruction.clone()}

    def info(self) -> dict[str, Tensor]:
        """About each episode: its number `id`, the row `start` of its start, and steps, score, broken of `Standing`."""
        live, now = self._live(), self.standing
        tensors = {"id": live.id, "start": live.row, "steps": now.steps, "score": now.score, "broken": now.broken}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.inference_mode(False)
    def step(
        self,
        action: Tensor,  # [E, k, 7], clipped to [-1, 1]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:  # observation; [E] float32, [E] bool, [E] bool
        """Carry out a chunk of actions: observation, reward, terminated, truncated. Nothing is begun anew.

        Raises UserError before the first reset, and on an action of another shape.
        """
        self._live()
        wanted = (self.config.envs, self.chunk, 7)
        action = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        if action.shape != wanted:
            raise UserError(f"action is {list(action.shape)}; it should be {list(wanted)}: a chunk for every episode")
        parts = in_parts(lambda part: self._step(part, action[part]), len(action), self.config.batch, self.device)
        reward = torch.cat(parts)
        return self.observe(), reward, self.standing.terminated.clone(), self.standing.truncated.clone()

    def _live(self) -> Episodes:
        if self.episodes is None:
            raise UserError("there are no episodes yet; begin them: reset()")
        return self.episodes

    @torch.no_grad()
    def _step(self, part: slice, action: Tensor) -> Tensor:  # [B] float32
        live, before = self.episodes[part], self.standing[part]
        new = advance(live, action, self.world, self.reflector, self.kinematics, self._seed)
        left = (self.config.horizon - before.steps).clamp(1, self.chunk)  # frames of the chunk that count
        over = new.over & (torch.arange(self.chunk, device=self.device) < left[:, None])
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
        frame = torch.where(kept[..., None, None], live.frame, new.frames[row, last])
        live.move_on(frame, torch.where(kept, live.proprio, new.proprio[row, last]))
        for mine, value in zip(before.tensors(), now.tensors(), strict=True):
            mine.copy_(torch.where(frozen, mine, value))
        return reward
