"""A critic: how an imagined episode will end, guessed before each chunk, so that every chunk has its own advantage.

All chunks of an episode share the leave-one-out advantage (worldenv/rl/advantage.py), although few of them decide how
it ends. With a critic, a chunk's advantage is what it changed: generalised advantage estimation (Schulman et al.,
arXiv 1506.02438), with rewards at the end only and without a discount.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.interfaces.policy import Policy
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.episodes import Episodes, Rollouts, Step

HIDDEN, DROPOUT = 256, 0.1
STEPS, BATCH, RATE, DECAY = 150, 512, 1e-3, 1e-2  # of Adam with weight decay, in each iteration
KEPT = 16  # iterations whose episodes it learns from
READY = 2  # iterations that it has learnt from before it is asked
LEAST = 0.02  # a chunk with a smaller advantage is not learnt from
# An episode ends early, as a failure, if the critic expects less than HOPELESS in the second half of the horizon; it
# must have learnt from SURE iterations. Every WATCHED-th episode goes on, so that a wrong expectation shows.
HOPELESS, SURE, WATCHED = 0.02, 8, 8
SEED_STRIDE = 1_000_003  # as the starts of an iteration are drawn


def chunk_advantage(
    value: Tensor,  # [E, T] float32, the reward that is expected before each chunk
    reward: Tensor,  # [E] float32, at the end
    chunks: Tensor,  # [E] int64, chunks acted; later ones get 0
    gae_lambda: float,  # 1: reward - value; 0: only how the value changes from this chunk to the next
) -> Tensor:  # [E, T] float32
    """Generalised advantage estimation: A_t = d_t + lambda A_(t + 1), with d_t = V_(t + 1) - V_t, at last R - V_t."""
    horizon = value.shape[1]
    at = torch.arange(horizon, device=value.device)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    change = torch.where(at == chunks[:, None] - 1, reward[:, None], following) - value
    out, carried = torch.zeros_like(value), torch.zeros_like(reward)
    for t in reversed(range(horizon)):
        carried = torch.where(t < chunks, change[:, t] + gae_lambda * carried, 0.0)
        out[:, t] = carried
    return out


class Critic:
    """Expects the final reward from what the policy's `value_input` reads of a decision, and the number of the chunk.

    It learns from the episodes of the last KEPT iterations, of all ranks, so each rank has the same critic.
    """

    def __init__(self, policy: Policy, config: PostTrainConfig, seed: int, device: torch.device, ranks: Ranks = ALONE):
        self.policy, self.config, self.seed, self.device, self.ranks = policy, config, seed, device, ranks
        self.learnt = 0  # iterations
        self.seen: list[Tensor] = []  # [C, N] float32, for each iteration that is kept: what was read of all chunks
        self.rewards: list[Tensor] = []  # [C] float32, how their episodes ended
        self.network: nn.Sequential | None = None  # made with the first episodes, which show N

    def step(self, rollouts: Rollouts) -> tuple[Tensor | None, dict[str, float]]:  # [E, T] float32
        """The advantage of every chunk, then learn from these episodes; and what the critic had known of them.

        None while it has learnt from fewer than READY iterations. A broken episode has no advantage. With
        `config.guard`, episodes are weighted as `group_advantage` says.
        """
        with torch.inference_mode(False), torch.autocast(self.device.type, enabled=False):
            own = self._read(rollouts), rollouts.final_reward().clone(), rollouts.chunks.clone(), ~rollouts.broken
            seen, reward, chunks, sound = self.ranks.gather(*own)
            figures = {"chunks_per_episode": chunks.float().mean().item()}
            acted = (torch.arange(seen.shape[1], device=self.device) < chunks[:, None]) & sound[:, None]
            ends = reward[:, None].expand_as(acted)
            advantage = None
            if self.learnt >= READY:
                value = self._value(seen)
                advantage = self._weighted(rollouts, chunk_advantage(value, reward, chunks, self.config.gae_lambda))
                wrong, spread = (ends - value)[acted].var(correction=0), ends[acted].var(correction=0)
                figures["critic_explained"] = (1 - wrong / spread.clamp(min=1e-12)).item()
            self._learn(seen[acted], ends[acted])
        return advantage, figures

    def gives_up(self, horizon: int, before: Episodes, step: Step) -> Tensor:  # [B] bool; horizon in chunks
        """Which episodes are hopeless: the engine asks after each of their chunks, and ends them."""
        if self.learnt < SURE:
            return torch.zeros_like(step.finite)
        number = torch.eye(horizon, device=self.device)[before.chunk]
        value = self._value(torch.cat([self.policy.value_input(step.record), number], dim=-1))
        return (before.chunk >= horizon // 2) & (value < HOPELESS) & (before.id % WATCHED != 0)

    def state(self) -> dict[str, Any]:
        """What `take_up` needs to go on in a later session."""
        parts = {"learnt": self.learnt, "seen": self.seen, "rewards": self.rewards}
        if self.network is not None:
            parts |= {"weights": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return parts

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. A damaged one raises LookupError, TypeError, ValueError or RuntimeError."""
        self.learnt = int(state["learnt"])
        self.seen, self.rewards = ([one.to(self.device) for one in state[name]] for name in ("seen", "rewards"))
        if self.seen:
            self._make(self.seen[0].shape[1])
            self.network.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])

    def _read(self, rollouts: Rollouts) -> Tensor:  # [E, T, N]
        with torch.no_grad():
            seen = self.policy.value_input(rollouts.record)
        chunks = rollouts.log_prob.shape
        if not isinstance(seen, Tensor) or seen.dtype != torch.float32 or seen.shape[:-1] != chunks:
            found = f"{seen.dtype} {list(seen.shape)}" if isinstance(seen, Tensor) else f"a {type(seen).__name__}"
            raise UserError(
                f"the policy's `value_input` returned {found}; it should be torch.float32 [{chunks[0]}, {chunks[1]}, "
                "N]: N numbers for each chunk"
            )
        number = torch.eye(chunks[1], device=self.device).expand(chunks[0], -1, -1)
        return torch.cat([seen, number], dim=-1)

    @torch.no_grad()
    def _value(self, seen: Tensor) -> Tensor:  # [E, T, N] -> [E, T]
        self.network.eval()
        return self.network(seen)[..., 0].sigmoid()

    def _weighted(self, rollouts: Rollouts, advantage: Tensor) -> Tensor:  # of all ranks -> of this one
        first = self.ranks.before(len(rollouts.chunks))
        own = advantage[first : first + len(rollouts.chunks)] * ((1 - rollouts.unsure()) ** self.config.guard)[:, None]
        return torch.where(rollouts.broken[:, None] | (own.abs() < LEAST), 0.0, own)

    def _make(self, numbers: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = nn.Linear(numbers, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        self.network = nn.Sequential(*layers).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), RATE, weight_decay=DECAY)

    def _learn(self, seen: Tensor, reward: Tensor) -> None:  # [C, N], [C]
        self.seen, self.rewards = [*self.seen, seen][-KEPT:], [*self.rewards, reward][-KEPT:]
        self.learnt += 1
        x, y = torch.cat(self.seen), torch.cat(self.rewards)
        if not len(x):
            return
        if self.network is None:
            self._make(x.shape[1])
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.learnt)
        with torch.enable_grad():
            for _ in range(STEPS):
                drawn = torch.randint(len(x), (BATCH,), generator=generator).to(self.device)
                kept = (torch.rand(BATCH, HIDDEN, generator=generator) > DROPOUT).to(self.device) / (1 - DROPOUT)
                hidden = self.network[:2](x[drawn]) * kept
                loss = F.binary_cross_entropy_with_logits(self.network[2:](hidden)[:, 0], y[drawn])
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
